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
from blindai.inference.scheduler import Scheduler, SchedulingOptions
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
    with Scheduler(
        workers=workers, options_for=lambda _: SchedulingOptions(max_batch=16)
    ) as scheduler:
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
    assert statistics.execution_count < statistics.success.count, "nothing was batched"
    for index, (array, future) in enumerate(zip(asked, futures, strict=True)):
        if index in guilty:
            with pytest.raises(InvalidInput, match="an index out of bounds"):
                future.result(SOON)
            continue
        (came,), (expected,) = future.result(SOON), model.run(ids(array))
        assert same_result(expected, came), index


def test_rows_of_nan_and_infinity_change_nothing_for_their_neighbours(load, tmp_path):
    """Through products, sums and a softmax of onnxruntime, in one batch."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("w1", (64, 256)), ("w2", (256, 8)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["c"]),
        helper.make_node("Softmax", ["c"], ["y"], axis=-1),
    ]
    model = load(
        models.model(
            nodes,
            [models.value("x", TensorProto.FLOAT, ("n", 64))],
            [models.value("y", TensorProto.FLOAT, ("n", 8))],
            weights,
        ).SerializeToString()
    )
    entry = loaded(model, tmp_path)
    sent = [rng.standard_normal((1, 64)).astype(np.float32) for _ in range(8)]
    for index, value in ((1, np.nan), (4, np.inf), (6, -np.inf)):
        sent[index][:] = value
    inputs = [[Tensor("x", array, DataType.FP32)] for array in sent]
    alone = [model.run(one)[0] for one in inputs]
    options = SchedulingOptions(max_batch=8)
    with Scheduler(workers=1, options_for=lambda _: options) as scheduler:
        assert scheduler.prepare(entry).result(SOON).batches
        costs = scheduler._ledgers[model].shape(((), ((64,),))).batches(1)
        for size in (1, 2, 4, 8):
            for _ in range(3):
                costs.record(size, 1.0)
        slow = loaded(load(models.slow()), tmp_path)
        x = [Tensor("x", np.ones((2000, 1000), np.float32), DataType.FP32)]
        busy = scheduler.submit(slow, x, deadline=time.monotonic() + 0.2)
        futures = [scheduler.submit(entry, one) for one in inputs]
        with pytest.raises(DeadlineExceeded):
            busy.result(SOON)
        together = [future.result(SOON)[0] for future in futures]
        sizes = {tuple(each.batch_stats) for each in scheduler.statistics()}
    assert (8,) in sizes, "they did not go together"
    for one, other in zip(alone, together, strict=True):
        assert same_result(one, other)


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
