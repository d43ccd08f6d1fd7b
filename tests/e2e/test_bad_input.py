"""Each bad input of the first milestone: a clear error, nothing lost, and the server lives."""

import json
import ssl
import time
from contextlib import closing

import numpy as np
import pytest

from blindai.channel.tls import unverified_context
from blindai.testing.server import start_server
from tests.inference.models import add, identity
from tests.server.talk import (
    ask,
    authorized,
    connect,
    infer_body,
    raw,
    request,
    status_of,
    tcp,
    tls,
)

INFER = "/v2/models/m/infer"
LIMIT = 1_000_000


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("bad-input") / "store"


@pytest.fixture(scope="module")
def server(store):
    limits = {"max_body_bytes": LIMIT, "max_model_bytes": LIMIT, "header_timeout": 1.0}
    with start_server(models={"m": identity()}, config={"store": store}, **limits) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_is_lost(server, store):
    """After each test the model still answers, and no file is left but its own."""
    yield
    reply = request(server, "POST", INFER, infer_body([1.0, 2.0]))
    assert reply.json()["outputs"][0]["data"] == [1.0, 2.0]
    ends = time.monotonic() + 5
    while list(store.glob(".upload*")) and time.monotonic() < ends:
        time.sleep(0.05)
    digest = request(server, "GET", "/v2/models/m").json()["parameters"]["sha256"]
    assert {path.name for path in store.iterdir() if path.stat().st_size} == {f"{digest}.onnx"}


@pytest.mark.parametrize(
    "data", [b"", b"some text", b"PK\x03\x04zip", bytes(1000), add()[:-20], b"\xff" * 5000]
)
def test_not_onnx(server, data):
    """What is no ONNX model is 422, and the message says what came."""
    reply = request(server, "PUT", "/blindai/v1/models/bad", data, authorized(server))
    assert (reply.status, reply.error) == (422, "InvalidModel")
    assert "came" in reply.json()["error"] or "cannot load" in reply.json()["error"]


@pytest.mark.parametrize("framing", ["Content-Length: 500", "Transfer-Encoding: chunked"])
def test_truncated_upload(server, framing):
    """An upload that ends early leaves nothing behind."""
    start = (
        f"PUT /blindai/v1/models/bad HTTP/1.1\r\nHost: a\r\n{framing}\r\n"
        f"Authorization: Bearer {server.token}\r\n\r\n"
    )
    body = b"a0\r\n" + add()[:50] if "chunked" in framing else add()[:50]
    with tls(server) as connection:
        connection.sendall(start.encode() + body)
        time.sleep(0.2)
    assert request(server, "GET", "/v2/models/bad").status == 404


def test_wrong_content_length(server):
    """A body shorter than announced is no request, and neither is the rest of a longer one."""
    body = infer_body([1.0])
    head = "POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n"
    with tls(server) as connection:
        connection.sendall(head.format(len(body) + 1).encode() + body)
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.recv(100)
    answer = raw(server, head.format(len(body) - 1).encode() + body)
    assert status_of(answer) == 400
    assert b'"outputs"' not in answer


@pytest.mark.parametrize(("method", "path"), [("POST", INFER), ("PUT", "/blindai/v1/models/bad")])
def test_two_gigabytes_announced(server, method, path):
    """A body announced beyond the limit is 413 at once, before any of it is sent."""
    began = time.monotonic()
    with closing(connect(server)) as connection:
        connection.putrequest(method, path)
        connection.putheader("Content-Length", str(2 << 30))
        connection.putheader("Authorization", f"Bearer {server.token}")
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status == 413
        assert json.loads(answer.read())["type"] == "LimitExceeded"
        assert answer.getheader("connection") == "close"
    assert time.monotonic() - began < 1.5


@pytest.mark.parametrize(("method", "path"), [("POST", INFER), ("PUT", "/blindai/v1/models/bad")])
def test_two_gigabytes_chunked(server, method, path):
    """A body that grows beyond the limit is 413, and the server soon stops to read it."""
    chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
    sent = 0
    with tls(server) as connection:
        connection.sendall(
            f"{method} {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
            f"Authorization: Bearer {server.token}\r\n\r\n".encode()
        )
        connection.settimeout(5)
        try:
            while sent < 2 << 30:
                connection.sendall(chunk)
                sent += len(chunk)
        except OSError:
            pass
        assert sent < 200 << 20
        answer = connection.recv(100_000)
    assert status_of(answer) == 413


def test_an_upload_beyond_the_limit_that_pauses(server):
    """A client that waits after too many bytes, without an end, is told 413 all the same."""
    chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
    with tls(server) as connection:
        connection.sendall(
            b"PUT /blindai/v1/models/bad HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
            b"Authorization: Bearer " + server.token.encode() + b"\r\n\r\n"
        )
        for _ in range(LIMIT // 65536 + 1):
            connection.sendall(chunk)
        connection.settimeout(8)
        assert status_of(connection.recv(100_000)) == 413


def test_header_bomb(server):
    """Headers beyond the limit are 431."""
    reply = request(server, "GET", "/v2", headers={"X": "a" * 50_000})
    assert (reply.status, reply.error) == (431, "LimitExceeded")


def test_slowloris(server):
    """A client that never ends its headers is cut off in bounded time."""
    began = time.monotonic()
    answer = raw(server, b"GET /v2 HTTP/1.1\r\nX: ")
    assert status_of(answer) == 408
    assert time.monotonic() - began < 6


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[NaN]}]}',
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1' + b"0" * 400 + b"]}]}",
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[' + b"9" * 10_000 + b"]}]}",
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":'
        + b"[" * 10_000
        + b"1"
        + b"]" * 10_000
        + b"}]}",
        infer_body([1.0], shape=[-1]),
        infer_body([1.0], shape=[2**63]),
        infer_body([], shape=[2**63, 0]),
        infer_body([1.0], shape=[2**32, 2**32]),
        infer_body([1.0], shape=[2]),
        infer_body([1.0], shape=[1] * 100),
        infer_body([1.0], name="other"),
        infer_body([1], datatype="INT64"),
        b"\xff\xfe\xfd",
        b"",
    ],
)
def test_bad_json(server, body):
    """NaN, huge integers, depth 10,000 and impossible shapes are 400 with a reason."""
    reply = request(server, "POST", INFER, body)
    assert (reply.status, reply.error) == (400, "InvalidInput")


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0x7F800000, 0xFF800000])
def test_nan_and_infinity_everywhere(server, bits):
    """In binary they come back bit for bit; JSON has none, and the error says what has."""
    data = np.full(1000, bits, np.uint32).tobytes()
    parameters = {"binary_data_size": len(data)}
    entry = {"name": "x", "datatype": "FP32", "shape": [1000], "parameters": parameters}
    for binary in (True, False):
        document = {"inputs": [entry], "parameters": {"binary_data_output": binary}}
        header = json.dumps(document).encode()
        headers = {"Inference-Header-Content-Length": str(len(header))}
        reply = request(server, "POST", INFER, header + data, headers)
        if binary:
            assert reply.status == 200
            assert reply.body[int(reply.headers["inference-header-content-length"]) :] == data
        else:
            assert (reply.status, reply.error) == (400, "InvalidInput")
            assert "binary data" in reply.json()["error"]


@pytest.mark.parametrize(("shape", "size"), [([2], 4), ([2], 7), ([2], 12), ([2**61], 8)])
def test_tensor_bytes_that_do_not_match(server, shape, size):
    """Bytes that the shape does not describe are 400."""
    parameters = {"binary_data_size": size}
    entry = {"name": "x", "datatype": "FP32", "shape": shape, "parameters": parameters}
    header = json.dumps({"inputs": [entry]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(header))}
    reply = request(server, "POST", INFER, header + bytes(size), headers)
    assert (reply.status, reply.error) == (400, "InvalidInput")


@pytest.mark.parametrize("length", ["-1", "1e3", "99999999999999999999", "0", "5000", "x"])
def test_bad_header_length(server, length):
    """A JSON header that is not inside the body is 400."""
    headers = {"Inference-Header-Content-Length": length}
    reply = request(server, "POST", INFER, infer_body([1.0]), headers)
    assert (reply.status, reply.error) == (400, "InvalidInput")


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "%2e%2e",
        "..%2f..%2fetc%2fpasswd",
        "a%2Fb",
        "a%00b",
        "a" * 4096,
        "%ff",
        ".hidden",
        "a%0Ab",
    ],
)
def test_bad_model_name(server, name):
    """No name becomes a path: it is refused for an upload and unknown otherwise."""
    path = f"/blindai/v1/models/{name}"
    assert request(server, "PUT", path, add(), authorized(server)).error == "InvalidInput"
    for method, bad in [("DELETE", path), ("GET", f"/v2/models/{name}")]:
        assert request(server, method, bad, headers=authorized(server)).status == 404


def test_unknown_model(server):
    """An unknown model is 404, also where a large body comes with the request."""
    reply = request(server, "POST", "/v2/models/nope/infer", bytes(LIMIT))
    assert (reply.status, reply.error) == (404, "ModelNotFound")


def test_plain_http_on_the_tls_port(server):
    """Plain HTTP on the TLS port gets no answer that could be taken for one."""
    with tcp(server) as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n")
        assert not connection.recv(100).startswith(b"HTTP")


def test_tls_1_2(server):
    """A TLS 1.2 client is refused in the handshake."""
    context = unverified_context()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    with tcp(server) as connection, pytest.raises(ssl.SSLError):
        context.wrap_socket(connection)


def test_many_bad_requests_on_one_connection(server):
    """A connection survives requests that were wrong but complete."""
    with closing(connect(server)) as connection:
        for _ in range(20):
            assert ask(connection, "POST", INFER, b"{}").status == 400
        assert ask(connection, "POST", INFER, infer_body([1.0])).status == 200
