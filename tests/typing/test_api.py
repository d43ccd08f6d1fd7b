"""mypy agrees with what api.py says of the public types."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def check(path, cache):
    """Run mypy as a user would, strictly and with the project's settings."""
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", cache, path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_public_types():
    """Every assert_type holds, and every misuse that has to be refused is."""
    found = check(HERE / "api.py", ROOT / ".mypy_cache")
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.slow
def test_a_wrong_type_is_found(tmp_path):
    """The check can fail: one wrong assert_type is reported."""
    wrong = tmp_path / "wrong.py"
    text = (HERE / "api.py").read_text("utf-8")
    wrong.write_text(text.replace("client.url, str", "client.url, bytes"))
    found = check(wrong, ROOT / ".mypy_cache")
    assert found.returncode == 1
    assert "Expression is of type" in found.stdout
