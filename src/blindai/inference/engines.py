"""The engines that this server knows. The one list; nothing registers itself here.

An engine is imported when it is asked for, so that only servers need its libraries.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from blindai.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from blindai.inference.engine import Engine


def _onnx() -> Engine:
    from blindai.inference.onnx import OnnxEngine  # noqa: PLC0415 - imported when asked for

    return OnnxEngine()


ENGINES: Final[Mapping[str, Callable[[], Engine]]] = MappingProxyType({"onnx": _onnx})


def load_engine(name: str = "onnx") -> Engine:
    """Return an engine by its name in `ENGINES`.

    Raises:
        ConfigurationError: No engine of this name, or its libraries are not installed.
    """
    if name not in ENGINES:
        msg = f"expected an engine of {', '.join(ENGINES)}, came {name!r}"
        raise ConfigurationError(msg)
    try:
        return ENGINES[name]()
    except ImportError as error:
        msg = f"engine {name!r} needs {error.name}: pip install 'blindai[server]'"
        raise ConfigurationError(msg) from error
