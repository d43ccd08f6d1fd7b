"""The whole verification, as seen by somebody who owns the host."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from blindai.attestation.binding import binding, device_nonce
from blindai.attestation.model import Endorsed, EvidenceBundle, Platform
from blindai.attestation.policy import Acceptance, Pattern, Policy
from blindai.attestation.trust import VENDOR_ROOTS
from blindai.attestation.wire import dump_bundle
from blindai.attesters.simulation import SimulationAttester
from blindai.errors import (
    AppraisalError,
    AttestationError,
    BindingError,
    ConfigurationError,
    EndorsementError,
    EvidenceError,
    SignatureError,
)
from blindai.platforms import VERIFIERS
from blindai.testing.fake_sev_snp import FakeAMD
from blindai.testing.fake_simulation import FakeSimulation
from blindai.verify import COMMON_STEPS, verify
from tests.servers import NONCE, Server

COMMON = [step.name for step in COMMON_STEPS]


def states(error):
    """Return name → status of the steps that an error carries."""
    return {step.name: step.status for step in error.value.steps}


def assert_failed_at(error, name):
    """Everything before `name` passed, it failed, and nothing after it was looked at."""
    names = [step.name for step in error.value.steps]
    index = names.index(name)
    assert [step.status for step in error.value.steps] == (
        ["passed"] * index + ["failed"] + ["skipped"] * (len(names) - index - 1)
    )
    assert error.value.steps[index].detail == str(error.value)
    assert all(step.detail == "not reached" for step in error.value.steps[index + 1 :])


def test_an_honest_server():
    """The result carries what was verified, and nothing else."""
    server = Server()
    bundle = server.bundle()
    policy = Policy(Policy.simulation().accept, {"covidnet": frozenset({b"\x07" * 32})})
    result = server.verify(bundle, policy)
    assert result.platform is Platform.SIMULATION
    assert result.claims.measurements == {"measurement": server.vendor.measurement}
    assert result.devices == ()
    assert result.tolerated == {"simulated"}
    assert result.policy_digest == policy.digest
    assert result.models == policy.models
    assert result.evidence_digest == hashlib.sha256(dump_bundle(bundle)).digest()
    assert result.keyset_digest == hashlib.sha256(server.keyset).digest()
    assert result.tls_public_key == server.keys.public.tls_public_key
    assert result.certificate == server.certificate
    assert result.verified_at == server.now
    assert result.not_after == server.keys.public.not_after
    assert result.nonce == NONCE
    assert result.holds_at(result.not_after - timedelta(seconds=1))
    assert not result.holds_at(result.not_after)
    assert [step.name for step in result.steps] == ["format", "root", "signature", *COMMON]
    assert {step.status for step in result.steps} == {"passed"}


def test_the_simulation_attester():
    """What the simulated server makes verifies under the pinned public key."""
    server = Server()
    attester = SimulationAttester(clock=server.now.timestamp)
    bundle = server.bundle(evidence=attester.attest(binding(NONCE, server.keyset)))
    assert server.verify(bundle, anchors=VENDOR_ROOTS).simulated


def test_simulation_is_refused_by_default():
    """A policy for hardware never accepts simulation, whatever it shows."""
    server = Server()
    block = Acceptance(Platform.SEV_SNP, {"measurement": (Pattern(b"\x01" * 48),)})
    with pytest.raises(AppraisalError, match="simulation=True") as error:
        server.verify(policy=Policy((block,)))
    assert_failed_at(error, "appraisal")


def test_evidence_bound_to_another_key():
    """Genuine evidence of one server does not speak for another server's keys."""
    honest, mallory = Server(), Server()
    stolen = honest.bundle()
    with pytest.raises(BindingError, match="another key or nonce") as error:
        honest.verify(replace(stolen, keyset=mallory.keyset, certificate=mallory.certificate))
    assert_failed_at(error, "binding")


def test_replayed_evidence():
    """An answer to yesterday's nonce, or to none, is no answer to today's."""
    server = Server()
    for nonce in (bytes(32), None):
        with pytest.raises(BindingError, match="another key or nonce") as error:
            server.verify(server.bundle(nonce))
        assert_failed_at(error, "binding")


def test_stored_evidence():
    """Without a nonce and a connection the result says that nothing is known of freshness."""
    server = Server()
    result = server.verify(server.bundle(None), nonce=None, peer_certificate=None)
    assert result.nonce is None
    (channel,) = [step for step in result.steps if step.name == "channel"]
    assert channel.detail == "stored evidence: no connection to compare with"
    with pytest.raises(BindingError):
        server.verify(server.bundle(), nonce=None)


def test_expired_keyset():
    """Keys are refused from the second on at which they end."""
    server = Server()
    end = server.keys.public.not_after
    server.verify(now=end - timedelta(seconds=1))
    with pytest.raises(BindingError, match="expired") as error:
        server.verify(now=end)
    assert_failed_at(error, "keyset")


def test_malformed_keyset():
    """A keyset that the evidence is bound to still has to be one."""
    server = Server()
    evidence = server.vendor.attest(binding(NONCE, b"junk"))
    with pytest.raises(EvidenceError, match="keyset") as error:
        server.verify(EvidenceBundle(evidence, b"junk", server.certificate))
    assert_failed_at(error, "keyset")


def test_somebody_in_the_middle():
    """A TLS peer with another key than the attested one is refused."""
    server, mallory = Server(), Server()
    with pytest.raises(BindingError, match="somebody stands between") as error:
        server.verify(peer_certificate=mallory.certificate)
    assert_failed_at(error, "channel")


def test_another_certificate_in_the_bundle():
    """The certificate that a client would pin has to carry the attested key."""
    server, mallory = Server(), Server()
    for peer in (server.certificate, mallory.certificate, None):
        with pytest.raises(BindingError) as error:
            server.verify(
                replace(server.bundle(), certificate=mallory.certificate), peer_certificate=peer
            )
        assert_failed_at(error, "channel")


def test_malformed_certificates():
    """A certificate that is none is an error of ours, whoever sent it."""
    server = Server()
    with pytest.raises(EvidenceError):
        server.verify(replace(server.bundle(), certificate=b"\x30\x80"))
    with pytest.raises(EvidenceError):
        server.verify(peer_certificate=b"")


def test_unknown_root():
    """Evidence under a root that is not pinned is refused at the first step it reaches."""
    server = Server()
    for anchors in ({}, VENDOR_ROOTS, {Platform.SIMULATION: FakeSimulation().anchors}):
        with pytest.raises(SignatureError, match="unknown key") as error:
            server.verify(anchors=anchors)
        assert_failed_at(error, "root")


def test_padding_after_the_binding():
    """Bytes after the binding have to be zero: nothing else may ride on the signature."""
    server = Server()
    evidence = server.vendor.attest(binding(NONCE, server.keyset) + b"\x01")
    with pytest.raises(BindingError, match="not zero"):
        server.verify(server.bundle(evidence=evidence))


def test_unknown_platform():
    """Evidence that nobody can verify is refused, not taken on trust."""
    server = Server()
    bundle = server.bundle()
    with pytest.raises(EvidenceError, match="no verifier for platform of-tomorrow"):
        server.verify(replace(bundle, evidence=replace(bundle.evidence, platform="of-tomorrow")))


@pytest.mark.parametrize("platform", [p for p in VERIFIERS if p is not Platform.SIMULATION])
def test_evidence_under_another_name(platform):
    """Simulated evidence does not become another platform's by saying so."""
    server = Server()
    bundle = server.bundle()
    disguised = replace(bundle, evidence=replace(bundle.evidence, platform=platform))
    with pytest.raises(AttestationError):
        server.verify(disguised, anchors=VENDOR_ROOTS)


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_wrong_nonce_size(size):
    """A nonce of the wrong size is the caller's mistake, told before anything is verified."""
    server = Server()
    with pytest.raises(ConfigurationError, match="32 bytes"):
        server.verify(nonce=bytes(size))


def test_naive_time():
    """A moment without a time zone is refused: nobody knows which moment it is."""
    server = Server()
    with pytest.raises(ConfigurationError, match="time zone"):
        server.verify(now=datetime(2026, 6, 1))  # noqa: DTZ001


def test_time_in_another_zone():
    """Times are compared as moments, not as clock readings."""
    from zoneinfo import ZoneInfo  # noqa: PLC0415

    server = Server()
    tokyo = server.now.astimezone(ZoneInfo("Asia/Tokyo"))
    assert server.verify(now=tokyo).verified_at == server.now.astimezone(UTC)


def test_devices():
    """A device is verified with its own root, nonce and policy, and shows in the result."""
    server, gpu = Server(), FakeSimulation(b"\x6b" * 32)
    result = server.verify(devices=[gpu, gpu])
    assert [d.measurements["measurement"] for d in result.devices] == [gpu.measurement] * 2
    (step,) = [step for step in result.steps if step.name == "devices"]
    assert step.detail == "2 attached"


def test_a_device_is_taken_away_or_added():
    """The evidence covers its devices: none can be removed, added, or change places."""
    server, one, other = Server(), FakeSimulation(), FakeSimulation()
    bundle = server.bundle(devices=[one, other])
    first, second = bundle.devices
    for devices in ((), (first,), (second, first), (first, second, second)):
        with pytest.raises(BindingError) as error:
            server.verify(replace(bundle, devices=devices), devices=[one, other])
        assert_failed_at(error, "binding")


def test_a_device_that_answers_another_nonce():
    """Genuine evidence of a device from elsewhere or from yesterday is refused."""
    server, mallory, gpu = Server(), Server(), FakeSimulation()
    for report_data in (
        device_nonce(bytes(32), server.keyset),
        device_nonce(NONCE, mallory.keyset),
        binding(NONCE, server.keyset),
        device_nonce(NONCE, server.keyset) + b"\x01",
    ):
        stale = gpu.attest(report_data)
        bundle = bundle_with(server, stale)
        with pytest.raises(BindingError, match="simulation: the device answers") as error:
            server.verify(bundle, devices=[gpu])
        assert_failed_at(error, "devices")


def bundle_with(server, device):
    """Return an honest server's bundle around any device evidence."""
    from blindai.attestation.wire import dump_evidence  # noqa: PLC0415

    digest = hashlib.sha256(dump_evidence(device)).digest()
    evidence = server.vendor.attest(binding(NONCE, server.keyset, [digest]))
    return EvidenceBundle(evidence, server.keyset, server.certificate, (device,))


def test_a_device_with_a_forged_signature():
    """A device's own failed step is named in the error, with the class it had."""
    server, gpu = Server(), FakeSimulation()
    device = gpu.attest(device_nonce(NONCE, server.keyset))
    forged = replace(device, attachments={**device.attachments, "signature": bytes(64)})
    with pytest.raises(SignatureError, match="simulation, signature: ") as error:
        server.verify(bundle_with(server, forged), devices=[gpu])
    assert_failed_at(error, "devices")


@pytest.mark.parametrize("platform", [p for p in Platform if p is not Platform.SIMULATION])
def test_a_machine_is_no_device(platform):
    """Evidence of a machine, or of what nobody can verify, is not accepted as a device's."""
    server, gpu = Server(), FakeSimulation()
    device = replace(gpu.attest(device_nonce(NONCE, server.keyset)), platform=platform)
    with pytest.raises(AttestationError) as error:
        server.verify(bundle_with(server, device), devices=[gpu])
    assert_failed_at(error, "devices")


def test_a_device_that_the_policy_refuses():
    """A device needs a block that accepts it."""
    server, gpu = Server(FakeSimulation(b"\x01" * 32)), FakeSimulation(b"\x02" * 32)
    block = Acceptance(
        Platform.SIMULATION,
        {"measurement": (Pattern(b"\x01" * 32),)},
        tolerate=frozenset({"simulated"}),
    )
    server.verify(policy=Policy((block,)))
    with pytest.raises(AppraisalError) as error:
        server.verify(policy=Policy((block,)), devices=[gpu])
    assert_failed_at(error, "appraisal")


GRACE = timedelta(hours=48)


def stale_policy(server, *weaknesses):
    """Return the policy that accepts a server on AMD hardware, and these weaknesses."""
    code = server.verify_platform().measurements["measurement"]
    return Policy(
        (
            Acceptance(
                Platform.SEV_SNP,
                {"measurement": (Pattern(code),)},
                tolerate=frozenset(weaknesses),
            ),
        )
    )


def test_past_endorsements_show():
    """What was verified at a past moment is a weakness, and ends with the grace."""
    server = Server(FakeAMD())
    at = server.now - timedelta(hours=1)
    endorsed = Endorsed({"crl": "cached-stale"}, at=at, grace=GRACE)
    policy = stale_policy(server, "stale-endorsements")
    result = server.verify(policy=policy, endorsed=endorsed)
    assert result.tolerated == {"stale-endorsements"}
    assert result.endorsements == {"crl": "cached-stale"}
    assert result.not_after <= at + GRACE
    with pytest.raises(AppraisalError, match="stale-endorsements") as error:
        server.verify(policy=stale_policy(server), endorsed=endorsed)
    assert_failed_at(error, "appraisal")
    assert not server.verify(policy=stale_policy(server)).tolerated


def test_endorsements_beyond_the_grace():
    """Endorsements that were current too long ago are refused, whatever a policy tolerates."""
    server = Server(FakeAMD())
    policy = stale_policy(server, "stale-endorsements")
    for grace in (timedelta(0), timedelta(hours=1)):
        endorsed = Endorsed(at=server.now - timedelta(hours=1), grace=grace)
        with pytest.raises(EndorsementError, match="accepted is less than") as error:
            server.verify(policy=policy, endorsed=endorsed)
        assert_failed_at(error, "endorsements")


def test_the_present_is_not_stale():
    """Verifying at `now` by name is the same as not naming a moment."""
    server = Server(FakeAMD())
    result = server.verify(policy=stale_policy(server), endorsed=Endorsed(at=server.now))
    assert not result.tolerated


@pytest.mark.parametrize(
    "endorsed",
    [
        Endorsed(at=FakeAMD.now + timedelta(seconds=1), grace=GRACE),
        Endorsed(at=datetime(2026, 5, 31), grace=GRACE),  # noqa: DTZ001
        Endorsed(devices_at=(None,)),
        Endorsed(device_attachments=({},)),
    ],
)
def test_impossible_moments(endorsed):
    """A moment to come, without a zone, or of no device is the caller's mistake."""
    server = Server(FakeAMD())
    with pytest.raises(ConfigurationError):
        server.verify(policy=stale_policy(server), endorsed=endorsed)


def test_the_keyset_is_verified_now():
    """A past moment for endorsements does not bring expired keys back."""
    server = Server(FakeAMD(), lifetime=timedelta(minutes=30))
    late = server.now + timedelta(hours=1)
    with pytest.raises(BindingError, match="expired"):
        server.verify(
            policy=stale_policy(server, "stale-endorsements"),
            now=late,
            endorsed=Endorsed(at=server.now, grace=GRACE),
        )


def test_stored_evidence_is_current_only_while_keys_are():
    """A result never outlives the first of the things it rests on."""
    server = Server(lifetime=timedelta(minutes=5))
    assert server.verify().not_after == server.now.replace(microsecond=0) + timedelta(minutes=5)


def test_security_arguments_have_names():
    """Neither nonce nor time can be passed by position, where they could be swapped."""
    server = Server()
    with pytest.raises(TypeError):
        verify(server.bundle(), Policy.simulation(), NONCE, server.now)
