"""The head and the framing of an HTTP/1.1 answer, from untrusted bytes.

Always true: whatever the bytes, a function here returns a value or raises
`ConnectionFailed`. Where the specification lets a recipient be lenient, this is not: an
answer whose end could be understood in two ways is refused.

Specification: RFC 9112 §4 (status line), §5 (fields), §6 (length), §7.1 (chunks).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from blindai.errors import ConnectionFailed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_HEAD_BYTES: Final = 32 << 10
MAX_CHUNK_LINE_BYTES: Final = 256
_STATUS: Final = re.compile(r"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [^\x00\r\n]*)?")
_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?")
# What frames the answer, or its parts, must not be said twice.
_ONCE: Final = frozenset(
    {"content-length", "transfer-encoding", "content-type", "inference-header-content-length"}
)
_MAX_KNOWN: Final = 512
_BODILESS: Final = frozenset({204, 304})


@dataclass(frozen=True, slots=True)
class Head:
    """Status line and fields of an answer.

    Attributes:
        status: 100 to 599.
        headers: By lower-case name; repeated ones are joined with ", ".
        keep_alive: Whether the connection may carry another request.
    """

    status: int
    headers: Mapping[str, str]
    keep_alive: bool

    @property
    def interim(self) -> bool:
        """Whether another answer follows this one (RFC 9110 §15.2)."""
        return self.status < 200  # noqa: PLR2004


def parse_head(data: bytes) -> Head:
    """Read everything up to, and without, the empty line.

    Args:
        data: At most `MAX_HEAD_BYTES` from an untrusted peer.

    Raises:
        ConnectionFailed: If it is no head of an HTTP/1 answer.
    """
    return _known_head(data) if len(data) <= _MAX_KNOWN else _parse_head(data)


def _parse_head(data: bytes) -> Head:
    text = data.decode("latin-1")
    lines = text.split("\r\n")
    status = _STATUS.fullmatch(lines[0])
    if status is None:
        msg = "expected an HTTP/1.1 answer, the first line that came is none"
        raise ConnectionFailed(msg)
    ends = len(lines) - 1
    if text.count("\n") != ends or text.count("\r") != ends or "\0" in text:
        msg = "expected header lines that end in CRLF, came a lone CR, LF or NUL"
        raise ConnectionFailed(msg)
    fields = [_field(line) for line in lines[1:]]
    headers = dict(fields)
    if len(headers) < len(fields):
        headers = _join_repeated(fields)
    closing = status[1] == "0" or "close" in headers.get("connection", "").lower()
    return Head(int(status[2]), MappingProxyType(headers), keep_alive=not closing)


# Within one second a server sends the same head with each answer of a size.
_known_head = lru_cache(maxsize=32)(_parse_head)


def _join_repeated(fields: Sequence[tuple[str, str]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in fields:
        if name in headers and name in _ONCE:
            msg = f"the HTTP answer says {name} twice"
            raise ConnectionFailed(msg)
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _field(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not _NAME.fullmatch(name):
        msg = "expected header lines as name: value in the HTTP answer, came another line"
        raise ConnectionFailed(msg)
    return name.lower(), value.strip(" \t")


def body_length(head: Head) -> int | None:
    """Return how many bytes follow `head`; `None`: chunks do.

    Raises:
        ConnectionFailed: If the answer does not say, or says it twice.
    """
    length = head.headers.get("content-length")
    coding = head.headers.get("transfer-encoding")
    if head.interim or head.status in _BODILESS:
        return 0
    if coding is not None:
        if length is not None or coding.lower() != "chunked":
            msg = "expected a length or chunks in the HTTP answer, came both or another coding"
            raise ConnectionFailed(msg)
        return None
    if length is None or not _LENGTH.fullmatch(length):
        msg = "the HTTP answer does not say how long it is"
        raise ConnectionFailed(msg)
    return int(length)


def parse_chunk_size(line: bytes) -> int:
    """Read the line before a chunk, without its CRLF; 0 says that it was the last.

    Raises:
        ConnectionFailed: If it is none.
    """
    found = _CHUNK.fullmatch(line)
    if found is None:
        msg = "expected the size of a chunk in the HTTP answer, came another line"
        raise ConnectionFailed(msg)
    return int(found[1], 16)
