"""Tell the weights of an ONNX file from the rest of it, so that nobody has to copy them.

A file is mostly weights. Here they are left where they lie: what is parsed and checked is the
model without their bytes, a thousandth of the file, and an engine gets that model with a mark
on each tensor that says where in the file its bytes are ("External Data"), and maps them.

Always true: with the bytes put back, it is the model that the file holds. What is odd in any
way stays where it is, for the checks that are made of all that stays: a tensor that has
external data of its own, two kinds of data, or another size than its shape; a file that is no
ONNX file. Only files in memory are mapped: pages of a file on a disk may be dropped and read
again, and the disk is the machine operator's, who could change them after they were hashed.

A mapped weight may begin at any byte. onnxruntime takes it as it takes such inputs: a few of its
sums over all elements of one tensor then differ in the last bit, products of matrices do not.

Specification: protobuf, "Encoding"; onnx/onnx.proto; "External Data" in onnx/docs/IR.md;
statfs(2).
"""

from __future__ import annotations

import ctypes
import heapq
import math
import os
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from blindai.confinement.kernel import call
from blindai.errors import InvalidModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Smaller ones cost less to copy than to map.
LEAST: Final = 1 << 16
# Who infers shapes has to see sizes, axes and scales: they have one dimension, or none.
_LEAST_DIMS: Final = 2
# Each is a mapping of its own, of which the kernel gives a process 65530 for all its models.
MOST: Final = 512
# Of the model, and of its graph. A file with more is treated as one without weights.
_MOST_FIELDS: Final = 1 << 20
_MOST_TENSOR_FIELDS: Final = 128
_MOST_DIMS: Final = 32

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Bytes of a varint, and what it stays below.
_WIDE: Final = (10, 1 << 64)
_TAG: Final = (5, 1 << 32)
_LENGTH: Final = (5, 1 << 31)
_MORE: Final = 0x80

_MODEL_GRAPH: Final = 7
_GRAPH_INITIALIZER: Final = 5
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA, _DOC_STRING, _PROPERTIES = 1, 2, 8, 9, 12, 16
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_KEY, _VALUE = 1, 2
_EXTERNAL: Final = 1
# The wire types that fields of a tensor may have; a tensor with other fields stays whole.
_KINDS: Final[Mapping[int, tuple[int, ...]]] = MappingProxyType(
    {
        _DIMS: (_VARINT, _BYTES),
        _DATA_TYPE: (_VARINT,),
        _NAME: (_BYTES,),
        _RAW_DATA: (_BYTES,),
        _DOC_STRING: (_BYTES,),
        _PROPERTIES: (_BYTES,),
    }
)
# TensorProto.DataType → bytes of an element; those of whole bytes.
_ITEM_SIZES: Final[Mapping[int, int]] = MappingProxyType(
    {
        1: 4,  # FLOAT
        2: 1,  # UINT8
        3: 1,  # INT8
        4: 2,  # UINT16
        5: 2,  # INT16
        6: 4,  # INT32
        7: 8,  # INT64
        9: 1,  # BOOL
        10: 2,  # FLOAT16
        11: 8,  # DOUBLE
        12: 4,  # UINT32
        13: 8,  # UINT64
        16: 2,  # BFLOAT16
        17: 1,  # FLOAT8E4M3FN
        18: 1,  # FLOAT8E4M3FNUZ
        19: 1,  # FLOAT8E5M2
        20: 1,  # FLOAT8E5M2FNUZ
        24: 1,  # FLOAT8E8M0
    }
)

# TMPFS_MAGIC, RAMFS_MAGIC, HUGETLBFS_MAGIC
_IN_MEMORY: Final = frozenset({0x01021994, 0x858458F6, 0x958458F6})
_STATFS_BYTES: Final = 256  # struct statfs takes 120
_TYPE_BYTES: Final = ctypes.sizeof(ctypes.c_long)


class Data(Protocol):
    """The bytes of a file: `bytes`, or a mapping of it."""

    def __len__(self) -> int:
        """Return how many they are."""

    def __getitem__(self, index: slice, /) -> bytes:
        """Return a copy of some."""


class _Field(NamedTuple):
    """A field of a message: its number, its wire type, and where it, its value and its end are."""

    number: int
    kind: int
    start: int
    value: int
    end: int


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor without its bytes.

    Attributes:
        tensor: Its message, without them.
        offset: Of them in the file.
        length: How many they are.
    """

    tensor: bytes
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class SplitModel:
    """A model whose weights are told from the rest. Made by `split_model`.

    Attributes:
        before: What lies before the graph.
        graph: The graph's fields, but for the weights.
        weights: In the order of the file.
        behind: What lies behind the graph.
    """

    before: bytes
    graph: tuple[bytes, ...]
    weights: tuple[Weight, ...]
    behind: bytes

    def without_weights(self) -> bytes:
        """Return the model with tensors that have no data, and do not say where it is."""
        return self._join([weight.tensor for weight in self.weights])

    def referring_to(self, file: str) -> bytes:
        """Return the model with tensors whose data is in a file.

        Args:
            file: As an engine finds it.
        """
        return self._join([weight.tensor + _mark(weight, file) for weight in self.weights])

    def _join(self, tensors: list[bytes]) -> bytes:
        parts = [self.graph[0]]
        for tensor, rest in zip(tensors, self.graph[1:], strict=True):
            parts += [_field(_GRAPH_INITIALIZER, tensor), rest]
        return b"".join((self.before, _field(_MODEL_GRAPH, b"".join(parts)), self.behind))


def split_model(data: Data, *, least: int = LEAST, most: int = MOST) -> SplitModel | None:
    """Tell the weights of a model from the rest; vectors and what is within subgraphs stay.

    Args:
        data: An ONNX file, or anything else.
        least: Bytes of a weight.
        most: Weights: if there are more, the largest.

    Returns:
        The parts; `None`: there are no weights, or it is no ONNX file.
    """
    try:
        graphs = [
            field
            for field in _fields(data, 0, len(data), _MOST_FIELDS)
            if field.number == _MODEL_GRAPH
        ]
        if len(graphs) != 1 or graphs[0].kind != _BYTES:
            return None
        graph = graphs[0]
        # A tensor is as large as its bytes, and more.
        tensors = [
            field
            for field in _fields(data, graph.value, graph.end, _MOST_FIELDS)
            if field.number == _GRAPH_INITIALIZER and field.end - field.value >= least
        ]
    except InvalidModel:
        return None
    found = [(field, weight) for field in tensors if (weight := _weight(data, field, least))]
    found = heapq.nlargest(most, found, key=lambda each: each[1].length)
    if not found:
        return None
    found.sort(key=lambda each: each[0].start)
    starts = [graph.value, *(field.end for field, _ in found)]
    ends = [*(field.start for field, _ in found), graph.end]
    return SplitModel(
        before=data[: graph.start],
        graph=tuple(data[start:end] for start, end in zip(starts, ends, strict=True)),
        weights=tuple(weight for _, weight in found),
        behind=data[graph.end :],
    )


def find_in_memory(path: Path) -> Path | None:
    """Return where a file is, for who maps it; `None`: not in memory, or nowhere to be found.

    Args:
        path: Of the file; also of a link to it, or of a descriptor under /proc.
    """
    try:
        real = Path(os.path.realpath(path))
        str(real).encode()
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, UnicodeEncodeError):
        return None
    try:
        statfs = ctypes.create_string_buffer(_STATFS_BYTES)
        call("fstatfs", descriptor, statfs)
        # Without a name, a file may still be at hand by its descriptor.
        same = os.path.samestat(os.fstat(descriptor), real.stat())
    except OSError:
        return None
    finally:
        os.close(descriptor)
    kind = int.from_bytes(statfs.raw[:_TYPE_BYTES], "little")
    return real if same and kind in _IN_MEMORY else None


def _weight(data: Data, tensor: _Field, least: int) -> Weight | None:
    """Return a tensor without its bytes; `None`: it has none to spare, or is odd."""
    if tensor.kind != _BYTES:
        return None
    try:
        fields = list(_fields(data, tensor.value, tensor.end, _MOST_TENSOR_FIELDS))
        if any(field.kind not in _KINDS.get(field.number, ()) for field in fields):
            return None
        dims = _dims(data, fields)
        types = [field for field in fields if field.number == _DATA_TYPE]
        raws = [field for field in fields if field.number == _RAW_DATA]
        if len(types) != 1 or len(raws) != 1 or len(dims) < _LEAST_DIMS:
            return None
        data_type, _ = _varint(data, types[0].value, tensor.end, _WIDE)
    except InvalidModel:
        return None
    length = raws[0].end - raws[0].value
    if length < least or math.prod(dims) * _ITEM_SIZES.get(data_type, 0) != length:
        return None
    kept = [data[field.start : field.end] for field in fields if field.number != _RAW_DATA]
    return Weight(b"".join(kept), raws[0].value, length)


def _dims(data: Data, fields: list[_Field]) -> list[int]:
    """Return a tensor's dimensions, which come packed or one by one."""
    dims: list[int] = []
    for field in fields:
        at = field.value if field.number == _DIMS else field.end
        while at != field.end:
            size, at = _varint(data, at, field.end, _WIDE)
            dims.append(size)
            if len(dims) > _MOST_DIMS:
                raise _odd()
    return dims


def _fields(data: Data, start: int, end: int, most: int) -> Iterator[_Field]:
    """Yield the fields of a message, which has no more than so many."""
    at = start
    for _ in range(most):
        if at == end:
            return
        tag, value = _varint(data, at, end, _TAG)
        number, kind = tag >> 3, tag & 7
        stop = value
        if kind == _VARINT:
            _, stop = _varint(data, value, end, _WIDE)
        elif kind == _BYTES:
            length, value = _varint(data, value, end, _LENGTH)
            stop = value + length
        elif kind in {_FIXED64, _FIXED32}:
            stop += 8 if kind == _FIXED64 else 4
        else:
            raise _odd()
        if not number or stop > end:
            raise _odd()
        yield _Field(number, kind, at, value, stop)
        at = stop
    if at != end:
        raise _odd()


def _varint(data: Data, at: int, end: int, limits: tuple[int, int]) -> tuple[int, int]:
    """Return an integer, and where it ends."""
    most, bound = limits
    value = 0
    piece = data[at : min(at + most, end)]
    for index, byte in enumerate(piece):
        value |= (byte & ~_MORE) << 7 * index
        if byte < _MORE:
            if value >= bound:
                break
            return value, at + index + 1
    raise _odd()


def _odd() -> InvalidModel:
    """Return what stops the reading of a message; whoever reads all of it says more."""
    return InvalidModel("expected a protobuf message as it is written, came another")


def _mark(weight: Weight, file: str) -> bytes:
    """Return the fields of a tensor that say where its bytes are."""
    entries = {"location": file, "offset": str(weight.offset), "length": str(weight.length)}
    marks = [
        _field(_EXTERNAL_DATA, _field(_KEY, key.encode()) + _field(_VALUE, value.encode()))
        for key, value in entries.items()
    ]
    return b"".join(marks) + _encoded(_DATA_LOCATION << 3 | _VARINT) + _encoded(_EXTERNAL)


def _field(number: int, content: bytes) -> bytes:
    return _encoded(number << 3 | _BYTES) + _encoded(len(content)) + content


def _encoded(value: int) -> bytes:
    """Return an integer as a varint."""
    out = bytearray()
    while value >= _MORE:
        out.append(value & ~_MORE & 0xFF | _MORE)
        value >>= 7
    out.append(value)
    return bytes(out)
