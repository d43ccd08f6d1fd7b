"""What is known of a model, and what it may be called."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Final, Self

from blindai.errors import InvalidInput
from blindai.inference.options import REFERENCE, Form, ModelOptions

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from blindai.inference.engine import Model
    from blindai.inference.tensors import TensorSpec

_VERSION: Final = metadata.version("blindai")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# Also with a form behind it: what models are addressed by beside their names.
_SHA256: Final = re.compile(r"[0-9a-f]{64}(\..*)?")


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found out of a model's form, so that it need not be found out again.

    Attributes:
        form: That was chosen.
        deviation: Of the form, see `ModelRecord`.
        by: Versions of this code and of the engine: others may compute otherwise.
    """

    form: Form
    deviation: float | None
    by: str

    @classmethod
    def here(cls, form: Form, deviation: float | None, engine: str) -> Self:
        """Return what this code found out, with an engine of this name and version."""
        return cls(form, deviation, f"blindai {_VERSION}, {engine}")


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """What is known of a model.

    Attributes:
        names: That it goes by, in order.
        sha256: Of its file, in hexadecimal.
        size: Of its file, in bytes.
        inputs: What it takes.
        outputs: What it returns.
        engine: That runs it, with its version.
        loaded_at: When, in UTC.
        options: What its uploader said.
        form: Which engine runs it, in which precision.
        deviation: Of the form from the reference on random inputs: the largest error of an
            output, as a fraction of its largest element; `None`: it is the reference.
    """

    names: tuple[str, ...]
    sha256: str
    size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    engine: str
    loaded_at: datetime
    options: ModelOptions = field(default_factory=ModelOptions)
    form: Form = REFERENCE
    deviation: float | None = None

    @property
    def key(self) -> str:
        """What it is: the SHA-256 of its file, and its form unless that is the reference."""
        return self.form.key(self.sha256)

    @property
    def measured(self) -> Measured:
        """What to remember of its form over restarts."""
        return Measured.here(self.form, self.deviation, self.engine)


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model and its record. Runs as long as somebody holds it, also after its deletion.

    Attributes:
        record: As it was when this was got.
        model: To run.
        path: Its file, until its last name is deleted.
    """

    record: ModelRecord
    model: Model
    path: Path


def check_name(name: str) -> None:
    """Refuse a name that no model can have.

    Args:
        name: 1 to 128 letters, digits, ".", "_" and "-" of ASCII, the first a letter or a
            digit; without ".."; and nothing that looks like a SHA-256.

    Raises:
        InvalidInput: Another name.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        msg = (
            "expected a model name of 1 to 128 letters, digits, '.', '_' or '-', beginning with "
            f"a letter or digit and without '..', came {name[:128]!r}"
        )
        raise InvalidInput(msg)
    if _SHA256.fullmatch(name.lower()):
        msg = "expected a model name, came what reads like the SHA-256 of a model"
        raise InvalidInput(msg)
