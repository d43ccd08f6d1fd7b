"""A budget of memory holds, whoever sends how much at once; what was taken in stays usable."""

import http.client
import json
import re
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import helper, numpy_helper

from blindai.testing.server import start_server
from tests.inference.models import model, value
from tests.server.talk import ask, connect, infer_body, request

TOKEN = "a-token-for-tests-alone"
MIB = 1 << 20
BUDGET = 96 * MIB
WIDTH = 724
# What is no model and no body: half a MiB for each of 200 connections, what runs take, what
# allocators keep. Without a budget it is 1200 MiB more.
SLACK = 256 * MIB


def weights(number):
    """Return a model of 2 MiB that multiplies by a number."""
    weight = numpy_helper.from_array(np.eye(WIDTH, dtype=np.float32) * number, "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    shape = ["n", WIDTH]
    inputs, outputs = [value("x", shape=shape)], [value("y", shape=shape)]
    return model([node], inputs, outputs, [weight]).SerializeToString()


ASKED = json.dumps(
    {
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [1, WIDTH], "data": [1.0] * WIDTH},
        ]
    }
).encode()


@pytest.fixture
def place(tmp_path):
    """A server in a process of its own with a small budget, and what is known of it."""
    settings = tmp_path / "settings.toml"
    settings.write_text(
        f'platform = "simulation"\nport = 0\npublic_port = 0\ngrpc = false\ntoken = "{TOKEN}"\n'
        f'sealed_models = "{tmp_path}/vault"\nstore = "{tmp_path}/store"\n'
        f"[limits]\nmax_memory_bytes = {BUDGET}\nmax_models = 256\n"
    )
    command = [sys.executable, "-m", "blindai", "serve", "--json", "--config", str(settings)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            ready = json.loads(process.stdout.readline())
            yield SimpleNamespace(
                process=process,
                address=ready["attested"],
                public_address=ready["public"],
                store=tmp_path / "store",
            )
        finally:
            process.kill()


def taken(place):
    """Return the bytes that the process and its store really take, and those that it counts."""
    status = Path(f"/proc/{place.process.pid}/status").read_text()
    files = 0
    for path in place.store.rglob("*"):
        with suppress(FileNotFoundError):
            files += path.stat().st_size
    host, port = place.public_address.rsplit(":", 1)
    with closing(http.client.HTTPConnection(host, int(port), timeout=60)) as connection:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    counted = float(
        re.search(r'^blindai_memory_used_bytes{purpose="all"} (\S+)', text, re.MULTILINE)[1]
    )
    return int(re.search(r"RssAnon:\s*(\d+)", status)[1]) * 1024 + files, counted


def put(place, number):
    """Upload a model once; return the status."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    reply = request(place, "PUT", f"/blindai/v1/models/m{number}", weights(number), headers)
    if reply.status == 503:
        assert int(reply.headers["retry-after"]) >= 1
    return reply.status


@contextmanager
def watched(place):
    """Yield a list that grows by what is taken and counted, several times in a second."""
    peaks, over = [], threading.Event()

    def watch():
        while not over.wait(0.1):
            peaks.append(taken(place))

    with ThreadPoolExecutor(1) as thread:
        watching = thread.submit(watch)
        yield peaks
        over.set()
        watching.result()


@pytest.mark.timeout(400)  # a hundred models are encrypted, tried apart and loaded
def test_200_uploads_at_once(place):
    """They are taken in or told to come again; what was taken in runs, beyond what fits at once."""
    base, _ = taken(place)
    together = threading.Barrier(200)

    def upload(number):
        together.wait()
        return put(place, number)

    with watched(place) as peaks:
        with ThreadPoolExecutor(200) as threads:
            statuses = Counter(threads.map(upload, range(1, 201)))
        assert set(statuses) == {201, 503}
        for number in range(201, 225):
            assert put(place, number) == 201
        with closing(connect(place)) as connection:
            listed = ask(connection, "GET", "/blindai/v1/models").json()["models"]
            assert len(listed) == statuses[201] + 24
            assert sum(each["size"] for each in listed) * 3 > BUDGET
            for name in [each["name"] for each in listed]:
                answer = ask(connection, "POST", f"/v2/models/{name}/infer", ASKED)
                assert answer.status == 200, answer.body
                assert answer.json()["outputs"][0]["data"][0] == int(name[1:])
    real, counted = (max(each) for each in zip(*peaks, strict=True))
    assert counted <= BUDGET
    assert real - base <= BUDGET + SLACK, f"{(real - base) // MIB} MiB"


def test_bodies_and_models_share_one_budget():
    """Bodies are refused where models have the memory, though there may be more of bodies."""
    body = infer_body([1.0]) + b" " * (9 * MIB)
    held = {"max_memory_bytes": 16 * MIB, "max_bodies_bytes": 1 << 30}
    with start_server(models={"m": weights(1)}, **held) as server:
        refused = request(server, "POST", "/v2/models/m/infer", body)
        assert (refused.status, refused.error) == (503, "Overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        small = request(server, "POST", "/v2/models/m/infer", ASKED)
        assert small.status == 200
    with start_server(models={"m": weights(1)}, **held | {"max_memory_bytes": 64 * MIB}) as server:
        assert request(server, "POST", "/v2/models/m/infer", body).status == 400
