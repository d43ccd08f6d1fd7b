"""What Intel says about a platform: which addresses it comes from, and its form in evidence.

Nothing here fetches or judges. The attachment "collateral" is a JSON object of text, the
form that Intel's verification library calls `QuoteCollateralV3`: three chains in PEM, two
revocation lists and two signatures in hex, and the TCB information and the identity of the
quoting enclave exactly as Intel signed them.

References: Intel Provisioning Certification Service API, version 4 (Get TCB Info, Get
Quoting Enclave Identity, Get PCK Revocation List); Intel SGX PCK Certificate and CRL
Profile Specification.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from blindai.attestation.certs import name_of, parse_certificates
from blindai.errors import EvidenceError
from blindai.platforms.dcap.pck import parse_pck_extension
from blindai.platforms.dcap.quote import CERTIFICATION_PCK_CHAIN, Quote, Tee

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography import x509

MAX_COLLATERAL_BYTES: Final = 256 << 10
INTEL_PCS: Final = "https://api.trustedservices.intel.com"
INTEL_ROOT_CRL: Final = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"

_SIGNATURE_SIZE: Final = 64
_MAX_HEADER: Final = 32 << 10
_HEX: Final = frozenset({"root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature"})
_CHAIN_HEADERS: Final = {
    "tcb_info": ("tcb-info-issuer-chain", "sgx-tcb-info-issuer-chain"),
    "qe_identity": ("sgx-enclave-identity-issuer-chain",),
    "pck_crl": ("sgx-pck-crl-issuer-chain",),
}


@dataclass(frozen=True, slots=True)
class Collateral:
    """Intel's statements about one platform.

    Attributes:
        pck_crl_issuer_chain: Issuer of `pck_crl` up to the root, PEM.
        root_ca_crl: What the root revoked, DER.
        pck_crl: What the issuer of PCK certificates revoked, DER.
        tcb_info_issuer_chain: Signer of `tcb_info` up to the root, PEM.
        tcb_info: JSON text, exactly as signed.
        tcb_info_signature: r then s, 64 bytes.
        qe_identity_issuer_chain: Signer of `qe_identity` up to the root, PEM.
        qe_identity: JSON text, exactly as signed.
        qe_identity_signature: r then s, 64 bytes.
    """

    pck_crl_issuer_chain: str
    root_ca_crl: bytes
    pck_crl: bytes
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: bytes
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one of `urls_for`.

    Attributes:
        body: At most 256 KiB.
        headers: Name → value.
    """

    body: bytes
    headers: Mapping[str, str]


def parse_json(text: bytes | str, name: str) -> dict[str, object]:
    """Read a JSON object.

    Raises:
        EvidenceError: If `text` is too large or too deep, or anything but one JSON object.
    """
    if len(text) > MAX_COLLATERAL_BYTES:
        msg = f"{name}: {len(text)} bytes, at most {MAX_COLLATERAL_BYTES} are accepted"
        raise EvidenceError(msg)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        msg = f"{name}: not JSON ({type(error).__name__})"
        raise EvidenceError(msg) from error
    if not isinstance(document, dict):
        msg = f"{name}: expected a JSON object, found {type(document).__name__}"
        raise EvidenceError(msg)
    return document


def parse_collateral(data: bytes) -> Collateral:
    """Read the attachment "collateral". Members that it does not need are passed over.

    Raises:
        EvidenceError: If it is malformed or too large.
    """
    document = parse_json(data, "collateral")
    values: dict[str, str | bytes] = {}
    for field in fields(Collateral):
        value = document.get(field.name)
        if not isinstance(value, str):
            msg = f"collateral: expected text in {field.name}, found {type(value).__name__}"
            raise EvidenceError(msg)
        values[field.name] = _parse_member(field.name, value)
    return Collateral(**values)  # type: ignore[arg-type]


def dump_collateral(collateral: Collateral) -> bytes:
    """Return `collateral` as the attachment that `parse_collateral` reads."""
    document = asdict(collateral)
    return json.dumps(
        {name: value.hex() if name in _HEX else value for name, value in document.items()}
    ).encode()


def urls_for(
    quote: Quote, *, pcs: str = INTEL_PCS, root_crl: str = INTEL_ROOT_CRL
) -> dict[str, str]:
    """Return the addresses of the collateral for `quote`, by name.

    Args:
        quote: Untrusted; its PCK certificate names the platform.
        pcs: Base address of Intel's service or of a caching one.
        root_crl: Where the root's revocation list is.

    Returns:
        Addresses of "tcb_info", "qe_identity", "pck_crl" and "root_ca_crl".

    Raises:
        EvidenceError: If the quote carries no PCK certificate.
    """
    pck = pck_chain(quote)[0]
    fmspc = parse_pck_extension(pck).fmspc.hex().upper()
    issuer = "processor" if "Processor" in pck.issuer.rfc4514_string() else "platform"
    base = pcs.rstrip("/")
    tee = quote.tee.name.lower()
    return {
        "tcb_info": f"{base}/{tee}/certification/v4/tcb?fmspc={fmspc}",
        "qe_identity": f"{base}/{tee}/certification/v4/qe/identity",
        "pck_crl": f"{base}/sgx/certification/v4/pckcrl?ca={issuer}&encoding=der",
        "root_ca_crl": root_crl,
    }


def assemble_collateral(answers: Mapping[str, Answer]) -> Collateral:
    """Return the collateral in Intel's answers.

    Args:
        answers: One for each name that `urls_for` gives. Untrusted.

    Raises:
        EvidenceError: If an answer is missing or malformed.
    """
    missing = {"tcb_info", "qe_identity", "pck_crl", "root_ca_crl"} - set(answers)
    if missing:
        msg = f"collateral: no answer for {', '.join(sorted(missing))}"
        raise EvidenceError(msg)
    tcb_info, tcb_info_signature = parse_signed_json(answers["tcb_info"].body, "tcbInfo")
    identity, identity_signature = parse_signed_json(answers["qe_identity"].body, "enclaveIdentity")
    return Collateral(
        pck_crl_issuer_chain=_issuer_chain(answers["pck_crl"], "pck_crl"),
        root_ca_crl=_crl(answers["root_ca_crl"].body, "root_ca_crl"),
        pck_crl=_crl(answers["pck_crl"].body, "pck_crl"),
        tcb_info_issuer_chain=_issuer_chain(answers["tcb_info"], "tcb_info"),
        tcb_info=tcb_info,
        tcb_info_signature=tcb_info_signature,
        qe_identity_issuer_chain=_issuer_chain(answers["qe_identity"], "qe_identity"),
        qe_identity=identity,
        qe_identity_signature=identity_signature,
    )


def parse_signed_json(body: bytes, member: str) -> tuple[str, bytes]:
    """Read `{"<member>": {…}, "signature": "<hex>"}`.

    Returns:
        The member's text exactly as it stands there, since that is what is signed, and the
        signature.

    Raises:
        EvidenceError: If it is anything else.
    """
    document = parse_json(body, member)
    text = body.decode("utf-8", "replace")
    head = re.match(r'\s*\{\s*"' + re.escape(member) + r'"\s*:\s*', text)
    if head is None or set(document) != {member, "signature"}:
        msg = f"{member}: expected an object of exactly {member!r}, then its signature"
        raise EvidenceError(msg)
    _, end = json.JSONDecoder().raw_decode(text, head.end())
    signature = document["signature"]
    if not isinstance(signature, str):
        msg = f"{member}: expected its signature in hex, found {type(signature).__name__}"
        raise EvidenceError(msg)
    return text[head.end() : end], _parse_hex(f"signature of {member}", signature)


def pck_chain(quote: Quote) -> list[x509.Certificate]:
    """Return the certificates that the quote carries, the PCK certificate first.

    Raises:
        EvidenceError: If it carries none, or malformed ones.
    """
    data = quote.signature_data
    if data.certification_type != CERTIFICATION_PCK_CHAIN:
        msg = (
            f"quote: expected certification type {CERTIFICATION_PCK_CHAIN} (PCK certificates), "
            f"found {data.certification_type}"
        )
        raise EvidenceError(msg)
    return parse_certificates(data.certification_data, "PCK certificates")


def describes(collateral: Collateral, quote: Quote) -> bool:
    """Return whether `collateral` says to be about the platform of `quote`. Proves nothing."""
    try:
        tcb_info = parse_json(collateral.tcb_info, "TCB info")
        fmspc = parse_pck_extension(pck_chain(quote)[0]).fmspc
    except EvidenceError:
        return False
    named = str(tcb_info.get("fmspc")).lower() == fmspc.hex()
    return named and (tcb_info.get("id") == "TDX") == (quote.tee is Tee.TDX)


def _parse_member(name: str, value: str) -> str | bytes:
    if name not in _HEX:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            msg = f"collateral: {name} is not Unicode text"
            raise EvidenceError(msg) from error
        return value
    data = _parse_hex(f"collateral: {name}", value)
    if name.endswith("_signature") and len(data) != _SIGNATURE_SIZE:
        msg = f"collateral: expected {_SIGNATURE_SIZE} bytes in {name}, found {len(data)}"
        raise EvidenceError(msg)
    return data


def _parse_hex(name: str, value: str) -> bytes:
    try:
        return bytes.fromhex(value)
    except ValueError as error:
        msg = f"{name}: not hex"
        raise EvidenceError(msg) from error


def _issuer_chain(answer: Answer, name: str) -> str:
    headers = {key.lower(): value for key, value in answer.headers.items()}
    for header in _CHAIN_HEADERS[name]:
        if header in headers:
            chain = unquote_to_bytes(headers[header][:_MAX_HEADER])
            issuers = parse_certificates(chain, f"issuer chain of {name}")
            if len(issuers) < 2:  # noqa: PLR2004 - a signer and the root
                msg = f"issuer chain of {name}: only {name_of(issuers[0])}"
                raise EvidenceError(msg)
            return chain.decode("ascii", "replace")
    msg = f"collateral: the answer for {name} has no header {_CHAIN_HEADERS[name][0]!r}"
    raise EvidenceError(msg)


def _crl(body: bytes, name: str) -> bytes:
    # Caching services answer in hex, Intel's in DER.
    if len(body) > MAX_COLLATERAL_BYTES:
        msg = f"{name}: {len(body)} bytes, at most {MAX_COLLATERAL_BYTES} are accepted"
        raise EvidenceError(msg)
    if re.fullmatch(rb"\s*(?:[0-9a-fA-F]{2})+\s*", body):
        return bytes.fromhex(body.decode("ascii"))
    return body
