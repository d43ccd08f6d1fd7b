"""The benchmarks start, and that of verification measures every platform."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from blindai.platforms import VERIFIERS
from tests.docs.pages import ROOT
from tests.platforms.vectors import VECTORS

REAL = {"sgx", "tdx", "sev-snp", "nitro", "tpm", "azure-vtpm", "nvidia-gpu"}


@pytest.mark.slow
def test_every_platform_is_measured(tmp_path):
    """Fakes of all platforms have a row, and real evidence too where it is there."""
    results = tmp_path / "results.json"
    command = [sys.executable, ROOT / "benchmarks" / "verification.py", "--rounds", "2"]
    command += ["--vectors", VECTORS, "--json", results]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(results.read_text())["results"]
    fakes = {row["platform"] for row in rows if row["name"].startswith(row["platform"])}
    assert fakes == set(map(str, VERIFIERS))
    assert all(row["first_ms"] > 0 and row["median_ms"] > 0 for row in rows)
    if (VECTORS / "manifest.json").is_file():
        assert {row["platform"] for row in rows if " " in row["name"]} == REAL
        assert "evidence of real machines" in done.stdout
    else:
        assert "skipped: no evidence of real machines" in done.stdout


@pytest.mark.parametrize("name", ["compare", "grpc_serving", "receipts", "scheduler", "front_end"])
def test_starts(name):
    """Each benchmark finds all that it imports; what it measures is no matter of a test."""
    command = [sys.executable, ROOT / "benchmarks" / f"{name}.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


def test_the_page_has_the_results():
    """The tables of docs/performance.md are those of the run that is in results.json."""
    command = [sys.executable, ROOT / "benchmarks" / "table.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
