"""The record of a verification: which steps were taken, and how each ended.

A verifier declares its steps beforehand, so that a failed verification also says what
was never looked at. Recording changes no result: a step fails only by an exception.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from blindai.errors import AttestationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class StepName:
    """A step that a verifier will take.

    Attributes:
        name: Short name in kebab case, stable across releases.
        title: What is checked, in words for an auditor.
        reference: The specification and its section, such as "SEV-SNP ABI §7.3".
    """

    name: str
    title: str
    reference: str = ""


@dataclass(slots=True)
class Step:
    """One step of a verification.

    Attributes:
        name: As in `StepName`.
        title: As in `StepName`.
        reference: As in `StepName`.
        status: "passed", "failed", or "skipped" where it was not reached or not needed.
        detail: Why it failed or was skipped, or a remark on how it passed.
        compared: What was compared with what, as (what, expected, found), in text.
    """

    name: str
    title: str
    reference: str
    status: Status = "skipped"
    detail: str = "not reached"
    compared: list[tuple[str, str, str]] = field(default_factory=list)

    def compare(self, what: str, *, expected: bytes | str | int, found: bytes | str | int) -> bool:
        """Note what is compared and return whether the two are equal."""
        self.compared.append((what, _text(expected), _text(found)))
        return expected == found

    def note(self, detail: str) -> None:
        """Add a remark that is shown with the step."""
        self.detail = detail

    def to_json(self) -> dict[str, object]:
        """Return the step as it appears in `--json` output."""
        return {
            "name": self.name,
            "title": self.title,
            "reference": self.reference,
            "status": self.status,
            "detail": self.detail,
            "compared": [
                {"what": what, "expected": expected, "found": found}
                for what, expected, found in self.compared
            ],
        }


class Steps:
    """The steps of one verification, in order.

    Example:
        >>> steps = Steps([StepName("signature", "The report is signed by the chip")])
        >>> with steps.take("signature") as step:
        ...     step.note("ECDSA P-384")
        >>> [(s.name, s.status) for s in steps.taken]
        [('signature', 'passed')]
    """

    def __init__(self, plan: Sequence[StepName]) -> None:
        self._steps = {s.name: Step(s.name, s.title, s.reference) for s in plan}

    @property
    def taken(self) -> tuple[Step, ...]:
        """Every planned step, whatever its status."""
        return tuple(self._steps.values())

    @contextmanager
    def take(self, name: str) -> Iterator[Step]:
        """Take the planned step `name`; an error inside marks it as failed.

        An `AttestationError` leaves with all steps attached to it.
        """
        step = self._steps[name]
        step.detail = ""
        try:
            yield step
        except AttestationError as error:
            step.status, step.detail = "failed", str(error)
            error.steps = self.taken
            raise
        except BaseException as error:
            step.status, step.detail = "failed", type(error).__name__
            raise
        step.status = "passed"

    def skip(self, name: str, reason: str) -> None:
        """Leave the planned step `name` out, and say why."""
        self._steps[name].detail = reason


def _text(value: bytes | str | int) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
