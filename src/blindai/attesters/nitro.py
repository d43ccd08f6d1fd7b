"""AWS Nitro Enclaves: attestation documents from the Nitro Security Module, /dev/nsm.

Request and response are CBOR, read with the bounds of everything that comes from outside: the
module belongs to the hypervisor. A document counts only if it carries the data that was asked
for. Evidence is the document as the module returns it; it needs no attachments.

An enclave has no disk, and the module derives no keys: nothing to seal, nothing to seal with.

Specification: Linux, include/uapi/linux/nsm.h (NSM_IOCTL_RAW; it needs CAP_SYS_ADMIN); AWS NSM
API, requests "Attestation" and "DescribeNSM".
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import threading
from typing import TYPE_CHECKING, Final

import cbor2

from blindai.attestation.model import Evidence, Platform
from blindai.attestation.wire import load_cbor
from blindai.attesters.base import Finding, Machine, check_binding
from blindai.attesters.kernel_files import refused
from blindai.errors import BlindAIError, EvidenceError
from blindai.platforms.nitro import parse_document, parse_envelope

if TYPE_CHECKING:
    from collections.abc import Callable

    Ioctl = Callable[[int, int, bytearray], int]

# _IOWR(0x0A, 0, struct nsm_raw): direction, size, type and number.
NSM_IOCTL_RAW: Final = 3 << 30 | 32 << 16 | 0x0A << 8 | 0
MAX_RESPONSE: Final = 0x3000
# Two struct nsm_iovec: address and length of the request, then of the response.
_MESSAGE: Final = struct.Struct("=QQQQ")
_MAX_ERROR: Final = 64
_ADVICE: Final = (
    "build an enclave image and start it with `nitro-cli run-enclave` on an EC2 instance that "
    "was launched with enclaves enabled; inside, the kernel needs CONFIG_NSM"
)


class NitroAttester:
    """Makes evidence of a Nitro enclave.

    Args:
        machine: Where the device is.
        ioctl: As `fcntl.ioctl`; a parameter for tests.
    """

    platform: Final = Platform.NITRO

    def __init__(self, machine: Machine | None = None, *, ioctl: Ioctl = fcntl.ioctl) -> None:
        self._device = (machine or Machine()).nsm
        self._ioctl = ioctl
        self._lock = threading.Lock()

    def attest(self, report_data: bytes) -> Evidence:
        """Return a document that carries the 32 bytes of `report_data` as its user data.

        Raises:
            ConfigurationError: If there is no such device, or it may not be used.
            EvidenceError: If the module answers with an error, or with anything else.
        """
        check_binding(report_data)
        question = {"user_data": report_data, "nonce": None, "public_key": None}
        answer = self._answer(self._ask({"Attestation": question}), "Attestation")
        document = answer.get("document")
        if not isinstance(document, bytes):
            msg = "NSM: its answer has no document"
            raise EvidenceError(msg)
        if parse_document(parse_envelope(document).payload).user_data != report_data:
            msg = "NSM: the document carries other data than was asked for"
            raise EvidenceError(msg)
        return Evidence(self.platform, document)

    def sealing_key(self) -> bytes | None:
        """Return `None`: the module derives no keys."""
        return None

    def rollback_counter(self) -> None:
        """Return `None`: the module counts nothing."""
        return

    def describe(self) -> dict[str, str]:
        """Return what the module says about itself.

        Raises:
            ConfigurationError: If there is no such device, or it may not be used.
            EvidenceError: If the module answers with an error, or with anything else.
        """
        answer = self._answer(self._ask("DescribeNSM"), "DescribeNSM")
        parts = [answer.get(f"version_{part}") for part in ("major", "minor", "patch")]
        return {
            "NSM version": ".".join(map(str, parts)),
            "module id": str(answer.get("module_id")),
        }

    def _ask(self, question: object) -> object:
        encoded = cbor2.dumps(question)
        request = ctypes.create_string_buffer(encoded, len(encoded))
        response = ctypes.create_string_buffer(MAX_RESPONSE)
        message = bytearray(
            _MESSAGE.pack(
                ctypes.addressof(request), len(encoded), ctypes.addressof(response), MAX_RESPONSE
            )
        )
        try:
            with self._lock:
                descriptor = os.open(self._device, os.O_RDWR | os.O_CLOEXEC)
                try:
                    self._ioctl(descriptor, NSM_IOCTL_RAW, message)
                finally:
                    os.close(descriptor)
        except OSError as error:
            raise refused(str(self._device), error) from error
        size = _MESSAGE.unpack(message)[-1]
        if size > MAX_RESPONSE:
            msg = f"NSM: it says {size} bytes, at most {MAX_RESPONSE} are accepted"
            raise EvidenceError(msg)
        return load_cbor(response.raw[:size], "NSM response", at_most=MAX_RESPONSE)

    @staticmethod
    def _answer(response: object, name: str) -> dict[str, object]:
        if isinstance(response, dict) and isinstance(response.get("Error"), str):
            msg = f"NSM: it refuses {name}: {response['Error'][:_MAX_ERROR]}"
            raise EvidenceError(msg)
        if not isinstance(response, dict) or not isinstance(response.get(name), dict):
            msg = f"NSM: expected an answer to {name}, found something else"
            raise EvidenceError(msg)
        answer: dict[str, object] = response[name]
        return answer


def probe(machine: Machine) -> Finding:
    """Look for the device, and ask it for its version."""
    looked_for = str(machine.nsm)
    available, advice, details = False, _ADVICE, {}
    if not machine.nsm.exists():
        found = "no such device"
    else:
        try:
            details = NitroAttester(machine).describe()
            found, advice, available = "a Nitro Security Module", "", True
        except BlindAIError as error:
            found = str(error)
    return Finding(Platform.NITRO, available, looked_for, found, advice, details)
