"""Sequences over gRPC: Triton's client sends steps as it sends them to any server."""

import json
import queue

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from blindai.testing.server import start_server
from tests.inference.loop_models import cell
from tests.server.grpc.talk import root_of
from tests.server.test_stepping import STEPS, reference

STATE = {"sequence_state": json.dumps({"h": "next_h"})}


@pytest.fixture(scope="module")
def server():
    """A server with a recurrent cell."""
    with start_server(models={"cell": cell()}) as running:
        yield running


@pytest.fixture
def connect(server, tmp_path):
    """Return connections of Triton's client, whose only root is the attested certificate."""
    path = tmp_path / "server.pem"
    path.write_bytes(root_of(server))
    opened = []

    def connect():
        # By default Triton's clients of a process share a channel, and so a connection.
        options = [("grpc.use_local_subchannel_pool", 1)]
        opened.append(
            triton.InferenceServerClient(
                server.grpc_address, ssl=True, root_certificates=str(path), channel_args=options
            )
        )
        return opened[-1]

    yield connect
    for client in opened:
        client.close()


def tensor(x):
    made = triton.InferInput("x", list(x.shape), "FP32")
    made.set_data_from_numpy(x)
    return made


def positions(number: int) -> dict:
    """Return what Triton's client says of a step."""
    return {
        "sequence_start": not number,
        "sequence_end": number == len(STEPS) - 1,
        "parameters": STATE if not number else None,
    }


def test_a_stream_of_steps(connect):
    """Steps that are sent without waiting are made in their order, two sequences side by side."""
    answers = queue.Queue()
    client = connect()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number, x in enumerate(STEPS):
        for sequence in (7, 8):
            inputs = [tensor(x if sequence == 7 else -x)]
            client.async_stream_infer(
                "cell", inputs, sequence_id=sequence, request_id=str(sequence), **positions(number)
            )
    found = {"7": [], "8": []}
    for _ in range(2 * len(STEPS)):
        result, error = answers.get(timeout=20)
        assert error is None
        found[result.get_response().id].append(result.as_numpy("y").reshape(-1))
    client.stop_stream()
    np.testing.assert_array_equal(found["7"], reference())
    assert not np.array_equal(found["8"], found["7"])


def test_steps_one_by_one(connect):
    """Unary calls of one connection are steps, too; another connection has no part in them."""
    mine, other = connect(), connect()
    found = []
    for number, x in enumerate(STEPS):
        found.append(mine.infer("cell", [tensor(x)], sequence_id=3, **positions(number)))
        if number < len(STEPS) - 1:
            with pytest.raises(InferenceServerException, match="no such sequence"):
                other.infer("cell", [tensor(x)], sequence_id=3)
    np.testing.assert_array_equal([each.as_numpy("y").reshape(-1) for each in found], reference())


def test_a_start_without_state(connect):
    """A sequence whose state nobody named is refused, with what to say."""
    with pytest.raises(InferenceServerException, match="sequence_state: expected"):
        connect().infer("cell", [tensor(STEPS[0])], sequence_id=3, sequence_start=True)
