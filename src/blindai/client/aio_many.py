"""Many awaited runs at once: what `many` does with threads, with tasks.

Always true: as there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from blindai.client.many import AHEAD, of_item
from blindai.errors import BlindAIError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable

    from blindai.client.many import Outcome
    from blindai.client.results import Result


async def run_in_order(
    run: Callable[[object], Coroutine[object, object, Result]],
    inputs: Iterable[object],
    connections: int,
    *,
    return_exceptions: bool,
) -> AsyncGenerator[Outcome]:
    """Yield what `run` makes of each of the inputs, run in tasks, `connections` at a time."""
    slots = asyncio.Semaphore(connections)
    waiting: deque[tuple[int, asyncio.Task[Result]]] = deque()

    async def one(item: object) -> Result:
        async with slots:
            return await run(item)

    async def first() -> Outcome:
        index, task = waiting[0]
        try:
            return await task
        except BlindAIError as error:
            return of_item(index, error, return_exceptions=return_exceptions)
        finally:
            # Only now: if this is cancelled, the task has to be found below.
            if task.done():
                waiting.popleft()

    try:
        for index, item in enumerate(inputs):
            waiting.append((index, asyncio.create_task(one(item))))
            while waiting and (len(waiting) >= AHEAD * connections or waiting[0][1].done()):
                yield await first()
        while waiting:
            yield await first()
    finally:
        left = [task for _, task in waiting]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
