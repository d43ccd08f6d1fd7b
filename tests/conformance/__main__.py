"""Run all cases through one server: `make conformance`.

    python -m tests.conformance [--write]

Exits with 1 if a case is not what `not_served.toml` says. `--write` writes that list, and the
page that shows it, anew.
"""

# ruff: noqa: T201 - a command, which prints
from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

import onnx
import onnxruntime

import blindai
from blindai.testing import start_server
from tests.conformance.cases import Case, load_cases
from tests.conformance.verdicts import LIST, REASONS, SERVED, judge, load_list

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "conformance.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the list and the page anew")
    options = parser.parse_args()
    begun = time.monotonic()
    verdicts = judge_all(load_cases())
    counts = {kind: list(verdicts.values()).count(kind) for kind in (SERVED, *REASONS)}
    print(f"{len(verdicts)} cases in {time.monotonic() - begun:.0f} s")
    for kind, count in counts.items():
        print(f"{count:>6}  {kind}")
    if options.write:
        LIST.write_text(write_list(verdicts))
        PAGE.write_text(write_page(verdicts))
    known = load_list()
    changed = [
        f"{name}: expected {known.get(name, SERVED)}, came {verdict}"
        for name, verdict in verdicts.items()
        if verdict != known.get(name, SERVED)
    ]
    changed += [f"{name}: listed, but no case" for name in known if name not in verdicts]
    print("\n".join(changed) or "as listed")
    return int(bool(changed))


def judge_all(cases: list[Case]) -> dict[str, str]:
    """Return what becomes of each case, through attested TLS in simulation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", blindai.SimulationWarning)
        with (
            start_server() as server,
            blindai.connect(server.address, simulation=True, token=server.token) as client,
        ):
            return {case.name: judge(case, client) for case in cases}


def write_list(verdicts: dict[str, str]) -> str:
    lines = [
        "# Cases of the onnx package that are not served, by reason: see verdicts.py.",
        "# Written by `python -m tests.conformance --write`.",
        f'onnx = "{onnx.__version__}"',
        f'onnxruntime = "{onnxruntime.__version__}"',
        "",
        "[not_served]",
    ]
    for reason in REASONS:
        names = sorted(name for name, verdict in verdicts.items() if verdict == reason)
        lines += [f"{reason} = [", *(f'  "{name}",' for name in names), "]"]
    return "\n".join(lines) + "\n"


def write_page(verdicts: dict[str, str]) -> str:
    served = list(verdicts.values()).count(SERVED)
    lines = [
        "# ONNX conformance",
        "",
        "Written by `python -m tests.conformance --write`; `make conformance` checks it.",
        "",
        f"Of the {len(verdicts)} cases for single operators in onnx {onnx.__version__},",
        f"{served} pass through a server: over attested TLS, in the protocol's binary form, with",
        f"the bytes that onnxruntime {onnxruntime.__version__} returns in process. The others are:",
        "",
        "| cases | why they are not served |",
        "| ---: | --- |",
    ]
    named = {
        reason: sorted(name for name, verdict in verdicts.items() if verdict == reason)
        for reason in REASONS
    }
    lines += [f"| {len(named[reason])} | {text} |" for reason, text in REASONS.items()]
    for reason, text in REASONS.items():
        lines += ["", f"## {text}", ""]
        lines += [f"- `{name}`" for name in named[reason]] or ["None."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
