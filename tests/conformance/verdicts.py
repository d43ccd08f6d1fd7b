"""What becomes of a case: served with the bytes of onnxruntime, or not, and why.

`not_served.toml` lists each case that is not served, by reason. A case that changes, either
way, is an error: nothing is lost or gained unseen.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import numpy_helper

from blindai.errors import BlindAIError, InvalidModel
from tests.conformance.reference import (
    DoesNotLoadError,
    DoesNotRunError,
    is_expected,
    run_in_process,
)

if TYPE_CHECKING:
    from blindai.client.client import Client
    from tests.conformance.cases import Case

SERVED = "served"
# Reason → how it reads. The first three are onnxruntime's own, without a server.
REASONS = {
    "does-not-load": "onnxruntime does not load the model",
    "does-not-run": "onnxruntime fails while it runs",
    "other-result": "onnxruntime returns something else than ONNX expects",
    "no-tensor": "inputs or outputs are sequences or optionals, which the protocol cannot carry",
}
LIST = Path(__file__).with_name("not_served.toml")
_NAME = "case"


def load_list() -> dict[str, str]:
    """Return the cases that are known not to be served, each with its reason."""
    reasons = tomllib.loads(LIST.read_text())["not_served"]
    return {name: reason for reason, names in reasons.items() for name in names}


def judge(case: Case, client: Client) -> str:
    """Run a case in this process and through a server; return `SERVED` or the reason why not.

    Anything else that happens, among it outputs that differ in a single bit, is returned as
    a sentence that is no reason of `REASONS`.
    """
    try:
        outputs = run_in_process(case)
    except DoesNotLoadError:
        return _refused(case, client)
    except DoesNotRunError:
        return "does-not-run"
    if not is_expected(case, outputs):
        return "other-result"
    try:
        info = client.upload_model(case.model, _NAME, replace=True, progress=False)
        result = client.run_model(
            _NAME, {spec.name: v for spec, v in zip(info.inputs, case.inputs, strict=True)}
        )
    except InvalidModel as error:
        return str(error) if case.is_dense else "no-tensor"
    except BlindAIError as error:
        return f"{type(error).__name__}: {error}"
    return compare(list(result.as_numpy().values()), outputs)


def _refused(case: Case, client: Client) -> str:
    """Return the reason of a case that does not load, if the server says so too."""
    try:
        client.upload_model(case.model, _NAME, replace=True, progress=False)
    except InvalidModel:
        return "does-not-load"
    except BlindAIError as error:
        return f"{type(error).__name__}: {error}"
    return "the server loads what onnxruntime does not"


def compare(served: list[np.ndarray], outputs: list[np.ndarray]) -> str:
    """Return `SERVED` if all outputs are the same to the last bit."""
    if len(served) != len(outputs):
        return f"{len(served)} outputs instead of {len(outputs)}"
    for index, (one, other) in enumerate(zip(served, outputs, strict=True)):
        if one.shape != other.shape:
            return f"output {index} has the shape {one.shape} instead of {other.shape}"
        if content(one) != content(other):
            return f"output {index} has other bytes"
    return SERVED


def content(array: np.ndarray) -> tuple[Any, ...]:
    """Return dtype and bytes of an array, as ONNX stores them."""
    if array.dtype.kind in "OSU":
        texts = [text if isinstance(text, bytes) else text.encode() for text in array.flat]
        return ("string", *texts)
    return array.dtype.name, numpy_helper.from_array(np.ascontiguousarray(array)).raw_data
