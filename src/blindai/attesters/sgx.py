"""Intel SGX enclaves under Gramine, which attests through files in /dev/attestation.

Always true here: a quote counts only if it carries the data that was asked for; the files are
one for the whole process, so nobody else may write to them meanwhile.

Evidence is the quote. Intel's statements about the platform are fetched by server or client.

Specification: Gramine documentation, "Attestation and Secret Provisioning" (`attestation_type`,
`user_report_data`, `quote`, `keys/`).
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from blindai.attestation.model import Evidence, Platform
from blindai.attesters.base import Finding, Machine, check_binding
from blindai.attesters.kernel_files import read_bounded, refused, write_once
from blindai.errors import BlindAIError, ConfigurationError, EvidenceError
from blindai.platforms.dcap.quote import MAX_QUOTE_BYTES, SgxReport, parse_quote

if TYPE_CHECKING:
    from pathlib import Path

REPORT_DATA_SIZE: Final = 64
_TYPE: Final = "dcap"
_MAX_LINE: Final = 64
_GRAMINE_KEY_SIZE: Final = 16
_KEY_SIZE: Final = 32
_KEY_PURPOSE: Final = b"blindai sealing key v1"
_ADVICE: Final = (
    "run the server under Gramine-SGX on a machine with SGX, with "
    'sgx.remote_attestation = "dcap" in its manifest'
)


class SgxAttester:
    """Makes evidence of an enclave under Gramine.

    Args:
        machine: Where Gramine's files are.
    """

    platform: Final = Platform.SGX

    def __init__(self, machine: Machine | None = None) -> None:
        self._folder = (machine or Machine()).gramine
        self._lock = threading.Lock()

    def attest(self, report_data: bytes) -> Evidence:
        """Return a quote that carries the 32 bytes of `report_data`, then zeros.

        Raises:
            ConfigurationError: If this is no enclave with DCAP attestation.
            EvidenceError: If Gramine returns anything but a quote with that data.
        """
        check_binding(report_data)
        asked = report_data.ljust(REPORT_DATA_SIZE, b"\0")
        _check_type(self._folder)
        try:
            with self._lock:
                write_once(self._folder / "user_report_data", asked)
                quote = read_bounded(self._folder / "quote", at_most=MAX_QUOTE_BYTES)
        except OSError as error:
            what = "SGX quote"
            raise refused(what, error) from error
        body = parse_quote(quote).report
        if not isinstance(body, SgxReport) or body.report_data != asked:
            msg = "SGX quote: it carries other data than was asked for"
            raise EvidenceError(msg)
        return Evidence(self.platform, quote)

    def sealing_key(self) -> bytes | None:
        """Return a key that this chip derives for this MRENCLAVE alone.

        Raises:
            ConfigurationError: If Gramine does not hand it out.
        """
        try:
            key = read_bounded(self._folder / "keys/_sgx_mrenclave", at_most=_GRAMINE_KEY_SIZE)
        except OSError as error:
            what = "SGX sealing key"
            raise refused(what, error) from error
        if len(key) != _GRAMINE_KEY_SIZE:
            msg = f"SGX sealing key: expected {_GRAMINE_KEY_SIZE} bytes, found {len(key)}"
            raise ConfigurationError(msg)
        return HKDF(hashes.SHA256(), _KEY_SIZE, salt=None, info=_KEY_PURPOSE).derive(key)

    def rollback_counter(self) -> None:
        """Return `None`: Gramine hands out no monotonic counter."""
        return


def probe(machine: Machine) -> Finding:
    """Look for Gramine's files, and the kind of attestation that they are for."""
    looked_for = f"{machine.gramine}/attestation_type, saying {_TYPE}"
    try:
        _check_type(machine.gramine)
    except BlindAIError as error:
        return Finding(
            Platform.SGX, available=False, looked_for=looked_for, found=str(error), advice=_ADVICE
        )
    found = f"an enclave with {_TYPE} attestation"
    return Finding(Platform.SGX, available=True, looked_for=looked_for, found=found)


def _check_type(folder: Path) -> None:
    path = folder / "attestation_type"
    try:
        found = read_bounded(path, at_most=_MAX_LINE).strip()
    except OSError as error:
        raise refused(str(path), error) from error
    if found != _TYPE.encode():
        shown = found.decode("ascii", "replace")
        msg = f"{path}: expected {_TYPE!r}, found {shown!r}"
        raise ConfigurationError(msg)
