"""Metrics say how much and how long, and nothing of what was sent or what models are called."""

import time

from prometheus_client.parser import text_string_to_metric_families

from blindai.testing.server import start_server
from tests.inference.models import slow
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
