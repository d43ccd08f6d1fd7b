"""Models that do what a test tells them, in place of an engine's."""

import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from blindai.errors import InvalidInput
from blindai.inference.engine import stoppable
from blindai.inference.records import LoadedModel, ModelRecord
from blindai.inference.tensors import DataType, Tensor, TensorSpec

GUILTY = 666.0


def rows(*values: float, name: str = "x") -> list[Tensor]:
    """Return one input with a row for each value."""
    array = np.array([[value, value + 1] for value in values], np.float32)
    return [Tensor(name, array, DataType.FP32)]


class FakeModel:
    """Doubles its rows; fails where one is `GUILTY`; waits while its gate is shut.

    Attributes:
        runs: The first elements of the rows of each run, in the order of the runs.
        stopped: How many runs were stopped from outside.
    """

    def __init__(self, width=2, outputs=("y",), *, steady=False):
        self.inputs = (TensorSpec("x", DataType.FP32, ("n", width)),)
        self.outputs = tuple(TensorSpec(name, DataType.FP32, ("n", width)) for name in outputs)
        self.runs: list[list[float]] = []
        self.stopped = 0
        self.is_steady = steady
        self.entered = threading.Semaphore(0)
        self._gate = threading.Event()
        self._gate.set()

    @contextmanager
    def gate_shut(self):
        """Let runs wait inside the model until the end of the block."""
        self._gate.clear()
        try:
            yield
        finally:
            self._gate.set()

    def run(self, inputs, outputs=None, *, deadline=None, handle=None):
        (tensor,) = inputs
        self.runs.append(tensor.array[:, 0].tolist())
        stop = threading.Event()
        with stoppable(stop.set, deadline=deadline, handle=handle) as run:
            self.entered.release()
            while not self._gate.wait(0.002):
                if stop.is_set():
                    self.stopped += 1
                    raise run.reason()
            return self.compute(tensor, outputs)

    def compute(self, tensor, outputs):
        if GUILTY in tensor.array:
            msg = "the model refuses these inputs"
            raise InvalidInput(msg)
        wanted = outputs or [spec.name for spec in self.outputs]
        return [Tensor(name, tensor.array * 2, DataType.FP32) for name in wanted]

    def close(self):
        pass


def entry(model, name="fake") -> LoadedModel:
    record = ModelRecord(
        names=(name,),
        sha256=name.encode().hex().ljust(64, "0"),
        size=1,
        inputs=model.inputs,
        outputs=model.outputs,
        engine="fake",
        loaded_at=datetime.now(UTC),
    )
    return LoadedModel(record, model, Path("/nowhere"))
