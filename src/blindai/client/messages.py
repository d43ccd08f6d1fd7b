"""What client and server say to each other, as values: requests out, answers in.

Always true: nothing here opens a connection. An answer may come from a verified server that
is wrong all the same, so every field is checked; an error it names is raised only if it is
one of those a server may give.

Specification: Open Inference Protocol (KServe v2) REST with the binary tensor data
extension; `/blindai/v1/` is BlindAI's own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime  # noqa: TC003 - msgspec reads the annotations
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import numpy as np

from blindai import errors
from blindai.client.results import ModelInfo, Result
from blindai.errors import (
    BlindAIError,
    ConnectionFailed,
    InferenceError,
    InvalidInput,
    Overloaded,
)
from blindai.inference.tensors import (
    DataType,
    Tensor,
    TensorSpec,
    from_buffer,
    from_json_data,
    to_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from blindai.client.http1 import Head

T = TypeVar("T")

JSON_HEADER_LENGTH: Final = "inference-header-content-length"
MAX_JSON_BYTES: Final = 16 << 20
_NAME: Final = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
# Tensor data starts at a multiple of this, so that whoever receives it need not copy it.
_ALIGNMENT: Final = 64
_MAX_ERROR_TEXT: Final = 2000
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
        errors.Overloaded,
    )
}


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request.

    Attributes:
        method: In capitals.
        target: Path and query, quoted.
        headers: Without those that the transport makes: Host, Content-Length.
        body: Its parts, in order; not to change until the answer has come.
        timeout: Seconds until the answer must have come; `None`: the client's own.
        repeatable: Whether it may be sent again when a kept connection turns out closed.
    """

    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Sequence[bytes | memoryview] = ()
    timeout: float | None = None
    repeatable: bool = True


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP answer.

    Attributes:
        status: 200 to 599.
        headers: By lower-case name.
        body: All of it, writable.
    """

    status: int
    headers: Mapping[str, str]
    body: memoryview


def receive_buffer(head: Head, length: int) -> memoryview:
    """Return writable memory for the body of an answer, placed so that its tensors align."""
    offset = head.headers.get(JSON_HEADER_LENGTH, "")
    pad = -int(offset) % _ALIGNMENT if offset.isdecimal() and len(offset) < len("1" * 19) else 0
    return memoryview(bytearray(pad + length))[pad:]


# Requests.


def check_name(name: str) -> str:
    """Return `name`, if a model can be called that.

    Raises:
        InvalidInput: If it cannot.
    """
    if not _NAME.fullmatch(name):
        msg = (
            "a model's name has 1 to 128 of the characters A-Z a-z 0-9 . _ -, the first of them "
            "a letter or a digit, and no two dots in a row"
        )
        raise InvalidInput(msg)
    return name


def authorization(token: str | None) -> dict[str, str]:
    """Return the headers that present a token; none for `None`.

    Raises:
        ConfigurationError: If it could not stand in a header.
    """
    if token is None:
        return {}
    if not token.isascii() or not token.isprintable() or " " in token or not token:
        msg = "expected a token of printable ASCII without spaces, came another"
        raise errors.ConfigurationError(msg)
    return {"Authorization": f"Bearer {token}"}


def list_request(headers: Mapping[str, str]) -> Request:
    """Return the request for the list of models."""
    return Request("GET", "/blindai/v1/models", headers)


def model_request(name: str, headers: Mapping[str, str]) -> Request:
    """Return the request for what one model expects; by name or SHA-256."""
    return Request("GET", f"/v2/models/{check_name(name)}", headers)


def delete_request(name: str, headers: Mapping[str, str]) -> Request:
    """Return the request that takes a model away."""
    target = f"/blindai/v1/models/{check_name(name)}"
    return Request("DELETE", target, headers, repeatable=False)


def upload_request(
    name: str, headers: Mapping[str, str], *, replace: bool, timeout: float
) -> Request:
    """Return the request that precedes the bytes of a model."""
    query = "?replace=true" if replace else ""
    # RFC 9110 §10.1.1: a server that refuses says so before gigabytes are on their way.
    expect = {"Content-Type": "application/octet-stream", "Expect": "100-continue"}
    return Request(
        "PUT",
        f"/blindai/v1/models/{check_name(name)}{query}",
        {**expect, **headers},
        timeout=timeout,
        repeatable=False,
    )


def infer_request(
    name: str,
    tensors: Sequence[Tensor],
    headers: Mapping[str, str],
    *,
    outputs: Sequence[str] | None,
    timeout: float | None,
) -> Request:
    """Return the request to run a model, all tensors in the binary form, both ways."""
    data = [to_bytes(tensor) for tensor in tensors]
    parameters: dict[str, object] = {"binary_data_output": True}
    if timeout is not None:
        parameters["timeout"] = max(1, round(timeout * 1e6))
    header: dict[str, object] = {
        "inputs": [
            {
                "name": tensor.name,
                "shape": tensor.shape,
                "datatype": tensor.datatype.value,
                "parameters": {"binary_data_size": len(part)},
            }
            for tensor, part in zip(tensors, data, strict=True)
        ],
        "parameters": parameters,
    }
    if outputs is not None:
        header["outputs"] = [
            {"name": output, "parameters": {"binary_data": True}} for output in outputs
        ]
    encoded = msgspec.json.encode(header)
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    return Request(
        "POST",
        f"/v2/models/{check_name(name)}/infer",
        {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(encoded)),
            **headers,
        },
        [encoded, *data],
        # The server stops at its deadline and says so; this waits for it to say so.
        timeout=None if timeout is None else timeout + 2.0,
    )


# Answers.


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
    if kind is Overloaded:
        raise Overloaded(text, retry_after=retry_after(response.headers))
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
    found = _decode(response.body[:size], _Inferred)
    position = size
    tensors: list[Tensor] = []
    try:
        for output in found.outputs:
            datatype = DataType.parse(output.datatype)
            count = output.parameters.binary_data_size
            if count is None:
                tensors.append(from_json_data(output.name, datatype, output.shape, output.data))
                continue
            if not 0 <= count <= len(response.body) - position:
                raise InferenceError(_malformed(f"{output.name[:100]!r} ends early"))
            data = response.body[position : position + count]
            tensors.append(_aligned(from_buffer(output.name, datatype, output.shape, data)))
            position += count
    except InvalidInput as error:
        raise InferenceError(_malformed(str(error))) from error
    if position != len(response.body):
        raise InferenceError(_malformed("there are bytes after its tensors"))
    return Result(tensors, model=found.model_name, model_sha256=_sha256(found.parameters.sha256))


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


def _decode(data: memoryview, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        # msgspec names the field and the types, never a value.
        raise InferenceError(_malformed(str(error))) from error


def _malformed(why: str) -> str:
    return f"the server's answer is malformed: {why}"
