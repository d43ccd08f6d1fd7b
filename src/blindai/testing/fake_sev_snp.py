"""A fake AMD: signs SEV-SNP reports as a secure processor would.

Everything but the root is as in real life: an ARK and, under it, an ASK and an ASVK, all RSA
with PSS; a VCEK or VLEK on P-384 with AMD's extensions; a revocation list signed by the ARK;
reports of 0x4A0 bytes. Two things differ: RSA keys have 2048 bits instead of 4096, since
4096 take seconds to make, and leaves have a serial number other than 0, which `cryptography`
reads but does not write.
"""

from __future__ import annotations

import struct
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from blindai.attestation.certs import der, fingerprint
from blindai.attestation.model import Evidence, Platform
from blindai.attestation.trust import Anchor
from blindai.platforms.sev_snp.kds import OID_CSP_ID, OID_HWID, OID_PRODUCT_NAME
from blindai.platforms.sev_snp.report import (
    CPUID_SINCE,
    PLATFORM_ALIAS_CHECK_COMPLETE,
    POLICY_DEBUG,
    POLICY_ONE,
    PRODUCTS,
    REPORT_SIZE,
    SIGNED_SIZE,
    VCEK,
    VLEK,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_CPUID: Final = {
    "Milan": bytes([0x19, 0x01, 1]),
    "Genoa": bytes([0x19, 0x11, 1]),
    "Turin": bytes([0x1A, 0x02, 1]),
}
_TCB: Final = {
    "Milan": bytes([4, 0, 0, 0, 0, 0, 24, 219]),
    "Genoa": bytes([10, 0, 0, 0, 0, 0, 23, 84]),
    "Turin": bytes([1, 1, 1, 4, 0, 0, 0, 81]),
}
_GUIDS: Final = (
    "63da758d-e664-4564-adc5-f4b93be8accd",  # VCEK
    "4ab7b379-bbac-4fe4-a02f-05aef327c782",  # ASK
    "c0b406a4-a803-4952-9743-3fb6014cd0ae",  # ARK
)
_VLEK_GUID: Final = "a8074bc2-a25a-483e-aae6-39c045a0b8a1"
_ENTRY_SIZE: Final = 24
_REPORT_DATA_SIZE: Final = 64
_SCALAR_SIZE: Final = 72
_SCALAR_END: Final = 1 << 384
_ABI: Final = 55
_TCB_OFFSETS: Final = (0x38, 0x180, 0x1E0, 0x1F0)
_LEAF_LIFE: Final = timedelta(days=7 * 365)
_LIST_LIFE: Final = timedelta(days=365)
_SHA384: Final = hashes.SHA384()
_PSS: Final = padding.PSS(mgf=padding.MGF1(_SHA384), salt_length=48)


class FakeAMD:
    """A product line of AMD under a root of its own, and one chip of it.

    Its evidence carries no weakness but those that the product has: none for Genoa and Turin.

    Args:
        product: "Milan", "Genoa" or "Turin".
        version: Of the reports, 2 to 5.

    Attributes:
        platform: `Platform.SEV_SNP`.
        anchors: The fake ARK; pass it where the vendor's anchors would go.
        now: A moment at which its evidence verifies.
        chip_id: CHIP_ID of the chip, 64 bytes.
        tcb: TCB_VERSION of the chip, 8 bytes.
        csp_id: The cloud provider that its VLEKs are leased to.

    Example:
        >>> vendor = FakeAMD()
        >>> vendor.attest(bytes(32)).platform
        <Platform.SEV_SNP: 'sev-snp'>
    """

    platform: Final = Platform.SEV_SNP
    now: Final = datetime(2026, 6, 1, 12, tzinfo=UTC)
    csp_id: Final = "CN=test.example"

    def __init__(self, product: str = "Genoa", *, version: int = 3) -> None:
        self._product = PRODUCTS[product]
        self._version = version
        self.tcb = _TCB[product]
        size = self._product.chip_id_size
        self.chip_id = bytes(range(1, size + 1)).ljust(64, b"\0")
        self._root_key = rsa.generate_private_key(65537, 2048)
        self._issuer_key = rsa.generate_private_key(65537, 2048)
        self._leaf_keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        self.root = self._authority(f"ARK-{product}", self._root_key)
        self._issuers = {
            VCEK: self._authority(f"SEV-{product}", self._issuer_key),
            VLEK: self._authority(f"SEV-VLEK-{product}", self._issuer_key),
        }
        self.anchors: tuple[Anchor, ...] = (
            Anchor(f"ARK-{product}", fingerprint(self.root), "blindai.testing"),
        )

    def attest(
        self,
        report_data: bytes,
        *,
        debug: bool = False,
        revoked: bool = False,
        issued_at: datetime | None = None,
        measurement: bytes = b"\x5a" * 48,
        vlek: bool = False,
        fields: Mapping[int, bytes] | None = None,
        leaf: x509.Certificate | None = None,
        curve: ec.EllipticCurve | None = None,
    ) -> Evidence:
        """Return a signed report with its certificates and a revocation list.

        Args:
            report_data: At most 64 bytes; shorter ones are followed by zeros.
            debug: Whether the host may debug the guest.
            revoked: Whether the list revokes the ASK or ASVK.
            issued_at: When the leaf and the list were issued: a report itself says no time.
                Default: a day before `now`.
            measurement: 48 bytes.
            vlek: Whether a VLEK signs instead of the VCEK.
            fields: Offset → bytes, put into the report before it is signed.
            leaf: Certificate to attach instead of that of `certify`.
            curve: Of the signing key; anything but P-384 makes evidence to be refused.
        """
        moment = self.now - timedelta(days=1) if issued_at is None else issued_at
        kind = VLEK if vlek else VCEK
        key = self._leaf_key(curve)
        certificate = leaf or self.certify(vlek=vlek, issued_at=moment, curve=curve)
        chain = [certificate, self._issuers[kind], self.root]
        serials = [self._issuers[kind].serial_number] if revoked else []
        attachments = {
            "certificates": b"".join(c.public_bytes(Encoding.PEM) for c in chain),
            "crl": self.revocation_list(serials, issued_at=moment),
        }
        report = self._report(report_data, measurement, kind, debug=debug)
        for offset, content in (fields or {}).items():
            report[offset : offset + len(content)] = content
        return Evidence(Platform.SEV_SNP, _sign(bytes(report), key), attachments)

    def certify(
        self,
        *,
        vlek: bool = False,
        issued_at: datetime | None = None,
        curve: ec.EllipticCurve | None = None,
        tcb: bytes | None = None,
        chip_id: bytes | None = None,
        product_name: str | None = None,
    ) -> x509.Certificate:
        """Return a VCEK or VLEK for the chip's signing key.

        Args:
            vlek: Whether it is a VLEK.
            issued_at: When its life of seven years begins; default: a day before `now`.
            curve: Of the signing key.
            tcb: TCB_VERSION that it is for; default: the chip's.
            chip_id: HWID of a VCEK; default: the chip's.
            product_name: Default: that of the product.
        """
        moment = self.now - timedelta(days=1) if issued_at is None else issued_at
        kind = VLEK if vlek else VCEK
        builder = _builder("SEV-VLEK" if vlek else "SEV-VCEK", moment, moment + _LEAF_LIFE)
        builder = builder.issuer_name(self._issuers[kind].subject)
        builder = builder.public_key(self._leaf_key(curve).public_key())
        name = self._product.name if product_name is None else product_name
        values = {OID_PRODUCT_NAME: _text(name)}
        for part in self._product.tcb:
            values[part.oid] = _integer((tcb or self.tcb)[part.offset])
        if vlek:
            values[OID_CSP_ID] = _text(self.csp_id)
        else:
            values[OID_HWID] = chip_id or self.chip_id[: self._product.chip_id_size]
        for oid, value in values.items():
            extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(self._issuer_key, _SHA384, rsa_padding=_PSS)

    def revocation_list(
        self, serials: Sequence[int] = (), *, issued_at: datetime | None = None
    ) -> bytes:
        """Return the ARK's revocation list in DER, current for a year from `issued_at`."""
        moment = self.now - timedelta(days=1) if issued_at is None else issued_at
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._root_key.public_key())
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.root.subject)
            .last_update(moment)
            .next_update(moment + _LIST_LIFE)
            .add_extension(x509.CRLNumber(1), critical=False)
            .add_extension(identifier, critical=False)
        )
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(moment)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self._root_key, _SHA384, rsa_padding=_PSS).public_bytes(Encoding.DER)

    def signed_bytes(self, evidence: Evidence) -> list[range]:
        """Return the ranges of the body of which every flipped bit must be refused: all of it.

        What the signature does not cover has to be zero.
        """
        return [range(len(evidence.body))]

    def _leaf_key(self, curve: ec.EllipticCurve | None) -> ec.EllipticCurvePrivateKey:
        chosen = curve or ec.SECP384R1()
        if chosen.name not in self._leaf_keys:
            self._leaf_keys[chosen.name] = ec.generate_private_key(chosen)
        return self._leaf_keys[chosen.name]

    def _authority(self, name: str, key: rsa.RSAPrivateKey) -> x509.Certificate:
        root = key is self._root_key
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=root,
            encipher_only=False,
            decipher_only=False,
        )
        year = timedelta(days=365)
        builder = _builder(name, self.now - 3 * year, self.now + 22 * year)
        return (
            builder.issuer_name(_name(f"ARK-{self._product.name}"))
            .public_key(key.public_key())
            .add_extension(usage, critical=True)
            .add_extension(
                x509.BasicConstraints(ca=True, path_length=None if root else 0), critical=True
            )
            .sign(self._root_key, _SHA384, rsa_padding=_PSS)
        )

    def _report(
        self, report_data: bytes, measurement: bytes, kind: int, *, debug: bool
    ) -> bytearray:
        policy = POLICY_ONE | _ABI | (POLICY_DEBUG if debug else 0)
        report = bytearray(REPORT_SIZE)
        struct.pack_into("<IIQ", report, 0x00, self._version, 0, policy)
        struct.pack_into("<I", report, 0x34, 1)
        struct.pack_into("<QI", report, 0x40, PLATFORM_ALIAS_CHECK_COMPLETE, kind << 2)
        report[0x50:0x90] = report_data.ljust(_REPORT_DATA_SIZE, b"\0")
        report[0x90:0xC0] = measurement
        report[0x140:0x160] = b"\x1d" * 32
        report[0x160:0x180] = b"\xff" * 32
        if self._version >= CPUID_SINCE:
            report[0x188:0x18B] = _CPUID[self._product.name]
        if kind == VCEK:
            report[0x1A0:0x1E0] = self.chip_id
        for offset in _TCB_OFFSETS:
            report[offset : offset + 8] = self.tcb
        return report


def pack_certificate_table(chain: Sequence[x509.Certificate], *, vlek: bool = False) -> bytes:
    """Return a certificate table as the host puts it beside an extended report.

    Args:
        chain: The leaf, its issuer and the root.
        vlek: Whether the leaf is a VLEK.
    """
    guids = (_VLEK_GUID, *_GUIDS[1:]) if vlek else _GUIDS
    contents = [der(certificate) for certificate in chain]
    offset = _ENTRY_SIZE * (len(contents) + 1)
    entries = b""
    for guid, content in zip(guids, contents, strict=True):
        entries += uuid.UUID(guid).bytes + struct.pack("<II", offset, len(content))
        offset += len(content)
    return entries + bytes(_ENTRY_SIZE) + b"".join(contents)


def _sign(report: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    signed = report[:SIGNED_SIZE]
    pair = decode_dss_signature(key.sign(signed, ec.ECDSA(_SHA384)))
    # A larger curve's numbers do not fit; cutting them is fine for what is to be refused.
    signature = b"".join((n % _SCALAR_END).to_bytes(_SCALAR_SIZE, "little") for n in pair)
    return signed + signature + report[SIGNED_SIZE + len(signature) :]


def _builder(name: str, not_before: datetime, not_after: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Fake Micro Devices"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _text(value: str) -> bytes:
    return bytes([0x16, len(value)]) + value.encode("ascii")


def _integer(value: int) -> bytes:
    content = value.to_bytes(value.bit_length() // 8 + 1, "big")
    return bytes([0x02, len(content)]) + content
