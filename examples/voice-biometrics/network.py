"""Write Resemblyzer's voice encoder as one ONNX file: a spectrum in, 256 numbers of a voice out.

Three recurrent layers (LSTM), and one that makes numbers of their last state. The weights are in a
file of PyTorch's older format: pickles, then the numbers. A pickle can name any function to be
called when it is read; the reader here knows the three names that are in this one, and puts its own
in the place of PyTorch's.
"""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

BANDS, HIDDEN, LAYERS, SIZE = 40, 256, 3, 256
HEADERS = 3  # pickles before the one with the weights: a magic number, a version, the machine
Array = np.ndarray[Any, Any]


class Tensor(NamedTuple):
    """Where the numbers of a tensor are: in which storage, and from which of its numbers on."""

    storage: str
    offset: int
    shape: tuple[int, ...]


class Reader(pickle.Unpickler):
    """Reads where tensors are, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name, of those that a file of weights needs."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch", "FloatStorage"):
            return name
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, *_: Tensor(storage, offset, shape)
        msg = f"expected weights, came {module}.{name}"
        raise pickle.UnpicklingError(msg)

    def persistent_load(self, pid: Any) -> str:
        """Return the name of a storage."""
        return str(pid[2])


def read_weights(path: Path) -> dict[str, Array]:
    """Return the tensors of the model by name."""
    with path.open("rb") as file:
        for _ in range(HEADERS):
            Reader(file).load()
        tensors = Reader(file).load()["model_state"]
        storages = {}
        for key in Reader(file).load():
            (count,) = struct.unpack("<q", file.read(8))
            storages[key] = np.frombuffer(file.read(4 * count), np.float32)
    return {
        name: storages[tensor.storage][tensor.offset :][: np.prod(tensor.shape)].reshape(
            tensor.shape
        )
        for name, tensor in tensors.items()
    }


def reordered(array: Array) -> Array:
    """Return the gates in ONNX's order (input, output, forget, cell); PyTorch has i, f, c, o."""
    inside, forget, cell, outside = np.split(array, 4)
    return np.concatenate([inside, outside, forget, cell])


def to_onnx(weights: dict[str, Array]) -> onnx.ModelProto:
    """Return spectra float32[n, frames, 40] → voices float32[n, 256], each of length 1."""
    tensors = {"first": np.array([0], np.int64)}
    nodes = [helper.make_node("Transpose", ["spectra"], ["x0"], perm=[1, 0, 2])]
    for layer in range(LAYERS):
        for name, kind in (("w", "weight_ih"), ("r", "weight_hh")):
            tensors[f"{name}{layer}"] = reordered(weights[f"lstm.{kind}_l{layer}"])[None]
        biases = [reordered(weights[f"lstm.bias_{kind}_l{layer}"]) for kind in ("ih", "hh")]
        tensors[f"b{layer}"] = np.concatenate(biases)[None]
        inputs = [f"{name}{layer}" for name in "xwrb"]
        outputs = [f"all{layer}", f"last{layer}"]
        nodes.append(helper.make_node("LSTM", inputs, outputs, hidden_size=HIDDEN))
        nodes.append(helper.make_node("Squeeze", [f"all{layer}", "second"], [f"x{layer + 1}"]))
    tensors["second"] = np.array([1], np.int64)
    tensors |= {"matrix": weights["linear.weight"].T.copy(), "bias": weights["linear.bias"]}
    nodes += [
        helper.make_node("Squeeze", [f"last{LAYERS - 1}", "first"], ["heard"]),
        helper.make_node("MatMul", ["heard", "matrix"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["positive"]),
        helper.make_node("LpNormalization", ["positive"], ["voices"], axis=1, p=2),
    ]
    made = helper.make_graph(
        nodes,
        "voice",
        [helper.make_tensor_value_info("spectra", TensorProto.FLOAT, ["n", "frames", BANDS])],
        [helper.make_tensor_value_info("voices", TensorProto.FLOAT, ["n", SIZE])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    checker.check_model(model)
    return model
