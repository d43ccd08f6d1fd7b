"""`make faults`: break a real server in every way we know, many times, and count what was lost.

It fails where anything was lost. Mounting a small disk needs root; without it, that is said.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests import reliability
from tests.faults import crowd, disk, times, weights
from tests.faults.disk import Finding
from tests.faults.kill import Tally, kill_rounds

SKIPPED = "skipped: only root may mount a small disk"


def main() -> int:
    """Make faults; return 0 if nothing was lost."""
    parser = argparse.ArgumentParser(description="Break a real server, and count what is lost.")
    parser.add_argument("--rounds", type=int, default=300, help="of kill -9")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--write", action="store_true", help="write docs/reliability.md")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="blindai-faults-") as name:
        folder = Path(name)
        findings = {}
        for number, (what, make) in enumerate(FAULTS.items()):
            try:
                findings[what] = make(folder / str(number))
            except (AssertionError, OSError, RuntimeError) as error:
                # The others are worth knowing all the same.
                findings[what] = Finding(0, 1, f"failed: {type(error).__name__}: {error}"[:500])
            sys.stdout.write(f"{what}: {findings[what]}\n")
            sys.stdout.flush()
        (folder / "kill").mkdir()
        tally = kill_rounds(folder / "kill", options.rounds, seed=options.seed)
    took = (time.monotonic() - began) / 60
    text = report(tally, findings, f"{took:.0f} minutes, seed {options.seed}")
    sys.stdout.write(text + "\n")
    lost = tally.losses + sum(finding.losses for finding in findings.values())
    if options.write and not lost:
        reliability.write("faults", text)
    sys.stdout.write(f"\nlost: {lost}\n")
    return 1 if lost else 0


def on_small_disk(make: Callable[[Path], Finding]) -> Callable[[Path], Finding]:
    """Return what makes a fault on a disk of its own."""

    def fault(folder: Path) -> Finding:
        with disk.small_disk(folder) as mounted:
            return make(mounted) if mounted else Finding(0, 0, SKIPPED)

    return fault


def in_folder(make: Callable[..., Finding], *arguments: int) -> Callable[[Path], Finding]:
    """Return what makes a fault with a folder for it."""

    def fault(folder: Path) -> Finding:
        folder.mkdir()
        return make(folder, *arguments)

    return fault


FAULTS: dict[str, Callable[[Path], Finding]] = {
    "disk full": on_small_disk(disk.full),
    "disk read-only": on_small_disk(disk.read_only),
    "sealed files damaged": in_folder(lambda f: disk.corrupted(f, 5, seed=1)),
    "clock jumps": in_folder(times.jumps),
    "no file descriptors": in_folder(crowd.no_descriptors),
    "2,000 connections that idle or trickle": in_folder(crowd.crowd, 2000),
    "200 uploads at once": in_folder(crowd.uploads, 200),
    "hostile models": in_folder(weights.hostile),
    "SIGTERM under load": in_folder(crowd.terminated, 10),
}


def report(tally: Tally, findings: dict[str, Finding], how: str) -> str:
    """Return the result as Markdown."""
    killed = ", ".join(f"{phase} {n}" for phase, n in tally.killed.most_common())
    rows = [[what, f.faults, f.losses, f.said] for what, f in findings.items()]
    said = (
        f"{tally.rounds} lives of a server, killed during: {killed}; {tally.stopped} ended by "
        f"SIGTERM; {tally.acknowledged:,} uploads and deletions acknowledged, "
        f"{tally.compared:,} models run after restarts: {tally.lost} lost, {tally.extra} that "
        f"must not be there, {tally.damaged} damaged, {tally.leftovers} files left over"
    )
    rows.insert(0, ["kill -9", sum(tally.killed.values()), tally.losses, said])
    return "\n".join(
        [
            f"{reliability.where_and_when()} {how}.",
            "",
            reliability.table(["fault", "times", "lost", "what happened"], rows),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
