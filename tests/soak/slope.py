"""Whether something grows: a line through samples, and how sure its slope is.

Specification: ordinary least squares; the slope's error by Newey and West (Econometrica 55,
1987, 703-708), because samples of memory taken close together are alike and the usual formula
would be too sure of itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Two-sided 95 % of the normal distribution; samples are counted in hundreds.
_Z = 1.96


@dataclass(frozen=True, slots=True)
class Slope:
    """A slope with its 95 % confidence interval, in units of y per unit of x.

    Attributes:
        value: Of the line.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float


def slope_of(x: list[float], y: list[float]) -> Slope:
    """Return the slope of the line of least squares through points.

    Args:
        x: In order, evenly spaced or nearly so; 30 or more.
        y: As many.
    """
    times, values = np.asarray(x, float), np.asarray(y, float)
    count = len(times)
    if count < 30 or len(values) != count:
        msg = f"expected 30 points or more, came {count} and {len(values)}"
        raise ValueError(msg)
    centred = times - times.mean()
    spread = (centred**2).sum()
    value = (centred * (values - values.mean())).sum() / spread
    pull = centred * (values - values.mean() - value * centred)
    # Alike over a tenth of the time at most: longer than the usual rule, so less sure.
    lags = count // 10
    variance = (pull**2).sum() + 2 * sum(
        (1 - lag / (lags + 1)) * (pull[lag:] * pull[:-lag]).sum() for lag in range(1, lags + 1)
    )
    # Bartlett's weights keep it from being negative but for rounding.
    error = np.sqrt(max(variance, 0.0) * count / (count - 2)) / spread
    return Slope(float(value), float(value - _Z * error), float(value + _Z * error))
