"""What BlindAI set out to reach, and what a run of `compare.py` found of it."""

from __future__ import annotations

from typing import NamedTuple

PLAIN, BATCHING, AUTO = "blindai", "blindai, batching", 'blindai, precision="auto"'
RAW = "raw onnxruntime"
# Workload and clients → (which of ours, peer, how many times its rate).
_BESIDE_PEERS = {
    ("tiny", 64): [(PLAIN, peer, 7.0) for peer in ("mlserver", "kserve", "pytriton", "litserve")],
    ("distilbert-8", 8): [
        *((BATCHING, peer, 2.0) for peer in ("mlserver", "kserve", "litserve")),
        (BATCHING, "pytriton", 1.15),
    ],
    ("resnet50", 8): [
        *((PLAIN, peer, 2.0) for peer in ("kserve", "litserve")),
        (PLAIN, "mlserver", 1.3),
        (PLAIN, "pytriton", 1.0),
        *((AUTO, peer, 1.7) for peer in ("kserve", "litserve", "mlserver", "pytriton")),
    ],
}


class Outcome(NamedTuple):
    """One goal."""

    goal: str
    wanted: str
    measured: str
    reached: bool


def outcomes(document):
    """Yield what became of each goal whose figures are in a run's results."""
    rows = {(row["workload"], row["clients"], row["system"]): row for row in document["rows"]}
    yield from _beside_raw(rows)
    for (workload, clients), peers in _BESIDE_PEERS.items():
        for ours, peer, times in peers:
            pair = rows.get((workload, clients, ours)), rows.get((workload, clients, peer))
            if all(pair):
                goal = f"{workload}, {clients} clients: {ours} against {peer}"
                yield _at_least(goal, times, pair[0]["req_s"] / pair[1]["req_s"])
    for system in (PLAIN, BATCHING):
        if row := rows.get(("distilbert-8", 32, system)):
            goal = f"distilbert-8, 32 clients: {system}, p99 against p50"
            yield _at_most(goal, 1.5, row["p99_ms"] / row["p50_ms"])
    peaks = [row for row in document["lifecycle"] if row["what"] == "peak beyond the loaded model"]
    if peaks:
        yield _at_most(
            "memory beyond a 1 GB model while it is uploaded", 64, peaks[-1]["value"], "MB"
        )


def _beside_raw(rows):
    wanted = [("distilbert-8", 8, PLAIN, 0.97), ("distilbert-8", 8, BATCHING, 1.7)]
    wanted += [(name, 8, PLAIN, 0.97) for name in ("distilbert-128", "resnet50")]
    wanted += [(name, 8, AUTO, 1.8) for name in ("distilbert-128", "resnet50")]
    for workload, clients, system, ratio in wanted:
        if row := rows.get((workload, clients, system)):
            goal = f"{workload}, {clients} clients: {system} against {RAW}"
            yield _at_least(goal, ratio, row["ratio"])
    for workload in ("distilbert-128", "resnet50"):
        if row := rows.get((workload, 1, PLAIN)):
            yield _at_most(f"{workload}, 1 client: p50 against {RAW}", 1.05, row["p50_ratio"])
    pair = rows.get(("tiny", 1, PLAIN)), rows.get(("tiny", 1, RAW))
    if all(pair):
        more = pair[0]["p50_ms"] - pair[1]["p50_ms"]
        yield _at_most(f"tiny, 1 client: p50 beyond {RAW}", 0.35, more, "ms")


def _at_least(goal, wanted, found, unit=""):
    return Outcome(
        goal, f"≥ {wanted:g} {unit}".strip(), f"{found:.2f} {unit}".strip(), found >= wanted
    )


def _at_most(goal, wanted, found, unit=""):
    return Outcome(
        goal, f"≤ {wanted:g} {unit}".strip(), f"{found:.2f} {unit}".strip(), found <= wanted
    )
