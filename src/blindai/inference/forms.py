"""Load a model in the form that its uploader asked for, and say how far it is from the original.

Always true: a form other than the reference was compared with it on random inputs before it is
served, by this very code and engine, and the deviation is told; "auto" serves only what stayed
within the tolerance, and the reference where nothing else did or nothing else was faster. What was
chosen once stays chosen over restarts (`Measured`). No request data is used.

Everything here is slow and takes memory for a second copy: to be called by one upload at a time.
"""

from __future__ import annotations

import math
import secrets
import statistics
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from blindai.errors import ConfigurationError, InferenceError, InvalidModel, Overloaded
from blindai.inference.engines import load_engine
from blindai.inference.options import REFERENCE
from blindai.inference.probe import random_inputs
from blindai.inference.quantization import quantize_int8
from blindai.inference.records import Measured

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from blindai.inference.engine import Engine, LoadOptions, Model
    from blindai.inference.options import Form, ModelOptions
    from blindai.inference.tensors import Tensor

# For the race of two forms, at least one run each.
_SECONDS: Final = 4.0
_RUNS: Final = 9
# A form that is faster by less is not worth its error, and may be slower tomorrow.
_GAIN: Final = 0.95
# Random inputs on which forms are compared.
_DRAWS: Final = 3
# Seconds for all of their runs on one form, or the model is served as it is or not at all.
_LONGEST: Final = 60.0


@dataclass(frozen=True, slots=True)
class Chosen:
    """A model that is ready to run.

    Attributes:
        model: It.
        form: That it has.
        engine: Its engine, with the version.
        deviation: The largest error of an output on random inputs, as a fraction of the largest
            element of that output, see `deviation_of`; `None`: of the reference, which has none.
    """

    model: Model
    form: Form
    engine: str
    deviation: float | None = None


@dataclass(frozen=True, slots=True)
class _Probe:
    """Random inputs, and what the reference makes of them."""

    inputs: list[list[Tensor]]
    outputs: list[list[Tensor]]


def load_form(
    path: Path,
    options: ModelOptions,
    load_options: LoadOptions,
    reference: Engine,
    known: Measured | None = None,
) -> Chosen:
    """Load a model in the form that its options ask for.

    Args:
        path: The file as it was uploaded. Another form's file lies beside it for a moment.
        options: What the uploader said.
        load_options: How it is to run.
        reference: The engine of the reference form.
        known: What was found out of this file with these options before; `None`: nothing.

    Raises:
        InvalidModel: The engine cannot load it, is not here, or the model has no such form.
        Overloaded: No memory for it.
    """
    if known is not None and known.form in options.forms:
        found = _as_before(path, load_options, reference, known)
        if found is not None:
            return found
    original = reference.load(path, load_options)
    if options.forms == (REFERENCE,):
        return Chosen(original, REFERENCE, reference.name)
    try:
        return _other_form(path, options, load_options, Chosen(original, REFERENCE, reference.name))
    except BaseException:
        original.close()
        raise


def _as_before(
    path: Path, load_options: LoadOptions, reference: Engine, known: Measured
) -> Chosen | None:
    """Load a form that was measured; `None`: it has to be measured anew."""
    try:
        if known.form == REFERENCE:
            found = Chosen(reference.load(path, load_options), REFERENCE, reference.name)
        else:
            found = replace(_load(path, known.form, load_options), deviation=known.deviation)
    except InvalidModel:
        return None
    if Measured.here(found.form, found.deviation, found.engine) != known:
        found.model.close()
        return None
    return found


def _other_form(
    path: Path, options: ModelOptions, load_options: LoadOptions, original: Chosen
) -> Chosen:
    by_name = options.precision != "auto"
    probe = _look_at(original.model)
    if probe is None:
        if not by_name:
            return original
        msg = (
            "the model takes no random inputs, or takes too long for them, so what another "
            "precision costs in accuracy cannot be told: choose engine 'onnx' and precision 'fp32'"
        )
        raise InvalidModel(msg)
    chosen = original
    for form in options.forms:
        if form == REFERENCE:
            continue
        try:
            candidate = _compared(path, form, load_options, probe)
        except InferenceError:
            if by_name:
                raise
            continue  # a form that this model or this machine does not have
        within = candidate.deviation is not None and candidate.deviation <= options.tolerance
        if by_name or (within and _is_faster(candidate.model, chosen.model, probe.inputs[0])):
            chosen.model.close()
            chosen = candidate
        else:
            candidate.model.close()
    return chosen


def _look_at(reference: Model) -> _Probe | None:
    """Return inputs and what the reference makes of them; `None`: it takes none in time."""
    draws = random_inputs(reference, count=_DRAWS, seconds=_LONGEST)
    if draws is None:
        return None
    until = time.monotonic() + _LONGEST
    try:
        return _Probe(draws, [reference.run(inputs, deadline=until) for inputs in draws])
    except InferenceError:
        return None


def _compared(path: Path, form: Form, load_options: LoadOptions, probe: _Probe) -> Chosen:
    """Load a form, and measure how far it is from the reference."""
    candidate = _load(path, form, load_options)
    until = time.monotonic() + _LONGEST
    try:
        deviation = max(
            deviation_of(expected, candidate.model.run(inputs, deadline=until))
            for inputs, expected in zip(probe.inputs, probe.outputs, strict=True)
        )
    except InferenceError as error:
        candidate.model.close()
        if isinstance(error, Overloaded):
            raise
        msg = f"as {form} the model fails for inputs that it takes as {REFERENCE}"
        raise InvalidModel(msg) from error
    if not math.isfinite(deviation):
        candidate.model.close()
        msg = (
            f"as {form} the model is too far from {REFERENCE} to say how far: it gives other "
            "shapes, no numbers for numbers, or an error where there should be none"
        )
        raise InvalidModel(msg)
    return replace(candidate, deviation=deviation)


def load_again(path: Path, form: Form, load_options: LoadOptions, reference: Engine) -> Model:
    """Load a model in a form that was chosen before; see `load_form`."""
    if form == REFERENCE:
        return reference.load(path, load_options)
    return _load(path, form, load_options).model


def deviation_of(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the largest error of an output, as a fraction of that output's largest element.

    Of integers and text, the share of elements that differ. Infinite where shapes differ, where
    one side is not finite and the other is something else, or where all should be zero.
    """
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape:
            return float("inf")
        if not one.datatype.is_float:
            if one.array.size:
                worst = max(worst, float(np.mean(one.array != other.array)))
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
        try:
            engine = load_engine("openvino", form.precision)
        except ConfigurationError as error:
            msg = "this server has no OpenVINO: choose another engine, or ask its operator for it"
            raise InvalidModel(msg) from error
        return Chosen(engine.load(path, load_options), form, engine.name)
    engine = load_engine(form.engine)
    quantized = path.with_name(f".upload-{secrets.token_hex(16)}")
    try:
        quantize_int8(path, quantized)
        return Chosen(engine.load(quantized, load_options), form, engine.name)
    finally:
        quantized.unlink(missing_ok=True)


def _is_faster(model: Model, other: Model, inputs: Sequence[Tensor]) -> bool:
    """Return whether a model is faster than another by more than chance, run by run in turn."""
    times: dict[Model, list[float]] = {model: [], other: []}
    until = time.monotonic() + _SECONDS
    try:
        for turn in range(_RUNS):
            if turn and time.monotonic() > until:
                break
            for each, taken in times.items():
                began = time.perf_counter()
                each.run(inputs, deadline=time.monotonic() + _LONGEST)
                taken.append(time.perf_counter() - began)
    except InferenceError:
        return False
    return statistics.median(times[model]) < _GAIN * statistics.median(times[other])
