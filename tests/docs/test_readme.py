"""Every command and every line of code in the README is run, in its order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import blindai
from blindai.testing import start_server
from tests.cli.conftest import tiny_model
from tests.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language):
    """Return the README's code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.onnx").write_bytes(tiny_model())
    np.save(tmp_path / "x.npy", np.ones((1, 4), np.float32))
    return tmp_path


def test_shell_blocks(folder):
    """The two terminals of the README work as they stand, but for the port numbers."""
    make, serve, use = blocks("sh")
    assert make.split("\n")[:2] == ["make demo", "make test"]
    attested, public = free_ports(2)
    bin_folder = Path(sys.executable).parent
    env = os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}"}
    command = f"exec {serve.strip()} --port {attested} --public-port {public} --no-grpc"
    server = subprocess.Popen(
        ["bash", "-c", command], cwd=folder, env=env, stdout=subprocess.PIPE, text=True
    )
    try:
        assert any(line.startswith("ready ") for line in server.stdout)
        script = "set -e\n" + use.replace("50051", str(attested))
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "SIMULATED" in done.stdout
        with np.load(folder / "out.npz") as outputs:
            assert outputs["y"].tolist() == [[2, 2, 2, 2]]
    finally:
        server.terminate()
        assert server.wait(30) == 0
        server.stdout.close()


@pytest.mark.filterwarnings("ignore::blindai.SimulationWarning")
def test_python_block(folder, monkeypatch):
    """The five lines run, and give what their comment says."""
    (code,) = blocks("python")
    monkeypatch.chdir(folder)
    with start_server() as server:
        scope = {"token": server.token}
        code = code.replace("localhost:50051", server.address)
        lines = code.rstrip().replace(
            '    result["y"]', '    answer = (result["y"], result[0], result.y)'
        )
        exec(compile(lines, "README.md", "exec"), scope)
    for array in scope["answer"]:
        np.testing.assert_array_equal(array, [[2, 4, 6, 8]])


def test_policy_block():
    """The policy in the README is a policy."""
    (text,) = blocks("toml")
    policy = blindai.Policy.from_toml(text)
    assert policy.accept[0].minimum["snp"] == 14
    assert "tiny" in policy.models


def test_make_targets_exist():
    """Each `make` target that a document names exists."""
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"`make ([a-z][a-z-]*)", document.read_text()):
            assert target in targets, f"{document.name} names make {target}"


def test_links_lead_somewhere():
    """Each relative link in a document leads to a file."""
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name} links to {link}"


@pytest.mark.slow
def test_demo():
    """`blindai demo` runs to its end and says what it proved."""
    pytest.importorskip("tokenizers")
    done = subprocess.run(
        [sys.executable, "-m", "blindai", "demo"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "bit for bit" in done.stdout
    assert "refused: AppraisalError" in done.stdout
