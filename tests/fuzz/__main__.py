"""`make fuzz`: every parser for some time under atheris, then the HTTP surface; counts and crashes.

It fails where anything was found. What was found is in build/fuzz, to become a regression test by
being copied into tests/fuzz/corpus.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests import reliability
from tests.fuzz import api
from tests.fuzz.targets import TARGETS

FOLDER = Path("build/fuzz")
_DONE = re.compile(r"#(\d+)\s+DONE\s+cov: (\d+)")
# What libFuzzer names what it found.
FOUND = ("crash-*", "timeout-*", "oom-*", "leak-*")


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one target.

    Attributes:
        runs: Inputs that were tried.
        coverage: Edges that were seen.
        found: Files with inputs that must not do what they did.
        log: The end of what the fuzzer said.
    """

    runs: int
    coverage: int
    found: list[Path]
    log: str


def main() -> int:
    """Fuzz everything; return 0 if nothing was found."""
    parser = argparse.ArgumentParser(description="Fuzz every parser, and the HTTP surface.")
    parser.add_argument("--seconds", type=int, default=60, help="for each parser")
    parser.add_argument("--examples", type=int, default=100, help="for each operation, twice")
    parser.add_argument("--write", action="store_true", help="write docs/reliability.md")
    parser.add_argument("names", nargs="*", help="parsers; all of them otherwise")
    options = parser.parse_args()
    names = options.names or list(TARGETS)
    began = time.monotonic()
    # Every other one, so that the slow ones are shared out.
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda half: fuzz(half, options.seconds), (names[::2], names[1::2])))
    results = {name: result_of(name) for name in names}
    surface = {} if options.names else api.fuzz(options.examples)
    failures = [f"{n}: {path}" for n, result in results.items() for path in result.found]
    failures += [f"{n}: no end of a run\n{r.log}" for n, r in results.items() if not r.runs]
    failures += [f"{port}: {f}" for port, each in surface.items() for f in each.failures.items()]
    text = report(options.seconds, results, surface, time.monotonic() - began)
    sys.stdout.write(text + "\n\n" + "".join(f"FOUND: {each}\n" for each in failures))
    if options.write and not failures:
        reliability.write("fuzz", text)
    return 1 if failures else 0


def fuzz(names: list[str], seconds: int) -> None:
    """Fuzz some parsers, one after the other."""
    for name in names:
        folder = FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        for pattern in (*FOUND, "log"):
            for path in folder.glob(pattern):
                path.unlink()
    if names:
        command = [sys.executable, "-m", "tests.fuzz.guided", str(FOLDER), ",".join(names)]
        command += [f"-max_total_time={seconds}", "-rss_limit_mb=3000"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.stdout.write(done.stderr[-2000:])


def result_of(name: str) -> Result:
    """Return what came of a parser."""
    folder = FOLDER / name
    log = folder / "log"
    text = log.read_text(errors="replace") if log.exists() else ""
    last = _DONE.search(text)
    found = [path for pattern in FOUND for path in folder.glob(pattern)]
    return Result(int(last[1]) if last else 0, int(last[2]) if last else 0, found, text[-2000:])


def report(
    seconds: int, results: dict[str, Result], surface: dict[str, api.Surface], took: float
) -> str:
    """Return the result as Markdown."""
    rows = [[f"`{n}`", f"{r.runs:,}", r.coverage, len(r.found)] for n, r in results.items()]
    lines = [
        (
            f"{reliability.where_and_when()} {seconds} s for each of {len(results)} parsers, two "
            f"at a time, {took / 60:.0f} minutes in all; "
            f"{sum(result.runs for result in results.values()):,} inputs, "
            f"{sum(len(result.found) for result in results.values())} of them crashes or hangs."
        ),
        "",
        reliability.table(["parser", "inputs", "edges", "found"], rows),
    ]
    for port, each in surface.items():
        counted = ", ".join(f"{status}: {n:,}" for status, n in sorted(each.statuses.items()))
        lines += [
            "",
            (
                f"schemathesis on the {port} port: {each.cases:,} requests for {each.operations} "
                f"operations, {len(each.failures)} findings. By status: {counted}."
            ),
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
