"""Write Whisper as one ONNX file: sound's spectrum in, words' numbers out.

The whole of it is in the graph: encoder, decoder with its cache of keys and values, and the loop
that picks the likeliest token until the one that ends. So one request holds a whole clip, and
nothing between sound and words ever leaves the enclave.

Weights come in CTranslate2's format: Whisper's own, in 16 bits.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

START, NO_TIMES, STOP = 50257, 50362, 50256
MAX_TOKENS = 224
HEADS, HEAD = 6, 64
LAYERS = 4
# CTranslate2's numbers for element types; the rest are settings that are not needed.
TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
Array = np.ndarray[Any, Any]


def read_weights(path: Path) -> dict[str, Array]:
    """Return the tensors of a CTranslate2 file by name."""
    content, position = path.read_bytes(), 0

    def take(form: str) -> int:
        nonlocal position
        (value,) = struct.unpack_from(f"<{form}", content, position)
        position += struct.calcsize(form)
        return int(value)

    def take_name() -> str:
        nonlocal position
        length = take("H")
        position += length
        return content[position - length : position - 1].decode()

    take("I")
    take_name()
    take("I")
    weights = {}
    for _ in range(take("I")):
        name = take_name()
        shape = [take("I") for _ in range(take("B"))]
        kind, size = TYPES[take("B")], take("I")
        weights[name] = np.frombuffer(content, kind, size // np.dtype(kind).itemsize, position)
        weights[name] = weights[name].reshape(shape)
        position += size
    return weights


class Graph:
    """Nodes of one graph, the tensors that they bring, and the parts that Whisper is made of."""

    def __init__(self, weights: dict[str, Array], prefix: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, onnx.TensorProto] = {}
        self._weights = weights
        self._prefix = prefix

    def add(self, kind: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        name = to or f"{self._prefix}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Any, kind: Any = np.int64) -> str:
        """Return the name of a tensor with this value."""
        array = np.asarray(value, kind)
        name = f"{self._prefix}c{len(self.tensors)}"
        self.tensors[name] = numpy_helper.from_array(array, name)
        return name

    def weight(self, name: str, *, transposed: bool = False) -> str:
        """Return the name of a weight in 32 bits; the file keeps its 16."""
        array = self._weights[name]
        array = np.ascontiguousarray(array.T if transposed else array)
        self.tensors[name] = numpy_helper.from_array(array, name)
        output = f"{self._prefix}{len(self.nodes)}"
        self.nodes.append(helper.make_node("Cast", [name], [output], to=TensorProto.FLOAT))
        return output

    def linear(self, x: str, name: str) -> str:
        """Multiply by a matrix and add a bias."""
        product = self.add("MatMul", x, self.weight(f"{name}/weight", transposed=True))
        return self.add("Add", product, self.weight(f"{name}/bias"))

    def normed(self, x: str, name: str) -> str:
        """Bring to mean 0 and variance 1, and scale."""
        gamma, beta = self.weight(f"{name}/gamma"), self.weight(f"{name}/beta")
        return self.add("LayerNormalization", x, gamma, beta, axis=-1, epsilon=1e-5)

    def split(self, x: str, parts: int) -> list[str]:
        """Cut [1, n, parts·384] into tensors of [1, heads, n, 64]."""
        shaped = self.add("Reshape", x, self.constant([1, -1, parts * HEADS, HEAD]))
        turned = self.add("Transpose", shaped, perm=[0, 2, 1, 3])
        outputs = [f"{turned}part{number}" for number in range(parts)]
        if parts == 1:
            return [turned]
        self.nodes.append(helper.make_node("Split", [turned], outputs, axis=1, num_outputs=parts))
        return outputs

    def attend(self, query: str, key: str, value: str) -> str:
        """Return the values that the queries ask for, [1, n, 384]."""
        scaled = self.add("Mul", query, self.constant(HEAD**-0.5, np.float32))
        scores = self.add("MatMul", scaled, self.add("Transpose", key, perm=[0, 1, 3, 2]))
        found = self.add("MatMul", self.add("Softmax", scores, axis=-1), value)
        turned = self.add("Transpose", found, perm=[0, 2, 1, 3])
        return self.add("Reshape", turned, self.constant([1, -1, HEADS * HEAD]))

    def feed_forward(self, x: str, name: str) -> str:
        """Return x plus what two layers make of each place of it."""
        inner = self.linear(self.normed(x, f"{name}/ffn/layer_norm"), f"{name}/ffn/linear_0")
        outer = self.linear(self.add("Gelu", inner), f"{name}/ffn/linear_1")
        return self.add("Add", x, outer)


def encode(graph: Graph) -> str:
    """Add the encoder: mel [1, 80, 3000] → [1, 1500, 384]."""
    x = "mel"
    for name, stride in (("conv1", 1), ("conv2", 2)):
        weight, bias = (graph.weight(f"encoder/{name}/{part}") for part in ("weight", "bias"))
        x = graph.add("Conv", x, weight, bias, kernel_shape=[3], pads=[1, 1], strides=[stride])
        x = graph.add("Gelu", x)
    x = graph.add("Transpose", x, perm=[0, 2, 1])
    x = graph.add("Add", x, graph.weight("encoder/position_encodings/encodings"))
    for number in range(LAYERS):
        layer = f"encoder/layer_{number}"
        normed = graph.normed(x, f"{layer}/self_attention/layer_norm")
        query, key, value = graph.split(graph.linear(normed, f"{layer}/self_attention/linear_0"), 3)
        attended = graph.attend(query, key, value)
        x = graph.add("Add", x, graph.linear(attended, f"{layer}/self_attention/linear_1"))
        x = graph.feed_forward(x, layer)
    return graph.normed(x, "encoder/layer_norm")


def decode(weights: dict[str, Array], heard: list[list[str]], suppressed: list[int]) -> Any:
    """Return one turn of the loop: the last token → the next, with the caches grown by one."""
    graph = Graph(weights, "d")
    words = graph.weight("decoder/embeddings/weight")
    places = graph.weight("decoder/position_encodings/encodings")
    x = graph.add("Add", graph.add("Gather", words, "token"), graph.add("Gather", places, "place"))
    x = graph.add("Unsqueeze", x, graph.constant([0]))
    caches = []
    for number in range(LAYERS):
        layer = f"decoder/layer_{number}"
        normed = graph.normed(x, f"{layer}/self_attention/layer_norm")
        query, *new = graph.split(graph.linear(normed, f"{layer}/self_attention/linear_0"), 3)
        grown = [
            graph.add("Concat", f"{kind}{number}", part, axis=2, to=f"{kind}{number}grown")
            for kind, part in zip(("key", "value"), new, strict=True)
        ]
        caches += grown
        attended = graph.attend(query, *grown)
        x = graph.add("Add", x, graph.linear(attended, f"{layer}/self_attention/linear_1"))
        normed = graph.normed(x, f"{layer}/attention/layer_norm")
        (query,) = graph.split(graph.linear(normed, f"{layer}/attention/linear_0"), 1)
        attended = graph.attend(query, *heard[number])
        x = graph.add("Add", x, graph.linear(attended, f"{layer}/attention/linear_2"))
        x = graph.feed_forward(x, layer)
    x = graph.normed(x, "decoder/layer_norm")
    scores = graph.add("MatMul", x, graph.add("Transpose", words, perm=[1, 0]))
    never = np.zeros(weights["decoder/embeddings/weight"].shape[0], np.float32)
    never[suppressed] = -np.inf
    scores = graph.add("Add", scores, graph.constant(never, np.float32))
    likeliest = graph.add("ArgMax", scores, axis=-1, keepdims=0)
    likeliest = graph.add("Reshape", likeliest, graph.constant([1]))
    # After the first token of the prompt comes the second, whatever is likely.
    first = graph.add("Equal", "place", graph.constant([0]))
    following = graph.add("Where", first, graph.constant([NO_TIMES]), likeliest, to="following")
    graph.add("Add", "place", graph.constant([1]), to="next_place")
    more = graph.add("Not", graph.add("Equal", following, graph.constant([STOP])))
    graph.add("Squeeze", more, to="more")
    graph.add("Identity", following, to="said")
    cache_names = [f"{kind}{number}" for number in range(LAYERS) for kind in ("key", "value")]
    inputs = [
        helper.make_tensor_value_info("turn", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("token", TensorProto.INT64, [1]),
        helper.make_tensor_value_info("place", TensorProto.INT64, [1]),
        *(cache(name) for name in cache_names),
    ]
    outputs = [
        helper.make_tensor_value_info("more", TensorProto.BOOL, []),
        helper.make_tensor_value_info("following", TensorProto.INT64, [1]),
        helper.make_tensor_value_info("next_place", TensorProto.INT64, [1]),
        *(cache(name) for name in caches),
        helper.make_tensor_value_info("said", TensorProto.INT64, [1]),
    ]
    return helper.make_graph(graph.nodes, "turn", inputs, outputs, list(graph.tensors.values()))


def cache(name: str) -> onnx.ValueInfoProto:
    """Return what the keys or values of a layer are: one more place each turn."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, HEADS, None, HEAD])


def to_onnx(weights: dict[str, Array], suppressed: list[int]) -> onnx.ModelProto:
    """Return mel float32[1, 80, 3000] → tokens int64[n, 1]."""
    graph = Graph(weights, "e")
    sound = encode(graph)
    heard = []
    for number in range(LAYERS):
        both = graph.linear(sound, f"decoder/layer_{number}/attention/linear_1")
        heard.append(graph.split(both, 2))
    empty = graph.constant(np.zeros((1, HEADS, 0, HEAD)), np.float32)
    begin = [graph.constant(MAX_TOKENS), graph.constant(True, np.bool_)]
    begin += [graph.constant([START]), graph.constant([0]), *[empty] * (2 * LAYERS)]
    body = decode(weights, heard, suppressed)
    left = [f"left{number}" for number in range(2 + 2 * LAYERS)]
    graph.nodes.append(helper.make_node("Loop", begin, [*left, "tokens"], body=body))
    made = helper.make_graph(
        graph.nodes,
        "whisper",
        [helper.make_tensor_value_info("mel", TensorProto.FLOAT, [1, 80, 3000])],
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["tokens", 1])],
        list(graph.tensors.values()),
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    checker.check_model(model)
    return model
