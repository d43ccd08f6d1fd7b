"""The Open Inference Protocol's JSON and binary form ⇄ tensors. Knows no HTTP beyond bodies.

Always true: whatever the bytes, `parse_request` returns a call or raises `InvalidInput`; the
elements of tensors are never copied, neither from the body nor to the response; numbers are
read as JSON has them, so there is no NaN, and no error carries an element.

Parameters that nobody here knows change nothing, as the protocol has it; those of extensions
that would change the result, and that are not here (shared memory), are refused.

Specification: Open Inference Protocol (KServe v2), "Inference Request JSON Object", and its
"Binary Tensor Data Extension" with `Inference-Header-Content-Length`; its classification and
schedule-policy extensions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from blindai.channel.statement import Kind
from blindai.errors import InvalidInput
from blindai.inference.scheduler import MAX_PRIORITY
from blindai.inference.tensors import (
    DataType,
    Tensor,
    TensorSpec,
    from_buffer,
    from_json_data,
    to_bytes,
    to_json_data,
)
from blindai.server.classification import classify, parse_class_count
from blindai.server.receipts import (
    Facts,
    ReceiptWish,
    digest_parts,
    digest_tensors,
    parse_wish,
)
from blindai.server.stepping import parse_step

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from blindai.inference.sequences import Step
    from blindai.inference.store import ModelRecord

EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "sequence",
    "statistics",
)
MODEL_VERSION: Final = "1"
_MAX_ID: Final = 1024
_MICROSECONDS: Final = 1_000_000
_MAX_PRIORITY: Final = 2**64 - 1


class _NamedParameters(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def parameters(self) -> Mapping[str, Any]: ...


class _InputTensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: Any = msgspec.UNSET


class _OutputWish(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _RequestBody(msgspec.Struct):
    inputs: list[_InputTensor]
    outputs: list[_OutputWish] = []
    parameters: dict[str, Any] = {}
    id: str | None = None


# For lengths, for bits that must be zero, and for bytes that must be 0 or 1.
_DATATYPES: Final[Mapping[str, DataType]] = {datatype.value: datatype for datatype in DataType}
_BYTEWISE: Final = frozenset(
    datatype.value
    for datatype in DataType
    if datatype.is_packed or datatype in {DataType.BYTES, DataType.BOOL}
)
_DECODER: Final = msgspec.json.Decoder(_RequestBody)
_ENCODER: Final = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class InferenceCall:
    """A request to run a model.

    Attributes:
        inputs: On the memory of the body they came in, where that is possible.
        outputs: Names of the outputs that are wanted; empty: all.
        timeout: Seconds after which the caller no longer cares; `None`: not said.
        id: The caller's name for the request, to be returned.
        binary_default: Whether outputs are to be binary where nothing else is said.
        binary: Output → whether it is to be binary.
        receipt: What the caller wants in a receipt; `None`: no receipt.
        classes: Output → how many of its highest classes are wanted instead of it.
        priority: Of the scheduler; see `blindai.inference.scheduler.Scheduler.submit`.
        sequence: What it is a step of; `None`: it stands alone.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...]
    timeout: float | None
    id: str | None
    binary_default: bool
    binary: dict[str, bool]
    receipt: ReceiptWish | None = None
    classes: dict[str, int] = field(default_factory=dict)
    priority: int = 0
    sequence: Step | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A response body.

    Attributes:
        parts: Its bytes, in order.
        header_length: Bytes of JSON at its beginning; `None`: it is all JSON.
        facts: What its receipt will state; `None`: it has none.
        coding: That the parts together are in; `None`: they are as they were made.
    """

    parts: list[bytes | memoryview]
    header_length: int | None
    facts: Facts | None = None
    coding: bytes | None = None


@dataclass(frozen=True, slots=True)
class Envelope:
    """A request whose tensors are still bytes.

    Attributes:
        document: Its JSON.
        binary: What is behind the JSON.
        work: Bytes that reading the call has to look at one by one.
    """

    document: _RequestBody
    binary: memoryview
    work: int


def parse_request(body: bytes | memoryview, header_length: int | None) -> InferenceCall:
    """Read a request.

    Args:
        body: JSON, then the binary tensors. Must not change while the call lives.
        header_length: Bytes of JSON at its beginning; `None`: it is all JSON.

    Raises:
        InvalidInput: Anything that the protocol does not allow.
    """
    return read_call(open_envelope(body, header_length))


def open_envelope(body: bytes | memoryview, header_length: int | None) -> Envelope:
    """Read a request's JSON, and nothing behind it; see `parse_request`."""
    view = memoryview(body)
    if header_length is not None and not 0 < header_length <= len(view):
        msg = f"expected a JSON header of 1 to {len(view)} bytes, came a length of {header_length}"
        raise InvalidInput(msg)
    if header_length is None:
        return Envelope(_decode(view), view[:0], len(view))
    document = _decode(view[:header_length])
    binary = view[header_length:]
    bytewise = any(is_bytewise(entry.datatype) for entry in document.inputs)
    return Envelope(document, binary, header_length + (len(binary) if bytewise else 0))


def is_bytewise(datatype: str) -> bool:
    """Return whether the elements of a raw tensor have to be looked at one by one."""
    return datatype in _BYTEWISE


def read_call(envelope: Envelope) -> InferenceCall:
    """Return the call that a request asks for.

    Args:
        envelope: Of the request.

    Raises:
        InvalidInput: Anything that the protocol does not allow.
    """
    document = envelope.document
    check_local(document.inputs)
    check_local(document.outputs)
    return make_call(
        _inputs(document.inputs, envelope.binary),
        {output.name: output.parameters for output in document.outputs},
        count=len(document.outputs),
        parameters=document.parameters,
        request_id=document.id,
    )


def make_call(
    inputs: tuple[Tensor, ...],
    outputs: Mapping[str, Mapping[str, Any]],
    *,
    count: int,
    parameters: Mapping[str, Any],
    request_id: str | None,
) -> InferenceCall:
    """Return the call for a request, in whichever protocol it came.

    Args:
        inputs: Of the model.
        outputs: That are wanted, each with its parameters; none: all.
        count: How many outputs were named.
        parameters: Of the request.
        request_id: The caller's name for it.

    Raises:
        InvalidInput: A parameter that is not as the protocol has it.
    """
    if len(outputs) != count:
        msg = "outputs: expected each name once"
        raise InvalidInput(msg)
    receipt = parse_wish(parameters)
    sequence = parse_step(parameters) if parameters else None
    if sequence is not None and receipt is not None:
        msg = "parameters.receipt: a step of a sequence has none, its state is not in the request"
        raise InvalidInput(msg)
    return InferenceCall(
        inputs=inputs,
        outputs=tuple(outputs),
        timeout=_timeout(parameters),
        id=_id(request_id),
        binary_default=_flag(parameters, "binary_data_output", default=False) is True,
        binary=_binary(outputs) if outputs else {},
        receipt=receipt,
        classes=_classes(outputs) if outputs else {},
        priority=parse_priority(parameters.get("priority", 0)),
        sequence=sequence,
    )


def check_local(tensors: Iterable[_NamedParameters]) -> None:
    """Refuse tensors whose data is said to be elsewhere.

    Raises:
        InvalidInput: One in shared memory.
    """
    for tensor in tensors:
        if "shared_memory_region" in tensor.parameters:
            msg = f"{tensor.name[:100]}: shared memory is not supported, expected the data itself"
            raise InvalidInput(msg)


def parse_priority(value: object) -> int:
    """Return the scheduler's priority for the protocol's.

    The protocol's highest is 1, and 0 is the default. The default here is the highest too: a
    caller can let others go first, by a second of waiting for each step, and overtake nobody.

    Args:
        value: Of the parameter `priority`.

    Raises:
        InvalidInput: No whole number of 64 bits from 0 up.
    """
    if type(value) is not int or not 0 <= value <= _MAX_PRIORITY:
        msg = "parameters.priority: expected a whole number from 0 up"
        raise InvalidInput(msg)
    return -min(max(value - 1, 0), MAX_PRIORITY)


def build_answer(
    call: InferenceCall, name: str, record: ModelRecord, outputs: Sequence[Tensor]
) -> Answer:
    """Write a response.

    Args:
        call: What was asked for.
        name: What the caller called the model.
        record: The model that ran.
        outputs: What it returned.

    Raises:
        InvalidInput: An output that JSON cannot carry, asked for as JSON; or one that cannot be
            classified.
    """
    described: list[dict[str, object]] = []
    parts: list[bytes | memoryview] = []
    for output in outputs:
        count = call.classes.get(output.name, 0)
        tensor = classify(output, count) if count else output
        entry: dict[str, object] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
        }
        if call.binary.get(tensor.name, call.binary_default):
            data = to_bytes(tensor)
            entry["parameters"] = {"binary_data_size": len(data)}
            parts.append(data)
        else:
            entry["data"] = to_json_data(tensor)
        described.append(entry)
    document = {
        "model_name": name,
        "model_version": MODEL_VERSION,
        **({} if call.id is None else {"id": call.id}),
        "parameters": {"sha256": record.sha256},
        "outputs": described,
    }
    header = _ENCODER.encode(document)
    return Answer([header, *parts], len(header) if parts else None)


def gather_facts(
    call: InferenceCall,
    record: ModelRecord,
    outputs: Sequence[Tensor],
    body: bytes | memoryview,
    answer: Answer,
) -> Facts | None:
    """Return what the receipt of a run will state; `None` where none is wanted.

    Args:
        call: What was asked for.
        record: The model that ran.
        outputs: What it returned.
        body: Of the request.
        answer: The response.
    """
    if call.receipt is None:
        return None
    return Facts(
        wish=call.receipt,
        kind=Kind.RUN,
        model_sha256=bytes.fromhex(record.sha256),
        model_form=str(record.form),
        inputs=digest_tensors(call.inputs),
        outputs=digest_tensors(outputs),
        request_sha256=digest_parts([body]),
        response_sha256=digest_parts(answer.parts),
    )


def describe_specs(specs: Sequence[TensorSpec]) -> list[dict[str, object]]:
    """Return a model's inputs or outputs as the protocol's metadata has them."""
    return [
        {"name": spec.name, "datatype": spec.datatype, "shape": spec.oip_shape} for spec in specs
    ]


def _decode(data: memoryview) -> _RequestBody:
    try:
        return _DECODER.decode(data)
    except RecursionError:
        msg = "the request's JSON is nested too deeply"
        raise InvalidInput(msg) from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        # msgspec says what and where, never the value; a codec quotes bytes of the request.
        what = str(error) if isinstance(error, msgspec.MsgspecError) else "not UTF-8"
        msg = f"expected an inference request as JSON: {what}"
        raise InvalidInput(msg) from None


def _inputs(entries: list[_InputTensor], binary: memoryview) -> tuple[Tensor, ...]:
    tensors = []
    position = 0
    for entry in entries:
        name = entry.name
        datatype = parse_datatype(name, entry.datatype)
        size = entry.parameters.get("binary_data_size")
        if size is None:
            if entry.data is msgspec.UNSET:
                msg = f"{name[:100]}: expected data, or parameters.binary_data_size; came neither"
                raise InvalidInput(msg)
            tensors.append(from_json_data(name, datatype, entry.shape, entry.data))
            continue
        if entry.data is not msgspec.UNSET:
            msg = f"{name[:100]}: expected data or parameters.binary_data_size, came both"
            raise InvalidInput(msg)
        left = len(binary) - position
        if type(size) is not int or not 0 <= size <= left:
            msg = f"{name[:100]}: expected binary_data_size of 0 to {left}, the bytes that came"
            raise InvalidInput(msg)
        data = binary[position : position + size]
        tensors.append(from_buffer(name, datatype, entry.shape, data))
        position += size
    if position != len(binary):
        msg = f"expected {position} bytes of binary data, came {len(binary)}"
        raise InvalidInput(msg)
    return tuple(tensors)


def parse_datatype(name: str, text: str) -> DataType:
    """Return a tensor's datatype.

    Args:
        name: Of the tensor.
        text: The protocol's own spelling; others are for people, not for peers.

    Raises:
        InvalidInput: No datatype of the protocol.
    """
    datatype = _DATATYPES.get(text)
    if datatype is None:
        expected = ", ".join(DataType)
        msg = f"{name[:100]}: expected a datatype of {expected}, came another"
        raise InvalidInput(msg)
    return datatype


def _binary(outputs: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    return {
        name: flag
        for name, wishes in outputs.items()
        if (flag := _flag(wishes, "binary_data", default=None)) is not None
    }


def _classes(outputs: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    return {
        name: classes
        for name, wishes in outputs.items()
        if (classes := parse_class_count(wishes.get("classification", 0)))
    }


def _timeout(parameters: Mapping[str, Any]) -> float | None:
    timeout = parameters.get("timeout")
    if timeout is None:
        return None
    if type(timeout) is not int or timeout < 0:
        msg = "parameters.timeout: expected microseconds, as a whole number from 0 up"
        raise InvalidInput(msg)
    # As elsewhere in the protocol's implementations, 0 is no timeout. The cut keeps numbers
    # that no float can hold away from the division.
    return min(timeout, 10**15) / _MICROSECONDS if timeout else None


def _flag(parameters: Mapping[str, Any], name: str, *, default: bool | None) -> bool | None:
    flag = parameters.get(name, default)
    if flag is not default and type(flag) is not bool:
        msg = f"parameters.{name}: expected true or false"
        raise InvalidInput(msg)
    return flag


def _id(text: str | None) -> str | None:
    if text is not None and len(text) > _MAX_ID:
        msg = f"id: expected at most {_MAX_ID} characters, came {len(text)}"
        raise InvalidInput(msg)
    return text
