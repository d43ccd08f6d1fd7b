"""What Intel says about an SGX or TDX platform: the attachment "collateral", all or nothing.

The four statements in it only hold together, so they are fetched together; each is cached
on its own. Specification: Intel PCS API, version 4.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from blindai.attestation import certs
from blindai.endorsements.lifetime import (
    Lifetime,
    of_certificates,
    of_crl,
    of_statement,
    overlap,
)
from blindai.endorsements.request import Answer, Kind, Request, Want
from blindai.errors import EndorsementError
from blindai.platforms.dcap.collateral import (
    Collateral,
    assemble_collateral,
    describes,
    dump_collateral,
    parse_collateral,
    urls_for,
)
from blindai.platforms.dcap.quote import parse_quote

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from blindai.attestation.model import Evidence
    from blindai.endorsements.settings import EndorsementSettings

_KINDS: Final = {
    "tcb_info": Kind.TCB_INFO,
    "qe_identity": Kind.QE_IDENTITY,
    "pck_crl": Kind.CRL,
    "root_ca_crl": Kind.CRL,
}


def plan(evidence: Evidence, settings: EndorsementSettings, now: datetime) -> tuple[Want, ...]:
    """Return what the evidence lacks at `now`; see `blindai.endorsements.plan`."""
    if settings.intel_pcs is None or settings.intel_root_crl is None:
        return ()
    quote = parse_quote(evidence.body)
    collateral = _read(evidence)
    if (
        collateral is not None
        and describes(collateral, quote)
        and _lifetime(collateral).holds_at(now)
    ):
        return ()
    urls = urls_for(quote, pcs=settings.intel_pcs, root_crl=settings.intel_root_crl)
    requests = tuple(Request(urls[name], kind) for name, kind in _KINDS.items())
    return (Want("collateral", (requests,)),)


def attach(
    evidence: Evidence,
    want: Want,
    answers: Sequence[Answer],
    now: datetime,  # noqa: ARG001 (one signature for all vendors)
) -> Evidence:
    """Return the evidence with Intel's answers; see `blindai.endorsements.plan`."""
    collateral = assemble_collateral(dict(zip(_KINDS, answers, strict=True)))
    if not describes(collateral, parse_quote(evidence.body)):
        msg = "Intel answered with TCB information about another platform"
        raise EndorsementError(msg)
    made = {**evidence.attachments, want.attachment: dump_collateral(collateral)}
    return replace(evidence, attachments=made)


def lifetimes(
    evidence: Evidence,
    now: datetime,  # noqa: ARG001 (one signature for all vendors)
) -> dict[str, Lifetime]:
    """Return how long the collateral holds; see `blindai.endorsements.plan`."""
    collateral = _read(evidence)
    return {} if collateral is None else {"collateral": _lifetime(collateral)}


def _read(evidence: Evidence) -> Collateral | None:
    attached = evidence.attachments.get("collateral")
    return None if attached is None else parse_collateral(attached)


def _lifetime(collateral: Collateral) -> Lifetime:
    chains = dict.fromkeys(
        (
            collateral.pck_crl_issuer_chain,
            collateral.tcb_info_issuer_chain,
            collateral.qe_identity_issuer_chain,
        )
    )
    return overlap(
        [
            of_crl(certs.parse_crl(collateral.root_ca_crl, "root_ca_crl")),
            of_crl(certs.parse_crl(collateral.pck_crl, "pck_crl")),
            of_statement(collateral.tcb_info, "TCB info"),
            of_statement(collateral.qe_identity, "QE identity"),
            *(
                of_certificates(certs.parse_certificates(chain.encode(), "issuer chain"))
                for chain in chains
            ),
        ]
    )
