"""Models that are not public, on the command line: only with a key that opens them."""

from datetime import UTC, datetime

import numpy as np
import pytest

from blindai.server.access.keys import create_key
from blindai.server.access.principal import Scope
from blindai.server.access.rules import AccessRules, Quota
from blindai.testing import start_server


@pytest.fixture
def place(tmp_path):
    """Yield a server's address and the key of its one tenant."""
    path = tmp_path / "keys.json"
    scopes = {Scope.RUN, Scope.LIST, Scope.UPLOAD}
    _, key = create_key(path, name="ward 7", scopes=scopes, now=datetime.now(UTC), tenant="ward")
    rules = AccessRules(public=frozenset(), listed=False, api_keys=path, tenants={"ward": Quota()})
    with start_server(config={"access": rules}) as server:
        yield server.address, key


def test_a_tenants_own_model(place, blindai, model_file, tmp_path):
    """It is uploaded, listed and run with the key, and is not there without it."""
    address, key = place
    at = ("--server", address, "--simulation")
    np.save(tmp_path / "x.npy", np.ones((1, 4), np.float32))
    run = ("run", "own", *at, "--input", f"x={tmp_path / 'x.npy'}")
    assert blindai("upload", model_file, "--name", "own", *at, "--token", key).returncode == 0
    assert "own" in blindai("models", *at, "--token", key).stdout
    assert "2.0" in blindai(*run, "--token", key).stdout
    without = blindai(*run)
    assert without.returncode == 4
    assert "ModelNotFound" in without.stderr
    assert "AccessDenied" in blindai("models", *at).stderr
    assert key not in without.stderr + without.stdout
