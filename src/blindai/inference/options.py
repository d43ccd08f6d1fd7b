"""What an uploader says of a model beside its bytes: how exactly it computes, and when it runs.

Always true: who says nothing gets the arithmetic that the file asks for, on onnxruntime, with
the bits that onnxruntime gives; anything else was asked for by name, and is part of what the
model is called: the bytes, the engine and the precision are a model's identity.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final, Literal, get_args

from blindai.errors import InvalidInput
from blindai.inference.ledger import SchedulingOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

EngineName = Literal["onnx", "openvino"]
Precision = Literal["fp32", "bf16", "int8"]
PrecisionWish = Literal["fp32", "bf16", "int8", "auto"]

_MAX_COUNT: Final = 4096
_MAX_WAIT: Final = 10.0
_COUNT: Final = re.compile(r"[0-9]{1,4}")
_NUMBER: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,12})?([eE]-?[0-9]{1,2})?")


@dataclass(frozen=True, slots=True)
class Form:
    """One way to run a model.

    Attributes:
        engine: That runs it.
        precision: Of its arithmetic. "fp32": what the file asks for, nothing rounded further.
    """

    engine: EngineName
    precision: Precision

    def __str__(self) -> str:
        return f"{self.engine}.{self.precision}"

    def key(self, sha256: str) -> str:
        """Return what a model of this form is addressed by, beside its names."""
        return sha256 if self == REFERENCE else f"{sha256}.{self}"


REFERENCE: Final = Form("onnx", "fp32")
FORMS: Final = (REFERENCE, Form("openvino", "fp32"), Form("openvino", "bf16"), Form("onnx", "int8"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """What an uploader may say of a model.

    Attributes:
        engine: "onnx" or "openvino"; `None`: onnxruntime, or whichever computes in the
            precision; with "auto", whichever is faster.
        precision: "fp32", "bf16" (OpenVINO, on processors that have it), "int8" (onnxruntime,
            weights quantised when the model comes in), or "auto": the fastest on this machine
            that stays within `tolerance`.
        tolerance: Of "auto": the largest error of an output, as a fraction of the largest
            element of that output.
        max_batch: Rows of different requests that may run together; `None`: as many as the
            operator allows, and never more.
        max_wait: Seconds that a request may wait for others.
        threads: Threads of one run under load; 0: those that the server gives every run.
        instances: Runs at the same time; 0: as many as the server has workers.

    Raises:
        InvalidInput: Values that are none of these, or no engine that has the precision.
    """

    engine: EngineName | None = None
    precision: PrecisionWish = "fp32"
    tolerance: float = 1e-2
    max_batch: int | None = None
    max_wait: float = 0.0
    threads: int = 0
    instances: int = 0

    def __post_init__(self) -> None:
        _check_word("engine", self.engine, (None, *get_args(EngineName)))
        _check_word("precision", self.precision, get_args(PrecisionWish))
        _check_range("tolerance", self.tolerance, 1e-9, 1.0)
        if self.max_batch is not None:
            _check_range("max_batch", self.max_batch, 1, _MAX_COUNT)
        _check_range("max_wait", self.max_wait, 0.0, _MAX_WAIT)
        _check_range("threads", self.threads, 0, _MAX_COUNT)
        _check_range("instances", self.instances, 0, _MAX_COUNT)
        if not self.forms:
            msg = f"no engine {self.engine!r} with precision {self.precision!r}; there are "
            raise InvalidInput(msg + ", ".join(map(str, FORMS)))

    @property
    def forms(self) -> tuple[Form, ...]:
        """The forms that were asked for: one, or for "auto" those to choose from."""
        return tuple(
            form
            for form in FORMS
            if self.precision in {form.precision, "auto"}
            and self.engine in {form.engine, None}
            # Of two engines with the same precision, the one that gives the same bits.
            and (self.precision == "auto" or self.engine or form != Form("openvino", "fp32"))
        )

    def same_form(self, other: ModelOptions) -> bool:
        """Return whether both ask for the same form of a model."""
        if self.forms != other.forms or self.precision != other.precision:
            return False
        return self.precision != "auto" or self.tolerance == other.tolerance

    @property
    def schedule(self) -> tuple[object, ...]:
        """What is said of when it runs."""
        return self.max_batch, self.max_wait, self.threads, self.instances

    def scheduling(self, allowed: int) -> SchedulingOptions:
        """Return how the model's requests are scheduled.

        Args:
            allowed: Rows of different requests that the operator lets run together.

        Raises:
            InvalidInput: `max_batch` is more than that.
        """
        if self.max_batch is not None and self.max_batch > allowed:
            msg = (
                f"max_batch: expected at most {allowed}, which is what this server's operator "
                f"allows to run together for different callers, came {self.max_batch}"
            )
            raise InvalidInput(msg)
        return SchedulingOptions(
            max_batch=allowed if self.max_batch is None else self.max_batch,
            max_wait=self.max_wait,
            threads=self.threads,
            instances=self.instances,
        )

    def dump(self) -> dict[str, str]:
        """Return what differs from the default, as `parse_options` reads it."""
        default = ModelOptions()
        names = (field.name for field in fields(self))
        return {
            name: str(value)
            for name in names
            if (value := getattr(self, name)) != getattr(default, name)
        }


def parse_options(query: Mapping[str, str], *, beside: Iterable[str] = ()) -> ModelOptions:
    """Read the options of an upload.

    Args:
        query: Name → value, as text.
        beside: Names that are not options, and not looked at.

    Raises:
        InvalidInput: A name that nobody knows, or a value that cannot be.
    """
    known = {field.name for field in fields(ModelOptions)}
    others = set(query) - known - set(beside)
    if others:
        came = ", ".join(sorted(repr(name[:40]) for name in others)[:8])
        msg = f"expected options out of {', '.join(sorted(known | set(beside)))}; came {came}"
        raise InvalidInput(msg)
    found: dict[str, object] = {}
    for name in known & set(query):
        text = query[name]
        if name in {"engine", "precision"}:
            found[name] = text
        elif name in {"tolerance", "max_wait"}:
            found[name] = float(_matching(name, text, _NUMBER, "a number"))
        else:
            found[name] = int(_matching(name, text, _COUNT, "a whole number"))
    return ModelOptions(**found)  # type: ignore[arg-type] # checked by __post_init__


def _matching(name: str, text: str, pattern: re.Pattern[str], expected: str) -> str:
    if not pattern.fullmatch(text):
        msg = f"{name}: expected {expected}, came {text[:40]!r}"
        raise InvalidInput(msg)
    return text


def _check_word(name: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        expected = ", ".join(str(word) for word in known if word is not None)
        msg = f"{name}: expected one of {expected}, came {str(value)[:40]!r}"
        raise InvalidInput(msg)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        msg = f"{name}: expected {low:g} to {high:g}, came {value}"
        raise InvalidInput(msg)
