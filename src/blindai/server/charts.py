"""Small charts as inline SVG: bars of the last intervals, the newest at the right.

Always true: numbers only, no script, no style of their own; each says in words what it shows,
for whoever cannot see it.

Specification: SVG 2; WAI-ARIA 1.2 (role `img`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blindai.server.load_history import LENGTH
from blindai.server.markup import Html, fill

if TYPE_CHECKING:
    from collections.abc import Sequence

_HEIGHT: Final = 40.0
_BAR: Final = 0.8
# Something that is there is seen.
_LEAST: Final = 1.0
_FIGURE: Final = """<figure><figcaption><strong>{now}</strong>{title}, at most {most}</figcaption>
<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" aria-label="{words}">\
<path d="{path}"/></svg></figure>"""


def bars(title: str, values: Sequence[float | None], unit: str) -> Html:
    """Return a chart.

    Args:
        title: What is shown.
        values: At most `LENGTH`, oldest first, from 0 up; `None`: nothing to show.
        unit: Of the values, with a space before it where there is to be one.
    """
    known = [value for value in values if value is not None]
    most = max(known, default=0.0)
    latest = next((value for value in reversed(values) if value is not None), None)
    now = "none yet" if latest is None else f"{number(latest)}{unit}"
    top = f"{number(most)}{unit}"
    words = f"{title}: latest {now}, at most {top}, over {len(values)} intervals"
    return fill(
        _FIGURE,
        now=now,
        title=title,
        most=top,
        width=LENGTH,
        height=f"{_HEIGHT:g}",
        words=words,
        path=_path(values, most),
    )


def number(value: float) -> str:
    """Return a number for people: three digits that count, and no exponent."""
    if value >= 100:  # noqa: PLR2004 - three digits
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 else ("0" if value == 0 else "<0.001")  # noqa: PLR2004


def _path(values: Sequence[float | None], most: float) -> str:
    parts = []
    for position, value in enumerate(values, LENGTH - len(values)):
        if value:
            height = max(_LEAST, value / most * _HEIGHT)
            parts.append(f"M{position} {_HEIGHT:g}v{-height:.2f}h{_BAR}V{_HEIGHT:g}z")
    return "".join(parts)
