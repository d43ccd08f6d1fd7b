"""Arrays that a user names on the command line, and arrays as they are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from blindai.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

_SHOWN_VALUES: Final = 6


def load_input(argument: str) -> tuple[str, np.ndarray[Any, Any]]:
    """Return an input of a model and its name.

    Args:
        argument: NAME=FILE.npy.

    Raises:
        ConfigurationError: If it is not that, or the file is no array.
    """
    name, separator, file = argument.partition("=")
    if not separator or not name or not file:
        msg = f"--input: expected NAME=FILE.npy, found {argument!r}"
        raise ConfigurationError(msg)
    try:
        # allow_pickle stays off: a pickle runs code.
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        msg = f"--input {name}: {file} is no .npy file that can be read: {error}"
        raise ConfigurationError(msg) from error
    if not isinstance(array, np.ndarray):
        msg = f"--input {name}: {file} holds several arrays; expected a .npy file with one"
        raise ConfigurationError(msg)
    return name, array


def summary(name: str, array: np.ndarray[Any, Any]) -> str:
    """Return one line for a person: name, type, shape and the first values."""
    values = " ".join(map(str, array.reshape(-1)[:_SHOWN_VALUES]))
    more = " …" if array.size > _SHOWN_VALUES else ""
    return f"{name}  {array.dtype}{list(array.shape)}  {values}{more}"


def arrays_to_json(arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    """Return arrays as what JSON can say, in full."""
    return {
        name: {"dtype": str(array.dtype), "shape": list(array.shape), "data": _flat(array)}
        for name, array in arrays.items()
    }


def _flat(array: np.ndarray[Any, Any]) -> list[Any]:
    flat = array.reshape(-1).tolist()
    return [item.decode("utf-8", "replace") if isinstance(item, bytes) else item for item in flat]
