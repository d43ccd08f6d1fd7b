"""How an RPC ends: the codes of gRPC, and which of them each of our errors is.

Specification: gRPC, "Status codes and their use in gRPC"; "gRPC over HTTP2", Responses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from blindai.errors import (
    AccessDenied,
    BlindAIError,
    ConnectionFailed,
    DeadlineExceeded,
    InferenceError,
    InvalidInput,
    InvalidModel,
    LimitExceeded,
    ModelConflict,
    ModelNotFound,
    NotPermitted,
    Overloaded,
    RateLimited,
    SealedDataError,
)
from blindai.server.grpc.hpack import encode_fields

if TYPE_CHECKING:
    from collections.abc import Mapping


class StatusCode(IntEnum):
    """What became of an RPC."""

    OK = 0
    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


# The first class of an error's bases that stands here decides.
CODES: Final[Mapping[type[BlindAIError], StatusCode]] = {
    InvalidInput: StatusCode.INVALID_ARGUMENT,
    AccessDenied: StatusCode.UNAUTHENTICATED,
    NotPermitted: StatusCode.PERMISSION_DENIED,
    ModelNotFound: StatusCode.NOT_FOUND,
    ModelConflict: StatusCode.ALREADY_EXISTS,
    LimitExceeded: StatusCode.RESOURCE_EXHAUSTED,
    InvalidModel: StatusCode.INVALID_ARGUMENT,
    InferenceError: StatusCode.INTERNAL,
    SealedDataError: StatusCode.UNAVAILABLE,
    Overloaded: StatusCode.UNAVAILABLE,
    RateLimited: StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: StatusCode.DEADLINE_EXCEEDED,
    ConnectionFailed: StatusCode.CANCELLED,
    BlindAIError: StatusCode.INTERNAL,
}
# A client reads the trailers of an answer as a whole, and may bound them to 8 KiB.
_MAX_MESSAGE: Final = 2048
_PLAIN: Final = frozenset(range(0x20, 0x7F)) - {ord("%")}


@dataclass(frozen=True, slots=True)
class Status:
    """What an RPC ends with.

    Attributes:
        code: What became of it.
        message: For a person.
        retry_after: Seconds after which a retry makes sense; `None`: nothing is said.
    """

    code: StatusCode
    message: str = ""
    retry_after: float | None = None


OK: Final = Status(StatusCode.OK)


def status_of(error: BlindAIError) -> Status:
    """Return what tells a client of an error; with its message, as on REST."""
    code = next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)
    wait = error.retry_after if isinstance(error, Overloaded) else None
    return Status(code, str(error), wait)


def encode_trailers(status: Status, *more: tuple[bytes, bytes]) -> bytes:
    """Return the header block that ends an RPC.

    Args:
        status: What it ends with.
        more: Further metadata.
    """
    fields = [(b"grpc-status", b"%d" % status.code)]
    if status.message:
        fields.append((b"grpc-message", _percent_encode(status.message)))
    if status.retry_after is not None:
        # Clients with a retry policy wait as long as this says.
        milliseconds = max(1, math.ceil(status.retry_after * 1000))
        fields.append((b"grpc-retry-pushback-ms", b"%d" % milliseconds))
    return encode_fields(*fields, *more)


def _percent_encode(message: str) -> bytes:
    """Return a message as the trailer carries it, cut to a length that every client takes."""
    encoded = bytearray()
    for character in message:
        data = character.encode("utf-8", "replace")
        piece = data if data[0] in _PLAIN else b"".join(b"%%%02X" % byte for byte in data)
        if len(encoded) + len(piece) > _MAX_MESSAGE:
            break
        encoded += piece
    return bytes(encoded)
