"""Models at rest: sealed files, and one sealed registry that says what they are.

Always true:

- Nothing is on disk in clear, names and options included; sizes can be seen.
- Whatever is stopped, at whatever moment, the vault then holds what it held before or what it
  was to hold: a model's file is complete and synced before the registry names it, and the
  registry is replaced in one step (temporary file, fsync, rename, fsync of the folder).
- A model that cannot be opened is an error of that model; the others can be.
- No file is in memory as a whole but the registry: chunks of 1 MiB go through.
- Nothing is removed from a folder whose registry could not be opened.

See docs/adr/0006-sealed-files.md.
"""

from __future__ import annotations

import hmac
import os
import re
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Self

from blindai.errors import (
    BlindAIError,
    InvalidInput,
    ModelNotFound,
    Overloaded,
    SealedDataError,
)
from blindai.inference.disk import Disk
from blindai.inference.records import check_name
from blindai.inference.registry import (
    Registry,
    SealedModel,
    VaultKey,
    is_sealed_under,
    seal_registry,
    unseal_handed_over,
    unseal_registry,
)
from blindai.inference.rollback import NO_COUNTER, check_epoch
from blindai.inference.sealed_file import Kind, new_header
from blindai.inference.sealing_key import KEY_SIZE, sealing_key_id
from blindai.inference.sources import HashingSource, PieceSource
from blindai.inference.vault_folder import REGISTRY, VaultFolder, load_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from blindai.inference.rollback import RollbackCounter
    from blindai.inference.sealed_file import Source

__all__ = ["SealedModel", "Vault", "take_over"]

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class Vault:
    """Holds sealed models in a folder of its own; safe to use from several threads.

    Args:
        folder: Made where it is missing.
        sealing_key: 32 bytes that only this code on this machine gets.
        counter: Says which registry is the newest; `None` where the machine has none.
        handed: Data key that other code handed over; opens what that code sealed.
        disk: Writes.

    Raises:
        SealedDataError: What is there cannot be opened: it is of another machine or other
            code, was changed, or was rolled back. Nothing was touched.
        ConfigurationError: The folder or the key cannot be used, or another server uses it.
    """

    def __init__(
        self,
        folder: Path,
        sealing_key: bytes,
        *,
        counter: RollbackCounter | None = None,
        handed: bytes | None = None,
        disk: Disk | None = None,
    ) -> None:
        sealing_key_id(sealing_key)  # refuses a key of the wrong size before a folder is made
        self._counter = counter
        # Taken by everything that changes the vault; reading looks at `_state`, once.
        self._lock = threading.Lock()
        # Whether a registry that nobody was told of may be about, as new as the next one.
        self._unsettled = True
        self._folder = VaultFolder(folder, disk or Disk())
        try:
            self._state = self._open(sealing_key, handed)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the folder."""
        self._folder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def caveats(self) -> tuple[str, ...]:
        """What this vault does not protect against, to be said where it is opened."""
        return (NO_COUNTER,) if self._counter is None else ()

    @property
    def key_version(self) -> int:
        """Number of the data key, from 1; each resealing adds 1."""
        return self._state[1].version

    @property
    def data_key(self) -> bytes:
        """What opens all that the vault holds, until it is resealed: for its code's successor."""
        return self._state[1].data_key

    def models(self) -> tuple[SealedModel, ...]:
        """Return what the vault holds."""
        return self._state[0].models

    def seal(
        self,
        source: Source,
        *,
        sha256: str,
        size: int,
        names: Iterable[str],
        options: Mapping[str, bool | int | str] | None = None,
        used: int = 0,
    ) -> SealedModel:
        """Keep a model. It survives a power cut once this returns.

        The names are taken from other models; a model without any left is gone. A model that
        is here already is written again, which also mends its file, and keeps its names.

        Args:
            source: The model's file in clear; read once, from where it stands.
            sha256: Of the file, in hexadecimal.
            size: Of the file, in bytes.
            names: At least one.
            options: How the model is to run.
            used: Today, in days since 1970-01-01 (UTC).

        Raises:
            InvalidInput: A name is impossible, or the file is not of this size and SHA-256.
            LimitExceeded: The registry has no room for it.
            Overloaded: The disk has no room for it.
            SealedDataError: The disk fails.
        """
        wanted = tuple(sorted(set(names)))
        for name in wanted:
            check_name(name)
        if not wanted or size < 0 or not _SHA256.fullmatch(sha256):
            msg = f"expected names, a size and a SHA-256, came {wanted}, {size}, {sha256[:80]!r}"
            raise InvalidInput(msg)
        with self._lock:
            registry, key = self._state
            header = new_header(Kind.MODEL, key.version, size)
            hashing = HashingSource(source, sha256)
            self._folder.write_model(hashing, header, key.data_key, hashing.check)
            others = list(_without_names(registry.models, set(wanted)))
            for model in others:
                if model.sha256 == sha256:
                    wanted = tuple(sorted({*model.names, *wanted}))
            sealed = SealedModel(sha256, size, wanted, header.file_id, dict(options or {}), used)
            models = (*(model for model in others if model.sha256 != sha256), sealed)
            self._commit(replace(registry, models=models), key)
            return sealed

    def unseal(self, sha256: str, write: Callable[[memoryview], None]) -> None:
        """Write a model in clear, in pieces of 1 MiB at most.

        Args:
            sha256: Of the model, in hexadecimal.
            write: Takes each piece, whose memory is used again afterwards. What it took is to
                be thrown away if this raises.

        Raises:
            ModelNotFound: It is not here.
            SealedDataError: Its file is not as it was sealed, or cannot be read.
        """
        while True:
            state = self._state
            model = _find(state[0], sha256)
            pieces = self._folder.load_model(model, state[1])
            try:
                first = next(pieces)
            except SealedDataError:
                if self._state is state:
                    raise
                continue  # it was removed or resealed in this moment
            write(first)
            for piece in pieces:
                write(piece)
            return

    def add_name(self, name: str, sha256: str) -> SealedModel:
        """Give a model one more name, which is taken from another if need be.

        Raises:
            InvalidInput: No model can have this name.
            ModelNotFound: There is no such model.
            LimitExceeded: The registry has no room for it.
            Overloaded: The disk has no room for the new registry.
            SealedDataError: The disk fails.
        """
        check_name(name)
        with self._lock:
            registry, key = self._state
            model = _find(registry, sha256)
            named = replace(model, names=tuple(sorted({*model.names, name})))
            others = [other for other in registry.models if other is not model]
            models = (*_without_names(others, {name}), named)
            self._commit(replace(registry, models=models), key)
            return named

    def remove(self, name: str) -> None:
        """Take a name away, and with its last name the model.

        Raises:
            ModelNotFound: No model has this name.
            Overloaded: The disk has no room for the new registry.
            SealedDataError: The disk fails.
        """
        with self._lock:
            registry, key = self._state
            if not any(name in model.names for model in registry.models):
                msg = f"no sealed model {name[:128]!r}"
                raise ModelNotFound(msg)
            rest = tuple(_without_names(registry.models, {name}))
            self._commit(replace(registry, models=rest), key)

    def note_use(self, days: Mapping[str, int]) -> None:
        """Write down on which days models were last used; later ones count.

        Args:
            days: SHA-256 of a model → day, in days since 1970-01-01 (UTC). Other models are
                ignored.

        Raises:
            Overloaded: The disk has no room for the new registry.
            SealedDataError: The disk fails.
        """
        with self._lock:
            registry, key = self._state
            models = tuple(
                replace(model, used=max(model.used, days.get(model.sha256, 0)))
                for model in registry.models
            )
            if models != registry.models:
                self._commit(replace(registry, models=models), key)

    def reseal(self, sealing_key: bytes) -> None:
        """Seal everything anew: a new data key under a sealing key; all or nothing.

        Needs as much free disk as the vault holds. Until the last step the old keys open the
        vault, and from then on the new ones alone.

        Args:
            sealing_key: 32 bytes; the same as before, or others.

        Raises:
            SealedDataError: A model cannot be opened; nothing was changed. Remove it first.
            Overloaded: The disk has no room for it; nothing was changed.
            ConfigurationError: The key does not have 32 bytes.
        """
        sealing_key_id(sealing_key)
        with self._lock:
            registry, key = self._state
            new = VaultKey(sealing_key, os.urandom(KEY_SIZE), key.version + 1)
            moved: list[SealedModel] = []
            try:
                for model in registry.models:
                    header = new_header(Kind.MODEL, new.version, model.size)
                    pieces = PieceSource(self._folder.load_model(model, key))
                    source = HashingSource(pieces, model.sha256)
                    self._folder.write_model(source, header, new.data_key, source.check)
                    moved.append(replace(model, file_id=header.file_id))
            except BlindAIError:
                self._folder.discard([model.file_id for model in moved])
                raise
            self._commit(replace(registry, models=tuple(moved)), new)

    def _open(self, sealing_key: bytes, handed: bytes | None) -> tuple[Registry, VaultKey]:
        """Read the registry, or begin one; clear the folder of what it does not name."""
        try:
            registry, key, current = self._load(sealing_key, handed)
            check_epoch(registry, self._counter)
        except SealedDataError as error:
            msg = f"the sealed models in {self._folder.path} stay shut: {error}"
            raise SealedDataError(msg) from error
        registry = registry or Registry()
        if self._counter is not None or not current:
            self._replace(self._prepare(registry, key))
        self._unsettled = False
        self._folder.clear(keep=[model.file_id for model in registry.models])
        return registry, key

    def _load(
        self, sealing_key: bytes, handed: bytes | None
    ) -> tuple[Registry | None, VaultKey, bool]:
        """Return the registry, if there is one, its key, and whether it is under that key now."""
        file = load_registry(self._folder.path)
        if file is not None and handed is not None and not is_sealed_under(file, sealing_key):
            return (*unseal_handed_over(file, handed, sealing_key), False)
        if file is not None:
            return (*unseal_registry(file, sealing_key), True)
        if self._folder.has_models():
            msg = f"there are models, but {REGISTRY} is missing"
            raise SealedDataError(msg)
        return None, VaultKey(sealing_key, os.urandom(KEY_SIZE), 1), False

    def _commit(self, registry: Registry, key: VaultKey) -> None:
        """Make this what the vault holds, and remove the files that it names no more."""
        before = {model.file_id for model in self._state[0].models}
        after = {model.file_id for model in registry.models}
        try:
            if self._unsettled and self._counter is not None:
                self._replace(self._prepare(*self._state))
            temporary = self._prepare(registry, key)
        except BlindAIError:
            # The registry on the disk names none of the new files, whichever it is.
            self._folder.discard(after - before)
            raise
        self._unsettled = True
        # If this fails, the disk may have either registry: the next opening knows, and clears.
        self._replace(temporary)
        self._unsettled = False
        self._state = registry, key
        self._folder.discard(before - after)

    def _prepare(self, registry: Registry, key: VaultKey) -> str:
        epoch = None if self._counter is None else self._counter.read() + 1
        file = seal_registry(replace(registry, epoch=epoch), key)
        return self._folder.prepare_registry(file)

    def _replace(self, temporary: str) -> None:
        self._folder.replace_registry(temporary)
        if self._counter is not None:
            self._counter.advance()


def take_over(
    folder: Path,
    *,
    data_key: bytes,
    sealing_key: bytes,
    counter: RollbackCounter | None = None,
    disk: Disk | None = None,
) -> BlindAIError | None:
    """Make a vault that other code handed over one of this code alone.

    First its registry is put under this code's key, then everything is sealed anew, so that
    the data key which was handed over opens nothing any more. To be run again after a power
    cut at any moment.

    Args:
        folder: Of the vault, which no server uses meanwhile.
        data_key: 32 bytes, from the code before.
        sealing_key: 32 bytes that this code gets.
        counter: Of the vault, where it has one.
        disk: Writes.

    Returns:
        Why not everything could be sealed anew (a damaged model, a full disk): the vault is
        this code's, and what was handed over still opens it, too. `None`: it does not.

    Raises:
        SealedDataError: It can be opened neither with the data key nor with the sealing key;
            nothing was changed.
        Overloaded: The disk has no room for a registry; nothing was changed.
        ConfigurationError: The folder or a key cannot be used.
    """
    with Vault(folder, sealing_key, counter=counter, handed=data_key, disk=disk) as vault:
        if not hmac.compare_digest(vault.data_key, data_key):
            return None
        try:
            vault.reseal(sealing_key)
        except (SealedDataError, Overloaded) as error:
            return error
        return None


def _find(registry: Registry, sha256: str) -> SealedModel:
    for model in registry.models:
        if model.sha256 == sha256:
            return model
    msg = f"no sealed model {sha256[:80]!r}"
    raise ModelNotFound(msg)


def _without_names(models: Iterable[SealedModel], names: set[str]) -> Iterator[SealedModel]:
    """Yield the models without these names; those that have no other are gone."""
    for model in models:
        rest = tuple(name for name in model.names if name not in names)
        if rest:
            yield replace(model, names=rest)
