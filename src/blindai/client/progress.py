"""How far an upload is, for a person at a terminal or for a caller's function."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

# Below this an upload is over before a bar is worth looking at.
BAR_FROM_BYTES: Final = 16 << 20

Progress = Callable[[int, int | None], None] | bool | None


@contextmanager
def watch(progress: Progress, name: str, size: int | None) -> Iterator[Callable[[int], None]]:
    """Show or report how far an upload is; the value takes the size of each piece sent.

    Args:
        progress: A function that is told the bytes sent and the size (`None`: unknown);
            `True`: a bar on the standard error; `False`: nothing; `None`: a bar if that is
            a terminal and the model is large.
        name: Of the model.
        size: In bytes, where it is known.
    """
    if callable(progress):
        report, sent = progress, 0

        def advance(count: int) -> None:
            nonlocal sent
            sent += count
            report(sent, size)

        yield advance
        return
    if progress is None:
        progress = sys.stderr.isatty() and (size is None or size > BAR_FROM_BYTES)
    if not progress:
        yield lambda _: None
        return
    # Only who sees a bar pays for importing it.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars  # noqa: PLC0415

    with Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bars:
        task = bars.add_task(f"uploading {name}", total=size)
        yield lambda count: bars.advance(task, count)
