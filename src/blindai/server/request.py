"""A request as handlers see it: headers in one dictionary, a body that is read within limits.

Always true: no more of a body is held than was actually received, however much is announced;
`unread` says whether something of the body may still come.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

import numpy as np

from blindai.errors import ConnectionFailed, InvalidInput, LimitExceeded, Overloaded
from blindai.server.encoding import IDENTITY, inflate
from blindai.server.stepping import Caller

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from blindai.server.exchange import Exchange
    from blindai.server.limits import Share

# After an early answer, what the client is still sending is read for so long and so far:
# closing at once would reset the connection and could take the answer away with it.
_LINGER_SECONDS: Final = 2.0
_LINGER_BYTES: Final = 8 << 20

# Above, a body is received straight into memory of its size.
_IN_PLACE_FROM: Final = 64 << 10

_MAX_DIGITS: Final = 12

# Of these, a proxy may take the first and this server the last.
_SINGLE: Final = frozenset(
    {
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"host",
        b"inference-header-content-length",
        b"transfer-encoding",
        b"x-blindai-sha256",
    }
)


class Request:
    """One request.

    Args:
        exchange: On a connection.

    Attributes:
        method: "GET" and so on.
        raw_path: As it was sent, percent-encoded.
        repeated: Headers that came more than once, though they may come once only.
        http_version: "1.1" or "1.0".
        headers: Names in lower case; where one came twice, the last.
        name: What stands in the path for {name}, decoded.
        unread: Whether something of the body may still come.
    """

    __slots__ = (
        "_exchange",
        "headers",
        "http_version",
        "method",
        "name",
        "raw_path",
        "repeated",
        "unread",
    )

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.method = exchange.method
        self.raw_path = exchange.raw_path
        self.http_version = exchange.http_version
        self.headers = exchange.headers
        self.repeated = _SINGLE.intersection(exchange.repeated) if exchange.repeated else ()
        self.name = ""
        self.unread = self.content_length != 0

    @property
    def content_length(self) -> int | None:
        """Bytes of the body as announced; `None`: chunked. The parser has checked the digits."""
        if b"transfer-encoding" in self.headers:
            return None
        return int(self.headers.get(b"content-length", b"0"))

    @property
    def coding(self) -> bytes:
        """What the body is encoded with; see `blindai.server.encoding.CODINGS`."""
        return self.headers.get(b"content-encoding", IDENTITY).lower()

    @property
    def bearer_token(self) -> bytes | None:
        """The token in the Authorization header."""
        scheme, _, token = self.headers.get(b"authorization", b"").partition(b" ")
        return token.strip() if scheme.lower() == b"bearer" and token.strip() else None

    @property
    def peer(self) -> str:
        """The address that the connection is from."""
        return self._exchange.peer

    @property
    def client_certificate(self) -> bytes | None:
        """The client's certificate, verified by TLS, as DER; `None`: it showed none."""
        return self._exchange.client_certificate

    def json_length(self) -> int | None:
        """Return the bytes of JSON at the body's beginning; `None`: it is all JSON.

        Raises:
            InvalidInput: The header is no number.
        """
        text = self.headers.get(b"inference-header-content-length")
        if text is None:
            return None
        if not text.isdigit() or len(text) > _MAX_DIGITS:
            msg = "Inference-Header-Content-Length: expected a number of bytes"
            raise InvalidInput(msg)
        return int(text)

    def caller(self) -> Caller:
        """Return who asks, as far as that is known."""
        proof = self.bearer_token or self.client_certificate
        return Caller(
            b"" if proof is None else hashlib.sha256(proof).digest(),
            self._exchange.peer,
            self._exchange.connection,
        )

    def query(self) -> dict[str, str]:
        """Return the parameters behind the path's question mark.

        Raises:
            InvalidInput: Malformed, or one of them twice.
        """
        try:
            pairs = parse_qsl(
                self._exchange.query.decode("ascii"),
                keep_blank_values=True,
                strict_parsing=bool(self._exchange.query),
                errors="strict",
                max_num_fields=16,
            )
        except ValueError:
            pairs = []
        parameters = dict(pairs)
        if len(parameters) != len(pairs) or (self._exchange.query and not pairs):
            msg = "expected a query of name=value, each name once"
            raise InvalidInput(msg)
        return parameters

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes, in its coding.

        Raises:
            ConnectionFailed: The client went away before its end.
        """
        while self.unread:
            if chunk := await self._next():
                yield chunk

    async def body(self, *, limit: int, share: Share) -> bytes | memoryview:
        """Return the body, without its coding.

        Args:
            limit: In bytes; of the body as it comes, and of what it is without its coding.
            share: Counts what is held.

        Raises:
            ConnectionFailed: The client went away before its end.
            InvalidInput: Not in the coding that it was announced in.
            LimitExceeded: Larger than `limit`; at once where the client announced it.
            Overloaded: No room for it now.
        """
        body = await self._read(limit, share)
        if b"content-encoding" not in self.headers or self.coding == IDENTITY:
            return body
        return await inflate(body, self.coding, limit=limit, share=share)

    async def _read(self, limit: int, share: Share) -> bytes | memoryview:
        length = self.content_length
        if length is not None and length > limit:
            raise _too_large(limit)
        if length is not None and length > _IN_PLACE_FROM:
            return await self._fill(length, share)
        first = await self._next() if self.unread else b""
        share.grow(len(first))
        if len(first) > limit:
            raise _too_large(limit)
        return first if not self.unread else await self._grow(bytearray(first), limit, share)

    def watch(self, on_gone: Callable[[], None] | None) -> None:
        """Call something as soon as the client goes away, and so at once if it has; or stop that.

        Args:
            on_gone: To be called; `None`: nothing any more.
        """
        self._exchange.watch(on_gone)

    def abort(self) -> None:
        """End the connection at once."""
        self._exchange.abort()

    async def _next(self) -> bytes:
        chunk = await self._exchange.receive()
        self.unread = not self._exchange.is_exhausted
        return chunk

    async def _fill(self, length: int, share: Share) -> memoryview:
        """Read a body of known length into memory that it alone touches, page by page."""
        try:
            buffer = np.empty(length, np.uint8).data
        except MemoryError:
            msg = f"no memory for a body of {length} bytes"
            raise Overloaded(msg) from None
        await self._exchange.fill(buffer, share.grow)
        self.unread = False
        return buffer

    async def _grow(self, buffer: bytearray, limit: int, share: Share) -> memoryview:
        while self.unread:
            chunk = await self._next()
            share.grow(len(chunk))
            buffer += chunk
            if len(buffer) > limit:
                raise _too_large(limit)
        return memoryview(buffer)


async def linger(request: Request) -> None:
    """Read and drop what a client still sends after its answer; end what does not end soon."""
    dropped = 0
    with contextlib.suppress(TimeoutError, ConnectionFailed):
        async with asyncio.timeout(_LINGER_SECONDS):
            async for chunk in request.chunks():
                dropped += len(chunk)
                if dropped > _LINGER_BYTES:
                    break
    if request.unread:
        request.abort()


def _too_large(limit: int) -> LimitExceeded:
    return LimitExceeded(f"expected a body of at most {limit} bytes, came more")
