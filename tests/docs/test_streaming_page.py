"""The Python of the page on streaming runs as it stands, and gives what the bare engine gives."""

from __future__ import annotations

import shlex

import numpy as np
import onnxruntime
import pytest

import blindai
from blindai.testing import start_server
from tests.cli.conftest import blindai_command
from tests.docs.pages import DOCS, blocks
from tests.inference.loop_models import cell, decoder

PAGE = DOCS / "how-to" / "streaming.md"
MODELS = {"decoder": decoder(), "cell": cell()}
PROMPT = np.array([[1, 2, 3]], np.int64)
FRAMES = np.random.default_rng(5).standard_normal((4, 1, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def server():
    """A server that has the page's models."""
    with start_server(models=MODELS) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    """A client of it."""
    with pytest.warns(blindai.SimulationWarning):
        connected = blindai.connect(server.address, simulation=True)
    with connected:
        yield connected


def scores(count: int) -> list[np.ndarray]:
    """Return the scores of the decoder's first steps on the bare engine."""
    session = onnxruntime.InferenceSession(MODELS["decoder"])
    feed = {"tokens": PROMPT, "mask": np.ones_like(PROMPT), "position": np.array([[2]])}
    feed["past"] = np.zeros((1, 0, 4), np.float32)
    found = []
    for _ in range(count):
        last, feed["past"] = session.run(["scores", "present"], feed)
        feed["tokens"] = last[:, -1].argmax(-1)[:, None]
        feed["mask"] = np.concatenate([feed["mask"], np.ones((1, 1), np.int64)], 1)
        feed["position"] = feed["position"] + 1
        found.append(last)
    return found


def test_the_loop_on_the_server(client, capsys):
    """The first block prints the tokens up to the one that stops."""
    loop, _ = blocks("python", PAGE)
    expected = [int(each.argmax()) for each in scores(200)]
    stop = expected[5]
    code = loop.text.replace('"logits"', '"scores"').replace("stop=2", f"stop={stop}")
    assert code.count('"scores"') == code.count(f"stop={stop}") == 1
    exec(code, {"client": client, "prompt": PROMPT, "ones": np.ones_like(PROMPT)})
    printed = capsys.readouterr().out.split()
    assert printed == [f"[[{token}]]" for token in expected[: expected.index(stop) + 1]]


def test_the_loop_of_the_client(client):
    """The second block makes its steps, with the state inside."""
    _, steps = blocks("python", PAGE)
    found = {"client": client, "frames": FRAMES}
    exec(steps.text, found)
    session, h = onnxruntime.InferenceSession(MODELS["cell"]), np.zeros((1, 8), np.float32)
    for x in FRAMES:
        y, h = session.run(["y", "next_h"], {"x": x, "h": h})
    assert found["result"]["y"].tobytes() == y.tobytes()


def test_the_loop_from_a_terminal(server, tmp_path, monkeypatch):
    """The command prints what the first block does."""
    monkeypatch.chdir(tmp_path)
    arrays = {"tokens": PROMPT, "mask": np.ones_like(PROMPT), "position": np.array([[2]])}
    for name, array in arrays.items():
        np.save(f"{name}.npy", array)
    (command,) = blocks("sh", PAGE)
    words = shlex.split(
        command.text.replace("\\\n", " ")
        .replace("logits", "scores")
        .replace("--stop 2", "--stop 99")
    )
    done = blindai_command(*words[1:], "--server", server.address)
    assert done.returncode == 0, done.stderr
    expected = [f"tokens  int64[1, 1]  {each.argmax()}" for each in scores(200)]
    assert done.stdout.splitlines() == [*expected, "ended after 200 steps: max_steps"]
