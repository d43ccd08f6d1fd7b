"""The registry of sealed models: which file is which model, and what it is called.

Always true: it is one file, and the only one that is ever replaced, so that all that a vault
holds changes in one step. A model's file counts only if the registry names it.

The file, big-endian: magic (8 bytes), identifier of the sealing key (16), version of the data
key (4), the data key wrapped (40), SHA-256 of all this (32), and the list of models as a
sealed file of its own. The digest is no protection: it tells damage from another machine's
key, which the identifier would otherwise be mistaken for.
"""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from blindai.attestation.reader import Reader
from blindai.errors import BlindAIError, EvidenceError, InvalidInput, LimitExceeded, SealedDataError
from blindai.inference.records import check_name
from blindai.inference.sealed_file import (
    FILE_ID_SIZE,
    HEADER_SIZE,
    Kind,
    new_header,
    parse_header,
    seal_stream,
    unseal_pieces,
)
from blindai.inference.sealing_key import (
    KEY_ID_SIZE,
    WRAPPED_SIZE,
    sealing_key_id,
    unwrap_data_key,
    wrap_data_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_REGISTRY_BYTES: Final = 4 << 20
# Beside the list: what stands before it, its header, and the tags of its chunks.
MAX_FILE_BYTES: Final = MAX_REGISTRY_BYTES + 4096
FORMAT: Final = 1
_MAGIC: Final = b"BAIVAUL1"
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class SealedModel:
    """A model at rest.

    Attributes:
        sha256: Of the model's file, in hexadecimal.
        size: Of the model's file, in bytes.
        names: That it goes by, in order; at least one.
        file_id: Of its sealed file, 16 bytes.
        options: How it is to run, as its owner said; see also `blindai.inference.at_rest`.
        used: Day on which it last ran, or was sealed, counted from 1970-01-01 (UTC).
    """

    sha256: str
    size: int
    names: tuple[str, ...]
    file_id: bytes
    options: dict[str, bool | int | str] = field(default_factory=dict)
    used: int = 0

    @property
    def title(self) -> str:
        """How to name it in a message."""
        return f"model {', '.join(map(repr, self.names))} (sha256:{self.sha256})"


@dataclass(frozen=True, slots=True)
class Registry:
    """All that a vault holds, at one moment.

    Attributes:
        epoch: Value of the rollback counter at which this is current; `None`: there is none.
        models: By their SHA-256.
        format: Version of this list's format.
    """

    epoch: int | None = None
    models: tuple[SealedModel, ...] = ()
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class VaultKey:
    """A data key, and the sealing key that it is wrapped under.

    Attributes:
        sealing_key: 32 bytes that only this code on this machine gets.
        data_key: 32 random bytes.
        version: Of the data key, from 1.
    """

    sealing_key: bytes = field(repr=False)
    data_key: bytes = field(repr=False)
    version: int


def dump_registry(registry: Registry) -> bytes:
    """Return the list of models in clear.

    Raises:
        InvalidInput: A model or its options cannot be written down.
        LimitExceeded: It would be larger than a registry may be.
    """
    try:
        data = msgspec.json.encode(registry)
    except (OverflowError, TypeError, UnicodeEncodeError) as error:
        msg = "expected options of booleans, integers and text, came others"
        raise InvalidInput(msg) from error
    if len(data) > MAX_REGISTRY_BYTES:
        msg = f"expected a registry of at most {MAX_REGISTRY_BYTES} bytes, came {len(data)}"
        raise LimitExceeded(msg)
    return data


def parse_registry(data: bytes) -> Registry:
    """Read the list of models.

    Args:
        data: In clear; at most 4 MiB.

    Raises:
        SealedDataError: Anything but what `dump_registry` writes.
    """
    if len(data) > MAX_REGISTRY_BYTES:
        msg = f"expected a registry of at most {MAX_REGISTRY_BYTES} bytes, came {len(data)}"
        raise SealedDataError(msg)
    try:
        registry = msgspec.json.decode(data, type=Registry)
        canonical = msgspec.json.encode(registry) == data
    except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError) as error:
        msg = "the registry is not in a format that this version reads"
        raise SealedDataError(msg) from error
    if registry.format != FORMAT or not canonical:
        msg = f"expected a registry of format {FORMAT}, came {registry.format}, or other fields"
        raise SealedDataError(msg)
    _check_models(registry.models)
    return registry


def seal_registry(registry: Registry, key: VaultKey) -> bytes:
    """Return the registry's file.

    Raises:
        InvalidInput: A model or its options cannot be written down.
        LimitExceeded: It would be larger than a registry may be.
    """
    data = dump_registry(registry)
    try:
        # What could not be read again would take all models with it.
        parse_registry(data)
    except SealedDataError as error:
        msg = f"expected models and options that can be read again: {error}"
        raise InvalidInput(msg) from error
    front = b"".join(
        (
            _MAGIC,
            sealing_key_id(key.sealing_key),
            key.version.to_bytes(4),
            wrap_data_key(key.sealing_key, key.data_key),
        )
    )
    file = io.BytesIO()
    file.write(front + hashlib.sha256(front).digest())

    def write(piece: memoryview) -> None:
        file.write(piece)

    header = new_header(Kind.REGISTRY, key.version, len(data))
    seal_stream(io.BytesIO(data), write, header, key.data_key)
    return file.getvalue()


def unseal_registry(file: bytes, sealing_key: bytes) -> tuple[Registry, VaultKey]:
    """Open the registry's file.

    Args:
        file: All of it; at most `MAX_FILE_BYTES`, untrusted.
        sealing_key: 32 bytes that only this code on this machine gets.

    Raises:
        SealedDataError: It was sealed under another key, or changed.
        ConfigurationError: The sealing key does not have 32 bytes.
    """
    key_id, version, wrapped, sealed = _split(file)
    if key_id != (own := sealing_key_id(sealing_key)):
        msg = (
            "they were sealed by other code or on another machine: expected the sealing key "
            f"{own.hex()}, they need {key_id.hex()}. After an upgrade, the code before it has to "
            "reseal them; after a change of firmware or boot configuration, go back to it"
        )
        raise SealedDataError(msg)
    key = VaultKey(sealing_key, unwrap_data_key(sealing_key, wrapped), version)
    return _open_list(sealed, key), key


def unseal_handed_over(
    file: bytes, data_key: bytes, sealing_key: bytes
) -> tuple[Registry, VaultKey]:
    """Open the registry's file of other code, which handed its data key over.

    Args:
        file: All of it; at most `MAX_FILE_BYTES`, untrusted.
        data_key: 32 bytes, from the other code.
        sealing_key: 32 bytes that only this code on this machine gets; for what is written next.

    Raises:
        SealedDataError: It was sealed under another data key, or changed.
    """
    _, version, _, sealed = _split(file)
    key = VaultKey(sealing_key, data_key, version)
    return _open_list(sealed, key), key


def is_sealed_under(file: bytes, sealing_key: bytes) -> bool:
    """Return whether a registry's file says that this is its sealing key.

    Raises:
        SealedDataError: It is no registry's file, or damaged.
    """
    key_id, *_ = _split(file)
    return key_id == sealing_key_id(sealing_key)


def _open_list(sealed: bytes, key: VaultKey) -> Registry:
    """Return the list of models in the last part of a registry's file."""
    header = parse_header(sealed[:HEADER_SIZE])
    if header.kind is not Kind.REGISTRY or header.key_version != key.version:
        msg = "the registry was changed: its header is not that of a registry of this key"
        raise SealedDataError(msg)
    if header.sealed_size != len(sealed):
        msg = f"the registry: expected {header.sealed_size} bytes, came {len(sealed)}"
        raise SealedDataError(msg)
    pieces = unseal_pieces(io.BytesIO(sealed[HEADER_SIZE:]), header, key.data_key)
    return parse_registry(b"".join(bytes(piece) for piece in pieces))


def _split(file: bytes) -> tuple[bytes, int, bytes, bytes]:
    """Return identifier of the sealing key, version, wrapped data key, and the sealed list."""
    reader = Reader(file, "the registry", byteorder="big")
    try:
        magic = reader.take(len(_MAGIC), "magic")
        key_id = reader.take(KEY_ID_SIZE, "sealing key id")
        version = reader.u32("key version")
        wrapped = reader.take(WRAPPED_SIZE, "wrapped data key")
        front = file[: reader.position]
        digest = reader.take(hashlib.sha256().digest_size, "digest")
    except EvidenceError as error:
        raise SealedDataError(str(error)) from error
    if magic != _MAGIC or digest != hashlib.sha256(front).digest():
        msg = "the registry is damaged: its first bytes are not those that were written"
        raise SealedDataError(msg)
    return key_id, version, wrapped, file[reader.position :]


def _check_models(models: Iterable[SealedModel]) -> None:
    """Refuse a list that no vault would have written."""
    seen: set[object] = set()
    for model in models:
        try:
            for name in model.names:
                check_name(name)
        except BlindAIError as error:
            msg = f"the registry: {error}"
            raise SealedDataError(msg) from error
        sound = (
            _SHA256.fullmatch(model.sha256)
            and len(model.file_id) == FILE_ID_SIZE
            and model.size >= 0
            and model.used >= 0
            and model.names == tuple(sorted(set(model.names)))
        )
        keys = {model.sha256, model.file_id, *model.names}
        if not sound or not model.names or seen & keys:
            msg = f"the registry names a model twice, or wrongly: {model.title}"
            raise SealedDataError(msg)
        seen |= keys
