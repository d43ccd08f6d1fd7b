"""Attestation for other people's software: EAR for results, CMW for evidence.

- An `AttestationResult` as an EAT Attestation Result (draft-ietf-rats-ear): a JWT that the
  relying party signs, with the trustworthiness vector of AR4SI (draft-ietf-rats-ar4si §2.3).
- A bundle as a record of a RATS Conceptual Messages Wrapper (RFC 9999): its media type, its
  bytes, and that they are evidence.

Both go outwards only: nothing here makes a result of what somebody else signed.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, Final

import cbor2
import jwt

from blindai.attestation.model import Platform
from blindai.attestation.wire import MEDIA_TYPE, dump_bundle

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from blindai.attestation.model import AttestationResult, EvidenceBundle

EAR_PROFILE: Final = "tag:github.com,2023:veraison/ear"
# RFC 9999, CMW indicator: bit 2 says evidence.
CMW_EVIDENCE: Final = 1 << 2

# AR4SI §2.3.2: values of 2 to 31 affirm, 32 to 95 warn, 96 to 127 speak against it.
_AFFIRMING: Final = 2
_WARNING: Final = 32
_CONTRAINDICATED: Final = 96
_NOT_GENUINE: Final = 97
_STATUS: Final = ((_CONTRAINDICATED, "contraindicated"), (_WARNING, "warning"))

_ENCRYPTED_MEMORY: Final = frozenset(
    {Platform.SGX, Platform.TDX, Platform.SEV_SNP, Platform.AZURE_VTPM}
)


def to_ear(result: AttestationResult, key: Ed25519PrivateKey, *, developer: str, build: str) -> str:
    """Return `result` as a signed EAR.

    Args:
        result: What `blindai.verify` made.
        key: Of the relying party that vouches for it (EdDSA).
        developer: Who made the verifier, for `ear.verifier-id`.
        build: Which build of it.
    """
    vector = trust_vector(result)
    payload: dict[str, Any] = {
        "eat_profile": EAR_PROFILE,
        "iat": int(result.verified_at.timestamp()),
        "exp": int(result.not_after.timestamp()),
        "ear.verifier-id": {"developer": developer, "build": build},
        "submods": {
            str(result.platform): {
                "ear.status": _status(vector),
                "ear.trustworthiness-vector": vector,
                "ear.appraisal-policy-id": f"sha-256:{result.policy_digest.hex()}",
            }
        },
    }
    if result.nonce is not None:
        payload["eat_nonce"] = _base64url(result.nonce)
    return jwt.encode(payload, key, algorithm="EdDSA")


def trust_vector(result: AttestationResult) -> dict[str, int]:
    """Return the AR4SI trustworthiness vector of a result; 0 where nothing was claimed.

    What the policy tolerated by name still warns here: the reader of an EAR has not seen
    that policy.
    """
    if result.simulated:
        return {"hardware": _NOT_GENUINE, "runtime-opaque": _CONTRAINDICATED}
    weak = _WARNING if result.tolerated else _AFFIRMING
    if result.platform in _ENCRYPTED_MEMORY:
        opaque = _AFFIRMING
    elif result.platform is Platform.NITRO:
        opaque = _WARNING  # isolated by a hypervisor; memory encryption is not attested
    else:
        opaque = _CONTRAINDICATED
    return {
        "instance-identity": _AFFIRMING,
        "configuration": _CONTRAINDICATED if "debug" in result.tolerated else weak,
        "executables": _AFFIRMING,
        "hardware": weak,
        "runtime-opaque": _CONTRAINDICATED if "debug" in result.tolerated else opaque,
    }


def to_cmw(bundle: EvidenceBundle) -> bytes:
    """Return `bundle` as a CMW record in CBOR: [media type, bytes, indicator]."""
    return cbor2.dumps([MEDIA_TYPE, dump_bundle(bundle), CMW_EVIDENCE], canonical=True)


def to_cmw_json(bundle: EvidenceBundle) -> str:
    """Return `bundle` as a CMW record in JSON: [media type, base64url, indicator]."""
    return json.dumps([MEDIA_TYPE, _base64url(dump_bundle(bundle)), CMW_EVIDENCE])


def _status(vector: dict[str, int]) -> str:
    worst = max(vector.values())
    return next((name for limit, name in _STATUS if worst >= limit), "affirming")


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
