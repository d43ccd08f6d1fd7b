"""The SEV-SNP attestation report as bytes: what stands where, and nothing about trust.

Exactly 0x4A0 bytes, little-endian; versions 2 to 5 share one layout and differ in what they
leave zero (AMD 56860 "SEV Secure Nested Paging Firmware ABI" §7.3, table ATTESTATION_REPORT).
A report with a reserved field that is not zero is refused: a later revision of the format
may have given that field a meaning that a reader of today must not overlook. Fields have
AMD's names. TCB_VERSION (56860 §2.2) is kept as 8 bytes, since what they mean depends on the
product, and the product is only known once the certificate chain is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from blindai.attestation.reader import Reader
from blindai.errors import EvidenceError

REPORT_SIZE: Final = 0x4A0
SIGNED_SIZE: Final = 0x2A0
VERSIONS: Final = range(2, 6)
CPUID_SINCE: Final = 3
MITIGATIONS_SINCE: Final = 4

VCEK: Final = 0
VLEK: Final = 1
ECDSA_P384_SHA384: Final = 1

# Guest policy (56860 §4.3).
POLICY_SMT: Final = 1 << 16
POLICY_ONE: Final = 1 << 17
POLICY_MIGRATE_MA: Final = 1 << 18
POLICY_DEBUG: Final = 1 << 19
# Bit 25, PAGE_SWAP_DISABLE, is the last one with a meaning.
_POLICY_KNOWN: Final = (1 << 26) - 1

PLATFORM_SMT_EN: Final = 1 << 0
PLATFORM_ALIAS_CHECK_COMPLETE: Final = 1 << 5

_FLAG_AUTHOR_KEY: Final = 1 << 0
_FLAG_MASK_CHIP_KEY: Final = 1 << 1
_FLAGS_KNOWN: Final = 0x1F
# R and S have 72 bytes each, of which P-384 uses 48 (56860 §10, Signature Formats).
_SCALAR_SIZE: Final = 72
_SCALAR_USED: Final = 48


@dataclass(frozen=True, slots=True)
class TcbPart:
    """One security patch level of a TCB_VERSION.

    Attributes:
        offset: Byte of the TCB_VERSION that holds it.
        oid: Extension of a VCEK or VLEK that certifies it (57230 §3.1).
        name: Name of the claim; empty for a part that AMD reserves.
    """

    offset: int
    oid: str
    name: str


@dataclass(frozen=True, slots=True)
class Product:
    """What differs between generations of EPYC.

    Attributes:
        name: As in the subject of its ARK, "ARK-…".
        tcb: The parts of its TCB_VERSION.
        chip_id_size: How many bytes of CHIP_ID are used, and certified by a VCEK.
        cpuid: Family and models that its chains speak for.
    """

    name: str
    tcb: tuple[TcbPart, ...]
    chip_id_size: int
    cpuid: tuple[tuple[int, range], ...]


_SPL: Final = "1.3.6.1.4.1.3704.1.3."
_TCB: Final = (
    TcbPart(0, f"{_SPL}1", "bootloader"),
    TcbPart(1, f"{_SPL}2", "tee"),
    TcbPart(2, f"{_SPL}4", ""),
    TcbPart(3, f"{_SPL}5", ""),
    TcbPart(4, f"{_SPL}6", ""),
    TcbPart(5, f"{_SPL}7", ""),
    TcbPart(6, f"{_SPL}3", "snp"),
    TcbPart(7, f"{_SPL}8", "microcode"),
)
_TCB_TURIN: Final = (
    TcbPart(0, f"{_SPL}9", "fmc"),
    TcbPart(1, f"{_SPL}1", "bootloader"),
    TcbPart(2, f"{_SPL}2", "tee"),
    TcbPart(3, f"{_SPL}3", "snp"),
    TcbPart(4, f"{_SPL}5", ""),
    TcbPart(5, f"{_SPL}6", ""),
    TcbPart(6, f"{_SPL}7", ""),
    TcbPart(7, f"{_SPL}8", "microcode"),
)
PRODUCTS: Final = {
    product.name: product
    for product in (
        Product("Milan", _TCB, 64, ((0x19, range(0x10)),)),
        # Siena and Bergamo (models A0h to AFh) are endorsed by Genoa's root.
        Product("Genoa", _TCB, 64, ((0x19, range(0x10, 0x20)), (0x19, range(0xA0, 0xB0)))),
        Product("Turin", _TCB_TURIN, 8, ((0x1A, range(0x20)),)),
    )
}


@dataclass(frozen=True, slots=True)
class Report:
    """The fields of a report, untrusted until the signature is verified.

    Attributes:
        version: Of the format, 2 to 5.
        guest_svn: The guest's own security version, from its ID block.
        policy: Guest policy, 64 bits.
        family_id: 16 bytes of the guest's owner, from the ID block.
        image_id: 16 bytes of the guest's owner, from the ID block.
        vmpl: Privilege level that asked for the report; 0 is the most privileged.
        signature_algorithm: 1 for ECDSA P-384 with SHA-384.
        current_tcb: TCB_VERSION of the firmware that runs, 8 bytes.
        platform_info: PLATFORM_INFO, 64 bits.
        author_key_enabled: Whether `author_key_digest` says anything.
        chip_key_masked: MASK_CHIP_KEY: the firmware was told not to sign with the VCEK.
        signing_key: `VCEK` or `VLEK`; 7 for none.
        report_data: 64 bytes of the guest.
        measurement: 48 bytes: the launch digest.
        host_data: 32 bytes that the host gave at launch.
        id_key_digest: SHA-384 of the key that signed the ID block; zero without one.
        author_key_digest: SHA-384 of the key that signed the ID key; zero without one.
        report_id: 32 bytes that identify this guest.
        report_id_ma: The same of its migration agent; all ones without one.
        reported_tcb: The TCB_VERSION that the signing key is derived from, 8 bytes.
        cpuid: Family, model and stepping, extended ones included; `None` before version 3.
        chip_id: 64 bytes; zero where the operator masks it.
        committed_tcb: TCB_VERSION below which the firmware can no longer be rolled back.
        launch_tcb: TCB_VERSION that ran when the guest was launched or imported.
        signed: The bytes that the signature covers.
        r: Of the signature.
        s: Of the signature.
    """

    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    signature_algorithm: int
    current_tcb: bytes
    platform_info: int
    author_key_enabled: bool
    chip_key_masked: bool
    signing_key: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid: tuple[int, int, int] | None
    chip_id: bytes
    committed_tcb: bytes
    launch_tcb: bytes
    signed: bytes
    r: int
    s: int

    @property
    def policy_bytes(self) -> bytes:
        """The guest policy as it stands in the report."""
        return self.policy.to_bytes(8, "little")

    @property
    def chip_id_masked(self) -> bool:
        """Whether the operator had the chip's identity left out."""
        return not any(self.chip_id)


def parse_report(data: bytes) -> Report:
    """Read a report.

    Args:
        data: 0x4A0 bytes from an untrusted source.

    Raises:
        EvidenceError: If the size is another, the version is not known, or a field that
            has to be zero (bit 17 of the policy: one) is not.
    """
    if len(data) != REPORT_SIZE:
        msg = f"SNP report: expected {REPORT_SIZE} bytes, found {len(data)}"
        raise EvidenceError(msg)
    reader = Reader(data, "SNP report")
    version = reader.u32("VERSION")
    if version not in VERSIONS:
        msg = f"SNP report: expected version {VERSIONS[0]} to {VERSIONS[-1]}, found {version}"
        raise EvidenceError(msg)
    guest_svn, policy = reader.u32("GUEST_SVN"), _parse_policy(reader)
    family_id, image_id = reader.take(16, "FAMILY_ID"), reader.take(16, "IMAGE_ID")
    vmpl, signature_algorithm = reader.u32("VMPL"), reader.u32("SIGNATURE_ALGO")
    current_tcb, platform_info = reader.take(8, "CURRENT_TCB"), reader.u64("PLATFORM_INFO")
    flags = _parse_flags(reader)
    report_data = reader.take(64, "REPORT_DATA")
    measurement, host_data = reader.take(48, "MEASUREMENT"), reader.take(32, "HOST_DATA")
    id_key_digest = reader.take(48, "ID_KEY_DIGEST")
    author_key_digest = reader.take(48, "AUTHOR_KEY_DIGEST")
    report_id, report_id_ma = reader.take(32, "REPORT_ID"), reader.take(32, "REPORT_ID_MA")
    reported_tcb, cpuid = reader.take(8, "REPORTED_TCB"), _parse_cpuid(reader, version)
    chip_id, committed_tcb = reader.take(64, "CHIP_ID"), reader.take(8, "COMMITTED_TCB")
    for name in ("CURRENT", "COMMITTED"):
        reader.skip(3, f"{name}_BUILD, {name}_MINOR and {name}_MAJOR")
        reader.zeros(1, f"the byte after {name}_MAJOR")
    launch_tcb = reader.take(8, "LAUNCH_TCB")
    if version >= MITIGATIONS_SINCE:
        reader.skip(16, "LAUNCH_MIT_VECTOR and CURRENT_MIT_VECTOR")
    reader.zeros(SIGNED_SIZE - reader.position, "everything before the signature")
    r, s = _parse_scalar(reader, "R"), _parse_scalar(reader, "S")
    reader.zeros(reader.remaining, "everything after the signature")
    return Report(
        version=version,
        guest_svn=guest_svn,
        policy=policy,
        family_id=family_id,
        image_id=image_id,
        vmpl=vmpl,
        signature_algorithm=signature_algorithm,
        current_tcb=current_tcb,
        platform_info=platform_info,
        author_key_enabled=bool(flags & _FLAG_AUTHOR_KEY),
        chip_key_masked=bool(flags & _FLAG_MASK_CHIP_KEY),
        signing_key=flags >> 2,
        report_data=report_data,
        measurement=measurement,
        host_data=host_data,
        id_key_digest=id_key_digest,
        author_key_digest=author_key_digest,
        report_id=report_id,
        report_id_ma=report_id_ma,
        reported_tcb=reported_tcb,
        cpuid=cpuid,
        chip_id=chip_id,
        committed_tcb=committed_tcb,
        launch_tcb=launch_tcb,
        signed=bytes(data[:SIGNED_SIZE]),
        r=r,
        s=s,
    )


def _parse_policy(reader: Reader) -> int:
    policy = reader.u64("POLICY")
    if not policy & POLICY_ONE:
        msg = f"SNP report: bit 17 of POLICY must be one, found {policy:#x}"
        raise EvidenceError(msg)
    # An unknown bit may well be the next DEBUG.
    if policy & ~_POLICY_KNOWN:
        msg = f"SNP report: bits 26 to 63 of POLICY must be zero, found {policy:#x}"
        raise EvidenceError(msg)
    return policy


def _parse_flags(reader: Reader) -> int:
    flags = reader.u32("the flags before REPORT_DATA")
    if flags & ~_FLAGS_KNOWN:
        msg = f"SNP report: bits 5 to 31 of the flags must be zero, found {flags:#x}"
        raise EvidenceError(msg)
    reader.zeros(4, "the 4 bytes before REPORT_DATA")
    return flags


def _parse_cpuid(reader: Reader, version: int) -> tuple[int, int, int] | None:
    cpuid = None
    if version >= CPUID_SINCE:
        cpuid = (reader.u8("CPUID_FAM_ID"), reader.u8("CPUID_MOD_ID"), reader.u8("CPUID_STEP"))
        reader.zeros(21, "the 21 bytes after CPUID_STEP")
    else:
        reader.zeros(24, "the 24 bytes after REPORTED_TCB")
    return cpuid


def _parse_scalar(reader: Reader, name: str) -> int:
    value = reader.take(_SCALAR_USED, f"{name} of the signature")
    reader.zeros(_SCALAR_SIZE - _SCALAR_USED, f"the upper bytes of {name}")
    return int.from_bytes(value, "little")
