"""Many runs at once: over some connections, in order, with a bound on what is on its way.

Always true: results come in the order of the inputs. Of the inputs no more are taken than
`AHEAD` for each connection, beyond what was returned already, so neither an endless source
nor a slow reader fills the memory. Nothing runs on after the iteration ends, however it ends.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from blindai.errors import BlindAIError, ConfigurationError, ConnectionFailed, InferenceError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from concurrent.futures import Future

    from blindai.client.results import Result

    Outcome = Result | BlindAIError

DEFAULT_CONNECTIONS: Final = 4
MAX_CONNECTIONS: Final = 64
# While one answer is waited for, each connection may finish one run and begin another.
AHEAD: Final = 2
# What may befall one run and not the next. Anything else, as a server that is not to be
# trusted, ends them all.
_OF_ONE_RUN: Final = (InferenceError, ConnectionFailed)


def check_connections(connections: int) -> int:
    """Return `connections`, if there can be so many.

    Raises:
        ConfigurationError: If there cannot.
    """
    if not 0 < connections <= MAX_CONNECTIONS:
        msg = f"expected 1 to {MAX_CONNECTIONS} connections, found {connections}"
        raise ConfigurationError(msg)
    return connections


def run_in_order(
    run: Callable[[object], Result],
    inputs: Iterable[object],
    connections: int,
    *,
    return_exceptions: bool,
) -> Generator[Outcome]:
    """Yield what `run` makes of each of the inputs, run in `connections` threads."""
    # Only who runs many pays for importing it.
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    waiting: deque[tuple[int, Future[Result]]] = deque()

    def first() -> Outcome:
        index, future = waiting.popleft()
        try:
            return future.result()
        except BlindAIError as error:
            return of_item(index, error, return_exceptions=return_exceptions)

    pool = ThreadPoolExecutor(connections, "blindai-run")
    try:
        for index, item in enumerate(inputs):
            waiting.append((index, pool.submit(run, item)))
            while waiting and (len(waiting) >= AHEAD * connections or waiting[0][1].done()):
                yield first()
        while waiting:
            yield first()
    finally:
        pool.shutdown(cancel_futures=True)


def of_item(index: int, error: BlindAIError, *, return_exceptions: bool) -> BlindAIError:
    """Say of which run an error is, and return it where that is wanted; otherwise raise it."""
    error.add_note(f"in run {index} of run_many, counted from 0")
    if return_exceptions and isinstance(error, _OF_ONE_RUN):
        return error
    raise error
