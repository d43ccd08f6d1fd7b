"""A server starts whole or says why not, and ends in order."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import timedelta

import pytest
from onnx import TensorProto, helper

from blindai.attestation.model import Platform
from blindai.attesters.simulation import SimulationAttester
from blindai.channel.tls import unverified_context
from blindai.errors import ConfigurationError, InvalidModel
from blindai.server.access import Access, generate_token
from blindai.server.config import ServerConfig
from blindai.server.run import serve
from blindai.testing.server import start_server
from tests.inference.models import add, identity, model, slow, value
from tests.server.talk import ask, connect, infer_body, request, tcp, tls
from tests.server.test_service import SLOW, slow_body

SERVER = """
import sys
from datetime import timedelta
from pathlib import Path
from blindai.attestation.model import Platform
from blindai.attesters.simulation import SimulationAttester
from blindai.server.access import Access
from blindai.server.config import Limits, ServerConfig
from blindai.server.run import run

config = ServerConfig(platform=Platform.SIMULATION, port=0, public_port=0,
                      grpc_port=0, models=Path(sys.argv[1]),
                      limits=Limits(shutdown_grace=float(sys.argv[2])))
run(config, SimulationAttester(), access=Access("0123456789abcdef"),
    on_ready=lambda ready: print(ready.address[1], ready.public_address[1], flush=True))
"""


class Subprocess:
    """A server in a process of its own."""

    def __init__(self, models, grace: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", SERVER, str(models), str(grace)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        ports = self.process.stdout.readline().split()
        assert ports, self.process.stderr.read()
        self.address, self.public_address = (f"127.0.0.1:{port}" for port in ports)

    def kill(self) -> None:
        """End it in any case; what ended before is not disturbed."""
        self.process.kill()
        self.process.communicate()

    def end(self) -> str:
        """Wait for the end, which has to be a good one, and return what was logged."""
        _, logged = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, logged
        return logged


@pytest.fixture
def launch(models):
    """Start servers in processes of their own, with so many seconds of grace."""
    launched = []

    def launch(grace: float) -> Subprocess:
        launched.append(Subprocess(models, grace))
        return launched[-1]

    yield launch
    for server in launched:
        server.kill()


@pytest.fixture
def models(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "slow.onnx").write_bytes(slow())
    (folder / "m.onnx").write_bytes(identity())
    return folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_lets_a_running_request_end(launch, number):
    """After a signal the run under way is answered, new requests are refused, exit is 0."""
    server = launch(60)
    replies = []
    running = threading.Thread(
        target=lambda: replies.append(request(server, "POST", SLOW, slow_body(250)))
    )
    with closing(connect(server)) as kept_alive:
        assert ask(kept_alive, "GET", "/v2/health/ready").status == 200
        running.start()
        time.sleep(1.0)
        server.process.send_signal(number)
        time.sleep(0.3)
        refused = ask(kept_alive, "POST", "/v2/models/m/infer", infer_body([1.0]))
    assert (refused.status, refused.error) == (503, "Overloaded")
    assert refused.headers["connection"] == "close"
    with pytest.raises(ConnectionRefusedError):
        tcp(server)
    running.join()
    assert replies[0].status == 200
    assert server.end() == ""


def test_signal_stops_what_takes_too_long(launch):
    """A run that outlasts the grace is stopped, its client is told, and exit is 0."""
    server = launch(0.5)
    replies = []
    running = threading.Thread(
        target=lambda: replies.append(request(server, "POST", SLOW, slow_body(4000)))
    )
    running.start()
    time.sleep(3.0)
    began = time.monotonic()
    server.process.terminate()
    assert server.end() == ""
    assert time.monotonic() - began < 10
    running.join()
    assert (replies[0].status, replies[0].error) == (503, "Overloaded")


def test_signal_ends_what_cannot_be_stopped(launch, models):
    """One operator that runs for long stops for nobody; its client is told, and exit is 0."""
    (models / "stuck.onnx").write_bytes(one_long_operator())
    server = launch(grace=0.5)
    with closing(connect(server)) as connection:
        size = {"name": "x", "datatype": "INT64", "shape": [2], "data": [9000, 9000]}
        body = json.dumps({"inputs": [size], "parameters": {"timeout": 4_000_000}})
        assert ask(connection, "POST", "/v2/models/stuck/infer", body).status == 504
        began = time.monotonic()
        server.process.terminate()
        assert "run_does_not_end" in server.end()
        assert time.monotonic() - began < 20


def one_long_operator() -> bytes:
    """Return a product of matrices as large as the input says: half a minute for 9,000 each way."""
    zero = helper.make_tensor("zero", TensorProto.DOUBLE, [1], [0.0])
    nodes = [
        helper.make_node("ConstantOfShape", ["x"], ["zeros"], value=zero),
        helper.make_node("MatMul", ["zeros", "zeros"], ["product"]),
        helper.make_node("ReduceMax", ["product"], ["y"], keepdims=0),
    ]
    inputs = [value("x", TensorProto.INT64, [2])]
    outputs = [value("y", TensorProto.DOUBLE, [])]
    return model(nodes, inputs, outputs).SerializeToString()


def test_signal_ends_a_stalled_upload(launch):
    """An upload that does not go on holds nothing up beyond the grace."""
    server = launch(0.5)
    with tls(server) as connection:
        connection.sendall(
            b"PUT /blindai/v1/models/a HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n"
            b"Authorization: Bearer 0123456789abcdef\r\n\r\nabc"
        )
        time.sleep(0.5)
        server.process.terminate()
        began = time.monotonic()
        assert server.end() == ""
        assert time.monotonic() - began < 10


def test_no_core_dump(launch):
    """A process that serves never leaves its memory on a disk."""
    server = launch(1)
    with open(f"/proc/{server.process.pid}/limits") as file:  # noqa: PTH123
        (line,) = (line for line in file if line.startswith("Max core file size"))
    assert line.split()[4:6] == ["0", "0"]
    server.process.terminate()
    server.end()


@pytest.mark.parametrize("which", ["port", "public_port", "grpc_port"])
def test_port_in_use(which):
    """A port that is taken is named, with what can be done; the other one is free again."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        told = pytest.raises(ConfigurationError, match=f"port {port}.*{which}")
        with told, start_server(config={which: port}):
            pass


def test_address_of_another_machine():
    """An address that is not this machine's is refused with advice."""
    for host in ("203.0.113.1", "no-such-host.invalid"):
        told = pytest.raises(ConfigurationError, match="host")
        with told, start_server(config={"host": host}):
            pass


class BrokenAttester(SimulationAttester):
    """Hardware that does not answer."""

    def attest(self, report_data):
        msg = "the hardware does not answer"
        raise ConfigurationError(msg)


def test_attester_that_cannot_attest():
    """A server whose hardware does not answer says so at its start."""
    told = pytest.raises(ConfigurationError, match="does not answer")
    with told, start_server(attester=BrokenAttester()):
        pass


async def test_attester_of_another_platform():
    """The platform that was named is the one that attests, or nothing starts."""
    config = ServerConfig(platform=Platform.TDX, port=0, public_port=0, grpc_port=0)
    with pytest.raises(ConfigurationError, match=r"for tdx.*for simulation"):
        await serve(config, SimulationAttester(), access=Access(generate_token()), on_ready=print)


async def test_hardware_needs_a_store_in_memory(monkeypatch):
    """On real hardware, models' files never go to a disk that nobody named."""

    class PretendedHardware(SimulationAttester):
        platform = Platform.TDX

    monkeypatch.setattr(os, "access", lambda *_: False)
    config = ServerConfig(platform=Platform.TDX, port=0, public_port=0, grpc_port=0)
    with pytest.raises(ConfigurationError, match="memory"):
        await serve(config, PretendedHardware(), access=Access(generate_token()), on_ready=print)


def test_models_of_a_folder(models, caplog):
    """Models of a folder are served from the start; a bad one is reported, not fatal."""
    (models / "bad.onnx").write_bytes(b"no model")
    with start_server(config={"models": models}) as server:
        names = {m["name"] for m in request(server, "GET", "/blindai/v1/models").json()["models"]}
        assert names == {"slow", "m"}
    assert any("model_refused file=bad.onnx error=InvalidModel" in text for text in caplog.messages)


def test_model_that_cannot_be_loaded():
    """The testing server says at its start that a model is none."""
    with pytest.raises(InvalidModel), start_server(models={"m": b"no model"}):
        pass


def test_store_is_removed(tmp_path):
    """Models' files are in the store while the server runs, and gone afterwards."""
    store = tmp_path / "store"
    with start_server(models={"m": add()}, config={"store": store}):
        assert [path.suffix for path in store.glob("*.onnx")] == [".onnx"]
    assert list(store.glob("*.onnx")) == []


def test_keys_are_renewed():
    """After half of their life, new connections get new keys; open ones keep theirs a while."""
    with (
        start_server(config={"key_lifetime": timedelta(seconds=4)}) as server,
        tls(server) as first,
        closing(connect(server)) as open_one,
    ):
        old = new = first.getpeercert(binary_form=True)
        ask(open_one, "GET", "/v2")
        ends = time.monotonic() + 20
        while new == old:
            assert time.monotonic() < ends
            time.sleep(0.3)
            with unverified_context().wrap_socket(tcp(server)) as connection:
                new = connection.getpeercert(binary_form=True)
        assert ask(open_one, "GET", "/v2").status == 200


def test_no_request_data_in_the_log(caplog):
    """Whatever is asked, names, values and tokens of requests are not in the log."""
    caplog.set_level("DEBUG")
    with start_server(models={"m": identity()}) as server:
        request(server, "POST", "/v2/models/m/infer", infer_body([123456.0], id="secret-id"))
        request(server, "POST", "/v2/models/secret-model/infer", b"secret-body")
        request(server, "PUT", "/blindai/v1/models/secret-model", b"secret-body")
        headers = {"Authorization": f"Bearer {server.token}"}
        request(server, "PUT", "/blindai/v1/models/secret-model", add(), headers)
        request(server, "GET", "/secret-path?secret=1")
        with tcp(server) as connection:
            connection.sendall(b"secret")
        token = server.token
    logged = "\n".join(caplog.messages)
    assert "ready platform=simulation simulated=True" in logged
    for secret in ("secret", "123456", token):
        assert secret not in logged


def test_no_thread_is_left():
    """A server that stopped has no thread, no socket and no file left."""
    with start_server(models={"m": identity()}):
        pass
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with start_server(models={"m": identity()}) as server:
        request(server, "GET", "/v2")
    assert [t.name for t in threading.enumerate() if t.name.startswith("blindai-run")] == []
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208
