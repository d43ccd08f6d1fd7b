"""The launch digest of a machine image under SEV-SNP, through the library sev-snp-measure.

Always true here: a digest is given only for firmware that measures the kernel, its initrd and its
command line, which the host passes beside it ("kernel-hashes"): with any other firmware the
digest would pin no code of ours.

Specification: AMD SEV-SNP Firmware ABI §8.17 (SNP_LAUNCH_UPDATE); QEMU, docs/system/i386/amd-
memory-encryption.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from blindai.attestation.model import Platform
from blindai.errors import ConfigurationError
from blindai.measure.prediction import Measured, Prediction, Unpredicted

if TYPE_CHECKING:
    from pathlib import Path

    from blindai.measure.image import MachineImage

INSTALL: Final = "pip install 'blindai[measure]'"
SNP_ACTIVE: Final = 0x01
DIGEST_SIZE: Final = 48


def measure_sev_snp(
    image: MachineImage,
    firmware: Path,
    *,
    processors: int,
    model: str,
    features: int = SNP_ACTIVE,
) -> Measured:
    """Compute the launch digest of this image with this firmware in QEMU.

    Args:
        image: What is booted.
        firmware: An OVMF file that was built to measure kernels (AmdSevX64).
        processors: Virtual ones: each adds a page that is measured.
        model: Their model, as QEMU names it, such as "EPYC-v4".
        features: SEV_FEATURES of the machine.

    Raises:
        ConfigurationError: If the library is missing, the model is unknown, or the firmware
            cannot be used or does not measure the kernel.
    """
    guest, mode, signatures = _load_library()
    if model not in signatures:
        msg = f"--cpu-model: expected one of {', '.join(sorted(signatures))}, found {model}"
        raise ConfigurationError(msg)

    def launch(command_line: str) -> bytes:
        digest: bytes = guest.calc_launch_digest(
            mode,
            processors,
            signatures[model],
            str(firmware),
            str(image.folder / "vmlinuz"),
            str(image.folder / "initrd"),
            command_line,
            features,
        )
        return digest

    try:
        digest, other = launch(image.command_line), launch(image.command_line + " other")
    except (OSError, ValueError, RuntimeError, AssertionError, LookupError) as error:
        msg = f"{firmware}: this firmware cannot be measured for SEV-SNP: {error}"
        raise ConfigurationError(msg) from error
    if digest == other or len(digest) != DIGEST_SIZE:
        msg = (
            f"{firmware}: this firmware does not measure the kernel, so its launch digest says "
            "nothing of what runs; use one built from OvmfPkg/AmdSev/AmdSevX64.dsc"
        )
        raise ConfigurationError(msg)
    how = f"sev-snp-measure: {processors} processors {model}, SEV_FEATURES {features:#x}"
    return Measured(
        Platform.SEV_SNP,
        (Prediction("measurement", (digest,), how),),
        (
            Unpredicted("chip_id", "the chip it runs on"),
            Unpredicted("policy", "the guest policy is the operator's choice; debug is refused"),
        ),
    )


def _load_library() -> tuple[Any, Any, dict[str, int]]:
    try:
        from sevsnpmeasure import guest, vcpu_types  # noqa: PLC0415 - an extra
        from sevsnpmeasure.sev_mode import SevMode  # noqa: PLC0415
    except ImportError as error:
        msg = f"launch digests of SEV-SNP need sev-snp-measure ({error}); {INSTALL}"
        raise ConfigurationError(msg) from error
    return guest, SevMode.SEV_SNP, vcpu_types.CPU_SIGS
