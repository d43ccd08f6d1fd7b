"""Streamed answers and sequences, on both clients, against the real server and a false one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

import blindai
from blindai.client.streaming import End, Parts, Track
from blindai.errors import BlindAIError
from blindai.testing.server import start_server
from tests.inference.loop_models import cell, decoder, doubling, frames

MODELS = {"decoder": decoder(), "frames": frames(), "cell": cell(), "doubling": doubling()}
PROMPT = np.array([[1, 2, 3]], np.int64)
INPUTS = {"tokens": PROMPT, "mask": np.ones((1, 3), np.int64), "position": [[2]]}
LOOP = {
    "state": {"past": "present"},
    "greedy": {"tokens": "scores"},
    "grow": ["mask"],
    "count": ["position"],
}
STEPS = np.random.default_rng(7).standard_normal((5, 1, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def server():
    """A real server with models for loops."""
    limits = {"max_sequence_bytes": 1 << 20, "max_sequences": 4, "max_stream_steps": 10**6}
    with start_server(models=MODELS, **limits) as running:
        yield running


@pytest.fixture(params=["sync", "async"])
def use(request):
    """Return what calls a function of an async client with either kind of client."""

    def use(address, scenario, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", blindai.SimulationWarning)
            if "policy" not in options:
                options["simulation"] = True
            return asyncio.run(_used(request.param, address, scenario, options))

    return use


async def _used(kind, address, scenario, options):
    if kind == "async":
        async with blindai.AsyncClient(address, **options) as client:
            return await scenario(client)
    with blindai.connect(address, **options) as client:
        return await scenario(_Awaitable(client))


class _Awaitable:
    """A blocking client, or its sequence, whose verbs can be awaited."""

    def __init__(self, inner):
        self._inner = inner

    def stream(self, *args, **options):
        return _each(self._inner.stream(*args, **options))

    def sequence(self, *args, **options):
        return _Awaitable(self._inner.sequence(*args, **options))

    def __getattr__(self, name):
        async def call(*args, **options):
            return getattr(self._inner, name)(*args, **options)

        return call

    async def __aenter__(self):
        self._inner.__enter__()
        return self

    async def __aexit__(self, *error):
        self._inner.__exit__(*error)


async def _each(found):
    with contextlib.closing(found):
        for item in found:
            yield item


def reference(steps: int) -> list[np.ndarray]:
    """Return the scores of the bare engine in a loop."""
    session = onnxruntime.InferenceSession(MODELS["decoder"])
    feed = {name: np.asarray(value, np.int64) for name, value in INPUTS.items()}
    feed["past"] = np.zeros((1, 0, 4), np.float32)
    found = []
    for _ in range(steps):
        scores, feed["past"] = session.run(["scores", "present"], feed)
        feed["tokens"] = scores[:, -1].argmax(-1)[:, None]
        feed["mask"] = np.concatenate([feed["mask"], np.ones((1, 1), np.int64)], 1)
        feed["position"] = feed["position"] + 1
        found.append(scores)
    return found


def test_a_stream_is_a_loop_around_the_engine(use, server):
    """Each result is bit for bit what the bare engine gives in a loop."""

    async def scenario(client):
        options = LOOP | {"max_steps": 30, "outputs": ["scores", "tokens"]}
        return [result async for result in client.stream("decoder", INPUTS, **options)]

    results = use(server.address, scenario)
    for result, scores in zip(results, reference(30), strict=True):
        assert result["scores"].tobytes() == scores.tobytes()
        assert result["tokens"].tolist() == scores[:, -1].argmax(-1)[:, None].tolist()


def ending(found) -> tuple[int, str]:
    """Return how many results a blocking stream gave, and why it ended."""
    count = 0
    while True:
        try:
            next(found)
        except StopIteration as ended:
            return count, ended.value
        count += 1


@pytest.mark.filterwarnings("ignore::blindai.SimulationWarning")
def test_why_a_stream_ended(server):
    """The blocking iterator returns why it ended."""
    tokens = [int(scores.argmax()) for scores in reference(3)]
    with blindai.connect(server.address, simulation=True) as client:
        found = client.stream("decoder", INPUTS, max_steps=40, stop=tokens[2], **LOOP)
        assert ending(found) == (tokens.index(tokens[2]) + 1, "stop")
        found = client.stream("decoder", INPUTS, max_steps=4, **LOOP)
        assert ending(found) == (4, "max_steps")


def test_state_is_all_that_is_given(use, server):
    """A model whose inputs are all state streams from what the caller gives."""
    past = np.linspace(-1, 1, 16, dtype=np.float32)[None]

    async def scenario(client):
        options = {"state": {"past": "present"}, "max_steps": 20}
        return [
            r["sample"].item() async for r in client.stream("frames", {"past": past}, **options)
        ]

    found = use(server.address, scenario)
    session, now, expected = onnxruntime.InferenceSession(MODELS["frames"]), past, []
    for _ in range(20):
        sample, now = session.run(["sample", "present"], {"past": now})
        expected.append(sample.item())
    assert found == expected


def test_leaving_a_stream_ends_it(use, server):
    """Who leaves early makes room on the server; many more steps would have taken minutes."""

    async def scenario(client):
        for _ in range(12):
            found = client.stream("decoder", INPUTS, max_steps=10**6, **LOOP)
            async with contextlib.aclosing(found):
                async for result in found:
                    assert result["tokens"].shape == (1, 1)
                    break
            await asyncio.sleep(0.1)

    use(server.address, scenario)


def test_a_reader_that_is_slow(use, server):
    """A reader that pauses loses nothing and holds a bounded part of the answer."""

    async def scenario(client):
        found = []
        options = LOOP | {"max_steps": 1500, "outputs": ["present"]}
        async for result in client.stream("decoder", INPUTS, **options):
            if not len(found) % 300:
                await asyncio.sleep(0.2)
            found.append(result["present"].shape[1])
        return found

    assert use(server.address, scenario) == list(range(3, 1503))


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("nope", {}, blindai.ModelNotFound),
        ("decoder", {"max_steps": 0}, blindai.InvalidInput),
        ("decoder", {"outputs": ["nope"]}, blindai.InvalidInput),
        ("decoder", {"state": {"past": "scores"}}, blindai.InvalidInput),
        ("decoder", {"timeout": 0}, blindai.InvalidInput),
    ],
)
def test_what_cannot_be_streamed(use, server, name, options, error):
    """What cannot be run raises before the first result, as `run_model` would."""

    async def scenario(client):
        found = client.stream(name, INPUTS, **LOOP | {"max_steps": 3} | options)
        async for _ in found:
            pytest.fail("a result came")

    with pytest.raises(error):
        use(server.address, scenario)


def test_an_error_under_way(use, server):
    """What goes wrong after some results is raised in the place of the next one."""
    sizes = []

    async def scenario(client):
        options = {"state": {"x": "y"}, "max_steps": 100}
        async with contextlib.aclosing(
            client.stream("doubling", {"x": np.float32([1])}, **options)
        ) as found:
            while True:
                sizes.append((await anext(found))["y"].size)

    with pytest.raises(blindai.LimitExceeded):
        use(server.address, scenario)
    assert sizes[:3] == [2, 4, 8]


def test_a_sequence_is_a_loop_around_the_engine(use, server):
    """Steps of a sequence give bit for bit what the bare engine gives in a loop."""

    async def scenario(client):
        async with client.sequence("cell", state={"h": "next_h"}) as sequence:
            return [await sequence.step({"x": x}) for x in STEPS]

    results = use(server.address, scenario)
    session, h = onnxruntime.InferenceSession(MODELS["cell"]), np.zeros((1, 8), np.float32)
    for x, result in zip(STEPS, results, strict=True):
        y, h = session.run(["y", "next_h"], {"x": x, "h": h})
        assert list(result) == ["y"]
        assert result["y"].tobytes() == y.tobytes()


def test_a_closed_sequence(use, server):
    """A sequence that was closed takes no more room, and no more steps."""

    async def scenario(client):
        for _ in range(9):
            async with client.sequence("cell", state={"h": "next_h"}) as sequence:
                await sequence.step({"x": STEPS[0]})
        with pytest.raises(blindai.InvalidInput, match="closed"):
            await sequence.step({"x": STEPS[0]})

    use(server.address, scenario)


def test_a_step_that_failed_can_be_made_again(use, server):
    """A step with wrong inputs changes nothing."""

    async def scenario(client):
        results = []
        async with client.sequence("cell", state={"h": "next_h"}) as sequence:
            for wrong in (False, True):
                await sequence.step({"x": STEPS[0]})
                if wrong:
                    with pytest.raises(blindai.InvalidInput):
                        await sequence.step({"x": np.zeros((1, 4), np.float32)})
            results.append(await sequence.step({"x": STEPS[1]}))
        async with client.sequence("cell", state={"h": "next_h"}) as sequence:
            for x in (STEPS[0], STEPS[0], STEPS[1]):
                result = await sequence.step({"x": x})
            results.append(result)
        return results

    first, second = use(server.address, scenario)
    assert first["y"].tobytes() == second["y"].tobytes()


def test_a_sequence_after_new_keys(use):
    """A restarted server is verified again, and knows no sequence of before."""
    with start_server(models={"cell": cell()}) as server:

        async def scenario(client):
            async with client.sequence("cell", state={"h": "next_h"}) as sequence:
                await sequence.step({"x": STEPS[0]})
                server.restart()
                with pytest.raises(blindai.InvalidInput, match="no such sequence"):
                    await sequence.step({"x": STEPS[0]})

        use(server.address, scenario)


def test_weights_that_the_policy_does_not_name(use, server):
    """Where the policy names models, neither streams nor sequences go to others."""
    named = replace(blindai.Policy.simulation(), models={"other": frozenset({bytes(32)})})

    async def stream(client):
        await anext(client.stream("decoder", INPUTS, max_steps=1, **LOOP))

    async def step(client):
        await client.sequence("cell", state={"h": "next_h"}).step({"x": STEPS[0]})

    for scenario in (stream, step):
        with pytest.raises(blindai.AppraisalError):
            use(server.address, scenario, policy=named)


def part(document: dict, tensors: bytes = b"") -> bytes:
    """Return a part as a server sends it."""
    text = json.dumps(document).encode()
    return len(text).to_bytes(4, "little") + len(tensors).to_bytes(8, "little") + text + tensors


RESULT = {
    "model_name": "m",
    "parameters": {"sha256": "a" * 64},
    "outputs": [
        {"name": "y", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
    ],
}
WHOLE = part(RESULT, b"\0\0\0\0") * 3 + part({"final": True, "reason": "stop", "steps": 3})


@given(st.lists(st.integers(0, len(WHOLE)), max_size=8))
def test_parts_come_out_however_they_come_in(cuts):
    """Wherever an answer is cut, its parts are the same."""
    parts, found = Parts(1000), []
    edges = [0, *sorted(cuts), len(WHOLE)]
    for start, end in pairwise(edges):
        found += parts.feed(WHOLE[start:end])
    assert [type(each).__name__ for each in found] == ["Result"] * 3 + ["End"]
    assert found[3] == End("stop", 3)


@given(st.binary(max_size=300))
def test_garbage_is_refused(data):
    """Whatever the bytes, there are parts, an error of ours, or more to come."""
    try:
        for found in Parts(200).feed(data):
            assert isinstance(found, End | blindai.Result)
    except BlindAIError:
        pass


def test_a_part_larger_than_allowed():
    """A part that says it is larger than the limit is refused before it is held."""
    with pytest.raises(blindai.LimitExceeded):
        list(Parts(1000).feed(part({}, bytes(1000))))
    with pytest.raises(blindai.LimitExceeded):
        list(Parts(1000).feed(b"\xff" * 12))


def test_errors_of_the_server():
    """A server's error is raised as its class, and never as one that is not its to give."""
    with pytest.raises(blindai.DeadlineExceeded, match="late"):
        list(Parts(1000).feed(part({"error": "late", "type": "DeadlineExceeded"})))
    with pytest.raises(blindai.InferenceError):
        list(Parts(1000).feed(part({"error": "x", "type": "BindingError"})))


def test_a_stream_that_is_cut_short(use):
    """When the server is stopped under way, the stream does not look complete."""

    async def scenario(client):
        async for _ in client.stream("decoder", INPUTS, max_steps=10**6, **LOOP):
            await asyncio.to_thread(server.stop)

    limits = {"max_stream_steps": 10**6, "shutdown_grace": 0.1}
    error = (blindai.ConnectionFailed, blindai.Overloaded)
    with start_server(models=MODELS, **limits) as server, pytest.raises(error):
        use(server.address, scenario)


def test_a_sequences_secret_is_shown_nowhere():
    """The identifier is fresh each time, 128 bits long, and in no repr."""
    first, second = Track({"a": "b"}), Track({"a": "b"})
    identifier = str(first.next()["sequence_id"])
    assert len(identifier) == 32
    assert identifier != second.next()["sequence_id"]
    assert identifier not in repr(first)


def test_a_sequence_needs_state():
    """A sequence without state is refused before anything is sent."""
    with pytest.raises(blindai.InvalidInput, match="state"):
        Track({})
