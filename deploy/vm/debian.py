"""Debian packages, as the file packages.lock names them: by version and SHA-256.

Always true here: where packages come from is for apt to know, and never written down; what
they are is written down, and checked. No script of a package is run.
"""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_FIELDS: Final = 3


@dataclass(frozen=True, slots=True)
class Package:
    """A package that is part of the image."""

    name: str
    version: str
    sha256: str


def read_lock(path: Path) -> list[Package]:
    """Return the packages of a lock file: a line of name, version and SHA-256 each.

    Raises:
        SystemExit: If a line is something else.
    """
    found = []
    for line in path.read_text().splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != _FIELDS:
            raise SystemExit(f"{path}: expected name, version and SHA-256, found {line!r}")
        found.append(Package(*words))
    return found


def write_lock(names: Path, lock: Path, cache: Path) -> None:
    """Lock the packages that a file names to the versions that apt offers now."""
    lines = ["# Written by `make vm-lock`. Name, version, SHA-256 of the package."]
    for line in names.read_text().splitlines():
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        shown = _run("apt-cache", "show", "--no-all-versions", name)
        version = next(
            line.removeprefix("Version: ")
            for line in shown.splitlines()
            if line.startswith("Version: ")
        )
        found = fetch(Package(name, version, ""), cache)
        lines.append(f"{name} {version} {hashlib.sha256(found.read_bytes()).hexdigest()}")
    lock.write_text("\n".join(lines) + "\n")


def fetch(package: Package, cache: Path) -> Path:
    """Return the file of a package, from the cache or from where apt finds it.

    Raises:
        SystemExit: If apt does not have it any more, or it is another one.
    """
    cache.mkdir(parents=True, exist_ok=True)
    epochless = package.version.replace(":", "%3a")
    pattern = f"{package.name}_{epochless}_*.deb"
    found = next(iter(cache.glob(pattern)), None)
    if found is None:
        try:
            _run("apt-get", "download", "-qq", f"{package.name}={package.version}", cwd=cache)
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                f"apt does not offer {package.name} {package.version} (any more): run "
                "`apt-get update`, or move on with `make vm-lock`, which makes another image"
            ) from error
        found = next(iter(cache.glob(pattern)))
    digest = hashlib.sha256(found.read_bytes()).hexdigest()
    if package.sha256 and digest != package.sha256:
        raise SystemExit(f"{found}: expected SHA-256 {package.sha256}, found {digest}")
    return found


def unpack(package: Path, target: Path) -> None:
    """Unpack the files of a package."""
    _run("dpkg-deb", "--extract", str(package), str(target))


def _run(*command: str, cwd: Path | None = None) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd).stdout
