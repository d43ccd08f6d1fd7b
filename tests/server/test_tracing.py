"""Traces say how long what took, to whom the operator chose, and nothing of what was sent."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.errors import ConfigurationError, InvalidInput
from blindai.server.access.rules import AccessRules
from blindai.server.config import ServerConfig
from blindai.server.tracing import Parent, Tracing, parse_traceparent, port_of, traces_address
from blindai.testing.server import start_server
from tests.inference.models import add, identity
from tests.server.collector import attributes, run_collector
from tests.server.grpc.talk import INFER, request_for, root_of
from tests.server.talk import authorized, infer_body, public_request, request

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{SPAN}-01"
CANARY = "canary-8e20"


@pytest.fixture
def collector():
    with run_collector() as running:
        yield running


@pytest.fixture
def server(collector):
    """A server that traces every request, with a public and a private model."""
    config = {
        "otlp_endpoint": collector.endpoint,
        "trace_ratio": 1.0,
        "access": AccessRules(public=frozenset({"open"})),
    }
    with start_server(models={"open": identity(), CANARY: add(1.0)}, config=config) as running:
        yield running


def infer(server, model="open", headers=None, **more):
    return request(
        server, "POST", f"/v2/models/{model}/infer", infer_body([1.5, 2.5], **more), headers
    )


def test_a_request_and_its_phases(server, collector):
    """A request is a span of the caller's trace, with a span for each phase, in order."""
    before = time.time_ns()
    assert infer(server, headers={"traceparent": SAMPLED}).status == 200
    spans = {span.name: span for span in collector.wait_for(5)}
    assert set(spans) == {"infer", "read", "queue", "run", "write"}
    assert set(collector.paths) == {"/v1/traces"}
    root = spans.pop("infer")
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, SPAN)
    assert root.kind == root.SPAN_KIND_SERVER
    assert root.status.code == root.status.STATUS_CODE_UNSET
    assert attributes(root) == {"blindai.protocol": "rest", "blindai.model": "open"}
    for span in spans.values():
        assert (span.trace_id, span.parent_span_id) == (root.trace_id, root.span_id)
        assert attributes(span) == {}
        assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        # Two clocks, read at other moments.
        assert span.end_time_unix_nano <= root.end_time_unix_nano + 1_000_000
    ordered = sorted(spans.values(), key=lambda span: span.start_time_unix_nano)
    assert [span.name for span in ordered] == ["read", "queue", "run", "write"]
    assert before <= root.start_time_unix_nano < root.end_time_unix_nano <= time.time_ns()


def test_grpc(server, collector):
    """A unary call by gRPC is traced likewise, by the traceparent in its metadata."""
    asked = request_for(np.float32([1.5, 2.5]), model="open").SerializeToString()
    credentials = grpc.ssl_channel_credentials(root_of(server))
    with grpc.secure_channel(server.grpc_address, credentials) as channel:
        channel.unary_unary(INFER)(asked, timeout=20, metadata=[("traceparent", SAMPLED)])
    spans = {span.name: span for span in collector.wait_for(5)}
    assert set(spans) == {"infer", "read", "queue", "run", "write"}
    assert spans["infer"].trace_id.hex() == TRACE
    assert attributes(spans["infer"]) == {"blindai.protocol": "grpc", "blindai.model": "open"}


def test_an_error_is_told_by_its_class(server, collector):
    """A request that fails ends its trace with the error's class; its message stays here."""
    assert infer(server, "open", {"traceparent": SAMPLED}, outputs=[{"name": CANARY}]).status == 400
    root = next(span for span in collector.wait_for(2) if span.name == "infer")
    assert root.status.code == root.status.STATUS_CODE_ERROR
    assert root.status.message == ""
    assert attributes(root)["error.type"] == InvalidInput.__name__


def test_nothing_of_a_request_is_sent(server, collector):
    """No name of a private model, value, token, header, path, or identifier of a request."""
    headers = authorized(server, traceparent=SAMPLED, tracestate=f"a={CANARY}", baggage=CANARY)
    assert infer(server, CANARY, headers | {"X-Canary": CANARY}, id=CANARY).status == 200
    assert infer(server, CANARY, {"traceparent": SAMPLED}).status == 404
    infer(server, "open", {"traceparent": SAMPLED}, parameters={CANARY: CANARY})
    collector.wait_for(11)
    sent = b"".join(collector.bodies)
    assert CANARY.encode() not in sent
    assert server.token.encode() not in sent
    assert b"127.0.0.1" not in sent


def test_who_asks_not_to_be_traced(server, collector):
    """A traceparent that is not sampled is not traced, whatever the share."""
    assert infer(server, headers={"traceparent": SAMPLED[:-1] + "0"}).status == 200
    assert infer(server, headers={"traceparent": "nonsense"}).status == 200
    (root,) = [span for span in collector.wait_for(5) if span.name == "infer"]
    assert root.parent_span_id == b""


@pytest.mark.parametrize("status", [307, 500, 400])
def test_a_collector_that_does_not_take_it(server, collector, status):
    """Redirects are not followed, errors stop nothing, and requests are served meanwhile."""
    collector.status = status
    for _ in range(3):
        assert infer(server, headers={"traceparent": SAMPLED}).status == 200
    time.sleep(2.5)
    assert infer(server).status == 200
    assert set(collector.paths) == {"/v1/traces"}


def test_no_collector():
    """Where nobody listens, requests are served, and the end comes within seconds."""
    config = {"otlp_endpoint": "http://127.0.0.1:9", "trace_ratio": 1.0}
    with start_server(models={"open": identity()}, config=config) as server:
        assert infer(server).status == 200
        began = time.monotonic()
    assert time.monotonic() - began < 15


def test_off_by_default(collector):
    """Without an endpoint nothing is sent, not even if a request asks for it."""
    with start_server(models={"open": identity()}) as server:
        assert infer(server, headers={"traceparent": SAMPLED}).status == 200
    assert collector.bodies == []


def test_clients_see_it():
    """That a server traces is part of its attested configuration."""
    plain = ServerConfig(platform="simulation")
    traced = ServerConfig(platform="simulation", otlp_endpoint="http://localhost:4318")
    assert plain.digest() != traced.digest()


@pytest.mark.parametrize("bad", [
    "", "-", f"01-{TRACE}-{SPAN}", f"00-{TRACE}-{SPAN}-01-", f"00-{TRACE}-{SPAN}-01-more",
    f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01",
    SAMPLED.upper(), f" {SAMPLED}", f"{SAMPLED}\n", f"0-{TRACE}-{SPAN}-01", "0" * 1000,
    f"01-{TRACE}-{SPAN}-01x", f"01-{TRACE}-{SPAN}-01-{'x' * 300}",
])  # fmt: skip
def test_traceparent_that_is_none(bad):
    """What is not a traceparent to the letter belongs to no trace."""
    assert parse_traceparent(bad.encode()) is None


def test_traceparents():
    """Version 00, and what later versions add behind it, are understood; flags are bits."""
    known = int(TRACE, 16), int(SPAN, 16)
    assert parse_traceparent(SAMPLED.encode()) == Parent(*known, is_sampled=True)
    assert parse_traceparent(f"00-{TRACE}-{SPAN}-02".encode()) == Parent(*known, is_sampled=False)
    later = f"cc-{TRACE}-{SPAN}-03-what.the-future.brings".encode()
    assert parse_traceparent(later) == Parent(*known, is_sampled=True)
    assert parse_traceparent(None) is None


@given(st.binary(max_size=80) | st.from_regex(rb"[0-9a-f]{2}-[0-9a-f-]{40,60}", fullmatch=True))
def test_any_traceparent(value):
    """Whatever a client sends, there is a parent with ids that OpenTelemetry takes, or none."""
    parent = parse_traceparent(value)
    assert parent is None or (0 < parent.trace_id < 2**128 and 0 < parent.span_id < 2**64)


def test_the_share():
    """Of requests without a traceparent the share is traced that was set."""
    numbers = iter([0.0, 0.49, 0.5, 0.99])
    tracing = Tracing(lambda _: None, 0.5, chance=lambda: next(numbers))
    assert [tracing.begin(None, "rest") is not None for _ in range(4)] == [True, True, False, False]


@pytest.mark.parametrize("bad", [
    "localhost:4318", "ftp://localhost", "http://", "http://user:secret@localhost",
    "http://localhost/?token=secret", "http://localhost:0", "http://localhost:99999",
])  # fmt: skip
def test_addresses_that_are_none(bad):
    """An address that cannot be, or that holds a secret, is refused, and not quoted."""
    with pytest.raises(ConfigurationError, match="otlp_endpoint") as refusal:
        ServerConfig(platform="simulation", otlp_endpoint=bad)
    assert "secret" not in str(refusal.value)


def test_addresses():
    """Without a path it is the usual one; the port is the scheme's where there is none."""
    assert traces_address("http://localhost:4318") == "http://localhost:4318/v1/traces"
    assert traces_address("https://c.example/in/traces") == "https://c.example/in/traces"
    assert [port_of(f"{each}") for each in ("http://a", "https://a", "http://a:7")] == [80, 443, 7]


def test_a_real_confined_server(tmp_path, collector):
    """`blindai serve --otlp-endpoint` sends traces, confined as it is, and says nothing else."""
    (tmp_path / "open.onnx").write_bytes(identity())
    command = [Path(sys.executable).with_name("blindai"), "serve", "--platform", "simulation"]
    command += ["--port", "0", "--public-port", "0", "--no-grpc", "--no-fetch-endorsements"]
    command += ["--models", tmp_path, "--token-file", tmp_path / "token", "--json"]
    command += ["--otlp-endpoint", collector.endpoint]
    with subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            ready = json.loads(process.stdout.readline())
            assert not any("confined" in caveat for caveat in ready["caveats"])
            server = SimpleNamespace(address=ready["attested"], public_address=ready["public"])
            assert infer(server, headers={"traceparent": SAMPLED}).status == 200
            assert public_request(server, "GET", "/metrics").status == 200
        finally:
            process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
    assert process.returncode == 0
    assert {span.name for span in collector.wait_for(5)} >= {"infer", "run"}
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert events == ["new_keys", "ready", "stopping", "stopped"]
