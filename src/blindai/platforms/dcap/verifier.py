"""What SGX and TDX have in common: from Intel's pinned root to the signature over the quote.

Every certificate chain, revocation list and signature is verified here, one step each, so
that a failure names its cause. `dcap-qvl` then verifies the whole once more with the same
root, and alone evaluates Intel's TCB information: whoever cheats has to cheat both.

What nothing signs, and no claim depends on: the PEM armour around the PCK certificates, the
root certificate among them (it counts by its fingerprint), and zeros behind the quote. So a
hash of the whole quote identifies nothing.

References: Intel SGX ECDSA QuoteLib API, Appendix A; Intel SGX PCK Certificate and CRL
Profile Specification; Intel PCS API version 4.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import dcap_qvl
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from blindai.attestation.certs import (
    der,
    find_anchor,
    fingerprint,
    name_of,
    parse_certificates,
    parse_crl,
    verify_chain,
    verify_revocation,
)
from blindai.attestation.steps import StepName
from blindai.errors import EndorsementError, EvidenceError, SignatureError
from blindai.platforms.dcap.collateral import (
    Collateral,
    parse_collateral,
    parse_json,
    pck_chain,
)
from blindai.platforms.dcap.pck import PckExtension, parse_pck_extension
from blindai.platforms.dcap.quote import Quote, Tee, parse_quote, parse_sgx_report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography import x509

    from blindai.attestation.model import Evidence
    from blindai.attestation.steps import Step, Steps
    from blindai.attestation.trust import Anchor

_QUOTE_FORMAT: Final = "Intel SGX ECDSA QuoteLib API, Appendix A.3 and A.4"
_PCK_PROFILE: Final = "Intel SGX PCK Certificate and CRL Profile Specification"

AUTHENTICITY_STEPS: Final = (
    StepName("format", "The quote has a supported form, and nothing after its end", _QUOTE_FORMAT),
    StepName("collateral", "Intel's statements about the platform are there", "Intel PCS API v4"),
    StepName("root", "A certificate is the pinned root of Intel", f"{_PCK_PROFILE} §2"),
    StepName("pck-chain", "Intel certified the platform's PCK key", f"{_PCK_PROFILE} §1.3"),
    StepName(
        "pck-revocation",
        "Neither that certificate nor its issuer is revoked, by lists that are current",
        f"{_PCK_PROFILE} §1.4",
    ),
    StepName(
        "tcb-info",
        "Intel signed the TCB information, which is current",
        "Intel PCS API v4, TCB info",
    ),
    StepName(
        "qe-identity",
        "Intel signed the identity of its quoting enclave, which is current",
        "Intel PCS API v4, QE identity",
    ),
    StepName("qe-report", "The PCK key signed the report of the quoting enclave", _QUOTE_FORMAT),
    StepName(
        "attestation-key", "The quoting enclave's report names the attestation key", _QUOTE_FORMAT
    ),
    StepName("signature", "The attestation key signed the quote", _QUOTE_FORMAT),
)
TCB_STEP: Final = StepName(
    "tcb",
    "The quoting enclave is Intel's, the platform has a known TCB level, none is revoked",
    "Intel PCS API v4, Enumeration of TCB levels; dcap-qvl",
)

_WEAKNESS_OF_STATUS: Final = {
    "UpToDate": None,
    "SWHardeningNeeded": "sw-hardening-needed",
    "ConfigurationNeeded": "configuration-needed",
    "ConfigurationAndSWHardeningNeeded": "configuration-and-sw-hardening-needed",
    "OutOfDate": "tcb-out-of-date",
    "OutOfDateConfigurationNeeded": "tcb-out-of-date-configuration-needed",
    "TDRelaunchAdvised": "td-relaunch-advised",
    "TDRelaunchAdvisedConfigurationNeeded": "td-relaunch-advised-configuration-needed",
}
_COLLATERAL_IDS: Final = {Tee.SGX: ("SGX", "QE"), Tee.TDX: ("TDX", "TD_QE")}
_KEY_SIZE: Final = 32


@dataclass(frozen=True, slots=True)
class Authentic:
    """A quote whose every signature is verified. Its TCB is not yet evaluated.

    Attributes:
        body: The quote's bytes.
        quote: Its fields.
        collateral: Signed by Intel, and current.
        root: The pinned root that everything leads to.
        pck: What the authentic PCK certificate says of the platform.
        not_after: When the first of certificates, lists and statements expires.
    """

    body: bytes
    quote: Quote
    collateral: Collateral
    root: x509.Certificate
    pck: PckExtension
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Intel's judgement of an authentic quote's platform.

    Attributes:
        weaknesses: By status, by advisory, and by the PCK certificate's flags.
        tcb_evaluation_data_number: Which of Intel's TCB recoveries the judgement knows.
    """

    weaknesses: frozenset[str]
    tcb_evaluation_data_number: int


def verify_authentic(
    evidence: Evidence, *, tee: Tee, anchors: Sequence[Anchor], now: datetime, steps: Steps
) -> Authentic:
    """Return the quote, after every signature from Intel's root down to it is verified.

    Takes `AUTHENTICITY_STEPS`.

    Raises:
        EvidenceError: If quote or collateral is malformed, or the quote of another TEE.
        SignatureError: If a chain or a signature does not lead to a root of `anchors`.
        EndorsementError: If collateral is missing, of another platform, not current, or says
            revoked.
    """
    with steps.take("format") as step:
        quote = parse_quote(evidence.body)
        if not step.compare("TEE type", expected=tee.name, found=quote.tee.name):
            msg = f"quote: expected one of {tee.name}, found one of {quote.tee.name}"
            raise EvidenceError(msg)
        chain = pck_chain(quote)
        step.note(f"version {quote.version}")
    with steps.take("collateral"):
        collateral, signers = _parse_endorsements(evidence)
    others = list(dict.fromkeys([*chain[1:], *(c for signer in signers for c in signer)]))
    with steps.take("root") as step:
        root = _find_root(others, anchors, step)
    with steps.take("pck-chain") as step:
        path = verify_chain(chain[0], others, anchors=anchors, now=now)
        _require_root(path, root)
        key = _p256(path[0])
        pck = parse_pck_extension(path[0])
        step.note(f"FMSPC {pck.fmspc.hex()}")
    with steps.take("pck-revocation"):
        lists = [
            parse_crl(collateral.pck_crl, "pck_crl"),
            parse_crl(collateral.root_ca_crl, "root_ca_crl"),
        ]
        _require_unrevoked(path, lists, now)
    expiries = [c.not_valid_after_utc for c in path]
    expiries += [crl.next_update_utc for crl in lists if crl.next_update_utc is not None]
    for name, expected, signer in zip(
        ("tcb-info", "qe-identity"), _COLLATERAL_IDS[tee], signers, strict=True
    ):
        with steps.take(name) as step:
            # Intel signs both with one certificate: its chain is verified once, for both.
            if name == "tcb-info" or signer != signers[0]:
                signer_path = verify_chain(signer[0], signer[1:], anchors=anchors, now=now)
                _require_root(signer_path, root)
                _require_unrevoked(signer_path, lists[1:], now)
                expiries += [c.not_valid_after_utc for c in signer_path]
            expiries.append(_verify_statement(collateral, name, expected, signer[0], now, step))
    _verify_signatures(quote, key, steps)
    return Authentic(evidence.body, quote, collateral, root, pck, min(expiries))


def evaluate_tcb(authentic: Authentic, *, now: datetime, steps: Steps) -> Evaluation:
    """Return how Intel judges the platform; takes `TCB_STEP`.

    Raises:
        EndorsementError: If Intel revoked the platform's TCB, has no level for it, or does
            not know the quoting enclave.
    """
    with steps.take("tcb") as step:
        seconds = int(now.timestamp())
        try:
            collateral = dcap_qvl.QuoteCollateralV3(**asdict(authentic.collateral))
            claims = dcap_qvl.QuoteVerifier(der(authentic.root)).verify_with_policy(
                authentic.body, collateral, seconds, dcap_qvl.QuotePolicy.claims_only(seconds)
            )
        except (ValueError, OverflowError) as error:
            msg = f"Intel's TCB information does not accept the platform: {error}"
            raise EndorsementError(msg) from error
        # By default dcap-qvl returns a platform of any status but Revoked: read it ourselves.
        tcb = json.loads(claims.to_json())["tcb"]
        status, advisories = str(tcb["status"]), [str(a) for a in tcb["advisory_ids"]]
        if status not in _WEAKNESS_OF_STATUS:
            msg = f"Intel judges the platform as {status!r}"
            raise EndorsementError(msg)
        weakness = _WEAKNESS_OF_STATUS[status]
        step.compare("TCB status", expected="UpToDate", found=status)
        step.note(", ".join([status, *advisories]))
    flags = {
        "smt": authentic.pck.smt_enabled,
        "cached-keys": authentic.pck.cached_keys,
        "dynamic-platform": authentic.pck.dynamic_platform,
    }
    return Evaluation(
        weaknesses=frozenset(
            [*advisories, *(name for name, holds in flags.items() if holds)]
            + ([weakness] if weakness else [])
        ),
        tcb_evaluation_data_number=int(tcb["eval_data_number"]),
    )


def platform_measurements(pck: PckExtension) -> dict[str, bytes]:
    """Return what names the platform: its model and its identities."""
    named = {"fmspc": pck.fmspc, "chip_id": pck.ppid}
    return named if pck.piid is None else {**named, "piid": pck.piid}


def _parse_endorsements(evidence: Evidence) -> tuple[Collateral, list[list[x509.Certificate]]]:
    if "collateral" not in evidence.attachments:
        msg = "the collateral is missing: Intel's statements about the platform"
        raise EndorsementError(msg)
    collateral = parse_collateral(evidence.attachments["collateral"])
    # The issuer chain of the PCK list is that of the PCK certificate, which the quote carries.
    chains = (collateral.tcb_info_issuer_chain, collateral.qe_identity_issuer_chain)
    return collateral, [list(_parse_issuer_chain(text)) for text in chains]


@functools.lru_cache(maxsize=32)
def _parse_issuer_chain(text: str) -> tuple[x509.Certificate, ...]:
    # Intel's few chains come with every quote; parsing them is the slowest part of Python's.
    return tuple(parse_certificates(text.encode(), "issuer chain"))


def _find_root(
    certificates: Sequence[x509.Certificate], anchors: Sequence[Anchor], step: Step
) -> x509.Certificate:
    for certificate in certificates:
        anchor = find_anchor(certificate, anchors)
        if anchor is not None:
            step.compare(anchor.name, expected=anchor.sha256, found=fingerprint(certificate))
            return certificate
    names = ", ".join(anchor.name for anchor in anchors)
    msg = f"no certificate is a pinned root ({names})"
    raise SignatureError(msg)


def _require_root(path: Sequence[x509.Certificate], root: x509.Certificate) -> None:
    if path[-1] != root:
        msg = f"{name_of(path[0])}: leads to another root than the other certificates"
        raise SignatureError(msg)


def _require_unrevoked(
    path: Sequence[x509.Certificate],
    lists: Sequence[x509.CertificateRevocationList],
    now: datetime,
) -> None:
    unspoken = verify_revocation(path, lists, now=now)
    if unspoken:
        msg = f"no revocation list speaks about {name_of(unspoken[0])}"
        raise EndorsementError(msg)


def _p256(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        msg = f"{name_of(certificate)}: expected a key on P-256"
        raise SignatureError(msg)
    return key


def _verify_statement(
    collateral: Collateral,
    name: str,
    expected_id: str,
    signer: x509.Certificate,
    now: datetime,
    step: Step,
) -> datetime:
    """Verify TCB information or QE identity; return when it expires."""
    field = name.replace("-", "_")
    text: str = getattr(collateral, field)
    _verify(_p256(signer), getattr(collateral, f"{field}_signature"), text.encode(), name)
    statement = parse_json(text, name)
    if not step.compare("id", expected=expected_id, found=str(statement.get("id"))):
        msg = f"{name}: expected one of {expected_id}, found {str(statement.get('id'))[:32]!r}"
        raise EndorsementError(msg)
    issued, until = (_parse_time(statement, key, name) for key in ("issueDate", "nextUpdate"))
    if now < issued:
        msg = f"{name}: not issued before {issued}"
        raise EndorsementError(msg)
    if now > until:
        msg = f"{name}: expired at {until}"
        raise EndorsementError(msg)
    step.note(f"issued {issued}, expires {until}")
    return until


def _parse_time(statement: dict[str, object], key: str, name: str) -> datetime:
    try:
        moment = datetime.fromisoformat(str(statement.get(key)))
    except ValueError as error:
        msg = f"{name}: {key} is no time"
        raise EvidenceError(msg) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _verify_signatures(quote: Quote, pck_key: ec.EllipticCurvePublicKey, steps: Steps) -> None:
    data = quote.signature_data
    with steps.take("qe-report"):
        _verify(pck_key, data.qe_report_signature, data.qe_report, "report of the quoting enclave")
    with steps.take("attestation-key") as step:
        digest = hashlib.sha256(data.attestation_key + data.qe_auth_data).digest()
        named = parse_sgx_report(data.qe_report, "QE report").report_data
        if not step.compare("key and data", expected=digest + bytes(32), found=named):
            msg = "the quoting enclave's report names another attestation key"
            raise SignatureError(msg)
        try:
            key = ec.EllipticCurvePublicKey.from_encoded_point(
                ec.SECP256R1(), b"\x04" + data.attestation_key
            )
        except ValueError as error:
            msg = "the attestation key is no point on P-256"
            raise SignatureError(msg) from error
    with steps.take("signature"):
        _verify(key, data.signature, quote.signed, "quote")


def _verify(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes, name: str) -> None:
    r, s = signature[:_KEY_SIZE], signature[_KEY_SIZE:]
    encoded = encode_dss_signature(int.from_bytes(r), int.from_bytes(s))
    try:
        key.verify(encoded, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        msg = f"{name}: its signature is wrong"
        raise SignatureError(msg) from error
