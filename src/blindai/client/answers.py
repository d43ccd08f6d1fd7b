"""What a server answered, read with distrust.

Always true: a verified server may be wrong all the same, so every field is checked, and
whatever the bytes, a function here returns a value or raises `InferenceError`. An error that
a server names is raised only if it is one of those a server may give.

Specification: Open Inference Protocol (KServe v2) REST with the binary tensor data
extension; `/blindai/v1/` is BlindAI's own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime  # noqa: TC003 - msgspec reads the annotations
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import numpy as np

from blindai import errors
from blindai.client.messages import JSON_HEADER_LENGTH, Response
from blindai.client.results import Array, ModelInfo, Result
from blindai.errors import (
    BlindAIError,
    ConnectionFailed,
    InferenceError,
    InvalidInput,
    Overloaded,
)
from blindai.inference.options import REFERENCE
from blindai.inference.tensors import (
    DataType,
    Tensor,
    TensorSpec,
    from_buffer,
    from_json_data,
    is_in_place,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_FORM: Final = re.compile(r"[a-z0-9]{1,16}\.[a-z0-9]{1,16}")
_MAX_ERROR_TEXT: Final = 2000
# Of the JSON of an answer, to be remembered.
_MAX_KNOWN: Final = 1024
_RETRY_AFTER: Final = re.compile(r"[0-9]{1,6}")
# All that a server may make a client raise. Attestation errors are not its to give.
_ERRORS: Final[dict[str, type[BlindAIError]]] = {
    kind.__name__: kind
    for kind in (
        errors.AccessDenied,
        errors.DeadlineExceeded,
        errors.InferenceError,
        errors.InvalidInput,
        errors.InvalidModel,
        errors.LimitExceeded,
        errors.ModelConflict,
        errors.ModelNotFound,
        errors.NotPermitted,
        errors.Overloaded,
        errors.RateLimited,
        errors.SealedDataError,
    )
}


class _Error(msgspec.Struct):
    error: str = ""
    type: str = ""


class _Spec(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int | str | None] | None = None


class _Identity(msgspec.Struct):
    sha256: str
    size: int = 0
    precision: str = ""
    form: str = str(REFERENCE)
    deviation: float | None = None


class _Metadata(msgspec.Struct):
    name: str
    inputs: list[_Spec]
    outputs: list[_Spec]
    parameters: _Identity
    platform: str = ""


class _Record(msgspec.Struct):
    name: str
    sha256: str
    size: int
    inputs: list[_Spec]
    outputs: list[_Spec]
    engine: str = ""
    precision: str = ""
    form: str = str(REFERENCE)
    deviation: float | None = None
    loaded_at: datetime | None = None


class _Records(msgspec.Struct):
    models: list[_Record]


class _TensorParameters(msgspec.Struct):
    binary_data_size: int | None = None


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: _TensorParameters = msgspec.field(default_factory=_TensorParameters)
    data: Any = None


class _Inferred(msgspec.Struct):
    model_name: str
    outputs: list[_Output]
    parameters: _Identity


@dataclass(frozen=True, slots=True)
class _Part:
    """What the JSON of an answer says of one output.

    Attributes:
        size: Of its binary form, in bytes; `None`: it is in the JSON, as `data`.
        is_in_place: Whether its binary form is its array.
    """

    name: str
    datatype: DataType
    shape: tuple[int, ...]
    size: int | None
    is_in_place: bool
    data: Any


@dataclass(frozen=True, slots=True)
class _Layout:
    """What the JSON of an answer says."""

    model: str
    sha256: str
    parts: tuple[_Part, ...]


def check_status(response: Response) -> None:
    """Raise what the server says went wrong.

    Raises:
        InferenceError: Or the subclass that the server names.
        AccessDenied: If the token is missing or gives no right to this.
        ConnectionFailed: If the server redirects: that is never followed.
    """
    if 200 <= response.status < 300:  # noqa: PLR2004
        return
    if response.status < 400:  # noqa: PLR2004
        msg = (
            f"the server answered with a redirect (HTTP {response.status}), which is never "
            "followed: only the server that was verified is talked to. Connect to the address "
            "of the BlindAI server itself"
        )
        raise ConnectionFailed(msg)
    try:
        said = msgspec.json.decode(response.body, type=_Error)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        said = _Error()
    text = printable(said.error) or f"the server answered with HTTP status {response.status}"
    kind = _ERRORS.get(said.type, InferenceError)
    if issubclass(kind, Overloaded):
        raise kind(text, retry_after=retry_after(response.headers))
    raise kind(text)


def retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that a server asks to wait; 1 where it does not say."""
    found = headers.get("retry-after", "")
    return float(found) if _RETRY_AFTER.fullmatch(found) else 1.0


def printable(text: str) -> str:
    """Return the start of a peer's text, without what could steer a terminal."""
    kept = (c for c in text[:_MAX_ERROR_TEXT] if c.isprintable() or c == "\n")
    return "".join(kept)


def parse_model(response: Response) -> ModelInfo:
    """Read what the server says of one model.

    Raises:
        InferenceError: If the answer is malformed.
    """
    found = _decode(response.body, _Metadata)
    return _model(found, found.parameters, found.platform, None)


def parse_record(response: Response) -> ModelInfo:
    """Read the record of a model that was uploaded.

    Raises:
        InferenceError: If the answer is malformed.
    """
    found = _decode(response.body, _Record)
    return _model(found, found, found.engine, found.loaded_at)


def parse_records(response: Response) -> list[ModelInfo]:
    """Read the list of models.

    Raises:
        InferenceError: If the answer is malformed.
    """
    found = _decode(response.body, _Records)
    return [_model(one, one, one.engine, one.loaded_at) for one in found.models]


def parse_result(response: Response) -> Result:
    """Read the outputs of a run; arrays are views of the answer's memory.

    Raises:
        InferenceError: If the answer is malformed.
    """
    length = response.headers.get(JSON_HEADER_LENGTH)
    if length is not None and not (length.isascii() and length.isdecimal()):
        raise InferenceError(_malformed(f"{JSON_HEADER_LENGTH} is no number"))
    size = len(response.body) if length is None else int(length)
    if size > len(response.body):
        raise InferenceError(_malformed("its JSON is longer than the answer"))
    layout = _layout(response.body[:size])
    position = size
    tensors: list[Tensor] = []
    try:
        for part in layout.parts:
            if part.size is None:
                tensors.append(from_json_data(part.name, part.datatype, part.shape, part.data))
                continue
            if not 0 <= part.size <= len(response.body) - position:
                raise InferenceError(_malformed(f"{part.name[:100]!r} ends early"))
            if part.is_in_place:
                # As `from_buffer` does, but for what the layout knows already.
                array: Array = np.ndarray(part.shape, part.datatype.numpy, response.body, position)
                tensor = Tensor(part.name, array, part.datatype)
            else:
                data = response.body[position : position + part.size]
                tensor = from_buffer(part.name, part.datatype, part.shape, data)
            tensors.append(_aligned(tensor))
            position += part.size
    except InvalidInput as error:
        raise InferenceError(_malformed(str(error))) from error
    if position != len(response.body):
        raise InferenceError(_malformed("there are bytes after its tensors"))
    return Result(tensors, model=layout.model, model_sha256=layout.sha256)


def _layout(text: memoryview) -> _Layout:
    if len(text) <= _MAX_KNOWN:
        known = bytes(text)
        # Elements are nobody's to keep.
        if b'"data"' not in known:
            return _known_layout(known)
    return _parse_layout(text)


def _parse_layout(text: bytes | memoryview) -> _Layout:
    found = _decode(text, _Inferred)
    try:
        parts = tuple(map(_part, found.outputs))
    except InvalidInput as error:
        raise InferenceError(_malformed(str(error))) from error
    return _Layout(found.model_name, _sha256(found.parameters.sha256), parts)


def _part(output: _Output) -> _Part:
    datatype, size = DataType.parse(output.datatype), output.parameters.binary_data_size
    in_place = size is not None and is_in_place(output.name, datatype, output.shape, size)
    return _Part(output.name, datatype, tuple(output.shape), size, in_place, output.data)


# What a model gives for inputs of one shape is described in the same words each time.
_known_layout = lru_cache(maxsize=64)(_parse_layout)


def _aligned(tensor: Tensor) -> Tensor:
    array = tensor.array
    if array.flags.aligned:
        return tensor
    return Tensor(tensor.name, np.require(array, requirements=["ALIGNED"]), tensor.datatype)


def _model(
    found: _Metadata | _Record,
    identity: _Identity | _Record,
    engine: str,
    loaded_at: datetime | None,
) -> ModelInfo:
    try:
        return ModelInfo(
            name=found.name,
            sha256=_sha256(identity.sha256),
            size=identity.size,
            inputs=tuple(map(_spec, found.inputs)),
            outputs=tuple(map(_spec, found.outputs)),
            engine=engine,
            precision=printable(identity.precision),
            form=_form(identity.form),
            deviation=identity.deviation,
            loaded_at=loaded_at,
        )
    except InvalidInput as error:
        raise InferenceError(_malformed(str(error))) from error


def _spec(found: _Spec) -> TensorSpec:
    shape = found.shape
    dims = None if shape is None else tuple(None if _any_size(dim) else dim for dim in shape)
    return TensorSpec(found.name, DataType.parse(found.datatype), dims)


def _any_size(dim: int | str | None) -> bool:
    return isinstance(dim, int) and dim < 0


def _sha256(text: str) -> str:
    if not _SHA256.fullmatch(text):
        raise InferenceError(_malformed("its sha256 is none"))
    return text


def _form(text: str) -> str:
    if not _FORM.fullmatch(text):
        raise InferenceError(_malformed("its form is none"))
    return text


def _decode(data: bytes | memoryview, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        # msgspec names the field and the types, never a value.
        raise InferenceError(_malformed(str(error))) from error


def _malformed(why: str) -> str:
    return f"the server's answer is malformed: {why}"
