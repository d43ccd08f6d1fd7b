"""A TPM 2.0: `attester` quotes, `enrolment` gets a key certified, `device` and `keys` talk to it."""

from __future__ import annotations

from blindai.attesters.tpm.attester import TpmAttester, probe

__all__ = ["TpmAttester", "probe"]
