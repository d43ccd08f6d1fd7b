"""One producer of evidence for each kind of trusted hardware.

`ATTESTERS` is the one explicit list. Nothing falls back to simulation: it has to be named.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from blindai.attestation.model import Platform
from blindai.attesters.azure_vtpm import AzureAttester
from blindai.attesters.base import Attester, Finding, Machine
from blindai.attesters.detect import find_platform, probe
from blindai.attesters.nitro import NitroAttester
from blindai.attesters.sgx import SgxAttester
from blindai.attesters.tpm import TpmAttester
from blindai.attesters.tsm import TsmAttester
from blindai.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ATTESTERS",
    "Attester",
    "Finding",
    "Machine",
    "create_attester",
    "detect",
    "probe",
]


def _simulation(_: Machine) -> Attester:
    try:
        from blindai.attesters.simulation import SimulationAttester  # noqa: PLC0415 - may be gone
    except ModuleNotFoundError as error:
        msg = "there is no simulation in this installation, which is for trusted hardware only"
        raise ConfigurationError(msg) from error
    return SimulationAttester()


# GPUs are not here: they are devices, and attest beside a machine (`nvidia_gpu`).
ATTESTERS: Final[dict[Platform, Callable[[Machine], Attester]]] = {
    Platform.SGX: SgxAttester,
    Platform.NITRO: NitroAttester,
    Platform.SEV_SNP: partial(TsmAttester, Platform.SEV_SNP),
    Platform.TDX: partial(TsmAttester, Platform.TDX),
    Platform.AZURE_VTPM: AzureAttester,
    Platform.TPM: TpmAttester,
    Platform.SIMULATION: _simulation,
}


def create_attester(platform: str | None, machine: Machine | None = None) -> Attester:
    """Return the attester of the named platform, or of the best that this machine has.

    Args:
        platform: Name; `None`: look for the hardware.
        machine: Where the hardware is reached.

    Raises:
        ConfigurationError: If there is none of that name, or no hardware is found.
    """
    if platform is None:
        return detect(machine)
    if platform not in ATTESTERS:
        known = ", ".join(ATTESTERS)
        msg = f"no attester for platform {platform!r}; expected one of {known}"
        raise ConfigurationError(msg)
    return ATTESTERS[Platform(platform)](machine or Machine())


def detect(machine: Machine | None = None) -> Attester:
    """Return the attester of the best hardware that this machine has; never simulation.

    Raises:
        ConfigurationError: If it has none; with all that was looked for and found.
    """
    return ATTESTERS[find_platform(machine)](machine or Machine())
