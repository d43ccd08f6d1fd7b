"""The page about errors has every one, with its exit code and status."""

from __future__ import annotations

import re

import blindai
from blindai import errors
from blindai.cli import exit_code
from blindai.server.app import STATUS
from tests.docs.pages import DOCS, names, rows

PAGE = DOCS / "errors.md"
TABLE = {names(row[0])[0]: row for row in rows(PAGE.read_text())}


def test_every_error_is_explained():
    """Each class has a line that says what it means and what to do."""
    assert set(TABLE) == set(errors.__all__)
    for row in TABLE.values():
        assert row[-2]
        assert row[-1]


def test_statuses():
    """The HTTP status of each is the one that the server answers with."""
    shown = {name: row[1] for name, row in TABLE.items() if row[1].isdigit()}
    served = {kind.__name__: str(status) for kind, status in STATUS.items()}
    del served["BlindAIError"]
    assert shown == served


def test_tree():
    """The tree is that of the classes, with the exit codes of the command line."""
    drawn = re.search(r"^```\n(BlindAIError.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)[1]
    parents = ["BlindAIError"]
    for line in drawn.splitlines()[1:]:
        name = line.split("── ")[1].split()[0]
        depth = (line.index("── ") - 1) // 4
        del parents[depth + 1 :]
        kind = getattr(blindai, name)
        assert kind.__base__.__name__ == parents[-1]
        if said := re.search(r"exit (\d)", line):
            assert exit_code(kind("why")) == int(said[1])
        parents.append(name)
    warnings = {"SecurityWarning", "SimulationWarning"}
    listed = set(re.findall(r"── (\w+)", drawn)) | {"BlindAIError"}
    assert listed == set(errors.__all__) - warnings
