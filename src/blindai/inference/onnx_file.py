"""Look at an ONNX file before an engine does: is it one, and does it stay inside itself?

Always true: a file that passes holds all of its weights itself and uses only operators of
known domains or of its own functions. External data would let a model read any file of the
server, or any memory (onnxruntime has a location that is an address); operators of unknown
domains would need libraries, which are never loaded.

Specification: onnx/onnx.proto; "External Data" and "Functions" in onnx/docs/IR.md.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import onnx
from google.protobuf.message import DecodeError, Message

from blindai.errors import InvalidModel
from blindai.inference.onnx_weights import split_model
from blindai.inference.steadiness import is_steady

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from blindai.inference.onnx_weights import SplitModel

# Protobuf's own limit, for reader and writer.
_MAX_BYTES: Final = 2**31 - 1

_DOMAINS: Final = frozenset(
    {
        "",
        "ai.onnx",
        "ai.onnx.ml",
        "ai.onnx.preview.training",
        # onnxruntime's own operators, compiled into it: quantised and fused models use them.
        "com.microsoft",
        "com.microsoft.nchwc",
        "com.ms.internal.nhwc",
    }
)

# First bytes of what people upload by mistake.
_OTHER_FORMATS: Final = (
    (0, b"PK\x03\x04", "a ZIP archive (a PyTorch checkpoint is one: export it to ONNX)"),
    (0, b"\x80\x02", "a Python pickle"),
    (0, b"\x89HDF", "an HDF5 file (Keras): export it to ONNX"),
    (0, b"\x1f\x8b", "a gzip file: unpack it"),
    (0, b"GGUF", "a GGUF file"),
    (4, b"TFL3", "a TensorFlow Lite file"),
    (4, b"ORTM", "a file in onnxruntime's own format: upload the ONNX file"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file it points to"),
)

Shape = tuple[int | str | None, ...] | None


@dataclass(frozen=True, slots=True)
class Outline:
    """What a file says of its inputs and outputs.

    Attributes:
        shapes: Name → shape, of the graph's inputs and outputs; `None`: of any rank, which
            onnxruntime does not tell from a scalar.
        inputs: Names of the graph's inputs, in order; with weights that may be overridden.
        outputs: Names of the graph's outputs, in order.
        is_steady: Whether a run takes as long for all inputs of the same shapes.
    """

    shapes: Mapping[str, Shape]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    is_steady: bool


def load_outline(path: Path) -> Outline:
    """Read an ONNX file and check that it stays inside itself.

    Raises:
        InvalidModel: Not an ONNX file, or one with external data or unknown operators.
    """
    return load_parts(path)[0]


def load_parts(path: Path) -> tuple[Outline, SplitModel | None]:
    """Read an ONNX file, check that it stays inside itself, and tell its weights from the rest.

    Takes memory for what is not weights, a few times over.

    Returns:
        What it says of itself, and its parts; `None`: it has no weights that are worth it.

    Raises:
        InvalidModel: Not an ONNX file, or one with external data or unknown operators.
    """
    try:
        model, split = _load_model(path)
    except OSError as error:
        msg = f"expected a file that can be read: {error.strerror}"
        raise InvalidModel(msg) from error
    functions = {function.domain for function in model.functions}
    for message in _messages(model):
        if isinstance(message, onnx.TensorProto):
            _check_tensor(message)
        elif isinstance(message, onnx.NodeProto):
            _check_node(message, functions)
    values = [*model.graph.input, *model.graph.output]
    outline = Outline(
        {value.name: _shape(value) for value in values},
        tuple(value.name for value in model.graph.input),
        tuple(value.name for value in model.graph.output),
        is_steady(model),
    )
    return outline, split


def _load_model(path: Path) -> tuple[onnx.ModelProto, SplitModel | None]:
    """Return a model without its weights, and its parts."""
    size = path.stat().st_size
    if not size:
        msg = "expected an ONNX model, came an empty file"
        raise InvalidModel(msg)
    if size > _MAX_BYTES:
        msg = f"expected an ONNX model of at most {_MAX_BYTES} bytes, came {size} bytes"
        raise InvalidModel(msg)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        head = data[:512]
        split = split_model(data)
        model = onnx.ModelProto()
        # What has no data of its own here gets its mark only when all of this was checked.
        with memoryview(data if split is None else split.without_weights()) as view:
            try:
                model.ParseFromString(view)
            except DecodeError:
                model.Clear()
    if not model.HasField("graph") or not model.opset_import:
        msg = f"expected an ONNX model, came {size} bytes of {_describe(head)}"
        raise InvalidModel(msg)
    return model, split


def _describe(head: bytes) -> str:
    for offset, magic, what in _OTHER_FORMATS:
        if head[offset : offset + len(magic)] == magic:
            return what
    if head.isascii() and head.translate(None, b"\t\r\n").decode().isprintable():
        return "text"
    return "something else, or of a truncated file"


def _messages(root: Message) -> Iterator[Message]:
    """Yield every message of a file, wherever it stands: also where nobody thought of.

    Tensors are not looked into: that would copy their elements.
    """
    pending: list[Message] = [root]
    while pending:
        message = pending.pop()
        yield message
        if isinstance(message, onnx.TensorProto):
            continue
        for field, value in message.ListFields():
            if field.message_type is not None:
                pending.extend(_as_list(value))


def _as_list(value: Any) -> Iterable[Message]:
    return [value] if isinstance(value, Message) else value


def _check_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_location != onnx.TensorProto.DEFAULT or tensor.external_data:
        msg = (
            f"expected all weights inside the file, came tensor {tensor.name[:100]!r} with "
            "external data: save the model as one file"
        )
        raise InvalidModel(msg)


def _check_node(node: onnx.NodeProto, functions: set[str]) -> None:
    if node.domain not in _DOMAINS and node.domain not in functions:
        msg = (
            f"expected operators of ONNX or onnxruntime, came {node.op_type[:100]!r} of "
            f"domain {node.domain[:100]!r}: libraries of custom operators are never loaded"
        )
        raise InvalidModel(msg)


def _shape(value: onnx.ValueInfoProto) -> Shape:
    if not value.type.tensor_type.HasField("shape"):
        return None
    return tuple(_dimension(dim) for dim in value.type.tensor_type.shape.dim)


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        # Some exporters write -1 for "any".
        return dim.dim_value if dim.dim_value >= 0 else None
    return dim.dim_param or None
