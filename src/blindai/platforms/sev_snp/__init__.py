"""AMD SEV-SNP: `verifier` says what is checked, `report` what the bytes mean.

`kds` knows AMD's endorsements and where they are, `files` reads what an auditor has on disk.
"""

from __future__ import annotations

from blindai.platforms.sev_snp.files import assemble
from blindai.platforms.sev_snp.verifier import STEPS, verify

__all__ = ["STEPS", "assemble", "verify"]
