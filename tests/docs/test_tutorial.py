"""The tutorial works as it stands, from its first block to its last, but for the port."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.docs.pages import DOCS, blocks
from tests.ports import free_ports

PAGE = DOCS / "tutorial.md"


def test_tutorial(tmp_path):
    """A server, a verification, a prediction, and a receipt that verifies."""
    make_model, predict = (block.text for block in blocks("python", PAGE))
    serve, verify, check = (block.text.strip() for block in blocks("sh", PAGE))
    attested, public, grpc = map(str, free_ports(3))
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(*command):
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == 0, done.stderr or done.stdout
        return done.stdout

    run(sys.executable, "-c", make_model)
    ports = f"--port {attested} --public-port {public} --grpc-port {grpc}"
    server = subprocess.Popen(
        ["bash", "-c", f"exec {serve} {ports}"],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        lines = iter(server.stdout.readline, "")
        assert any(line.startswith("ready ") for line in lines)
        assert "SIMULATED" in run("bash", "-c", verify.replace("50051", str(attested)))
        shown = run(sys.executable, "-W", "ignore", "-c", predict.replace("50051", str(attested)))
        assert shown.startswith("[[0.5")
        assert "SIMULATED" in run("bash", "-c", check)
    finally:
        server.terminate()
        assert server.wait(30) == 0
        server.stdout.close()
