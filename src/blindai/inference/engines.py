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


def _onnx(precision: str) -> Engine:
    from blindai.inference.onnx import OnnxEngine  # noqa: PLC0415 - imported when asked for

    if precision != "fp32":
        msg = f"engine 'onnx' computes as a model's file says, came precision {precision!r}"
        raise ConfigurationError(msg)
    return OnnxEngine()


def _openvino(precision: str) -> Engine:
    from blindai.inference.openvino import OpenVinoEngine  # noqa: PLC0415 - an extra

    if precision not in {"fp32", "bf16"}:
        msg = f"expected precision fp32 or bf16 of engine 'openvino', came {precision!r}"
        raise ConfigurationError(msg)
    return OpenVinoEngine("bf16" if precision == "bf16" else "fp32")


ENGINES: Final[Mapping[str, Callable[[str], Engine]]] = MappingProxyType(
    {"onnx": _onnx, "openvino": _openvino}
)
# Which extra of the package brings an engine's library.
_EXTRAS: Final[Mapping[str, str]] = MappingProxyType({"openvino": "openvino"})


def load_engine(name: str = "onnx", precision: str = "fp32") -> Engine:
    """Return an engine by its name in `ENGINES`.

    Args:
        name: Of the engine.
        precision: Of its arithmetic.

    Raises:
        ConfigurationError: No engine of this name, or its libraries are not installed.
    """
    if name not in ENGINES:
        msg = f"expected an engine of {', '.join(ENGINES)}, came {name!r}"
        raise ConfigurationError(msg)
    try:
        return ENGINES[name](precision)
    except ImportError as error:
        extra = _EXTRAS.get(name, "server")
        msg = f"engine {name!r} needs {error.name}: pip install 'blindai[{extra}]'"
        raise ConfigurationError(msg) from error
