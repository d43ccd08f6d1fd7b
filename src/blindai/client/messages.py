"""HTTP requests and answers as values, and the requests that the verbs make.

Always true: nothing here opens a connection, and whatever stands in a target or a header was
checked to be able to.

Specification: Open Inference Protocol (KServe v2) REST with the binary tensor data
extension; `/blindai/v1/` is BlindAI's own.
"""

from __future__ import annotations

import re
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

import msgspec
import numpy as np

from blindai.errors import ConfigurationError, InvalidInput
from blindai.inference.tensors import Tensor, to_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from blindai.client.http1 import Head
    from blindai.inference.tensors import DataType

    # Of each tensor: name, shape, datatype, bytes of data.
    _Described = tuple[tuple[str, tuple[int, ...], DataType, int], ...]

JSON_HEADER_LENGTH: Final = "inference-header-content-length"
_NAME: Final = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# Tensor data starts at a multiple of this, so that whoever receives it need not copy it.
_ALIGNMENT: Final = 64
_LARGE_BYTES: Final = 64 << 10


# Structs, because one of each is made for every run: a frozen dataclass takes four times as long.
class Request(msgspec.Struct, frozen=True):
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
    headers: Mapping[str, str] = MappingProxyType({})
    body: Sequence[bytes | memoryview] = ()
    timeout: float | None = None
    repeatable: bool = True


class Response(msgspec.Struct, frozen=True):
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
    if length < _LARGE_BYTES:
        return memoryview(bytearray(pad + length))[pad:]
    # Not zeroed first, which would touch each page twice; and numpy asks for huge pages.
    return np.empty(pad + length, np.uint8).data[pad:]


@lru_cache(maxsize=256)
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
        raise ConfigurationError(msg)
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


def handover_request(measurements: Mapping[str, bytes], headers: Mapping[str, str]) -> Request:
    """Return the request that lets other code open the sealed models."""
    shown = {name: value.hex() for name, value in measurements.items()}
    body = (msgspec.json.encode({"measurements": shown}),)
    headers = {"Content-Type": "application/json", **headers}
    return Request("PUT", "/blindai/v1/handover", headers, body, repeatable=False)


def withdrawal_request(headers: Mapping[str, str], timeout: float) -> Request:
    """Return the request that lets no other code open the sealed models any more."""
    target = "/blindai/v1/handover"
    return Request("DELETE", target, headers, timeout=timeout, repeatable=False)


def upload_request(
    name: str,
    headers: Mapping[str, str],
    *,
    replace: bool,
    timeout: float,
    parameters: Mapping[str, object] | None = None,
) -> Request:
    """Return the request that precedes the bytes of a model."""
    wishes = {**({"replace": True} if replace else {}), **(parameters or {})}
    words = {key: "true" if value is True else str(value) for key, value in wishes.items()}
    query = f"?{urlencode(words)}" if wishes else ""
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
    parameters: Mapping[str, object] | None = None,
) -> Request:
    """Return the request to run a model, all tensors in the binary form, both ways."""
    data = [to_bytes(tensor) for tensor in tensors]
    described = tuple(
        [
            (tensor.name, tensor.array.shape, tensor.datatype, len(part))
            for tensor, part in zip(tensors, data, strict=True)
        ]
    )
    chosen = None if outputs is None else tuple(outputs)
    if parameters:
        encoded, framing = _encode_header(described, chosen, timeout, parameters)
    else:
        encoded, framing = _known_header(described, chosen, timeout)
    return Request(
        "POST",
        _infer_target(name),
        {**framing, **headers} if headers else framing,
        [encoded, *data],
        # The server stops at its deadline and says so; this waits for it to say so.
        timeout=None if timeout is None else timeout + 2.0,
    )


@lru_cache(maxsize=256)
def _infer_target(name: str) -> str:
    return f"/v2/models/{check_name(name)}/infer"


def _encode_header(
    described: _Described,
    outputs: tuple[str, ...] | None,
    timeout: float | None,
    parameters: Mapping[str, object],
) -> tuple[bytes, Mapping[str, str]]:
    """Return the JSON that precedes the data of tensors, and the headers that say where it ends.

    It is padded so that the data aligns.
    """
    wishes: dict[str, object] = {"binary_data_output": True, **parameters}
    if timeout is not None:
        wishes["timeout"] = max(1, round(timeout * 1e6))
    header: dict[str, object] = {
        "inputs": [
            {
                "name": name,
                "shape": shape,
                "datatype": datatype,
                "parameters": {"binary_data_size": size},
            }
            for name, shape, datatype, size in described
        ],
        "parameters": wishes,
    }
    if outputs is not None:
        header["outputs"] = [
            {"name": output, "parameters": {"binary_data": True}} for output in outputs
        ]
    encoded = msgspec.json.encode(header)
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    framing = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(encoded)),
    }
    return encoded, MappingProxyType(framing)


# Who runs a model often does so with the same names and shapes.
@lru_cache(maxsize=128)
def _known_header(
    described: _Described,
    outputs: tuple[str, ...] | None,
    timeout: float | None,
) -> tuple[bytes, Mapping[str, str]]:
    return _encode_header(described, outputs, timeout, {})


def slices(parts: Sequence[bytes | memoryview], size: int) -> Iterator[memoryview]:
    """Yield all of `parts` in pieces of at most `size` bytes, without a copy."""
    for part in parts:
        view = memoryview(part)
        for start in range(0, len(view), size):
            yield view[start : start + size]


def too_large(limit: int) -> str:
    """Return what to say of an answer above the caller's limit in bytes."""
    return f"the server's answer is larger than {limit} bytes, which is this client's limit"
