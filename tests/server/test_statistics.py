"""The statistics extension: real numbers, of what was really served."""

import pytest

from blindai.testing.server import start_server
from tests.inference.models import add, slow
from tests.server.talk import authorized, infer_body, request

PARTS = ("compute_input", "compute_infer", "compute_output")


@pytest.fixture(scope="module")
def server():
    """A server with a model of two names, and a slow one."""
    models = {"one": add(1.0), "two": add(1.0), "slow": slow()}
    with start_server(models=models) as running:
        yield running


def stats_of(server, name):
    (entry,) = request(server, "GET", f"/v2/models/{name}/stats").json()["model_stats"]
    assert (entry["name"], entry["version"]) == (name, "1")
    return entry


def test_what_was_served(server):
    """Runs are counted with their times; all names of a model show the same."""
    before = stats_of(server, "one")
    for _ in range(3):
        request(server, "POST", "/v2/models/one/infer", infer_body([1.0, 2.0]))
    after = stats_of(server, "one")
    assert after["execution_count"] - before["execution_count"] == 3
    assert after["last_inference"] > 1_700_000_000_000
    for part in ("success", "queue", *PARTS):
        gained = after["inference_stats"][part]["count"] - before["inference_stats"][part]["count"]
        assert gained == 3
    success = after["inference_stats"]["success"]["ns"]
    assert success >= after["inference_stats"]["compute_infer"]["ns"] > 0
    assert after["inference_stats"]["cache_hit"] == {"count": 0, "ns": 0}
    assert (
        sum(batch["compute_infer"]["count"] for batch in after["batch_stats"])
        == (after["execution_count"])
    )
    assert stats_of(server, "two") | {"name": "one"} == after


def test_failures_are_counted(server):
    """A request whose time was over is a failure, with the time that it took."""
    # Enough rows to run for long, and enough time to get to the queue, where counting begins.
    body = infer_body([1.0] * 100_000, shape=[100, 1000], parameters={"timeout": 50_000})
    assert request(server, "POST", "/v2/models/slow/infer", body).status == 504
    fail = stats_of(server, "slow")["inference_stats"]["fail"]
    assert fail["count"] == 1
    assert fail["ns"] > 0


def test_all_models(server):
    """All models have an entry each, by name; also one that never ran."""
    assert (
        request(server, "PUT", "/blindai/v1/models/fresh", add(5.0), authorized(server)).status
        == 201
    )
    entries = request(server, "GET", "/v2/models/stats").json()["model_stats"]
    assert [entry["name"] for entry in entries] == ["fresh", "one", "slow", "two"]
    assert entries[0]["execution_count"] == entries[0]["last_inference"] == 0
    assert entries[0]["batch_stats"] == []
    reply = request(server, "GET", "/v2/models/nope/stats")
    assert (reply.status, reply.error) == (404, "ModelNotFound")
    assert request(server, "GET", "/v2/models/one/versions/1/stats").status == 200
