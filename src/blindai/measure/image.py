"""The folder that `make vm` writes: a kernel, an initrd, a root image and a command line.

Always true here: the files are those that the manifest names by SHA-256. The root image is
pinned by the command line, which holds the root of its hash tree.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from blindai.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

FORMAT: Final = "blindai-machine"
VERSION: Final = 1
MAX_MANIFEST_BYTES: Final = 1 << 20
MAX_COMMAND_LINE_BYTES: Final = 4096
MAX_FILE_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class MachineImage:
    """What is booted.

    Attributes:
        folder: Where it is.
        kernel: The file vmlinuz.
        initrd: The file initrd.
        command_line: The file cmdline, as it is passed to the kernel.
        golden: What the manifest says was seen, as JSON.
    """

    folder: Path
    kernel: bytes
    initrd: bytes
    command_line: str
    golden: tuple[Any, ...] = ()


def load_image(folder: Path) -> MachineImage:
    """Read an image and check its files against its manifest.

    Raises:
        ConfigurationError: If it is no image, or a file is not the one it was built with.
    """
    manifest = _parse_manifest(read_file(folder / "manifest.json", MAX_MANIFEST_BYTES), folder)
    files = {
        name: read_file(folder / name, most)
        for name, most in (
            ("vmlinuz", MAX_FILE_BYTES),
            ("initrd", MAX_FILE_BYTES),
            ("cmdline", MAX_COMMAND_LINE_BYTES),
        )
    }
    for name, content in files.items():
        _compare(folder / name, manifest, hashlib.sha256(content).hexdigest())
    with _open(folder / "root.img") as file:
        _compare(folder / "root.img", manifest, hashlib.file_digest(file, "sha256").hexdigest())
    golden = manifest.get("golden", [])
    if not isinstance(golden, list):
        msg = f"{folder / 'manifest.json'}: golden: expected a list"
        raise ConfigurationError(msg)
    try:
        command_line = files["cmdline"].decode("ascii")
    except UnicodeDecodeError as error:
        msg = f"{folder / 'cmdline'}: expected ASCII text"
        raise ConfigurationError(msg) from error
    return MachineImage(folder, files["vmlinuz"], files["initrd"], command_line, tuple(golden))


def read_file(path: Path, at_most: int) -> bytes:
    """Return a file's content.

    Raises:
        ConfigurationError: If it cannot be read, or is larger than `at_most` bytes.
    """
    with _open(path) as file:
        content: bytes = file.read(at_most + 1)
    if len(content) > at_most:
        msg = f"{path} is larger than {at_most:,} bytes"
        raise ConfigurationError(msg)
    return content


def _open(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}"
        raise ConfigurationError(msg) from error


def _parse_manifest(data: bytes, folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        msg = f"{folder / 'manifest.json'} is not JSON: {error}"
        raise ConfigurationError(msg) from error
    if (
        not isinstance(manifest, dict)
        or (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION)
        or not isinstance(manifest.get("files"), dict)
    ):
        msg = f"{folder / 'manifest.json'}: expected format {FORMAT!r}, version {VERSION}, files"
        raise ConfigurationError(msg)
    return manifest


def _compare(path: Path, manifest: dict[str, Any], found: str) -> None:
    entry = manifest["files"].get(path.name)
    expected = entry.get("sha256") if isinstance(entry, dict) else None
    if expected != found:
        msg = f"{path}: expected SHA-256 {expected}, as the manifest says, found {found}"
        raise ConfigurationError(msg)
