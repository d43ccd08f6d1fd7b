"""HTTP/2's frames as bytes: their header, the few that the server sends, and settings.

Specification: RFC 9113 §4 and §6.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

from blindai.errors import InvalidInput

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# Of a frame's header: its length as 2 bytes and 1, type, flags, stream.
_HEADER: Final = struct.Struct(">HBBBI")
HEADER_SIZE: Final = _HEADER.size
# Of bytes and a position: the five parts. Hot, so it is the method itself.
parse_header: Final = _HEADER.unpack_from
_WORD: Final = struct.Struct(">I")
_TWO_WORDS: Final = struct.Struct(">II")
_SETTING: Final = struct.Struct(">HI")
STREAM_BITS: Final = 0x7FFF_FFFF

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITIZED: Final = 0x20

SETTING_ENABLE_PUSH: Final = 2
SETTING_MAX_STREAMS: Final = 3
SETTING_WINDOW: Final = 4
SETTING_FRAME_SIZE: Final = 5
SETTING_LIST_SIZE: Final = 6

DEFAULT_WINDOW: Final = 65_535
MAX_WINDOW: Final = 2**31 - 1
MIN_FRAME_SIZE: Final = 16_384
MAX_FRAME_SIZE: Final = 2**24 - 1
PING_SIZE: Final = 8
WORD_SIZE: Final = 4
SETTING_SIZE: Final = 6
PRIORITY_SIZE: Final = 5


class Code(IntEnum):
    """Why a stream or a connection ended; RFC 9113 §7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


def frame_header(kind: int, flags: int, stream: int, length: int) -> bytes:
    """Return the nine bytes before a payload of `length` bytes."""
    return _HEADER.pack(length >> 8, length & 0xFF, kind, flags, stream)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a whole frame."""
    return frame_header(kind, flags, stream, len(payload)) + payload


def settings_frame(settings: dict[int, int]) -> bytes:
    """Return a SETTINGS frame; by number of the setting."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*item) for item in settings.items()))


def window_frame(stream: int, increment: int) -> bytes:
    """Return a WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream, _WORD.pack(increment))


def reset_frame(stream: int, code: Code) -> bytes:
    """Return a RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream, _WORD.pack(code))


def goaway_frame(last: int, code: Code, why: str) -> bytes:
    """Return a GOAWAY frame.

    Args:
        last: The last stream that was, or will be, worked on.
        code: What for.
        why: For whoever reads the client's log.
    """
    return frame(GOAWAY, 0, 0, _TWO_WORDS.pack(last, code) + why.encode())


def parse_word(payload: bytes) -> int:
    """Return the number of a WINDOW_UPDATE or RST_STREAM frame, of 4 bytes."""
    return int(_WORD.unpack(payload)[0])


def parse_settings(payload: bytes) -> dict[int, int]:
    """Return the settings in a payload whose length is a multiple of 6; the last one counts.

    Raises:
        InvalidInput: A value that the setting cannot have.
    """
    settings = dict(_SETTING.iter_unpack(payload))
    if settings.get(SETTING_ENABLE_PUSH, 0) > 1:
        msg = "SETTINGS_ENABLE_PUSH: expected 0 or 1"
        raise InvalidInput(msg)
    frame_size = settings.get(SETTING_FRAME_SIZE, MIN_FRAME_SIZE)
    if not MIN_FRAME_SIZE <= frame_size <= MAX_FRAME_SIZE:
        msg = f"SETTINGS_MAX_FRAME_SIZE: expected {MIN_FRAME_SIZE} to {MAX_FRAME_SIZE}"
        raise InvalidInput(msg)
    return settings
