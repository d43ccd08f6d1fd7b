"""Where the figures of long runs go: docs/reliability.md, between the marks of their target."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"


def between(target: str) -> tuple[str, str]:
    """Return the marks around what a make target wrote."""
    return f"<!-- made by make {target} -->\n", f"<!-- end of what make {target} made -->\n"


def write(target: str, text: str, *, page: Path = PAGE) -> None:
    """Replace what a make target wrote in the page.

    Args:
        target: Its name.
        text: Markdown.
        page: To write.

    Raises:
        ValueError: The page has no place for it.
    """
    begin, end = between(target)
    old = page.read_text()
    head, found, rest = old.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        msg = f"expected {begin.strip()} … {end.strip()} in {page}"
        raise ValueError(msg)
    new = page.with_suffix(".new")
    new.write_text(f"{head}{begin}\n{text.strip()}\n\n{end}{tail}")
    new.replace(page)


def table(heads: list[str], rows: list[list[object]]) -> str:
    """Return a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def where_and_when() -> str:
    """Return a sentence about this run: day, processors, Python."""
    day = datetime.now(UTC).date().isoformat()
    return (
        f"Measured on {day}: {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"Linux {platform.release().split('-')[0]}."
    )
