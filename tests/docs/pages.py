"""What stands in the documentation: code blocks, tables and command lines, page by page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
_FENCE = re.compile(r"^```([a-z]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CELL = re.compile(r"(?<!\\)\|")


class Block(NamedTuple):
    """A fenced block of code."""

    page: Path
    language: str
    text: str

    @property
    def label(self) -> str:
        """Which page it is on, for the name of a test."""
        return self.page.relative_to(DOCS).as_posix()


def blocks(language: str, under: Path = DOCS) -> list[Block]:
    """Return the fenced blocks of one language on a page, or on all pages of a folder."""
    pages = [under] if under.is_file() else sorted(under.rglob("*.md"))
    return [
        Block(page, *found)
        for page in pages
        for found in _FENCE.findall(page.read_text())
        if found[0] == language
    ]


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def section(page: Path, title: str) -> str:
    """Return what stands below a heading of a page, up to the next of its level or above."""
    marks, _, name = title.partition(" ")
    text = page.read_text()
    found = re.search(
        rf"^{marks} {re.escape(name)}$\n(.*?)(?=^#{{1,{len(marks)}}} |\Z)",
        text,
        re.MULTILINE | re.DOTALL,
    )
    assert found, f"{page.name} has no section {title!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """Return the cells of every table row in a text, headings left out."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in _CELL.split(line)[1:-1]] for line in lines]
    rules = [i for i, row in enumerate(cells) if all(re.fullmatch("-+", cell) for cell in row)]
    return [row for i, row in enumerate(cells) if i not in rules and i + 1 not in rules]


def names(cell: str) -> list[str]:
    """Return what stands in backquotes."""
    return re.findall(r"`([^`]+)`", cell)
