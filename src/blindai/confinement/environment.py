"""A process starts again without what others put into its environment.

Always true: afterwards Python is isolated (-I: no PYTHON* variables, no packages of the user,
nothing from the current folder), and the environment holds names of an allow-list only: no
LD_PRELOAD, no proxies, no settings of OpenSSL or of libraries for arithmetic.

Whoever could set LD_PRELOAD had code in the process before this ran; it is not in the one
that takes its place, unless it kept that from happening. A measured image sets the
environment itself, and there nothing has to start again.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Of no consequence for what is computed or whom it talks to.
KEPT: Final = frozenset(
    {
        "DO_NOT_TRACK",
        "HOME",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "NO_COLOR",
        "PATH",
        "TERM",
        "TZ",
        "COLUMNS",
    }
)
KEPT_PREFIXES: Final = ("BLINDAI_",)
# Libraries that would start threads as they are imported, before files can be restricted.
SET: Final[Mapping[str, str]] = {"OPENBLAS_NUM_THREADS": "1"}


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what of an environment a server may have."""
    kept = {
        name: value
        for name, value in environment.items()
        if name in KEPT or name.startswith(KEPT_PREFIXES)
    }
    return {**kept, **SET}


def start_again(module: str, arguments: Sequence[str]) -> None:
    """Replace this process by an isolated one in a clean environment; return if it is one.

    Args:
        module: To run, as of `python -m`.
        arguments: Of its command line.
    """
    environment = dict(os.environ)
    clean = clean_environment(environment)
    if sys.flags.isolated and environment == clean:
        return
    options = [f"-W{each}" for each in sys.warnoptions]
    options += ["-B"] if sys.flags.dont_write_bytecode else []
    command = [sys.executable, "-I", *options, "-m", module, *arguments]
    os.execve(sys.executable, command, clean)  # noqa: S606 - no shell is what is wanted
