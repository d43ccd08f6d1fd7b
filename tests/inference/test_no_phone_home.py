"""Nothing is sent anywhere: onnxruntime's telemetry stays off."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = """
import sys
from pathlib import Path
import numpy as np
from blindai.inference.engine import LoadOptions
from blindai.inference.onnx import OnnxEngine
from blindai.inference.tensors import from_array
model = OnnxEngine().load(Path(sys.argv[1]), LoadOptions(threads=2))
print(model.run([from_array("x", np.array([1.0], np.float32))])[0].array.item())
model.close()
"""


def traced(tmp_path: Path, code: str, *arguments: str) -> tuple[str, list[str], list[Path]]:
    """Run Python with an empty home in a network of its own.

    Returns its output, its calls of socket and connect, and the files it made at home.
    """
    home = tmp_path / "home"
    home.mkdir()
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-qq", "-e", "trace=socket,connect,sendto", "-o", str(trace)]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("ORT_")}
    variables |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    ran = subprocess.run(
        ["unshare", "-n", *strace, sys.executable, "-c", code, *arguments],
        env=variables,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    calls = [line for line in trace.read_text().splitlines() if "socket(" in line or "AF_" in line]
    return ran.stdout.strip(), calls, sorted(home.rglob("*"))


def usable(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.skipif(not usable("unshare", "-n"), reason="unshare -n is missing or forbidden"),
    pytest.mark.skipif(not usable("strace"), reason="strace is missing or forbidden"),
]


def network(calls: list[str]) -> list[str]:
    return [call for call in calls if "AF_INET" in call]


def test_running_a_model_connects_nowhere_and_writes_nothing_at_home(tmp_path):
    """In a network without an exit, not even a socket is asked for."""
    from tests.inference.models import add  # noqa: PLC0415 - loads onnx

    path = tmp_path / "model.onnx"
    path.write_bytes(add(1.0))
    output, calls, files = traced(tmp_path, RUN, str(path))
    assert output == "2.0"
    assert network(calls) == []
    assert files == []


def test_the_trace_sees_a_connection(tmp_path):
    """Else the test above could not fail."""
    code = (
        "import socket, pathlib\n"
        "pathlib.Path.home().joinpath('left').touch()\n"
        "s = socket.socket()\n"
        "print(s.connect_ex(('127.0.0.1', 9)) != 0)"
    )
    output, calls, files = traced(tmp_path, code)
    assert output == "True"
    assert any("connect(" in call for call in network(calls))
    assert [path.name for path in files] == ["left"]
