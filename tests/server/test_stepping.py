"""Steps of a sequence over REST: state stays inside, for whoever began it and for some time."""

import json
import secrets
import time
from contextlib import closing
from datetime import timedelta

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.errors import InvalidInput
from blindai.inference.sequences import Step
from blindai.server.stepping import parse_step
from blindai.testing.server import start_server
from tests.inference.loop_models import cell, doubling, huge_state
from tests.server.talk import ask, connect, request

STEPS = np.random.default_rng(7).standard_normal((5, 1, 3)).astype(np.float32)
STATE = {"h": "next_h"}
INFER = "/v2/models/cell/infer"
MODELS = {"cell": cell(), "other": cell(9), "doubling": doubling(), "huge": huge_state()}


@pytest.fixture(scope="module")
def server():
    """A server with recurrent models, and room for 4 kB of state."""
    with start_server(models=MODELS, max_sequence_bytes=4000) as running:
        yield running


def body(x=STEPS[0], *, name="x", **parameters) -> bytes:
    """Return a request for a step; `None`: without inputs."""
    inputs = []
    if x is not None:
        x = np.asarray(x, np.float32)
        data = x.reshape(-1).tolist()
        inputs = [{"name": name, "datatype": "FP32", "shape": x.shape, "data": data}]
    return json.dumps({"inputs": inputs, "parameters": parameters}).encode()


def step(connection, x=STEPS[0], *, path=INFER, headers=None, name="x", **parameters):
    return ask(connection, "POST", path, body(x, name=name, **parameters), headers)


def values(reply):
    assert reply.status == 200, reply.body
    return {out["name"]: np.float32(out["data"]) for out in reply.json()["outputs"]}


def reference():
    """Return y of each step, of the bare engine in a loop."""
    session = onnxruntime.InferenceSession(MODELS["cell"])
    h, found = np.zeros((1, 8), np.float32), []
    for x in STEPS:
        y, h = session.run(["y", "next_h"], {"x": x, "h": h})
        found.append(y.reshape(-1))
    return found


def test_steps_are_a_loop_around_the_engine(server):
    """Step by step, outputs are bit for bit those of the bare engine in a loop."""
    identifier = secrets.token_hex(16)
    found = []
    with closing(connect(server)) as connection:
        for number, x in enumerate(STEPS):
            more = {"sequence_start": True, "sequence_state": STATE} if not number else {}
            more |= {"sequence_end": True} if number == len(STEPS) - 1 else {}
            reply = step(connection, x, sequence_id=identifier, sequence_step=number, **more)
            outputs = values(reply)
            assert list(outputs) == ["y"]
            found.append(outputs["y"])
        assert step(connection, sequence_id=identifier).error == "InvalidInput"
    np.testing.assert_array_equal(found, reference())


def test_a_secret_opens_a_sequence_from_anywhere(server):
    """An identifier that nobody can guess works on every connection, with the same token."""
    identifier = secrets.token_hex(16)
    headers = {"Authorization": f"Bearer {server.token}"}
    begin = body(sequence_id=identifier, sequence_start=True, sequence_state=STATE)
    assert request(server, "POST", INFER, begin, headers).status == 200
    follow = body(sequence_id=identifier)
    assert request(server, "POST", INFER, follow, headers).status == 200
    unknown = request(server, "POST", INFER, body(sequence_id=secrets.token_hex(16)))
    reply = request(server, "POST", INFER, follow)
    assert (reply.status, reply.body) == (unknown.status, unknown.body)
    forged = {"Authorization": "Bearer other"}
    assert request(server, "POST", INFER, follow, forged).status == 401
    moved = request(server, "POST", "/v2/models/other/infer", follow, headers)
    assert (moved.status, moved.body) == (unknown.status, unknown.body)
    assert request(server, "POST", INFER, follow, headers).status == 200


def test_a_number_opens_a_sequence_of_its_connection_only(server):
    """Identifiers that could be guessed are names within a connection."""
    with closing(connect(server)) as mine, closing(connect(server)) as other:
        first = step(mine, sequence_id=1, sequence_start=True, sequence_state=json.dumps(STATE))
        assert first.status == 200
        assert step(other, sequence_id=1).error == "InvalidInput"
        assert step(other, sequence_id="1", sequence_start=True, sequence_state=STATE).status == 200
        assert step(mine, sequence_id=1).status == 200


def test_a_step_that_fails_changes_nothing(server):
    """After a failed step the next one goes on from where the sequence was."""
    with closing(connect(server)) as connection:
        step(connection, STEPS[0], sequence_id=1, sequence_start=True, sequence_state=STATE)
        assert step(connection, [[1.0, 2.0]], sequence_id=1).error == "InvalidInput"
        assert step(connection, STEPS[1], name="h", sequence_id=1).error == "InvalidInput"
        assert step(connection, STEPS[1], sequence_id=1, sequence_step=2).error == "InvalidInput"
        np.testing.assert_array_equal(
            values(step(connection, STEPS[1], sequence_id=1, sequence_step=1))["y"], reference()[1]
        )


def test_ending_without_a_run(server):
    """A last step without inputs ends a sequence; whether there was one is not told."""
    with closing(connect(server)) as connection:
        step(connection, sequence_id=1, sequence_start=True, sequence_state=STATE)
        for _ in range(2):
            reply = step(connection, None, sequence_id=1, sequence_end=True)
            assert values(reply) == {}
        assert step(connection, sequence_id=1).error == "InvalidInput"


def test_what_the_caller_sees(server):
    """State is left out of answers, unless it is asked for or all that there is."""
    with closing(connect(server)) as connection:
        document = json.loads(body(sequence_id=1, sequence_start=True, sequence_state=STATE))
        document["outputs"] = [{"name": "next_h"}]
        assert list(values(ask(connection, "POST", INFER, json.dumps(document)))) == ["next_h"]
        path = "/v2/models/doubling/infer"
        more = {"sequence_start": True, "sequence_state": {"x": "y"}}
        found = values(step(connection, [1.0], path=path, sequence_id=2, **more))
        assert found["y"].tolist() == [1.0, 1.0]
        assert len(values(step(connection, None, path=path, sequence_id=2))["y"]) == 4


def test_state_that_grows_without_bound(server):
    """State that outgrows its limit ends the sequence with an error, and nothing else."""
    path = "/v2/models/doubling/infer"
    with closing(connect(server)) as connection:
        more = {"sequence_start": True, "sequence_state": {"x": "y"}}
        step(connection, [1.0], path=path, sequence_id=1, **more)
        replies = [step(connection, None, path=path, sequence_id=1) for _ in range(12)]
    failed = next(reply for reply in replies if reply.status != 200)
    assert (failed.status, failed.error) == (413, "LimitExceeded")
    assert replies[-1].error == "InvalidInput"


def test_state_that_is_large_from_the_start(server):
    """A few bytes do not make the server fill gigabytes with zeros."""
    path = "/v2/models/huge/infer"
    more = {"sequence_start": True, "sequence_state": {"s": "t"}}
    with closing(connect(server)) as connection:
        assert step(connection, [1.0], path=path, sequence_id=1, **more).status == 413


def test_not_a_number_stays_in_its_sequence(server):
    """NaN in one sequence is in no other, and is refused in JSON without its neighbours."""
    with closing(connect(server)) as connection:
        for number in (1, 2):
            step(connection, sequence_id=number, sequence_start=True, sequence_state=STATE)
        x = np.full((1, 3), 3e38, np.float32)
        x[0, 1] = -3e38
        step(connection, x, sequence_id=1)
        found = values(step(connection, STEPS[1], sequence_id=2))["y"]
        assert np.isfinite(found).all()


def test_expiry_and_how_many():
    """A caller has so many at once; what nobody goes on with makes room by itself."""
    limits = {"max_sequences_per_caller": 2, "sequence_timeout": 0.5}
    with (
        start_server(models={"cell": cell()}, **limits) as server,
        closing(connect(server)) as connection,
    ):
        more = {"sequence_start": True, "sequence_state": STATE}
        statuses = [step(connection, sequence_id=n, **more).status for n in (1, 2, 3)]
        assert statuses == [200, 200, 503]
        time.sleep(0.8)
        assert step(connection, sequence_id=1).error == "InvalidInput"
        assert step(connection, sequence_id=3, **more).status == 200


def test_new_keys_find_no_old_state():
    """When the server renews its keys, state from before is gone, also on old connections."""
    config = {"key_lifetime": timedelta(seconds=4)}
    with (
        start_server(models={"cell": cell()}, config=config) as server,
        closing(connect(server)) as connection,
    ):
        step(connection, sequence_id=1, sequence_start=True, sequence_state=STATE)
        assert step(connection, sequence_id=1).status == 200
        time.sleep(2.5)
        assert step(connection, sequence_id=1).error == "InvalidInput"


@given(
    st.dictionaries(
        st.sampled_from(
            ["sequence_id", "sequence_start", "sequence_end", "sequence_step", "sequence_state"]
        ),
        st.none()
        | st.booleans()
        | st.integers()
        | st.text()
        | st.floats()
        | st.just('{"a":"b"}')
        | st.dictionaries(st.text(), st.text() | st.integers()),
    )
)
def test_parameters_are_a_step_or_refused(parameters):
    """Whatever the parameters, they are a step, none, or `InvalidInput`."""
    try:
        found = parse_step(parameters)
    except InvalidInput:
        return
    assert found is None or isinstance(found, Step)
    assert found is None or found.is_start == bool(found.state)
