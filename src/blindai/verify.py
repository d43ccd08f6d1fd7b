"""Verify a server: Evidence → Claims → AttestationResult, or say which step failed.

Always true here: no network, no clock, no environment. The steps are numbered in the order
in which they are taken, and none can be left out:

1. the platform's own steps: genuine hardware signed this evidence (`blindai.platforms`);
2. endorsements: what the vendors say holds now, or held within the caller's grace;
3. keyset: the server's statement of its keys is well-formed and current;
4. binding: the evidence speaks of that keyset and of the caller's nonce;
5. channel: the certificate, and the TLS peer if there is one, hold the attested TLS key;
6. devices: attached devices are genuine, and answer the same nonce;
7. appraisal: the policy accepts what the hardware said.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from blindai.attestation import wire
from blindai.attestation.appraise import appraise
from blindai.attestation.binding import binding, check_nonce, check_report_data, device_nonce
from blindai.attestation.model import (
    _VERIFIED,
    DEVICE_PLATFORMS,
    AttestationResult,
    Claims,
    Endorsed,
    Platform,
)
from blindai.attestation.steps import StepName, Steps
from blindai.attestation.trust import VENDOR_ROOTS, Anchors
from blindai.channel.keyset import Keyset
from blindai.channel.tls import check_peer
from blindai.errors import (
    AttestationError,
    BindingError,
    ConfigurationError,
    EndorsementError,
    EvidenceError,
)
from blindai.platforms import VERIFIERS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from blindai.attestation.model import Evidence, EvidenceBundle
    from blindai.attestation.policy import Policy
    from blindai.attestation.steps import Step
    from blindai.platforms import Verifier

COMMON_STEPS: Final = (
    StepName(
        "endorsements",
        "What the vendors say holds now, or held within the grace that the caller gives",
        "RFC 9334 §10",
    ),
    StepName("keyset", "The statement of the server's keys is well-formed and not expired"),
    StepName(
        "binding",
        "The evidence is bound to these keys and to the nonce that was sent",
        "design.md §4",
    ),
    StepName("channel", "The TLS connection ends at the attested key", "RFC 8446 §4.4.2"),
    StepName("devices", "Attached devices are genuine and answer the same nonce"),
    StepName("appraisal", "The policy accepts what the hardware says", "RFC 9334 §8.5"),
)


def verify(
    bundle: EvidenceBundle,
    policy: Policy,
    *,
    nonce: bytes | None,
    now: datetime,
    peer_certificate: bytes | None = None,
    anchors: Anchors = VENDOR_ROOTS,
    endorsed: Endorsed | None = None,
) -> AttestationResult:
    """Verify what a server shows, and return the result, or raise what is wrong with it.

    Args:
        bundle: What the server sent: untrusted.
        policy: What the caller accepts.
        nonce: The 32 fresh bytes that were sent; `None` only for stored evidence, whose
            freshness nobody can tell.
        now: The moment to verify at, with a time zone.
        peer_certificate: DER of the certificate that the TLS peer presented; `None` where
            there was no connection (stored evidence).
        anchors: The vendors' roots that count; tests bring their own.
        endorsed: Where endorsements came from, and whether some are to be verified at a past
            moment: then the claims carry "stale-endorsements", and the result holds no
            longer than the grace. All else is verified at `now` in any case.

    Raises:
        AttestationError: One of its subclasses, with `.steps`: do not trust this server.
        ConfigurationError: If the nonce does not have 32 bytes, or a moment has no time zone,
            or the endorsements' is yet to come.
    """
    endorsed = endorsed or Endorsed()
    if now.utcoffset() is None:
        msg = "now has to have a time zone: datetime.now(UTC)"
        raise ConfigurationError(msg)
    check_nonce(nonce)
    evidence = bundle.evidence
    verifier = VERIFIERS.get(evidence.platform)
    if verifier is None:
        msg = f"no verifier for platform {evidence.platform}"
        raise EvidenceError(msg)
    if evidence.platform in DEVICE_PLATFORMS:
        msg = f"{evidence.platform} is an attached device: it cannot vouch for a server's keys"
        raise EvidenceError(msg)
    moments = _moments(endorsed, len(bundle.devices), now)
    steps = Steps([*verifier.STEPS, *COMMON_STEPS])
    if endorsed.failures:
        # Said beforehand: it may be why the platform's steps fail.
        steps.skip("endorsements", f"not reached; {'; '.join(endorsed.failures)}")

    # 1. Genuine hardware signed this evidence.
    claims = _verify_at(moments[0], now, endorsed.grace, verifier, evidence, anchors, steps)
    # 2. What the vendors say holds now, or held within the grace.
    with steps.take("endorsements") as step:
        _check_age(endorsed, moments, now, step)
    # 3. The keyset is well-formed and current.
    with steps.take("keyset"):
        keyset = Keyset.parse(bundle.keyset)
        keyset.check_current(now)
    # 4. The evidence speaks of that keyset and of the caller's nonce.
    with steps.take("binding") as step:
        digests = [hashlib.sha256(wire.dump_evidence(d)).digest() for d in bundle.devices]
        expected = binding(nonce, bundle.keyset, digests)
        step.compare("report data", expected=expected, found=claims.report_data)
        check_report_data(claims.report_data, expected)
    # 5. The TLS peer holds the attested key.
    with steps.take("channel") as step:
        check_peer(bundle.certificate, keyset.tls_public_key)
        if peer_certificate is None:
            step.note("stored evidence: no connection to compare with")
        else:
            check_peer(peer_certificate, keyset.tls_public_key)
    # 6. Attached devices are genuine, and answer the same nonce.
    with steps.take("devices") as step:
        expected = device_nonce(nonce, bundle.keyset)
        devices = [
            _verify_device(device, expected, anchors, (moment, now), endorsed.grace)
            for device, moment in zip(_with_extras(bundle, endorsed), moments[1:], strict=True)
        ]
        step.note(f"{len(devices)} attached" if devices else "none attached")
    # 7. The policy accepts what the hardware said.
    with steps.take("appraisal") as step:
        accepted = appraise(claims, policy, now=now, devices=devices)
        step.note(f"policy {policy.digest.hex()[:16]}…")

    weaknesses = claims.weaknesses.union(*(device.weaknesses for device in devices))
    return AttestationResult(
        platform=claims.platform,
        claims=claims,
        devices=tuple(devices),
        tolerated=weaknesses & frozenset[str]().union(*(block.tolerate for block in accepted)),
        policy_digest=policy.digest,
        models=policy.models,
        evidence_digest=hashlib.sha256(wire.dump_bundle(bundle)).digest(),
        keyset_digest=hashlib.sha256(bundle.keyset).digest(),
        tls_public_key=keyset.tls_public_key,
        certificate=bundle.certificate,
        verified_at=now,
        not_after=_earliest(keyset.not_after, claims, devices),
        nonce=nonce,
        steps=steps.taken,
        endorsements=dict(endorsed.sources),
        _verified=_VERIFIED,
    )


def _moments(endorsed: Endorsed, devices: int, now: datetime) -> list[datetime | None]:
    """Return when to verify the machine and each device at; `None`: now."""
    if max(len(endorsed.devices_at), len(endorsed.device_attachments)) > devices:
        msg = f"endorsements of more devices than the {devices} that are there"
        raise ConfigurationError(msg)
    given = [endorsed.at, *endorsed.devices_at]
    for moment in given:
        if moment is not None and (moment.utcoffset() is None or moment > now):
            msg = "endorsements are verified at a moment with a time zone, and not yet to come"
            raise ConfigurationError(msg)
    return given + [None] * (1 + devices - len(given))


def _check_age(
    endorsed: Endorsed, moments: Sequence[datetime | None], now: datetime, step: Step
) -> None:
    notes = [f"{name} {source}" for name, source in endorsed.sources.items()]
    step.note("; ".join([", ".join(notes), *endorsed.failures] if notes else endorsed.failures))
    for moment in moments:
        if moment is None or moment == now:
            continue
        age = now - moment
        step.compare("age", expected=f"less than {endorsed.grace}", found=str(age))
        if age >= endorsed.grace:
            msg = f"the endorsements were current {age} ago, accepted is less than {endorsed.grace}"
            raise EndorsementError(msg)


def _with_extras(bundle: EvidenceBundle, endorsed: Endorsed) -> list[Evidence]:
    """Return the devices' evidence with what was attached after it was bound to the machine's."""
    extras = [*endorsed.device_attachments]
    extras += [{}] * (len(bundle.devices) - len(extras))
    return [
        replace(device, attachments={**device.attachments, **extra})
        for device, extra in zip(bundle.devices, extras, strict=True)
    ]


def _verify_at(
    moment: datetime | None,
    now: datetime,
    grace: timedelta,
    verifier: Verifier,
    evidence: Evidence,
    anchors: Anchors,
    steps: Steps,
) -> Claims:
    """Return the claims, verified at a past moment if there is one, and then marked so."""
    claims = verifier.verify(
        evidence,
        anchors=anchors.get(evidence.platform, ()),
        now=now if moment is None else moment,
        steps=steps,
    )
    if moment is None or moment == now:
        return claims
    end = moment + grace
    if claims.not_after is not None and claims.not_after > now:
        end = min(end, claims.not_after)
    weaknesses = claims.weaknesses | {"stale-endorsements"}
    return replace(claims, weaknesses=weaknesses, not_after=end)


def _verify_device(
    evidence: Evidence,
    expected_nonce: bytes,
    anchors: Anchors,
    moments: tuple[datetime | None, datetime],
    grace: timedelta,
) -> Claims:
    verifier = VERIFIERS.get(evidence.platform)
    # Simulation plays the device too, so that every step can be tested without hardware.
    if verifier is None or evidence.platform not in DEVICE_PLATFORMS | {Platform.SIMULATION}:
        msg = f"{evidence.platform} is no device that can be verified"
        raise EvidenceError(msg)
    steps = Steps(verifier.STEPS)
    try:
        claims = _verify_at(*moments, grace, verifier, evidence, anchors, steps)
    except AttestationError as error:
        failed = next((s.name for s in steps.taken if s.status == "failed"), "")
        msg = f"{evidence.platform}, {failed}: {error}"
        raise type(error)(msg) from error
    try:
        check_report_data(claims.report_data, expected_nonce)
    except BindingError as error:
        msg = f"{evidence.platform}: the device answers another nonce or another server's keys"
        raise BindingError(msg) from error
    return claims


def _earliest(keys: datetime, claims: Claims, devices: Sequence[Claims]) -> datetime:
    times = [keys, claims.not_after, *(device.not_after for device in devices)]
    return min(time for time in times if time is not None)
