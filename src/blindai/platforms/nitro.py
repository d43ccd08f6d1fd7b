"""AWS Nitro Enclaves: an attestation document, signed by the Nitro Security Module.

Always true here: every claim comes from the payload that the leaf certificate's key signed
(COSE_Sign1, RFC 9052 §4.2 and §4.4, ES384), and the chain of that certificate is verified at
the document's own time, since a leaf lives for three hours. Against `now`, a document is
refused if it comes from more than five minutes ahead, or if its leaf has expired meanwhile:
older than three hours is a replay. A tighter bound is a policy's `max_age`, which reads
`Claims.issued_at`. An enclave started in debug mode has PCR0 all zero: weakness "debug".

What is *not* checked: AWS publishes no reference values, so what the PCRs should be is for the
policy to say; and the chain has no revocation lists in the document.

Specification: AWS Nitro Enclaves User Guide, "Verifying the root of trust"; AWS NSM API,
"Attestation process". The body is the document as the NSM returns it: CBOR, with or without
tag 18. There are no attachments: the certificates are in the document.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from blindai.attestation import certs
from blindai.attestation.model import Claims, Evidence, Platform
from blindai.attestation.steps import StepName, Steps
from blindai.attestation.wire import load_cbor
from blindai.errors import EndorsementError, EvidenceError, SignatureError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cryptography import x509

    from blindai.attestation.trust import Anchor

_GUIDE: Final = "AWS Nitro Enclaves User Guide, Verifying the root of trust"
_NSM: Final = "AWS NSM API, Attestation process"

STEPS: Final = (
    StepName("envelope", "The document is one COSE_Sign1 structure", "RFC 9052 §4.2"),
    StepName("algorithm", "It names ES384 as its algorithm, and nothing else", f"{_NSM} §3.1"),
    StepName("format", "The signed part has the fields and the sizes of the NSM", f"{_NSM} §2.2.2"),
    StepName("time", "The document is not from the future", f"{_NSM} §2.2.2"),
    StepName(
        "chain",
        "The certificates in the document lead to the pinned AWS root, at the document's time",
        f"{_GUIDE}, step 3",
    ),
    StepName("freshness", "The certificate that signed it still lives", f"{_GUIDE}, step 3"),
    StepName("signature", "The document is signed by the key of its certificate", "RFC 9052 §4.4"),
    StepName("debug", "The enclave was not started in debug mode", "AWS Nitro CLI, run-enclave"),
)
MAX_DOCUMENT_BYTES: Final = 16 << 10
# Clocks differ; a Nitro host's and a client's by no more than this.
MAX_CLOCK_SKEW: Final = timedelta(minutes=5)

_TAG_18: Final = b"\xd2"
_ES384: Final = {1: -35}
_COORDINATE_SIZE: Final = 48
_ENVELOPE_PARTS: Final = 4
_PCR_SIZE: Final = 48
_MAX_PCRS: Final = 32
_ALWAYS_CLAIMED: Final = 3
_MAX_MODULE_ID: Final = 256
_MAX_CERTIFICATE: Final = 1024
_MAX_PUBLIC_KEY: Final = 1024
_MAX_USER_DATA: Final = 512
_MAX_NONCE: Final = 512
_MAX_TIME_MS: Final = 253_402_300_799_999  # 9999-12-31, the last moment datetime can hold
_REQUIRED: Final = frozenset(
    {"module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"}
)
_OPTIONAL: Final = frozenset({"public_key", "user_data", "nonce"})


@dataclass(frozen=True, slots=True)
class Envelope:
    """The COSE_Sign1 structure around a document (RFC 9052 §4.2).

    Attributes:
        protected: The protected header, encoded, as it was signed.
        payload: The document, encoded, as it was signed.
        signature: r and s, 48 bytes each, big-endian.
    """

    protected: bytes
    payload: bytes
    signature: bytes

    def signed(self) -> bytes:
        """Return the Sig_structure (RFC 9052 §4.4): what the signature covers."""
        return cbor2.dumps(["Signature1", self.protected, b"", self.payload])


@dataclass(frozen=True, slots=True)
class Document:
    """What the Nitro Security Module states (AWS NSM API, Attestation process §2.2.2).

    Attributes:
        module_id: Name of the enclave.
        issued_at: When the document was made.
        pcrs: Index → 48 bytes; those that are locked.
        certificate: DER of the certificate whose key signed.
        cabundle: DER of its chain, root first.
        public_key: Optional, of the caller's choice.
        user_data: Optional, of the caller's choice; empty if it is absent.
        nonce: Optional, of the caller's choice.
    """

    module_id: str
    issued_at: datetime
    pcrs: Mapping[int, bytes]
    certificate: bytes
    cabundle: tuple[bytes, ...]
    public_key: bytes
    user_data: bytes
    nonce: bytes


def verify(evidence: Evidence, *, anchors: Sequence[Anchor], now: datetime, steps: Steps) -> Claims:
    """Return the claims of an attestation document; see `blindai.platforms.base.Verifier`."""
    with steps.take("envelope"):
        envelope = parse_envelope(evidence.body)
    with steps.take("algorithm") as step:
        header = load_cbor(envelope.protected, "protected header", at_most=64)
        if not step.compare("header", expected=str(_ES384), found=str(header)):
            msg = f"Nitro document: expected the protected header {_ES384}, found {header!r}"
            raise EvidenceError(msg)
    with steps.take("format"):
        document = parse_document(envelope.payload)
    with steps.take("time") as step:
        step.note(f"issued at {document.issued_at.isoformat()}")
        if document.issued_at - now > MAX_CLOCK_SKEW:
            msg = f"Nitro document: issued at {document.issued_at}, which is after {now}"
            raise EndorsementError(msg)
    with steps.take("chain") as step:
        path = _verify_chain(document, anchors)
        step.note(" ← ".join(certs.name_of(certificate) for certificate in path))
    expiry = min(certificate.not_valid_after_utc for certificate in path)
    with steps.take("freshness") as step:
        step.note(f"holds until {expiry.isoformat()}")
        if now > expiry:
            msg = f"Nitro document: issued at {document.issued_at}, stale since {expiry}"
            raise EndorsementError(msg)
    with steps.take("signature"):
        _verify_signature(envelope, path[0])
    with steps.take("debug") as step:
        debug = not any(document.pcrs[0])
        step.note("PCR0 is all zero: a debug enclave" if debug else "PCR0 is set")
    return Claims(
        platform=Platform.NITRO,
        measurements=_measurements(document),
        versions={},
        weaknesses=frozenset({"debug"} if debug else ()),
        report_data=document.user_data,
        issued_at=document.issued_at,
        not_after=expiry,
    )


def assemble(body: bytes, extras: Sequence[bytes]) -> tuple[Evidence, list[int]]:
    """Make evidence of a document as it lies on disk: binary, or as hexadecimal text.

    Args:
        body: The document.
        extras: Nothing else is needed, so nothing of it is used.

    Returns:
        The evidence, and the indexes of all extras: they are ignored.

    Raises:
        EvidenceError: If the document is too large.
    """
    if len(body) > 4 * MAX_DOCUMENT_BYTES:
        msg = f"Nitro document: {len(body)} bytes are too many"
        raise EvidenceError(msg)
    return Evidence(Platform.NITRO, _from_hex(body)), list(range(len(extras)))


def parse_envelope(body: bytes) -> Envelope:
    """Read the COSE_Sign1 structure, with or without its tag.

    Raises:
        EvidenceError: If it is anything else.
    """
    data = body.removeprefix(_TAG_18)
    item = load_cbor(data, "Nitro document", at_most=MAX_DOCUMENT_BYTES)
    if not isinstance(item, list) or len(item) != _ENVELOPE_PARTS:
        msg = "Nitro document: expected a COSE_Sign1 structure of four parts"
        raise EvidenceError(msg)
    protected, unprotected, payload, signature = item
    # Nothing in the unprotected header is signed, and the NSM leaves it empty.
    if unprotected != {} or not isinstance(unprotected, dict):
        msg = "Nitro document: expected an empty unprotected header"
        raise EvidenceError(msg)
    envelope = Envelope(
        protected=_sized(protected, "protected header", 1, 64),
        payload=_sized(payload, "payload", 1, MAX_DOCUMENT_BYTES),
        signature=_sized(signature, "signature", 2 * _COORDINATE_SIZE, 2 * _COORDINATE_SIZE),
    )
    # Nothing signs the framing, so there is one form of it only.
    if cbor2.dumps(item) != data:
        msg = "Nitro document: its envelope is not in the plain encoding of the NSM"
        raise EvidenceError(msg)
    return envelope


def parse_document(payload: bytes) -> Document:
    """Read the signed part.

    Raises:
        EvidenceError: If a field is missing, unknown, doubled, or of a wrong type or size.
    """
    fields = load_cbor(payload, "Nitro payload", at_most=MAX_DOCUMENT_BYTES)
    if not isinstance(fields, dict) or not _REQUIRED <= set(fields) <= _REQUIRED | _OPTIONAL:
        msg = f"Nitro payload: expected a map of {', '.join(sorted(_REQUIRED))}"
        raise EvidenceError(msg)
    if fields["digest"] != "SHA384":
        msg = f"Nitro payload: expected the digest SHA384, found {str(fields['digest'])[:32]!r}"
        raise EvidenceError(msg)
    module_id = fields["module_id"]
    if not isinstance(module_id, str) or not 1 <= len(module_id) <= _MAX_MODULE_ID:
        msg = f"Nitro payload: module_id has to be text of 1 to {_MAX_MODULE_ID} characters"
        raise EvidenceError(msg)
    cabundle = fields["cabundle"]
    if not isinstance(cabundle, list) or not 1 <= len(cabundle) < certs.MAX_CHAIN:
        msg = f"Nitro payload: cabundle has to be 1 to {certs.MAX_CHAIN - 1} certificates"
        raise EvidenceError(msg)
    return Document(
        module_id=module_id,
        issued_at=_time(fields["timestamp"]),
        pcrs=_pcrs(fields["pcrs"]),
        certificate=_sized(fields["certificate"], "certificate", 1, _MAX_CERTIFICATE),
        cabundle=tuple(_sized(each, "cabundle", 1, _MAX_CERTIFICATE) for each in cabundle),
        public_key=_optional(fields, "public_key", _MAX_PUBLIC_KEY),
        user_data=_optional(fields, "user_data", _MAX_USER_DATA),
        nonce=_optional(fields, "nonce", _MAX_NONCE),
    )


def _time(value: object) -> datetime:
    if type(value) is not int or not 0 < value <= _MAX_TIME_MS:
        msg = "Nitro payload: timestamp has to be Unix milliseconds"
        raise EvidenceError(msg)
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=value)


def _pcrs(value: object) -> dict[int, bytes]:
    if not isinstance(value, dict) or not 1 <= len(value) <= _MAX_PCRS:
        msg = f"Nitro payload: pcrs has to be a map of 1 to {_MAX_PCRS} registers"
        raise EvidenceError(msg)
    if not all(type(index) is int and 0 <= index < _MAX_PCRS for index in value):
        msg = f"Nitro payload: the index of a PCR is a number below {_MAX_PCRS}"
        raise EvidenceError(msg)
    if not all(index in value for index in range(_ALWAYS_CLAIMED)):
        msg = "Nitro payload: PCR0, PCR1 and PCR2 have to be present"
        raise EvidenceError(msg)
    return {
        index: _sized(register, f"PCR{index}", _PCR_SIZE, _PCR_SIZE)
        for index, register in value.items()
    }


def _optional(fields: dict[Any, Any], name: str, at_most: int) -> bytes:
    value = fields.get(name)
    return b"" if value is None else _sized(value, name, 0, at_most)


def _sized(value: object, name: str, at_least: int, at_most: int) -> bytes:
    if not isinstance(value, bytes):
        msg = f"Nitro document: {name} has to be bytes, found {type(value).__name__}"
        raise EvidenceError(msg)
    if not at_least <= len(value) <= at_most:
        msg = f"Nitro document: {name} has {len(value)} bytes, expected {at_least} to {at_most}"
        raise EvidenceError(msg)
    return value


def _verify_chain(document: Document, anchors: Sequence[Anchor]) -> list[x509.Certificate]:
    leaf = certs.parse_certificate(document.certificate, "Nitro certificate")
    bundle = [certs.parse_certificate(each, "Nitro cabundle") for each in document.cabundle]
    path = certs.verify_chain(leaf, bundle, anchors=anchors, now=document.issued_at)
    if len(path) == 1:
        msg = "Nitro document: signed by the root itself, expected by an enclave's certificate"
        raise SignatureError(msg)
    return path


def _verify_signature(envelope: Envelope, leaf: x509.Certificate) -> None:
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        msg = f"{certs.name_of(leaf)}: ES384 needs a key on P-384"
        raise SignatureError(msg)
    r = int.from_bytes(envelope.signature[:_COORDINATE_SIZE])
    s = int.from_bytes(envelope.signature[_COORDINATE_SIZE:])
    try:
        key.verify(encode_dss_signature(r, s), envelope.signed(), ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        msg = f"Nitro document: not signed by {certs.name_of(leaf)}"
        raise SignatureError(msg) from error


def _measurements(document: Document) -> dict[str, bytes]:
    claimed = {
        f"pcr{index}": register
        for index, register in sorted(document.pcrs.items())
        if any(register) or index < _ALWAYS_CLAIMED
    }
    return claimed | {"module_id": document.module_id.encode()}


def _from_hex(data: bytes) -> bytes:
    text = b"".join(data.split()).removeprefix(b"0x").removeprefix(b"0X")
    try:
        return bytes.fromhex(text.decode("ascii"))
    except (UnicodeDecodeError, ValueError):
        return data
