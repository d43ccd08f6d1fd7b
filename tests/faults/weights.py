"""Models that loop, that ask for a hundred gigabytes, and that crash whoever loads them."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.faults.crowd import Predictions, put_model
from tests.faults.disk import Finding
from tests.faults.kill import path_of
from tests.inference.models import model, value
from tests.inference.test_sandbox import bomb
from tests.served import serving
from tests.server.talk import Reply, ask, authorized, connect

INT = TensorProto.INT64


def constant(name: str, *numbers: int, scalar: bool = False):
    """Return an initializer of INT64."""
    array = np.array(numbers[0] if scalar else numbers, np.int64)
    return numpy_helper.from_array(array, name)


def counting() -> bytes:
    """A model that counts as far as its input says."""
    body = helper.make_graph(
        [
            helper.make_node("Add", ["seen", "one"], ["more"]),
            helper.make_node("Identity", ["going"], ["on"]),
        ],
        "body",
        [value("i", INT, []), value("going", TensorProto.BOOL, []), value("seen", shape=[1])],
        [value("on", TensorProto.BOOL, []), value("more", shape=[1])],
        [numpy_helper.from_array(np.ones(1, np.float32), "one")],
    )
    node = helper.make_node("Loop", ["x", "", "start"], ["y"], body=body)
    start = numpy_helper.from_array(np.zeros(1, np.float32), "start")
    return model(
        [node], [value("x", INT, [])], [value("y", shape=[1])], [start]
    ).SerializeToString()


def greedy(gigabytes: int = 100) -> bytes:
    """A model that fills so much memory, whatever it is given."""
    nodes = [
        helper.make_node(
            "ConstantOfShape",
            ["size"],
            ["zeros"],
            value=helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0]),
        ),
        helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=1),
        helper.make_node("Add", ["sum", "x"], ["y"]),
    ]
    weights = [constant("size", gigabytes << 28)]
    return model(
        nodes, [value("x", shape=[1])], [value("y", shape=[1])], weights
    ).SerializeToString()


def as_greedy_as_asked() -> bytes:
    """A model that fills as many floats as its input says."""
    nodes = [
        helper.make_node(
            "ConstantOfShape",
            ["x"],
            ["ones"],
            value=helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0]),
        ),
        helper.make_node("ReduceSum", ["ones"], ["y"], keepdims=1),
    ]
    return model(nodes, [value("x", INT, [1])], [value("y", shape=["n"])], []).SerializeToString()


def deep(levels: int = 20_000) -> bytes:
    """A model whose graphs are nested so deep that who recurses into them has no stack left."""
    # Written by hand: protobuf's own writer would recurse, too.
    data = b"\x0a\x01n"  # NodeProto.input of the innermost
    for _ in range(levels):
        graph = b"\x0a" + _length(data) + data  # GraphProto.node
        attribute = b"\x0a\x01b" + b"\x32" + _length(graph) + graph + b"\xa0\x01\x05"
        data = b"\x22\x02If" + b"\x2a" + _length(attribute) + attribute
    graph = b"\x0a" + _length(data) + data + b"\x12\x01g"
    return b"\x08\x0a" + b"\x3a" + _length(graph) + graph + b"\x42\x02\x10\x15"


def _length(data: bytes) -> bytes:
    """Return a length as protobuf writes it."""
    number, found = len(data), b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


def hostile(folder: Path) -> Finding:
    """Upload what crashes, loops or takes all memory, run what was taken, and predict beside it."""
    models = {
        "unfolds": (bomb(), {422, 413}),
        "nested": (deep(), {422}),
        "greedy": (greedy(), {201, 422, 413}),
        "counting": (counting(), {201}),
        "asked": (as_greedy_as_asked(), {201}),
    }
    counts: dict[int, int] = {}
    with serving("--sealed-models", folder / "vault") as server:
        put_model(server)
        with Predictions(server, 2) as beside, closing(connect(server)) as connection:
            connection.timeout = 300  # a model may be tried for two minutes
            replies: list[Reply] = []
            for name, (content, expected) in models.items():
                reply = ask(connection, "PUT", path_of(name), content, authorized(server))
                assert reply.status in expected, (name, reply.body)
                replies.append(reply)
            before = server.rss
            for name, datatype, shape, number, expected in (
                ("counting", "INT64", [], 2**62, {504}),
                ("asked", "INT64", [1], 25 << 30, {503}),
                ("greedy", "FP32", [1], 1.0, {503, 404}),
            ):
                entry = {"name": "x", "datatype": datatype, "shape": shape, "data": [number]}
                wanted = {"inputs": [entry], "parameters": {"timeout": 3_000_000}}
                path = f"/v2/models/{name}/infer"
                reply = ask(connection, "POST", path, json.dumps(wanted))
                assert reply.status in expected, (name, reply.body)
                replies.append(reply)
            grown = (server.rss - before) >> 20
        for reply in replies:
            counts[reply.status] = counts.get(reply.status, 0) + 1
        lost = sum(beside.failed.values())
        assert server.stop().status == 0
    said = ", ".join(f"{status}: {count}" for status, count in sorted(counts.items()))
    said = f"answered {said}; memory grew by {grown} MiB; beside them {beside.told}"
    return Finding(len(replies), lost, said)
