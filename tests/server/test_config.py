"""Settings that cannot work are refused before anything starts."""

from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path

import pytest

from blindai.attestation.model import Platform
from blindai.errors import ConfigurationError
from blindai.server.access.rules import AccessRules
from blindai.server.config import Limits, ModelToLoad, ServerConfig

CONFIG = ServerConfig(platform=Platform.SIMULATION)


@pytest.mark.parametrize("name", [item.name for item in fields(Limits)])
def test_limits_are_positive(name):
    """No limit may be 0: that would be a server that serves nothing, or one without a limit."""
    for value in (0, -1, float("nan")):
        with pytest.raises(ConfigurationError, match=name):
            Limits(**{name: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"port": -1},
        {"public_port": 65_536},
        {"port": 50052},
        {"grpc_port": 50051},
        {"grpc_port": -1},
        {"threads": -1},
        {"runs": -1},
        {"max_batch": 0},
        {"key_lifetime": timedelta(seconds=1)},
    ],
)
def test_impossible_settings(changes):
    """Impossible ports, threads and times are refused."""
    with pytest.raises(ConfigurationError):
        replace(CONFIG, **changes)


def test_digest_says_what_matters_to_a_client():
    """Platform and key lifetime change the digest; addresses and limits do not."""
    assert len(CONFIG.digest()) == 32
    for same in ({"port": 1}, {"host": "::1"}, {"limits": Limits(max_models=1)}):
        assert replace(CONFIG, **same).digest() == CONFIG.digest()
    rules = {"access": AccessRules(uploads=False)}
    pinned = {"load": (ModelToLoad(name="m", path=Path("m"), sha256="ab" * 32),)}
    for other in (rules, pinned):
        assert replace(CONFIG, **other).digest() != CONFIG.digest()
    for other in ({"platform": Platform.TDX}, {"key_lifetime": timedelta(days=1)}):
        assert replace(CONFIG, **other).digest() != CONFIG.digest()


def test_names_for_the_certificate():
    """The address is named where it is one, and each name once."""
    assert CONFIG.certificate_names == ("127.0.0.1", "localhost")
    assert replace(CONFIG, host="0.0.0.0").certificate_names == ("localhost",)
    assert replace(CONFIG, host="localhost").certificate_names == ("localhost",)
