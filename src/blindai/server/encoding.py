"""Content codings of bodies: gzip and deflate, one at a time, bounded while they are inflated.

Always true: no more is held than the limit says, however small what came is; the event loop
inflates at most one step at a time; what follows the compressed data, and what ends early, is
refused. An answer is compressed only for who asks for one coding by name: the size of a
compressed answer tells the host something of its content, and most HTTP libraries offer
several codings without being told to.

Specification: RFC 9110 §8.4.1 (gzip is RFC 1952, one member; deflate is zlib, RFC 1950).
"""

from __future__ import annotations

import asyncio
import zlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from blindai.errors import InvalidInput, LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from blindai.server.limits import Share

IDENTITY: Final = b"identity"
_GZIP: Final = 16 + zlib.MAX_WBITS
_WBITS: Final[Mapping[bytes, int]] = MappingProxyType(
    {b"gzip": _GZIP, b"x-gzip": _GZIP, b"deflate": zlib.MAX_WBITS}
)
# What a request's body may be in.
CODINGS: Final = frozenset({IDENTITY, *_WBITS})
# Of one step: some tenths of a millisecond.
_INPUT: Final = 64 << 10
_OUTPUT: Final = 256 << 10
# Compressed bytes up to which the first step takes less than the hop to a thread, or little more.
_SMALL: Final = 4096
# Bytes of an answer from which on it can gain anything.
_WORTH: Final = 1024
_LEVEL: Final = 1


async def inflate(
    body: bytes | memoryview, coding: bytes, *, limit: int, share: Share
) -> memoryview:
    """Return what a compressed body stands for.

    Args:
        body: All of it.
        coding: One of `CODINGS`, but not `IDENTITY`.
        limit: Of the result, in bytes.
        share: Counts what is held; the body itself is counted by whoever read it.

    Raises:
        InvalidInput: No such data, cut short, or with something behind it.
        LimitExceeded: It becomes larger than `limit`.
        Overloaded: No room for it now.
    """
    inflated = bytearray()
    steps = _inflate_steps(body, coding)
    small = len(body) <= _SMALL
    while True:
        piece = next(steps, None) if small else await asyncio.to_thread(next, steps, None)
        small = False
        if piece is None:
            return memoryview(inflated)
        if len(inflated) + len(piece) > limit:
            msg = f"expected a body of at most {limit} bytes when inflated, came more"
            raise LimitExceeded(msg)
        share.grow(len(piece))
        inflated += piece


def choose_coding(accepted: bytes | None) -> bytes | None:
    """Return the coding for an answer; `None`: none.

    Args:
        accepted: The Accept-Encoding header.
    """
    # One name and nothing else; see above.
    name = (accepted or b"").strip().lower()
    return name if name in _WBITS else None


def compress(parts: Sequence[bytes | memoryview], coding: bytes) -> list[bytes | memoryview] | None:
    """Return a body in a coding; `None` where that is not worth it. Slow: not for event loops.

    Args:
        parts: The body, in parts.
        coding: As `choose_coding` returned it.
    """
    if sum(map(len, parts)) < _WORTH:
        return None
    encoder = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WBITS[coding])
    return [*filter(None, map(encoder.compress, parts)), encoder.flush()]


def _inflate_steps(body: bytes | memoryview, coding: bytes) -> Iterator[bytes]:
    decoder = zlib.decompressobj(_WBITS[coding])
    view = memoryview(body)
    position = 0
    try:
        while not decoder.eof:
            # Only what a step left over is copied, never all that is still to come.
            tail: bytes | memoryview = decoder.unconsumed_tail
            if not tail:
                tail = view[position : position + _INPUT]
                position += len(tail)
            piece = decoder.decompress(tail, _OUTPUT)
            if piece:
                yield piece
            elif not tail and not decoder.eof:
                msg = f"expected a whole {coding.decode()} body, came a part of one"
                raise InvalidInput(msg)
    except zlib.error:
        msg = f"expected a body in {coding.decode()}, came something else or damaged data"
        raise InvalidInput(msg) from None
    if decoder.unused_data or position < len(view):
        msg = f"expected nothing after the end of the {coding.decode()} data, came more bytes"
        raise InvalidInput(msg)
