"""Make evidence of files as they lie on a disk: quotes, and Intel's statements about them.

A quote is raw or in hex; collateral is a JSON document as `collateral` describes it. Nothing
is trusted for lying there: verification finds out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from blindai.attestation.model import Evidence
from blindai.errors import EvidenceError
from blindai.platforms.dcap.collateral import (
    Collateral,
    describes,
    parse_collateral,
)
from blindai.platforms.dcap.quote import MAX_QUOTE_BYTES, Quote, parse_quote

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blindai.attestation.model import Platform

_HEX_TEXT: Final = re.compile(rb"(?:0[xX])?[0-9a-fA-F]+")


def assemble_evidence(
    platform: Platform, body: bytes, extras: Sequence[bytes]
) -> tuple[Evidence, list[int]]:
    """Return evidence, and the indexes of `extras` that it has no use for.

    Raises:
        EvidenceError: If `body` is no quote.
    """
    raw = read_quote(body)
    quote = parse_quote(raw)
    chosen = _find_collateral(quote, extras)
    attachments = {} if chosen is None else {"collateral": extras[chosen]}
    unused = [index for index in range(len(extras)) if index != chosen]
    return Evidence(platform, raw, attachments), unused


def read_quote(data: bytes) -> bytes:
    """Return the bytes of a quote that is raw or in hex, with white space or 0x.

    Raises:
        EvidenceError: If it is too large.
    """
    # Each byte as two digits, and white space between them.
    if len(data) > 4 * MAX_QUOTE_BYTES:
        msg = f"quote: {len(data)} bytes are too many"
        raise EvidenceError(msg)
    text = b"".join(data.split())
    if not _HEX_TEXT.fullmatch(text):
        return data
    digits = text[2:] if text[:2].lower() == b"0x" else text
    try:
        return bytes.fromhex(digits.decode("ascii"))
    except ValueError as error:
        msg = f"quote: {len(digits)} hex digits are no whole bytes"
        raise EvidenceError(msg) from error


def _find_collateral(quote: Quote, extras: Sequence[bytes]) -> int | None:
    """Return the index of collateral; what says to be about this platform goes first."""
    parsed: dict[int, Collateral] = {}
    for index, data in enumerate(extras):
        try:
            parsed[index] = parse_collateral(data)
        except EvidenceError:
            continue
    fitting = [index for index, collateral in parsed.items() if describes(collateral, quote)]
    return next(iter([*fitting, *parsed]), None)
