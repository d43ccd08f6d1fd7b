"""Between the models that run and those at rest: `keep_model` seals, `restore_models` loads.

Always true: a model is restored through an upload, so its SHA-256, its size and every limit
of the store are checked again; one that cannot be restored leaves the others alone. What is
sealed may leave memory, for it can come back.
"""

from __future__ import annotations

import io
import os
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from blindai.errors import BlindAIError, ModelNotFound
from blindai.inference.options import REFERENCE, parse_options
from blindai.inference.records import Measured
from blindai.inference.resting import RestingModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from blindai.inference.records import LoadedModel
    from blindai.inference.registry import SealedModel
    from blindai.inference.store import ModelStore
    from blindai.inference.vault import Vault


# Stands among the sealed options, and is none of them: what was found out of the model's form.
_MEASURED: Final = "measured"


def keep_model(
    vault: Vault,
    loaded: LoadedModel,
    options: Mapping[str, bool | int | str] | None = None,
    used: int = 0,
) -> SealedModel:
    """Seal a model that runs, under all its names. Slow: to be called in a worker thread.

    Args:
        vault: To seal it in.
        loaded: The model.
        options: How it is to run.
        used: Today, in days since 1970-01-01 (UTC).

    Raises:
        ModelNotFound: It was deleted meanwhile.
        LimitExceeded: The vault has no room for it.
        Overloaded: The disk has no room for it.
        SealedDataError: The disk fails.
    """
    with loaded.model.awake() if isinstance(loaded.model, RestingModel) else nullcontext():
        return _seal(vault, loaded, options, used)


def _seal(
    vault: Vault, loaded: LoadedModel, options: Mapping[str, bool | int | str] | None, used: int
) -> SealedModel:
    record = loaded.record
    kept = dict(options or {})
    if record.options.forms != (REFERENCE,):
        kept[_MEASURED] = msgspec.json.encode(record.measured).decode()
    try:
        descriptor = os.open(loaded.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        msg = f"model {record.sha256} was deleted before it was sealed"
        raise ModelNotFound(msg) from error
    with io.FileIO(descriptor, "rb") as file:
        return vault.seal(
            file,
            sha256=record.sha256,
            size=record.size,
            names=record.names,
            options=kept,
            used=used,
        )


def restore_model(
    vault: Vault, store: ModelStore, model: SealedModel, names: Iterable[str]
) -> None:
    """Load a sealed model into a store, under some of its names. Slow, too.

    Raises:
        SealedDataError: Its file is not as it was sealed, or cannot be read.
        InferenceError: The store does not take it.
    """
    options = parse_options({key: str(value) for key, value in owner_options(model).items()})
    known = _measured(model)
    for name in names:
        with store.begin_upload(
            name, expected_size=model.size, options=options, known=known
        ) as upload:
            vault.unseal(model.sha256, upload.write)
            record = upload.commit(expected_sha256=model.sha256)
        store.let_rest(record.key, partial(vault.unseal, model.sha256))


def owner_options(model: SealedModel) -> dict[str, bool | int | str]:
    """Return how a sealed model is to run, as its owner said."""
    return {key: value for key, value in model.options.items() if key != _MEASURED}


def _measured(model: SealedModel) -> Measured | None:
    try:
        return msgspec.json.decode(str(model.options[_MEASURED]), type=Measured)
    except (KeyError, msgspec.MsgspecError, RecursionError):
        return None  # it was sealed by a version that remembers nothing, or otherwise


def restore_models(vault: Vault, store: ModelStore) -> list[tuple[SealedModel, BlindAIError]]:
    """Load all that a vault holds into a store. Slow: to be called in a worker thread.

    Returns:
        The models that could not be loaded, each with the error that says why.
    """
    failed: list[tuple[SealedModel, BlindAIError]] = []
    for model in vault.models():
        try:
            restore_model(vault, store, model, model.names)
        except BlindAIError as error:
            failed.append((model, error))
    return failed
