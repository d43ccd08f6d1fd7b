"""One sealed file: a header, then chunks of AES-256-GCM.

Always true:

- Each file has a key of its own: HKDF-SHA256 (RFC 5869) of the data key, with the file's
  random identifier as salt. No nonce is ever used twice with it.
- Chunks cannot be changed, reordered, repeated, left out or moved to another file: the nonce
  is prefix ‖ number of the chunk ‖ 1 if it is the last one (STREAM: Hoang, Reyhanitabar,
  Rogaway, Vizár, "Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance",
  2015), and the whole header is associated data of every chunk.
- One chunk is in memory, whatever the size of the file; no byte leaves before its chunk is
  known to be genuine. That the *end* is genuine is known when the last chunk was read:
  whoever takes a stream has to throw it away if it ends in an error.

Header, big-endian: magic (8 bytes), kind (1), log2 of the chunk size (1), version of the data
key (4), identifier of the file (16), size of the plaintext (8).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from blindai.attestation.reader import Reader
from blindai.errors import EvidenceError, InvalidInput, SealedDataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAGIC: Final = b"BAISEAL1"
FILE_ID_SIZE: Final = 16
HEADER_SIZE: Final = len(MAGIC) + 1 + 1 + 4 + FILE_ID_SIZE + 8
CHUNK_LOG2: Final = 20
_CHUNK_LOG2: Final = range(20, 23)
# The number of a chunk has four bytes in the nonce.
_MAX_CHUNKS: Final = 1 << 32
_TAG_SIZE: Final = 16
_KEY_SIZE: Final = 32
_PREFIX_SIZE: Final = 7
_PURPOSE: Final = b"blindai sealed file v1"


class Kind(IntEnum):
    """What a sealed file holds; a file of one kind is never taken for another."""

    MODEL = 1
    REGISTRY = 2


class Source(Protocol):
    """What can be read into a buffer, as `io.FileIO` and `io.BytesIO` can."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill at most the buffer; return how many bytes came, 0 at the end."""
        ...


@dataclass(frozen=True, slots=True)
class Header:
    """What stands in clear before the chunks.

    Attributes:
        kind: What the file holds.
        key_version: Of the data key.
        file_id: 16 random bytes, of this file alone.
        size: Of the plaintext, in bytes.
        chunk_log2: Chunks have 2 to this power of bytes, the last one what is left.
    """

    kind: Kind
    key_version: int
    file_id: bytes
    size: int
    chunk_log2: int = CHUNK_LOG2

    @property
    def chunk_size(self) -> int:
        """Bytes of plaintext of every chunk but the last."""
        return 1 << self.chunk_log2

    @property
    def chunks(self) -> int:
        """Number of chunks; an empty file has one, so that its end is authentic too."""
        return max(1, -(-self.size >> self.chunk_log2))

    @property
    def sealed_size(self) -> int:
        """Bytes of the whole sealed file."""
        return HEADER_SIZE + self.size + self.chunks * _TAG_SIZE

    def to_bytes(self) -> bytes:
        """Return the header as it stands in the file."""
        return b"".join(
            (
                MAGIC,
                bytes((self.kind, self.chunk_log2)),
                self.key_version.to_bytes(4),
                self.file_id,
                self.size.to_bytes(8),
            )
        )


def new_header(kind: Kind, key_version: int, size: int) -> Header:
    """Return the header of a new file, with an identifier that no other file has.

    Raises:
        InvalidInput: The size is more than a file can have.
    """
    if not 0 <= size >> CHUNK_LOG2 < _MAX_CHUNKS:
        msg = f"expected at most {_MAX_CHUNKS << CHUNK_LOG2} bytes to seal, came {size}"
        raise InvalidInput(msg)
    return Header(kind, key_version, os.urandom(FILE_ID_SIZE), size)


def parse_header(data: bytes) -> Header:
    """Read a header.

    Args:
        data: The first 38 bytes of a file, untrusted.

    Raises:
        SealedDataError: Another format, or values that no header has.
    """
    reader = Reader(data, "sealed file", byteorder="big")
    try:
        magic = reader.take(len(MAGIC), "magic")
        kind, chunk_log2 = reader.u8("kind"), reader.u8("chunk size")
        key_version = reader.u32("key version")
        file_id = reader.take(FILE_ID_SIZE, "file id")
        size = reader.u64("size")
        reader.end()
    except EvidenceError as error:
        raise SealedDataError(str(error)) from error
    if magic != MAGIC:
        msg = f"expected a sealed file beginning with {MAGIC.hex()}, came {magic.hex()}"
        raise SealedDataError(msg)
    if kind not in set(Kind) or chunk_log2 not in _CHUNK_LOG2:
        msg = f"expected a known kind and size of chunks, came {kind} and 2^{chunk_log2}"
        raise SealedDataError(msg)
    if size >> chunk_log2 >= _MAX_CHUNKS:
        msg = f"expected a size of less than 2^32 chunks, came {size} bytes"
        raise SealedDataError(msg)
    return Header(Kind(kind), key_version, file_id, size, chunk_log2)


def seal_stream(
    source: Source, write: Callable[[memoryview], None], header: Header, data_key: bytes
) -> None:
    """Write a sealed file.

    Args:
        source: The plaintext; as many bytes as `header.size` says.
        write: Takes the sealed file piece by piece; the memory is used again afterwards.
        header: Of a new file; never of one that was written before.
        data_key: 32 bytes, of the version that the header names.

    Raises:
        InvalidInput: The source is longer or shorter than the header says.
    """
    cipher = _ChunkCipher(header, data_key)
    plain = memoryview(bytearray(header.chunk_size))
    sealed = memoryview(bytearray(header.chunk_size + _TAG_SIZE))
    write(memoryview(header.to_bytes()))
    for index in range(header.chunks):
        size = cipher.size_of(index)
        if (came := _fill(source, plain[:size])) != size:
            read = index * header.chunk_size + came
            msg = f"expected {header.size} bytes to seal, came {read}"
            raise InvalidInput(msg)
        cipher.seal(index, plain[:size], sealed[: size + _TAG_SIZE])
        write(sealed[: size + _TAG_SIZE])
    if _fill(source, plain[:1]):
        msg = f"expected {header.size} bytes to seal, came more"
        raise InvalidInput(msg)


def unseal_pieces(source: Source, header: Header, data_key: bytes) -> Iterator[memoryview]:
    """Yield the plaintext of a sealed file, chunk by chunk.

    Args:
        source: The sealed file, after its header.
        header: As it was read, and found to be the one that is expected.
        data_key: 32 bytes, of the version that the header names.

    Yields:
        A chunk, in memory that the next one uses again. All that came is to be thrown away
        if this raises.

    Raises:
        SealedDataError: The file is not as it was sealed.
    """
    cipher = _ChunkCipher(header, data_key)
    plain = memoryview(bytearray(header.chunk_size))
    sealed = memoryview(bytearray(header.chunk_size + _TAG_SIZE))
    for index in range(header.chunks):
        size = cipher.size_of(index)
        piece = sealed[: size + _TAG_SIZE]
        if (came := _fill(source, piece)) != len(piece):
            msg = (
                f"the file was truncated: expected {len(piece)} bytes for chunk {index + 1} of "
                f"{header.chunks}, came {came}"
            )
            raise SealedDataError(msg)
        cipher.open(index, piece, plain[:size])
        yield plain[:size]
    if _fill(source, sealed[:1]):
        msg = f"the file was extended: bytes follow its last chunk, number {header.chunks}"
        raise SealedDataError(msg)


class _ChunkCipher:
    """Seals and opens the chunks of one file."""

    def __init__(self, header: Header, data_key: bytes) -> None:
        info = _PURPOSE + bytes((header.kind,)) + header.key_version.to_bytes(4)
        derive = HKDF(SHA256(), _KEY_SIZE + _PREFIX_SIZE, salt=header.file_id, info=info)
        derived = derive.derive(data_key)
        self._header = header
        self._associated = header.to_bytes()
        self._cipher = AESGCM(derived[:_KEY_SIZE])
        self._prefix = derived[_KEY_SIZE:]

    def size_of(self, index: int) -> int:
        """Return the bytes of plaintext of a chunk."""
        header = self._header
        return min(header.chunk_size, header.size - index * header.chunk_size)

    def seal(self, index: int, plain: memoryview, sealed: memoryview) -> None:
        """Encrypt a chunk into `sealed`, which has 16 bytes more."""
        self._cipher.encrypt_into(self._nonce(index), plain, self._associated, sealed)

    def open(self, index: int, sealed: memoryview, plain: memoryview) -> None:
        """Decrypt a chunk into `plain`, if it is genuine and in its place."""
        try:
            self._cipher.decrypt_into(self._nonce(index), sealed, self._associated, plain)
        except InvalidTag as error:
            msg = (
                f"chunk {index + 1} of {self._header.chunks} is not what was sealed there: the "
                "file was changed, its chunks were reordered, or it is of another key"
            )
            raise SealedDataError(msg) from error

    def _nonce(self, index: int) -> bytes:
        last = index == self._header.chunks - 1
        return self._prefix + index.to_bytes(4) + bytes((last,))


def _fill(source: Source, buffer: memoryview) -> int:
    """Read until the buffer is full or the source ends; return how many bytes came."""
    filled = 0
    while filled < len(buffer):
        came = source.readinto(buffer[filled:])
        if not came:
            break
        filled += came
    return filled
