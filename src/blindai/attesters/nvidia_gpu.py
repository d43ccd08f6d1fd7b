"""Evidence of NVIDIA GPUs, through the driver's library NVML.

A GPU is a device, and never the machine: it signs any nonce. So these attesters are asked for
evidence with `blindai.attestation.binding.device_nonce`, and what they return stands beside the
evidence of the machine, which names its digest.

Evidence is as `blindai.platforms.nvidia` documents it: the SPDM report with the attachment
"chain". OCSP answers and reference measurements are fetched by server or client.

Never run on a GPU by this project's tests, which call it over a library object that behaves as
NVIDIA documents NVML.

Specification: NVIDIA, NVML API Reference Guide, nvmlDeviceGetConfComputeGpuAttestationReport and
nvmlDeviceGetConfComputeGpuCertificate (driver 535 and later).
"""

from __future__ import annotations

import ctypes
import hmac
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from blindai.attestation.model import Evidence, Platform
from blindai.attesters.base import Finding, Machine, check_binding
from blindai.errors import BlindAIError, ConfigurationError, EvidenceError, Overloaded
from blindai.platforms.nvidia import assemble
from blindai.platforms.nvidia.report import parse_report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIBRARY: Final = "libnvidia-ml.so.1"
NONCE_SIZE: Final = 32
_MAX_TEXT: Final = 96
_SUCCESS: Final = 0
_NOT_SUPPORTED: Final = 3
_NO_PERMISSION: Final = 4
_TEMPORARY: Final = frozenset({10, 19})  # timeout, in use
_ADVICE: Final = (
    "use an NVIDIA H100, H200 or Blackwell GPU in confidential computing mode "
    "(nvidia-smi conf-compute), passed through to a SEV-SNP or TDX guest, with driver 535 or later"
)


class AttestationReport(ctypes.Structure):
    """The struct nvmlConfComputeGpuAttestationReport_t."""

    _fields_ = (
        ("isCecAttestationReportPresent", ctypes.c_uint),
        ("attestationReportSize", ctypes.c_uint),
        ("cecAttestationReportSize", ctypes.c_uint),
        ("nonce", ctypes.c_ubyte * NONCE_SIZE),
        ("attestationReport", ctypes.c_ubyte * 0x2000),
        ("cecAttestationReport", ctypes.c_ubyte * 0x1000),
    )


class GpuCertificate(ctypes.Structure):
    """The struct nvmlConfComputeGpuCertificate_t."""

    _fields_ = (
        ("certChainSize", ctypes.c_uint),
        ("attestationCertChainSize", ctypes.c_uint),
        ("certChain", ctypes.c_ubyte * 0x1000),
        ("attestationCertChain", ctypes.c_ubyte * 0x1400),
    )


class NvidiaAttester:
    """Makes evidence of the machine's NVIDIA GPUs.

    Args:
        load: Returns the library NVML; a parameter for tests.
    """

    platform: Final = Platform.NVIDIA_GPU

    def __init__(self, load: Callable[[], Any] | None = None) -> None:
        self._load = load or _load_library
        self._lock = threading.Lock()

    def count(self) -> int:
        """Return the number of GPUs.

        Raises:
            ConfigurationError: If the library is not there, or may not be used.
        """
        with self._library() as library:
            return _count(library)

    def attest_device(self, nonce: bytes, index: int = 0) -> Evidence:
        """Return a report that carries the 32 bytes of `nonce`, by one GPU.

        Args:
            nonce: Of `device_nonce`.
            index: Which GPU.

        Raises:
            ConfigurationError: If it is not there, or not in confidential computing mode.
            EvidenceError: If the library returns anything but a report with that nonce.
            Overloaded: If it may answer later.
        """
        check_binding(nonce)
        with self._library() as library:
            device = ctypes.c_void_p()
            _check(
                library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)),
                f"GPU {index}",
            )
            return _attest(library, device, nonce, f"GPU {index}")

    def attest_devices(self, nonce: bytes) -> tuple[Evidence, ...]:
        """Return the evidence of every GPU, in the order of the driver."""
        return tuple(self.attest_device(nonce, index) for index in range(self.count()))

    def describe(self) -> dict[str, str]:
        """Return the driver's version and the number of GPUs."""
        with self._library() as library:
            text = ctypes.create_string_buffer(_MAX_TEXT)
            _check(library.nvmlSystemGetDriverVersion(text, ctypes.c_uint(_MAX_TEXT)), "driver")
            version = text.value.decode("ascii", "replace")
            return {"driver": version, "GPUs": str(_count(library))}

    @contextmanager
    def _library(self) -> Iterator[Any]:
        with self._lock:
            library = self._load()
            _check(library.nvmlInit_v2(), "NVML")
            try:
                yield library
            finally:
                library.nvmlShutdown()


def probe(_: Machine, load: Callable[[], Any] | None = None) -> Finding:
    """Look for the library, and for GPUs that attest."""
    attester = NvidiaAttester(load)
    try:
        details = attester.describe()
        # Bound to nothing: a report over zeros proves nothing.
        attester.attest_device(bytes(NONCE_SIZE))
    except BlindAIError as error:
        return Finding(
            Platform.NVIDIA_GPU,
            available=False,
            looked_for=LIBRARY,
            found=str(error),
            advice=_ADVICE,
        )
    return Finding(
        Platform.NVIDIA_GPU,
        available=True,
        looked_for=LIBRARY,
        found="a GPU that attests",
        details=details,
    )


def _load_library() -> Any:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        msg = f"NVIDIA's driver is not installed: {error}"
        raise ConfigurationError(msg) from error


def _count(library: Any) -> int:
    number = ctypes.c_uint()
    _check(library.nvmlDeviceGetCount_v2(ctypes.byref(number)), "number of GPUs")
    return number.value


def _attest(library: Any, device: ctypes.c_void_p, nonce: bytes, name: str) -> Evidence:
    certificate, report = GpuCertificate(), AttestationReport()
    report.nonce[:] = nonce
    _check(
        library.nvmlDeviceGetConfComputeGpuCertificate(device, ctypes.byref(certificate)),
        f"{name}: certificates",
    )
    _check(
        library.nvmlDeviceGetConfComputeGpuAttestationReport(device, ctypes.byref(report)),
        f"{name}: report",
    )
    chain = _cut(certificate.attestationCertChain, certificate.attestationCertChainSize, name)
    body = _cut(report.attestationReport, report.attestationReportSize, name)
    if not hmac.compare_digest(parse_report(body).nonce, nonce):
        msg = f"{name}: the report carries another nonce than was asked for"
        raise EvidenceError(msg)
    evidence, unused = assemble(body, [chain])
    if unused:
        msg = f"{name}: the library returned no certificates"
        raise EvidenceError(msg)
    return evidence


def _cut(buffer: Any, size: int, name: str) -> bytes:
    if not 0 < size <= len(buffer):
        msg = f"{name}: the library says {size} bytes, its buffer holds {len(buffer)}"
        raise EvidenceError(msg)
    return bytes(buffer[:size])


def _check(code: int, what: str) -> None:
    if code == _SUCCESS:
        return
    if code in _TEMPORARY:
        msg = f"{what}: the driver is busy (NVML error {code})"
        raise Overloaded(msg)
    reason = {
        _NOT_SUPPORTED: "not supported: it is not in confidential computing mode",
        _NO_PERMISSION: "no permission",
    }.get(code, "refused")
    msg = f"{what}: {reason} (NVML error {code})"
    raise ConfigurationError(msg)
