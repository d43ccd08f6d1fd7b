"""Complete evidence with what the vendors say about it, and say where each part came from.

Always true: what the server stapled is used where it is current, and then nobody is asked.
Nothing here makes evidence genuine, or turns it down: whatever is attached is as untrusted as
the rest, and `blindai.verify.verify` judges it. What cannot be had is left out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from blindai.attestation.model import Endorsed, EvidenceBundle
from blindai.endorsements.cache import Cache
from blindai.endorsements.plan import attach, lifetimes, plan
from blindai.endorsements.request import Source, worst
from blindai.endorsements.settings import EndorsementSettings
from blindai.errors import AttestationError, ConnectionFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from blindai.attestation.model import Evidence
    from blindai.endorsements.request import Get, Want

# Certificates, a list, two sets of reference measurements, OCSP, and what those lead to.
_MAX_WANTS: Final = 8
# At its very end an endorsement holds for some verifiers, and no longer for others.
_BEFORE_THE_END: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class EndorsedEvidence:
    """One piece of evidence, with all endorsements that could be had.

    Attributes:
        evidence: Untrusted.
        sources: Attachment → where it came from.
        endorsed_at: The latest moment at which all of them were current, where that is past
            and within the grace; `None`: they are to be verified at the present.
        missing: Attachments that are wanted still: missing, or not current.
        failures: Why, in words.
    """

    evidence: Evidence
    sources: Mapping[str, Source]
    endorsed_at: datetime | None
    missing: tuple[str, ...]
    failures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Completed:
    """A bundle to verify: `verify(completed.bundle, …, endorsed=completed.endorsed)`.

    Attributes:
        bundle: With all endorsements of the machine that could be had.
        endorsed: Where they came from, at which moment they were current, and those of
            attached devices.
    """

    bundle: EvidenceBundle
    endorsed: Endorsed

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        """The machine's evidence, then that of each device, with all that was attached."""
        devices = zip(self.bundle.devices, self.endorsed.device_attachments, strict=True)
        completed = (
            replace(device, attachments={**device.attachments, **extra})
            for device, extra in devices
        )
        return self.bundle.evidence, *completed


class Endorser:
    """Completes evidence, and keeps what it fetched. Thread-safe.

    Args:
        settings: Addresses, grace, limits.
        get: Asks a vendor, such as `HttpsGet()`. `None`: nothing is fetched.
        monotonic: Returns seconds that never go back.
    """

    def __init__(
        self,
        settings: EndorsementSettings | None = None,
        *,
        get: Get | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings or EndorsementSettings()
        self.cache = Cache(get, self.settings)
        self._monotonic = monotonic

    def complete(self, bundle: EvidenceBundle, now: datetime, *, fetch: bool = True) -> Completed:
        """Return the bundle with what its evidence lacks.

        Args:
            bundle: As a server sent it.
            now: The moment at which endorsements have to be current, with a time zone.
            fetch: Whether to ask vendors, beside the cache.
        """
        deadline = self._monotonic() + self.settings.budget
        machine = self._endorse(bundle.evidence, now, fetch, deadline)
        devices = [self._endorse(device, now, fetch, deadline) for device in bundle.devices]
        sources = {name: str(source) for name, source in machine.sources.items()}
        for index, device in enumerate(devices):
            sources |= {f"devices[{index}].{k}": str(v) for k, v in device.sources.items()}
        return Completed(
            replace(bundle, evidence=machine.evidence),
            Endorsed(
                sources=sources,
                at=machine.endorsed_at,
                devices_at=tuple(device.endorsed_at for device in devices),
                # Not into the bundle: the machine's evidence names a device's as it was sent.
                device_attachments=tuple(
                    _added(sent, device.evidence)
                    for sent, device in zip(bundle.devices, devices, strict=True)
                ),
                grace=self.settings.grace,
                failures=tuple(why for one in (machine, *devices) for why in one.failures),
            ),
        )

    def endorse(self, evidence: Evidence, now: datetime, *, fetch: bool = True) -> EndorsedEvidence:
        """Return one piece of evidence with what it lacks; see `complete`."""
        return self._endorse(evidence, now, fetch, self._monotonic() + self.settings.budget)

    def _endorse(
        self,
        evidence: Evidence,
        now: datetime,
        fetch: bool,  # noqa: FBT001 (handed on)
        deadline: float,
    ) -> EndorsedEvidence:
        sources: dict[str, Source] = {}
        failures: list[str] = []
        try:
            completed = evidence
            tried: list[Want] = []
            while want := self._next_want(completed, tried, now):
                tried.append(want)
                allowed = fetch and self._monotonic() < deadline
                completed = self._satisfy(completed, want, now, allowed, sources, failures)
            return self._describe(completed, now, sources, failures)
        except AttestationError as error:
            # Malformed: the verifier says so better, with the step that found it.
            why = f"nothing looked for: {error}"
            return EndorsedEvidence(evidence, {}, None, (), (why,))

    def _next_want(self, evidence: Evidence, tried: list[Want], now: datetime) -> Want | None:
        if len(tried) == _MAX_WANTS:
            return None
        return next((w for w in plan(evidence, self.settings, now) if w not in tried), None)

    def _satisfy(
        self,
        evidence: Evidence,
        want: Want,
        now: datetime,
        fetch: bool,  # noqa: FBT001 (handed on)
        sources: dict[str, Source],
        failures: list[str],
    ) -> Evidence:
        """Return the evidence with `want`, if it can be had; note its source, or the failures."""
        name = want.attachment
        for option in want.options:
            try:
                got = [self.cache.obtain(request, now, fetch=fetch) for request in option]
                made = attach(evidence, want, [one.answer for one in got], now)
            except (AttestationError, ConnectionFailed) as error:
                failures.append(f"{name}: {error}")
                continue
            source = worst([one.source for one in got])
            if source is Source.CACHED_STALE and _ends(evidence, name, now) >= _ends(
                made, name, now
            ):
                return evidence  # what the server stapled is stale too, but not as old
            sources[name] = source
            return made
        return evidence

    def _describe(
        self,
        evidence: Evidence,
        now: datetime,
        sources: dict[str, Source],
        failures: list[str],
    ) -> EndorsedEvidence:
        found = lifetimes(evidence, now)
        ended = {name: one.end for name, one in found.items() if one.end < now}
        endorsed_at = min(ended.values()) - _BEFORE_THE_END if ended else None
        if endorsed_at is not None and now - endorsed_at >= self.settings.grace:
            failures.append(f"{', '.join(ended)}: out of date since {min(ended.values())}")
            endorsed_at = None
        for name in found:
            stapled = Source.STAPLED_STALE if name in ended else Source.STAPLED
            sources.setdefault(name, stapled)
        missing = tuple(want.attachment for want in plan(evidence, self.settings, now))
        return EndorsedEvidence(evidence, sources, endorsed_at, missing, tuple(failures))


def _added(sent: Evidence, completed: Evidence) -> dict[str, bytes]:
    return {
        name: content
        for name, content in completed.attachments.items()
        if sent.attachments.get(name) != content
    }


def _ends(evidence: Evidence, name: str, now: datetime) -> float:
    found = lifetimes(evidence, now).get(name)
    return float("-inf") if found is None else found.end.timestamp()
