"""`make soak`: mixed load for half an hour; what it cost, what failed, and whether memory grew.

It fails where an outcome is unexplained, where memory or file descriptors grow, where a model is
not as it was left, or where the server does not end in order.
"""

from __future__ import annotations

import argparse
import collections
import json
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from tests import reliability
from tests.served import Ended, Served, serving
from tests.server.talk import authorized, request
from tests.soak.actors import ACTORS, EXPLAINED, MODELS, Outcome, act
from tests.soak.slope import Slope, slope_of

SAMPLE_SECONDS = 1.0
WARM_UP = 0.25  # of the time
MIB = 1 << 20
# Growth that is less than this is not told from none: a day would add 140 MiB.
FLAT_KIB_PER_MINUTE = 100.0


@dataclass
class Record:
    """What happened, counted while it happens."""

    outcomes: dict[str, collections.Counter] = field(
        default_factory=lambda: collections.defaultdict(collections.Counter)
    )
    seconds: dict[str, list[float]] = field(default_factory=lambda: collections.defaultdict(list))
    unexpected: collections.Counter = field(default_factory=collections.Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, outcome: Outcome) -> None:
        """Count one call."""
        with self.lock:
            self.outcomes[outcome.actor][outcome.kind] += 1
            self.seconds[outcome.actor].append(outcome.seconds)
            if outcome.unexpected:
                self.unexpected[f"{outcome.actor}: {outcome.unexpected[:200]}"] += 1

    @property
    def kinds(self) -> collections.Counter:
        """All outcomes but "ok", over all actors."""
        total = sum(self.outcomes.values(), collections.Counter())
        del total["ok"]
        return total


@dataclass(frozen=True, slots=True)
class Sample:
    """The server's process at one time."""

    minutes: float
    rss: int
    files: int
    threads: int


def main() -> int:
    """Run a soak; return 0 if nothing was lost, unexplained or growing."""
    parser = argparse.ArgumentParser(description="Mixed load on a real server, for long.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--write", action="store_true", help="write docs/reliability.md")
    parser.add_argument("--samples", type=Path, help="write the samples to this file, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="blindai-soak-") as folder:
        vault = Path(folder) / "vault"
        with serving("--sealed-models", vault) as server:
            samples, record = soak(server, options.minutes)
            if server.process.poll() is not None:
                ended = server.wait()
                sys.stdout.write(f"FAILED: the server ended with {ended.status}\n")
                sys.stdout.write("\n".join(ended.log[-50:]) + f"\n{samples[-1]}\n")
                for what, count in record.unexpected.most_common(20):
                    sys.stdout.write(f"{count} x {what}\n")
                return 1
            left = {
                m["name"] for m in request(server, "GET", "/blindai/v1/models").json()["models"]
            }
            ended = server.stop()
        with serving("--sealed-models", vault) as server:
            back = {
                m["name"] for m in request(server, "GET", "/blindai/v1/models").json()["models"]
            }
    if options.samples:
        options.samples.write_text(json.dumps([asdict(each) for each in samples]))
    text, faults = report(options.minutes, samples, record, ended)
    if left != back:
        faults.append(f"models before and after a restart differ: {sorted(left ^ back)}")
    sys.stdout.write(text + "\n\n")
    for fault in faults:
        sys.stdout.write(f"FAILED: {fault}\n")
    if options.write and not faults:
        reliability.write("soak", text)
    return 1 if faults else 0


def soak(server: Served, minutes: float) -> tuple[list[Sample], Record]:
    """Load a server with all actors, and look at its process meanwhile."""
    for name, model in MODELS.items():
        reply = request(server, "PUT", f"/blindai/v1/models/{name}", model, authorized(server))
        if reply.status not in {200, 201}:
            raise RuntimeError(reply.body)
    record, stop, samples = Record(), threading.Event(), []
    threads = [
        threading.Thread(target=act, args=(actor, pause, server, stop, record.add))
        for actor, (count, pause) in ACTORS.items()
        for _ in range(count)
    ]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    while (passed := time.monotonic() - began) < minutes * 60 and server.process.poll() is None:
        samples.append(Sample(passed / 60, server.rss, server.files, server.status("Threads")))
        time.sleep(SAMPLE_SECONDS)
    stop.set()
    for thread in threads:
        thread.join(60)
    return samples, record


def report(
    minutes: float, samples: list[Sample], record: Record, ended: Ended
) -> tuple[str, list[str]]:
    """Return the result as Markdown, and what is wrong with it."""
    faults = [f"{count} x {what}" for what, count in record.unexpected.most_common(20)]
    kinds = record.kinds
    faults += [f"no explanation for {kind!r}" for kind in kinds if kind not in EXPLAINED]
    counted = collections.Counter(kinds)
    if ended.status != 0:
        faults.append(f"exit {ended.status}: {ended.log[-3:]}")
    faults += [f"logged: {line[:300]}" for line in ended.log if "error" in line.lower()][:20]
    warm = [each for each in samples if each.minutes >= minutes * WARM_UP]
    memory = growth(warm, lambda each: each.rss / 1024)
    files = growth(warm, lambda each: float(each.files))
    if memory.low > 0 and memory.high > FLAT_KIB_PER_MINUTE:
        faults.append(f"memory grows: {memory}")
    if files.low > 0 and files.high * minutes > 5:
        faults.append(f"file descriptors grow: {files}")
    calls = sum(count for each in record.outcomes.values() for count in each.values())
    resident = [each.rss / MIB for each in warm]
    lines = [
        (
            f"{reliability.where_and_when()} {minutes:g} minutes, {calls:,} calls by "
            f"{sum(count for count, _ in ACTORS.values())} clients in {len(ACTORS)} roles, "
            f"{sum(kinds.values()):,} of them meant to fail; unexplained: "
            f"{sum(record.unexpected.values())}."
        ),
        "",
        (
            f"- **Memory** (RSS, after a warm-up of {minutes * WARM_UP:g} minutes, {len(warm)} "
            f"samples): {resident[0]:.0f} MiB at first, {resident[-1]:.0f} at the end, "
            f"{min(resident):.0f} to {max(resident):.0f} between; slope {memory.value:+.1f} "
            f"KiB/min, 95 % confidence {memory.low:+.1f} to {memory.high:+.1f}."
        ),
        (
            f"- **File descriptors**: {min(s.files for s in warm)} to {max(s.files for s in warm)}"
            f", slope {files.value:+.3f}/min ({files.low:+.3f} to {files.high:+.3f}); **threads** "
            f"{min(s.threads for s in warm)} to {max(s.threads for s in warm)}."
        ),
        (
            f"- **End**: SIGTERM, exit {ended.status} after {ended.seconds:.1f} s; a restart has "
            "the same models."
        ),
        "",
        reliability.table(
            ["who", "calls", "as they should", "median ms", "p99 ms"],
            [
                [
                    f"`{actor.__name__}`",
                    f"{sum(record.outcomes[actor.__name__].values()):,}",
                    f"{sum(record.outcomes[actor.__name__].values()) - wrong(record, actor):,}",
                    f"{statistics.median(times) * 1000:.1f}",
                    f"{np.quantile(times, 0.99) * 1000:.0f}",
                ]
                for actor in ACTORS
                if (times := record.seconds[actor.__name__])
            ],
        ),
        "",
        reliability.table(
            ["what was not answered with success", "times", "why"],
            [
                [f"`{kind}`", f"{n:,}", EXPLAINED.get(kind, "?")]
                for kind, n in sorted(counted.items())
            ],
        ),
    ]
    return "\n".join(lines), faults


def wrong(record: Record, actor: object) -> int:
    """Return how many calls of an actor came to what they must not."""
    return record.outcomes[actor.__name__]["unexpected"]


def growth(samples: list[Sample], what: object) -> Slope:
    """Return by how much something grows in a minute."""
    return slope_of([each.minutes for each in samples], [what(each) for each in samples])


if __name__ == "__main__":
    sys.exit(main())
