"""Text that goes into a page: always escaped, unless this module made it.

Always true: whatever is filled into a template is escaped, but for `Html`, which only `fill`,
`join` and `load_template` make.
"""

from __future__ import annotations

from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_FOLDER: Final = resources.files("blindai.server").joinpath("page")


class Html(str):
    """Text that is HTML, and so is not escaped any more."""

    __slots__ = ()


def fill(template: str, **values: object) -> Html:
    """Return a template with values in its places, each escaped unless it is HTML.

    Args:
        template: With `{name}` where a value goes: a literal, or what `load_template` returned.
        values: By their names.
    """
    safe = {
        name: value if isinstance(value, Html) else escape(str(value))
        for name, value in values.items()
    }
    return Html(template.format(**safe))


def join(parts: Iterable[Html], between: str = "\n") -> Html:
    """Return parts one after another."""
    return Html(escape(between).join(parts))


def load_template(name: str) -> Html:
    """Return a file of the folder `page`, as it is."""
    return Html(_FOLDER.joinpath(name).read_text("utf-8").strip())
