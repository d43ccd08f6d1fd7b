"""What a server's own evidence says of it, as its operator sees it."""

from dataclasses import replace
from datetime import UTC, datetime

from blindai.attestation.model import Evidence, Platform
from blindai.attesters.simulation import SimulationAttester
from blindai.server.self_check import check_evidence
from blindai.testing.fake_sev_snp import FakeAMD

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def test_simulation():
    """Simulated evidence is what it says to be, and weak."""
    found = check_evidence(SimulationAttester().attest(b"r" * 32), NOW)
    assert found.is_genuine
    assert found.weaknesses == {"simulated"}
    assert set(found.claims.measurements) == {"measurement"}
    assert found.problem == ""


def test_changed_evidence():
    """Evidence that its signature does not cover is not genuine."""
    evidence = SimulationAttester().attest(b"r" * 32)
    changed = replace(evidence, body=evidence.body[:-1] + bytes([evidence.body[-1] ^ 1]))
    found = check_evidence(changed, NOW)
    assert not found.is_genuine
    assert found.claims is None
    assert found.problem.startswith("SignatureError: ")
    assert found.weaknesses == frozenset()
    assert found.not_after is None


def test_evidence_of_unknown_roots():
    """Evidence in a vendor's format, under other roots than the vendor's, is not genuine."""
    assert not check_evidence(FakeAMD().attest(b"r" * 32), NOW).is_genuine


def test_garbage():
    """Whatever the bytes of whatever platform, there is an answer."""
    for platform in Platform:
        assert not check_evidence(Evidence(platform, b"garbage", {}), NOW).is_genuine
