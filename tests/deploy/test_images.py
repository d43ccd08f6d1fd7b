"""The images as `make images` built them: started, verified and used from outside.

Run by `make images-test`; anywhere else they are skipped, because they have to be built first.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
import uuid

import numpy as np
import pytest

import blindai
from tests.cli.conftest import tiny_model
from tests.deploy.programs import DEPLOY
from tests.ports import free_ports

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("BLINDAI_IMAGES") != "1", reason="`make images-test` runs them"
    ),
    pytest.mark.filterwarnings("ignore::blindai.SimulationWarning"),
]
ENGINE = shutil.which("podman") or "docker"
NOTEBOOKS = DEPLOY.parent / "notebooks"
TOKEN = re.compile(r"[?&]token=([0-9a-f]+)")
HARDENED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp")


def engine(
    *arguments: str, check: bool = True, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run podman or docker."""
    settings = {"CONTAINERS_CONF": str(DEPLOY / "containers" / "containers.conf")}
    return subprocess.run(
        [ENGINE, *arguments],
        env=settings | os.environ,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=check,
    )


@contextlib.contextmanager
def container(image: str, *options: str, command: tuple[str, ...] = ()):
    """Yield a running container's name; it is stopped, and its exit code checked, at the end."""
    name = f"blindai-test-{uuid.uuid4().hex}"
    try:
        engine("run", "--detach", "--name", name, *options, image, *command)
        yield name
        engine("stop", "--time", "20", name)
        code = engine("inspect", "--format", "{{.State.ExitCode}}", name).stdout.strip()
        assert code == "0", engine("logs", name).stdout
    finally:
        engine("rm", "--force", name)


def ready(name: str) -> dict[str, str]:
    """Return the token that a server prints, once it is ready."""
    text = wait_for(name, re.compile(r"\nready "))
    (token,) = (line.split()[-1] for line in text.splitlines() if line.startswith("token"))
    return {"token": token, "log": text}


def wait_for(name: str, words: re.Pattern[str]) -> str:
    """Return what a container has printed, once the words are among it."""
    for _ in range(150):
        done = engine("logs", name, check=False)
        text = done.stdout + done.stderr
        if words.search(text):
            return text
        time.sleep(0.2)
    raise AssertionError(text)


@pytest.mark.parametrize("options", [(), HARDENED], ids=["as it is", "hardened"])
def test_server_in_simulation(options, tmp_path):
    """It starts with nothing but its ports, and is verified and used from outside."""
    attested, public = free_ports(2)
    model = tmp_path / "model.onnx"
    model.write_bytes(tiny_model())
    ports = ("-p", f"127.0.0.1:{attested}:50051", "-p", f"127.0.0.1:{public}:50052")
    with container("blindai-server-sim", *ports, *options) as name:
        found = ready(name)
        assert "SIMULATION" in found["log"]
        address = f"127.0.0.1:{attested}"
        with pytest.raises(blindai.AttestationError, match="simulat"):
            blindai.connect(address, policy=blindai.Policy.from_toml(OTHER_POLICY))
        with blindai.connect(address, simulation=True, token=found["token"]) as client:
            client.upload_model(model, name="tiny")
            result = client.run_model("tiny", {"x": np.ones((1, 4), np.float32)})
            assert result[0].tolist() == [[2, 2, 2, 2]]
        health = engine("healthcheck", "run", name, check=False)
        assert health.returncode == 0, health.stdout


OTHER_POLICY = """
version = 1
[[accept]]
platform = "sev-snp"
measurement = ["%s"]
""" % ("ab" * 48)


def test_user_and_files():
    """It is nobody of importance, and brings neither compiler nor installer."""
    shown = json.loads(engine("image", "inspect", "blindai-server-sim").stdout)[0]["Config"]
    assert shown["User"] == "10001"
    assert shown["StopSignal"] in {"SIGTERM", "15"}
    program = (
        "import os, shutil; print(os.getuid(), shutil.which('gcc'), shutil.which('pip'),"
        " os.access('/opt/blindai', os.W_OK))"
    )
    done = engine(
        "run", "--rm", "--entrypoint", "python3", "blindai-server-sim", "-I", "-c", program
    )
    assert done.stdout.split() == ["10001", "None", "None", "False"]


def test_hardware_image_cannot_simulate():
    """Neither by its default nor when it is asked to; and it says what it looked for."""
    done = engine("run", "--rm", "blindai-server", check=False)
    assert done.returncode == 2
    assert "no trusted hardware" in done.stderr
    assert "sev-snp" in done.stderr
    done = engine("run", "--rm", "blindai-server", "--platform", "simulation", check=False)
    assert done.returncode == 2
    assert "no simulation in this installation" in done.stderr
    done = engine(
        *("run", "--rm", "--entrypoint", "python3", "blindai-server", "-I", "-c"),
        "import tpm2_pytss, onnxruntime; print('ok')",
    )
    assert done.stdout.strip() == "ok"


def test_notebooks_run_in_the_demo():
    """All four, in the demo's image as it is, against the server's image, hardened both."""
    (attested,) = free_ports(1)
    ports = ("-p", f"127.0.0.1:{attested}:50051")
    with container("blindai-server-sim", *ports, *HARDENED) as name:
        variables = {
            "BLINDAI_SERVER": f"127.0.0.1:{attested}",
            "BLINDAI_TOKEN": ready(name)["token"],
        }
        given = [word for item in variables.items() for word in ("--env", "=".join(item))]
        done = engine(
            *("run", "--rm", "--network", "host", *HARDENED, *given),
            *("--entrypoint", "python3", "blindai-client-demo", "/notebooks/execute.py"),
            timeout=400,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cells ran against real servers and printed what they show" in done.stdout
    assert done.stdout.count("ran\n") == len(list(NOTEBOOKS.glob("*.ipynb")))


@pytest.mark.parametrize("options", [(), HARDENED], ids=["as it is", "hardened"])
def test_demo(options):
    """JupyterLab starts, is healthy, and shows the notebooks to who has its token only."""
    (port,) = free_ports(1)
    with container("blindai-client-demo", "-p", f"127.0.0.1:{port}:8888", *options) as name:
        log = wait_for(name, TOKEN)
        address = f"http://127.0.0.1:{port}/api/contents"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(address, timeout=10)
        authorized = urllib.request.Request(
            address, headers={"Authorization": f"token {TOKEN.search(log)[1]}"}
        )
        with urllib.request.urlopen(authorized, timeout=10) as answer:
            shown = {entry["name"] for entry in json.load(answer)["content"]}
        assert {path.name for path in NOTEBOOKS.glob("*.ipynb")} <= shown
        inside = "import os; print(os.access('/notebooks/1-quick-tour.ipynb', os.W_OK))"
        can_save = engine("exec", name, "python3", "-c", inside).stdout.strip()
        assert can_save == str(options != HARDENED)
        health = engine("healthcheck", "run", name, check=False)
        assert health.returncode == 0, health.stdout
    shown = json.loads(engine("image", "inspect", "blindai-client-demo").stdout)[0]["Config"]
    assert shown["User"] == "10001"


def test_compose(tmp_path):
    """The compose file starts both images, and the server that it starts is verified and used."""
    compose = shutil.which("podman-compose") or shutil.which("docker-compose")
    if compose is None:
        pytest.skip("no podman-compose or docker-compose here")
    settings = {"CONTAINERS_CONF": str(DEPLOY / "containers" / "containers.conf")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [compose, "--project-name", "blindai-test", "--file", DEPLOY / "compose.yaml"]
        return subprocess.run(
            [*command, *arguments],
            env=settings | os.environ,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )

    model = tmp_path / "model.onnx"
    model.write_bytes(tiny_model())
    try:
        run("up", "--detach")
        found = ready("blindai-test_server_1")
        with blindai.connect("127.0.0.1:50051", simulation=True, token=found["token"]) as client:
            client.upload_model(model, name="tiny")
            result = client.run_model("tiny", {"x": np.ones((1, 4), np.float32)})
            assert result[0].tolist() == [[2, 2, 2, 2]]
        wait_for("blindai-test_demo_1", TOKEN)
        inside = (
            "import blindai; print(blindai.connect('localhost:50051', simulation=True).models())"
        )
        done = engine("exec", "blindai-test_demo_1", "python3", "-c", inside)
        assert "tiny" in done.stdout
    finally:
        run("down")
