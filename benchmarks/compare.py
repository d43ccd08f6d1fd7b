"""BlindAI beside the raw session and beside its peers: one run, alternating, medians.

Every system serves the same model file; rounds alternate between the systems, so that a busy
machine is busy for all of them; figures are medians over the rounds. Writes
`benchmarks/results.json`, and from that the table in docs/performance.md.

    python benchmarks/compare.py [--quick] [--only tiny,resnet50] [--systems raw,ours] [--keep]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
import warnings
from contextlib import ExitStack
from pathlib import Path

# Before any import of onnxruntime, which would otherwise phone home.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import architectures
import onnxruntime
import systems
import table
from lifecycle import measure_lifecycle
from peers.install import PEERS as INSTALLED

import blindai

warnings.simplefilter("ignore", blindai.SimulationWarning)  # it is what is measured

RESULTS = Path(__file__).with_name("results.json")
OURS = {
    "raw": systems.raw,
    "raw-openvino": systems.raw_openvino,
    "ours": systems.ours,
    "ours-batching": lambda path, inputs, stack: systems.ours(
        path, inputs, stack, name="blindai, batching", serve=("--max-batch", "16"), max_batch=16
    ),
    "ours-auto": lambda path, inputs, stack: systems.ours(
        path, inputs, stack, name='blindai, precision="auto"', precision="auto"
    ),
    "raw-one-thread": lambda path, inputs, stack: systems.raw(
        path, inputs, stack, threads=1
    )._replace(name="raw onnxruntime, one thread"),
}
PEERS = systems.peers()
MAIN = ["raw", "raw-openvino", "ours", "ours-batching", "ours-auto", *PEERS]
ORIGINALS = ["raw", "raw-one-thread", "ours", "ours-auto"]
# Workload → (model and inputs, systems, connections).
WORKLOADS = {
    "tiny": (architectures.tiny, ["raw", "ours", *PEERS], (1, 8, 64)),
    "distilbert-8": (lambda: architectures.distilbert(8), MAIN, (1, 8, 32)),
    "distilbert-128": (lambda: architectures.distilbert(128), MAIN, (1, 8)),
    "resnet50": (architectures.resnet50, MAIN, (1, 8)),
    "602 KB": (lambda: architectures.identity(150_528), ["ours", "kserve", "pytriton"], (1, 4)),
    "8 MB": (lambda: architectures.identity(2_000_000), ["ours", "kserve", "pytriton"], (1, 4)),
    "64 MB": (lambda: architectures.identity(16_000_000), ["ours", "kserve", "pytriton"], (1,)),
    "bert-base-32": (lambda: architectures.bert(32), ORIGINALS, (1, 8)),
    "wav2vec2, 1 s": (architectures.wav2vec2, ORIGINALS, (1, 8)),
    "facenet": (architectures.facenet, ORIGINALS, (1, 8)),
    "yolov5s": (architectures.yolov5s, ORIGINALS, (1,)),
    "gpt2-32": (lambda: architectures.gpt2(32), ORIGINALS, (1,)),
    "whisper encoder": (architectures.whisper_encoder, ORIGINALS, (1,)),
}
QUICK = {
    "tiny": ["raw", "ours"],
    "distilbert-8": ["raw", "ours", "ours-batching"],
    "resnet50": ["raw", "ours"],
    "602 KB": ["ours"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few workloads, no peers, not kept")
    parser.add_argument("--only", help="workloads, with commas between")
    parser.add_argument("--systems", help="with commas between")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument(
        "--keep", action="store_true", help="write results.json and the page anyway"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    rounds = options.rounds or (3 if options.quick else 5)
    seconds = options.seconds or 0.5
    only = options.only.split(",") if options.only else list(QUICK if options.quick else WORKLOADS)
    print(machine(), flush=True)
    partial = options.quick or options.only or options.systems
    document = {
        "machine": machine(),
        "versions": versions(),
        "rounds": rounds,
        "rows": [],
        "left_out": [],
        "lifecycle": measure_lifecycle(quick=options.quick),
    }
    for workload in only:
        make, names, connections = WORKLOADS[workload]
        if options.quick and workload in QUICK:
            names = QUICK[workload]
        if options.systems:
            names = [name for name in names if name in options.systems.split(",")]
        found, missing = compare(workload, make, names, connections, rounds, seconds)
        document["rows"] += found
        document["left_out"] += missing
        if options.keep or not partial:
            # Each time: a run takes long, and may be ended.
            RESULTS.write_text(json.dumps(document, indent=1) + "\n")
            table.write(document)
    if partial and not options.keep:
        print(table.render(document))


def compare(workload, make, names, connections, rounds, seconds):
    """Return rows of one workload, and what could not be measured."""
    model, inputs = make()
    rows, missing = [], []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = folder / "model.onnx"
        path.write_bytes(model)
        running = []
        for name in names:
            try:
                running.append((OURS | PEERS)[name](path, inputs, stack))
            except (systems.NotStartedError, blindai.BlindAIError) as error:
                missing.append({"workload": workload, "system": name, "why": str(error)[:300]})
                print(f"{workload}: left out {name}: {error}", flush=True)
        for count in connections:
            found, gave_up = measure(workload, running, count, rounds, seconds)
            rows += found
            missing += gave_up
    return rows, missing


def measure(workload, running, count, rounds, seconds):
    """Return a row for each running system, and which of them stopped answering."""
    taken = {each: [] for each in running}
    missing = []
    for turn in range(rounds + 1):
        for each in list(taken):
            try:
                # The first is to warm up, and to know how long a window holds several answers.
                load = each.load(count, seconds if turn else seconds / 2)
            except (systems.RefusedError, OSError) as error:
                del taken[each]
                why = f"with {count} clients, in round {turn}: {error}"
                missing.append({"workload": workload, "system": each.name, "why": why[:300]})
                print(f"{workload}: gave up {each.name}: {why}", flush=True)
                continue
            if turn:
                taken[each].append(load)
            else:
                seconds = max(seconds, min(3.0, 2 * load.p50))
            time.sleep(0.05)
    rows = []
    for each, loads in taken.items():
        rate, p50, p99, cpu = (statistics.median(column) for column in zip(*loads, strict=True))
        rows.append(
            {
                "workload": workload,
                "clients": count,
                "system": each.name,
                "speaks": each.speaks,
                "req_s": round(rate, 1),
                "p50_ms": round(p50 * 1e3, 3),
                "p99_ms": round(p99 * 1e3, 3),
                "cpu_us": round(cpu * 1e6),
            }
        )
    raw = next((row for row in rows if row["system"] == "raw onnxruntime"), None)
    for row in rows:
        row["ratio"] = round(row["req_s"] / raw["req_s"], 3) if raw else None
        row["p50_ratio"] = round(row["p50_ms"] / raw["p50_ms"], 3) if raw else None
        print(
            "{workload:<16}{clients:>3} {system:<28} {req_s:>9} req/s  ratio {ratio!s:<6} p50 "
            "{p50_ms:>9} ms  p99 {p99_ms:>9} ms  CPU {cpu_us:>8} µs".format(**row),
            flush=True,
        )
    return rows, missing


def machine():
    """Return a line about this machine."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "",
    )
    return f"{systems.CORES} cores of {model or platform.machine()}, Linux {platform.release()}"


def versions():
    """Return the versions of what is compared."""
    found = {
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "blindai": blindai.__version__,
    }
    return found | {name: each[1][0].partition("==")[2] for name, each in INSTALLED.items()}


if __name__ == "__main__":
    sys.exit(main())
