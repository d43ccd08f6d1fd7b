"""Enrol a TPM: make sure that an attestation key lives beside a known endorsement key.

A quote alone does not say whose TPM signed it. At enrolment somebody trusted, such as a
certification authority, takes the TPM's `Enrolment`, verifies the certificate of its EK, and
sends back a `Challenge` that only a TPM with both that EK and that AK can answer. Then he
certifies the AK, or puts its digest into a policy.

Specification: TPM 2.0 Library, Part 1 §24 (credential protection).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.serialization import load_der_public_key

from blindai.attestation.certs import parse_certificate
from blindai.attesters.tpm.device import load_tss
from blindai.errors import EvidenceError, SignatureError
from blindai.platforms.tpm.keys import check_attributes, parse_key

_SECRET_SIZE: Final = 32


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What a TPM shows to whoever enrols it.

    Attributes:
        ek_certificate: DER; `None` where the vendor put none into the TPM.
        ek_public: TPM2B_PUBLIC of the endorsement key.
        ak_public: TPM2B_PUBLIC of the attestation key.
    """

    ek_certificate: bytes | None
    ek_public: bytes
    ak_public: bytes


@dataclass(frozen=True, slots=True)
class Challenge:
    """A secret that one TPM alone can read, and only for one AK.

    Attributes:
        credential: TPM2B_ID_OBJECT.
        encrypted_secret: TPM2B_ENCRYPTED_SECRET.
    """

    credential: bytes
    encrypted_secret: bytes


def create_challenge(enrolment: Enrolment) -> tuple[Challenge, bytes]:
    """Return a challenge, and the 32 bytes that answer it.

    The chain of the EK's certificate is for the caller to verify; that it is the
    certificate of this EK, and that the AK signs only what its TPM says, is checked here.

    Raises:
        EvidenceError: If a key or the certificate is malformed, or there is no certificate.
        SignatureError: If the certificate is of another key, or the AK is no restricted key.
    """
    if enrolment.ek_certificate is None:
        msg = "enrolment: the TPM holds no certificate of its endorsement key"
        raise EvidenceError(msg)
    certificate = parse_certificate(enrolment.ek_certificate, "EK certificate")
    tss = load_tss()
    try:
        endorsement, _ = tss.TPM2B_PUBLIC.unmarshal(enrolment.ek_public)
        attestation, _ = tss.TPM2B_PUBLIC.unmarshal(enrolment.ak_public)
        found = load_der_public_key(endorsement.to_der())
        check_attributes(parse_key(attestation.marshal()).attributes or 0)
    except (tss.TSS2_Exception, ValueError, TypeError) as error:
        msg = f"enrolment: malformed key ({error})"
        raise EvidenceError(msg) from error
    if found != certificate.public_key():
        msg = "enrolment: the certificate is of another endorsement key"
        raise SignatureError(msg)
    secret = secrets.token_bytes(_SECRET_SIZE)
    blob, encrypted = tss.utils.make_credential(endorsement, secret, attestation.get_name())
    return Challenge(blob.marshal(), encrypted.marshal()), secret
