"""Run ONNX models with onnxruntime. The only module that imports it.

Always true: onnxruntime connects nowhere, loads no library and no file beside the model,
and its messages, which carry elements of the inputs ("idx=1234 must be within"), reach
neither a log nor an error: an error says which node refused, and why in our words.

Specification: ONNX (onnx/docs/IR.md); onnxruntime 1.23 to 1.32, C API and session options.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

# Before the import, which starts the telemetry: disable_telemetry_events() comes too late.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from blindai.errors import (
    InferenceError,
    InvalidInput,
    InvalidModel,
    ModelNotFound,
    Overloaded,
)
from blindai.inference.engine import LoadOptions, RunHandle, choose_outputs, stoppable
from blindai.inference.onnx_file import Outline, load_parts
from blindai.inference.onnx_weights import find_in_memory
from blindai.inference.packing import pack, packed_size, unpack
from blindai.inference.tensors import (
    DataType,
    Tensor,
    TensorSpec,
    check_inputs,
    from_array,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_SILENT: Final = 4
_FOLDER: Final = "session.model_external_initializers_file_folder_path"
# For which a run may leave its memory to the next one.
_SECONDS_UNSHRUNK: Final = 1.0
ort.set_default_logger_severity(_SILENT)

_DATATYPES: Final[Mapping[str, DataType]] = MappingProxyType(
    {
        "tensor(bool)": DataType.BOOL,
        "tensor(uint8)": DataType.UINT8,
        "tensor(uint16)": DataType.UINT16,
        "tensor(uint32)": DataType.UINT32,
        "tensor(uint64)": DataType.UINT64,
        "tensor(int8)": DataType.INT8,
        "tensor(int16)": DataType.INT16,
        "tensor(int32)": DataType.INT32,
        "tensor(int64)": DataType.INT64,
        "tensor(float16)": DataType.FP16,
        "tensor(float)": DataType.FP32,
        "tensor(double)": DataType.FP64,
        "tensor(bfloat16)": DataType.BF16,
        "tensor(string)": DataType.BYTES,
        "tensor(float8e4m3fn)": DataType.FP8E4M3FN,
        "tensor(float8e4m3fnuz)": DataType.FP8E4M3FNUZ,
        "tensor(float8e5m2)": DataType.FP8E5M2,
        "tensor(float8e5m2fnuz)": DataType.FP8E5M2FNUZ,
        "tensor(float8e8m0)": DataType.FP8E8M0,
        "tensor(float4e2m1)": DataType.FP4E2M1,
        "tensor(int4)": DataType.INT4,
        "tensor(uint4)": DataType.UINT4,
        "tensor(int2)": DataType.INT2,
        "tensor(uint2)": DataType.UINT2,
    }
)

# Types that onnxruntime cannot exchange with numpy → TensorProto.DataType.
_ELEMENTS: Final[Mapping[DataType, int]] = MappingProxyType(
    {
        DataType.BF16: 16,
        DataType.FP8E4M3FN: 17,
        DataType.FP8E4M3FNUZ: 18,
        DataType.FP8E5M2: 19,
        DataType.FP8E5M2FNUZ: 20,
        DataType.UINT4: 21,
        DataType.INT4: 22,
        DataType.FP4E2M1: 23,
        DataType.FP8E8M0: 24,
        DataType.UINT2: 25,
        DataType.INT2: 26,
    }
)

# Its exceptions have no base class of their own.
_ORT_ERRORS: Final = (
    ort_errors.EPFail,
    ort_errors.EngineError,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.ModelLoaded,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    MemoryError,
    RuntimeError,
    ValueError,
)

_NO_MEMORY: Final = ("failed to allocate memory", "bad_alloc", "out of memory")

# What onnxruntime says when inputs of the right shape still do not fit → what we say.
_REFUSALS: Final = (
    ("dimension mismatch", "dimensions that do not go together"),
    ("attempting to broadcast", "dimensions that do not go together"),
    ("dimensions must match", "dimensions that do not go together"),
    ("cannot be reshaped", "a shape of another size"),
    ("invalid expand shape", "a shape that it cannot expand to"),
    ("out of data bounds", "an index out of bounds"),
    ("out of bounds", "an index out of bounds"),
    ("integer overflow", "a shape that is too large"),
    ("must be >= 0", "a negative size"),
    ("stod", "text that is no number"),
    ("stof", "text that is no number"),
    ("stoll", "text that is no number"),
)

_PREFIX: Final = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SOURCE: Final = re.compile(r"/onnxruntime_src/\S+ [^(]*\(.*?\)(?: const)? ")
_NODE: Final = re.compile(r"while running (\w+) node\. Name:'([^']{0,200})")


class OnnxEngine:
    """onnxruntime on the CPU."""

    @property
    def name(self) -> str:
        """The engine with its version."""
        return f"onnxruntime {ort.__version__}"

    def load(self, path: Path, options: LoadOptions) -> OnnxModel:
        """Load an ONNX model that holds all its weights in its one file.

        Args:
            path: The file.
            options: How it is to run.

        Raises:
            InvalidModel: Not an ONNX file; external data; operators that are unknown;
                inputs or outputs that are no tensors or of a type without a `DataType`.
            Overloaded: No memory for it.
        """
        outline, split = load_parts(path)
        settings = _session_options(options)
        model: str | bytes = str(path)
        # Else it reads all of the file into its own memory, twice for a moment.
        if split is not None and (file := find_in_memory(path)) is not None:
            settings.add_session_config_entry(_FOLDER, str(file.parent))
            model, path = split.referring_to(file.name), file
        try:
            session = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        except _ORT_ERRORS as error:
            raise _load_error(error, path) from None
        # Else a failing run would make a new session behind our back.
        session.disable_fallback()
        return OnnxModel(session, outline, options)


class OnnxModel:
    """A model in an onnxruntime session. Made by `OnnxEngine.load`."""

    __slots__ = (
        "__weakref__",
        "_fits",
        "_inputs",
        "_is_steady",
        "_outputs",
        "_session",
        "_shrink_above",
        "_shrunk_at",
    )

    def __init__(
        self,
        session: ort.InferenceSession,
        outline: Outline,
        options: LoadOptions,
    ) -> None:
        self._session: ort.InferenceSession | None = session
        self._shrink_above = options.shrink_above
        self._shrunk_at = 0.0
        self._is_steady = outline.is_steady
        self._fits: list[tuple[str, DataType, tuple[int, ...]]] = []
        self._inputs = tuple(_spec(node, "input", outline.shapes) for node in session.get_inputs())
        self._outputs = tuple(
            _spec(node, "output", outline.shapes) for node in session.get_outputs()
        )
        text = any(spec.datatype is DataType.BYTES for spec in self._inputs)
        for spec in self._outputs:
            if text and spec.datatype in _ELEMENTS:
                msg = (
                    f"expected no {spec.datatype} output beside a BYTES input: onnxruntime "
                    "cannot carry both"
                )
                raise InvalidModel(msg)

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
        session = self._session
        if session is None:
            msg = "the model was unloaded"
            raise ModelNotFound(msg)
        # What came last mostly comes again, and to check it costs as much as a tiny model.
        signature = [(tensor.name, tensor.datatype, tensor.array.shape) for tensor in inputs]
        if signature != self._fits or not signature:
            check_inputs(inputs, self._inputs)
            self._fits = signature
        wanted = choose_outputs(self._outputs, outputs)
        options = ort.RunOptions()
        options.log_severity_level = _SILENT
        if self._should_shrink(inputs):
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

        def stop() -> None:
            options.terminate = True

        with stoppable(stop, deadline=deadline, handle=handle) as run:
            try:
                return _run(session, inputs, wanted, options)
            except _ORT_ERRORS as error:
                # Not chained: the cause may carry elements of the inputs.
                raise _run_error(error, run) from None

    def close(self) -> None:
        """Refuse further runs; those under way end as usual, then memory is freed."""
        self._session = None

    def _should_shrink(self, inputs: Sequence[Tensor]) -> bool:
        # Small inputs may need much memory too: a few tokens, or a loop. So every so often a run
        # gives back what earlier ones left, whatever its size.
        now = time.monotonic()
        if (
            sum([tensor.array.nbytes for tensor in inputs]) < self._shrink_above
            and now - self._shrunk_at < _SECONDS_UNSHRUNK
        ):
            return False
        self._shrunk_at = now
        return True


def _session_options(options: LoadOptions) -> ort.SessionOptions:
    session = ort.SessionOptions()
    session.log_severity_level = _SILENT
    session.intra_op_num_threads = options.threads
    session.inter_op_num_threads = 1
    # A pattern is kept for each shape of inputs that ever came, without a limit, and keeps
    # the memory of a large run until the next one.
    session.enable_mem_pattern = False
    # Threads that spin for the next run take the core from the run beside them.
    session.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # Loops in small pieces: a thread whose core does something else holds up the rest for less.
    session.add_session_config_entry("session.dynamic_block_base", "4")
    # Or a file that is both formats would be checked as one and run as the other.
    session.add_session_config_entry("session.load_model_format", "ONNX")
    return session


def _spec(
    node: ort.NodeArg, role: str, shapes: Mapping[str, tuple[int | str | None, ...] | None]
) -> TensorSpec:
    datatype = _DATATYPES.get(node.type)
    if datatype is None:
        msg = (
            f"{role} {node.name[:100]!r}: expected a tensor of {', '.join(DataType)}, "
            f"came {node.type}"
        )
        raise InvalidModel(msg)
    # The session knows more than the file where it inferred a shape, but has () for "any".
    inferred = tuple(dim if dim or dim == 0 else None for dim in node.shape)
    shape = inferred or shapes.get(node.name)
    return TensorSpec(node.name, datatype, shape)


def _run(
    session: ort.InferenceSession,
    inputs: Sequence[Tensor],
    wanted: Sequence[TensorSpec],
    options: ort.RunOptions,
) -> list[Tensor]:
    names = [spec.name for spec in wanted]
    if not _ELEMENTS.keys().isdisjoint([spec.datatype for spec in wanted]):
        # Then run() makes no arrays at all: around numpy for all.
        values = {tensor.name: _ort_value(tensor) for tensor in inputs}
        results = session.run_with_ort_values(names, values, options)
        return [_from_ort_value(*pair) for pair in zip(wanted, results, strict=True)]
    arrays = session.run(names, {tensor.name: _feed(tensor) for tensor in inputs}, options)
    return list(map(_output, wanted, arrays))


def _feed(tensor: Tensor) -> Any:
    if tensor.datatype is DataType.BYTES:
        return _text(tensor)
    if tensor.datatype in _ELEMENTS:
        return _ort_value(tensor)
    return np.asarray(tensor.array, order="C")


def _ort_value(tensor: Tensor) -> ort.OrtValue:
    """Return the tensor as onnxruntime's own value; on the same memory, if it is not packed."""
    array = np.asarray(tensor.array, order="C")
    element = _ELEMENTS.get(tensor.datatype)
    if element is None:
        return ort.OrtValue.ortvalue_from_numpy(array)
    if tensor.datatype.is_packed:
        value = ort.OrtValue.ortvalue_from_shape_and_type(array.shape, element, "cpu")
        packed = pack(array, tensor.datatype)
        ctypes.memmove(value.data_ptr(), packed.ctypes.data, packed.nbytes)
        return value
    bits = array.view(f"u{array.itemsize}")
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, element)


def _from_ort_value(spec: TensorSpec, value: ort.OrtValue) -> Tensor:
    if spec.datatype not in _ELEMENTS:
        return _output(spec, value.numpy())
    shape = tuple(value.shape())
    size = packed_size(math.prod(shape), spec.datatype)
    # A copy, because the memory goes with the value.
    data = ctypes.string_at(value.data_ptr(), size)
    if spec.datatype.is_packed:
        # What the engine leaves in the bits after the last element is nobody's business.
        array = unpack(data, math.prod(shape), spec.datatype)
    else:
        array = np.frombuffer(data, spec.datatype.numpy)
    return Tensor(spec.name, array.reshape(shape), spec.datatype)


def _text(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.object_]]:
    """Return BYTES as `str`: of `bytes`, onnxruntime takes the repr."""
    array = np.empty(tensor.array.size, dtype=object)
    try:
        array[:] = [element.decode() for element in tensor.array.reshape(-1).tolist()]
    except UnicodeDecodeError:
        msg = f"{tensor.name}: expected UTF-8 text for a string of the model, came other bytes"
        raise InvalidInput(msg) from None
    return array.reshape(tensor.shape)


def _output(spec: TensorSpec, array: Any) -> Tensor:
    if spec.datatype is DataType.BYTES:
        return from_array(spec.name, array)
    return Tensor(spec.name, array, spec.datatype)


def _load_error(error: Exception, path: Path) -> InferenceError:
    text = _PREFIX.sub("", str(error))
    if isinstance(error, MemoryError) or _has_any(text, _NO_MEMORY):
        return Overloaded("no memory to load the model", retry_after=30.0)
    text = _SOURCE.sub("", text).replace(str(path), "the file")
    text = text.removeprefix("Load model from the file failed:")
    return InvalidModel(f"onnxruntime cannot load the model: {text.strip()[:400]}")


def _run_error(error: Exception, run: RunHandle | None) -> InferenceError:
    if run is not None and run.terminated:
        return run.reason()
    text = str(error)
    if isinstance(error, MemoryError) or _has_any(text, _NO_MEMORY):
        return Overloaded("no memory for this run: send a smaller batch, or try later")
    node = _NODE.search(text)
    where = f"the model's {node[1]} node {node[2]!r}" if node else "the model"
    why = next((ours for theirs, ours in _REFUSALS if theirs in text.lower()), "")
    if why or isinstance(error, ort_errors.InvalidArgument):
        return InvalidInput(f"{where} refuses these inputs" + (f": {why}" if why else ""))
    return InferenceError(f"{where} failed while it ran")


def _has_any(text: str, phrases: Sequence[str]) -> bool:
    return any(phrase in text.lower() for phrase in phrases)
