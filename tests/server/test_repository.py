"""The model repository: what comes in, by which name, and what never does."""

import base64
import json
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blindai.errors import InvalidInput
from blindai.server.model_config import ConfigWish
from blindai.server.repository import (
    MODEL_FILE,
    LoadCall,
    parse_index,
    parse_load,
    parse_unload,
)
from blindai.testing.server import start_server
from tests.inference.models import add
from tests.server.talk import authorized, infer_body, request

LOAD = "/v2/repository/models/{}/load"
UNLOAD = "/v2/repository/models/{}/unload"


@pytest.fixture(scope="module")
def server():
    """A server with one model, that takes small bodies only."""
    with start_server(models={"first": add(1.0)}, max_body_bytes=100_000) as running:
        yield running


def load_body(model: bytes | None = None, **parameters) -> bytes:
    if model is not None:
        parameters[MODEL_FILE] = base64.b64encode(model).decode()
    return json.dumps({"parameters": parameters}).encode()


def load(server, name, body, *, token=True):
    return request(server, "POST", LOAD.format(name), body, authorized(server) if token else {})


def names(server, body=b""):
    index = request(server, "POST", "/v2/repository/index", body).json()
    assert all((e["version"], e["state"], e["reason"]) == ("1", "READY", "") for e in index)
    return [entry["name"] for entry in index]


def plus(server, name):
    """Return what a model adds to 1."""
    answer = request(server, "POST", f"/v2/models/{name}/infer", infer_body([1.0])).json()
    return answer["outputs"][0]["data"][0] - 1


def test_load_and_unload(server):
    """A model comes in with the request that loads it, replaces one of its name, and goes."""
    for constant in (2.0, 3.0):
        reply = load(server, "mine", load_body(add(constant), config="{}"))
        assert (reply.status, reply.body) == (200, b"")
        assert plus(server, "mine") == constant
    assert names(server) == names(server, b'{"ready":true}') == ["first", "mine"]
    body = b'{"parameters":{"unload_dependents":true}}'
    reply = request(server, "POST", UNLOAD.format("mine"), body, authorized(server))
    assert (reply.status, reply.body) == (200, b"")
    assert names(server) == ["first"]
    reply = request(server, "POST", UNLOAD.format("mine"), b"", authorized(server))
    assert (reply.status, reply.error) == (404, "ModelNotFound")


def test_load_what_is_here(server):
    """Without a file, loading says whether the model is here, as it is asked for."""
    assert load(server, "first", b"").status == 200
    config = json.dumps({"name": "first", "backend": "onnxruntime"})
    assert load(server, "first", load_body(config=config)).status == 200
    assert load(server, "first", load_body(config='{"backend":"python"}')).status == 400
    assert load(server, "nowhere", b"{}").error == "ModelNotFound"


def test_needs_the_token(server):
    """Loading and unloading need the right to manage; the index does not."""
    for path in (LOAD, UNLOAD):
        reply = request(server, "POST", path.format("first"), load_body(add(9.0)))
        assert (reply.status, reply.error) == (401, "AccessDenied")
    assert names(server) == ["first"]
    assert plus(server, "first") == 1.0


@pytest.mark.parametrize("name", ["..%2Fx", "%2e%2e", ".hidden", "a%00b", "ab" * 32])
def test_names_that_no_model_can_have(server, name):
    """A name never becomes a path, and a strange one never a name."""
    reply = load(server, name, load_body(add(4.0)))
    assert (reply.status, reply.error) == (400, "InvalidInput")


def test_no_model_in_the_file(server):
    """A file that is no model is refused as in an upload, and nothing is left of it."""
    reply = load(server, "broken", load_body(b"no model"))
    assert (reply.status, reply.error) == (422, "InvalidModel")
    assert names(server) == ["first"]


def test_too_large(server):
    """A body beyond the limit is refused before it is read."""
    reply = load(server, "large", load_body(bytes(100_000)))
    assert (reply.status, reply.error) == (413, "LimitExceeded")
    assert request(server, "POST", "/v2/repository/index", bytes(70_000)).status == 413


@pytest.mark.parametrize(
    "name",
    [
        "file:../x",
        "file:1/../../x",
        "file:/etc/passwd",
        "file:1/model.onnx/",
        "file:1\\model.onnx",
        "file:2/model.onnx",
        "file:1/weights.bin",
        "file:",
        "FILE:1/model.onnx",
        "file:1/model.onnx\0",
        "unknown",
        "",
    ],
)
def test_other_files(server, name):
    """There is one file, of one name; any other is refused, and not looked at."""
    body = json.dumps({"parameters": {name: base64.b64encode(add(4.0)).decode()}}).encode()
    with pytest.raises(InvalidInput, match=MODEL_FILE):
        parse_load(body)
    assert load(server, "other", body).status == 400


@pytest.mark.parametrize(
    "text", ["QUJ", "QU JD", "QUJD\n", "Q-_D", "QUI=QUI=", "=", "*", "ÄÖÜ=", 5, None, ["QUJD"]]
)
def test_wrong_base64(text):
    """Base64 has one form: no spaces, no missing or doubled padding, no other alphabet."""
    with pytest.raises(InvalidInput, match="base64"):
        parse_load(json.dumps({"parameters": {MODEL_FILE: text}}).encode())


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"null",
        b"{",
        b"\xff",
        b'{"parameters":[]}',
        b'{"parameters":{"config":{}}}',
        b'{"parameters":{"config":NaN}}',
        b'{"parameters":' + b"[" * 100_000,
    ],
)
def test_no_request_to_load(body):
    """What is no request is InvalidInput."""
    with pytest.raises(InvalidInput):
        parse_load(body)


@pytest.mark.parametrize(
    "body", [b"[]", b'{"parameters":{"unload_dependents":1}}', b'{"parameters":{"force":true}}']
)
def test_no_request_to_unload(body):
    """An unloading has one parameter, of one type."""
    with pytest.raises(InvalidInput):
        parse_unload(body)


@pytest.mark.parametrize("body", [b"[]", b'{"ready":1}', b"ready"])
def test_no_request_for_the_index(body):
    """An index can be asked to be of ready models, and nothing else."""
    with pytest.raises(InvalidInput):
        parse_index(body)


@given(st.binary())
def test_model_comes_as_it_was(model):
    """The bytes of the file arrive as they are, whatever they are."""
    assert parse_load(load_body(model, config="{}")) == LoadCall(ConfigWish(), model)


@given(
    st.binary()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ).map(lambda value: json.dumps({"parameters": value}).encode())
)
@example(b'{"parameters":{"config":"\\ud800"}}')
def test_garbage(body):
    """Whatever the bytes, each parser reads them or raises InvalidInput."""
    for parse in (parse_load, parse_unload, parse_index):
        with suppress(InvalidInput):
            parse(body)
