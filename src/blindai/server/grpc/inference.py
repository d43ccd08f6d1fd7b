"""ModelInferRequest to tensors, and tensors to ModelInferResponse.

Always true: whatever the bytes, what is here returns or raises `InvalidInput`; the elements of raw
tensors are copied neither from the request nor to the answer; what comes in typed fields is never
rounded or cut to fit; no error carries an element.

Specification: Open Inference Protocol (KServe v2), gRPC; the wire format of protobuf for what is
done by hand: a large request's raw tensors are taken out as they lie there, before protobuf would
copy them, and an answer's are appended behind what protobuf wrote.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from blindai.errors import InvalidInput
from blindai.inference.tensors import (
    DataType,
    Tensor,
    from_buffer,
    from_json_data,
    to_bytes,
)
from blindai.server.classification import classify
from blindai.server.grpc.messages import message_class, parse_message
from blindai.server.open_inference import (
    MODEL_VERSION,
    InferenceCall,
    check_local,
    is_bytewise,
    make_call,
    parse_datatype,
)
from blindai.server.service import SMALL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from blindai.inference.records import ModelRecord
    from blindai.server.grpc.call import Parts
    from blindai.server.grpc.request import Message

REQUEST: Final = message_class("inference.ModelInferRequest")
_RESPONSE: Final = message_class("inference.ModelInferResponse")
_STREAM_RESPONSE: Final = message_class("inference.ModelStreamInferResponse")

# Above, protobuf's copy of the tensors costs more than finding them by hand.
_LARGE: Final = 16 << 10
# Of a message, at its top: each costs a step of a loop.
_MAX_FIELDS: Final = 10_000
_RAW_INPUT: Final = 7
_RAW_OUTPUT_TAG: Final = b"\x32"  # field 6, with a length
_INFER_RESPONSE_TAG: Final = b"\x12"  # field 2, with a length
_MODEL_NAME: Final = 1
_ID: Final = 3
_SEQUENCE: Final = "sequence_id"
# Of a field that may be that parameter: name, value, and the lengths of both.
_MAX_PARAMETER: Final = 1024
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT: Final = 10

# Merged into an answer by whoever reads it, as protobuf does with what comes behind.
_LAST: Final = _RESPONSE(
    parameters={"triton_final_response": {"bool_param": True}}
).SerializeToString()

_CONTENTS: Final[Mapping[DataType, str]] = {
    DataType.BOOL: "bool_contents",
    DataType.INT8: "int_contents",
    DataType.INT16: "int_contents",
    DataType.INT32: "int_contents",
    DataType.INT64: "int64_contents",
    DataType.UINT8: "uint_contents",
    DataType.UINT16: "uint_contents",
    DataType.UINT32: "uint_contents",
    DataType.UINT64: "uint64_contents",
    DataType.FP32: "fp32_contents",
    DataType.FP64: "fp64_contents",
    DataType.BYTES: "bytes_contents",
}


@dataclass(frozen=True, slots=True)
class Envelope:
    """A request whose tensors are still bytes.

    Attributes:
        model: Name or SHA-256.
        id: The caller's name for the request; "": none.
        rest: The message without its raw tensors; parsed already, where that is small.
        raw: The raw tensors, in order.
        work: Bytes that reading the call has to look at one by one; of a request that is not
            parsed yet, all.
    """

    model: str
    id: str
    rest: Any
    raw: Sequence[bytes | memoryview]
    work: int

    @property
    def may_be_step(self) -> bool:
        """Whether it can be a step of a sequence, which come in an order."""
        if not isinstance(self.rest, list):
            return _SEQUENCE in self.rest.parameters
        mark = _SEQUENCE.encode()
        return any(len(part) <= _MAX_PARAMETER and mark in bytes(part) for part in self.rest)


def open_envelope(message: Message) -> Envelope:
    """Return a request's model and raw tensors; of a large one, nothing else is read yet.

    Args:
        message: A ModelInferRequest. Must not change while the envelope lives.

    Raises:
        InvalidInput: No such message.
    """
    if len(message) <= _LARGE:
        request = parse_message(REQUEST, message)
        tensors = request.raw_input_contents
        return _envelope(request, tensors, len(message) - sum(map(len, tensors)))
    view = memoryview(message)
    rest: list[memoryview] = []
    raw: list[memoryview] = []
    texts = {_MODEL_NAME: b"", _ID: b""}
    position = 0
    for _ in range(_MAX_FIELDS):
        if position == len(view):
            break
        start = position
        field, kind, position = _tag(view, position)
        size, position = _payload_size(view, position, kind)
        end = position + size
        if end > len(view):
            raise _malformed()
        if kind == _LENGTH and field == _RAW_INPUT:
            raw.append(view[position:end])
        else:
            rest.append(view[start:end])
            if kind == _LENGTH and field in texts:
                texts[field] = bytes(view[position:end])
        position = end
    else:
        msg = f"expected a ModelInferRequest of at most {_MAX_FIELDS} fields, came more"
        raise InvalidInput(msg)
    size = sum(map(len, rest))
    if size <= SMALL:
        return _envelope(parse_message(REQUEST, b"".join(rest)), raw, size)
    try:
        return Envelope(texts[_MODEL_NAME].decode(), texts[_ID].decode(), rest, raw, len(message))
    except UnicodeDecodeError:
        raise _malformed() from None


def _envelope(request: Any, raw: Sequence[bytes | memoryview], size: int) -> Envelope:
    """Return a parsed request; `size`: its bytes without the raw tensors."""
    if any(is_bytewise(entry.datatype) for entry in request.inputs):
        size += sum(map(len, raw))
    return Envelope(request.model_name, request.id, request, raw, size)


def read_call(envelope: Envelope, time_left: float | None) -> InferenceCall:
    """Return the call that a request asks for.

    Args:
        envelope: Of the request.
        time_left: Seconds that the RPC may still take; `None`: as long as it likes.

    Raises:
        InvalidInput: Anything that the protocol does not allow.
    """
    request = envelope.rest
    if isinstance(request, list):
        request = parse_message(REQUEST, b"".join(request))
    check_version(request.model_version)
    check_local(request.inputs)
    check_local(request.outputs)
    call = make_call(
        _read_inputs(request.inputs, envelope.raw),
        {output.name: read_parameters(output.parameters) for output in request.outputs},
        count=len(request.outputs),
        parameters=read_parameters(request.parameters),
        request_id=request.id,
    )
    if time_left is None or (call.timeout is not None and call.timeout <= time_left):
        return call
    return replace(call, timeout=time_left)


def check_version(version: str) -> None:
    """Refuse a version of a model that there is not.

    Raises:
        InvalidInput: Neither empty nor the only one.
    """
    if version not in {"", MODEL_VERSION}:
        msg = f"expected version {MODEL_VERSION!r} of the model, or none said; came another"
        raise InvalidInput(msg)


def read_parameters(parameters: Any) -> dict[str, Any]:
    """Return a message's parameters by name, as Python has them; unset ones are left out."""
    found: dict[str, Any] = {}
    for name, parameter in parameters.items():
        which = parameter.WhichOneof("parameter_choice")
        if which is not None:
            found[name] = getattr(parameter, which)
    return found


def build_response(
    call: InferenceCall, name: str, record: ModelRecord, outputs: Sequence[Tensor]
) -> list[bytes | memoryview]:
    """Return a ModelInferResponse in parts.

    Args:
        call: What was asked for.
        name: What the caller called the model.
        record: Of the model that ran.
        outputs: What it returned.

    Raises:
        InvalidInput: An output that cannot be classified.
    """
    response = _RESPONSE(model_name=name, model_version=MODEL_VERSION, id=call.id or "")
    response.parameters["sha256"].string_param = record.sha256
    parts: list[bytes | memoryview] = [b""]
    for output in outputs:
        count = call.classes.get(output.name, 0)
        tensor = classify(output, count) if count else output
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        data = to_bytes(tensor)
        parts += (_RAW_OUTPUT_TAG + encode_varint(len(data)), data)
    parts[0] = response.SerializeToString()
    return parts


def wrap_response(parts: Parts) -> Parts:
    """Return a ModelStreamInferResponse around a ModelInferResponse; it is its request's last."""
    parts = (*parts, _LAST)
    return [_INFER_RESPONSE_TAG + encode_varint(sum(map(len, parts))), *parts]


def wrap_error(request_id: str, message: str) -> Parts:
    """Return a ModelStreamInferResponse that tells of an error."""
    response = _STREAM_RESPONSE(error_message=message)
    response.infer_response.id = request_id
    return [response.SerializeToString()]


def encode_varint(number: int) -> bytes:
    """Return a number from 0 up as protobuf writes it."""
    encoded = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits a byte
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _read_inputs(entries: Any, raw: Sequence[bytes | memoryview]) -> tuple[Tensor, ...]:
    if not raw:
        return tuple(_read_typed(entry) for entry in entries)
    if len(raw) != len(entries):
        msg = f"expected raw_input_contents for each of {len(entries)} inputs, came {len(raw)}"
        raise InvalidInput(msg)
    tensors = []
    for entry, data in zip(entries, raw, strict=True):
        if entry.HasField("contents"):
            msg = f"{entry.name[:100]}: expected contents or raw_input_contents, came both"
            raise InvalidInput(msg)
        datatype = parse_datatype(entry.name, entry.datatype)
        tensors.append(from_buffer(entry.name, datatype, entry.shape, data))
    return tuple(tensors)


def _read_typed(entry: Any) -> Tensor:
    """Return an input whose elements are in the field of its datatype."""
    name, shape = entry.name, list(entry.shape)
    datatype = parse_datatype(name, entry.datatype)
    field = _CONTENTS.get(datatype)
    if field is None:
        msg = f"{name[:100]}: expected {datatype} in raw_input_contents, came none"
        raise InvalidInput(msg)
    others = [kind.name for kind, _ in entry.contents.ListFields() if kind.name != field]
    if others:
        msg = f"{name[:100]}: expected {datatype} in {field}, came {', '.join(others)}"
        raise InvalidInput(msg)
    elements = list(getattr(entry.contents, field))
    if datatype.is_float:
        # What JSON has not, NaN and infinity, these fields can hold.
        data = np.array(elements, dtype=datatype.numpy).view(np.uint8).data
        return from_buffer(name, datatype, shape, data)
    return from_json_data(name, datatype, shape, elements)


def _tag(view: memoryview, position: int) -> tuple[int, int, int]:
    """Return a field's number and wire type, and the position after."""
    tag, position = _varint(view, position)
    field, kind = tag >> 3, tag & 7
    if not 0 < field < 1 << 29:
        raise _malformed()
    return field, kind, position


def _payload_size(view: memoryview, position: int, kind: int) -> tuple[int, int]:
    """Return the bytes of a field's payload, and where it begins."""
    if kind == _LENGTH:
        return _varint(view, position)
    if kind == _VARINT:
        _, end = _varint(view, position)
        return end - position, position
    if kind in {_FIXED32, _FIXED64}:
        return (4 if kind == _FIXED32 else 8), position
    raise _malformed()


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    for byte in view[position : position + _MAX_VARINT]:
        position += 1
        value |= (byte & 0x7F) << shift
        if byte <= 0x7F:  # noqa: PLR2004 - the last byte has no top bit
            return value, position
        shift += 7
    raise _malformed()


def _malformed() -> InvalidInput:
    return InvalidInput("expected a message inference.ModelInferRequest, came something else")
