"""Evidence is completed and then verified, end to end; stale endorsements show as a weakness."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from blindai.attestation.appraise import AppraisalError
from blindai.attestation.model import Claims, Endorsed, Evidence, Platform
from blindai.attestation.policy import Policy
from blindai.cli.verify import result_to_json
from blindai.endorsements import EndorsementSettings, Endorser, lifetimes
from blindai.errors import BindingError, ConfigurationError, EndorsementError
from blindai.platforms.azure import parse_hcl_report
from blindai.testing import FAKES
from blindai.testing.fake_azure import FakeAzure
from blindai.testing.fake_dcap import FakeIntelSGX, FakeIntelTDX
from blindai.testing.fake_nvidia import FakeNVIDIA
from blindai.testing.fake_sev_snp import FakeAMD
from tests.endorsements.services import AMD, NVIDIA, Intel, bare, policy_for
from tests.servers import Server

STALE = "stale-endorsements"
HOUR = timedelta(hours=1)
SIMULATION = Claims(
    platform=Platform.SIMULATION,
    measurements={},
    versions={},
    weaknesses=frozenset({"simulated"}),
    report_data=b"",
)
VENDORS = {
    Platform.SEV_SNP: FakeAMD(),
    Platform.SGX: FakeIntelSGX(),
    Platform.TDX: FakeIntelTDX(),
}
SERVERS = {
    platform: Server(vendor, lifetime=timedelta(days=500)) for platform, vendor in VENDORS.items()
}
every_server = pytest.mark.parametrize("platform", sorted(VENDORS))


def service_of(vendor, evidence):
    """Return the vendor's service for some evidence."""
    if evidence.platform is Platform.SEV_SNP:
        return AMD(vendor, evidence)
    return Intel(evidence)


def shown(platform):
    """Return what a server shows, what its vendor answers, and a policy for it."""
    server = SERVERS[platform]
    whole = server.bundle()
    policy = policy_for(server.vendor, whole.evidence, tolerate=frozenset({STALE}))
    return whole, service_of(server.vendor, whole.evidence), policy


def without_endorsements(bundle):
    """Return the bundle as a server without a network shows it."""
    return replace(bundle, evidence=bare(bundle.evidence))


def verify(platform, completed, policy, **changes):
    """Verify a completed bundle."""
    return SERVERS[platform].verify(
        completed.bundle, policy, **{"endorsed": completed.endorsed} | changes
    )


def end_of(evidence, now):
    """Return the moment at which the first of the endorsements ends."""
    return min(one.end for one in lifetimes(evidence, now).values())


@every_server
def test_what_is_stapled_is_used_and_nobody_asked(platform):
    """A server that staples keeps its clients off the network."""
    whole, service, policy = shown(platform)
    completed = Endorser(get=service).complete(whole, SERVERS[platform].now)
    assert completed.bundle == whole
    assert service.asked == []
    result = verify(platform, completed, policy)
    assert set(result.endorsements.values()) == {"stapled"}
    assert STALE not in result.claims.weaknesses


@every_server
def test_what_is_missing_is_fetched_once(platform):
    """A bare bundle verifies with what the vendor answers; the second time from the cache."""
    whole, service, policy = shown(platform)
    endorser = Endorser(get=service)
    lacking = without_endorsements(whole)
    completed = endorser.complete(lacking, SERVERS[platform].now)
    result = verify(platform, completed, policy)
    assert set(result.endorsements.values()) == {"fetched"}
    asked = len(service.asked)
    again = verify(platform, endorser.complete(lacking, SERVERS[platform].now), policy)
    assert set(again.endorsements.values()) == {"cached"}
    assert len(service.asked) == asked
    assert again.claims == result.claims


@every_server
def test_the_source_is_shown(platform):
    """Text, JSON and steps of a result say where endorsements came from."""
    whole, service, policy = shown(platform)
    completed = Endorser(get=service).complete(without_endorsements(whole), SERVERS[platform].now)
    result = verify(platform, completed, policy)
    name, source = next(iter(result.endorsements.items()))
    assert f"{name} {source}" in str(result)
    assert json.loads(json.dumps(result_to_json(result)))["endorsements"][name] == source
    step = next(step for step in result.steps if step.name == "endorsements")
    assert f"{name} {source}" in step.detail


@every_server
def test_without_a_network_the_reason_is_said(platform):
    """What could not be fetched is missing, and the error's steps say why."""
    whole, service, policy = shown(platform)
    service.down = True
    completed = Endorser(get=service).complete(without_endorsements(whole), SERVERS[platform].now)
    with pytest.raises(EndorsementError) as caught:
        verify(platform, completed, policy)
    step = next(step for step in caught.value.steps if step.name == "endorsements")
    assert "no answer" in step.detail


@every_server
@pytest.mark.parametrize("cached", [False, True])
def test_stale_within_the_grace(platform, cached):
    """Where newer ones cannot be had, the old ones count for the grace, as a weakness."""
    whole, service, policy = shown(platform)
    server = SERVERS[platform]
    endorser = Endorser(get=service)
    bundle = whole
    if cached:
        bundle = without_endorsements(whole)
        endorser.complete(bundle, server.now)
    service.down = True
    end = end_of(whole.evidence, server.now)
    now = end + 20 * HOUR
    completed = endorser.complete(bundle, now)
    result = verify(platform, completed, policy, now=now)
    assert STALE in result.claims.weaknesses
    assert STALE in result.tolerated
    assert ("cached-stale" if cached else "stapled-stale") in result.endorsements.values()
    # It holds for what is left of the grace, less the second before the end.
    assert result.not_after == end + 24 * HOUR - timedelta(seconds=1)
    assert result.verified_at == now


@every_server
def test_stale_is_refused_unless_tolerated_by_name(platform):
    """A policy that does not name the weakness refuses stale endorsements."""
    whole, _, _ = shown(platform)
    server = SERVERS[platform]
    now = end_of(whole.evidence, server.now) + HOUR
    completed = Endorser().complete(whole, now)
    with pytest.raises(AppraisalError, match=STALE):
        verify(platform, completed, policy_for(server.vendor, whole.evidence), now=now)


@every_server
def test_stale_after_the_grace(platform):
    """After the grace, and without any, what has ended is refused."""
    whole, service, policy = shown(platform)
    service.down = True
    end = end_of(whole.evidence, SERVERS[platform].now)
    for grace, now in ((timedelta(0), end + HOUR), (24 * HOUR, end + 24 * HOUR)):
        endorser = Endorser(EndorsementSettings(grace=grace), get=service)
        completed = endorser.complete(whole, now)
        assert completed.endorsed.at is None
        with pytest.raises(EndorsementError):
            verify(platform, completed, policy, now=now)


@every_server
def test_newer_ones_end_the_staleness(platform):
    """A server that staples old endorsements is verified with the vendor's new ones."""
    server = SERVERS[platform]
    old = server.bundle()
    end = end_of(old.evidence, server.now)
    now = end + HOUR
    renewed = server.vendor.attest(bytes(32), issued_at=now - HOUR)
    service = (
        AMD(server.vendor, old.evidence, issued_at=now - HOUR)
        if platform is Platform.SEV_SNP
        else Intel(renewed)
    )
    completed = Endorser(get=service).complete(old, now)
    policy = policy_for(server.vendor, old.evidence)
    result = verify(platform, completed, policy, now=now)
    assert "fetched" in result.endorsements.values()
    assert STALE not in result.claims.weaknesses


@every_server
def test_a_revoked_platform_is_refused_also_when_stale(platform):
    """Going back in time does not undo a revocation."""
    server = SERVERS[platform]
    _, _, policy = shown(platform)
    nonce = bytes(range(32))
    data = server.bundle(nonce).evidence
    revoked = server.vendor.attest(
        data.body[0x50:0x70] if platform is Platform.SEV_SNP else bytes(32), revoked=True
    )
    bundle = server.bundle(nonce, evidence=revoked)
    now = end_of(revoked, server.now) + HOUR
    completed = Endorser().complete(bundle, now)
    assert completed.endorsed.at is not None
    with pytest.raises(EndorsementError, match="revoked"):
        verify(platform, completed, policy, now=now)


@every_server
def test_garbage_is_not_attached(platform):
    """A vendor's service that answers nonsense is as one that does not answer."""
    whole, service, policy = shown(platform)
    for url, answer in service.answers.items():
        service.answers[url] = replace(answer, body=b"\0" * 64)
    lacking = without_endorsements(whole)
    completed = Endorser(get=service).complete(lacking, SERVERS[platform].now)
    assert completed.bundle == lacking
    with pytest.raises(EndorsementError):
        verify(platform, completed, policy)


def test_a_certificate_of_another_chip_is_not_attached():
    """AMD's answer about another chip is no answer."""
    vendor = VENDORS[Platform.SEV_SNP]
    whole, _, policy = shown(Platform.SEV_SNP)
    service = AMD(vendor, whole.evidence, leaf=vendor.certify(chip_id=b"\xee" * 64))
    completed = Endorser(get=service).complete(without_endorsements(whole), vendor.now)
    assert any("this chip" in why for why in completed.endorsed.failures)
    with pytest.raises(EndorsementError, match="no certificate"):
        verify(Platform.SEV_SNP, completed, policy)


def test_a_missing_list_is_no_more_than_a_weakness():
    """Where AMD's list alone cannot be had, the rest is completed, and the weakness stays."""
    whole, service, _ = shown(Platform.SEV_SNP)
    del service.answers[service.crl]
    vendor = VENDORS[Platform.SEV_SNP]
    completed = Endorser(get=service).complete(without_endorsements(whole), vendor.now)
    policy = policy_for(vendor, completed.bundle.evidence)
    result = verify(Platform.SEV_SNP, completed, policy)
    assert "no-revocation-list" in result.claims.weaknesses
    assert dict(result.endorsements) == {"certificates": "fetched"}


def test_old_reports_are_looked_for_under_each_product():
    """The product that has the certificate is found, and its list taken."""
    vendor = FakeAMD("Genoa", version=2)
    server = Server(vendor)
    whole = server.bundle()
    service = AMD(vendor, whole.evidence)
    completed = Endorser(get=service).complete(without_endorsements(whole), vendor.now)
    result = server.verify(
        completed.bundle, policy_for(vendor, whole.evidence), endorsed=completed.endorsed
    )
    assert set(result.endorsements) == {"certificates", "crl"}


def test_time_for_fetching_is_bounded():
    """Once the budget is spent nobody else is asked."""
    whole, service, _ = shown(Platform.SEV_SNP)
    ticks = iter([0.0, 0.0, 100.0, 100.0])
    endorser = Endorser(get=service, monotonic=lambda: next(ticks))
    completed = endorser.complete(without_endorsements(whole), SERVERS[Platform.SEV_SNP].now)
    assert service.asked == [service.leaf, service.chain]
    assert "crl" not in completed.bundle.evidence.attachments


@pytest.mark.parametrize("platform", sorted(FAKES))
def test_malformed_evidence_is_left_to_the_verifier(platform):
    """Nothing is fetched for a body that cannot be read, and nothing is raised."""
    server = Server()
    bundle = server.bundle(evidence=Evidence(platform, b"x", {"chain": b"x"}))
    completed = Endorser(get=pytest.fail).complete(bundle, server.now)
    assert completed.bundle == bundle


def test_simulation_asks_nobody():
    """What no hardware signed, no vendor endorses."""
    server = Server()
    completed = Endorser(get=pytest.fail).complete(server.bundle(), server.now)
    result = server.verify(completed.bundle, Policy.simulation(), endorsed=completed.endorsed)
    assert dict(result.endorsements) == {}


@pytest.mark.parametrize("inside", ["sev-snp", "tdx"])
def test_azure_is_endorsed_by_the_hardware_inside(inside):
    """A bare Azure VM verifies with what AMD or Intel say about the hardware below its vTPM."""
    vendor = FakeAzure(inside)
    server = Server(vendor)
    whole = server.bundle()
    policy = policy_for(vendor, whole.evidence)
    held = whole.evidence.attachments
    if inside == "sev-snp":
        report = parse_hcl_report(held["hcl_report"]).hardware_report
        service = AMD(vendor.hardware, Evidence(Platform.SEV_SNP, report))
    else:
        quote = Evidence(Platform.TDX, held["td_quote"], {"collateral": held["collateral"]})
        service = Intel(quote)
    assert Endorser(get=pytest.fail).complete(whole, vendor.now).bundle == whole
    own = {"hcl_report", "signature", "pcrs", "event_log", "td_quote"}
    lacking = replace(whole, evidence=bare(whole.evidence, keep=own))
    completed = Endorser(get=service).complete(lacking, vendor.now)
    result = server.verify(completed.bundle, policy, endorsed=completed.endorsed)
    assert set(result.endorsements.values()) == {"fetched"}
    assert service.asked


@pytest.mark.parametrize("attachments", [{}, {"hcl_report": b"x"}])
def test_azure_without_its_report_is_left_to_the_verifier(attachments):
    """Without the paravisor's report nobody knows whom to ask."""
    evidence = Evidence(Platform.AZURE_VTPM, b"x", attachments)
    endorsed = Endorser(get=pytest.fail).endorse(evidence, VENDORS[Platform.SGX].now)
    assert endorsed.evidence == evidence
    assert "HCL report" in endorsed.failures[0] or "hcl_report" in endorsed.failures[0]


class TestDevices:
    """Endorsements of attached devices stand beside the bundle, which binds the devices."""

    gpu = FakeNVIDIA()
    # Simulation carries the GPU: it holds at any time.
    server = Server(lifetime=timedelta(days=500))

    def bundle(self, *, attach=frozenset()):
        """Return a bundle of a machine with a GPU that has only `attach` stapled."""

        class Bare:
            platform = Platform.NVIDIA_GPU
            anchors = self.gpu.anchors

            def attest(_, data):  # noqa: N805 (the outer self is needed)
                self.whole = self.gpu.attest(data)
                return self.gpu.attest(data, attach=attach)

        self.device = Bare()
        return self.server.bundle(devices=[self.device])

    def policy(self):
        """Return a policy for the machine and the GPU with all its endorsements."""
        named = frozenset({STALE, "no-reference-measurements"})
        (block,) = policy_for(self.gpu, self.whole, tolerate=named, beside=SIMULATION).accept[1:]
        return Policy((*Policy.simulation().accept, block))

    def test_fetched_and_verified(self):
        """Reference measurements and revocations are fetched, and the binding still holds."""
        bundle = self.bundle()
        completed = Endorser(get=NVIDIA(self.whole)).complete(bundle, self.gpu.now)
        assert completed.bundle == bundle
        result = self.server.verify(
            completed.bundle,
            self.policy(),
            devices=[self.device],
            now=self.gpu.now,
            endorsed=completed.endorsed,
        )
        assert dict(result.endorsements) == {
            "devices[0].rim_driver": "fetched",
            "devices[0].ocsp": "fetched",
        }
        assert "no-revocation-check" not in result.devices[0].weaknesses

    def test_stale_device_of_a_current_machine(self):
        """Only the device whose endorsements are stale is verified in the past."""
        bundle = self.bundle(attach=frozenset({"ocsp", "rim_driver"}))
        now = self.gpu.now + timedelta(hours=30)
        completed = Endorser().complete(bundle, now)
        assert completed.endorsed.at is None
        result = self.server.verify(
            completed.bundle,
            self.policy(),
            devices=[self.device],
            now=now,
            endorsed=completed.endorsed,
        )
        assert STALE in result.devices[0].weaknesses
        assert STALE not in result.claims.weaknesses
        assert now < result.not_after < now + 24 * HOUR

    def test_extras_of_devices_that_are_not_there(self):
        """Endorsements of more devices than were shown are the caller's mistake."""
        bundle = self.server.bundle()
        for endorsed in (
            Endorsed(devices_at=(None,)),
            Endorsed(device_attachments=({},)),
        ):
            with pytest.raises(ConfigurationError, match="more devices"):
                self.server.verify(bundle, endorsed=endorsed)


class TestVerifyInThePast:
    """What `verify` itself makes of a past moment, whoever gives it."""

    platform = Platform.SGX

    def verify(self, *, at, grace, now=None, weakness=True):
        """Verify stapled SGX evidence with a moment for its endorsements."""
        server = SERVERS[self.platform]
        whole, _, policy = shown(self.platform)
        if not weakness:
            policy = policy_for(server.vendor, whole.evidence)
        return server.verify(
            whole, policy, now=now or server.now, endorsed=Endorsed(at=at, grace=grace)
        )

    def test_too_long_ago(self):
        """A moment before the grace is refused, whatever the evidence."""
        now = SERVERS[self.platform].now
        with pytest.raises(EndorsementError, match="accepted is less than"):
            self.verify(at=now - 2 * HOUR, grace=2 * HOUR)
        with pytest.raises(EndorsementError):
            self.verify(at=now - HOUR, grace=timedelta(0))

    def test_a_past_moment_always_shows(self):
        """Also where it was not needed, the weakness is there and the result holds shorter."""
        now = SERVERS[self.platform].now
        result = self.verify(at=now - HOUR, grace=2 * HOUR)
        assert STALE in result.claims.weaknesses
        assert result.not_after == now + HOUR
        with pytest.raises(AppraisalError, match=STALE):
            self.verify(at=now - HOUR, grace=2 * HOUR, weakness=False)

    def test_the_present_is_no_past(self):
        """The present moment changes nothing."""
        now = SERVERS[self.platform].now
        result = self.verify(at=now, grace=timedelta(0), weakness=False)
        assert STALE not in result.claims.weaknesses

    def test_the_future_is_refused(self):
        """A moment to come, or without a time zone, is the caller's mistake."""
        now = SERVERS[self.platform].now
        for at in (now + HOUR, now.replace(tzinfo=None)):
            with pytest.raises(ConfigurationError, match="yet to come"):
                self.verify(at=at, grace=HOUR)

    def test_keys_are_judged_at_the_present(self):
        """A past moment for endorsements does not bring expired keys back."""
        vendor = VENDORS[self.platform]
        server = Server(vendor, lifetime=HOUR)
        policy = policy_for(vendor, server.bundle().evidence, tolerate=frozenset({STALE}))
        endorsed = Endorsed(at=vendor.now, grace=24 * HOUR)
        with pytest.raises(BindingError, match="expired"):
            server.verify(policy=policy, now=vendor.now + 2 * HOUR, endorsed=endorsed)
