"""Vendors' answers, kept as long as they say that they hold. In memory, bounded, thread-safe.

Always true: an answer is kept only if it is of its kind and current; its end is read from
itself; it is renewed before that end. Where that fails, it is used on: as "cached" up to its
end, as "cached-stale" within the grace after it. What failed is not asked again for a while.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from blindai.endorsements.lifetime import Lifetime, read_lifetime
from blindai.endorsements.request import MAX_ANSWER_BYTES, Answer, Get, Request, Source
from blindai.errors import ConnectionFailed, EndorsementError, EvidenceError

if TYPE_CHECKING:
    from datetime import datetime

    from blindai.endorsements.settings import EndorsementSettings

_STRIPES: Final = 16
_MAX_FAILURES: Final = 256
# An answer may be made after our clock's `now`: while it was asked for, or by a faster clock.
_SKEW: Final = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Obtained:
    """An answer, and where it came from.

    Attributes:
        answer: Of its request's kind; untrusted.
        source: "fetched", "cached" or "cached-stale".
    """

    answer: Answer
    source: Source


@dataclass(frozen=True, slots=True)
class _Entry:
    answer: Answer
    lifetime: Lifetime
    refresh_at: datetime
    size: int


@dataclass(frozen=True, slots=True)
class _Failure:
    since: datetime
    until: datetime
    text: str


class Cache:
    """Obtains answers: kept ones while they are fresh, and new ones through `get`.

    Args:
        get: Asks a vendor; `None` where there is no network.
        settings: How long answers are kept and used.
    """

    def __init__(self, get: Get | None, settings: EndorsementSettings) -> None:
        self._get = get
        self._settings = settings
        self._entries: OrderedDict[Request, _Entry] = OrderedDict()
        self._failures: OrderedDict[Request | str, _Failure] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        # One request is under way once only, and a slow one holds up few others.
        self._stripes = tuple(threading.Lock() for _ in range(_STRIPES))

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes of the answers that are kept."""
        return self._bytes

    def obtain(self, request: Request, now: datetime, *, fetch: bool = True) -> Obtained:
        """Return an answer to `request`.

        Args:
            request: What is asked.
            now: The moment at which the answer has to be current.
            fetch: Whether to ask the vendor where nothing fresh is kept.

        Raises:
            ConnectionFailed: If nothing usable is kept, and the vendor cannot be reached.
            EndorsementError: If nothing usable is kept, and the vendor's answer is none.
        """
        error: EndorsementError | ConnectionFailed
        error = EndorsementError(f"{request.origin}: no {request.kind} kept, and none fetched")
        entry = self._find(request)
        if entry is not None and _is_fresh(entry, now):
            return Obtained(entry.answer, Source.CACHED)
        if fetch and self._get is not None:
            with self._stripes[hash(request) % _STRIPES]:
                entry = self._find(request)  # another thread may have been faster
                if entry is not None and _is_fresh(entry, now):
                    return Obtained(entry.answer, Source.CACHED)
                try:
                    return Obtained(self._fetch(self._get, request, now), Source.FETCHED)
                except (EndorsementError, ConnectionFailed) as failure:
                    error = failure
        if entry is not None and entry.lifetime.begin <= now + _SKEW:
            if now <= entry.lifetime.end:
                return Obtained(entry.answer, Source.CACHED)
            if now - entry.lifetime.end < self._settings.grace:
                return Obtained(entry.answer, Source.CACHED_STALE)
        raise error

    def _find(self, request: Request) -> _Entry | None:
        with self._lock:
            entry = self._entries.get(request)
            if entry is not None:
                self._entries.move_to_end(request)
            return entry

    def _fetch(self, get: Get, request: Request, now: datetime) -> Answer:
        self._check_not_failed(request, now)
        try:
            answer, lifetime = _ask(get, request, now)
        except (EndorsementError, ConnectionFailed) as error:
            # A host that cannot be reached is not asked something else meanwhile.
            gone = isinstance(error, ConnectionFailed)
            self._note_failure(request.origin if gone else request, str(error), now)
            raise
        self._keep(request, answer, lifetime, now)
        return answer

    def _check_not_failed(self, request: Request, now: datetime) -> None:
        with self._lock:
            found = [self._failures.get(key) for key in (request.origin, request)]
        for key, failure in zip((request.origin, request), found, strict=True):
            if failure is not None and failure.since <= now < failure.until:
                kind = ConnectionFailed if isinstance(key, str) else EndorsementError
                msg = f"{failure.text} (not tried again before {failure.until:%H:%M:%S}Z)"
                raise kind(msg)

    def _note_failure(self, key: Request | str, text: str, now: datetime) -> None:
        with self._lock:
            self._failures[key] = _Failure(now, now + self._settings.retry_after, text)
            self._failures.move_to_end(key)
            while len(self._failures) > _MAX_FAILURES:
                self._failures.popitem(last=False)

    def _keep(self, request: Request, answer: Answer, lifetime: Lifetime, now: datetime) -> None:
        settings = self._settings
        early = min(settings.refresh_before, (lifetime.end - lifetime.begin) / 4)
        refresh_at = lifetime.end - early
        if request.kind.superseded:
            refresh_at = min(refresh_at, now + settings.refresh_after)
        size = len(request.url) + len(request.body or b"") + len(answer.body)
        size += sum(len(name) + len(value) for name, value in answer.headers.items())
        with self._lock:
            old = self._entries.pop(request, None)
            self._bytes -= 0 if old is None else old.size
            if size > settings.cache_bytes:
                return
            self._entries[request] = _Entry(answer, lifetime, refresh_at, size)
            self._bytes += size
            while len(self._entries) > settings.cache_entries or self._bytes > settings.cache_bytes:
                _, dropped = self._entries.popitem(last=False)
                self._bytes -= dropped.size


def _is_fresh(entry: _Entry, now: datetime) -> bool:
    return entry.lifetime.begin <= now + _SKEW and now < entry.refresh_at


def _ask(get: Get, request: Request, now: datetime) -> tuple[Answer, Lifetime]:
    try:
        answer = get(request)
    except OSError as error:
        msg = f"{request.origin}: {type(error).__name__}"
        raise ConnectionFailed(msg) from error
    if len(answer.body) > MAX_ANSWER_BYTES:
        msg = f"{request.origin}: at most {MAX_ANSWER_BYTES} bytes are accepted, came more"
        raise EndorsementError(msg)
    try:
        lifetime = read_lifetime(request.kind, answer)
    except EvidenceError as error:
        msg = f"{request.origin}: expected {request.kind}, came something else: {error}"
        raise EndorsementError(msg) from error
    if not lifetime.begin - _SKEW <= now <= lifetime.end:
        msg = (
            f"{request.origin}: the {request.kind} holds from {lifetime.begin} "
            f"to {lifetime.end}, not at {now}"
        )
        raise EndorsementError(msg)
    return answer, lifetime
