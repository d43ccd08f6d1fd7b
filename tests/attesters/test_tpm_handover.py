"""A secret for the code that runs next, with a real TPM in software."""

import hashlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blindai.attesters import Machine
from blindai.attesters.azure_vtpm import AzureAttester
from blindai.attesters.tpm import TpmAttester
from blindai.errors import ConfigurationError, SealedDataError

SECRET = bytes(range(32))


def attester(tpm, tmp_path):
    return TpmAttester(Machine(root=tmp_path, tpm=tpm.tcti))


def extended(value, content):
    """Return a PCR's value after an event was measured into it."""
    return hashlib.sha256(value + hashlib.sha256(content).digest()).digest()


@pytest.mark.parametrize("kind", [TpmAttester, AzureAttester])
def test_only_the_successor_opens_it(tpm, tmp_path, kind):
    """Not the code that sealed it, nor a third one: only the one that was named."""
    one = kind(Machine(root=tmp_path, tpm=tpm.tcti))
    blob = one.seal_for_successor(SECRET, {"pcr9": extended(bytes(32), b"next")})
    with pytest.raises(SealedDataError, match="for other code"):
        one.open_from_predecessor(blob)
    tpm.extend(9, b"next")
    assert one.open_from_predecessor(blob) == SECRET
    tpm.extend(8, b"and more")
    with pytest.raises(SealedDataError, match="for other code"):
        one.open_from_predecessor(blob)


def test_another_tpm(tpm, other_tpm, tmp_path):
    """It is of no use anywhere else."""
    blob = attester(tpm, tmp_path).seal_for_successor(SECRET, {})
    assert attester(tpm, tmp_path).open_from_predecessor(blob) == SECRET
    with pytest.raises(SealedDataError, match="another TPM"):
        attester(other_tpm, tmp_path).open_from_predecessor(blob)


@pytest.mark.parametrize(
    ("measurements", "says"),
    [
        ({"pcr10": bytes(32)}, "expected measurements out of .* came pcr10"),
        ({"measurement": bytes(32)}, "came measurement"),
        ({"pcr9": bytes(20)}, "expected 32 bytes, came 20"),
    ],
)
def test_measurements_that_cannot_be(tpm, tmp_path, measurements, says):
    """What the sealing key does not depend on cannot be named."""
    with pytest.raises(ConfigurationError, match=says):
        attester(tpm, tmp_path).seal_for_successor(SECRET, measurements)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.binary(max_size=200))
def test_any_blob(tpm, tmp_path, blob):
    """No bytes of the disk's owner make anything else of it."""
    with pytest.raises(SealedDataError):
        attester(tpm, tmp_path).open_from_predecessor(blob)
