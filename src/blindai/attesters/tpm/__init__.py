"""A TPM 2.0: `attester` quotes, `enrolment` gets its key certified, `device`, `keys` talk to it."""

from __future__ import annotations

from blindai.attesters.tpm.attester import TpmAttester, probe

__all__ = ["TpmAttester", "probe"]
