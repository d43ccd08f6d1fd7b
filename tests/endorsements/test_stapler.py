"""A server that staples: fetched in advance, renewed, and never waited for too long."""

import threading
import time
from datetime import timedelta

import pytest

from blindai.attestation.binding import binding
from blindai.attestation.model import Platform
from blindai.endorsements import EndorsementSettings, Endorser, Stapler
from blindai.errors import ConfigurationError
from blindai.testing.fake_dcap import FakeIntelTDX
from blindai.testing.fake_sev_snp import FakeAMD
from tests.endorsements.services import AMD, Intel, bare, policy_for
from tests.servers import NONCE, Server

AMD_VENDOR = FakeAMD()
TDX_VENDOR = FakeIntelTDX()
DATA = bytes(range(32))


class Bare:
    """An attester on a machine that has no endorsements at hand."""

    def __init__(self, vendor):
        self._vendor = vendor
        self.platform = vendor.platform

    def attest(self, report_data):
        """Return the report alone."""
        return bare(self._vendor.attest(report_data))

    def rollback_counter(self):
        return None

    def sealing_key(self):
        """Return a key."""
        return b"k" * 32


@pytest.fixture(params=[AMD_VENDOR, TDX_VENDOR], ids=lambda vendor: vendor.platform)
def vendor(request):
    """Return one vendor after another."""
    return request.param


@pytest.fixture
def service(vendor):
    """Return the vendor's service."""
    evidence = vendor.attest(DATA)
    return AMD(vendor, evidence) if vendor.platform is Platform.SEV_SNP else Intel(evidence)


def stapler(vendor, get, **changes):
    """Return a stapler before a bare attester."""
    settings = EndorsementSettings(retry_after=timedelta(minutes=1))
    clock = changes.pop("clock", lambda: vendor.now)
    return Stapler(Bare(vendor), Endorser(settings, get=get), clock=clock, **changes)


def test_stapled_evidence_verifies_offline(vendor, service):
    """What a stapling server shows is verified by a client without any network."""
    server = Server(vendor)
    with stapler(vendor, service, timeout=30.0) as attester:
        assert attester.platform is vendor.platform
        assert attester.sealing_key() == b"k" * 32
        evidence = attester.attest(binding(NONCE, server.keyset))
    bundle = server.bundle(evidence=evidence)
    completed = Endorser().complete(bundle, vendor.now)
    result = server.verify(
        completed.bundle, policy_for(vendor, evidence), endorsed=completed.endorsed
    )
    assert set(result.endorsements.values()) == {"stapled"}
    assert attester.failures == ()


def test_the_vendor_is_asked_once_for_many(vendor, service):
    """Evidence for the next caller comes with what was fetched for the first."""
    attester = stapler(vendor, service)
    attester.attest(DATA)
    assert service.asked == []
    attester.refresh()
    asked = len(service.asked)
    for _ in range(3):
        assert attester.attest(DATA).attachments
    attester.refresh()
    assert len(service.asked) == asked


def test_renewed_before_the_end(vendor, service):
    """A round in the background renews what a vendor may have revised."""
    moments = [vendor.now]
    attester = stapler(vendor, service, clock=lambda: moments[-1])
    attester.attest(DATA)
    attester.refresh()
    asked = len(service.asked)
    moments.append(vendor.now + timedelta(hours=25))
    attester.refresh()
    assert len(service.asked) > asked


def test_a_vendor_that_fails_leaves_evidence_bare(vendor, service):
    """Without endorsements evidence is shown as it is, and the reason is kept."""
    service.down = True
    attester = stapler(vendor, service)
    assert attester.attest(DATA).attachments == {}
    attester.refresh()
    assert attester.attest(DATA).attachments == {}
    assert any("no answer" in why for why in attester.failures)


def test_a_slow_vendor_is_not_waited_for(vendor):
    """The caller waits for `timeout`, and after a failed round not at all."""
    release = threading.Event()

    def get(request):
        release.wait(20)
        raise TimeoutError

    with stapler(vendor, get, timeout=0.2) as attester:
        begin = time.monotonic()
        assert attester.attest(DATA).attachments == {}
        assert 0.15 < time.monotonic() - begin < 5
        release.set()
        for _ in range(100):
            if attester.failures:
                break
            time.sleep(0.05)
        begin = time.monotonic()
        attester.attest(DATA)
        assert time.monotonic() - begin < 0.15
        assert attester.failures


def test_a_broken_get_ends_no_thread(vendor, service, caplog):
    """A `get` that raises what it may not is survived, logged by type, and tried again later."""
    broken, asked = [True], []

    def get(request):
        asked.append(request)
        if broken[0]:
            msg = "secret"
            raise RuntimeError(msg)
        return service(request)

    moments = [vendor.now]
    with stapler(vendor, get, timeout=30.0, clock=lambda: moments[-1]) as attester:
        assert attester.attest(DATA).attachments == {}
        assert attester.attest(DATA).attachments == {}
        assert len(asked) == 1
        broken[0] = False
        moments.append(vendor.now + timedelta(minutes=2))
        assert attester.attest(DATA).attachments
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text


def test_without_a_network_nothing_waits(vendor):
    """A server that may not fetch shows bare evidence at once, and asks for nothing."""
    attester = stapler(vendor, None)
    attester.refresh()
    begin = time.monotonic()
    assert attester.attest(DATA).attachments == {}
    assert time.monotonic() - begin < 1
    attester.close()


def test_stopping(vendor, service):
    """A stapler that was stopped has no thread, and may be started again."""
    attester = stapler(vendor, service, timeout=30.0)
    before = threading.active_count()
    with attester.start():
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    with attester:
        assert attester.attest(DATA).attachments


@pytest.mark.parametrize("changes", [{"timeout": -1.0}, {"interval": timedelta(0)}])
def test_settings_that_mean_nothing(vendor, changes):
    """Negative waiting is refused."""
    with pytest.raises(ConfigurationError):
        stapler(vendor, None, **changes)
