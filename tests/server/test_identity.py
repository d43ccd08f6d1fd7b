"""Keys, certificate and evidence belong together; evidence is made as often as allowed."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from blindai.attestation import wire
from blindai.attestation.model import Platform
from blindai.attestation.policy import Policy
from blindai.attestation.trust import VENDOR_ROOTS
from blindai.attesters.nvidia_gpu import NvidiaAttester
from blindai.attesters.simulation import SimulationAttester
from blindai.channel.keyset import Keyset
from blindai.errors import AppraisalError, BindingError, Overloaded
from blindai.server.config import Limits, ServerConfig
from blindai.server.identity import CACHE_SECONDS, EvidenceDesk, Identity
from blindai.testing.fake_nvidia import FakeNVIDIA
from blindai.verify import verify
from tests.attesters.test_nvidia_gpu import FakeNvml

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
CONFIG = ServerConfig(platform=Platform.SIMULATION, key_lifetime=timedelta(days=1))


@pytest.fixture(scope="module")
def identity():
    return Identity.create(SimulationAttester(), CONFIG, now=NOW)


@pytest.fixture
def executor():
    with ThreadPoolExecutor(1) as executor:
        yield executor


def test_evidence_verifies(identity):
    """Evidence is bound to keys, nonce and certificate, for as long as was configured."""
    nonce = b"n" * 32
    result = verify(
        identity.attest(nonce),
        Policy.simulation(),
        nonce=nonce,
        now=NOW,
        peer_certificate=identity.certificate,
    )
    assert result.not_after == NOW + timedelta(days=1)
    with pytest.raises(BindingError):
        verify(identity.attest(None), Policy.simulation(), nonce=nonce, now=NOW)


def test_configuration_is_attested(identity):
    """The keyset names the configuration that the server runs with."""
    keyset = Keyset.parse(identity.attest(None).keyset)
    assert keyset.configuration == CONFIG.digest()


def test_each_identity_has_its_own_keys(identity):
    """Keys are fresh each time, and never shown."""
    other = Identity.create(SimulationAttester(), CONFIG, now=NOW)
    ours, theirs = identity.keys.public, other.keys.public
    assert ours.tls_public_key != theirs.tls_public_key
    assert ours.receipt_public_key != theirs.receipt_public_key
    assert ours.message_public_key != theirs.message_public_key
    assert "PRIVATE" not in repr(identity)
    assert "tls" not in repr(identity)


async def test_cached_evidence_is_renewed(identity, executor):
    """Evidence without a nonce is made once an hour, however often it is asked for."""
    now = [0.0]
    attested = []

    class Counting(SimulationAttester):
        def attest(self, report_data):
            attested.append(report_data)
            return super().attest(report_data)

    counted = Identity(Counting(), identity.keys, identity.certificate, identity.context)
    desk = EvidenceDesk(counted, executor, Limits(), clock=lambda: now[0])
    first = await desk.cached()
    now[0] = CACHE_SECONDS - 1
    assert await desk.cached() is first
    assert len(attested) == 1
    now[0] = CACHE_SECONDS + 1
    await desk.cached()
    assert len(attested) == 2


async def test_fresh_evidence_is_limited(identity, executor):
    """Beyond the burst, fresh evidence is refused until the rate allows it again."""
    now = [0.0]
    limits = Limits(evidence_rate=0.5, evidence_burst=2)
    desk = EvidenceDesk(identity, executor, limits, clock=lambda: now[0])
    wire.parse_bundle(await desk.fresh(bytes(32)))
    await desk.fresh(bytes(32))
    with pytest.raises(Overloaded) as caught:
        await desk.fresh(bytes(32))
    assert caught.value.retry_after == pytest.approx(2.0)
    now[0] = 2.0
    await desk.fresh(bytes(32))


def test_gpus_are_shown_beside_the_machine():
    """The client finds each GPU in the evidence, over the same nonce; none can be taken away."""
    vendor, nonce = FakeNVIDIA(), b"n" * 32
    gpus = NvidiaAttester(lambda: FakeNvml([vendor, vendor.another_chip()]))
    config = ServerConfig(platform=Platform.SIMULATION)
    identity = Identity.create(SimulationAttester(), config, now=vendor.now, devices=gpus)
    bundle = wire.parse_bundle(wire.dump_bundle(identity.attest(nonce)))
    anchors = {**VENDOR_ROOTS, Platform.NVIDIA_GPU: vendor.anchors}
    with pytest.raises(AppraisalError) as error:  # genuine, and not in this policy
        verify(bundle, Policy.simulation(), nonce=nonce, now=vendor.now, anchors=anchors)
    assert "nvidia-gpu" in str(error.value)
    for devices in ((), bundle.devices[:1], bundle.devices[::-1]):
        with pytest.raises(BindingError):
            verify(
                replace(bundle, devices=devices),
                Policy.simulation(),
                nonce=nonce,
                now=vendor.now,
                anchors=anchors,
            )
