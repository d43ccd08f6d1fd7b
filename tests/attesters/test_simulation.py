"""The simulated attester makes evidence that says what it is."""

import hashlib
from importlib import resources

import pytest

from blindai.attestation.model import Platform
from blindai.attestation.steps import Steps
from blindai.attestation.trust import VENDOR_ROOTS
from blindai.attesters import ATTESTERS, create_attester
from blindai.attesters.simulation import SimulationAttester, source_digest
from blindai.errors import ConfigurationError
from blindai.platforms import simulation
from blindai.testing.fake_simulation import FakeSimulation


def test_attest():
    """The evidence carries the caller's bytes and the clock's second, and verifies."""
    evidence = SimulationAttester(clock=lambda: 1_780_000_000.9).attest(b"\x01" * 32)
    claims = simulation.verify(
        evidence,
        anchors=VENDOR_ROOTS[Platform.SIMULATION],
        now=FakeSimulation.now,
        steps=Steps(simulation.STEPS),
    )
    assert claims.report_data == b"\x01" * 32 + bytes(32)
    assert claims.issued_at.timestamp() == 1_780_000_000
    assert claims.weaknesses == {"simulated"}
    assert claims.measurements == {"measurement": source_digest()}


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_only_a_binding_is_attested(size):
    """Nothing is padded or cut silently."""
    with pytest.raises(ConfigurationError, match="expected 32 bytes"):
        SimulationAttester().attest(bytes(size))


def test_no_sealing_key():
    """Simulation keeps no secret from the machine's owner, and does not pretend to."""
    assert SimulationAttester().sealing_key() is None


def test_source_digest_covers_the_sources():
    """The stand-in measurement changes with every byte of the package's sources."""
    root = resources.files("blindai")
    names = ["errors.py", "attestation/wire.py"]
    assert all(root.joinpath(name).is_file() for name in names)
    assert len(source_digest()) == hashlib.sha256().digest_size
    assert source_digest() == source_digest()


def test_create_attester():
    """An attester is made by its platform's name; nothing falls back to simulation."""
    assert create_attester("simulation").platform is Platform.SIMULATION
    for name in ("", "auto", "Simulation", "sev"):
        with pytest.raises(ConfigurationError, match="expected one of"):
            create_attester(name)


def test_keys_are_platforms():
    """Each attester is listed under the platform that its evidence names."""
    assert set(ATTESTERS) <= set(Platform)
    assert SimulationAttester().attest(bytes(32)).platform is Platform.SIMULATION
