"""A fake Azure confidential VM: a vTPM whose key a fake AMD or a fake Intel vouches for.

As in real life, the paravisor's runtime data is a JSON text with the attestation key, its
SHA-256 is in the hardware's report data, and the key (RSA) signs TPM quotes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from typing import TYPE_CHECKING, Final, Literal

from cryptography.hazmat.primitives.asymmetric import rsa

from blindai.attestation.model import Evidence, Platform
from blindai.platforms.azure import HARDWARE_REPORT_SIZE, SNP_REPORT, TDX_REPORT
from blindai.testing.fake_dcap import FakeIntelTDX
from blindai.testing.fake_sev_snp import FakeAMD
from blindai.testing.fake_tpm import FakeTPM

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from blindai.attestation.trust import Anchor

_NV_SIZE: Final = 2600
_VERSION: Final = 2
_REQUEST_TYPE: Final = 2
_SHA256: Final = 1
_RUNTIME_HEADER_SIZE: Final = 20


class FakeAzure:
    """A confidential VM in a fake Azure.

    Args:
        inside: What protects the VM: "sev-snp" or "tdx".

    Attributes:
        platform: `Platform.AZURE_VTPM`.
        anchors: The fake root of the hardware's vendor.
        now: A moment at which its evidence verifies.
        hardware: The vendor of the hardware.
        tpm: The vTPM; its own vendor's root counts for nothing here.
    """

    platform: Final = Platform.AZURE_VTPM

    def __init__(self, inside: Literal["sev-snp", "tdx"] = "sev-snp") -> None:
        self.tpm = FakeTPM("RSASSA")
        self.hardware: FakeAMD | FakeIntelTDX = FakeAMD() if inside == "sev-snp" else FakeIntelTDX()
        self.anchors: tuple[Anchor, ...] = tuple(self.hardware.anchors)
        self.now: datetime = self.hardware.now

    def attest(
        self,
        report_data: bytes,
        *,
        debug: bool = False,
        revoked: bool = False,
        issued_at: datetime | None = None,
        runtime_data: bytes | None = None,
        signed_digest: bytes | None = None,
        fields: Mapping[int, bytes] | None = None,
    ) -> Evidence:
        """Return a quote that carries `report_data` as its qualifying data.

        Args:
            report_data: At most 64 bytes.
            debug: Whether the host may debug the VM.
            revoked: Whether the hardware's endorsements are revoked.
            issued_at: When they were issued: neither report nor quote says a time.
            runtime_data: Instead of the JSON text that names the vTPM's key.
            signed_digest: What the hardware signs instead of the runtime data's SHA-256.
            fields: SEV-SNP only: offset → bytes, put into the report before it is signed.
        """
        data = self.runtime_data() if runtime_data is None else runtime_data
        digest = hashlib.sha256(data).digest() if signed_digest is None else signed_digest
        if isinstance(self.hardware, FakeAMD):
            inner = self.hardware.attest(
                digest, debug=debug, revoked=revoked, issued_at=issued_at, fields=fields
            )
            attachments = {**inner.attachments, "hcl_report": _pack(SNP_REPORT, inner.body, data)}
        else:
            inner = self.hardware.attest(digest, debug=debug, revoked=revoked, issued_at=issued_at)
            attachments = {
                **inner.attachments,
                "td_quote": inner.body,
                "hcl_report": _pack(TDX_REPORT, b"", data),
            }
        quote = self.tpm.attest(report_data, certified=False)
        own = {name: quote.attachments[name] for name in ("signature", "pcrs", "event_log")}
        return Evidence(Platform.AZURE_VTPM, quote.body, {**attachments, **own})

    def runtime_data(self) -> bytes:
        """Return the JSON text that names the vTPM's key, as the paravisor writes it."""
        key = self.tpm.key.public_key()
        numbers = key.public_numbers()
        if not isinstance(numbers, rsa.RSAPublicNumbers):
            return b"{}"
        return json.dumps(
            {
                "keys": [
                    {
                        "kid": "HCLAkPub",
                        "key_ops": ["sign"],
                        "kty": "RSA",
                        "e": _number(numbers.e),
                        "n": _number(numbers.n),
                    }
                ],
                "vm-configuration": {"console-enabled": False, "secure-boot": True},
                "user-data": "00" * 64,
            },
            separators=(",", ":"),
        ).encode()

    def signed_bytes(self, evidence: Evidence) -> list[range]:
        """Return the ranges of the body of which every flipped bit must be refused."""
        return [range(len(evidence.body))]


def _pack(kind: int, hardware_report: bytes, runtime_data: bytes) -> bytes:
    size = _RUNTIME_HEADER_SIZE + len(runtime_data)
    total = 32 + HARDWARE_REPORT_SIZE + size
    header = struct.pack("<4sIII16x", b"HCLA", _VERSION, total, _REQUEST_TYPE)
    runtime = struct.pack("<IIIII", size, 1, kind, _SHA256, len(runtime_data))
    report = hardware_report.ljust(HARDWARE_REPORT_SIZE, b"\0")
    return (header + report + runtime + runtime_data).ljust(_NV_SIZE, b"\0")


def _number(value: int) -> str:
    content = value.to_bytes((value.bit_length() + 7) // 8)
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
