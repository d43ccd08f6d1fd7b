"""Intel SGX and Intel TDX, whose quotes share one format and one chain of endorsements (DCAP).

A quoting enclave of Intel's signs the report of an enclave (SGX) or of a trust domain (TDX)
with an attestation key; the platform's PCK key certifies the quoting enclave and, through
it, that key; Intel certifies the PCK key. Intel's *collateral* says how up to date a
platform is. Read in this order:

- `quote`: bytes → fields, no judgement.
- `collateral`: what Intel says about a platform, and which addresses to fetch it from.
- `pck`: what Intel's certificate says of a platform.
- `verifier`: what SGX and TDX have in common: chains, revocation, signatures, TCB.
- `files`: evidence made of files on a disk.
- `sgx`, `tdx`: the two verifiers, each with its own attributes and claims.
"""
