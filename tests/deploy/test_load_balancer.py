"""Two servers behind a real HAProxy, by the configuration in `deploy/haproxy`: TLS ends in them."""

import shutil
import socket
import subprocess
import time
from contextlib import contextmanager

import numpy as np
import pytest

import blindai
from blindai.testing.server import start_server
from tests.deploy.programs import DEPLOY
from tests.inference.models import identity
from tests.ports import free_ports

pytestmark = [
    pytest.mark.filterwarnings("ignore::blindai.SimulationWarning"),
    pytest.mark.skipif(shutil.which("haproxy") is None, reason="HAProxy is not installed"),
]
CONFIGURATION = DEPLOY / "haproxy" / "haproxy.cfg"
X = np.arange(4, dtype=np.float32)


def adapted(ports, servers):
    """Return the configuration as it is delivered, but for addresses."""
    text = CONFIGURATION.read_text()
    attested, grpc = ports
    replaced = {
        "bind :50051": f"bind 127.0.0.1:{attested}",
        "bind :50053": f"bind 127.0.0.1:{grpc}",
    }
    for name, server in zip(("10.0.0.11", "10.0.0.12"), servers, strict=True):
        replaced[f"{name}:50051"] = server.address
        replaced[f"{name}:50053"] = server.grpc_address
    for old, new in replaced.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    return text


@contextmanager
def in_front_of(servers, folder):
    """Yield the address of a HAProxy that passes connections on to these servers."""
    ports = free_ports(2)
    path = folder / "haproxy.cfg"
    path.write_text(adapted(ports, servers))
    process = subprocess.Popen(["haproxy", "-db", "-f", path])
    try:
        wait_for(ports[0])
        yield f"localhost:{ports[0]}"
    finally:
        process.terminate()
        process.wait(20)


def wait_for(port):
    """Return when something listens."""
    until = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            assert time.monotonic() < until, "HAProxy does not listen"
            time.sleep(0.05)
        else:
            return


def shown(client):
    """Return the keyset of the server that a client talks to."""
    return client.evidence.bundle.keyset


def ask_until_answered(client):
    """Return an answer as soon as HAProxy has seen which server is gone."""
    until = time.monotonic() + 20
    while True:
        try:
            return client.run_model("m", {"x": X}).y
        except blindai.ConnectionFailed:
            assert time.monotonic() < until
            time.sleep(0.2)


def test_a_client_stays_with_one_server_and_moves_when_it_goes(tmp_path):
    """All its connections meet the same keys; after a loss it verifies those of the other."""
    models = {"m": identity()}
    with (
        start_server(models=models) as one,
        start_server(models=models) as two,
        in_front_of([one, two], tmp_path) as address,
        blindai.connect(address, simulation=True) as client,
    ):
        results = client.run_many("m", [{"x": X + i} for i in range(40)])
        assert all(np.array_equal(result.y, X + i) for i, result in enumerate(results))
        with blindai.connect(one.address, simulation=True) as direct:
            first, other = (one, two) if shown(direct) == shown(client) else (two, one)
        first.stop()
        assert np.array_equal(ask_until_answered(client), X)
        with blindai.connect(other.address, simulation=True) as direct:
            assert shown(direct) == shown(client)
