"""Answers that are sent while they are made: what comes, when it ends, and who pays for it."""

import json
import socket
import time
from contextlib import closing

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.errors import InvalidInput
from blindai.inference.loops import Loop
from blindai.server.streaming import parse_loop
from blindai.testing.server import start_server
from tests.inference.loop_models import cell, decoder, doubling, frames
from tests.inference.models import one_node
from tests.server.talk import ask, authorized, connect, infer_body, raw, request, tls

MODELS = {
    "decoder": decoder(),
    "frames": frames(),
    "cell": cell(),
    "doubling": doubling(),
    "log": one_node("Log", {"x": (1, ["n"])}, (1, ["n"])),
}
DECODER = "/blindai/v1/models/decoder/stream"
PROMPT = np.array([[1, 2, 3], [4, 5, 6]], np.int64)
LOOP = {
    "state": {"past": "present"},
    "greedy": {"tokens": "scores"},
    "grow": ["mask"],
    "count": ["position"],
}


@pytest.fixture(scope="module")
def server():
    """A server with models for loops."""
    with start_server(models=MODELS, max_sequence_bytes=1 << 20, max_stream_steps=5000) as running:
        yield running


def tensor(name, array):
    array = np.asarray(array)
    datatype = {"int64": "INT64", "float32": "FP32"}[array.dtype.name]
    data = array.reshape(-1).tolist()
    return {"name": name, "datatype": datatype, "shape": array.shape, "data": data}


def decoder_body(max_steps=6, *, outputs=(), parameters=None, **loop) -> bytes:
    """Return a request for tokens of the decoder."""
    inputs = [
        tensor("tokens", PROMPT),
        tensor("mask", np.ones_like(PROMPT)),
        tensor("position", np.array([[2], [2]])),
    ]
    document = {
        "inputs": inputs,
        "outputs": [{"name": name} for name in outputs],
        "parameters": {"loop": LOOP | {"max_steps": max_steps} | loop, **(parameters or {})},
    }
    return json.dumps(document).encode()


def loop_body(inputs, **loop) -> bytes:
    """Return a request for a loop with some inputs."""
    return json.dumps({"inputs": inputs, "parameters": {"loop": loop}}).encode()


def events(reply) -> list[dict]:
    """Return the parts of an answer in JSON."""
    assert reply.status == 200, reply.body
    assert reply.headers["content-type"] == "text/event-stream"
    assert reply.body.endswith(b"\n\n")
    texts = reply.body.decode().removesuffix("\n\n").split("\n\n")
    return [json.loads(text.removeprefix("data: ")) for text in texts]


def frames_of(body: bytes) -> list[tuple[dict, bytes]]:
    """Return the parts of an answer in frames: JSON and tensors."""
    found = []
    while body:
        length, size = int.from_bytes(body[:4], "little"), int.from_bytes(body[4:12], "little")
        found.append((json.loads(body[12 : 12 + length]), body[12 + length : 12 + length + size]))
        body = body[12 + length + size :]
    return found


def reference(steps: int) -> tuple[list, list]:
    """Return tokens and scores of the bare engine in a loop."""
    session = onnxruntime.InferenceSession(MODELS["decoder"])
    tokens, mask, position = PROMPT, np.ones_like(PROMPT), np.array([[2], [2]])
    past = np.zeros((2, 0, 4), np.float32)
    found, every = [], []
    for _ in range(steps):
        feed = {"tokens": tokens, "mask": mask, "position": position, "past": past}
        scores, past = session.run(["scores", "present"], feed)
        tokens = scores[:, -1].argmax(-1)[:, None]
        mask = np.concatenate([mask, np.ones((2, 1), np.int64)], 1)
        position = position + 1
        found.append(tokens.reshape(-1).tolist())
        every.append(scores)
    return found, every


def test_tokens_are_those_of_a_loop_around_the_engine(server):
    """Each event has the next tokens, the last one says why it is the last."""
    *parts, last = events(request(server, "POST", DECODER, decoder_body(20)))
    tokens, _ = reference(20)
    assert [part["outputs"][0]["data"] for part in parts] == tokens
    assert {part["outputs"][0]["name"] for part in parts} == {"tokens"}
    assert len({part["parameters"]["sha256"] for part in parts}) == 1
    assert last == {"final": True, "reason": "max_steps", "steps": 20}


def test_tensors_are_bit_for_bit_those_of_the_engine(server):
    """In frames, outputs come with the very bytes that the bare engine gives in a loop."""
    asked = decoder_body(9, outputs=["scores", "tokens"], parameters={"binary_data_output": True})
    reply = request(server, "POST", DECODER, asked)
    assert reply.headers["content-type"] == "application/x-blindai-frames"
    *parts, (last, nothing) = frames_of(reply.body)
    tokens, scores = reference(9)
    assert [data for _, data in parts] == [
        step.tobytes() + np.int64(best).tobytes() for step, best in zip(scores, tokens, strict=True)
    ]
    assert (last["reason"], nothing) == ("max_steps", b"")


def test_frames_of_sound(server):
    """A model that moves its past along gives a frame at a time, as the bare engine does."""
    past = np.linspace(-1, 1, 16, dtype=np.float32)[None]
    asked = loop_body([tensor("past", past)], max_steps=50, state={"past": "present"})
    *parts, _ = events(request(server, "POST", "/blindai/v1/models/frames/stream", asked))
    session = onnxruntime.InferenceSession(MODELS["frames"])
    expected = []
    for _ in range(50):
        sample, past = session.run(["sample", "present"], {"past": past})
        expected.append(sample.item())
    assert [part["outputs"][0]["data"] for part in parts] == [[value] for value in expected]


def test_inputs_that_nothing_feeds_stay(server):
    """What a loop does not mention is the same in each step."""
    x = np.float32([[1, -1, 0.5]])
    asked = loop_body([tensor("x", x)], max_steps=5, state={"h": "next_h"})
    *parts, _ = events(request(server, "POST", "/blindai/v1/models/cell/stream", asked))
    session = onnxruntime.InferenceSession(MODELS["cell"])
    h = np.zeros((1, 8), np.float32)
    for part in parts:
        y, h = session.run(["y", "next_h"], {"x": x, "h": h})
        assert np.float32(part["outputs"][0]["data"]).tobytes() == y.tobytes()


def test_stopping_tokens(server):
    """A loop ends when each row has had a token that stops."""
    tokens, _ = reference(30)
    stop = [tokens[3][0], tokens[7][1]]
    rows = [next(n for n, step in enumerate(tokens) if step[row] in stop) for row in range(2)]
    *parts, last = events(request(server, "POST", DECODER, decoder_body(30, stop=stop)))
    assert last == {"final": True, "reason": "stop", "steps": max(rows) + 1}
    assert len(parts) == max(rows) + 1


def test_parts_come_as_they_are_made(server):
    """The first part is there long before the last."""
    with closing(connect(server)) as connection:
        connection.request("POST", DECODER, decoder_body(2000))
        began = time.monotonic()
        answer = connection.getresponse()
        first = answer.readline()
        first_after = time.monotonic() - began
        assert first.startswith(b"data: ")
        assert b'"steps":2000' in answer.read()
        assert time.monotonic() - began > 2 * first_after


def test_a_connection_goes_on_afterwards(server):
    """After a streamed answer the connection serves others."""
    with closing(connect(server)) as connection:
        for _ in range(2):
            assert len(events(ask(connection, "POST", DECODER, decoder_body(3)))) == 4
        assert ask(connection, "GET", "/v2/models/decoder").status == 200


@pytest.mark.parametrize(
    "asked",
    [
        b"{}",
        infer_body([1.0]),
        decoder_body(0),
        decoder_body(5001),
        decoder_body(unknown=1),
        decoder_body(state={"past": 1}),
        decoder_body(state={"nope": "present"}),
        decoder_body(greedy={"mask": "nope"}),
        decoder_body(stop=[-1]),
        decoder_body(stop=[2**63]),
        decoder_body(stop=list(range(300))),
        decoder_body(grow=["mask"] * 2000),
        decoder_body(outputs=["nope"]),
        decoder_body(parameters={"receipt": True}),
        decoder_body(parameters={"sequence_id": 1, "sequence_end": True}),
        loop_body([tensor("tokens", PROMPT)], **LOOP, max_steps=1),
    ],
)
def test_what_is_refused_before_it_begins(server, asked):
    """What cannot be run is refused with a status, as any request is."""
    reply = request(server, "POST", DECODER, asked)
    assert (reply.status, reply.error) == (400, "InvalidInput")


def test_other_refusals(server):
    """No such model, binary outputs in events, and HTTP/1.0 are refused with a status."""
    missing = request(server, "POST", "/blindai/v1/models/nope/stream", decoder_body())
    assert missing.status == 404
    document = json.loads(decoder_body())
    document["outputs"] = [{"name": "scores", "parameters": {"binary_data": True}}]
    assert request(server, "POST", DECODER, json.dumps(document)).status == 400
    data = decoder_body()
    old = b"POST %s HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % (DECODER.encode(), len(data))
    assert b" 400 " in raw(server, old + data).split(b"\r\n")[0]


def test_not_a_number(server):
    """NaN, which JSON has not, ends events with an error; frames carry it."""
    path = "/blindai/v1/models/log/stream"
    asked = loop_body([tensor("x", np.float32([0.5]))], max_steps=3, state={"x": "y"})
    *parts, last = events(request(server, "POST", path, asked))
    assert len(parts) == 1
    assert last["type"] == "InvalidInput"
    document = json.loads(asked)
    document["parameters"]["binary_data_output"] = True
    *parts, (last, _) = frames_of(request(server, "POST", path, json.dumps(document)).body)
    assert np.isnan(np.frombuffer(parts[2][1], np.float32)).all()
    assert last["final"]


def test_state_that_grows_without_bound(server):
    """State that outgrows its limit ends the answer with an error, and nothing else."""
    path = "/blindai/v1/models/doubling/stream"
    asked = json.loads(loop_body([tensor("x", np.float32([1]))], max_steps=100, state={"x": "y"}))
    asked["parameters"]["binary_data_output"] = True
    parts = frames_of(request(server, "POST", path, json.dumps(asked)).body)
    assert parts[-1][0]["type"] == "LimitExceeded"
    assert len(parts) < 24


def test_a_model_that_goes_away(server):
    """A model that is deleted under way ends the answer with an error; its name leads nowhere."""
    path = "/blindai/v1/models/gone"
    put = request(server, "PUT", path, MODELS["decoder"], authorized(server))
    assert put.status in {200, 201}
    # The same weights under another name would keep them: these are others.
    other = decoder(vocabulary=13)
    request(server, "PUT", f"{path}?replace=true", other, authorized(server))
    with closing(connect(server)) as connection:
        connection.request("POST", f"{path}/stream", decoder_body(5000))
        answer = connection.getresponse()
        assert answer.readline().startswith(b"data: {")
        assert request(server, "DELETE", path, headers=authorized(server)).status == 204
        assert b"ModelNotFound" in answer.read().split(b"data: ")[-1]


def post(path, data) -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (
        path.encode(),
        len(data),
        data,
    )


def test_a_client_that_leaves():
    """When a client goes away its loop ends, and what it held is there for others."""
    limits = {"max_sequences": 1, "max_stream_steps": 10**6}
    with start_server(models=MODELS, **limits) as server:
        with tls(server) as connection:
            connection.sendall(post(DECODER, decoder_body(10**6)))
            assert b" 200 " in connection.recv(4096)
            assert request(server, "POST", DECODER, decoder_body(1)).status == 503
            connection.shutdown(socket.SHUT_RDWR)
        ends = time.monotonic() + 5
        while (status := request(server, "POST", DECODER, decoder_body(1)).status) != 200:
            assert status == 503
            assert time.monotonic() < ends
            time.sleep(0.05)


def runs_of(server) -> int:
    """Return how often the decoder has run."""
    (stats,) = request(server, "GET", "/v2/models/decoder/stats").json()["model_stats"]
    return stats["execution_count"]


def test_a_client_that_reads_a_byte_a_second():
    """Who does not take the answer stops the loop, and is cut off in time."""
    limits = {"max_sequences": 1, "body_timeout": 3.0, "max_stream_steps": 10**6}
    with start_server(models=MODELS, **limits) as server, tls(server) as connection:
        connection.sendall(post(DECODER, decoder_body(10**6, outputs=["present"])))
        time.sleep(2)
        before = runs_of(server)
        time.sleep(0.5)
        assert runs_of(server) == before
        assert request(server, "POST", DECODER, decoder_body(1)).status == 503
        ends = time.monotonic() + 20
        while request(server, "POST", DECODER, decoder_body(1)).status != 200:
            assert time.monotonic() < ends
            time.sleep(1)
            connection.recv(1)


def test_others_have_their_turn():
    """While long answers are made, a single run waits for steps and not for answers."""
    limits = {"max_stream_steps": 10**6}
    with start_server(models=MODELS, config={"runs": 1}, **limits) as server:
        streams = [tls(server) for _ in range(3)]
        try:
            for connection in streams:
                connection.sendall(post(DECODER, decoder_body(10**6)))
            path = "/v2/models/log/infer"
            began = time.monotonic()
            for _ in range(10):
                assert request(server, "POST", path, infer_body([1.0])).status == 200
            assert time.monotonic() - began < 5
        finally:
            for connection in streams:
                connection.close()


def test_a_time_limit():
    """An answer that takes longer than it may ends with an error."""
    limits = {"max_stream_time": 0.5, "max_stream_steps": 10**6}
    with start_server(models=MODELS, **limits) as server:
        *_, last = events(request(server, "POST", DECODER, decoder_body(10**6)))
        assert last["type"] == "DeadlineExceeded"


def test_a_server_that_stops():
    """A server that is told to stop ends answers under way with an error, in time."""
    limits = {"max_stream_steps": 10**6, "shutdown_grace": 0.5}
    with start_server(models=MODELS, **limits) as server, tls(server) as connection:
        connection.sendall(post(DECODER, decoder_body(10**6)))
        connection.recv(1)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 10


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["max_steps", "state", "greedy", "grow", "count", "stop", "x"]),
                inner,
            )
        ),
    )
)
def test_parameters_are_a_loop_or_refused(value):
    """Whatever the parameter, it is a loop within bounds, or `InvalidInput`."""
    try:
        found = parse_loop(value, 10)
    except InvalidInput:
        return
    assert isinstance(found, Loop)
    assert 1 <= found.max_steps <= 10
