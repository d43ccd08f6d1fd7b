"""The verbs, on both clients."""

from __future__ import annotations

import hashlib
import io
import socket
import threading
import time
import warnings

import numpy as np
import pytest

import blindai
from blindai.attestation import wire
from tests.client.fakes import FakeServer, as_json, error

ROW = np.array([[1, 2]], np.float32)


def test_runs_a_model_and_returns_arrays(connect, server):
    """Inputs by name, by position and alone give the same outputs, however they are read."""
    client = connect(server.address)
    for inputs in ({"x": ROW}, [ROW], ROW, [[1.0, 2.0]]):
        result = client.run_model("double", inputs)
        np.testing.assert_array_equal(result["y"], ROW * 2)
    assert (result.model, result.model_sha256) == ("double", server.sha256)
    assert result.y is result[0]


def test_metadata_is_asked_for_once(connect, server):
    """What a model expects is remembered: a second run is one request."""
    client = connect(server.address)
    client.run_model("double", ROW)
    client.run_model("double", ROW)
    assert [method for method, _ in server.verbs] == ["GET", "POST", "POST"]


def test_metadata_is_refreshed_when_the_model_changed(connect, server):
    """Inputs that fit the new model under an old name are accepted after one look."""
    client = connect(server.address)
    client.run_model("double", ROW)
    server.spec["datatype"] = "INT64"
    server.sha256 = "33" * 32
    result = client.run_model("double", np.array([[1, 2]], np.int64))
    assert result["y"].tolist() == [[2, 4]]
    assert result.model_sha256 == "33" * 32


def test_inputs_that_do_not_fit_are_not_sent(connect, server):
    """A wrong shape is found before anything leaves, also the second time."""
    client = connect(server.address)
    for _ in range(2):
        with pytest.raises(blindai.InvalidInput, match="dimension 1 is 3 instead of 2"):
            client.run_model("double", np.zeros((1, 3), np.float32))
    assert all(method == "GET" for method, _ in server.verbs)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a%2Fb", "a b", "x" * 129, "a?b", "ü", "a\r\nb"])
def test_names_that_are_none_are_not_sent(connect, server, name):
    """What could be anything but a name in a URL is refused here."""
    client = connect(server.address)
    for verb in (client.model, client.delete_model, lambda n: client.run_model(n, ROW)):
        with pytest.raises(blindai.InvalidInput):
            verb(name)
    assert server.verbs == []


def test_unknown_outputs_are_not_asked_for(connect, server):
    """An output that the model has not is refused with those that it has."""
    client = connect(server.address)
    with pytest.raises(blindai.InvalidInput, match="out of y"):
        client.run_model("double", ROW, outputs=["z"])
    with pytest.raises(blindai.InvalidInput, match="list of names"):
        client.run_model("double", ROW, outputs="y")
    client.run_model("double", ROW, outputs=["y"])
    assert b'"outputs":[{"name":"y"' in server.requests[-1][3]


def test_lists_and_describes_models(connect, server):
    """`models()` and `model()` say what there is and what it expects."""
    client = connect(server.address)
    [listed], one = client.models(), client.model("double")
    assert (listed.name, listed.sha256, listed.size) == (one.name, one.sha256, one.size)
    assert (str(one.inputs[0]), str(one.outputs[0])) == ("FP32[?, 2]", "FP32[?, 2]")
    assert listed.engine == "onnxruntime"
    assert listed.loaded_at is not None
    with pytest.raises(blindai.ModelNotFound):
        client.model("nope")


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "file", "stream"])
def test_uploads_from_whatever_holds_a_model(connect, server, tmp_path, kind):
    """Paths, bytes, files and streams of unknown length arrive whole."""
    content = hashlib.sha256(b"seed").digest() * 70_000
    path = tmp_path / "covid.net.onnx"
    path.write_bytes(content)

    class Stream:
        def __init__(self):
            self.inner = io.BytesIO(content)

        def read(self, size):
            return self.inner.read(min(size, 100_001))

    model = {
        "path": lambda: path,
        "text": lambda: str(path),
        "bytes": lambda: content,
        "file": lambda: io.BytesIO(b"skipped" + content),
        "stream": Stream,
    }[kind]()
    if kind == "file":
        model.seek(len(b"skipped"))
    name = None if kind in {"path", "text"} else "m"
    reported = []
    client = connect(server.address, token="0123456789abcdef")
    info = client.upload_model(model, name, replace=True, progress=lambda *a: reported.append(a))
    method, target, headers, body = server.requests[-1]
    assert (method, body == content) == ("PUT", True)
    assert target == f"/blindai/v1/models/{name or 'covid.net'}?replace=true"
    assert headers["authorization"] == "Bearer 0123456789abcdef"
    assert info.sha256 == hashlib.sha256(content).hexdigest()
    assert reported[-1] == (len(content), None if kind == "stream" else len(content))


def test_upload_that_arrives_changed(connect, server):
    """A server that says it holds other bytes than were sent is not believed to have them."""
    server.answer = lambda *_: as_json(201, server.record("44" * 32))
    with pytest.raises(blindai.InferenceError, match="do not use it"):
        connect(server.address).upload_model(b"model", "m")


def test_upload_stops_when_the_server_refuses(connect, server):
    """A refusal is read and raised though most of the body was never sent."""

    def refuse(sock):
        body = b'{"error": "too large", "type": "LimitExceeded"}'
        sock.sendall(b"HTTP/1.1 413 X\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        time.sleep(0.3)

    class Endless:
        taken = 0

        def read(self, size):
            Endless.taken += size
            return bytes(size)

    with Refusing(refuse) as address, pytest.raises(blindai.LimitExceeded, match="too large"):
        connect(address).upload_model(Endless(), "m")
    assert Endless.taken < 64 << 20


class Refusing:
    """A server that answers an upload at its head, and reads nothing more."""

    def __init__(self, refuse):
        self.refuse = refuse

    def __enter__(self):
        self.server = FakeServer()
        original = self.server._one

        def one(sock, file):
            if file.peek(3)[:3] == b"PUT":
                while file.readline().strip():
                    pass
                self.refuse(sock)
                return False
            return original(sock, file)

        self.server._one = one
        return self.server.address

    def __exit__(self, *_):
        self.server.__exit__()


def test_upload_of_a_file_that_shrinks(connect, server, tmp_path):
    """A file that loses bytes while it is sent is an error, and the server gets no whole body."""
    path = tmp_path / "m.onnx"
    path.write_bytes(bytes(5 << 20))

    def truncate(sent, size):
        with path.open("r+b") as file:
            file.truncate(2 << 20)

    with pytest.raises(blindai.ConfigurationError, match="changed while it was sent"):
        connect(server.address, timeout=5).upload_model(path, progress=truncate)
    assert "PUT" not in [method for method, _ in server.verbs]


@pytest.mark.parametrize("model", ["/nowhere/m.onnx", 7])
def test_uploads_that_cannot_be_read(connect, server, model):
    """A missing file or another type is a ConfigurationError."""
    with pytest.raises(blindai.ConfigurationError):
        connect(server.address).upload_model(model, "m")


def test_bytes_need_a_name(connect, server):
    """Bytes have no file name to take one from."""
    with pytest.raises(blindai.InvalidInput, match="pass name="):
        connect(server.address).upload_model(b"model")


def test_deletes_with_the_token_that_was_passed(connect, server):
    """A verb's own token goes before the client's."""
    connect(server.address, token="c" * 16).delete_model("double", token="v" * 16)
    method, target, headers, _ = server.requests[-1]
    assert (method, target) == ("DELETE", "/blindai/v1/models/double")
    assert headers["authorization"] == "Bearer " + "v" * 16


@pytest.mark.parametrize("token", ["", "a b", "a\r\nX: y", "ü" * 16])
def test_tokens_that_are_none(connect, server, token):
    """A token that could not stand in a header is refused before anything is sent."""
    with pytest.raises(blindai.ConfigurationError) as caught:
        connect(server.address, token=token)
    assert not token or token not in str(caught.value)
    assert server.requests == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, blindai.AccessDenied),
        (404, blindai.ModelNotFound),
        (409, blindai.ModelConflict),
        (413, blindai.LimitExceeded),
        (422, blindai.InvalidModel),
        (504, blindai.DeadlineExceeded),
        (500, blindai.InferenceError),
    ],
)
def test_errors_have_the_class_that_the_server_names(connect, server, status, kind):
    """Each error of a server arrives as its class, with its words."""
    server.answer = lambda *_: error(status, kind.__name__, "the reason")
    with pytest.raises(kind, match="the reason") as caught:
        connect(server.address).models()
    assert type(caught.value) is kind


def test_overloaded_says_when_to_come_back(connect, server):
    """Retry-After becomes `retry_after`."""
    status, headers, body = error(503, "Overloaded", "busy")
    server.answer = lambda *_: (status, {**headers, "Retry-After": "7"}, body)
    with pytest.raises(blindai.Overloaded) as caught:
        connect(server.address).models()
    assert caught.value.retry_after == 7.0


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(connect, server, status):
    """A redirect is an error, and the place it names sees no connection."""
    with FakeServer() as elsewhere:
        location = {"Location": f"https://{elsewhere.address}/v2"}
        server.answer = lambda *_: (status, location, b"")
        with pytest.raises(blindai.ConnectionFailed, match="never followed"):
            connect(server.address).models()
        assert elsewhere.connections == 0


def test_redirected_evidence_is_not_followed(connect, server):
    """Evidence is taken from the server itself only."""
    with FakeServer() as elsewhere:
        head = f"HTTP/1.1 302 X\r\nLocation: https://{elsewhere.address}/\r\n"
        misanswer(server, f"{head}Content-Length: 0\r\n\r\n".encode())
        with pytest.raises(blindai.ConnectionFailed, match="redirects are never followed"):
            connect(server.address)
        assert elsewhere.connections == 0


def misanswer(server, data, *, then=None):
    """Make the server answer requests for evidence with raw bytes."""

    def one(sock, file):
        while file.readline().strip():
            pass
        sock.sendall(data)
        if then is not None:
            then(sock)
        return False

    server._one = one


EVIDENCE_HEAD = f"HTTP/1.1 200 OK\r\nContent-Type: {wire.MEDIA_TYPE}\r\n".encode()


@pytest.mark.parametrize("evidence", [b"", b"\xff", b"\xa0", b"not cbor at all", bytes(1000)])
def test_malformed_evidence(connect, server, evidence):
    """Evidence that is none is an EvidenceError."""
    server.evidence = lambda nonce: evidence
    with pytest.raises(blindai.EvidenceError):
        connect(server.address)


def test_evidence_that_announces_to_be_too_large(connect, server):
    """A length above the limit is refused before a byte of it is read."""
    misanswer(server, EVIDENCE_HEAD + b"Content-Length: 4194305\r\n\r\n")
    with pytest.raises(blindai.EvidenceError, match="at most"):
        connect(server.address)


def test_endless_evidence(connect, server):
    """Chunks without end are refused at the limit, in bounded memory and time."""
    sent = [0]

    def flood(sock):
        chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
        for _ in range(10_000):
            sock.sendall(chunk)
            sent[0] += 65536

    misanswer(server, EVIDENCE_HEAD + b"Transfer-Encoding: chunked\r\n\r\n", then=flood)
    with pytest.raises(blindai.EvidenceError, match="at most"):
        connect(server.address)
    assert sent[0] < 64 << 20


def test_another_web_server(connect, server):
    """A page of some other server is an EvidenceError that says what came."""
    misanswer(server, b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi")
    with pytest.raises(blindai.EvidenceError, match="text/html"):
        connect(server.address)


def test_too_many_requests_for_evidence(connect, server):
    """A server that gives no fresh evidence now is Overloaded, not untrusted."""
    misanswer(server, b"HTTP/1.1 429 X\r\nRetry-After: 3\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(blindai.Overloaded) as caught:
        connect(server.address)
    assert caught.value.retry_after == 3.0


@pytest.mark.parametrize("trickle", [b"", b"H", b"X"])
def test_a_server_that_hangs(connect, server, trickle):
    """Silence, and one byte at a time, end at the timeout with ConnectionFailed."""
    stop = threading.Event()

    def hang(sock):
        while trickle and not stop.wait(0.1):
            sock.sendall(trickle)
        stop.wait(5)

    misanswer(server, trickle, then=hang)
    start = time.monotonic()
    try:
        with pytest.raises(blindai.ConnectionFailed, match=r"within 0\.5 s"):
            connect(server.address, timeout=0.5)
    finally:
        stop.set()
    assert time.monotonic() - start < 3


def test_a_model_that_takes_too_long(connect, server):
    """A run's timeout reaches the server, in microseconds, and the client waits no longer."""
    client = connect(server.address, timeout=0.5)
    client.model("double")
    server.answer = lambda *_: time.sleep(1.5)
    with pytest.raises(blindai.ConnectionFailed, match="within"):
        client.run_model("double", ROW)
    server.answer = server.serve_model
    client.run_model("double", ROW, timeout=0.25)
    assert b'"timeout":250000' in server.requests[-1][3]


def test_nobody_listens(connect):
    """A refused connection says what was tried."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(blindai.ConnectionFailed, match=f"nothing listens at 127.0.0.1:{port}"):
        connect(f"127.0.0.1:{port}")


def test_unknown_host(connect):
    """A name that leads nowhere says so."""
    with pytest.raises(blindai.ConnectionFailed, match="cannot find the address"):
        connect("nowhere.invalid:1")


def test_a_port_that_does_not_speak_tls(connect):
    """Plain HTTP on the port asks whether it is the unattested one."""

    def answer(listener):
        sock, _ = listener.accept()
        with sock:
            sock.recv(1024)
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        with pytest.raises(blindai.ConnectionFailed, match="unattested port"):
            connect(f"127.0.0.1:{listener.getsockname()[1]}")
        thread.join()


def test_answers_above_the_limit(connect, server):
    """An answer larger than `max_response_bytes` is not read to its end."""
    client = connect(server.address, max_response_bytes=10_000)
    server.answer = lambda *_: (200, {}, bytes(10_001))
    with pytest.raises(blindai.LimitExceeded, match="10000 bytes"):
        client.models()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 100_000, b'{"models": [{}]}', b"\xff"])
def test_malformed_answers(connect, server, body):
    """An answer of a verified server that makes no sense is an InferenceError."""
    server.answer = lambda *_: (200, {}, body)
    with pytest.raises(blindai.InferenceError, match="malformed"):
        connect(server.address).models()


def test_simulation_warns_where_it_is_asked_for(server):
    """`simulation=True` warns, at the line that says it."""
    with pytest.warns(blindai.SimulationWarning, match="no hardware") as caught:
        client = blindai.connect(server.address, simulation=True)
    client.close()
    assert caught[0].filename == __file__


async def test_simulation_warns_in_asyncio_too(server):
    """The asyncio client warns as well, at the line that enters it."""
    with pytest.warns(blindai.SimulationWarning) as caught:
        async with blindai.AsyncClient(server.address, simulation=True) as client:
            assert client.attestation.simulated
    assert caught[0].filename == __file__


def test_policy_and_simulation_contradict_each_other(connect, server):
    """Two policies at once are a ConfigurationError."""
    with pytest.raises(blindai.ConfigurationError, match="not both"):
        connect(server.address, policy="policy.toml", simulation=True)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_timeouts_that_are_none(connect, server, timeout):
    """A timeout is a positive number of seconds."""
    with pytest.raises(blindai.ConfigurationError):
        connect(server.address, timeout=timeout)


async def test_an_async_client_verifies_before_its_first_request(server):
    """Without "async with" nothing is known, and the first verb verifies."""
    client = blindai.AsyncClient(server.address, simulation=True)
    with pytest.raises(blindai.ConfigurationError, match="not verified yet"):
        _ = client.attestation
    with pytest.warns(blindai.SimulationWarning):
        assert len(await client.models()) == 1
    assert "SIMULATED" in repr(client)
    await client.close()


def test_one_client_in_many_threads(server):
    """Threads share a client; each gets its own answer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", blindai.SimulationWarning)
        client = blindai.connect(server.address, simulation=True)
    wrong = []

    def run(seed):
        for step in range(20):
            row = np.array([[seed, step]], np.float32)
            if not np.array_equal(client.run_model("double", row)["y"], row * 2):
                wrong.append((seed, step))

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.close()
    assert wrong == []


def test_shows_what_it_talks_to(connect, server):
    """The repr and the attestation say SIMULATED; the URL is for other libraries."""
    client = connect(server.address)
    assert "SIMULATED" in repr(client)
    assert str(client.attestation).startswith("SIMULATED")
    assert client.url == f"https://{server.address}"


def test_large_tensors_cross_in_both_directions(connect, server):
    """A body of many TLS records is sent from and received into whole buffers."""
    client = connect(server.address)
    big = np.arange(3_000_000, dtype=np.float32).reshape(-1, 2)
    result = client.run_model("double", big)["y"]
    np.testing.assert_array_equal(result, big * 2)
    assert result.flags.aligned
    assert result.flags.writeable
