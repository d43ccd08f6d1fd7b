"""AMD's endorsements: which to fetch for a report, and how to read what comes back.

Pure: `urls` says where AMD's Key Distribution Service keeps the chip's certificate, its
chain and the revocation list (AMD 57230 "VCEK Certificate and KDS Interface Specification"
§4); nothing here fetches. A VLEK is not public: the cloud provider hands it to the guest, in
the certificate table of an extended report (AMD 56421 "GHCB Specification" §4.1.8.1).
Certificate extensions: 57230 §3.1 for a VCEK, AMD 58369 for a VLEK. A reader here never
judges: a parsed leaf is genuine only once its chain is verified.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509

from blindai.attestation import certs
from blindai.attestation.reader import Reader
from blindai.errors import EvidenceError
from blindai.platforms.sev_snp.report import PRODUCTS, VCEK, VLEK, Product, Report

if TYPE_CHECKING:
    from collections.abc import Mapping

KDS: Final = "https://kdsintf.amd.com"
MAX_TABLE_BYTES: Final = 256 << 10
MAX_TABLE_ENTRIES: Final = 16
MAX_CRL_BYTES: Final = 256 << 10
KINDS: Final = {"SEV-VCEK": VCEK, "SEV-VLEK": VLEK}

OID_PRODUCT_NAME: Final = "1.3.6.1.4.1.3704.1.2"
OID_HWID: Final = "1.3.6.1.4.1.3704.1.4"
OID_CSP_ID: Final = "1.3.6.1.4.1.3704.1.5"
_OID_SPL: Final = "1.3.6.1.4.1.3704.1.3."
_TAG_INTEGER: Final = 0x02
_TAG_OCTETS: Final = 0x04
_TAG_IA5: Final = 0x16
_CHIP_ID_SIZES: Final = (8, 64)
# A DER length from here on says how many bytes hold the length.
_LONG_LENGTH: Final = 0x80
_MAX_SPL: Final = 0xFF

_GUID_CRL: Final = uuid.UUID("92f81bc3-5811-4d3d-97ff-d19f88dc67ea").bytes
_GUIDS_CERTIFICATE: Final = frozenset(
    uuid.UUID(guid).bytes
    for guid in (
        "63da758d-e664-4564-adc5-f4b93be8accd",  # VCEK
        "a8074bc2-a25a-483e-aae6-39c045a0b8a1",  # VLEK
        "4ab7b379-bbac-4fe4-a02f-05aef327c782",  # ASK, or ASVK
        "c0b406a4-a803-4952-9743-3fb6014cd0ae",  # ARK
    )
)
GUIDS: Final = _GUIDS_CERTIFICATE | {_GUID_CRL}


@dataclass(frozen=True, slots=True)
class EndorsementUrls:
    """Where AMD keeps what belongs to one report.

    Attributes:
        product: The generation that the addresses are for.
        leaf: The VCEK in DER; `None` where AMD gives it to nobody: a VLEK, a masked chip.
        chain: The ASK (or ASVK) and the ARK, in PEM.
        crl: The revocation list, in DER, signed by the ARK.
    """

    product: str
    leaf: str | None
    chain: str
    crl: str


@dataclass(frozen=True, slots=True)
class Leaf:
    """What a VCEK or VLEK certifies.

    Attributes:
        certificate: Itself.
        kind: `VCEK` or `VLEK`, by its subject.
        product: The product name extension, such as "Milan-B0".
        tcb: Security patch level by extension.
        chip_id: HWID of a VCEK: 64 bytes, 8 on Turin.
        csp_id: The cloud provider that a VLEK is leased to.
    """

    certificate: x509.Certificate
    kind: int
    product: str
    tcb: Mapping[str, int]
    chip_id: bytes | None
    csp_id: str | None

    def speaks_for(self, product: str) -> bool:
        """Return whether the product name is `product`, with or without a stepping."""
        return self.product == product or self.product.startswith(f"{product}-")

    def fits(self, report: Report) -> bool:
        """Return whether a report names the same key, chip and TCB; proves nothing."""
        named = next((p for p in PRODUCTS.values() if self.speaks_for(p.name)), None)
        return (
            named is not None
            and self.kind == report.signing_key
            and all(self.tcb.get(p.oid) == report.reported_tcb[p.offset] for p in named.tcb)
            and (self.chip_id is None or report.chip_id.startswith(self.chip_id))
        )


@dataclass(frozen=True, slots=True)
class CertificateTable:
    """What the host put beside an extended report.

    Attributes:
        certificates: All of them, in the order of the table.
        crl: The revocation list, if there is one.
    """

    certificates: tuple[x509.Certificate, ...]
    crl: x509.CertificateRevocationList | None


def urls(report: Report, base: str = KDS) -> tuple[EndorsementUrls, ...]:
    """Return where the endorsements of `report` are, one entry for each product it may be of.

    Args:
        report: From version 3 on it says its product; before, every product that it could
            be of is listed, and the leaf is to be had from one of them.
        base: Address of AMD's service, or of a cache of it, without a slash at the end.

    Raises:
        EvidenceError: If the report is of a product that nobody here knows.
    """
    kind = "vlek" if report.signing_key == VLEK else "vcek"
    return tuple(
        EndorsementUrls(
            product=product.name,
            leaf=_leaf_url(report, product, base) if kind == "vcek" else None,
            chain=f"{base}/{kind}/v1/{product.name}/cert_chain",
            crl=f"{base}/{kind}/v1/{product.name}/crl",
        )
        for product in candidates(report)
    )


def candidates(report: Report) -> tuple[Product, ...]:
    """Return the products that a report may be of.

    Raises:
        EvidenceError: If its CPUID is of none.
    """
    if report.cpuid is None:
        # Turin leaves the upper part of CHIP_ID zero; for others that would be a strange chip.
        used = max(len(report.chip_id.rstrip(b"\0")), min(_CHIP_ID_SIZES))
        return tuple(
            product
            for product in PRODUCTS.values()
            if report.chip_id_masked
            or (product.chip_id_size == min(_CHIP_ID_SIZES)) == (used == min(_CHIP_ID_SIZES))
        )
    family, model, _ = report.cpuid
    found = tuple(
        product
        for product in PRODUCTS.values()
        if any(family == f and model in models for f, models in product.cpuid)
    )
    if not found:
        known = ", ".join(PRODUCTS)
        msg = f"SNP report: CPUID family {family:#x} model {model:#x} is none of {known}"
        raise EvidenceError(msg)
    return found


def _leaf_url(report: Report, product: Product, base: str) -> str | None:
    if report.chip_id_masked:
        return None
    names = {"fmc": "fmc", "bootloader": "bl", "tee": "tee", "snp": "snp", "microcode": "ucode"}
    levels = "&".join(
        f"{names[part.name]}SPL={report.reported_tcb[part.offset]:02}"
        for part in product.tcb
        if part.name
    )
    chip = report.chip_id[: product.chip_id_size].hex()
    return f"{base}/vcek/v1/{product.name}/{chip}?{levels}"


def attachments(*, leaf: bytes, chain: bytes, crl: bytes | None = None) -> dict[str, bytes]:
    """Return what the addresses of `urls` answered, as attachments of evidence.

    Args:
        leaf: The VCEK or VLEK, DER or PEM.
        chain: Its issuers, PEM.
        crl: The revocation list, DER or PEM.

    Raises:
        EvidenceError: If one of them is malformed.
    """
    found = [*parse_certificates(leaf, "VCEK"), *parse_certificates(chain, "AMD chain")]
    made = {"certificates": b"".join(map(certs.der, found))}
    if crl is not None:
        parse_crl(crl)
        made["crl"] = crl
    return made


def parse_certificates(data: bytes, name: str) -> list[x509.Certificate]:
    """Read a PEM bundle, or certificates in DER one after the other; at most 8 of them.

    Raises:
        EvidenceError: If there is none, too many, or a malformed one.
    """
    if b"-----BEGIN CERTIFICATE-----" in data:
        return certs.parse_certificates(data, name)
    found: list[x509.Certificate] = []
    reader = Reader(data, name, byteorder="big")
    while reader.remaining or not found:
        if len(found) == certs.MAX_CHAIN:
            msg = f"{name}: at most {certs.MAX_CHAIN} certificates are accepted"
            raise EvidenceError(msg)
        # SEQUENCE with a length of two bytes: no real certificate is shorter or longer.
        header = reader.take(2, "certificate")
        if header != b"\x30\x82":
            msg = f"{name}: expected a certificate in DER or PEM, found {header.hex()}"
            raise EvidenceError(msg)
        size = reader.u16("length of a certificate")
        body = reader.take(size, "certificate")
        found.append(certs.parse_certificate(header + size.to_bytes(2, "big") + body, name))
    return found


def parse_crl(data: bytes) -> x509.CertificateRevocationList:
    """Read a revocation list in DER or PEM, of at most 256 KiB.

    Raises:
        EvidenceError: If it is too large or malformed.
    """
    if len(data) > MAX_CRL_BYTES:
        msg = f"AMD revocation list: {len(data)} bytes, at most {MAX_CRL_BYTES} are accepted"
        raise EvidenceError(msg)
    return certs.parse_crl(data, "AMD revocation list")


def parse_certificate_table(data: bytes) -> CertificateTable:
    """Read the certificate table of an extended report (configfs-tsm: `auxblob`).

    Args:
        data: At most 256 KiB: entries of GUID, offset and length, an entry of zeros, then
            the certificates. Entries with other GUIDs are passed over.

    Raises:
        EvidenceError: If it is malformed, or has more than 16 entries.
    """
    if len(data) > MAX_TABLE_BYTES:
        msg = f"certificate table: {len(data)} bytes, at most {MAX_TABLE_BYTES} are accepted"
        raise EvidenceError(msg)
    certificates: list[x509.Certificate] = []
    crl = None
    for guid, content in _table_entries(data):
        if guid in _GUIDS_CERTIFICATE:
            certificates += parse_certificates(content, "certificate table")
        elif guid == _GUID_CRL:
            crl = parse_crl(content)
    return CertificateTable(tuple(certificates), crl)


def _table_entries(data: bytes) -> list[tuple[bytes, bytes]]:
    reader = Reader(data, "certificate table")
    entries: list[tuple[bytes, bytes]] = []
    while any(guid := reader.take(16, "GUID")):
        offset, length = reader.u32("offset"), reader.u32("length")
        if len(entries) == MAX_TABLE_ENTRIES:
            msg = f"certificate table: at most {MAX_TABLE_ENTRIES} entries are accepted"
            raise EvidenceError(msg)
        content = data[offset : offset + length]
        if len(content) != length:
            msg = f"certificate table: an entry ends at {offset + length}, the table at {len(data)}"
            raise EvidenceError(msg)
        entries.append((guid, content))
    reader.zeros(8, "the last entry")
    return entries


def leaf_kind(certificate: x509.Certificate) -> int | None:
    """Return whether a certificate calls itself a VCEK or a VLEK, or `None` for neither."""
    return KINDS.get(common_name(certificate.subject))


def common_name(name: x509.Name) -> str:
    """Return the common name, or nothing where there is not exactly one that can be printed."""
    found = [str(a.value) for a in name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    return found[0] if len(found) == 1 and found[0].isprintable() else ""


def parse_leaf(certificate: x509.Certificate) -> Leaf:
    """Read AMD's extensions of a VCEK or VLEK.

    Raises:
        EvidenceError: If it is neither, or lacks an extension that its kind has, or has one
            that only the other kind has.
    """
    kind = leaf_kind(certificate)
    if kind is None:
        msg = f"expected a VCEK or VLEK, found {certs.name_of(certificate)}"
        raise EvidenceError(msg)
    values = {
        extension.oid.dotted_string: extension.value.value
        for extension in certificate.extensions
        if isinstance(extension.value, x509.UnrecognizedExtension)
    }
    if OID_PRODUCT_NAME not in values:
        msg = f"{certs.name_of(certificate)}: no product name"
        raise EvidenceError(msg)
    expected = OID_HWID if kind == VCEK else OID_CSP_ID
    if {OID_HWID, OID_CSP_ID} & set(values) != {expected}:
        msg = f"{certs.name_of(certificate)}: a VCEK names a chip, a VLEK a provider, none both"
        raise EvidenceError(msg)
    return Leaf(
        certificate=certificate,
        kind=kind,
        product=_parse_text(values[OID_PRODUCT_NAME], "product name"),
        tcb={
            oid: _parse_level(value, oid)
            for oid, value in values.items()
            if oid.startswith(_OID_SPL)
        },
        chip_id=_parse_chip_id(values[OID_HWID]) if kind == VCEK else None,
        csp_id=_parse_text(values[OID_CSP_ID], "CSP_ID") if kind == VLEK else None,
    )


def _parse_value(data: bytes, tag: int, field: str) -> bytes:
    reader = Reader(data, f"VCEK extension {field}")
    found, size = reader.u8("tag"), reader.u8("length")
    if found != tag or size >= _LONG_LENGTH:
        msg = f"VCEK extension {field}: expected DER tag {tag:#04x}, found {data[:2].hex()}"
        raise EvidenceError(msg)
    value = reader.take(size, "value")
    reader.end()
    return value


def _parse_text(data: bytes, field: str) -> str:
    value = _parse_value(data, _TAG_IA5, field)
    text = value.decode("latin-1")
    if not text.isascii() or not text.isprintable():
        msg = f"VCEK extension {field}: expected printable ASCII, found {value.hex()}"
        raise EvidenceError(msg)
    return text


def _parse_level(data: bytes, field: str) -> int:
    level = int.from_bytes(_parse_value(data, _TAG_INTEGER, field), "big", signed=True)
    if not 0 <= level <= _MAX_SPL:
        msg = f"VCEK extension {field}: expected 0 to {_MAX_SPL}, found {level}"
        raise EvidenceError(msg)
    return level


def _parse_chip_id(data: bytes) -> bytes:
    # Some certificates of 2023 wrap the identifier into an OCTET STRING, others do not.
    value = data
    if len(data) - 2 in _CHIP_ID_SIZES:
        value = _parse_value(data, _TAG_OCTETS, "HWID")
    if len(value) not in _CHIP_ID_SIZES:
        msg = f"VCEK extension HWID: expected 8 or 64 bytes, found {len(data)}"
        raise EvidenceError(msg)
    return value
