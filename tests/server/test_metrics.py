"""Metrics say how much and how long, and nothing of what was sent or what models are called."""

import shutil
import subprocess
import time
from datetime import timedelta

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from blindai.testing.server import start_server
from tests.inference.models import identity, slow
from tests.server.grpc.talk import INFER, request_for, root_of
from tests.server.talk import infer_body, public_request, request

CANARY = "canary-7c1f"
WIDTH = 1000  # of the slow model's rows


def infer(server, **more):
    """Run the identity once."""
    return request(server, "POST", "/v2/models/identity-fp32/infer", infer_body([1.5, 2.5], **more))


def scrape(server):
    """Return (name, labels) → value, as Prometheus reads them."""
    reply = public_request(server, "GET", "/metrics")
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(reply.body.decode())
        for sample in family.samples
    }


def test_what_was_served_is_counted(server):
    """A success and its time are there after the answer, and a failure is counted as one."""
    metadata = request(server, "GET", "/v2/models/identity-fp32").json()
    model = ("model", metadata["parameters"]["sha256"][:12])
    before = scrape(server)
    assert infer(server).status == 200
    after = scrape(server)

    def grown(name, *labels):
        key = (name, tuple(sorted((model, *labels))))
        return after[key] - before.get(key, 0)

    assert grown("blindai_model_requests_total", ("outcome", "success")) == 1
    assert grown("blindai_model_requests_total", ("outcome", "failure")) == 0
    assert grown("blindai_model_runs_total") == 1
    assert grown("blindai_model_seconds_total", ("phase", "compute_infer")) > 0
    assert after["blindai_model_waiting", (model,)] == 0


def test_cost_model():
    """What a run costs is there by its number of rows, where requests may share runs."""
    body = infer_body([[1.0] * WIDTH] * 3, shape=[3, WIDTH])
    with start_server(models={"slow": slow()}, config={"max_batch": 8}) as server:
        for _ in range(2):
            assert request(server, "POST", "/v2/models/slow/infer", body).status == 200
        sha256 = request(server, "GET", "/v2/models/slow").json()["parameters"]["sha256"]
        found = scrape(server)
    model = ("model", sha256[:12])
    assert 0 < found["blindai_model_run_seconds", (model, ("rows", "3"))] < 60
    assert 0 < found["blindai_model_request_seconds", (model,)] < 60


def test_what_a_server_is(server):
    """It says that it is simulated, ready, and until when its keys hold."""
    public_request(server, "GET", "/blindai/v1/evidence")
    found = scrape(server)
    labels = next(dict(labels) for name, labels in found if name == "blindai_info")
    assert labels["simulated"] == "true"
    assert found["blindai_ready", ()] == 1
    assert found["blindai_keys_not_after_timestamp_seconds", ()] > time.time()
    assert 0 <= found["blindai_evidence_age_seconds", ()] < 3600
    assert found["process_resident_memory_bytes", ()] > 10_000_000


def test_nothing_of_a_request_is_there(server):
    """Names, headers, paths and values that a client chose appear nowhere."""
    headers = {"Authorization": f"Bearer {CANARY}", "X-Canary": CANARY}
    request(server, "POST", f"/v2/models/{CANARY}/infer", CANARY.encode(), headers=headers)
    request(server, "GET", f"/{CANARY}", headers=headers)
    assert infer(server, id=CANARY).status == 200
    text = public_request(server, "GET", "/metrics").body.decode()
    assert CANARY not in text
    assert "identity-fp32" not in text
    assert server.token not in text


def grpc_channel(server):
    """Return a channel of the usual client."""
    credentials = grpc.ssl_channel_credentials(root_of(server))
    return grpc.secure_channel(server.grpc_address, credentials)


def call_model(channel, model, values):
    """Run a model by gRPC."""
    asked = request_for(np.array(values, np.float32), model=model).SerializeToString()
    return channel.unary_unary(INFER)(asked, timeout=20)


def buckets(found, phase):
    """Return the counts of a phase's buckets, by their bounds."""
    return {
        float(dict(labels)["le"]): value
        for (name, labels), value in found.items()
        if name == "blindai_phase_seconds_bucket" and ("phase", phase) in labels
    }


def test_phases(server):
    """Every request that ran is in the histogram of each phase, by REST and by gRPC."""
    before = scrape(server)
    assert infer(server).status == 200
    channel = grpc_channel(server)
    try:
        call_model(channel, "identity-fp32", [1.5, 2.5])
    finally:
        channel.close()
    after = scrape(server)
    for phase in ("read", "queue", "run", "write"):
        count = ("blindai_phase_seconds_count", (("phase", phase),))
        assert after[count] - before[count] == 2
        seen = buckets(after, phase)
        assert list(seen.values()) == sorted(seen.values())
        assert seen[float("inf")] == after[count]
        assert after["blindai_phase_seconds_sum", (("phase", phase),)] > 0


def test_answers_are_counted_by_status(server):
    """An answer is counted for its port under its status, errors too."""

    def answers(port, status):
        labels = (("port", port), ("status", status))
        return scrape(server).get(("blindai_answers_total", labels), 0)

    lost, denied = answers("attested", "404"), answers("attested", "401")
    public, unknown = answers("public", "404"), answers("grpc", "5")
    request(server, "GET", "/nowhere")
    request(server, "DELETE", "/blindai/v1/models/identity-fp32")
    public_request(server, "GET", "/nowhere")
    channel = grpc_channel(server)
    with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
        call_model(channel, "none", [1.0])
    channel.close()
    assert answers("attested", "404") == lost + 1
    assert answers("attested", "401") == denied + 1
    assert answers("public", "404") == public + 1
    assert answers("grpc", "5") == unknown + 1


def test_what_the_evidence_shows(server):
    """The evidence's age, and each weakness that a policy would have to tolerate, are there."""
    found = scrape(server)
    assert found["blindai_evidence_genuine", ()] == 1
    assert found["blindai_evidence_weakness", (("weakness", "simulated"),)] == 1


def test_memory(server):
    """What is held is told by purpose, with its limit."""
    found = scrape(server)
    for purpose in ("models", "bodies", "sequences"):
        used = found["blindai_memory_used_bytes", (("purpose", purpose),)]
        assert 0 <= used <= found["blindai_memory_limit_bytes", (("purpose", purpose),)]
    assert found["blindai_memory_used_bytes", (("purpose", "models"),)] > 0


def test_new_keys_keep_the_counts():
    """Counters go on when keys are renewed: none goes back to 0."""
    lifetime = timedelta(seconds=2)
    with start_server(models={"m": identity()}, config={"key_lifetime": lifetime}) as server:
        for _ in range(3):
            assert request(server, "GET", "/v2/models/m").status == 200
        first = scrape(server)
        time.sleep(1.6)
        second = scrape(server)
    key = "blindai_keys_not_after_timestamp_seconds", ()
    assert second[key] > first[key]
    answers = "blindai_answers_total", (("port", "attested"), ("status", "200"))
    assert second[answers] >= first[answers] == 3


def test_audit_log(tmp_path):
    """A server with an audit log tells its length, and what its disk did not take."""
    with start_server(config={"audit_log": tmp_path / "audit.jsonl"}) as server:
        found = scrape(server)
    assert found["blindai_audit_entries", ()] == 1
    assert found["blindai_audit_failures_total", ()] == 0


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing(server):
    """Prometheus' own checker has nothing to say of the names, types and helps."""
    assert infer(server).status == 200
    text = public_request(server, "GET", "/metrics").body
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
