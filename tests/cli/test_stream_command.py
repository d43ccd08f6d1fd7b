"""`blindai stream`: a loop on the server, seen from a terminal."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest

from blindai.testing import start_server
from tests.inference.loop_models import decoder, doubling, frames

MODELS = {"decoder": decoder(), "frames": frames(), "doubling": doubling()}
LOOP = [
    *("--state", "past=present", "--greedy", "tokens=scores"),
    *("--grow", "mask", "--count", "position"),
]


@pytest.fixture(scope="module")
def server():
    with start_server(models=MODELS, max_sequence_bytes=1 << 16) as running:
        yield running


@pytest.fixture
def prompt(tmp_path):
    """The options that name the files of a prompt."""
    arrays = {
        "tokens": np.array([[1, 2, 3]], np.int64),
        "mask": np.ones((1, 3), np.int64),
        "position": np.array([[2]], np.int64),
    }
    options = []
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
        options += ["--input", f"{name}={tmp_path / name}.npy"]
    return options


def test_tokens_as_json(blindai, server, prompt):
    """There is a line for each step, and one that says why it ended; `--stop` counts."""
    to = ["--server", server.address, "--simulation", "--json"]
    all_of_them = blindai("stream", "decoder", *prompt, *LOOP, "--max-steps", 9, *to)
    *steps, last = [json.loads(line) for line in all_of_them.stdout.splitlines()]
    assert last == {"final": True, "reason": "max_steps", "steps": 9}
    assert [step["step"] for step in steps] == list(range(9))
    tokens = [step["outputs"]["tokens"]["data"] for step in steps]
    assert all(len(token) == 1 for token in tokens)
    stop = tokens[4][0]
    first = tokens.index([stop]) + 1
    some = blindai("stream", "decoder", *prompt, *LOOP, "--max-steps", 9, "--stop", stop, *to)
    *steps, last = [json.loads(line) for line in some.stdout.splitlines()]
    assert last == {"final": True, "reason": "stop", "steps": first}
    assert [step["outputs"]["tokens"]["data"] for step in steps] == tokens[:first]


def test_frames_for_a_person(blindai, server):
    """A model whose inputs are all state needs no file; `--show` names what is printed."""
    done = blindai(
        *("stream", "frames", "--state", "past=present", "--max-steps", 3, "--show", "present"),
        *("--server", server.address, "--simulation"),
    )
    assert done.returncode == 0
    *shown, last = done.stdout.splitlines()
    session = onnxruntime.InferenceSession(MODELS["frames"])
    past, expected = np.zeros((1, 16), np.float32), []
    for _ in range(3):
        (past,) = session.run(["present"], {"past": past})
        expected.append(f"present  float32[1, 16]  {' '.join(map(str, past[0, :6]))} …")
    assert shown == expected
    assert last == "ended after 3 steps: max_steps"


def test_what_goes_wrong_under_way(blindai, server, tmp_path):
    """Steps that were made are shown, then the error, and the exit code is that of a run."""
    np.save(tmp_path / "x.npy", np.ones(1, np.float32))
    done = blindai(
        *("stream", "doubling", "--state", "x=y", "--input", f"x={tmp_path / 'x.npy'}"),
        *("--max-steps", 100, "--server", server.address, "--simulation", "--json"),
    )
    *steps, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 4
    assert [step["outputs"]["y"]["shape"] for step in steps[:3]] == [[2], [4], [8]]
    assert last["type"] == "LimitExceeded"


@pytest.mark.parametrize("pair", ["past", "=present", "past=", "past=present"])
def test_malformed_pairs_are_a_settings_error(blindai, server, pair):
    """`--state` takes INPUT=OUTPUT, and each input once."""
    done = blindai(
        *("stream", "frames", "--state", "past=present", "--state", pair),
        *("--max-steps", 3, "--server", server.address, "--simulation"),
    )
    assert done.returncode == 2
    assert "--state: expected INPUT=OUTPUT" in done.stderr
