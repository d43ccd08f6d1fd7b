"""Load a model in the form that its uploader asked for, and say how far it is from the original.

Always true: a form other than the reference is compared with it on random inputs before it is
served, and the deviation is told; "auto" serves only what stayed within the tolerance, and the
reference where nothing else did or nothing else was faster. No request data is used.

Everything here is slow and takes memory for a second copy: to be called by one upload at a time.
"""

from __future__ import annotations

import secrets
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from blindai.errors import BlindAIError, ConfigurationError, InvalidModel
from blindai.inference.engines import load_engine
from blindai.inference.options import REFERENCE
from blindai.inference.probe import random_inputs
from blindai.inference.quantization import quantize_int8

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from blindai.inference.engine import Engine, LoadOptions, Model
    from blindai.inference.options import Form, ModelOptions
    from blindai.inference.tensors import Tensor

# For one form's measurement, at least one run each.
_SECONDS: Final = 2.0
_RUNS: Final = 7
# For one run of the probe: a model for which this is not enough is served as it is.
_LONGEST: Final = 60.0


@dataclass(frozen=True, slots=True)
class Chosen:
    """A model that is ready to run.

    Attributes:
        model: It.
        form: That it has.
        engine: Its engine, with the version.
        deviation: The largest error of an output on random inputs, as a fraction of the largest
            element of that output; `None`: of the reference, which has none.
    """

    model: Model
    form: Form
    engine: str
    deviation: float | None = None


def load_form(
    path: Path, options: ModelOptions, load_options: LoadOptions, reference: Engine
) -> Chosen:
    """Load a model in the form that its options ask for.

    Args:
        path: The file as it was uploaded. Another form's file lies beside it for a moment.
        options: What the uploader said.
        load_options: How it is to run.
        reference: The engine of the reference form.

    Raises:
        InvalidModel: The engine cannot load it, or it has no such form.
        Overloaded: No memory for it.
        ConfigurationError: The engine is not installed.
    """
    original = reference.load(path, load_options)
    if options.forms == (REFERENCE,):
        return Chosen(original, REFERENCE, reference.name)
    try:
        return _other_form(path, options, load_options, Chosen(original, REFERENCE, reference.name))
    except BaseException:
        original.close()
        raise


def _other_form(
    path: Path, options: ModelOptions, load_options: LoadOptions, original: Chosen
) -> Chosen:
    inputs = random_inputs(original.model, seconds=_LONGEST)
    if inputs is None:
        msg = (
            "the model takes no random inputs, so what another precision costs in accuracy "
            "cannot be told: choose engine 'onnx' and precision 'fp32'"
        )
        raise InvalidModel(msg)
    expected = original.model.run(inputs)
    chosen, fastest = original, _measure(original.model, inputs)
    for form in options.forms:
        if form == REFERENCE:
            continue
        try:
            candidate = _load(path, form, load_options)
        except (InvalidModel, ConfigurationError):
            if options.precision != "auto":
                raise
            continue  # a form that this model or this machine does not have
        deviation = deviation_of(expected, candidate.model.run(inputs))
        candidate = Chosen(candidate.model, form, candidate.engine, deviation)
        if options.precision != "auto":
            original.model.close()
            return candidate
        seconds = _measure(candidate.model, inputs)
        if deviation <= options.tolerance and seconds < fastest:
            chosen.model.close()
            chosen, fastest = candidate, seconds
        else:
            candidate.model.close()
    return chosen


def load_again(path: Path, form: Form, load_options: LoadOptions, reference: Engine) -> Model:
    """Load a model in a form that was chosen before; see `load_form`."""
    if form == REFERENCE:
        return reference.load(path, load_options)
    return _load(path, form, load_options).model


def deviation_of(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the largest error of an output, as a fraction of that output's largest element.

    Infinite where shapes differ, where integers or text differ at all, or where one side is not
    finite and the other is something else.
    """
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape:
            return float("inf")
        if not one.datatype.is_float:
            if not np.array_equal(one.array, other.array):
                return float("inf")
            continue
        left, right = (np.asarray(t.array, dtype=np.float64) for t in (one, other))
        finite = np.isfinite(left)
        if not np.array_equal(left[~finite], right[~finite], equal_nan=True):
            return float("inf")
        scale = float(np.abs(left[finite]).max(initial=0.0))
        error = float(np.abs(left[finite] - right[finite]).max(initial=0.0))
        if not error <= 0:
            worst = max(worst, error / scale if scale > 0 and np.isfinite(error) else float("inf"))
    return worst


def _load(path: Path, form: Form, load_options: LoadOptions) -> Chosen:
    if form.engine == "openvino":
        engine = load_engine("openvino", form.precision)
        return Chosen(engine.load(path, load_options), form, engine.name)
    engine = load_engine(form.engine)
    quantized = path.with_name(f".upload-{secrets.token_hex(16)}")
    try:
        quantize_int8(path, quantized)
        return Chosen(engine.load(quantized, load_options), form, engine.name)
    finally:
        quantized.unlink(missing_ok=True)


def _measure(model: Model, inputs: Sequence[Tensor]) -> float:
    """Return the median time of a run, in seconds."""
    times: list[float] = []
    until = time.perf_counter() + _SECONDS
    try:
        while len(times) < _RUNS and (not times or time.perf_counter() < until):
            began = time.perf_counter()
            model.run(inputs)
            times.append(time.perf_counter() - began)
    except BlindAIError:
        return float("inf")
    return statistics.median(times)
