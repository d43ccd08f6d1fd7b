"""Answers are kept as long as they hold, renewed before, and bounded in number and size."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from blindai.attestation.certs import der
from blindai.endorsements import Answer, EndorsementSettings, Kind, Request, Source
from blindai.endorsements.cache import Cache
from blindai.endorsements.request import MAX_ANSWER_BYTES
from blindai.errors import ConnectionFailed, EndorsementError
from blindai.testing.fake_sev_snp import FakeAMD
from tests.endorsements.services import Service

VENDOR = FakeAMD()
NOW = VENDOR.now
CRL = VENDOR.revocation_list()  # from a day before now, for a year
LEAF = der(VENDOR.certify())
LIST = Request("https://kds.example/crl", Kind.CRL)
CERTIFICATE = Request("https://kds.example/leaf", Kind.CERTIFICATES)
DAY = timedelta(days=1)
END = NOW - DAY + 365 * DAY


@pytest.fixture
def service():
    """Return a vendor that answers both requests."""
    made = Service()
    made.answers = {LIST.url: Answer(CRL, {}), CERTIFICATE.url: Answer(LEAF, {})}
    return made


def cache(service, **changes):
    """Return a cache before `service`."""
    return Cache(service, EndorsementSettings(**changes))


def test_the_second_time_nobody_is_asked(service):
    """What was fetched once is kept."""
    kept = cache(service)
    assert kept.obtain(LIST, NOW).source is Source.FETCHED
    assert kept.obtain(LIST, NOW).source is Source.CACHED
    assert len(service.asked) == 1


def test_what_may_be_revised_is_fetched_each_day(service):
    """A list is renewed by its age too, a certificate, which cannot change, is not."""
    kept = cache(service)
    for request in (LIST, CERTIFICATE):
        kept.obtain(request, NOW)
    assert kept.obtain(LIST, NOW + DAY).source is Source.FETCHED
    assert kept.obtain(CERTIFICATE, NOW + DAY).source is Source.CACHED


def test_renewed_before_the_end(service):
    """Within `refresh_before` of its end an answer is fetched anew, while it still holds."""
    kept = cache(service, refresh_before=3 * DAY, refresh_after=1000 * DAY)
    kept.obtain(LIST, NOW)
    assert kept.obtain(LIST, END - 4 * DAY).source is Source.CACHED
    newer = VENDOR.revocation_list(issued_at=END - 4 * DAY)
    service.answers[LIST.url] = Answer(newer, {})
    found = kept.obtain(LIST, END - 2 * DAY)
    assert (found.source, found.answer.body) == (Source.FETCHED, newer)
    assert kept.obtain(LIST, END + DAY).source is Source.CACHED


def test_short_lives_are_renewed_in_their_last_quarter(service):
    """A time to renew that is longer than the life does not mean to fetch each time."""
    kept = cache(service, refresh_before=1000 * DAY, refresh_after=1000 * DAY)
    kept.obtain(LIST, NOW)
    assert kept.obtain(LIST, NOW + 200 * DAY).source is Source.CACHED
    assert kept.obtain(LIST, NOW + 300 * DAY).source is Source.FETCHED


def test_a_failed_renewal_leaves_what_holds(service):
    """Up to its end an answer is used on, after it as stale, after the grace no more."""
    kept = cache(service, grace=DAY)
    kept.obtain(LIST, NOW)
    service.down = True
    assert kept.obtain(LIST, END - timedelta(hours=1)).source is Source.CACHED
    assert kept.obtain(LIST, END).source is Source.CACHED
    assert kept.obtain(LIST, END + timedelta(hours=23)).source is Source.CACHED_STALE
    with pytest.raises(ConnectionFailed):
        kept.obtain(LIST, END + DAY)


def test_failures_are_remembered_for_a_while(service):
    """A host that is down is not asked again at once, for anything; then it is."""
    kept = cache(service, retry_after=timedelta(minutes=1))
    service.down = True
    for request in (LIST, LIST, CERTIFICATE):
        with pytest.raises(ConnectionFailed):
            kept.obtain(request, NOW)
    assert len(service.asked) == 1
    service.down = False
    with pytest.raises(ConnectionFailed, match="not tried again before"):
        kept.obtain(LIST, NOW + timedelta(seconds=59))
    assert kept.obtain(LIST, NOW + timedelta(minutes=1)).source is Source.FETCHED


def test_a_refusal_is_remembered_for_that_request_alone(service):
    """What a vendor does not have says nothing about the rest that it has."""
    kept = cache(service)
    absent = Request("https://kds.example/absent", Kind.CRL)
    for _ in range(2):
        with pytest.raises(EndorsementError):
            kept.obtain(absent, NOW)
    assert kept.obtain(LIST, NOW).source is Source.FETCHED
    assert service.asked == [absent.url, LIST.url]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"<html>hello</html>", "came something else"),
        (b"", "came something else"),
        (LEAF, "came something else"),
        (VENDOR.revocation_list(issued_at=NOW - 500 * DAY), "holds from"),
        (VENDOR.revocation_list(issued_at=NOW + 3 * DAY), "holds from"),
        (bytes(MAX_ANSWER_BYTES + 1), "at most"),
    ],
)
def test_what_is_no_current_answer_is_not_kept(service, body, why):
    """Garbage, an answer of another kind, time or size is a failure, and leaves the old one."""
    kept = cache(service)
    kept.obtain(LIST, NOW)
    service.answers[LIST.url] = Answer(body, {})
    assert kept.obtain(LIST, NOW + 2 * DAY).answer.body == CRL
    fresh = cache(service)
    with pytest.raises(EndorsementError, match=why):
        fresh.obtain(LIST, NOW)
    assert len(fresh) == 0


def test_system_errors_of_a_get_are_failures():
    """A `get` of somebody else's may raise what sockets raise."""

    def get(request):
        raise TimeoutError

    with pytest.raises(ConnectionFailed, match="TimeoutError"):
        Cache(get, EndorsementSettings()).obtain(LIST, NOW)


def test_without_a_network_there_is_what_there_is(service):
    """No `get`, or a caller that does not want to wait, asks nobody."""
    with pytest.raises(EndorsementError, match="none fetched"):
        Cache(None, EndorsementSettings()).obtain(LIST, NOW)
    kept = cache(service)
    with pytest.raises(EndorsementError, match="none fetched"):
        kept.obtain(LIST, NOW, fetch=False)
    kept.obtain(LIST, NOW)
    assert kept.obtain(LIST, NOW + 2 * DAY, fetch=False).source is Source.CACHED
    assert len(service.asked) == 1


def test_entries_and_bytes_are_bounded():
    """The answer that was not used for longest goes first; a huge one is not kept at all."""
    asked = []

    def get(request):
        asked.append(request.url)
        return Answer(CRL, {"x": "y" * 10_000} if "huge" in request.url else {})

    size = len(CRL) + 100
    kept = Cache(get, EndorsementSettings(cache_entries=2, cache_bytes=2 * size))
    one, two, three, huge = (
        Request(f"https://kds.example/{name}", Kind.CRL) for name in ("1", "2", "3", "huge")
    )
    for request in (one, two, one, three):
        kept.obtain(request, NOW)
    assert len(kept) == 2
    kept.obtain(one, NOW)
    assert kept.obtain(two, NOW).source is Source.FETCHED
    kept.obtain(huge, NOW)
    assert len(kept) == 2
    assert kept.size <= 2 * size
    assert kept.obtain(huge, NOW).source is Source.FETCHED


def test_threads_ask_once():
    """Many threads that want one answer wait for one request."""
    barrier, asked = threading.Event(), []

    def get(request):
        asked.append(request.url)
        barrier.wait(5)
        return Answer(CRL, {})

    kept = Cache(get, EndorsementSettings())
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(kept.obtain, LIST, NOW) for _ in range(8)]
        barrier.set()
        sources = [one.result(10).source for one in waiting]
    assert len(asked) == 1
    assert sorted(sources) == [Source.CACHED] * 7 + [Source.FETCHED]
