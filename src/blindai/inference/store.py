"""Models by name and by the SHA-256 of their file.

Always true:

- The same bytes are loaded once, whatever number of names they have.
- What was hashed is what is loaded and kept: one copy in the store's folder, under its
  SHA-256. A name never becomes a path.
- A file is written whole or not at all: a temporary file, fsync, rename, fsync of the folder.
- `ModelStore.get` takes no lock: uploading and loading never stall a run.
- Every limit is on bytes written, enforced while writing.

The folder must be memory or encrypted storage of the TEE: the weights are there in clear.
The list of models is in memory only; a new store starts empty and clears the folder.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import secrets
import stat
import sys
import threading
import weakref
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final, Self

from blindai.errors import (
    BlindAIError,
    ConfigurationError,
    InvalidInput,
    InvalidModel,
    LimitExceeded,
    ModelConflict,
    ModelNotFound,
    Overloaded,
    SealedDataError,
)
from blindai.inference.disk import Disk, claim_folder
from blindai.inference.engine import LoadOptions
from blindai.inference.forms import load_again, load_form
from blindai.inference.memory import FILE_COST, LOADED_COST, Holding, Memory
from blindai.inference.options import ModelOptions
from blindai.inference.records import LoadedModel, Measured, ModelRecord, check_name
from blindai.inference.resting import RestingModel
from blindai.inference.upload import Upload, no_room

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from blindai.inference.engine import Engine, Model

    # Writes a model's file, piece by piece, by what it is called with.
    Fetch = Callable[[Callable[[memoryview], None]], None]

__all__ = ["LoadedModel", "ModelRecord", "ModelStore", "Upload", "check_name"]

_OURS: Final = re.compile(
    r"[0-9a-f]{64}(\.[a-z0-9]+\.[a-z0-9]+)?\.onnx|\.(upload|deleted)-[0-9a-f]{32}"
)
_CHUNK: Final = 1 << 20
# Bytes of a file from which on it is worth the wait for its next run.
_WORTH_RESTING: Final = 1 << 20


class ModelStore:
    """Holds models; safe to use from several threads.

    Args:
        folder: For the store alone; made where it is missing, and cleared of what an earlier
            store left.
        engine: Loads the models.
        options: How they are to run.
        max_model_size: Bytes of one file.
        max_models: Names.
        max_total_bytes: Bytes of all files together: of loaded models, also deleted ones
            that still run, and of uploads under way. A loaded model takes about twice the
            size of its file in memory, because engines rearrange weights.
        max_uploads: Uploads under way.
        try_first: Loads a file elsewhere, and raises what speaks against loading it here.
        memory: Counts what models take, together with all else; `None`: nobody does.
        clock: Says what time it is.

    Raises:
        ConfigurationError: The folder cannot be used, or another store uses it.
    """

    def __init__(  # noqa: PLR0913 - all but one are keywords
        self,
        folder: Path,
        *,
        engine: Engine,
        options: LoadOptions | None = None,
        max_model_size: int = 2 * 2**30,
        max_models: int = 64,
        max_total_bytes: int = 8 * 2**30,
        max_uploads: int = 8,
        try_first: Callable[[Path, ModelOptions], object] | None = None,
        memory: Memory | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._folder = folder
        self._engine = engine
        self._options = options or LoadOptions()
        self._max_model_size = min(max_model_size, max_total_bytes)
        self._max_models = max_models
        self._max_total_bytes = max_total_bytes
        self._max_uploads = max_uploads
        self._try_first = try_first
        self._clock = clock
        # Guards the fields below for moments only; `get` needs none of it.
        self._lock = threading.Lock()
        self._by_name: dict[str, LoadedModel] = {}
        self._by_key: dict[str, LoadedModel] = {}
        self._alive: weakref.WeakKeyDictionary[Model, int] = weakref.WeakKeyDictionary()
        # Memory that what is loaded takes, its file included: not that of what rests.
        self._awake: weakref.WeakKeyDictionary[Model, int] = weakref.WeakKeyDictionary()
        self._memory = memory or Memory(sys.maxsize)
        self._memory.count(self._memory_in_use)
        self._uploads = 0
        self._uploading = 0
        self._closed = False
        # Loading takes seconds and memory for a second copy: one at a time.
        self._load_lock = threading.Lock()
        self._folder_lock = claim_folder(folder, "models")
        try:
            _clear(folder)
        except ConfigurationError:
            os.close(self._folder_lock)
            raise

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self._folder

    def close(self) -> None:
        """Let go of all models, remove their files and release the folder."""
        with self._lock:
            self._closed = True
            loaded = list(self._by_key.values())
            self._by_name.clear()
            self._by_key.clear()
        for entry in loaded:
            entry.model.close()
            entry.path.unlink(missing_ok=True)
        if self._folder_lock >= 0:
            os.close(self._folder_lock)
            self._folder_lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def get(self, key: str) -> LoadedModel:
        """Return a model. Whoever holds it can run it, whatever happens to the store.

        Args:
            key: A name, or a SHA-256 in hexadecimal with or without "sha256:" before it, and
                with the form behind it unless that is the reference.

        Raises:
            ModelNotFound: No such model.
        """
        # One look-up each: both are atomic, and an entry once found is complete.
        found = self._by_name.get(key)
        if found is None:
            found = self._by_key.get(key.removeprefix("sha256:").lower())
        if found is None:
            msg = f"no model {key[:128]!r}"
            raise ModelNotFound(msg)
        return found

    def records(self) -> list[ModelRecord]:
        """Return what is known of all models, by their first name."""
        with self._lock:
            records = [entry.record for entry in self._by_key.values()]
        return sorted(records, key=lambda record: record.names)

    def bytes_in_use(self) -> int:
        """Return what counts against `max_total_bytes` now."""
        with self._lock:
            return self._in_use()

    def begin_upload(
        self,
        name: str,
        *,
        expected_size: int | None = None,
        options: ModelOptions | None = None,
        known: Measured | None = None,
    ) -> Upload:
        """Start to receive a model.

        Args:
            name: That it shall have.
            expected_size: In bytes, if known: refuses at once what can never fit, and at the
                end what came short.
            options: How it is to run.
            known: What was found out of this file and these options before.

        Raises:
            InvalidInput: The name or the size is impossible.
            LimitExceeded: Larger than any model may be.
            Overloaded: No room now.
        """
        check_name(name)
        if expected_size is not None:
            if expected_size < 0:
                msg = f"expected a size in bytes, came {expected_size}"
                raise InvalidInput(msg)
            self._check_size(expected_size)
        with self._lock:
            if self._uploads >= self._max_uploads:
                msg = f"{self._uploads} uploads are under way, which is the limit"
                raise Overloaded(msg, retry_after=10.0)
            if expected_size is not None:
                self._check_room(expected_size)
            self._uploads += 1
        try:
            options = options or ModelOptions()
            return Upload(self, self._folder, name, expected_size, options, known)
        except OSError as error:
            self.end_upload(0)
            raise no_room(error) from error

    def delete(self, name: str) -> None:
        """Take a name away, and with its last name the model.

        Runs under way, and whoever holds the model, are not disturbed.

        Raises:
            ModelNotFound: No model has this name.
        """
        with self._lock:
            entry = self._by_name.get(name)
            if entry is None:
                msg = f"no model {name[:128]!r}"
                raise ModelNotFound(msg)
            dropped = self._unname(name, entry)
        _unlink(dropped)

    def load_again(self, entry: LoadedModel, threads: int) -> Model:
        """Load a model once more, with another number of threads for one run. Slow.

        It counts against `max_total_bytes` as long as somebody holds it.

        Raises:
            InferenceError: As when it was loaded first, or there is no room for it.
        """
        options = replace(self._options, threads=threads)
        size = entry.record.size
        with self._load_lock, self._memory.holding(LOADED_COST * size) as held:
            with self._lock:
                self._check_room(size)
            model = load_again(entry.path, entry.record.form, options, self._engine)
            with self._lock:
                self._alive[model] = size
            held.replace(partial(self._count_awake, model, LOADED_COST * size))
            return model

    def let_rest(self, key: str, fetch: Fetch) -> None:
        """Let a model leave memory when others need the room, and come back when it runs.

        Args:
            key: As of `ModelRecord.key`. One that is not here any more is left alone, and so is
                one that is small, or of which there are copies with other threads.
            fetch: Writes its file, as it was uploaded, by what it is called with. Slow.
        """
        with self._lock:
            entry = self._by_key.get(key)
            if entry is None or isinstance(entry.model, RestingModel):
                return
            record = entry.record
            if record.size < _WORTH_RESTING or record.options.threads:
                return
            wake = partial(self._wake, record, entry.path, fetch)
            resting = RestingModel(entry.model, entry.path, wake)
            self._alive[resting] = self._alive.pop(entry.model, record.size)
            self._publish(replace(entry, model=resting), record.names)
        self._memory.watch(resting)

    def load_folder(self, folder: Path) -> list[tuple[Path, BlindAIError]]:
        """Add every `*.onnx` of a folder, each by the name of its file without the suffix.

        Args:
            folder: Somebody's; files are copied from it, and links in it not followed.

        Returns:
            The files that could not be loaded, each with the error that says why.

        Raises:
            ConfigurationError: The folder cannot be read.
        """
        try:
            paths = sorted(path for path in folder.iterdir() if path.name.endswith(".onnx"))
        except OSError as error:
            msg = f"expected a folder of models at {folder}: {error.strerror}"
            raise ConfigurationError(msg) from error
        failed: list[tuple[Path, BlindAIError]] = []
        for path in paths:
            try:
                self._load_file(path)
            except BlindAIError as error:
                failed.append((path, _naming(path, error)))
        return failed

    def grow_upload(self, size: int, more: int) -> None:
        """Count more bytes of an upload of `size` bytes; for `Upload`.

        Raises:
            LimitExceeded: More than a model may have.
            Overloaded: No room for them now.
        """
        self._check_size(size + more)
        self._memory.hold(more)
        try:
            with self._lock:
                self._check_room(more)
                self._uploading += more
        except Overloaded:
            self._memory.release(more)
            raise

    def end_upload(self, size: int) -> None:
        """Count an upload no more, nor its bytes; for `Upload`."""
        with self._lock:
            self._uploads -= 1
            self._uploading -= size
        self._memory.release(size)

    def add(self, upload: Upload, *, replace_other: bool) -> ModelRecord:
        """Load what an upload received, unless it is here, and give it its name; for `Upload`."""
        if self._try_first is not None:
            with self._lock:
                self._check_free(upload, replace_other=replace_other)
                known = self._find_same(upload) is not None
            if not known:
                self._try_first(upload.path, upload.options)
        with self._load_lock:
            with self._lock:
                self._check_free(upload, replace_other=replace_other)
                entry = self._find_same(upload)
                if entry is not None:
                    _check_same_options(entry.record, upload)
                    return self._name(upload.name, entry)
            with self._memory.holding(LOADED_COST * upload.size) as held:
                return self._load(upload, held, replace_other=replace_other)

    def _load(self, upload: Upload, held: Holding, *, replace_other: bool) -> ModelRecord:
        """Load what an upload received, and give it its name; one at a time."""
        chosen = load_form(upload.path, upload.options, self._options, self._engine, upload.known)
        model = chosen.model
        record = ModelRecord(
            names=(),
            sha256=upload.sha256,
            size=upload.size,
            inputs=model.inputs,
            outputs=model.outputs,
            engine=chosen.engine,
            loaded_at=self._clock(),
            options=upload.options,
            form=chosen.form,
            deviation=chosen.deviation,
        )
        with self._lock:
            entry = self._by_key.get(record.key)
            if entry is not None:  # "auto" chose what is here already
                model.close()
                _check_same_options(entry.record, upload)
                return self._name(upload.name, entry)
        path = self._folder / f"{record.key}.onnx"
        upload.path.rename(path)
        try:
            Disk().sync_folder(self._folder)
            with self._lock:
                self._check_free(upload, replace_other=replace_other)
                self._alive[model] = upload.size
                received = upload.release()
                self._uploading -= received
                named = self._name(upload.name, LoadedModel(record, model, path))
        except (OSError, BlindAIError):
            path.unlink(missing_ok=True)
            raise
        cost = (FILE_COST + LOADED_COST) * upload.size
        held.replace(partial(self._count_awake, model, cost), more=received)
        return named

    def _load_file(self, path: Path) -> None:
        check_name(path.stem)
        try:
            # NONBLOCK: opening a pipe must not wait for its writer.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            what = "a symbolic link" if path.is_symlink() else f"{error.strerror}"
            msg = f"expected a regular file that can be read, came {what}"
            raise InvalidModel(msg) from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                msg = "expected a regular file, came a folder, pipe or device"
                raise InvalidModel(msg)
            with self.begin_upload(path.stem, expected_size=status.st_size) as upload:
                while chunk := _read(descriptor):
                    upload.write(chunk)
                upload.commit()
        finally:
            os.close(descriptor)

    def _check_size(self, size: int) -> None:
        if size > self._max_model_size:
            msg = f"expected a model of at most {self._max_model_size} bytes, came {size} or more"
            raise LimitExceeded(msg)

    def _wake(self, record: ModelRecord, path: Path, fetch: Fetch) -> Model:
        """Load a model that rests; for `RestingModel`, which lets in one at a time."""
        cost = (FILE_COST + LOADED_COST) * record.size
        with self._memory.holding(cost) as held:
            new = path.with_name(f".upload-{secrets.token_hex(16)}")
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                with io.FileIO(os.open(new, flags, 0o600), "wb") as file:
                    _fetch_same(record, fetch, file)
                model = load_again(new, record.form, self._options, self._engine)
                with self._lock:
                    # Unless it was deleted meanwhile: who runs it may, and it leaves no file.
                    if record.key in self._by_key:
                        new.rename(path)
            except OSError as error:
                raise no_room(error) from error
            finally:
                new.unlink(missing_ok=True)
            held.replace(partial(self._count_awake, model, cost))
            return model

    def _count_awake(self, model: Model, size: int) -> None:
        with self._lock:
            self._awake[model] = size

    def _memory_in_use(self) -> int:
        with self._lock:
            return sum(self._awake.values())

    def _in_use(self) -> int:
        return sum(self._alive.values()) + self._uploading

    def _check_room(self, more: int) -> None:
        """Refuse more bytes than there is room for; the lock must be held."""
        used = self._in_use()
        if used + more > self._max_total_bytes:
            msg = (
                f"no room for {more} bytes: {used} of {self._max_total_bytes} are in use; "
                "delete a model, or try later"
            )
            raise Overloaded(msg, retry_after=30.0)

    def _check_free(self, upload: Upload, *, replace_other: bool) -> None:
        """Refuse a name that is taken, or one too many; the lock must be held."""
        if self._closed:
            msg = "the server is shutting down"
            raise Overloaded(msg)
        holder = self._by_name.get(upload.name)
        if holder is None:
            if len(self._by_name) >= self._max_models:
                msg = f"expected at most {self._max_models} models; delete one"
                raise LimitExceeded(msg)
        elif not replace_other and not _is_same(holder.record, upload):
            came = f"{upload.sha256} ({upload.options.precision})"
            msg = (
                f"{upload.name!r} is the name of the model with SHA-256 "
                f"{holder.record.sha256} ({holder.record.form}); came another with {came}"
            )
            raise ModelConflict(msg)

    def _find_same(self, upload: Upload) -> LoadedModel | None:
        """Return the model that an upload is once more; the lock must be held."""
        entries = self._by_key.values()
        return next((entry for entry in entries if _is_same(entry.record, upload)), None)

    def _name(self, name: str, entry: LoadedModel) -> ModelRecord:
        """Give a model a name, taking it from another; the lock must be held."""
        holder = self._by_name.get(name)
        names = tuple(sorted({*entry.record.names, name}))
        entry = self._publish(entry, names)
        if holder is not None and holder.record.key != entry.record.key:
            _unlink(self._unname(name, holder))
        return entry.record

    def _unname(self, name: str, entry: LoadedModel) -> Path | None:
        """Take a name from a model; return its file if that was the last one.

        The lock must be held. The file has a new name by then: it may be uploaded again
        before it is removed.
        """
        if self._by_name.get(name) is entry:
            del self._by_name[name]
        names = tuple(other for other in entry.record.names if other != name)
        if names:
            self._publish(entry, names)
            return None
        del self._by_key[entry.record.key]
        if isinstance(entry.model, RestingModel):
            entry.model.leave_file()
        gone = self._folder / f".deleted-{secrets.token_hex(16)}"
        try:
            entry.path.rename(gone)
        except FileNotFoundError:
            return None
        return gone

    def _publish(self, entry: LoadedModel, names: tuple[str, ...]) -> LoadedModel:
        entry = replace(entry, record=replace(entry.record, names=names))
        self._by_key[entry.record.key] = entry
        for name in names:
            self._by_name[name] = entry
        return entry


def _is_same(record: ModelRecord, upload: Upload) -> bool:
    return record.sha256 == upload.sha256 and record.options.same_form(upload.options)


def _check_same_options(record: ModelRecord, upload: Upload) -> None:
    """Refuse to run one model in two ways: which would depend on who came first."""
    if record.options.schedule != upload.options.schedule:
        msg = (
            f"the model with SHA-256 {record.sha256} is here as {', '.join(record.names)} with "
            "other max_batch, max_wait, threads or instances: delete it first"
        )
        raise ModelConflict(msg)


def _fetch_same(record: ModelRecord, fetch: Fetch, file: io.FileIO) -> None:
    """Write a model's file again; refuse any other."""
    digest, size = hashlib.sha256(), 0

    def write(piece: memoryview) -> None:
        nonlocal size
        size += len(piece)
        if size > record.size:
            raise _changed(record)
        digest.update(piece)
        while piece:
            piece = piece[file.write(piece) :]

    fetch(write)
    if digest.hexdigest() != record.sha256:
        raise _changed(record)


def _changed(record: ModelRecord) -> SealedDataError:
    return SealedDataError(f"expected the file with SHA-256 {record.sha256}, came another")


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, _CHUNK)
    except OSError as error:
        msg = f"expected a file that can be read: {error.strerror}"
        raise InvalidModel(msg) from error


def _clear(folder: Path) -> None:
    """Remove what an earlier store left in its folder."""
    try:
        for path in folder.iterdir():
            if _OURS.fullmatch(path.name):
                path.unlink()
    except OSError as error:
        msg = f"expected a folder that can be cleared at {folder}: {error.strerror}"
        raise ConfigurationError(msg) from error


def _unlink(path: Path | None) -> None:
    if path is not None:
        path.unlink(missing_ok=True)


def _naming(path: Path, error: BlindAIError) -> BlindAIError:
    """Return the error with the file's name before its message."""
    return type(error)(f"{path.name}: {error}")
