"""Results are made by verification alone; the vocabulary is consistent."""

import copy
import dataclasses
import hashlib
import pickle

import pytest

from blindai.attestation.model import DEVICE_PLATFORMS, AttestationResult, Platform
from blindai.attestation.trust import VENDOR_ROOTS
from blindai.attestation.vocabulary import VOCABULARY
from blindai.attesters.simulation import PUBLIC_KNOWLEDGE_KEY
from blindai.platforms import VERIFIERS
from tests.servers import Server


def test_no_result_by_hand():
    """A result that `verify` did not make cannot be made from its parts."""
    good = Server().verify()
    parts = {field.name: getattr(good, field.name) for field in dataclasses.fields(good)}
    with pytest.raises(TypeError):
        AttestationResult(**parts)
    for impostor in (None, True, object()):
        with pytest.raises(TypeError, match="never by hand"):
            AttestationResult(**parts, _verified=impostor)


def test_no_result_from_another():
    """A verified result cannot be changed, copied with changes, or read from bytes."""
    good = Server().verify()
    with pytest.raises(dataclasses.FrozenInstanceError):
        good.certificate = b""
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(good, certificate=b"another server's")
    for make in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="verify again"):
            make(good)
    with pytest.raises(AttributeError):
        _ = good._verified


def test_words_for_a_person():
    """A result says in its first word when no hardware stands behind it."""
    result = Server().verify()
    assert result.simulated
    assert str(result).startswith("SIMULATED, not protected by hardware")
    assert "tolerated   simulated" in str(result)
    assert result.policy_digest.hex() in str(result)


@pytest.mark.parametrize("platform", Platform)
def test_every_platform_is_described(platform):
    """Each platform has words for policies and pinned roots with a source."""
    words = VOCABULARY[platform]
    assert all(names and names <= words.measurements for names in words.identity)
    assert words.identity or platform is Platform.SIMULATION
    assert not words.versions & words.measurements
    assert not words.knows_weakness("no such weakness")
    assert all(words.knows_weakness(name) for name in words.weaknesses)
    for anchor in VENDOR_ROOTS[platform]:
        assert len(anchor.sha256) == hashlib.sha256().digest_size
        assert anchor.name
        assert anchor.source
    assert VENDOR_ROOTS[platform]


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("INTEL-SA-00615", True),
        ("AMD-SB-3015", True),
        ("INTEL-SA-", False),
        ("INTEL-SA-00615\n", False),
        ("intel-sa-00615", False),
        ("debug,smt", False),
    ],
)
def test_advisories(name, known):
    """Advisories are known by their form, since vendors publish new ones every month."""
    assert VOCABULARY[Platform.SGX].knows_weakness(name) is known


def test_simulation_key_is_pinned():
    """The pinned simulation key is the public one, so `VENDOR_ROOTS` accepts the attester."""
    raw = PUBLIC_KNOWLEDGE_KEY.public_key().public_bytes_raw()
    assert VENDOR_ROOTS[Platform.SIMULATION][0].sha256 == hashlib.sha256(raw).digest()


def test_a_machine_stands_behind_every_server():
    """Some platform can be a server, and no device can."""
    assert set(VERIFIERS) - DEVICE_PLATFORMS
    assert Platform.SIMULATION not in DEVICE_PLATFORMS
