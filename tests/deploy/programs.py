"""Programs of `deploy/`, which are files and no package: loaded by their path."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from tests.docs.pages import ROOT

if TYPE_CHECKING:
    from types import ModuleType

DEPLOY = ROOT / "deploy"


def load(path: str) -> ModuleType:
    """Return the program at this path under `deploy/` as a module."""
    file = DEPLOY / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
