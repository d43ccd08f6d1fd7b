"""One producer of evidence for each kind of trusted hardware.

`ATTESTERS` is the one explicit list. Nothing falls back to simulation: it has to be named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from blindai.attestation.model import Evidence, Platform
from blindai.attesters.simulation import SimulationAttester
from blindai.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ATTESTERS", "Attester", "create_attester"]


class Attester(Protocol):
    """Makes evidence on one platform."""

    @property
    def platform(self) -> Platform:
        """Where this runs."""
        ...

    def attest(self, report_data: bytes) -> Evidence:
        """Return fresh evidence that carries the 32 bytes of `report_data`."""
        ...

    def sealing_key(self) -> bytes | None:
        """Return 32 bytes that only this code on this machine gets; `None`: there are none."""
        ...


ATTESTERS: Final[dict[Platform, Callable[[], Attester]]] = {
    Platform.SIMULATION: SimulationAttester,
}


def create_attester(platform: str) -> Attester:
    """Return the attester of the named platform.

    Raises:
        ConfigurationError: If there is none of that name.
    """
    if platform not in ATTESTERS:
        known = ", ".join(ATTESTERS)
        msg = f"no attester for platform {platform!r}; expected one of {known}"
        raise ConfigurationError(msg)
    return ATTESTERS[Platform(platform)]()
