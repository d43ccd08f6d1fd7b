"""One verifier for each kind of trusted hardware: Evidence → Claims.

`VERIFIERS` is the one explicit list. There are no entry points on purpose: with them, any
installed package could decide what counts as genuine.
"""

from __future__ import annotations

from typing import Final

from blindai.attestation.model import Platform
from blindai.platforms import simulation
from blindai.platforms.base import Verifier

__all__ = ["VERIFIERS", "Verifier"]

VERIFIERS: Final[dict[Platform, Verifier]] = {
    Platform.SIMULATION: simulation,
}
