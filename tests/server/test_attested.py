"""Every path of the attested port, over real sockets."""

import gzip
import json
import zlib
from contextlib import closing
from datetime import UTC, datetime

import numpy as np
import pytest

from blindai.attestation import wire
from blindai.attestation.policy import Policy
from blindai.channel.tls import unverified_context
from blindai.inference.tensors import DataType, Tensor, to_bytes
from blindai.server.open_inference import EXTENSIONS
from blindai.testing.server import start_server
from blindai.verify import verify
from tests.inference.models import ELEMENTS, add, identity
from tests.server.talk import (
    ask,
    authorized,
    connect,
    infer_body,
    public_request,
    request,
    tcp,
)

INFER = "/v2/models/identity-fp32/infer"


def binary_body(tensor: Tensor, **parameters) -> tuple[bytes, dict[str, str]]:
    data = bytes(to_bytes(tensor))
    entry = {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": tensor.shape,
        "parameters": {"binary_data_size": len(data)},
    }
    header = json.dumps({"inputs": [entry], "parameters": parameters}).encode()
    return header + data, {"Inference-Header-Content-Length": str(len(header))}


def test_says_what_it_is(server):
    """GET /v2 names the server and the extensions it implements; HEAD sends no body."""
    reply = request(server, "GET", "/v2")
    assert reply.status == 200
    assert reply.json()["name"] == "blindai"
    assert reply.json()["extensions"] == list(EXTENSIONS)
    assert reply.headers["server"] == "blindai"
    assert request(server, "HEAD", "/v2").body == b""


def test_health(server):
    """A server that serves is alive and ready, on both ports."""
    for ask_port in (request, public_request):
        assert ask_port(server, "GET", "/v2/health/live").status == 200
        assert ask_port(server, "GET", "/v2/health/ready").status == 200


def test_evidence_verifies_on_the_attested_port(server):
    """Evidence with the caller's nonce is bound to the key that the connection ends at."""
    nonce = bytes(range(32))
    with closing(connect(server)) as connection:
        connection.connect()
        peer = connection.sock.getpeercert(binary_form=True)
        reply = ask(connection, "GET", f"/blindai/v1/evidence?nonce={nonce.hex()}")
    assert reply.headers["content-type"] == wire.MEDIA_TYPE
    result = verify(
        wire.parse_bundle(reply.body),
        Policy.simulation(),
        nonce=nonce,
        now=datetime.now(UTC),
        peer_certificate=peer,
    )
    assert result.simulated


def test_evidence_without_a_nonce_is_cached(server):
    """Without a nonce, everybody gets the same bundle."""
    first = request(server, "GET", "/blindai/v1/evidence").body
    assert first == request(server, "GET", "/blindai/v1/evidence").body
    wire.parse_bundle(first)


@pytest.mark.parametrize("nonce", ["", "00", "g" * 64, "0" * 63, " " * 64, "%C3%A9" * 64])
def test_bad_nonce(server, nonce):
    """A nonce that is not 64 hexadecimal digits is refused."""
    reply = request(server, "GET", f"/blindai/v1/evidence?nonce={nonce.replace(' ', '%20')}")
    assert (reply.status, reply.error) == (400, "InvalidInput")


def test_model_metadata_by_name_and_digest(server):
    """A model is described under its name, its version, and the SHA-256 of its file."""
    by_name = request(server, "GET", "/v2/models/identity-fp32").json()
    assert by_name["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1]}]
    assert by_name["platform"] == "onnxruntime_onnx"
    digest = by_name["parameters"]["sha256"]
    assert by_name["parameters"]["size"] == len(identity())
    by_digest = request(server, "GET", f"/v2/models/{digest}/versions/1").json()
    assert by_digest["outputs"] == by_name["outputs"]
    assert request(server, "GET", "/v2/models/identity-fp32/ready").status == 200


def test_unknown_model(server):
    """Whatever is asked of an unknown model, the answer is ModelNotFound."""
    for method, path in [
        ("GET", "/v2/models/nope"),
        ("GET", "/v2/models/nope/ready"),
        ("POST", "/v2/models/nope/infer"),
    ]:
        reply = request(server, method, path)
        assert (reply.status, reply.error) == (404, "ModelNotFound")


def test_unknown_path_and_method(server):
    """Another path is 404, another method 405 with the ones there are."""
    assert request(server, "GET", "/v2/nope").status == 404
    assert request(server, "GET", "/v2/models/identity-fp32/versions/2").status == 404
    reply = request(server, "POST", "/blindai/v1/models/x")
    assert reply.status == 405
    assert reply.headers["allow"] == "PUT, DELETE"


def test_infer_in_json(server):
    """A JSON request gets a JSON answer, with the caller's id and the model's SHA-256."""
    reply = request(server, "POST", INFER, infer_body([1, 2.5, -3], id="mine"))
    document = reply.json()
    assert reply.headers["content-type"] == "application/json"
    assert document["id"] == "mine"
    assert document["model_name"] == "identity-fp32"
    assert document["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [3], "data": [1.0, 2.5, -3.0]}
    ]
    metadata = request(server, "GET", "/v2/models/identity-fp32").json()
    assert document["parameters"]["sha256"] == metadata["parameters"]["sha256"]


@pytest.mark.parametrize("datatype", list(ELEMENTS))
def test_infer_in_binary(server, datatype):
    """Every datatype goes through the binary extension and comes back bit for bit."""
    if datatype is DataType.BYTES:
        array = np.array([b"", b"text", "é".encode()], dtype=object)
    elif datatype is DataType.BOOL:
        array = np.array([True, False, True])
    else:
        array = np.array([0, 1, 100]).astype(datatype.numpy)
    tensor = Tensor("x", array, datatype)
    body, headers = binary_body(tensor, binary_data_output=True)
    reply = request(server, "POST", f"/v2/models/identity-{datatype.lower()}/infer", body, headers)
    assert reply.status == 200, reply.body
    length = int(reply.headers["inference-header-content-length"])
    (output,) = json.loads(reply.body[:length])["outputs"]
    assert output["datatype"] == datatype
    assert output["parameters"]["binary_data_size"] == len(reply.body) - length
    assert reply.body[length:] == bytes(to_bytes(tensor))


def test_large_tensors_arrive_unchanged(server):
    """Bodies of several megabytes, known in length or chunked, come back bit for bit."""
    array = np.random.default_rng(1).random(1_000_003, np.float32)
    body, headers = binary_body(Tensor("x", array, DataType.FP32), binary_data_output=True)
    for data in (body, iter([body[:70_000], body[70_000:]])):
        reply = request(server, "POST", INFER, data, headers)
        length = int(reply.headers["inference-header-content-length"])
        assert reply.body[length:] == array.tobytes()


def test_upload_list_delete(server):
    """A model is uploaded, listed, run and deleted again."""
    data = add(3.0)
    path = "/blindai/v1/models/adder"
    reply = request(server, "PUT", path, data, authorized(server))
    assert reply.status == 201
    record = reply.json()
    assert record["name"] == "adder"
    assert record["size"] == len(data)
    assert request(server, "PUT", path, data, authorized(server)).status == 200
    listed = request(server, "GET", "/blindai/v1/models").json()["models"]
    assert record in listed
    assert datetime.fromisoformat(record["loaded_at"]).tzinfo is not None
    answer = request(server, "POST", "/v2/models/adder/infer", infer_body([1.0])).json()
    assert answer["outputs"][0]["data"] == [4.0]
    reply = request(server, "DELETE", path, headers=authorized(server))
    assert (reply.status, reply.body) == (204, b"")
    assert "content-length" not in reply.headers
    assert request(server, "DELETE", path, headers=authorized(server)).error == "ModelNotFound"


def test_chunked_upload(server):
    """A chunked upload is taken like any other."""
    data = add(4.0)
    path = "/blindai/v1/models/chunked"
    halves = iter([data[:40], data[40:]])
    assert request(server, "PUT", path, halves, authorized(server)).status == 201
    assert request(server, "DELETE", path, headers=authorized(server)).status == 204


def test_name_taken_by_other_weights(server):
    """Other weights under a taken name are a conflict, unless replacing is asked for."""
    path = "/blindai/v1/models/taken"
    assert request(server, "PUT", path, add(5.0), authorized(server)).status == 201
    reply = request(server, "PUT", path, add(6.0), authorized(server))
    assert (reply.status, reply.error) == (409, "ModelConflict")
    assert request(server, "PUT", f"{path}?replace=maybe", add(6.0), authorized(server)).status == (
        400
    )
    reply = request(server, "PUT", f"{path}?replace=true", add(6.0), authorized(server))
    assert reply.status == 201
    assert request(server, "DELETE", path, headers=authorized(server)).status == 204


def test_announced_digest(server):
    """An upload whose SHA-256 is not the announced one is refused, and nothing is kept."""
    headers = authorized(server, **{"X-BlindAI-SHA256": "00" * 32})
    reply = request(server, "PUT", "/blindai/v1/models/other", add(7.0), headers)
    assert (reply.status, reply.error) == (400, "InvalidInput")
    assert request(server, "GET", "/v2/models/other").status == 404


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer not-the-token-of-it"},
        {"Authorization": "Basic dTpw"},
    ],
)
def test_no_token_no_upload(server, headers):
    """Uploading and deleting need the token; the answer says so before the body is read."""
    for method in ("PUT", "DELETE"):
        body = b"x" * 100_000 if method == "PUT" else None
        reply = request(server, method, "/blindai/v1/models/identity-fp32", body, headers)
        assert (reply.status, reply.error) == (401, "AccessDenied")
        assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("DEFLATE", zlib.compress)])
def test_compressed_request(server, coding, pack):
    """A compressed body is what it stands for; the length of its JSON is without the coding."""
    array = np.arange(100_000, dtype=np.float32)
    body, headers = binary_body(Tensor("x", array, DataType.FP32), binary_data_output=True)
    for chunked in (False, True):
        data = iter([pack(body)]) if chunked else pack(body)
        reply = request(server, "POST", INFER, data, {**headers, "Content-Encoding": coding})
        assert "content-encoding" not in reply.headers
        length = int(reply.headers["inference-header-content-length"])
        assert reply.body[length:] == array.tobytes()


@pytest.mark.parametrize(
    ("coding", "unpack"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)]
)
def test_compressed_answer(server, coding, unpack):
    """An answer is compressed for who names one coding; a refusal never is."""
    values = [1.0] * 1000
    plain = request(server, "POST", INFER, infer_body(values))
    reply = request(server, "POST", INFER, infer_body(values), {"Accept-Encoding": coding})
    assert reply.headers["content-encoding"] == coding
    assert len(reply.body) == int(reply.headers["content-length"]) < len(plain.body)
    assert unpack(reply.body) == plain.body
    several = {"Accept-Encoding": "gzip, deflate"}
    assert request(server, "POST", INFER, infer_body(values), several).body == plain.body
    refusal = request(server, "POST", INFER, b"x" * 5000, {"Accept-Encoding": coding})
    assert (refusal.status, refusal.error) == (400, "InvalidInput")


@pytest.mark.parametrize(
    ("coding", "body", "status", "error"),
    [
        ("gzip", b"\x1f\x8b", 400, "InvalidInput"),
        ("gzip", b"{}", 400, "InvalidInput"),
        ("gzip", gzip.compress(gzip.compress(infer_body([1.0]))), 400, "InvalidInput"),
        ("deflate", gzip.compress(infer_body([1.0])), 400, "InvalidInput"),
        ("gzip", gzip.compress(infer_body([1.0])) + b"x", 400, "InvalidInput"),
        ("deflate", zlib.compress(bytes(300 << 20), 9), 413, "LimitExceeded"),
        ("br", b"", 415, "InvalidInput"),
        ("gzip, gzip", b"", 415, "InvalidInput"),
        ("identity, gzip", b"", 415, "InvalidInput"),
        ("", b"", 415, "InvalidInput"),
    ],
)
def test_compressed_nonsense(server, coding, body, status, error):
    """What is in no coding, in two, or in another one is refused; a bomb at the limit."""
    reply = request(server, "POST", INFER, body, {"Content-Encoding": coding})
    assert (reply.status, reply.error) == (status, error)


def test_compressed_upload_is_refused(server):
    """A model comes as it is: what is hashed is what was sent."""
    headers = authorized(server) | {"Content-Encoding": "gzip"}
    reply = request(server, "PUT", "/blindai/v1/models/zipped", gzip.compress(add()), headers)
    assert (reply.status, reply.error) == (415, "InvalidInput")


def test_classification_through_the_server(server):
    """An output can be asked for as its highest classes, in JSON and in binary."""
    for binary in (False, True):
        wish = {"name": "y", "parameters": {"classification": 2, "binary_data": binary}}
        reply = request(server, "POST", INFER, infer_body([1.0, 8.5, -3.0], outputs=[wish]))
        length = int(reply.headers.get("inference-header-content-length", len(reply.body)))
        (output,) = json.loads(reply.body[:length])["outputs"]
        assert (output["datatype"], output["shape"]) == ("BYTES", [2])
        if binary:
            assert reply.body[length:] == b"\x05\0\0\x008.5:1\x05\0\0\x001.0:0"
        else:
            assert output["data"] == ["8.5:1", "1.0:0"]


def test_config(server):
    """A model's configuration names what it takes and returns."""
    for path in ("config", "versions/1/config"):
        config = request(server, "GET", f"/v2/models/identity-bytes/{path}").json()
        assert config["name"] == "identity-bytes"
        assert config["max_batch_size"] == 0
        assert config["input"] == [{"name": "x", "data_type": "TYPE_STRING", "dims": [-1]}]
    assert request(server, "GET", "/v2/models/nope/config").error == "ModelNotFound"


def test_plain_http_on_the_tls_port(server):
    """Plain HTTP on the TLS port ends the connection, and the server lives."""
    with tcp(server) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"HTTP" not in connection.recv(1000)
    assert request(server, "GET", "/v2").status == 200


def test_new_keys_after_a_restart():
    """A restarted server has the same address and another key."""
    with start_server() as server:
        keys = []
        for _ in range(2):
            with unverified_context().wrap_socket(tcp(server)) as connection:
                keys.append(connection.getpeercert(binary_form=True))
            address = server.address
            server.restart()
            assert server.address == address
        assert keys[0] != keys[1]
