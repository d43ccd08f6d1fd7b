"""What a server reads in its own evidence: what a client would, or why not."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.attestation import wire
from blindai.attesters import create_attester
from blindai.server.config import Limits, ServerConfig
from blindai.server.identity import EvidenceDesk, Identity
from blindai.server.own_evidence import EvidenceReader, OwnEvidence, read_evidence
from blindai.testing.fake_nitro import FakeNitro
from blindai.testing.fake_simulation import FakeSimulation
from tests.servers import Server


def test_reads_what_a_client_reads():
    """The claims are those that the platform's verifier makes for a client."""
    server = Server(FakeNitro())
    anchors = {server.vendor.platform: tuple(server.vendor.anchors)}
    content = wire.dump_bundle(server.bundle())
    found = read_evidence(content, now=server.now, anchors=anchors)
    assert found.claims == server.verify_platform()
    assert found.problem == ""


def test_counts_devices():
    """Evidence of attached devices is counted."""
    server = Server(FakeSimulation())
    content = wire.dump_bundle(server.bundle(devices=[FakeSimulation()]))
    anchors = {server.vendor.platform: tuple(server.vendor.anchors)}
    assert read_evidence(content, now=server.now, anchors=anchors).devices == 1


def test_says_why_it_cannot_be_read():
    """Evidence of another root gives no claims, and the reason why."""
    server = Server(FakeNitro())
    found = read_evidence(wire.dump_bundle(server.bundle()), now=server.now)
    assert found.claims is None
    assert found.problem.startswith("SignatureError: ")


@given(st.binary(max_size=64))
def test_garbage_is_a_problem(content):
    """Bytes that are no evidence give a problem, never another error."""
    found = read_evidence(content, now=datetime.now(UTC))
    assert found == OwnEvidence(None, found.problem)
    assert found.problem


@pytest.fixture
def desk():
    """A desk of a simulated identity whose clock a test turns."""
    attester = create_attester("simulation")
    config = ServerConfig(platform=attester.platform)
    identity = Identity.create(attester, config, now=datetime.now(UTC))
    clock = Mock(return_value=0.0)
    with ThreadPoolExecutor(1) as executor:
        yield EvidenceDesk(identity, executor, Limits(), clock=clock), clock


async def test_reads_again_only_what_is_new(desk):
    """The same evidence is read once; evidence that was made anew is read anew."""
    desk, clock = desk
    reader = EvidenceReader(desk)
    first = await reader.current()
    assert "simulated" in first.claims.weaknesses
    assert await reader.current() is first
    clock.return_value = 3601.0
    assert await reader.current() is not first
