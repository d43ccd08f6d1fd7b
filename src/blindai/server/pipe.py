"""Carries an upload from an event loop to the thread that takes it in.

Always true: a bounded number of chunks waits; neither side waits for the other longer than the
other is there.
"""

from __future__ import annotations

import asyncio
import queue
from typing import TYPE_CHECKING, Any, Final

from blindai.errors import ConnectionFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

# Of chunks between the network and the disk: at most 512 KiB each, as the protocol holds them.
_PIPE_SLOTS: Final = 16
# What a pipe holds at most.
PIPE_BYTES: Final = _PIPE_SLOTS * (512 << 10)


async def next_unless(chunks: AsyncIterator[bytes], worker: asyncio.Future[Any]) -> bytes | None:
    """Return the next chunk; `None` after the last, or as soon as nobody reads them any more."""
    coming = asyncio.ensure_future(anext(chunks, None))
    try:
        await asyncio.wait((coming, worker), return_when=asyncio.FIRST_COMPLETED)
        return None if worker.done() else coming.result()
    finally:
        # A client may pause for long: who waits for it is not kept waiting.
        if coming.cancel():
            await asyncio.wait((coming,))
        if not coming.cancelled():
            coming.exception()  # looked at, or asyncio complains


class Pipe:
    """Carries chunks from an event loop to one thread; holds a bounded number of them."""

    __slots__ = ("_loop", "_queue", "_slots")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # `None` ends it; an exception is raised where the thread reads.
        self._queue: queue.SimpleQueue[bytes | Exception | None] = queue.SimpleQueue()
        self._slots = asyncio.Semaphore(_PIPE_SLOTS)

    async def put(self, chunk: bytes) -> None:
        """Hand a chunk over as soon as there is room."""
        await self._slots.acquire()
        self._queue.put(chunk)

    def end(self) -> None:
        """Say that all chunks came."""
        self._queue.put(None)

    def abort(self) -> None:
        """Say that no more chunks come, and that they were not all."""
        self._queue.put(ConnectionFailed("the upload ended early"))

    def wake(self, _worker: object) -> None:
        """Let a waiting `put` see that the thread reads no more."""
        self._slots.release()

    def __iter__(self) -> Iterator[bytes]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
            self._loop.call_soon_threadsafe(self._slots.release)
