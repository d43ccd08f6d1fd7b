"""What a kernel supports and shows: its configuration, the processor's flags, device files.

Read from files alone, below one root, so that a test can build a machine in a folder.
"""

from __future__ import annotations

import os
import stat
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from blindai.attesters.kernel_files import read_bounded
from blindai.errors import EvidenceError

if TYPE_CHECKING:
    from pathlib import Path

_MAX_FILE: Final = 4 << 20
_MAX_PACKED: Final = 1 << 20
# Option → module that it becomes, and what needs it.
_OPTIONS: Final = {
    "CONFIG_CONFIGFS_FS": ("configfs", "SEV-SNP and TDX reports"),
    "CONFIG_TSM_REPORTS": ("tsm", "SEV-SNP and TDX reports"),
    "CONFIG_SEV_GUEST": ("sev_guest", "SEV-SNP"),
    "CONFIG_TDX_GUEST_DRIVER": ("tdx_guest", "TDX"),
    "CONFIG_NSM": ("nsm", "Nitro Enclaves"),
    "CONFIG_X86_SGX": ("", "SGX"),
    "CONFIG_TCG_TPM": ("tpm", "TPM"),
    "CONFIG_TCG_TIS": ("tpm_tis", "TPM"),
    "CONFIG_TCG_CRB": ("tpm_crb", "TPM"),
    "CONFIG_SECURITYFS": ("", "the TPM's event log"),
}
_DEVICES: Final = (
    "dev/attestation",
    "dev/nsm",
    "dev/sev-guest",
    "dev/sgx_enclave",
    "dev/tdx_guest",
    "dev/tpm0",
    "dev/tpmrm0",
    "sys/kernel/config/tsm/report",
    "sys/kernel/security/tpm0/binary_bios_measurements",
)
_FLAGS: Final = frozenset({"sgx", "sgx_lc", "tdx_guest", "sev", "sev_es", "sev_snp", "hypervisor"})


@dataclass(frozen=True, slots=True)
class KernelOption:
    """One option of the kernel's configuration.

    Attributes:
        name: Such as "CONFIG_TSM_REPORTS".
        state: "built in", "module, loaded", "module, not loaded", "missing" or "unknown".
        needed_for: What needs it.
    """

    name: str
    state: str
    needed_for: str


@dataclass(frozen=True, slots=True)
class DeviceFile:
    """One file or folder through which hardware is reached.

    Attributes:
        path: Where it is.
        mode: As `ls -l` shows it.
        owner: User and group, by number.
        usable: Whether this process may read it and, where it is a device, write to it.
    """

    path: Path
    mode: str
    owner: str
    usable: bool


@dataclass(frozen=True, slots=True)
class Survey:
    """What the kernel shows.

    Attributes:
        release: Version of the running kernel; empty if it cannot be read.
        processor: Its name.
        flags: Those of its flags that are about trusted hardware.
        options: The kernel's configuration, as far as it matters here.
        devices: Device files that are there.
    """

    release: str
    processor: str
    flags: tuple[str, ...]
    options: tuple[KernelOption, ...]
    devices: tuple[DeviceFile, ...]


def survey(root: Path) -> Survey:
    """Return what the kernel below `root` shows."""
    release = _text(root / "proc/sys/kernel/osrelease").strip()
    configuration = _configuration(root, release)
    modules = {line.split(" ", 1)[0] for line in _text(root / "proc/modules").splitlines()}
    processor = _fields(_text(root / "proc/cpuinfo"))
    return Survey(
        release=release,
        processor=processor.get("model name", ""),
        flags=tuple(sorted(_FLAGS.intersection(processor.get("flags", "").split()))),
        options=tuple(
            KernelOption(name, _state(configuration, modules, name, module), purpose)
            for name, (module, purpose) in _OPTIONS.items()
        ),
        devices=tuple(found for name in _DEVICES if (found := _device(root / name)) is not None),
    )


def _fields(text: str) -> dict[str, str]:
    """Return "name: value" lines; of several processors, those of the first."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return found


def _state(configuration: dict[str, str], modules: set[str], name: str, module: str) -> str:
    if module in modules:
        return "module, loaded"
    if not configuration:
        return "unknown"
    built = {"y": "built in", "m": "module, not loaded"}
    return built.get(configuration.get(name, ""), "missing")


def _configuration(root: Path, release: str) -> dict[str, str]:
    text = _unpacked(root / "proc/config.gz") or _text(root / f"boot/config-{release}")
    pairs = (line.split("=", 1) for line in text.splitlines() if line.startswith("CONFIG_"))
    return {pair[0]: pair[1].strip() for pair in pairs if len(pair) > 1}


def _unpacked(path: Path) -> str:
    try:
        packed = read_bounded(path, at_most=_MAX_PACKED)
        # Bounded while it is unpacked; 31: with the header of gzip.
        content = zlib.decompressobj(wbits=31).decompress(packed, _MAX_FILE)
    except (OSError, zlib.error, EvidenceError):
        return ""
    return content.decode("utf-8", "replace")


def _text(path: Path) -> str:
    try:
        return read_bounded(path, at_most=_MAX_FILE).decode("utf-8", "replace")
    except (OSError, EvidenceError):
        return ""


def _device(path: Path) -> DeviceFile | None:
    try:
        found = path.stat()
    except OSError:
        return None
    wanted = os.R_OK | (os.W_OK if stat.S_ISCHR(found.st_mode) else 0)
    return DeviceFile(
        path=path,
        mode=stat.filemode(found.st_mode),
        owner=f"{found.st_uid}:{found.st_gid}",
        usable=os.access(path, wanted),
    )
