"""The vendors' roots, pinned by SHA-256 of the certificate's DER.

No certificate is shipped: chains come with the evidence or from the vendor, and count only
if they end at one of these fingerprints. Anchors are a parameter of every verification, so
that tests bring roots of their own; nothing reads them from a file or the environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from blindai.attestation.model import Platform


@dataclass(frozen=True, slots=True)
class Anchor:
    """A root of trust.

    Attributes:
        name: The vendor's name of the root.
        sha256: SHA-256 of the root certificate's DER; for simulation, of the public key.
        source: The vendor's document or address that publishes it.
    """

    name: str
    sha256: bytes
    source: str


Anchors = Mapping[Platform, tuple[Anchor, ...]]


def _anchor(name: str, fingerprint: str, source: str) -> Anchor:
    return Anchor(name, bytes.fromhex(fingerprint), source)


_INTEL = (
    _anchor(
        "Intel SGX Root CA",
        "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3",
        "Intel SGX PCK Certificate and CRL Profile Specification §2",
    ),
)
_AMD = (
    _anchor(
        "ARK-Milan",
        "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",
        "AMD VCEK Certificate and KDS Interface Specification (57230) §4.1, Milan",
    ),
    _anchor(
        "ARK-Genoa",
        "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",
        "AMD VCEK Certificate and KDS Interface Specification (57230) §4.1, Genoa",
    ),
    _anchor(
        "ARK-Turin",
        "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",
        "AMD VCEK Certificate and KDS Interface Specification (57230) §4.1, Turin",
    ),
)
_TPM = (
    _anchor(
        "Google EK/AK CA Root",
        "594759594b9b61524f6c8ef668f7177f7b9066bc0674f2f49fe9e052be78beb2",
        "Google Cloud, Shielded VM: EK/AK CA root certificate",
    ),
    _anchor(
        "Azure Virtual TPM Root CA 2023",
        "e6c596b17f8ffefba5c300f714cfb1260c6028704ecf7becc4ab5018efb00e95",
        "Microsoft Azure, Trusted Launch FAQ: vTPM root certificate",
    ),
)

VENDOR_ROOTS: Final[Anchors] = {
    # SHA-256 of the raw Ed25519 public key whose private half everybody knows.
    Platform.SIMULATION: (
        _anchor(
            "BlindAI simulation key (public, proves nothing)",
            "efb3f7ba893c97c89654d06d3b13c7ded30e90050b2f4cc29899af60bb405599",
            "blindai.attesters.simulation",
        ),
    ),
    Platform.SGX: _INTEL,
    Platform.TDX: _INTEL,
    Platform.SEV_SNP: _AMD,
    Platform.NITRO: (
        _anchor(
            "AWS Nitro Enclaves Root G1",
            "641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b",
            "AWS Nitro Enclaves User Guide, Verifying the root of trust",
        ),
    ),
    Platform.TPM: _TPM,
    Platform.AZURE_VTPM: (*_AMD, *_INTEL, *_TPM),
    Platform.NVIDIA_GPU: (
        _anchor(
            "NVIDIA Device Identity CA",
            "102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48",
            "NVIDIA Attestation, device certificate chain",
        ),
        # Signs reference measurements, never devices: nvidia.verifier keeps the two apart.
        _anchor(
            "NVIDIA CoRIM signing Root CA",
            "12977b5115acb0381179279fffeb5a8c4d264971ebb32298023a465fa41df5d1",
            "NVIDIA Attestation, reference integrity manifest certificate chain",
        ),
    ),
}
