"""What is paid once: starting, connecting, verifying, uploading; and memory while nothing runs.

`measure_lifecycle` returns a list of `{"what", "value", "unit", "how"}`.
"""

from __future__ import annotations

import hashlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import architectures
import numpy as np
from load import resident_bytes, tree
from onnx import TensorProto, helper
from systems import blindai_server

import blindai

_MB = 1e6
_BIG_MB = (100, 1000)
# In a process of its own: what the library itself takes with the same model.
_IN_PROCESS = """
import os, sys
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
ids = numpy.arange(8, dtype=numpy.int64)[None]
session.run(None, {"ids": ids, "mask": numpy.ones_like(ids)})
print("ready", flush=True)
sys.stdin.read()
"""


def measure_lifecycle(*, quick=False):
    """Return what was measured, and print it."""
    rounds = 3 if quick else 7
    found = [
        *starting(rounds),
        *connecting(rounds),
        *memory(),
        *uploading(_BIG_MB[: 1 if quick else 2]),
    ]
    for row in found:
        print(f"{row['what']:<44}{row['value']:>10} {row['unit']:<4} {row['how']}", flush=True)
    return found


def starting(rounds):
    """Cold start: the command to its line `ready`, no models."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        with blindai_server():
            times.append(time.perf_counter() - began)
    return [_row("cold start to ready", statistics.median(times), "s", f"median of {rounds}")]


def connecting(rounds):
    """Connect, fetch and verify evidence, send one request to the tiny model."""
    model, inputs = architectures.tiny()
    first, second = [], []
    with blindai_server() as (_, address, token), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.onnx"
        path.write_bytes(model)
        with blindai.connect(address, simulation=True, token=token) as client:
            client.upload_model(path, name="tiny")
        for _ in range(rounds * 3):
            began = time.perf_counter()
            with blindai.connect(address, simulation=True) as client:
                client.run_model("tiny", inputs)
                first.append(time.perf_counter() - began)
                began = time.perf_counter()
                client.run_model("tiny", inputs)
                second.append(time.perf_counter() - began)
    how = f"median of {rounds * 3}, simulation"
    return [
        _row("connect, verify, first answer", statistics.median(first) * 1e3, "ms", how),
        _row("the second answer", statistics.median(second) * 1e3, "ms", how),
    ]


def memory():
    """Private memory of an idle server with DistilBERT, against the session in a process."""
    model, inputs = architectures.distilbert(8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model)
        size = len(model)
        del model
        command = [sys.executable, "-c", _IN_PROCESS, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            alone = resident_bytes(process.pid)
            process.stdin.close()
        with blindai_server() as (process, address, token):
            empty = resident_bytes(process.pid)
            with blindai.connect(address, simulation=True, token=token) as client:
                client.upload_model(path, name="model")
                client.run_model("model", inputs)
            time.sleep(1)
            served = resident_bytes(process.pid)
            stored = _stored_bytes()
        stored -= _stored_bytes()
    how = f"DistilBERT's file has {size / _MB:.0f} MB; private memory of the process"
    return [
        _row("in-process session", alone / _MB, "MB", how),
        _row("server with it, idle", served / _MB, "MB", how),
        _row("its file, in the store", stored / _MB, "MB", "beside that, in memory"),
        _row("server without a model", empty / _MB, "MB", "private memory of the process"),
    ]


def uploading(sizes):
    """Time, and memory beyond the loaded model, of one upload of each size."""
    found = []
    for megabytes in sizes:
        with tempfile.TemporaryDirectory() as folder, blindai_server() as (process, address, token):
            path = Path(folder) / "big.onnx"
            _write_big(path, megabytes)
            before = _memory_bytes(process.pid)
            with (
                blindai.connect(address, simulation=True, token=token) as client,
                _Peak(process.pid) as peak,
            ):
                began = time.perf_counter()
                client.upload_model(path, name="big")
                took = time.perf_counter() - began
            after = _memory_bytes(process.pid)
        beyond = max(0, peak.bytes - max(before, after)) / _MB
        found.append(_row(f"upload of {megabytes} MB", took, "s", "receive, hash, load"))
        found.append(
            _row("peak beyond the loaded model", beyond, "MB", "allocated and in the store")
        )
    return found


def _write_big(path, megabytes):
    count = megabytes * 250_000
    weights = np.random.default_rng(0).standard_normal(count, dtype=np.float32).reshape(1000, -1)
    tensor = helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.tobytes(), raw=True)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1000])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", weights.shape[1]])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "big", [x], [y], [tensor]
    )
    opset = [helper.make_opsetid("", 20)]
    path.write_bytes(
        helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()
    )
    hashlib.sha256(path.read_bytes())  # so that its pages are in memory for everybody


class _Peak:
    """Samples a process's memory while it is open."""

    def __init__(self, pid):
        self._pid, self.bytes = pid, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _watch(self):
        while not self._over.wait(0.02):
            self.bytes = max(self.bytes, _memory_bytes(self._pid))


def _memory_bytes(pid):
    """Return what a process and its descendants allocated, and what is in files in memory.

    What is mapped of such a file is in memory once, and counted once.
    """
    allocated = 0
    for each in tree(pid):
        try:
            text = Path(f"/proc/{each}/smaps_rollup").read_text()
        except OSError:
            continue
        allocated += sum(int(n) for n in re.findall(r"^Pss_Anon: +(\d+) kB", text, re.MULTILINE))
    return allocated * 1024 + _stored_bytes()


def _stored_bytes():
    try:
        status = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def _row(what, value, unit, how):
    return {"what": what, "value": round(value, 2), "unit": unit, "how": how}


if __name__ == "__main__":
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    measure_lifecycle(quick="--quick" in sys.argv)
