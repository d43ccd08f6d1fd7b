"""Run ONNX models with OpenVINO on the CPU. The only module that imports it.

Always true: OpenVINO connects nowhere and writes no file; it gets the bytes of a model and no
path, so nothing beside the file is read; its messages, which may carry shapes and values of
the inputs, reach neither a log nor an error. What it would compute wrong without a word is
refused: integers beyond 32 bits, which it cuts off.

Specification: OpenVINO 2026, "CPU device"; ONNX (onnx/docs/IR.md).
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from blindai.errors import (
    InferenceError,
    InvalidInput,
    InvalidModel,
    ModelNotFound,
    Overloaded,
)
from blindai.inference.engine import LoadOptions, RunHandle, choose_outputs, stoppable
from blindai.inference.onnx_file import Outline, load_outline
from blindai.inference.tensors import DataType, Tensor, TensorSpec, check_inputs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# Importing openvino imports its telemetry and announces itself. Where that package cannot be
# imported, a stub takes its place.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] # what import understands
ov: Any = importlib.import_module("openvino")

_DATATYPES: Final[Mapping[str, DataType]] = MappingProxyType(
    {
        "boolean": DataType.BOOL,
        "u8": DataType.UINT8,
        "u16": DataType.UINT16,
        "u32": DataType.UINT32,
        "u64": DataType.UINT64,
        "i8": DataType.INT8,
        "i16": DataType.INT16,
        "i32": DataType.INT32,
        "i64": DataType.INT64,
        "f16": DataType.FP16,
        "f32": DataType.FP32,
        "f64": DataType.FP64,
        "bf16": DataType.BF16,
    }
)
# It computes with these as if they were INT32.
_CUT_OFF: Final = frozenset({DataType.INT64, DataType.UINT64, DataType.UINT32})
_INT32: Final = np.iinfo(np.int32)

_NO_MEMORY: Final = ("bad_alloc", "out of memory", "cannot allocate", "could not allocate")
_SOURCE: Final = re.compile(r"(?:Exception from|failed at)? *src/\S+:[0-9]+:?")
_SHAPES: Final = ("shape", "dim", "broadcast", "rank", "axis")
# Requests that are kept for the next runs: each has memory of its own for what lies between
# a model's inputs and outputs.
_MAX_IDLE: Final = 8


class OpenVinoEngine:
    """OpenVINO on the CPU.

    Args:
        precision: Of the arithmetic: "fp32", or "bf16" for models of FP32.
    """

    def __init__(self, precision: Literal["fp32", "bf16"] = "fp32") -> None:
        self._precision = precision
        self._core = ov.Core()

    @property
    def name(self) -> str:
        """The engine with its version."""
        return f"openvino {ov.__version__.partition('-')[0]}"

    def load(self, path: Path, options: LoadOptions) -> OpenVinoModel:
        """Load an ONNX model that holds all its weights in its one file.

        Args:
            path: The file.
            options: How it is to run.

        Raises:
            InvalidModel: Not an ONNX file; external data; what OpenVINO cannot run; or BF16 on
                a processor without it.
            Overloaded: No memory for it.
        """
        outline = load_outline(path)
        if self._precision == "bf16" and not self.has_bf16:
            msg = "this server's processor does not compute in bf16: choose another precision"
            raise InvalidModel(msg)
        try:
            graph = self._core.read_model(path.read_bytes())
            compiled = self._core.compile_model(graph, "CPU", _properties(self._precision, options))
        except (RuntimeError, MemoryError, ValueError, TypeError) as error:
            raise _load_error(error) from None
        return OpenVinoModel(compiled, outline, options)

    @property
    def has_bf16(self) -> bool:
        """Whether this processor computes in BF16; where not, OpenVINO would take FP32."""
        return "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoModel:
    """A model that OpenVINO compiled. Made by `OpenVinoEngine.load`."""

    __slots__ = (
        "__weakref__",
        "_compiled",
        "_idle",
        "_inputs",
        "_is_steady",
        "_outputs",
        "_shrink_above",
    )

    def __init__(self, compiled: Any, outline: Outline, options: LoadOptions) -> None:
        self._compiled: Any = compiled
        self._idle: list[Any] = []
        self._shrink_above = options.shrink_above
        self._is_steady = outline.is_steady
        self._inputs = tuple(_spec(port, "input", outline) for port in compiled.inputs)
        self._outputs = tuple(_spec(port, "output", outline) for port in compiled.outputs)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What it takes; all of it has to be given."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What it returns, in its order."""
        return self._outputs

    @property
    def is_steady(self) -> bool:
        """Whether runs are known to take as long for all inputs of the same shapes."""
        return self._is_steady

    def run(
        self,
        inputs: Sequence[Tensor],
        outputs: Sequence[str] | None = None,
        *,
        deadline: float | None = None,
        handle: RunHandle | None = None,
    ) -> list[Tensor]:
        """Run the model once; see `blindai.inference.engine.Model.run`."""
        compiled = self._compiled
        if compiled is None:
            msg = "the model was unloaded"
            raise ModelNotFound(msg)
        check_inputs(inputs, self._inputs)
        wanted = [self._outputs.index(spec) for spec in choose_outputs(self._outputs, outputs)]
        by_name = {tensor.name: tensor for tensor in inputs}
        feeds = [_feed(by_name[spec.name]) for spec in self._inputs]
        request = self._request(compiled)
        stopped = False

        def stop() -> None:
            nonlocal stopped
            stopped = True
            request.cancel()

        with stoppable(stop, deadline=deadline, handle=handle) as run:
            try:
                for index, feed in enumerate(feeds):
                    request.set_input_tensor(index, feed)
                request.start_async()
                if stopped:
                    # It came before the start, of which it knows nothing.
                    request.cancel()
                request.wait()
                results = [_output(self._outputs[i], request.get_output_tensor(i)) for i in wanted]
            except (RuntimeError, MemoryError, ValueError, TypeError) as error:
                # Not chained: the cause may carry what came in. The request is not used again.
                raise _run_error(error, run) from None
        size = sum(tensor.array.nbytes for tensor in inputs)
        if size < self._shrink_above and len(self._idle) < _MAX_IDLE:
            self._idle.append(request)
        return results

    def close(self) -> None:
        """Refuse further runs; those under way end as usual, then memory is freed."""
        self._compiled = None
        self._idle.clear()

    def _request(self, compiled: Any) -> Any:
        try:
            return self._idle.pop()
        except IndexError:
            pass
        try:
            return compiled.create_infer_request()
        except (RuntimeError, MemoryError) as error:
            raise _run_error(error, None) from None


def _properties(precision: Literal["fp32", "bf16"], options: LoadOptions) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0))
    threads = options.threads or cores
    streams = max(1, cores // threads)
    return {
        "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16",
        # Else it quantises what flows into compressed weights.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": streams * threads,
        # Else the first threads of all models share the first core.
        "ENABLE_CPU_PINNING": False,
        # No cache: it would be a second copy of the weights where nobody looks for it.
        "CACHE_DIR": "",
    }


def _spec(port: Any, role: Literal["input", "output"], outline: Outline) -> TensorSpec:
    # A tensor may have further names, of nodes that were optimised away.
    declared = outline.inputs if role == "input" else outline.outputs
    name = next((name for name in sorted(port.names) if name in declared), None)
    kind = port.element_type.get_type_name()
    datatype = _DATATYPES.get(kind)
    if name is None or datatype is None:
        msg = (
            f"{role} {str(name)[:100]!r}: expected a tensor of {', '.join(_DATATYPES.values())}, "
            f"came {kind}: use engine 'onnx' for this model"
        )
        raise InvalidModel(msg)
    shape = outline.shapes[name]
    partial = port.partial_shape
    if shape is None and not partial.rank.is_dynamic:
        shape = tuple(dim.get_length() if dim.is_static else None for dim in partial)
    return TensorSpec(name, datatype, shape)


def _feed(tensor: Tensor) -> Any:
    """Return the tensor as OpenVINO's own, on the same memory where it takes that."""
    array = np.asarray(tensor.array, order="C")
    if tensor.datatype in _CUT_OFF and array.size:
        low, high = int(array.min()), int(array.max())
        if low < _INT32.min or high > _INT32.max:
            msg = (
                f"{tensor.name}: expected integers of 32 bits, which is what OpenVINO computes "
                "with, came larger ones: upload the model with engine 'onnx'"
            )
            raise InvalidInput(msg)
    if not array.flags.aligned:
        array = array.copy()
    if tensor.datatype is DataType.BF16:
        bits = array.view(np.uint16)
        return ov.Tensor(bits if bits.flags.writeable else bits.copy(), array.shape, ov.Type.bf16)
    return ov.Tensor(array, shared_memory=bool(array.flags.writeable))


def _output(spec: TensorSpec, tensor: Any) -> Tensor:
    # A copy, because the memory is the request's.
    data = np.array(tensor.data, copy=True)
    if spec.datatype is DataType.BF16:
        return Tensor(spec.name, data.view(spec.datatype.numpy), spec.datatype)
    return Tensor(spec.name, data.astype(spec.datatype.numpy, copy=False), spec.datatype)


def _load_error(error: Exception) -> InferenceError:
    if isinstance(error, MemoryError) or _has_any(str(error), _NO_MEMORY):
        return Overloaded("no memory to load the model", retry_after=30.0)
    # Places in its source, what went wrong, and where to read how to add to it.
    said = _SOURCE.sub("", str(error)).partition("To facilitate")[0]
    return InvalidModel(f"openvino cannot load the model: {' '.join(said.split())[:400]}")


def _run_error(error: Exception, run: RunHandle | None) -> InferenceError:
    if run is not None and run.terminated:
        return run.reason()
    if isinstance(error, MemoryError) or _has_any(str(error), _NO_MEMORY):
        return Overloaded("no memory for this run: send a smaller batch, or try later")
    if _has_any(str(error), _SHAPES):
        return InvalidInput("the model refuses these inputs: dimensions that do not go together")
    return InferenceError("the model failed while it ran")


def _has_any(text: str, phrases: Sequence[str]) -> bool:
    return any(phrase in text.lower() for phrase in phrases)
