"""Models that survive a restart: sealed on the operator's disk, under a key of this code alone.

Always true: an upload is acknowledged, and a deletion, only when the disk has it; what could not
be sealed is not served either, and what was served before goes on. A vault that stays shut
(another machine, other code, files put back) stops uploads, and not the server: nothing of it
is touched, and the reason is told at the start and to who uploads.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from blindai.attestation.model import Platform
from blindai.attesters.base import Succeeded
from blindai.attesters.kernel_files import read_bounded
from blindai.errors import (
    BlindAIError,
    ConfigurationError,
    ModelConflict,
    ModelNotFound,
    SealedDataError,
)
from blindai.inference.at_rest import keep_model, restore_model, restore_models
from blindai.inference.disk import write_whole
from blindai.inference.sealing_key import FileSealingKey
from blindai.inference.vault import Vault, reseal
from blindai.server.access.principal import OPERATOR
from blindai.server.events import log_event

if TYPE_CHECKING:
    from collections.abc import Mapping

    from blindai.attesters.base import Attester, Counter
    from blindai.inference.records import LoadedModel, ModelRecord
    from blindai.inference.store import ModelStore

IN_MEMORY_ONLY = "models live in memory only: they have to be uploaded again after a restart"

_MAX_BLOB: Final = 8192


class SealedModels:
    """Keeps a store's models in a vault. Its methods are slow: to be called in worker threads.

    Args:
        folder: Of the vault.
        attester: Gives the sealing key, and the rollback counter where there is one.
        store: Has the models that run.
        take_over: Whether the key that the code before left may be used.
        counted: Whether the machine's rollback counter is for this vault: it serves one.

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
    ) -> None:
        self._store = store
        self._handover = Handover(folder, attester)
        self._vault: Vault | None = None
        self._why_shut: SealedDataError | None = None
        self._key = _sealing_key(folder, attester)
        counter = attester.rollback_counter() if counted else None
        try:
            if take_over:
                self._handover.take(self._key, counter)
            self._vault = Vault(folder, self._key, counter=counter)
        except SealedDataError as error:
            self._why_shut = error

    @property
    def caveats(self) -> tuple[str, ...]:
        """What is not protected against, to be said at the start."""
        return () if self._vault is None else self._vault.caveats

    def close(self) -> None:
        """Release the folder."""
        if self._vault is not None:
            self._vault.close()

    def restore(self) -> list[tuple[Path, BlindAIError]]:
        """Load what is sealed; return what could not be loaded, each with the reason."""
        if self._why_shut is not None:
            return [(Path("sealed models"), self._why_shut)]
        failed = restore_models(self._open(), self._store)
        return [(Path(", ".join(model.names)), error) for model, error in failed]

    def keep(self, name: str, entry: LoadedModel) -> None:
        """Seal a model that was just given a name; take the name back where that fails.

        Raises:
            ModelConflict: The same file is sealed in another form.
            SealedDataError: The vault is shut, or the disk fails.
            Overloaded: The disk has no room.
            LimitExceeded: The vault has no room.
        """
        try:
            vault = self._open()
            _check_form(vault, entry.record)
            keep_model(vault, entry, entry.record.options.dump())
        except BaseException:
            self._put_back(name)
            raise

    def forget(self, name: str) -> None:
        """Take a name away from what is sealed; does nothing to models that were never.

        Raises:
            SealedDataError: The vault is shut, or the disk fails.
            Overloaded: The disk has no room for the new list.
        """
        with contextlib.suppress(ModelNotFound):
            self._open().remove(name)

    def hand_over(self, measurements: Mapping[str, bytes]) -> None:
        """Let the code with these measurements open what is sealed; this code still can.

        Raises:
            ConfigurationError: The platform cannot, or has no such measurements.
            SealedDataError: The vault is shut.
        """
        self._open()
        self._handover.leave(self._key, measurements)

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


class Handover:
    """What one version of the code leaves for the next, in a file beside the vault.

    Args:
        folder: Of the vault.
        attester: Seals it to what the next code will be measured as.
    """

    def __init__(self, folder: Path, attester: Attester) -> None:
        self._folder = folder
        self._path = folder.with_name(f"{folder.name}.handover")
        self._attester = getattr(attester, "wrapped", attester)

    def leave(self, key: bytes, measurements: Mapping[str, bytes]) -> None:
        """Write the sealing key, sealed for the code with these measurements."""
        blob = self._able().seal_for_successor(key, measurements)
        write_whole(self._path, blob)
        log_event("models_handed_over", level="warning")

    def take(self, key: bytes, counter: Counter | None) -> None:
        """Seal the vault anew under `key`, if the code before left its own; else do nothing.

        Raises:
            SealedDataError: What it left is not for this code, or does not open the vault.
        """
        try:
            blob = read_bounded(self._path, at_most=_MAX_BLOB)
        except FileNotFoundError:
            return
        except OSError as error:
            msg = f"{self._path}: {error.strerror}"
            raise SealedDataError(msg) from error
        old = self._able().open_from_predecessor(blob)
        reseal(self._folder, old_key=old, new_key=key, counter=counter)
        self._path.unlink()
        log_event("models_taken_over", level="warning")

    def _able(self) -> Succeeded:
        if not isinstance(self._attester, Succeeded):
            msg = (
                f"platform {self._attester.platform} has no way to leave sealed models to other "
                "code: upload them again after the upgrade"
            )
            raise ConfigurationError(msg)
        return self._attester


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
        if model.sha256 == record.sha256 and model.options != record.options.dump():
            msg = (
                f"the file with SHA-256 {record.sha256} is sealed as {', '.join(model.names)} with "
                "other options or in another precision: delete it first"
            )
            raise ModelConflict(msg)
