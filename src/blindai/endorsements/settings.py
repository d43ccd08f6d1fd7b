"""Where endorsements are fetched from, and how long they are kept and trusted.

Addresses are checked once, here: https, a host, and nothing that could hide another host.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from urllib.parse import urlsplit

from blindai.errors import ConfigurationError
from blindai.platforms.dcap.collateral import INTEL_PCS, INTEL_ROOT_CRL
from blindai.platforms.sev_snp.kds import KDS

NVIDIA_RIM: Final = "https://rim.attestation.nvidia.com/v1/rim"
NVIDIA_OCSP: Final = "https://ocsp.ndis.nvidia.com"
_ADDRESSES: Final = ("amd_kds", "intel_pcs", "intel_root_crl", "nvidia_rim", "nvidia_ocsp")
_MAX_GRACE: Final = timedelta(days=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndorsementSettings:
    """Where endorsements come from, and how long they last.

    Attributes:
        amd_kds: AMD's Key Distribution Service, or a cache of it. `None`, here and below:
            nothing is asked there.
        intel_pcs: Intel's Provisioning Certification Service, or a cache of it (PCCS).
        intel_root_crl: Where the revocation list of Intel's root is.
        nvidia_rim: NVIDIA's service of reference measurements.
        nvidia_ocsp: NVIDIA's OCSP responder.
        grace: For how long after their end endorsements still count, with the weakness
            "stale-endorsements", where newer ones cannot be had. Zero: not at all.
        refresh_before: How long before its end an answer is fetched anew. An answer that
            lives for a short time only is renewed in the last quarter of its life.
        refresh_after: Age at which what the vendor may have revised since is fetched anew.
        retry_after: For how long a request that failed is not repeated.
        timeout: Seconds for one request.
        budget: Seconds for all requests about one server; the last may exceed it by `timeout`.
        cache_entries: Answers kept at most.
        cache_bytes: Bytes of all answers kept at most.

    Raises:
        ConfigurationError: If an address is not https, or a number is out of range.
    """

    amd_kds: str | None = KDS
    intel_pcs: str | None = INTEL_PCS
    intel_root_crl: str | None = INTEL_ROOT_CRL
    nvidia_rim: str | None = NVIDIA_RIM
    nvidia_ocsp: str | None = NVIDIA_OCSP
    grace: timedelta = timedelta(hours=24)
    refresh_before: timedelta = timedelta(hours=6)
    refresh_after: timedelta = timedelta(hours=24)
    retry_after: timedelta = timedelta(minutes=1)
    timeout: float = 10.0
    budget: float = 20.0
    cache_entries: int = 256
    cache_bytes: int = 16 << 20

    def __post_init__(self) -> None:
        for name in _ADDRESSES:
            address = getattr(self, name)
            if address is not None:
                check_address(address, name)
        zero = timedelta(0)
        if not zero <= self.grace <= _MAX_GRACE:
            msg = f"grace: expected 0 to {_MAX_GRACE.days} days, found {self.grace}"
            raise ConfigurationError(msg)
        for name in ("refresh_before", "refresh_after", "retry_after"):
            if getattr(self, name) < zero:
                msg = f"{name}: expected no negative time, found {getattr(self, name)}"
                raise ConfigurationError(msg)
        for name in ("timeout", "budget", "cache_entries", "cache_bytes"):
            if not getattr(self, name) > 0:
                msg = f"{name}: expected more than 0, found {getattr(self, name)}"
                raise ConfigurationError(msg)


def check_address(address: str, name: str) -> None:
    """Refuse an address that is anything but https, a host and a path.

    Raises:
        ConfigurationError: If it is.
    """
    printable = address.isascii() and address.isprintable() and " " not in address
    try:
        parts = urlsplit(address if printable else "")
        fine = parts.scheme == "https" and parts.hostname and parts.port != 0
        fine = fine and not (parts.username or parts.password or parts.query or parts.fragment)
    except ValueError:
        fine = False
    if not fine:
        # Not repeated: an address may carry credentials.
        msg = f"{name}: expected https://host/path without user, query or fragment, found another"
        raise ConfigurationError(msg)
