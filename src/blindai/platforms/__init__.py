"""One verifier for each kind of trusted hardware: Evidence → Claims.

`VERIFIERS` is the one explicit list. There are no entry points on purpose: with them, any
installed package could decide what counts as genuine. `ASSEMBLERS` makes evidence of the
files that an auditor has (`blindai evidence`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blindai.attestation.model import Platform
from blindai.platforms import azure, nitro, nvidia, sev_snp, simulation, tpm
from blindai.platforms.base import Verifier
from blindai.platforms.dcap import sgx, tdx

if TYPE_CHECKING:
    from blindai.platforms.base import Assembler

__all__ = ["ASSEMBLERS", "VERIFIERS", "Verifier"]

VERIFIERS: Final[dict[Platform, Verifier]] = {
    Platform.SIMULATION: simulation,
    Platform.SGX: sgx,
    Platform.TDX: tdx,
    Platform.SEV_SNP: sev_snp,
    Platform.NITRO: nitro,
    Platform.TPM: tpm,
    Platform.AZURE_VTPM: azure,
    Platform.NVIDIA_GPU: nvidia,
}

ASSEMBLERS: Final[dict[Platform, Assembler]] = {
    Platform.SGX: sgx.assemble,
    Platform.TDX: tdx.assemble,
    Platform.SEV_SNP: sev_snp.assemble,
    Platform.NITRO: nitro.assemble,
    Platform.TPM: tpm.assemble,
    Platform.NVIDIA_GPU: nvidia.assemble,
}
