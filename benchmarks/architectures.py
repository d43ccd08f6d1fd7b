"""Models of well-known architectures with seeded random weights: for speed and shape only.

What they answer means nothing; how long they take is what the trained ones take, since the
same operators run over the same shapes. Each function returns the bytes of an ONNX model and
the inputs of one request.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

F32, I64 = TensorProto.FLOAT, TensorProto.INT64


class Net:
    """Collects nodes and weights; its methods return the name of what they add."""

    def __init__(self):
        self._random = np.random.default_rng(0)
        self._weights, self._nodes = [], []

    def constant(self, value):
        self._weights.append(numpy_helper.from_array(np.asarray(value), f"w{len(self._weights)}"))
        return self._weights[-1].name

    def weight(self, *shape):
        fan_in = max(1, int(np.prod(shape[1:]))) if len(shape) > 2 else shape[0]
        return self.constant(
            (self._random.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)
        )

    def node(self, op, *inputs, **attributes):
        name = f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def linear(self, x, wide, narrow):
        return self.node(
            "Add", self.node("MatMul", x, self.weight(wide, narrow)), self.weight(narrow)
        )

    def norm(self, x, hidden):
        ones, zeros = (self.constant(f(hidden, np.float32)) for f in (np.ones, np.zeros))
        return self.node("LayerNormalization", x, ones, zeros, axis=-1, epsilon=1e-5)

    def conv(self, x, shape, *, stride=1, pad=0, act=None):
        rank = len(shape) - 2
        x = self.node(
            "Conv",
            x,
            self.weight(*shape),
            self.weight(shape[0]),
            strides=[stride] * rank,
            pads=[pad] * 2 * rank,
        )
        if act == "SiLU":
            return self.node("Mul", x, self.node("Sigmoid", x))
        return x if act is None else self.node(act, x)

    def attention(self, x, hidden, heads, bias=None):
        def by_head(x, perm):
            split = self.constant(np.array([0, 0, heads, hidden // heads]))
            return self.node("Transpose", self.node("Reshape", x, split), perm=perm)

        query, value = (by_head(self.linear(x, hidden, hidden), [0, 2, 1, 3]) for _ in "qv")
        scores = self.node("MatMul", query, by_head(self.linear(x, hidden, hidden), [0, 2, 3, 1]))
        scores = self.node("Mul", scores, self.constant(np.float32((hidden // heads) ** -0.5)))
        if bias is not None:
            scores = self.node("Add", scores, bias)
        seen = self.node("MatMul", self.node("Softmax", scores, axis=-1), value)
        seen = self.node("Transpose", seen, perm=[0, 2, 1, 3])
        return self.linear(
            self.node("Reshape", seen, self.constant(np.array([0, 0, hidden]))), hidden, hidden
        )

    def transformer(self, x, layers, hidden, heads, bias=None):
        for _ in range(layers):
            x = self.norm(self.node("Add", x, self.attention(x, hidden, heads, bias)), hidden)
            inner = self.node("Gelu", self.linear(x, hidden, 4 * hidden))
            x = self.norm(self.node("Add", x, self.linear(inner, 4 * hidden, hidden)), hidden)
        return x

    def embed(self, ids, words, hidden, positions):
        ends = [self.constant(np.array([n])) for n in (0, 1, 2)]
        length = self.node("Slice", self.node("Shape", ids), ends[1], ends[2])
        where = self.node("Slice", self.weight(positions, hidden), ends[0], length)
        return self.node("Add", self.node("Gather", self.weight(words, hidden), ids), where)

    def padding(self, mask):
        away = self.node("Sub", self.constant(np.float32(1)), self.node("Cast", mask, to=F32))
        away = self.node("Mul", away, self.constant(np.float32(-1e4)))
        return self.node("Unsqueeze", away, self.constant(np.array([1, 2])))

    def model(self, inputs, output, shape):
        """Return the bytes; `inputs`: name → (element type, shape)."""
        takes = [helper.make_tensor_value_info(n, *spec) for n, spec in inputs.items()]
        gives = helper.make_tensor_value_info(output, F32, shape)
        graph = helper.make_graph(self._nodes, "model", takes, [gives], self._weights)
        opsets = [helper.make_opsetid("", 20)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def tiny():
    """Return a two-layer perceptron, 16 → 16 → 4."""
    net = Net()
    inner = net.node("Relu", net.node("MatMul", "x", net.weight(16, 16)))
    out = net.node("MatMul", inner, net.weight(16, 4))
    return net.model({"x": (F32, ["batch", 16])}, out, ["batch", 4]), {"x": _ones(1, 16)}


def identity(count):
    """Return a model whose answer is its input, and `count` float32 for it."""
    net = Net()
    return net.model({"x": (F32, None)}, net.node("Identity", "x"), None), {"x": _ones(1, count)}


def distilbert(tokens):
    """Return a classifier of DistilBERT's architecture: 6 layers, hidden 768."""
    return _text(tokens, layers=6)


def bert(tokens):
    """Return a classifier of BERT-base's architecture: 12 layers, hidden 768."""
    return _text(tokens, layers=12)


def gpt2(tokens):
    """Return GPT-2 small's decoder without a cache: 12 causal layers and 50257 logits."""
    net = Net()
    x = net.embed("ids", 50257, 768, 1024)
    far = np.triu(np.full((1024, 1024), -1e4, np.float32), 1)[:tokens, :tokens]
    x = net.transformer(x, 12, 768, 12, net.constant(far))
    out = net.node("MatMul", x, net.weight(768, 50257))
    ids = np.arange(100, 100 + tokens, dtype=np.int64)[None]
    return net.model({"ids": (I64, ["batch", tokens])}, out, ["batch", tokens, 50257]), {"ids": ids}


def resnet50():
    """Return ResNet-50, 224 x 224."""
    net = Net()
    x = net.conv("x", (64, 3, 7, 7), stride=2, pad=3, act="Relu")
    x = net.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    wide = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        narrow = 64 << stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            y = net.conv(x, (narrow, wide, 1, 1), act="Relu")
            y = net.conv(y, (narrow, narrow, 3, 3), stride=stride, pad=1, act="Relu")
            y = net.conv(y, (4 * narrow, narrow, 1, 1))
            if not block:
                x = net.conv(x, (4 * narrow, wide, 1, 1), stride=stride)
            x = net.node("Relu", net.node("Add", x, y))
            wide = 4 * narrow
    x = net.node("Flatten", net.node("GlobalAveragePool", x))
    out = net.linear(x, wide, 1000)
    return _image(net, 224, out, ["batch", 1000])


def facenet():
    """Return FaceNet's shapes, 160 x 160 to 512, with plain residual blocks as its Inception's."""
    net = Net()
    x = net.conv("x", (32, 3, 3, 3), stride=2, act="Relu")
    x = net.conv(x, (64, 32, 3, 3), pad=1, act="Relu")
    x = net.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2])
    for wide, narrow, blocks in ((64, 128, 5), (128, 256, 10), (256, 512, 5)):
        x = net.conv(x, (narrow, wide, 3, 3), stride=2, pad=1, act="Relu")
        for _ in range(blocks):
            y = net.conv(x, (narrow // 4, narrow, 1, 1), act="Relu")
            y = net.conv(y, (narrow // 4, narrow // 4, 3, 3), pad=1, act="Relu")
            x = net.node("Relu", net.node("Add", x, net.conv(y, (narrow, narrow // 4, 1, 1))))
    out = net.linear(net.node("Flatten", net.node("GlobalAveragePool", x)), 512, 512)
    return _image(net, 160, out, ["batch", 512])


def yolov5s():
    """Return YOLOv5s's backbone and a head of one scale, 640 x 640."""
    net = Net()

    def c3(x, wide, blocks):
        left = net.conv(x, (wide // 2, wide, 1, 1), act="SiLU")
        for _ in range(blocks):
            y = net.conv(left, (wide // 2, wide // 2, 1, 1), act="SiLU")
            left = net.node(
                "Add", left, net.conv(y, (wide // 2, wide // 2, 3, 3), pad=1, act="SiLU")
            )
        both = net.node("Concat", left, net.conv(x, (wide // 2, wide, 1, 1), act="SiLU"), axis=1)
        return net.conv(both, (wide, wide, 1, 1), act="SiLU")

    x = net.conv("x", (32, 3, 6, 6), stride=2, pad=2, act="SiLU")
    for wide, blocks in ((64, 1), (128, 2), (256, 3), (512, 1)):
        x = c3(net.conv(x, (wide, wide // 2, 3, 3), stride=2, pad=1, act="SiLU"), wide, blocks)
    return _image(net, 640, net.conv(x, (255, 512, 1, 1)), ["batch", 255, 20, 20])


def wav2vec2(seconds=1):
    """Return wav2vec 2.0 base's shapes: seven convolutions over 16 kHz audio, 12 layers."""
    net = Net()
    x = net.node("Unsqueeze", "x", net.constant(np.array([1])))
    wide = 1
    for kernel, stride in ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)):
        x = net.conv(x, (512, wide, kernel), stride=stride, act="Gelu")
        wide = 512
    x = net.linear(net.node("Transpose", x, perm=[0, 2, 1]), 512, 768)
    out = net.linear(net.transformer(x, 12, 768, 12), 768, 32)
    model = net.model({"x": (F32, ["batch", "samples"])}, out, ["batch", "frames", 32])
    return model, {"x": _ones(1, 16000 * seconds)}


def whisper_encoder():
    """Return Whisper tiny's encoder: 30 s of audio as 80 x 3000 log-mel, 4 layers, hidden 384."""
    net = Net()
    x = net.conv("x", (384, 80, 3), pad=1, act="Gelu")
    x = net.conv(x, (384, 384, 3), stride=2, pad=1, act="Gelu")
    x = net.node("Add", net.node("Transpose", x, perm=[0, 2, 1]), net.weight(1500, 384))
    out = net.transformer(x, 4, 384, 6)
    model = net.model({"x": (F32, ["batch", 80, 3000])}, out, ["batch", 1500, 384])
    return model, {"x": _ones(1, 80, 3000)}


def _text(tokens, layers):
    net = Net()
    x = net.norm(net.embed("ids", 1000, 768, 512), 768)
    x = net.transformer(x, layers, 768, 12, net.padding("mask"))
    first = net.node("Gather", x, net.constant(np.int64(0)), axis=1)
    out = net.linear(first, 768, 2)
    takes = {name: (I64, ["batch", "seq"]) for name in ("ids", "mask")}
    ids = np.arange(100, 100 + tokens, dtype=np.int64)[None]
    return net.model(takes, out, ["batch", 2]), {"ids": ids, "mask": np.ones_like(ids)}


def _image(net, side, out, shape):
    model = net.model({"x": (F32, ["batch", 3, side, side])}, out, shape)
    return model, {"x": _ones(1, 3, side, side)}


def _ones(*shape):
    return np.ones(shape, np.float32)
