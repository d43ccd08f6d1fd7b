"""A tiny model is run by the event loop itself; its answers and counts are the same."""

from contextlib import closing

import pytest

from blindai.testing.server import start_server
from tests.inference.models import identity
from tests.server.talk import ask, connect, infer_body, request

PATH = "/v2/models/m/infer"
REQUESTS = 30


def test_answers_and_statistics_are_the_same():
    """Before and after the model has earned it: each request has its own answer, and counts."""
    with (
        start_server(models={"m": identity()}) as server,
        closing(connect(server)) as connection,
    ):
        for value in range(REQUESTS):
            reply = ask(connection, "POST", PATH, infer_body([float(value)] * 3))
            assert reply.json()["outputs"][0]["data"] == [value] * 3
        stats = request(server, "GET", "/v2/models/m/stats").json()["model_stats"][0]
        assert stats["inference_stats"]["success"]["count"] == REQUESTS
        assert stats["execution_count"] == REQUESTS
        assert stats["inference_stats"]["fail"]["count"] == 0


@pytest.mark.parametrize("data", [["1"], [[1.0]]])
def test_errors_are_the_same(data):
    """What cannot be read is told as ever, after the model has earned it too."""
    with (
        start_server(models={"m": identity()}) as server,
        closing(connect(server)) as connection,
    ):
        before = ask(connection, "POST", PATH, infer_body(data, shape=[7]))
        for _ in range(6):
            assert ask(connection, "POST", PATH, infer_body([1.0])).status == 200
        after = ask(connection, "POST", PATH, infer_body(data, shape=[7]))
        assert (after.status, after.body) == (before.status, before.body)
        assert after.status == 400
