"""The examples as files; `make examples` runs them.

Where one is prepared, the smallest is run too.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.parent for path in ROOT.glob("examples/*/prepare.py"))
SMALLEST = ROOT / "examples/breast-cancer"


@pytest.fixture(params=EXAMPLES, ids=lambda folder: folder.name)
def folder(request):
    return request.param


def test_there_are_examples():
    """The pattern finds them: no test below passes for want of any."""
    assert SMALLEST in EXAMPLES
    assert len(EXAMPLES) > 5


def test_each_is_complete(folder):
    """Whoever opens a folder finds all five files that the gallery speaks of, and a picture."""
    for name in ("README.md", "run.py", "requirements.in", "requirements.txt", "shown.png"):
        assert (folder / name).is_file(), name
    assert os.access(folder / "serve", os.X_OK)
    assert len(list(folder.glob("test_*.py"))) == 1


def test_each_says_what_is_secret_to_whom(folder):
    """The README has the table, the command, and says that it is simulation."""
    text = (folder / "README.md").read_text()
    assert "| secret to | seen by the enclave | seen by the machine's operator |" in text
    assert f"make examples NAMES={folder.name}" in text
    assert "simulation" in text
    assert "What it proves" in text


def test_each_is_in_the_gallery(folder):
    """The page of all examples shows it."""
    text = (ROOT / "examples/README.md").read_text()
    assert f"]({folder.name}/)" in text
    assert f"({folder.name}/shown.png)" in text


def test_each_asks_for_a_policy_and_pins_its_weights(folder):
    """No example teaches to send data with `simulation=True` alone: only owners upload so."""
    tree = ast.parse((folder / "run.py").read_text())
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "blindai.connect"
    ]
    assert any(key.arg == "policy" for call in calls for key in call.keywords)
    written = folder / "policy.toml"
    source = written.read_text() if written.exists() else (folder / "prepare.py").read_text()
    assert "[models]" in source
    assert "sha256:" in source


def test_each_lock_has_hashes_and_no_address(folder):
    """Everything that is installed is checked, from wherever the installer takes it."""
    for lock in folder.glob("*.txt"):
        text = lock.read_text()
        assert "http" not in re.sub(r"^(httpx|httpcore|httptools)\S*", "", text, flags=re.MULTILINE)
        packages = len(re.findall(r"^[A-Za-z0-9._-]+==", text, re.MULTILINE))
        assert packages
        assert len(re.findall(r"\\\n    --hash=sha256:", text)) >= packages


def test_the_smallest_runs():
    """Where `make examples` has prepared it: a server as the operator starts it, and the client."""
    if not (SMALLEST / ".venv/.done").exists() or not (SMALLEST / "build/.prepared").exists():
        pytest.skip("not prepared: make examples NAMES=breast-cancer")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(SMALLEST)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=110)
    assert ran.returncode == 0, ran.stdout
    assert json.loads((SMALLEST / "build/result.json").read_text())["difference"] < 1e-6


def test_the_notebooks_keep_what_they_print():
    """Each has its outputs, none of them an error, so that a reader need not run it."""
    notebooks = sorted(ROOT.glob("notebooks/*.ipynb"))
    assert len(notebooks) == 4
    for path in notebooks:
        cells = json.loads(path.read_text())["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        assert len(outputs) > 3, path.name
        assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
