"""Read binary structures, bounds-checked. The only place that unpacks bytes.

Every read either returns what was asked for or raises `EvidenceError` with the name of the
field and its offset: a length that lies can neither over-read nor raise anything else.
"""

from __future__ import annotations

import struct
from typing import Literal

from blindai.errors import EvidenceError

_FORMATS = {1: "B", 2: "H", 4: "I", 8: "Q"}


class Reader:
    """A cursor over bytes from an untrusted source.

    Args:
        data: The bytes.
        name: What they are, for error messages ("SNP report").
        byteorder: "little" (SGX, TDX, SEV-SNP, event logs) or "big" (TPM).
    """

    __slots__ = ("_data", "_name", "_order", "_position")

    def __init__(
        self, data: bytes, name: str, *, byteorder: Literal["little", "big"] = "little"
    ) -> None:
        self._data = data
        self._name = name
        self._order = "<" if byteorder == "little" else ">"
        self._position = 0

    @property
    def position(self) -> int:
        """Offset of the next byte."""
        return self._position

    @property
    def remaining(self) -> int:
        """Number of bytes not read yet."""
        return len(self._data) - self._position

    def take(self, size: int, field: str) -> bytes:
        """Return the next `size` bytes."""
        if size < 0 or size > self.remaining:
            msg = (
                f"{self._name} ends early: {field} at offset {self._position} needs "
                f"{size} bytes, {self.remaining} are left"
            )
            raise EvidenceError(msg)
        start = self._position
        self._position += size
        return bytes(self._data[start : self._position])

    def skip(self, size: int, field: str) -> None:
        """Pass over `size` bytes that nothing depends on."""
        self.take(size, field)

    def zeros(self, size: int, field: str) -> None:
        """Pass over `size` bytes that the format says are zero."""
        if any(self.take(size, field)):
            msg = f"{self._name}: {field} must be zero"
            raise EvidenceError(msg)

    def u8(self, field: str) -> int:
        """Return the next byte as an integer."""
        return self._integer(1, field)

    def u16(self, field: str) -> int:
        """Return the next 2 bytes as an unsigned integer."""
        return self._integer(2, field)

    def u32(self, field: str) -> int:
        """Return the next 4 bytes as an unsigned integer."""
        return self._integer(4, field)

    def u64(self, field: str) -> int:
        """Return the next 8 bytes as an unsigned integer."""
        return self._integer(8, field)

    def sized(self, size_bytes: Literal[1, 2, 4], field: str, *, at_most: int) -> bytes:
        """Return a byte string that is preceded by its length in `size_bytes` bytes."""
        size = self._integer(size_bytes, f"length of {field}")
        if size > at_most:
            msg = f"{self._name}: {field} says {size} bytes, at most {at_most} are accepted"
            raise EvidenceError(msg)
        return self.take(size, field)

    def end(self) -> None:
        """Refuse bytes after the end of the structure."""
        if self.remaining:
            msg = f"{self._name}: {self.remaining} unexpected bytes after its end"
            raise EvidenceError(msg)

    def _integer(self, size: int, field: str) -> int:
        (value,) = struct.unpack(self._order + _FORMATS[size], self.take(size, field))
        return int(value)
