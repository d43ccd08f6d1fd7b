"""Makes the tables of docs/performance.md out of benchmarks/results.json.

python benchmarks/table.py [--check]
"""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path

from goals import outcomes

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results.json"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- made by benchmarks/table.py -->", "<!-- end of what it made -->"


_COLUMNS = (
    *("workload", "clients", "system", "tensors travel as", "req/s"),
    *("of raw", "p50 ms", "p99 ms", "CPU µs"),
)


def render(document):
    """Return the tables of a run, in Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    lines = [f"{document['machine']}. Medians of {document['rounds']} rounds. {versions}.", ""]
    lines += [_cells(*_COLUMNS), "| --- | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |"]
    for _, rows in groupby(document["rows"], key=lambda row: (row["workload"], row["clients"])):
        for row in rows:
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
            cells = (
                row["workload"],
                row["clients"],
                row["system"],
                row["speaks"],
                f"{row['req_s']:,.1f}",
                ratio,
                f"{row['p50_ms']:.2f}",
                f"{row['p99_ms']:.2f}",
                f"{row['cpu_us']:,}",
            )
            lines.append(_cells(*cells))
    if document["left_out"]:
        lines += ["", "Not measured:", ""]
        lines += [
            f"- {each['system']}, {each['workload']}: {each['why']}"
            for each in document["left_out"]
        ]
    lines += ["", "| goal | wanted | measured | reached |", "| --- | ---: | ---: | --- |"]
    lines += [
        _cells(each.goal, each.wanted, each.measured, "yes" if each.reached else "**no**")
        for each in outcomes(document)
    ]
    lines += ["", "| paid once | | how |", "| --- | ---: | --- |"]
    lines += [
        f"| {r['what']} | {r['value']} {r['unit']} | {r['how']} |" for r in document["lifecycle"]
    ]
    return "\n".join(lines)


def _cells(*cells):
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def page_with(document, page):
    """Return the page with the tables of this run between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{render(document)}\n\n{END}{after}"


def write(document):
    """Put the tables of this run into the page."""
    PAGE.write_text(page_with(document, PAGE.read_text()))


if __name__ == "__main__":
    results = json.loads(RESULTS.read_text())
    if "--check" in sys.argv:
        sys.exit(PAGE.read_text() != page_with(results, PAGE.read_text()))
    write(results)
