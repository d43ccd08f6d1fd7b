"""TPM 2.0: `verifier` judges, `quote` and `keys` read, `eventlog` replays, `boot` names events."""

from __future__ import annotations

from blindai.platforms.tpm.files import assemble
from blindai.platforms.tpm.verifier import STEPS, verify

__all__ = ["STEPS", "assemble", "verify"]
