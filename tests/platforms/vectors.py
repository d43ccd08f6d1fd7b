"""Real evidence, for the tests of the platforms: where it lies and how it is read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

_REPOSITORY = Path(__file__).resolve().parents[2]
VECTORS = Path(os.environ.get("BLINDAI_VECTORS", _REPOSITORY.parent / "shared" / "vectors"))

requires_vectors = pytest.mark.skipif(
    not (VECTORS / "manifest.json").is_file(),
    reason=f"real evidence is not at {VECTORS}; set BLINDAI_VECTORS to where it is",
)


def load_cases(platform: str) -> list[dict[str, Any]]:
    """Return the cases of one platform; none where the folder is absent."""
    manifest = VECTORS / "manifest.json"
    if not manifest.is_file():
        return []
    cases: list[dict[str, Any]] = json.loads(manifest.read_text())
    return [case for case in cases if case["platform"] == platform]


def read(relative: str) -> bytes:
    """Return a file of the folder."""
    return (VECTORS / relative).read_bytes()
