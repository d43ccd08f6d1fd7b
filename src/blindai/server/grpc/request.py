"""What a client says of an RPC before its messages, and how messages are cut from its bytes.

Always true: whatever the bytes, what is here returns or raises `InvalidInput` or `LimitExceeded`;
memory for a message is touched as its bytes come, never because a length was announced.

Specification: gRPC over HTTP2, "Requests" and "Length-Prefixed-Message"; RFC 9113 §8.2 and §8.3.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from blindai.errors import InvalidInput, LimitExceeded, Overloaded
from blindai.server.encoding import IDENTITY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blindai.server.grpc.hpack import Field

Message = bytes | memoryview

PREFIX: Final = struct.Struct(">BI")
ENCODINGS: Final = (IDENTITY, b"deflate", b"gzip")
_TIMEOUT: Final = re.compile(rb"(\d{1,8})([HMSmun])")
_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_PSEUDO: Final = frozenset({b":method", b":scheme", b":path", b":authority"})
_NEEDED: Final = frozenset({b":method", b":scheme", b":path"})
# RFC 9113 §8.2.2: what belongs to HTTP/1.1 may be read in two ways, so it is refused.
_FORBIDDEN: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_BAD_VALUE: Final = re.compile(rb"[\0\r\n]")


@dataclass(frozen=True, slots=True)
class Head:
    """What a client says of an RPC.

    Attributes:
        path: "/package.Service/Method".
        http_status: Not 200: the request is none of gRPC, and this is its answer.
        timeout: Seconds that the client waits; `None`: for ever.
        token: It presents.
        encoding: Of its compressed messages.
        traceparent: The trace that it belongs to, as it came.
    """

    path: bytes
    http_status: int = 200
    timeout: float | None = None
    token: bytes | None = None
    encoding: bytes = IDENTITY
    traceparent: bytes | None = None


def parse_head(fields: Sequence[Field]) -> Head:
    """Read the header fields of an RPC.

    Raises:
        InvalidInput: What HTTP/2 or gRPC does not allow.
    """
    pseudo, rest = _split(fields)
    content_type = rest.get(b"content-type", b"").partition(b";")[0]
    status = 200
    if pseudo[b":method"] != b"POST":
        status = 405
    elif content_type not in {b"application/grpc", b"application/grpc+proto"}:
        status = 415
    scheme, _, token = rest.get(b"authorization", b"").partition(b" ")
    return Head(
        path=pseudo[b":path"],
        http_status=status,
        timeout=_timeout(rest.get(b"grpc-timeout")),
        token=token.strip() if scheme.lower() == b"bearer" else None,
        encoding=rest.get(b"grpc-encoding", IDENTITY),
        traceparent=rest.get(b"traceparent"),
    )


def _split(fields: Sequence[Field]) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
    """Return the pseudo-header fields and the others."""
    pseudo: dict[bytes, bytes] = {}
    rest: dict[bytes, bytes] = {}
    for name, value in fields:
        if name[:1] == b":":
            if name not in _PSEUDO or name in pseudo or rest:
                msg = "expected each pseudo-header field once, before all others"
                raise InvalidInput(msg)
            pseudo[name] = value
        elif not _NAME.fullmatch(name) or name in _FORBIDDEN:
            msg = "expected names of header fields in lower case, and none of HTTP/1.1"
            raise InvalidInput(msg)
        elif name in rest and name in {b"authorization", b"content-type", b"grpc-timeout"}:
            msg = f"expected once, came more often: {name.decode()}"
            raise InvalidInput(msg)
        else:
            rest[name] = value
        if _BAD_VALUE.search(value):
            msg = "expected header fields of one line"
            raise InvalidInput(msg)
    if not pseudo.keys() >= _NEEDED:
        msg = "expected :method, :scheme and :path"
        raise InvalidInput(msg)
    return pseudo, rest


def _timeout(text: bytes | None) -> float | None:
    if text is None:
        return None
    match = _TIMEOUT.fullmatch(text)
    if match is None:
        msg = "grpc-timeout: expected 1 to 8 digits and one of H, M, S, m, u, n"
        raise InvalidInput(msg)
    return int(match[1]) * _UNITS[match[2]]


class Assembler:
    """Cuts the bytes of one stream into messages.

    Args:
        limit: Bytes of one message.
    """

    __slots__ = ("_buffer", "_filled", "_flag", "_limit", "_prefix")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._prefix = b""  # of which some bytes came
        self._buffer: memoryview | None = None
        self._filled = 0
        self._flag = 0

    @property
    def is_partial(self) -> bool:
        """Whether a message began and has not ended."""
        return self._buffer is not None or bool(self._prefix)

    def feed(self, data: memoryview) -> list[tuple[int, Message]]:
        """Return the messages that end in the next bytes, each with its flag: 1, compressed.

        Args:
            data: Copied, as far as it belongs to a message.

        Raises:
            InvalidInput: A flag that there is not.
            LimitExceeded: A message that is going to be too large.
            Overloaded: No memory for it.
        """
        messages: list[tuple[int, Message]] = []
        position = 0
        while position < len(data):
            if self._buffer is None:
                position = self._begin(data, position, messages)
                continue
            taken = data[position : position + len(self._buffer) - self._filled]
            self._buffer[self._filled : self._filled + len(taken)] = taken
            position += len(taken)
            messages += self.filled(len(taken))
        return messages

    def room(self, count: int) -> memoryview | None:
        """Return where up to `count` of a message's next bytes belong; `None`: it began not yet."""
        if self._buffer is None:
            return None
        return self._buffer[self._filled : self._filled + count]

    def filled(self, count: int) -> list[tuple[int, Message]]:
        """Return the message, if it ends with `count` bytes that came into `room`."""
        buffer = self._buffer
        self._filled += count
        if buffer is None or self._filled < len(buffer):
            return []
        self._buffer = None
        return [(self._flag, buffer)]

    def _begin(self, data: memoryview, position: int, messages: list[tuple[int, Message]]) -> int:
        """Read a prefix, and the message where all of it is there; return the position after."""
        taken = bytes(data[position : position + PREFIX.size - len(self._prefix)])
        prefix, self._prefix = self._prefix + taken, b""
        position += len(taken)
        if len(prefix) < PREFIX.size:
            self._prefix = prefix
            return position
        self._flag, length = prefix[0], int.from_bytes(prefix[1:])
        if self._flag > 1:
            msg = f"expected a message's flag of 0 or 1, came {self._flag}"
            raise InvalidInput(msg)
        if length > self._limit:
            msg = f"expected a message of at most {self._limit} bytes, came {length}"
            raise LimitExceeded(msg)
        end = position + length
        if end <= len(data):
            messages.append((self._flag, bytes(data[position:end])))
            return end
        try:
            self._buffer = np.empty(length, np.uint8).data
        except MemoryError:
            msg = f"no memory for a message of {length} bytes"
            raise Overloaded(msg) from None
        self._filled = 0
        return position
