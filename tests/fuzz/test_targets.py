"""Whatever bytes come, every parser gives a value or the error that it announces.

The corpus holds what fuzzing found worth keeping, and every crash that it ever found.
"""

import random
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
every_target = pytest.mark.parametrize("name", TARGETS)
# Each of some thousand bytes is a signature more to verify.
SLOW = {name for name in TARGETS if name.startswith(("evidence-", "http"))}
SECONDS = 0.3


@every_target
def test_what_an_honest_peer_sends_is_taken(name):
    """A target whose seeds are all refused would fuzz nothing but the refusal."""
    assert any(TARGETS[name].try_one(seed) for seed in TARGETS[name].seeds())


@every_target
def test_corpus(name):
    """What was found before is read again: values or announced errors, and in time."""
    for path in sorted((CORPUS / name).glob("*")):
        began = time.monotonic()
        TARGETS[name].try_one(path.read_bytes())
        assert time.monotonic() - began < 20, path


def test_corpus_has_no_strangers():
    """Every folder of the corpus is some target's."""
    assert {path.name for path in CORPUS.iterdir()} <= set(TARGETS)


@every_target
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=400))
def test_any_bytes(name, data):
    """Bytes that are nothing in particular."""
    TARGETS[name].try_one(data)


@every_target
def test_damaged_seeds(name):
    """What an honest peer sends, with a byte changed, cut, doubled or taken away."""
    dice = random.Random(name)
    target = TARGETS[name]
    seeds = list(target.seeds())
    ends = time.monotonic() + SECONDS
    tried = 0
    while time.monotonic() < ends or tried < 10:
        data = bytearray(dice.choice(seeds))
        for _ in range(dice.randrange(1, 4)):
            where = dice.randrange(len(data)) if data else 0
            match dice.randrange(5):
                case 0 if data:
                    data[where] ^= 1 << dice.randrange(8)
                case 1:
                    del data[where:]
                case 2:
                    data[where:where] = data[where : where + dice.randrange(64)]
                case 3:
                    del data[where : where + dice.randrange(16)]
                case _:
                    data[where : where + 4] = dice.choice(
                        [b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"]
                    )
        target.try_one(bytes(data))
        tried += 1
