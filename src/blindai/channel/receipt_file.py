"""A file of receipts with all that it takes to verify them, offline, years later.

It holds what a server signed, the evidence for the server's keys as somebody verified it, and
the endorsements that were current then. It holds no result and no data: whoever reads it
verifies for themselves (`blindai.receipt`), against a policy and with tensors of their own.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import cbor2

from blindai.attestation.binding import NONCE_SIZE
from blindai.attestation.wire import (
    MAX_ATTACHMENTS,
    MAX_BUNDLE_BYTES,
    MAX_DEVICES,
    dump_bundle,
    load_cbor,
    parse_bundle,
)
from blindai.channel.receipts import Receipt
from blindai.errors import ConfigurationError, EvidenceError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from blindai.attestation.model import EvidenceBundle

FILE_VERSION: Final = 1
MAX_RECEIPTS: Final = 1024
MAX_FILE_BYTES: Final = MAX_BUNDLE_BYTES + (4 << 20)


@dataclass(frozen=True, slots=True)
class ReceiptFile:
    """Receipts of one server, and the evidence that they rest on.

    Attributes:
        receipts: 1 to 1,024, all signed with the key in the bundle's keyset.
        bundle: What the server showed, with endorsements.
        nonce: The 32 bytes that the evidence answers; `None`: nobody's.
        device_attachments: What was attached to each device's evidence after it was bound to
            the machine's, in the order of the bundle.
    """

    receipts: tuple[Receipt, ...]
    bundle: EvidenceBundle
    nonce: bytes | None = None
    device_attachments: tuple[Mapping[str, bytes], ...] = ()

    def dump(self) -> bytes:
        """Return the file's content: deterministic CBOR."""
        return cbor2.dumps(
            {
                "version": FILE_VERSION,
                "receipts": [receipt.dump() for receipt in self.receipts],
                "bundle": dump_bundle(self.bundle),
                "nonce": self.nonce,
                "device_attachments": [dict(each) for each in self.device_attachments],
            },
            canonical=True,
        )

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a file's content.

        Raises:
            EvidenceError: If it is anything but the canonical encoding of a version 1 file.
        """
        document = load_cbor(data, "receipt file", at_most=MAX_FILE_BYTES)
        names = {"version", "receipts", "bundle", "nonce", "device_attachments"}
        if not isinstance(document, dict) or set(document) != names:
            msg = f"receipt file: expected a map of exactly {', '.join(sorted(names))}"
            raise EvidenceError(msg)
        if document["version"] != FILE_VERSION:
            msg = f"receipt file: expected version {FILE_VERSION}"
            raise EvidenceError(msg)
        file = cls(
            receipts=_receipts(document["receipts"]),
            bundle=_bundle(document["bundle"]),
            nonce=_nonce(document["nonce"]),
            device_attachments=_attachments(document["device_attachments"]),
        )
        if len(file.device_attachments) > len(file.bundle.devices):
            msg = "receipt file: attachments of more devices than there are"
            raise EvidenceError(msg)
        if file.dump() != data:
            msg = "receipt file: not in canonical form"
            raise EvidenceError(msg)
        return file

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file.

        Raises:
            ConfigurationError: If it cannot be read.
            EvidenceError: If it is no receipt file.
        """
        try:
            with Path(path).open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            msg = f"cannot read {os.fspath(path)}: {error.strerror}"
            raise ConfigurationError(msg) from error
        return cls.parse(content)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file, whole or not at all.

        Raises:
            ConfigurationError: If it cannot be written.
        """
        place = Path(path)
        temporary = place.with_name(f".{place.name}.{os.getpid()}.partial")
        try:
            with temporary.open("xb") as file:
                file.write(self.dump())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(place)
            _sync_folder(place.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            msg = f"cannot write {place}: {error.strerror}"
            raise ConfigurationError(msg) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _receipts(data: object) -> tuple[Receipt, ...]:
    if not isinstance(data, list) or not 1 <= len(data) <= MAX_RECEIPTS:
        msg = f"receipt file: expected 1 to {MAX_RECEIPTS} receipts"
        raise EvidenceError(msg)
    return tuple(Receipt.parse(_bytes(entry, "a receipt")) for entry in data)


def _bundle(data: object) -> EvidenceBundle:
    return parse_bundle(_bytes(data, "bundle"))


def _nonce(data: object) -> bytes | None:
    if data is not None and len(_bytes(data, "nonce")) != NONCE_SIZE:
        msg = f"receipt file: expected a nonce of {NONCE_SIZE} bytes, or none"
        raise EvidenceError(msg)
    return None if data is None else _bytes(data, "nonce")


def _attachments(data: object) -> tuple[dict[str, bytes], ...]:
    if not isinstance(data, list) or len(data) > MAX_DEVICES:
        msg = f"receipt file: expected attachments of at most {MAX_DEVICES} devices"
        raise EvidenceError(msg)
    return tuple(_named_bytes(entry) for entry in data)


def _named_bytes(data: Any) -> dict[str, bytes]:
    if not isinstance(data, dict) or len(data) > MAX_ATTACHMENTS:
        msg = f"receipt file: expected at most {MAX_ATTACHMENTS} attachments of a device"
        raise EvidenceError(msg)
    if not all(isinstance(name, str) for name in data):
        msg = "receipt file: an attachment's name must be text"
        raise EvidenceError(msg)
    return {name: _bytes(value, "an attachment") for name, value in data.items()}


def _bytes(value: object, name: str) -> bytes:
    if not isinstance(value, bytes):
        msg = f"receipt file: {name} has to be bytes, found {type(value).__name__}"
        raise EvidenceError(msg)
    return value
