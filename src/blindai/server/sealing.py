"""Models that survive a restart: sealed on the operator's disk, under a key of this code alone.

Always true: an upload is acknowledged, and a deletion, only when the disk has it; what could not
be sealed is not served either, and what was served before goes on. A vault that stays shut
(another machine, other code, files put back) stops uploads, and not the server: nothing of it
is touched, and the reason is told at the start and to who uploads.
"""

from __future__ import annotations

import contextlib
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from blindai.attestation.model import Platform
from blindai.errors import (
    BlindAIError,
    ConfigurationError,
    ModelConflict,
    ModelNotFound,
    Overloaded,
    SealedDataError,
)
from blindai.inference.at_rest import keep_model, owner_options, restore_model, restore_models
from blindai.inference.sealing_key import FileSealingKey
from blindai.inference.vault import Vault
from blindai.server.access.principal import OPERATOR
from blindai.server.events import log_event
from blindai.server.handover import Handover

if TYPE_CHECKING:
    from collections.abc import Mapping

    from blindai.attesters.base import Attester
    from blindai.inference.disk import Disk
    from blindai.inference.records import LoadedModel, ModelRecord
    from blindai.inference.registry import SealedModel
    from blindai.inference.store import ModelStore

DAY: Final = 86_400
IN_MEMORY_ONLY = "models live in memory only: they have to be uploaded again after a restart"


class SealedModels:
    """Keeps a store's models in a vault. Its methods are slow: to be called in worker threads.

    Args:
        folder: Of the vault.
        attester: Gives the sealing key, and the rollback counter where there is one.
        store: Has the models that run.
        take_over: Whether the key that the code before left may be used.
        counted: Whether the machine's rollback counter is for this vault: it serves one.
        disk: Writes.

    Raises:
        ConfigurationError: The platform gives no sealing key, or the folder cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        attester: Attester,
        store: ModelStore,
        *,
        take_over: bool = False,
        counted: bool = True,
        disk: Disk | None = None,
    ) -> None:
        self._store = store
        # What has a name in the store, and in the vault, changes in both or in neither.
        self._changing = threading.Lock()
        self._handover = Handover(folder, attester, disk)
        self._caveats: tuple[str, ...] = ()
        self._vault: Vault | None = None
        self._why_shut: BlindAIError | None = None
        self._key = _sealing_key(folder, attester)
        counter = attester.rollback_counter() if counted else None
        try:
            if take_over:
                self._caveats = self._handover.take(self._key, counter)
            self._vault = Vault(folder, self._key, counter=counter, disk=disk)
        except (SealedDataError, Overloaded) as error:
            self._why_shut = error

    @property
    def caveats(self) -> tuple[str, ...]:
        """What is not protected against, to be said at the start."""
        return () if self._vault is None else (*self._caveats, *self._vault.caveats)

    def close(self) -> None:
        """Release the folder."""
        if self._vault is not None:
            self._vault.close()

    def restore(self) -> list[tuple[Path, BlindAIError]]:
        """Load what is sealed; return what could not be loaded, each with the reason."""
        if self._why_shut is not None:
            return [(Path("sealed models"), self._why_shut)]
        failed = restore_models(self._open(), self._store)
        return [(Path(_digest(model)), _without_names(model, error)) for model, error in failed]

    def keep(self, name: str, entry: LoadedModel) -> None:
        """Seal a model that was just given a name; take the name back where that fails.

        Raises:
            ModelConflict: The same file is sealed in another form, or the name was taken away
                in this moment.
            SealedDataError: The vault is shut, or the disk fails.
            Overloaded: The disk has no room.
            LimitExceeded: The vault has no room.
        """
        with self._changing:
            entry = self._still(name, entry)
            try:
                vault = self._open()
                _check_form(vault, entry.record)
                keep_model(vault, entry, entry.record.options.dump(), used=today())
                self._store.let_rest(entry.record.key, partial(vault.unseal, entry.record.sha256))
            except BaseException:
                self._put_back(name)
                raise

    def delete(self, name: str) -> None:
        """Take a name away from the store, and from what is sealed.

        Raises:
            ModelNotFound: Neither has a model of this name.
            SealedDataError: The vault is shut, or the disk fails.
            Overloaded: The disk has no room for the new list.
        """
        with self._changing:
            # First what is to last: a name that is gone from memory alone would come back.
            try:
                self._open().remove(name)
            except ModelNotFound:
                self._store.delete(name)
            else:
                # One that is damaged was never loaded.
                with contextlib.suppress(ModelNotFound):
                    self._store.delete(name)

    def last_use(self, sha256: str) -> int | None:
        """Return the day on which a model was last used, as far as it was written down.

        Args:
            sha256: Of the model.

        Returns:
            In days since 1970-01-01 (UTC); `None`: it is not sealed.
        """
        models = () if self._vault is None else self._vault.models()
        return next((model.used for model in models if model.sha256 == sha256), None)

    def note_use(self, days: Mapping[str, int]) -> None:
        """Write down, for after a restart, when models were last used; see `Vault.note_use`.

        Raises:
            SealedDataError: The vault is shut, or the disk fails.
            Overloaded: The disk has no room for the new list.
        """
        self._open().note_use(days)

    def hand_over(self, measurements: Mapping[str, bytes]) -> None:
        """Let the code with these measurements open what is sealed; this code still can.

        Raises:
            ConfigurationError: The platform cannot, or has no such measurements.
            SealedDataError: The vault is shut, or the disk fails.
        """
        self._handover.leave(self._open().data_key, measurements)

    def withdraw(self) -> None:
        """Seal everything anew, so that what was handed over opens it no more.

        Raises:
            SealedDataError: The vault is shut, a model is damaged, or the disk fails.
            Overloaded: The disk has no room: it takes the vault's size once more.
        """
        self._open().reseal(self._key)
        self._handover.discard()
        log_event("handover_withdrawn", level="warning")

    def _still(self, name: str, entry: LoadedModel) -> LoadedModel:
        """Return a model as it is now, if it still has the name."""
        with contextlib.suppress(ModelNotFound):
            now = self._store.get(name)
            if now.record.key == entry.record.key:
                return now
        msg = f"{name!r} was deleted, or given to another model, before this one was sealed"
        raise ModelConflict(msg)

    def _open(self) -> Vault:
        if self._vault is None:
            msg = f"this server cannot keep models: {self._why_shut}"
            raise SealedDataError(msg)
        return self._vault

    def _put_back(self, name: str) -> None:
        """Undo an upload that was not sealed: what had the name before has it again."""
        with contextlib.suppress(ModelNotFound):
            self._store.delete(name)
        for model in () if self._vault is None else self._vault.models():
            if name in model.names:
                with contextlib.suppress(BlindAIError):
                    restore_model(self._open(), self._store, model, [name])


def sealed_folder(folder: Path, tenant: str) -> Path:
    """Return where a tenant's models are sealed: beside the operator's, each in a vault."""
    if tenant == OPERATOR:
        return folder
    tenants = folder.with_name(f"{folder.name}-tenants")
    tenants.mkdir(mode=0o700, parents=True, exist_ok=True)
    return tenants / tenant


def _digest(model: SealedModel) -> str:
    return f"sha256:{model.sha256}"


def _without_names(model: SealedModel, error: BlindAIError) -> BlindAIError:
    """Return an error fit for a log: what models are called is their owners' to tell."""
    return type(error)(str(error).replace(model.title, _digest(model)))


def today() -> int:
    """Return the number of days since 1970-01-01 (UTC), by the machine's clock."""
    return int(time.time()) // DAY


def _sealing_key(folder: Path, attester: Attester) -> bytes:
    if attester.platform is Platform.SIMULATION:
        # Beside the vault, which clears its folder. It warns: it protects nothing.
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return FileSealingKey(folder.with_name(f"{folder.name}.key")).sealing_key()
    key = attester.sealing_key()
    if key is None:
        msg = (
            f"platform {attester.platform} gives no key to seal models under: {IN_MEMORY_ONLY}; "
            "start without a folder for sealed models"
        )
        raise ConfigurationError(msg)
    return key


def _check_form(vault: Vault, record: ModelRecord) -> None:
    for model in vault.models():
        if model.sha256 == record.sha256 and owner_options(model) != record.options.dump():
            msg = (
                f"the file with SHA-256 {record.sha256} is sealed as {', '.join(model.names)} with "
                "other options or in another precision: delete it first"
            )
            raise ModelConflict(msg)
