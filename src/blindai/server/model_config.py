"""A model's configuration as Triton's clients ask for it, and as they send it along with a model.

Always true: what is described is how the model runs here; what is asked for and cannot be had
is refused by name, not ignored. The shapes in it are whole, so `max_batch_size` is 0: a
dimension of batches, where there is one, is the first of each tensor.

Specification: Triton's model configuration extension, the part of `ModelConfig` that has a
meaning here: name, platform, backend, max_batch_size, input, output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blindai.errors import InvalidInput
from blindai.inference.tensors import DataType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blindai.inference.records import ModelRecord
    from blindai.inference.tensors import TensorSpec

DEFAULT_BACKEND: Final = "onnxruntime"
_ONNX_PLATFORM: Final = "onnxruntime_onnx"
# Triton's enumeration ends here; what it cannot name, it calls invalid.
_TYPES: Final = {
    datatype: f"TYPE_{datatype}"
    for datatype in DataType
    if datatype.is_native or datatype is DataType.BF16
} | {DataType.BYTES: "TYPE_STRING"}
_SHOWN: Final = 200


class _Config(msgspec.Struct, forbid_unknown_fields=True):
    name: str = ""
    platform: str = ""
    backend: str = ""
    max_batch_size: int = 0
    input: list[dict[str, Any]] = []
    output: list[dict[str, Any]] = []


_DECODER: Final = msgspec.json.Decoder(_Config)


@dataclass(frozen=True, slots=True)
class ConfigWish:
    """What a caller wants of a model's configuration.

    Attributes:
        name: Of the model; "": not said.
        platform: As `platform_of` has it; "": not said.
        backend: As `backend_of` has it; "": not said.
    """

    name: str = ""
    platform: str = ""
    backend: str = ""


def backend_of(record: ModelRecord) -> str:
    """Return what runs a model, without its version."""
    return record.engine.partition(" ")[0]


def platform_of(record: ModelRecord) -> str:
    """Return what runs a model, as the protocol's metadata names it."""
    return _platform(backend_of(record))


def type_name(datatype: DataType) -> str:
    """Return the configuration's name of a datatype; "TYPE_INVALID" where it has none."""
    return _TYPES.get(datatype, "TYPE_INVALID")


def describe_config(name: str, record: ModelRecord) -> dict[str, object]:
    """Return a model's configuration.

    Args:
        name: What the caller called the model.
        record: Of the model.
    """
    return {
        "name": name,
        "platform": platform_of(record),
        "backend": backend_of(record),
        "max_batch_size": 0,
        "input": _tensors(record.inputs),
        "output": _tensors(record.outputs),
    }


def parse_config(text: str) -> ConfigWish:
    """Read a configuration that a caller sends.

    Inputs and outputs may stand in it and say nothing: the model's own file knows them.

    Args:
        text: JSON.

    Raises:
        InvalidInput: No configuration, or one with something that cannot be had here.
    """
    try:
        config = _DECODER.decode(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        what = str(error)[:_SHOWN] or "nested too deeply"
        msg = f"config: expected a model configuration as JSON: {what}"
        raise InvalidInput(msg) from None
    if config.max_batch_size != 0:
        msg = (
            "config: expected max_batch_size 0, shapes with their batch dimension, "
            f"came {config.max_batch_size}"
        )
        raise InvalidInput(msg)
    return ConfigWish(config.name, config.platform, config.backend)


def check_config(wish: ConfigWish, name: str, backend: str) -> None:
    """Refuse a configuration that is not the model's.

    Args:
        wish: What the caller wants.
        name: Of the model.
        backend: That runs it, or is going to.

    Raises:
        InvalidInput: Another name, or something else shall run it.
    """
    for field, wanted, found in (
        ("name", wish.name, name),
        ("backend", wish.backend, backend),
        ("platform", wish.platform, _platform(backend)),
    ):
        if wanted and wanted != found:
            msg = f"config: expected {field} {found!r}, came {wanted[:_SHOWN]!r}"
            raise InvalidInput(msg)


def _platform(backend: str) -> str:
    return _ONNX_PLATFORM if backend == DEFAULT_BACKEND else backend


def _tensors(specs: Sequence[TensorSpec]) -> list[dict[str, object]]:
    return [
        {"name": spec.name, "data_type": type_name(spec.datatype), "dims": spec.oip_shape}
        for spec in specs
    ]
