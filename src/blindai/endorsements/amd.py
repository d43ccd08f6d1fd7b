"""What AMD says about an SEV-SNP report: the chip's certificate, its chain, revocations.

Plans `platforms.sev_snp.kds`'s addresses for what evidence lacks. A VLEK, and the VCEK of a
chip whose id is masked, are to be had from nobody but the host: nothing is planned for them.

Specification: AMD 57230 §4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from blindai.attestation import certs
from blindai.endorsements.lifetime import Lifetime, of_certificates, of_crl
from blindai.endorsements.request import Answer, Kind, Request, Want
from blindai.errors import EndorsementError
from blindai.platforms.sev_snp import kds
from blindai.platforms.sev_snp.report import parse_report

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from cryptography import x509

    from blindai.attestation.model import Evidence
    from blindai.endorsements.settings import EndorsementSettings
    from blindai.platforms.sev_snp.report import Report

_ISSUERS = 2  # ASK or ASVK, ARK


@dataclass(frozen=True, slots=True)
class _Held:
    """What evidence carries of AMD's, by name only: nothing of it is verified."""

    leaf: kds.Leaf | None
    path: tuple[x509.Certificate, ...]
    crl: x509.CertificateRevocationList | None

    @property
    def complete(self) -> bool:
        return self.leaf is not None and len(self.path) == 1 + _ISSUERS


def plan(evidence: Evidence, settings: EndorsementSettings, now: datetime) -> tuple[Want, ...]:
    """Return what the evidence lacks at `now`; see `blindai.endorsements.plan`."""
    if settings.amd_kds is None:
        return ()
    report = parse_report(evidence.body)
    held = _read(evidence, report, now)
    places = kds.urls(report, settings.amd_kds.rstrip("/"))
    if held.leaf is not None:
        places = tuple(one for one in places if held.leaf.speaks_for(one.product))
    wants = []
    if not held.complete or not of_certificates(held.path).holds_at(now):
        keep = held.leaf is not None and of_certificates(held.path[:1]).holds_at(now)
        options = tuple(
            _requests(Kind.CERTIFICATES, *([] if keep else [one.leaf]), one.chain)
            for one in places
            if keep or one.leaf is not None
        )
        wants.append(Want("certificates", options))
    # Which list is the right one is known once the leaf is.
    if held.complete and not _is_current(held, now):
        wants.append(Want("crl", tuple(_requests(Kind.CRL, one.crl) for one in places)))
    return tuple(want for want in wants if want.options)


def attach(evidence: Evidence, want: Want, answers: Sequence[Answer], now: datetime) -> Evidence:
    """Return the evidence with AMD's answers; see `blindai.endorsements.plan`."""
    report = parse_report(evidence.body)
    if want.attachment == "crl":
        kds.parse_crl(answers[0].body)
        return _with(evidence, "crl", answers[0].body)
    fetched = [c for one in answers for c in kds.parse_certificates(one.body, "AMD's answer")]
    leaves = [kds.parse_leaf(c) for c in fetched if kds.leaf_kind(c) == report.signing_key]
    if len(answers) > 1 and not any(leaf.fits(report) for leaf in leaves):
        msg = "AMD answered with no certificate for this chip and its TCB"
        raise EndorsementError(msg)
    held = _read(evidence, report, now)
    if held.leaf is not None and not leaves:
        fetched = [held.leaf.certificate, *fetched]
    return _with(evidence, "certificates", b"".join(map(certs.der, fetched)))


def lifetimes(evidence: Evidence, now: datetime) -> dict[str, Lifetime]:
    """Return how long AMD's attachments hold; see `blindai.endorsements.plan`."""
    held = _read(evidence, parse_report(evidence.body), now)
    names = evidence.attachments
    found = {}
    if held.path:
        name = "certificates" if names.get("certificates") else "certificate_table"
        found[name] = of_certificates(held.path)
    if held.crl is not None:
        found["crl" if names.get("crl") else "certificate_table"] = of_crl(held.crl)
    return found


def _read(evidence: Evidence, report: Report, now: datetime) -> _Held:
    found: list[x509.Certificate] = []
    crl = None
    if table := evidence.attachments.get("certificate_table"):
        parsed = kds.parse_certificate_table(table)
        found, crl = [*parsed.certificates], parsed.crl
    if attached := evidence.attachments.get("certificates"):
        found += kds.parse_certificates(attached, "certificates")
    if listed := evidence.attachments.get("crl"):
        crl = kds.parse_crl(listed)
    leaves = [kds.parse_leaf(c) for c in found if kds.leaf_kind(c) == report.signing_key]
    leaf = next((one for one in leaves if one.fits(report)), None)
    path = () if leaf is None else _path(leaf.certificate, found, now)
    return _Held(leaf, path, crl)


def _path(
    leaf: x509.Certificate, others: Sequence[x509.Certificate], now: datetime
) -> tuple[x509.Certificate, ...]:
    """Return the leaf and its issuers, as far as they are there; by name, unverified."""
    path = [leaf]
    while len(path) <= _ISSUERS:
        named = [c for c in others if c.subject == path[-1].issuer and c not in path]
        named.sort(key=lambda c: not of_certificates([c]).holds_at(now))
        if not named:
            break
        path.append(named[0])
    return tuple(path)


def _is_current(held: _Held, now: datetime) -> bool:
    crl = held.crl
    return crl is not None and crl.issuer == held.path[-1].subject and of_crl(crl).holds_at(now)


def _requests(kind: Kind, *urls: str | None) -> tuple[Request, ...]:
    return tuple(Request(url, kind) for url in urls if url is not None)


def _with(evidence: Evidence, name: str, content: bytes) -> Evidence:
    return replace(evidence, attachments={**evidence.attachments, name: content})
