"""Endorsements of an Azure confidential VM: those of the SEV-SNP or TDX hardware inside."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from blindai.attestation.model import Evidence, Platform
from blindai.endorsements import amd, intel
from blindai.errors import EvidenceError
from blindai.platforms.azure import SNP_REPORT, parse_hcl_report

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from blindai.endorsements.base import Vendor
    from blindai.endorsements.lifetime import Lifetime
    from blindai.endorsements.request import Answer, Want
    from blindai.endorsements.settings import EndorsementSettings


def plan(evidence: Evidence, settings: EndorsementSettings, now: datetime) -> tuple[Want, ...]:
    """Return what the evidence lacks at `now`; see `blindai.endorsements.plan`."""
    inner = _hardware(evidence)
    return _vendor(inner).plan(inner, settings, now)


def attach(evidence: Evidence, want: Want, answers: Sequence[Answer], now: datetime) -> Evidence:
    """Return the evidence with the vendor's answers; see `blindai.endorsements.plan`."""
    inner = _hardware(evidence)
    made = _vendor(inner).attach(inner, want, answers, now)
    return replace(evidence, attachments=made.attachments)


def lifetimes(evidence: Evidence, now: datetime) -> Mapping[str, Lifetime]:
    """Return how long the vendor's attachments hold; see `blindai.endorsements.plan`."""
    inner = _hardware(evidence)
    return _vendor(inner).lifetimes(inner, now)


def _vendor(inner: Evidence) -> Vendor:
    return amd if inner.platform is Platform.SEV_SNP else intel


def _hardware(evidence: Evidence) -> Evidence:
    """Return the hardware's evidence; it has the attachments of the whole."""
    attached = evidence.attachments
    if "hcl_report" not in attached:
        msg = "Azure evidence: the attachment 'hcl_report' is missing"
        raise EvidenceError(msg)
    hcl = parse_hcl_report(attached["hcl_report"])
    if hcl.kind == SNP_REPORT:
        return Evidence(Platform.SEV_SNP, hcl.hardware_report, attached)
    if "td_quote" not in attached:
        msg = "Azure evidence: the attachment 'td_quote' is missing"
        raise EvidenceError(msg)
    return Evidence(Platform.TDX, attached["td_quote"], attached)
