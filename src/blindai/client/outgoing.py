"""A request as bytes, in the pieces in which a connection sends them.

Always true: large parts of a body are handed on as they are, never copied; the head and what
is small go out as one piece. Nothing here writes or waits.

Specification: RFC 9112 §3, §7.1; RFC 9110 §9.3.6 (CONNECT), §10.1.1 (Expect).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blindai.client.address import Address
    from blindai.client.messages import Request

Piece = bytes | memoryview

# Seconds to wait for "100 Continue" before the body goes out without it.
CONTINUE_WAIT: Final = 1.0
# Below this, one write of a copy is cheaper than two writes.
_JOIN_BYTES: Final = 64 << 10


def outgoing(request: Request, authority: str) -> list[Piece]:
    """Return a request with its body, small neighbours joined.

    Args:
        request: With its whole body.
        authority: For the Host header.
    """
    length = sum(map(len, request.body))
    head = _head(request, authority, f"Content-Length: {length}\r\n" if length else "")
    if length <= _JOIN_BYTES:
        return [b"".join((head, *request.body))]
    pieces: list[Piece] = [head]
    for part in request.body:
        if len(pieces[-1]) + len(part) <= _JOIN_BYTES:
            pieces[-1] = b"".join((pieces[-1], part))
        else:
            pieces.append(part)
    return pieces


def upload_head(request: Request, authority: str, size: int | None) -> bytes:
    """Return the head of a request whose body follows in `framed` pieces.

    Args:
        request: Without a body.
        authority: For the Host header.
        size: Of the body in bytes; `None`: HTTP chunks follow.
    """
    framing = "Transfer-Encoding: chunked" if size is None else f"Content-Length: {size}"
    return _head(request, authority, framing + "\r\n")


def framed(chunk: Piece, size: int | None) -> Iterator[Piece]:
    """Yield one piece of a body as it is sent; see `upload_head`."""
    if size is not None:
        yield chunk
        return
    yield b"%x\r\n" % len(chunk)
    yield chunk
    yield b"\r\n"


def last_chunk(size: int | None) -> bytes:
    """Return what ends a body; see `upload_head`."""
    return b"0\r\n\r\n" if size is None else b""


def tunnel_head(target: Address, authorization: str | None) -> bytes:
    """Return the request that asks a proxy for a tunnel."""
    head = f"CONNECT {target.authority} HTTP/1.1\r\nHost: {target.authority}\r\n"
    if authorization is not None:
        head += f"Proxy-Authorization: {authorization}\r\n"
    return f"{head}\r\n".encode("ascii")


def _head(request: Request, authority: str, framing: str) -> bytes:
    lines = "".join([f"{name}: {value}\r\n" for name, value in request.headers.items()])
    return (
        f"{request.method} {request.target} HTTP/1.1\r\nHost: {authority}\r\n{lines}{framing}\r\n"
    ).encode("ascii")
