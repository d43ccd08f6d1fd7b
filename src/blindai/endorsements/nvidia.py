"""What NVIDIA says about a device: reference measurements of its firmware, and revocations.

Always true here: what a report says of itself becomes part of an address only after it was
found to be a plain name, so a report cannot choose what is asked of whom.

Specifications: NVIDIA RIM service (GET /v1/rim/{id}; the identifiers are those of NVIDIA's
own verifier); RFC 6960 Appendix A.1 (OCSP over HTTP, POST).
"""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from blindai.attestation import certs
from blindai.endorsements.lifetime import (
    Lifetime,
    of_responses,
    of_rim,
    parse_rim_answer,
    rim_signers,
)
from blindai.endorsements.request import Answer, Kind, Request, Want
from blindai.errors import EndorsementError
from blindai.platforms.nvidia.device import parse_device_identity
from blindai.platforms.nvidia.ocsp import parse_responses
from blindai.platforms.nvidia.report import Report, parse_report
from blindai.platforms.nvidia.rim import parse_version

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from cryptography import x509

    from blindai.attestation.model import Evidence
    from blindai.endorsements.settings import EndorsementSettings

# NVIDIA's numbers of the opaque fields that name a board.
CHIP_SKU: Final = 15
PROJECT: Final = 17
PROJECT_SKU: Final = 18
_HOPPER: Final = "GH"
_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,31}")


def plan(evidence: Evidence, settings: EndorsementSettings, now: datetime) -> tuple[Want, ...]:
    """Return what the evidence lacks at `now`; see `blindai.endorsements.plan`."""
    report = parse_report(evidence.body)
    chain = _chain(evidence)
    wants = []
    if settings.nvidia_rim is not None:
        base = settings.nvidia_rim.rstrip("/")
        for name, identifier in rim_identifiers(report, chain).items():
            if not _is_current_rim(evidence, name, report, now):
                request = Request(f"{base}/{identifier}", Kind.RIM)
                wants.append(Want(name, ((request,),)))
    # Last: the signers of reference measurements may be revoked, too.
    pairs = _pairs(evidence, chain)
    if settings.nvidia_ocsp is not None and pairs and not _is_current_ocsp(evidence, pairs, now):
        url = settings.nvidia_ocsp
        requests = tuple(Request(url, Kind.OCSP, _ask(*pair)) for pair in pairs)
        wants.append(Want("ocsp", (requests,)))
    return tuple(wants)


def attach(
    evidence: Evidence,
    want: Want,
    answers: Sequence[Answer],
    now: datetime,  # noqa: ARG001 (one signature for all vendors)
) -> Evidence:
    """Return the evidence with NVIDIA's answers; see `blindai.endorsements.plan`."""
    if want.attachment == "ocsp":
        content = b"".join(answer.body for answer in answers)
        parse_responses(content)
    else:
        content = parse_rim_answer(answers[0].body)
        stated = _version(parse_report(evidence.body), want.attachment)
        if stated is None or parse_version(content).lower() != stated.lower():
            msg = "NVIDIA answered with reference measurements of another version"
            raise EndorsementError(msg)
    return replace(evidence, attachments={**evidence.attachments, want.attachment: content})


def lifetimes(
    evidence: Evidence,
    now: datetime,  # noqa: ARG001 (one signature for all vendors)
) -> dict[str, Lifetime]:
    """Return how long NVIDIA's attachments hold; see `blindai.endorsements.plan`."""
    found = {
        name: of_rim(evidence.attachments[name])
        for name in ("rim_driver", "rim_vbios")
        if name in evidence.attachments
    }
    spoken = _spoken(evidence, _pairs(evidence, _chain(evidence)))
    if spoken:
        found["ocsp"] = of_responses(spoken.values())
    return found


def rim_identifiers(report: Report, chain: Sequence[x509.Certificate]) -> dict[str, str]:
    """Return the names of the reference measurements for a report: attachment → identifier.

    Args:
        report: Untrusted.
        chain: Its certificates, the device's own first. Untrusted.
    """
    found = {}
    chip = report.chip_info or (parse_device_identity(chain[0]).model if chain else None)
    if report.driver_version is not None and chip is not None:
        kind = "DRIVER_GH100" if chip.startswith(_HOPPER) else f"CC_DRIVER_{chip}"
        parts = [kind, report.driver_version]
        if all(map(_PLAIN.fullmatch, (chip, report.driver_version))):
            found["rim_driver"] = f"NV_GPU_{'_'.join(parts)}"
    board = [_text(report.opaque.get(number)) for number in (PROJECT, PROJECT_SKU, CHIP_SKU)]
    if report.vbios_version is not None and all(map(_PLAIN.fullmatch, board)):
        parts = [*board, report.vbios_version.replace(".", "").upper()]
        found["rim_vbios"] = f"NV_GPU_VBIOS_{'_'.join(parts)}"
    return found


def _chain(evidence: Evidence) -> list[x509.Certificate]:
    attached = evidence.attachments.get("chain")
    return [] if attached is None else certs.parse_certificates(attached, "NVIDIA chain")


def _version(report: Report, name: str) -> str | None:
    return report.driver_version if name == "rim_driver" else report.vbios_version


def _text(value: bytes | None) -> str:
    return (value or b"").rstrip(b"\0").decode("latin-1").strip()


def _is_current_rim(evidence: Evidence, name: str, report: Report, now: datetime) -> bool:
    attached = evidence.attachments.get(name)
    stated = _version(report, name)
    return (
        attached is not None
        and stated is not None
        and parse_version(attached).lower() == stated.lower()
        and of_rim(attached).holds_at(now)
    )


def _pairs(
    evidence: Evidence, chain: Sequence[x509.Certificate]
) -> list[tuple[x509.Certificate, x509.Certificate]]:
    """Return (certificate, issuer) for all that may be revoked.

    Not the device's own certificate: NVIDIA's responder does not know it, and the verifier
    takes that of its boot ROM, one above, for the chip.
    """
    chains = [chain[1:]]
    chains += [
        rim_signers(evidence.attachments[name])
        for name in ("rim_driver", "rim_vbios")
        if name in evidence.attachments
    ]
    pairs = {}
    for path in chains:
        for certificate, issuer in itertools.pairwise(path):
            if certificate.issuer == issuer.subject:
                pairs[certificate.serial_number, certs.der(issuer)] = certificate, issuer
    return list(pairs.values())


def _spoken(
    evidence: Evidence, pairs: Sequence[tuple[x509.Certificate, x509.Certificate]]
) -> dict[int, ocsp.OCSPSingleResponse]:
    """Return the attached responses about the certificates, by serial number."""
    serials = {certificate.serial_number for certificate, _ in pairs}
    return {
        single.serial_number: single
        for response in parse_responses(evidence.attachments.get("ocsp", b""))
        for single in response.responses
        if single.serial_number in serials
    }


def _is_current_ocsp(
    evidence: Evidence,
    pairs: Sequence[tuple[x509.Certificate, x509.Certificate]],
    now: datetime,
) -> bool:
    spoken = _spoken(evidence, pairs)
    return all(certificate.serial_number in spoken for certificate, _ in pairs) and (
        of_responses(spoken.values()).holds_at(now)
    )


def _ask(certificate: x509.Certificate, issuer: x509.Certificate) -> bytes:
    # SHA-1 names the issuer here and protects nothing (RFC 5019 §2.1.1 asks for it). Without
    # a nonce an answer can be kept until its nextUpdate.
    builder = ocsp.OCSPRequestBuilder().add_certificate(
        certificate,
        issuer,
        hashes.SHA1(),  # noqa: S303
    )
    return builder.build().public_bytes(Encoding.DER)
