"""A threat or a finding is answered by a test that exists, or by a line in LIMITATIONS.md."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.docs.pages import DOCS, ROOT, rows

ANSWERED = [DOCS / "threat-model.md", DOCS / "security-findings.md"]
LIMITATIONS = " ".join((ROOT / "LIMITATIONS.md").read_text().split())
LINES = [(page.name, row) for page in ANSWERED for row in rows(page.read_text())]
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
_LIMITATION = re.compile(r'LIMITATIONS: "([^"]+)"')


@cache
def functions_of(path):
    """Return the names of the test functions in a file."""
    tree = ast.parse((ROOT / path).read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


@pytest.mark.parametrize(("page", "row"), LINES, ids=[f"{p}: {r[0][:60]}" for p, r in LINES])
def test_each_line_is_answered(page, row):
    """It names at least one test or limitation, and what it names is there."""
    assert row[1]
    tests, limitations = _TEST.findall(row[-1]), _LIMITATION.findall(row[-1])
    assert tests or limitations
    for path, name in tests:
        assert name in functions_of(path), f"{path} has no {name}"
    for quoted in limitations:
        assert quoted in LIMITATIONS
    rest = _LIMITATION.sub("", _TEST.sub("", row[-1]))
    assert not rest.strip(" ,;"), f"neither a test nor a limitation: {rest!r}"


def test_every_letter_of_stride_has_lines():
    """The threat model has a table for each of the six kinds of threat."""
    text = ANSWERED[0].read_text()
    kinds = re.findall(r"^## (\w+)", text, re.MULTILINE)
    assert "".join(kind[0] for kind in kinds) == "STRIDE"
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        assert len(rows(part)) >= 4, part.partition("\n")[0]


def test_every_finding_about_the_old_server_is_listed():
    """All twelve weaknesses of the old BlindAI, and all eight of its audit, have a line."""
    text = ANSWERED[1].read_text()
    numbers = {int(number) for number in re.findall(r"^\| (\d+)\. ", text, re.MULTILINE)}
    assert numbers == set(range(1, 13))
    audit = set(re.findall(r"^\| (LOW\d|INFO\d): ", text, re.MULTILINE))
    assert audit == {"LOW1", *(f"INFO{number}" for number in range(1, 8))}


@pytest.mark.parametrize("page", ["hardening.md", "reliability.md"])
def test_named_tests_are_there(page):
    """A page that points at tests points at files, and at functions in them, that exist."""
    found = re.findall(r"`(tests/[\w/]+(?:\.py)?)(?:::(\w+))?`", (DOCS / page).read_text())
    assert len(found) > 5
    for path, name in found:
        assert (ROOT / path).exists(), path
        if name:
            assert name in functions_of(path), f"{path} has no {name}"
