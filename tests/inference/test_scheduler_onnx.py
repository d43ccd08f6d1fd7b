"""Scheduled and batched runs of onnxruntime give what single runs give."""

import threading
import time
from concurrent.futures import wait
from datetime import UTC, datetime

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from blindai.errors import DeadlineExceeded, InvalidInput
from blindai.inference.probe import same_result
from blindai.inference.records import LoadedModel, ModelRecord
from blindai.inference.scheduler import Scheduler
from blindai.inference.tensors import DataType, Tensor

from . import models

SOON = 30.0


def loaded(model, path):
    record = ModelRecord(
        ("m",), "0" * 64, 1, model.inputs, model.outputs, "onnx", datetime.now(UTC)
    )
    return LoadedModel(record, model, path)


def perceptron() -> bytes:
    """Return softmax(relu(emb[ids] w1) w2) for INT64[n, seq]: wants indices below 50."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("emb", (50, 256)), ("w1", (256, 256)), ("w2", (256, 8)))
    ]
    nodes = [
        helper.make_node("Gather", ["emb", "ids"], ["e"]),
        helper.make_node("MatMul", ["e", "w1"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["c"]),
        helper.make_node("Softmax", ["c"], ["y"], axis=-1),
    ]
    return models.model(
        nodes,
        [models.value("ids", TensorProto.INT64, ("n", "seq"))],
        [models.value("y", TensorProto.FLOAT, ("n", "seq", 8))],
        weights,
    ).SerializeToString()


def ids(array):
    return [Tensor("ids", np.asarray(array, np.int64), DataType.INT64)]


@pytest.mark.parametrize("workers", [1, 2])
def test_batched_results_are_those_of_single_runs(load, tmp_path, workers):
    """For requests of several shapes from several threads, among them guilty ones."""
    model = load(perceptron())
    entry = loaded(model, tmp_path)
    rng = np.random.default_rng(workers)
    asked = [
        rng.integers(0, 50, (int(rows), int(seq)))
        for rows, seq in zip(rng.integers(1, 4, 200), rng.choice([3, 4, 9], 200), strict=True)
    ]
    guilty = set(range(0, 200, 37))
    for index in guilty:
        asked[index][0, 0] = 1000
    futures = [None] * len(asked)
    with Scheduler(workers=workers) as scheduler:
        assert scheduler.prepare(entry).result(SOON).batches

        def client(first):
            for index in range(first, len(asked), 4):
                futures[index] = scheduler.submit(entry, ids(asked[index]))

        for _ in range(3):
            # Later rounds batch, after the first taught what it costs.
            threads = [threading.Thread(target=client, args=(first,)) for first in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(SOON)
            wait(futures, SOON)
        (statistics,) = scheduler.statistics()
    assert statistics.runs < statistics.requests, "nothing was batched"
    for index, (array, future) in enumerate(zip(asked, futures, strict=True)):
        if index in guilty:
            with pytest.raises(InvalidInput, match="an index out of bounds"):
                future.result(SOON)
            continue
        (came,), (expected,) = future.result(SOON), model.run(ids(array))
        assert same_result(expected, came), index


def test_a_deadline_stops_onnxruntime(load, tmp_path):
    """In the middle of its run, and the worker is free for the next."""
    entry = loaded(load(models.slow()), tmp_path)
    small = loaded(load(models.add()), tmp_path)
    x = [Tensor("x", np.ones((2000, 1000), np.float32), DataType.FP32)]
    one = [Tensor("x", np.ones(1, np.float32), DataType.FP32)]
    with Scheduler(workers=1) as scheduler:
        began = time.monotonic()
        future = scheduler.submit(entry, x, deadline=began + 0.3)
        with pytest.raises(DeadlineExceeded):
            future.result(SOON)
        assert scheduler.submit(small, one).result(SOON)[0].array[0] == 2
        assert time.monotonic() - began < 5
