"""Where the bytes of a model that is sealed come from.

Always true: nothing here holds more than one piece of it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from blindai.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blindai.inference.sealed_file import Source


class HashingSource:
    """Reads on from a source, and knows what SHA-256 came of it."""

    def __init__(self, source: Source, sha256: str) -> None:
        self._source = source
        self._expected = sha256
        self._digest = hashlib.sha256()

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill at most the buffer; return how many bytes came."""
        came = self._source.readinto(buffer) or 0
        self._digest.update(buffer[:came])
        return came

    def check(self) -> None:
        """Refuse what was not the file that it was said to be."""
        if (came := self._digest.hexdigest()) != self._expected:
            msg = f"expected a model with SHA-256 {self._expected}, came {came}"
            raise InvalidInput(msg)


class PieceSource:
    """Reads from pieces of which each is gone when the next one comes."""

    def __init__(self, pieces: Iterator[memoryview]) -> None:
        self._pieces = pieces
        self._left = memoryview(b"")

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill at most the buffer; return how many bytes came."""
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = piece
        came = min(len(buffer), len(self._left))
        buffer[:came] = self._left[:came]
        self._left = self._left[came:]
        return came
