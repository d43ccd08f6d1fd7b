"""Queues are bounded, runs can be stopped, and uploads never stall a run."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from blindai.testing.server import start_server
from tests.inference.models import add, identity, slow
from tests.server.talk import ask, authorized, connect, infer_body, request, tls

SLOW = "/v2/models/slow/infer"
WIDTH = 1000


def slow_body(rows: int, **more) -> bytes:
    """Return a request that takes the slow model some 10 ms for each row."""
    zeros = json.dumps([0] * WIDTH * rows)
    return (
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[%d,%d],"data":%s}],"parameters":%s}'
        % (rows, WIDTH, zeros.encode(), json.dumps(more).encode())
    )


def test_deadline(server):
    """A run that passes its deadline is stopped, and the client is told."""
    began = time.monotonic()
    reply = request(server, "POST", SLOW, slow_body(400, timeout=200_000))
    assert (reply.status, reply.error) == (504, "DeadlineExceeded")
    assert time.monotonic() - began < 5


def test_servers_own_deadline():
    """Where the client names no time, the server's ends the run."""
    with start_server(models={"slow": slow()}, max_run_time=0.2) as server:
        assert request(server, "POST", SLOW, slow_body(400)).error == "DeadlineExceeded"


def test_queue_is_bounded():
    """What finds no place in the queue is refused with Retry-After; the rest is served."""
    with (
        start_server(
            models={"slow": slow()}, config={"runs": 1, "threads": 1}, max_queue=1
        ) as server,
        ThreadPoolExecutor(6) as clients,
    ):
        replies = list(
            clients.map(lambda _: request(server, "POST", SLOW, slow_body(40)), range(6))
        )
        statuses = sorted(reply.status for reply in replies)
        assert set(statuses) == {200, 503}
        refused = next(reply for reply in replies if reply.status == 503)
        assert refused.error == "Overloaded"
        assert int(refused.headers["retry-after"]) >= 1


def test_run_of_a_gone_client_is_stopped():
    """A run whose client went away gives its thread to the next one."""
    with start_server(models={"slow": slow()}, config={"runs": 1, "threads": 1}) as server:
        body = slow_body(2000)
        with tls(server) as connection:
            connection.sendall(
                b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
                % (SLOW.encode(), len(body))
                + body
            )
            time.sleep(1.0)
            connection.shutdown(socket.SHUT_RDWR)
        began = time.monotonic()
        assert request(server, "POST", SLOW, slow_body(1)).status == 200
        assert time.monotonic() - began < 5


def test_bodies_share_a_budget():
    """Bodies that do not fit beside each other are refused; what they held is given back."""
    with start_server(models={"m": identity()}, max_bodies_bytes=1_000_000) as server:
        path = "/v2/models/m/infer"
        for _ in range(3):
            reply = request(server, "POST", path, infer_body([0.5] * 300_000))
            assert (reply.status, reply.error) == (503, "Overloaded")
        for _ in range(3):
            assert request(server, "POST", path, infer_body([0.5] * 100_000)).status == 200


def test_uploads_are_limited():
    """One upload more than allowed is refused, and succeeds when the other has ended."""
    with start_server(max_uploads=1) as server:
        held = tls(server)
        held.sendall(
            b"PUT /blindai/v1/models/a HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n"
            b"Authorization: Bearer %s\r\n\r\nabc" % server.token.encode()
        )
        time.sleep(0.3)
        reply = request(server, "PUT", "/blindai/v1/models/b", add(), authorized(server))
        assert (reply.status, reply.error) == (503, "Overloaded")
        held.close()
        ends = time.monotonic() + 10
        while reply.status == 503 and time.monotonic() < ends:
            reply = request(server, "PUT", "/blindai/v1/models/b", add(), authorized(server))
        assert reply.status == 201


def test_uploads_do_not_stall_runs():
    """While 100 MB are uploaded, a small model answers: half of its answers within 50 ms."""
    with start_server(models={"m": identity()}) as server:
        done = threading.Event()
        outcome = []

        def upload():
            chunk = b"\x00" * 65536
            chunks = (chunk for _ in range(100_000_000 // len(chunk)))
            path = "/blindai/v1/models/large"
            outcome.append(request(server, "PUT", path, chunks, authorized(server)))
            done.set()

        uploader = threading.Thread(target=upload)
        uploader.start()
        times = []
        with closing(connect(server)) as connection:
            while not done.is_set():
                began = time.monotonic()
                reply = ask(connection, "POST", "/v2/models/m/infer", infer_body([1.0]))
                times.append(time.monotonic() - began)
                assert reply.status == 200
        uploader.join()
        assert outcome[0].error == "InvalidModel"
        assert len(times) >= 10
        assert sorted(times)[len(times) // 2] < 0.05
        assert max(times) < 2


@pytest.mark.parametrize("count", [1, 5])
def test_many_clients_at_once(server, count):
    """Answers belong to their requests, however many come at once."""

    def one(value: int) -> bool:
        body = infer_body([float(value)] * 3, id=str(value))
        document = request(server, "POST", "/v2/models/identity-fp32/infer", body).json()
        return document["id"] == str(value) and document["outputs"][0]["data"] == [value] * 3

    with ThreadPoolExecutor(count) as clients:
        assert all(clients.map(one, range(30)))


@pytest.mark.parametrize("max_batch", [1, 16])
def test_answers_are_right_when_requests_are_batched(max_batch):
    """Each has its own rows, and as many as it sent."""
    config = {"runs": 1, "threads": 1, "max_batch": max_batch}

    def one(value: int) -> bool:
        rows = [[float(value)] * WIDTH] * (1 + value % 3)
        body = {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [len(rows), WIDTH], "data": rows}]
        }
        document = request(server, "POST", SLOW, json.dumps(body).encode()).json()
        (output,) = document["outputs"]
        return output["data"] == [value] * len(rows) * WIDTH

    with (
        start_server(models={"slow": slow(layers=10)}, config=config) as server,
        ThreadPoolExecutor(8) as clients,
    ):
        assert all(clients.map(one, range(60)))
