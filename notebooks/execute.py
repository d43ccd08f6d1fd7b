"""`make notebooks`: run each notebook against a server of its own and check what it prints.

Where BLINDAI_SERVER and BLINDAI_TOKEN name a server, as in the demo's image, that one is used.
A notebook's outputs are kept in it. Here it runs anew, and every cell has to print what is kept,
but for what differs each time: digests, times, ports and paths. `--write` keeps the new outputs.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
from nbclient import NotebookClient

if TYPE_CHECKING:
    from collections.abc import Iterator

NOTEBOOKS = Path(__file__).parent
BLINDAI = NOTEBOOKS.parent / ".venv/bin/blindai"
READY = re.compile(r"ready attested=(\S+)")
CHANGING = (
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)?"), "<time>"),
    (re.compile(r"\b[0-9a-f]{8,}\b…?"), "<digest>"),
    (re.compile(r"(127\.0\.0\.1|localhost):\d+"), "<server>"),
    (re.compile(r"(?:/[\w.-]+){2,}"), "<path>"),
)
CELL_SECONDS = 120


def main() -> int:
    """Run every notebook; return how many printed something else than is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the new outputs")
    write = parser.parse_args().write
    failures = cells = 0
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        kept = nbformat.read(path, as_version=4)
        new = execute(nbformat.read(path, as_version=4))
        expected, found = printed(kept), printed(new)
        cells += len(found)
        if write:
            nbformat.write(new, path)
        elif expected != found:
            failures += 1
            sys.stdout.writelines(difference(path.name, expected, found))
        print(f"{path.name}: {len(found)} cells {'kept' if write else 'ran'}")
    if not failures and not write:
        print(f"notebooks: {cells} cells ran against real servers and printed what they show")
    return failures


def execute(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Run all cells in a folder that is thrown away, with a server that is theirs alone."""
    with tempfile.TemporaryDirectory(prefix="blindai-notebook-") as folder:
        resources = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=CELL_SECONDS, resources=resources)
        with serving(Path(folder) / "token") as server, with_variables(server):
            client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran is nobody's business
    return notebook


@contextmanager
def serving(token_file: Path) -> Iterator[dict[str, str]]:
    """Yield where a server is and its token, as variables: one that is there, or one of our own."""
    if "BLINDAI_SERVER" in os.environ:
        yield {}
        return
    command = [BLINDAI, "serve", "--platform", "simulation", "--token-file", token_file]
    command += ["--port", "0", "--public-port", "0", "--no-grpc"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stdout or ():
                if ready := READY.search(line):
                    yield {
                        "BLINDAI_SERVER": ready[1],
                        "BLINDAI_TOKEN": token_file.read_text().strip(),
                    }
                    break
            else:
                raise SystemExit(f"the server stopped before it was ready (exit {process.wait()})")
        finally:
            process.terminate()


@contextmanager
def with_variables(variables: dict[str, str]) -> Iterator[None]:
    """Have variables in the environment of what is started."""
    before = dict(os.environ)
    os.environ |= {"ORT_DISABLE_TELEMETRY": "1"} | variables
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    """Return what each cell of code printed or returned, without what differs each time."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            texts = [
                output.get("text") or output.get("data", {}).get("text/plain", "")
                for output in cell.outputs
            ]
            text = "".join(texts)
            for pattern, instead in CHANGING:
                text = pattern.sub(instead, text)
            found.append(text)
    return found


def difference(name: str, expected: list[str], found: list[str]) -> Iterator[str]:
    """Yield the lines that are not the same."""
    before = [line + "\n" for line in "\n".join(expected).splitlines()]
    after = [line + "\n" for line in "\n".join(found).splitlines()]
    yield from difflib.unified_diff(before, after, f"{name} as kept", f"{name} as run")


if __name__ == "__main__":
    sys.exit(main())
