"""API keys: made by the operator, shown once, kept as SHA-256 only.

Always true: a key is `bk_`, 16 hexadecimal digits that name it, `_` and 256 random bits; the
file holds the SHA-256 of the whole, so whoever reads it can present nothing. The random part
needs no slow hash: it cannot be guessed. Keys are compared in constant time, also with one
that is not there. The file is written whole or not at all; one that cannot be read opens
nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import re
import secrets
import stat
import threading
from datetime import datetime  # noqa: TC003 - msgspec reads the annotations
from typing import TYPE_CHECKING, Final

import msgspec

from blindai.errors import AccessDenied, BlindAIError, ConfigurationError, InvalidInput
from blindai.inference.disk import write_whole
from blindai.server.access.principal import OPERATOR, Scope
from blindai.server.access.rules import TENANT
from blindai.server.events import log_event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import timedelta
    from pathlib import Path

PREFIX: Final = b"bk_"
MAX_KEYS: Final = 10_000
_TOKEN: Final = re.compile(rb"bk_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")
_NAME: Final = re.compile(r"[ -~]{1,80}")
_MAX_FILE: Final = 8 << 20
_VERSION: Final = 1
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
# What a key that is not there is compared with: it is the SHA-256 of nothing that is known.
_NO_DIGEST: Final = secrets.token_hex(32)


class KeyRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of one API key.

    Attributes:
        id: Names it; no secret.
        name: For people.
        sha256: Of the key, in hexadecimal.
        scopes: What it opens.
        created: When, in UTC.
        tenant: Whose models it uses; empty: the operator's.
        expires: When it ends; `None`: never.
        revoked: When it was revoked; `None`: it was not.
    """

    id: str
    name: str
    sha256: str
    scopes: frozenset[Scope]
    created: datetime
    tenant: str = OPERATOR
    expires: datetime | None = None
    revoked: datetime | None = None

    def state(self, now: datetime) -> str:
        """Return "valid", "expired" or "revoked"."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now >= self.expires else "valid"


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    keys: list[KeyRecord]


_DECODER: Final = msgspec.json.Decoder(_File)


def parse_keys(content: bytes) -> dict[str, KeyRecord]:
    """Read a file of API keys: by the names of the keys.

    Raises:
        ConfigurationError: It is none.
    """
    try:
        found = _DECODER.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        msg = "expected a file of API keys, as `blindai keys api create` writes it"
        raise ConfigurationError(msg) from error
    keys = {key.id: key for key in found.keys}
    aware = all(
        each is None or each.tzinfo is not None
        for key in found.keys
        for each in (key.created, key.expires, key.revoked)
    )
    if found.version != _VERSION or len(keys) != len(found.keys) or not aware:
        msg = f"expected API keys of version {_VERSION}, each once and with times in UTC"
        raise ConfigurationError(msg)
    if len(keys) > MAX_KEYS:
        msg = f"expected at most {MAX_KEYS} API keys, came {len(keys)}"
        raise ConfigurationError(msg)
    return keys


def load_keys(path: Path) -> dict[str, KeyRecord]:
    """Load a file of API keys.

    Raises:
        ConfigurationError: It cannot be read, is none, or others may write to it.
    """
    return _parse_file(path, _read(path))


def _read(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_mode & _OTHERS_WRITE:
                msg = f"{path}: expected a regular file that its owner alone can write (chmod 600)"
                raise ConfigurationError(msg)
            content = file.read(_MAX_FILE + 1)
    except OSError as error:
        msg = f"{path}: expected a file of API keys: {error.strerror}"
        raise ConfigurationError(msg) from error
    if len(content) > _MAX_FILE:
        msg = f"{path}: expected at most {_MAX_FILE} bytes of API keys, came more"
        raise ConfigurationError(msg)
    return content


def _parse_file(path: Path, content: bytes) -> dict[str, KeyRecord]:
    try:
        return parse_keys(content)
    except ConfigurationError as error:
        msg = f"{path}: {error}"
        raise ConfigurationError(msg) from error


def create_key(
    path: Path,
    *,
    name: str,
    scopes: Iterable[Scope],
    now: datetime,
    tenant: str = OPERATOR,
    lifetime: timedelta | None = None,
) -> tuple[KeyRecord, str]:
    """Make an API key and add it to a file, which is made where it is missing.

    Args:
        path: Of the file.
        name: For people: printable ASCII.
        scopes: What it opens; at least one.
        now: The time, in UTC.
        tenant: Whose models it uses.
        lifetime: `None`: it never ends.

    Returns:
        What is kept, and the key itself, which is kept nowhere.

    Raises:
        ConfigurationError: An argument that cannot be, or the file cannot be used.
    """
    scopes = frozenset(scopes)
    if not _NAME.fullmatch(name) or not scopes:
        msg = "expected a name of 1 to 80 printable ASCII characters, and a scope or more"
        raise ConfigurationError(msg)
    if tenant != OPERATOR and not TENANT.fullmatch(tenant):
        msg = f"expected a tenant of letters a-z, digits and '-', came {tenant[:80]!r}"
        raise ConfigurationError(msg)
    key_id = secrets.token_hex(8)
    token = f"{PREFIX.decode()}{key_id}_{secrets.token_urlsafe(32)}"
    record = KeyRecord(
        id=key_id,
        name=name,
        sha256=hashlib.sha256(token.encode()).hexdigest(),
        scopes=scopes,
        created=now,
        tenant=tenant,
        expires=None if lifetime is None else now + lifetime,
    )
    with _changing(path) as keys:
        keys[key_id] = record
    return record, token


def revoke_key(path: Path, key_id: str, *, now: datetime) -> KeyRecord:
    """Revoke an API key, for good; a running server follows within a second or two.

    Raises:
        InvalidInput: No such key.
        ConfigurationError: The file cannot be used.
    """
    with _changing(path) as keys:
        if key_id not in keys:
            msg = f"no API key {key_id[:40]!r} in {path}"
            raise InvalidInput(msg)
        if keys[key_id].revoked is None:
            keys[key_id] = msgspec.structs.replace(keys[key_id], revoked=now)
        return keys[key_id]


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[dict[str, KeyRecord]]:
    """Yield the keys of a file, and write what became of them; one process at a time."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        lock = os.open(path.with_name(f".{path.name}.lock"), flags, 0o600)
    except OSError as error:
        msg = f"{path}: expected a file of API keys in a folder to write to: {error.strerror}"
        raise ConfigurationError(msg) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = load_keys(path) if path.exists() else {}
        yield keys
        content = msgspec.json.format(msgspec.json.encode(_File(_VERSION, list(keys.values()))))
        write_whole(path, content)
    except OSError as error:
        msg = f"{path}: {error.strerror}"
        raise ConfigurationError(msg) from error
    finally:
        os.close(lock)


class ApiKeys:
    """The API keys of a file.

    Args:
        path: Of the file.

    Raises:
        ConfigurationError: As `load_keys`.
    """

    __slots__ = ("_changing", "_digest", "_keys", "_path", "_seen", "_tell")

    def __init__(self, path: Path) -> None:
        self._path = path
        # Held by whoever looks, so that what is told is what holds.
        self._changing = threading.Lock()
        self._tell: Callable[[int, str], None] | None = None
        self._seen = _identity(path)
        content = _read(path)
        self._keys = _parse_file(path, content)
        self._digest = hashlib.sha256(content).hexdigest()

    def tell_changes(self, tell: Callable[[int, str], None]) -> None:
        """Have somebody told which keys hold, now and after each change.

        Args:
            tell: Called with the number of keys and the SHA-256 of their file before they open
                anything; what it raises of ours keeps them from it.

        Raises:
            BlindAIError: From `tell`.
        """
        with self._changing:
            tell(len(self._keys), self._digest)
            self._tell = tell

    def find(self, token: bytes, *, now: datetime) -> KeyRecord:
        """Return what is known of a key that was presented.

        Raises:
            AccessDenied: It is none, or holds no more.
        """
        match = _TOKEN.fullmatch(token)
        known = None if match is None else self._keys.get(match[1].decode())
        digest = hashlib.sha256(token).hexdigest()
        is_same = hmac.compare_digest(digest, _NO_DIGEST if known is None else known.sha256)
        if known is None or not is_same:
            msg = "the token that came does not open this"
            raise AccessDenied(msg)
        # Only the holder of the whole key is told.
        state = known.state(now)
        if state != "valid":
            msg = f"the API key that came is {state}"
            raise AccessDenied(msg)
        return known

    def refresh(self) -> None:
        """Read the file again if it is another; what cannot be read opens nothing.

        The disk may be slow: for a thread.
        """
        with self._changing:
            self._look()

    def _look(self) -> None:
        seen = _identity(self._path)
        if seen is not None and seen == self._seen:
            return
        try:
            content = _read(self._path)
            keys, digest = _parse_file(self._path, content), hashlib.sha256(content).hexdigest()
            if self._tell is not None and digest != self._digest:
                self._tell(len(keys), digest)
            self._keys, self._digest, self._seen = keys, digest, seen
            log_event("api_keys_loaded")
        except BlindAIError:
            if self._keys or self._seen is not None:
                log_event("api_keys_unreadable", level="error")
            self._keys, self._seen = {}, None


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
