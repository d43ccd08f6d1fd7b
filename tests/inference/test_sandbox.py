"""A model that crashes, does not end or takes all memory hurts a process that is there for it."""

import os
import signal
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
from onnx import helper

from blindai.errors import ConfigurationError, InvalidModel, LimitExceeded, Overloaded
from blindai.inference.engines import load_engine
from blindai.inference.options import ModelOptions
from blindai.inference.sandbox import Sandbox, TrialLimits
from blindai.inference.store import ModelStore
from tests.inference.models import add, identity, model, slow, value

PLAIN = ModelOptions()


def bomb(doublings=28):
    """Return a kilobyte of functions that call the next one twice each."""
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    functions = []
    for index in range(doublings):
        last = index == doublings - 1
        op, domain = ("Identity", "") if last else (f"F{index + 1}", "local")
        nodes = [helper.make_node(op, [a], [b], domain=domain) for a, b in ("at", "tb")]
        functions.append(helper.make_function("local", f"F{index}", ["a"], ["b"], nodes, opsets))
    call = helper.make_node("F0", ["x"], ["y"], domain="local")
    made = model([call], [value("x")], [value("y")], functions=functions)
    made.opset_import.append(opsets[1])
    return made.SerializeToString()


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(TrialLimits(seconds=30.0)) as sandbox:
        yield sandbox


@pytest.fixture
def put(tmp_path):
    """Write a model's file."""

    def put(data):
        path = tmp_path / "model"
        path.write_bytes(data)
        return path

    return put


@pytest.mark.parametrize("precision", ["fp32", "int8", "auto"])
def test_good_models_pass(sandbox, put, precision):
    """A model that loads here loads there, in every form that was asked for."""
    taken = sandbox.check(put(slow(layers=2, width=200)), ModelOptions(precision=precision))
    assert taken >= 0


def test_what_is_wrong_is_said(sandbox, put):
    """A model that no engine loads is refused with the engine's reason."""
    with pytest.raises(InvalidModel, match="came 9 bytes of text"):
        sandbox.check(put(b"no models"), PLAIN)


def test_a_model_that_does_not_end(put):
    """A kilobyte that unfolds into 2^28 nodes is given up in time, and the next one loads."""
    with Sandbox(TrialLimits(seconds=2.0, memory=4 << 30)) as sandbox:
        began = time.monotonic()
        with pytest.raises(InvalidModel, match="within 2 seconds"):
            sandbox.check(put(bomb()), PLAIN)
        assert time.monotonic() - began < 10
        assert sandbox.check(put(identity()), PLAIN) >= 0


def test_a_model_that_takes_all_memory(put):
    """A model that needs far more memory than its size is stopped, and the next one loads."""
    names = ["x", *(f"t{index}" for index in range(60_000)), "y"]
    nodes = [helper.make_node("Identity", [left], [right]) for left, right in pairwise(names)]
    chain = model(nodes, [value("x")], [value("y")]).SerializeToString()
    # Enough for the stacks of the threads that even the smallest model starts.
    with Sandbox(TrialLimits(memory=64 << 20)) as sandbox:
        with pytest.raises(LimitExceeded, match="bytes of memory"):
            sandbox.check(put(chain), PLAIN)
        assert sandbox.check(put(identity()), PLAIN) >= 0


def children(pid):
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_model_that_crashes(put, number):
    """A process that dies while it loads takes its model with it, and nothing else."""
    with Sandbox(TrialLimits(memory=4 << 30)) as sandbox:
        server = sandbox._process.pid

        def crash():
            until = time.monotonic() + 10
            while not (found := children(server)) and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(0.2)
            os.kill(found[0], number)

        crashing = threading.Thread(target=crash)
        crashing.start()
        with pytest.raises(InvalidModel, match="crashed the process"):
            sandbox.check(put(bomb()), PLAIN)
        crashing.join()
        assert sandbox.check(put(identity()), PLAIN) >= 0
        assert not children(server)


def test_without_the_process_nothing_is_loaded(put):
    """Where the process that tries models is gone, models are refused, and not loaded untried."""
    with Sandbox() as sandbox:
        sandbox._process.kill()
        sandbox._process.wait()
        for _ in range(2):
            with pytest.raises(Overloaded, match="has ended"):
                sandbox.check(put(identity()), PLAIN)


def test_the_process_ends_with_its_owner(sandbox):
    """It cannot outlive who started it: it is killed with it, and ends when told."""
    with Sandbox() as other:
        pid = other._process.pid
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()


def test_a_store_loads_nothing_untried(tmp_path):
    """A refused model is not in the store, and its file is gone."""
    tried = []

    def refuse(path, options):
        tried.append(path)
        msg = "it crashed"
        raise InvalidModel(msg)

    engine = load_engine("onnx")
    with ModelStore(tmp_path / "store", engine=engine, try_first=refuse) as store:
        upload = store.begin_upload("m")
        upload.write(add())
        with pytest.raises(InvalidModel, match="it crashed"):
            upload.commit()
        assert len(tried) == 1
        assert not store.records()
        assert store.bytes_in_use() == 0
        assert not list((tmp_path / "store").glob(".upload-*"))


def test_limits_are_positive():
    """A limit of nothing is refused."""
    for limits in ({"seconds": 0}, {"memory": 0}):
        with pytest.raises(ConfigurationError):
            TrialLimits(**limits)
