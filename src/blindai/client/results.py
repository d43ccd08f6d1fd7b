"""What the SDK returns: models, and the outputs of a run.

Always true: a repr shows names, types and shapes, never an element.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from blindai.errors import ConfigurationError
from blindai.inference.options import REFERENCE
from blindai.inference.tensors import DataType, Tensor, TensorSpec

if TYPE_CHECKING:
    from datetime import datetime

    from blindai.channel.receipt_file import ReceiptFile

__all__ = ["ModelInfo", "Result"]

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that a server serves.

    Attributes:
        name: What it is called there.
        sha256: Of its file, in 64 hexadecimal digits: what it is.
        size: Of its file, in bytes.
        inputs: What it expects.
        outputs: What it gives.
        engine: What runs it, in the server's words.
        precision: Of its arithmetic: "fp32" is what the file asks for.
        form: Engine and precision as receipts name them, such as "onnx.fp32".
        deviation: From that, as the server measured it on random inputs: the largest error of an
            output as a fraction of its largest element; `None`: none, or not told.
        loaded_at: Since when it is served, where the server says so.
        receipt: Of the upload, where one was asked for.
    """

    name: str
    sha256: str
    size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    engine: str = ""
    precision: str = ""
    form: str = str(REFERENCE)
    deviation: float | None = None
    loaded_at: datetime | None = None
    receipt: ReceiptFile | None = field(default=None, compare=False, repr=False)

    @property
    def key(self) -> str:
        """What it is addressed by whatever its names: the SHA-256, and any other form."""
        return self.sha256 if self.form == str(REFERENCE) else f"{self.sha256}.{self.form}"

    def __str__(self) -> str:
        lines = [f"{self.name}  sha256:{self.sha256}  {self.size:,} bytes"]
        lines += [f"  in   {spec.name}: {spec}" for spec in self.inputs]
        lines += [f"  out  {spec.name}: {spec}" for spec in self.outputs]
        return "\n".join(lines)


class Result(Mapping[str, Array]):
    """The outputs of one run, in the model's order.

    By name, ``result["logits"]`` or ``result.logits``; by position, ``result[0]``; all of
    them, ``result.as_numpy()``. Iterates over names, as a dict does.

    Args:
        tensors: The outputs.
        model: Name of the model that ran.
        model_sha256: Of its file, in hexadecimal: which weights these outputs are from.
        receipt: What the server signed of the run, where that was asked for; `.save(path)`
            keeps it for `blindai receipt verify`.
    """

    __slots__ = ("_tensors", "model", "model_sha256", "receipt")

    model: str
    model_sha256: str
    receipt: ReceiptFile | None

    def __init__(
        self,
        tensors: Sequence[Tensor],
        *,
        model: str,
        model_sha256: str,
        receipt: ReceiptFile | None = None,
    ) -> None:
        self._tensors = {tensor.name: tensor for tensor in tensors}
        self.model = model
        self.model_sha256 = model_sha256
        self.receipt = receipt

    def __getitem__(self, key: str | int) -> Array:
        if isinstance(key, int):
            try:
                return list(self._tensors.values())[key].array
            except IndexError:
                msg = f"output {key}: the result has {len(self._tensors)}"
                raise IndexError(msg) from None
        try:
            return self._tensors[key].array
        except KeyError:
            msg = f"no output {key!r}; the result has {', '.join(self._tensors) or 'none'}"
            raise KeyError(msg) from None

    def __getattr__(self, name: str) -> Array:
        # Reached for what is no attribute; `_tensors` itself is not there yet while copying.
        tensors = {} if name == "_tensors" else self._tensors
        if name not in tensors:
            msg = f"no output {name!r}; the result has {', '.join(tensors) or 'none'}"
            raise AttributeError(msg)
        return tensors[name].array

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    # Arrays have no single truth, so two results are the same only if they are one.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._tensors]

    def __repr__(self) -> str:
        outputs = ", ".join(f"{name}: {tensor}" for name, tensor in self._tensors.items())
        return f"<Result of {self.model} sha256:{self.model_sha256[:12]}… {outputs}>"

    def as_numpy(self) -> dict[str, Array]:
        """Return the outputs as numpy arrays, by name; strings are `bytes` in object arrays."""
        return dict(self)

    def as_torch(self) -> dict[str, Any]:
        """Return the outputs as torch tensors that share the arrays' memory, by name.

        Raises:
            ConfigurationError: If torch is not installed, or has no such type.
        """
        try:
            # No dependency: only who asks for its tensors needs it.
            torch = importlib.import_module("torch")
        except ImportError as error:
            msg = "as_torch() needs torch: pip install torch, or use as_numpy()"
            raise ConfigurationError(msg) from error
        return {name: _to_torch(torch, tensor) for name, tensor in self._tensors.items()}


def _to_torch(torch: Any, tensor: Tensor) -> Any:
    if tensor.datatype is DataType.BYTES:
        msg = f"{tensor.name}: torch has no strings; use result[{tensor.name!r}]"
        raise ConfigurationError(msg)
    try:
        if not tensor.datatype.is_native and not tensor.datatype.is_packed:
            # numpy has no such type that torch knows of: the same bits, under the name that
            # torch and ml_dtypes both have for it.
            dtype = getattr(torch, tensor.array.dtype.name, None)
            bits = np.int16 if tensor.array.itemsize > 1 else np.uint8
            if dtype is not None:
                return torch.from_numpy(tensor.array.view(bits)).view(dtype)
        return torch.from_numpy(tensor.array)
    except TypeError as error:
        msg = f"{tensor.name}: this torch has no {tensor.datatype}; use as_numpy()"
        raise ConfigurationError(msg) from error
