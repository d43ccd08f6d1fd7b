"""Header blocks: what a client sends is decoded, what the server sends is never compressed.

Always true: whatever the bytes, `HeaderDecoder.decode` returns fields or raises `InvalidInput` or
`LimitExceeded`, after which the connection cannot go on, because both sides' tables may differ.
A table and a list of fields never hold more than their limits, each field counted with 32 bytes
more than it has, as the specification does.

Specification: RFC 7541 (HPACK); the limit of a list is RFC 9113, SETTINGS_MAX_HEADER_LIST_SIZE.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from blindai.errors import InvalidInput, LimitExceeded

Field = tuple[bytes, bytes]

# What a client may count on until it is told otherwise, and it never is.
TABLE_BYTES: Final = 4096
_FIELD_OVERHEAD: Final = 32
# RFC 7541, Appendix A, in order from index 1.
_STATIC_TEXT: Final = """
:authority
:method GET
:method POST
:path /
:path /index.html
:scheme http
:scheme https
:status 200
:status 204
:status 206
:status 304
:status 400
:status 404
:status 500
accept-charset
accept-encoding gzip, deflate
accept-language
accept-ranges
accept
access-control-allow-origin
age
allow
authorization
cache-control
content-disposition
content-encoding
content-language
content-length
content-location
content-range
content-type
cookie
date
etag
expect
expires
from
host
if-match
if-modified-since
if-none-match
if-range
if-unmodified-since
last-modified
link
location
max-forwards
proxy-authenticate
proxy-authorization
range
referer
refresh
retry-after
server
set-cookie
strict-transport-security
transfer-encoding
user-agent
vary
via
www-authenticate
"""
_STATIC: Final[tuple[Field, ...]] = tuple(
    (name.encode(), value.encode())
    for name, _, value in (line.partition(" ") for line in _STATIC_TEXT.split("\n")[1:-1])
)
# RFC 7541, Appendix B: how long each byte's code is; the last is the end of string. The codes
# follow from it, as they are in order of length, and of symbol where lengths are equal.
_CODE_LENGTHS: Final = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c"
    "060a0a0c0d06080b0a0a080b080606060505050606060606060607080f060c0a"
    "0d06070707070707070707070707070707070707070707070807080d130d0e06"
    "0f05060506050606060507070606060506070605050607070707070f0b0e0d1c"
    "1416141416161617161717171717181718181617181717171715161716171718"
    "1615141616171715171616181516171715151615171617171416161617161617"
    "1a1a1413161716191a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b"
    "14181415161515171616191918181a171a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a"
    "1e"
)
_END_OF_STRING: Final = 256
_MAX_PADDING: Final = 7
# Four continuation bytes make numbers up to 2**28, beyond anything that a block may hold.
_MAX_SHIFT: Final = 21
_INDEXED: Final = 0x80
_INCREMENTAL: Final = 0x40
_RESIZE: Final = 0x20
_MULTIBYTE: Final = 0xFF
# Of whole blocks: a client sends a few, again and again.
_MAX_REMEMBERED: Final = 16


class HeaderDecoder:
    """Decodes one client's header blocks, in the order in which they came.

    Args:
        max_list: Bytes of one block's fields, each counted with 32 more.
    """

    __slots__ = ("_limit", "_list_limit", "_remembered", "_size", "_table")

    def __init__(self, max_list: int) -> None:
        self._list_limit = max_list
        self._limit = TABLE_BYTES
        self._size = 0
        self._table: list[Field] = []  # newest first
        self._remembered: dict[bytes, tuple[Field, ...]] = {}

    def decode(self, block: bytes) -> tuple[Field, ...]:
        """Return the fields of a block; the same object for the same block, where possible.

        Args:
            block: Of a HEADERS frame and its CONTINUATIONs, complete.

        Raises:
            InvalidInput: Malformed.
            LimitExceeded: More than `max_list` bytes.
        """
        known = self._remembered.get(block)
        if known is not None:
            return known
        fields: list[Field] = []
        position, total = 0, 0
        while position < len(block):
            first = block[position]
            if first & _INDEXED:
                index, position = _integer(block, position, 7)
                field = self._at(index)
            elif first & _INCREMENTAL:
                field, position = self._literal(block, position, 6)
                self._add(field)
            elif first & _RESIZE:
                if fields:
                    msg = "HPACK: expected a change of the table's size before the first field"
                    raise InvalidInput(msg)
                position = self._resize(block, position)
                continue
            else:
                field, position = self._literal(block, position, 4)
            total += len(field[0]) + len(field[1]) + _FIELD_OVERHEAD
            if total > self._list_limit:
                msg = f"expected header fields of at most {self._list_limit} bytes, came more"
                raise LimitExceeded(msg)
            fields.append(field)
        found = tuple(fields)
        # Nothing but indices of one byte: it changes no table, and reads it until another does.
        if block and min(block) >= _INDEXED and _MULTIBYTE not in block:
            if len(self._remembered) >= _MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered[block] = found
        return found

    def _at(self, index: int) -> Field:
        if 0 < index <= len(_STATIC):
            return _STATIC[index - 1]
        if 0 < index <= len(_STATIC) + len(self._table):
            return self._table[index - len(_STATIC) - 1]
        last = len(_STATIC) + len(self._table)
        msg = f"HPACK: expected an index of 1 to {last}, came {index}"
        raise InvalidInput(msg)

    def _literal(self, block: bytes, position: int, bits: int) -> tuple[Field, int]:
        index, position = _integer(block, position, bits)
        if index:
            name = self._at(index)[0]
        else:
            name, position = _string(block, position)
        value, position = _string(block, position)
        return (name, value), position

    def _add(self, field: Field) -> None:
        self._remembered.clear()
        self._table.insert(0, field)
        self._size += len(field[0]) + len(field[1]) + _FIELD_OVERHEAD
        self._evict()

    def _resize(self, block: bytes, position: int) -> int:
        size, position = _integer(block, position, 5)
        if size > TABLE_BYTES:
            msg = f"HPACK: expected a table of at most {TABLE_BYTES} bytes, came {size}"
            raise InvalidInput(msg)
        self._limit = size
        self._remembered.clear()
        self._evict()
        return position

    def _evict(self) -> None:
        while self._size > self._limit:
            name, value = self._table.pop()
            self._size -= len(name) + len(value) + _FIELD_OVERHEAD


def encode_fields(*fields: Field) -> bytes:
    """Return a header block that neither needs nor changes a table.

    Args:
        fields: Names in lower case.
    """
    parts: list[bytes] = []
    for field in fields:
        if field in _STATIC:
            parts.append(bytes((_INDEXED | _STATIC.index(field) + 1,)))
            continue
        parts.append(b"\0")
        for text in field:
            parts += (_encode_length(len(text)), text)
    return b"".join(parts)


def _encode_length(length: int) -> bytes:
    """Return a length as RFC 7541 §5.1 has it, with a prefix of 7 bits."""
    if length < 0x7F:  # noqa: PLR2004 - the prefix
        return bytes((length,))
    encoded = bytearray(b"\x7f")
    length -= 0x7F
    while length >= 0x80:  # noqa: PLR2004 - seven bits a byte
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)


def _integer(block: bytes, position: int, bits: int) -> tuple[int, int]:
    """Return a number and the position after it; RFC 7541 §5.1."""
    if position >= len(block):
        raise _truncated()
    full = (1 << bits) - 1
    value = block[position] & full
    position += 1
    if value < full:
        return value, position
    shift = 0
    while True:
        if position >= len(block):
            raise _truncated()
        byte = block[position]
        position += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the last byte has no top bit
            return value, position
        shift += 7
        if shift > _MAX_SHIFT:
            msg = "HPACK: expected a number below 2**28, came a longer one"
            raise InvalidInput(msg)


def _string(block: bytes, position: int) -> tuple[bytes, int]:
    """Return a string and the position after it; RFC 7541 §5.2."""
    if position >= len(block):
        raise _truncated()
    is_coded = block[position] & 0x80
    length, position = _integer(block, position, 7)
    end = position + length
    if end > len(block):
        raise _truncated()
    text = block[position:end]
    return (_decode_huffman(text) if is_coded else text), end


def _truncated() -> InvalidInput:
    return InvalidInput("HPACK: the header block ends inside a field")


# Four bits at a time: no code is shorter than five, so four complete at most one.
_Step = tuple[int, int]  # next node, and the symbol that is complete, or -1
_DEAD: Final = -1
_NONE: Final = -1


@cache
def _huffman() -> tuple[list[list[_Step]], frozenset[int]]:
    """Return node → four bits → step, and the nodes at which a string may end."""
    children: list[list[int]] = [[_DEAD, _DEAD]]  # of inner nodes
    leaves: dict[int, int] = {}
    code = length = 0
    for symbol in sorted(range(len(_CODE_LENGTHS)), key=lambda each: (_CODE_LENGTHS[each], each)):
        code <<= _CODE_LENGTHS[symbol] - length
        length = _CODE_LENGTHS[symbol]
        node = 0
        for bit in range(length - 1, -1, -1):
            side = code >> bit & 1
            if children[node][side] == _DEAD:
                children[node][side] = len(children)
                children.append([_DEAD, _DEAD])
            node = children[node][side]
        leaves[node] = symbol
        code += 1
    steps = [
        [_step(children, leaves, node, four) for four in range(16)] for node in range(len(children))
    ]
    ends, node = [0], 0
    for _ in range(_MAX_PADDING):
        node = children[node][1]
        ends.append(node)
    return steps, frozenset(ends)


def _step(children: list[list[int]], leaves: dict[int, int], node: int, four: int) -> _Step:
    emitted = _NONE
    for bit in (3, 2, 1, 0):
        node = children[node][four >> bit & 1]
        if node == _DEAD:
            return _DEAD, _NONE
        symbol = leaves.get(node)
        if symbol == _END_OF_STRING:
            return _DEAD, _NONE
        if symbol is not None:
            emitted, node = symbol, 0
    return node, emitted


def _decode_huffman(text: bytes) -> bytes:
    steps, ends = _huffman()
    decoded = bytearray()
    node = 0
    for byte in text:
        for four in (byte >> 4, byte & 15):
            node, symbol = steps[node][four]
            if node == _DEAD:
                msg = "HPACK: expected no end of string inside a string"
                raise InvalidInput(msg)
            if symbol != _NONE:
                decoded.append(symbol)
    if node not in ends:
        msg = "HPACK: expected padding of at most seven ones at the end of a string"
        raise InvalidInput(msg)
    return bytes(decoded)
