"""Requests per second and latency of the scheduler, against two fixed policies.

In this process, without network: what is measured is which run is made when. The policies take
turns round by round, each for a moment, and medians over the rounds are reported, because
machines are noisy and shared; compare within one run only.

    one at a time   one run after another, each on all cores
    one thread      as many runs as there are cores, each on one thread
    scheduler       blindai.inference.scheduler as it comes: no batches across callers
    batches         the same with SchedulingOptions(max_batch=16)
    company         and with max_wait=0.003: for those that were answered last
    with a copy     and with threads=1 instead: a second copy of the weights

    python benchmarks/scheduler.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
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
from functools import partial
from pathlib import Path

import architectures
import numpy as np

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
                for clients in CLIENTS:
                    results += measure(name, policies, clients, rounds, seconds)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


def workloads(folder, *, quick):
    made = {"distilbert, 8 tokens": partial(architectures.distilbert, 8)}
    if not quick:
        made["distilbert, 128 tokens"] = partial(architectures.distilbert, 128)
        made["resnet50"] = architectures.resnet50
    for name, make in made.items():
        data, arrays = make()
        path = folder / "model.onnx"
        path.write_bytes(data)
        yield name, path, [from_array(key, array) for key, array in arrays.items()]


def make_policies(engine, path, inputs, stack):
    """Return name → a function that serves one request and blocks until it is done."""
    wide = engine.load(path, LoadOptions(threads=CORES))
    narrow = engine.load(path, LoadOptions(threads=1))
    record = ModelRecord(
        ("m",), "0" * 64, 1, wide.inputs, wide.outputs, engine.name, datetime.now(UTC)
    )
    served = {
        "scheduler": SchedulingOptions(),
        "batches": SchedulingOptions(max_batch=16),
        "company": SchedulingOptions(max_batch=16, max_wait=0.003),
        "with a copy": SchedulingOptions(max_batch=16, threads=1),
    }
    policies = {}
    for name, options in served.items():
        entry = LoadedModel(record, wide, path)
        scheduler = stack.enter_context(
            Scheduler(options_for=lambda _, options=options: options, load_again=lambda *_: narrow)
        )
        probed = scheduler.prepare(entry)
        if probed is not None and not probed.result().batches:
            print(f"{name}: no batches, {probed.result().reason}")
        policies[name] = partial(ask, scheduler, entry, inputs)
    # In order of arrival, as a server would: a lock would starve some clients.
    one, many = (stack.enter_context(ThreadPoolExecutor(size)) for size in (1, CORES))
    return {
        "one at a time": lambda: one.submit(wide.run, inputs).result(),
        "one thread": lambda: many.submit(narrow.run, inputs).result(),
        **policies,
    }


def ask(scheduler, entry, inputs):
    return scheduler.submit(entry, inputs).result()


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


if __name__ == "__main__":
    main()
