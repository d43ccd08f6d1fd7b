"""A fake NVIDIA: signs attestation reports as a GPU would.

Everything but the roots is as in real life: five certificates on P-384 from the device root
down to the firmware's key, 64 measurements, OCSP responses by the certificates' issuers, and
signed reference measurements under a root of their own.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import itertools
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import NameOID

from blindai.attestation.certs import der, fingerprint
from blindai.attestation.model import Evidence, Platform
from blindai.attestation.trust import Anchor
from blindai.platforms.nvidia import RIM_ROOT_NAME
from blindai.platforms.nvidia.device import DEVICE_INFO, SHA384_OID, TCB_INFO
from blindai.platforms.nvidia.report import NONCE_SIZE, SIGNATURE_SIZE
from blindai.platforms.nvidia.rim import SHA384_HASHES, SWID
from blindai.platforms.nvidia.xmldsig import (
    C14N_11,
    DS,
    ECDSA_SHA384,
    ENVELOPED,
    SHA384,
    canonicalize,
    parse_xml,
)

Signer = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]

_MEASUREMENTS: Final = 64
_BEGINNING: Final = datetime(2022, 1, 1, tzinfo=UTC)
NEVER: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_OCSP_LIFE: Final = timedelta(days=1)
# fixedWidth alone, and with debug.
_FLAGS_NORMAL: Final = bytes.fromhex("870500 00000001")
_FLAGS_DEBUG: Final = bytes.fromhex("870500 10000001")


class FakeNVIDIA:
    """NVIDIA with one GPU, under roots of its own.

    Args:
        not_after: When its device certificates expire; real ones never do.
        curve: Of the device's own key; real ones are on P-384.

    Attributes:
        platform: `Platform.NVIDIA_GPU`.
        anchors: The fake device root and the fake root of reference measurements.
        now: A moment at which its reports verify.

    Example:
        >>> vendor = FakeNVIDIA()
        >>> vendor.attest(bytes(32)).platform
        <Platform.NVIDIA_GPU: 'nvidia-gpu'>
    """

    platform: Final = Platform.NVIDIA_GPU
    now: Final = datetime(2026, 6, 1, 12, tzinfo=UTC)

    def __init__(
        self, *, not_after: datetime = NEVER, curve: ec.EllipticCurve | None = None
    ) -> None:
        self._not_after = not_after
        self._curve = curve or ec.SECP384R1()
        self._fwid = hashlib.sha384(b"fake firmware").digest()
        root = self._issue("NVIDIA Device Identity CA", None)
        identity = self._issue("NVIDIA GH100 Identity", root)
        provisioner = self._issue("NVIDIA GH100 Provisioner ICA 1", identity)
        self._authorities = [provisioner, identity, root]
        self._rim_root = self._issue(RIM_ROOT_NAME, None)
        self._rim_signer = self._issue("Fake RIM Signer", self._rim_root, leaf=True)
        self._use_chip("48B02D0000000001")
        self.anchors: tuple[Anchor, ...] = (
            Anchor("Fake NVIDIA Device Identity CA", fingerprint(root[0]), "blindai.testing"),
            Anchor(RIM_ROOT_NAME, fingerprint(self._rim_root[0]), "blindai.testing"),
        )

    def another_chip(self) -> FakeNVIDIA:
        """Return the same vendor with another GPU: same roots, another device key."""
        other = copy.copy(self)
        other._use_chip("48B02D0000000002")  # noqa: SLF001 (the same class)
        return other

    def attest(
        self,
        report_data: bytes,
        *,
        debug: bool = False,
        revoked: bool = False,
        issued_at: datetime | None = None,
        driver_version: str = "550.90.07",
        vbios_version: str = "96.00.9F.00.01",
        changed: frozenset[int] = frozenset(),
        fwid: bytes | None = None,
        attach: frozenset[str] = frozenset({"ocsp", "rim_driver", "rim_vbios"}),
    ) -> Evidence:
        """Return a report that answers the nonce `report_data`.

        Args:
            report_data: The nonce, 32 bytes.
            debug: Whether the certificate says that the chip is in debug mode.
            revoked: Whether the chip's certificate is on hold.
            issued_at: When the OCSP responses begin to hold, for a day; default: `now`. A
                report itself carries no time.
            driver_version: As the report and its reference measurements state it.
            vbios_version: As the report and its reference measurements state it.
            changed: Measurements, counted from 0, that are not as released.
            fwid: The firmware id that the report states; default: the certificate's.
            attach: What is attached beside the chain.
        """
        leaf = self._debug_leaf if debug else self._leaf
        chain = [leaf, self._brom, *self._authorities]
        values = [
            hashlib.sha384(f"{i}{' changed' * (i in changed)}".encode()).digest()
            for i in range(_MEASUREMENTS)
        ]
        opaque = (
            _field(6, _vbios_bytes(vbios_version))
            + _field(3, driver_version.encode() + b"\0")
            + _field(11, b"\xaa")
            + _field(20, fwid or self._fwid)
        )
        signed = _request(report_data) + _response(values, opaque)
        half = _MEASUREMENTS // 2
        optional = {
            "ocsp": self._ocsp(chain, revoked=revoked, start=issued_at or self.now),
            "rim_driver": self.sign_rim(driver_version, range(half)),
            "rim_vbios": self.sign_rim(vbios_version, range(half, _MEASUREMENTS)),
        }
        return Evidence(
            platform=self.platform,
            body=signed + _sign(leaf[1], signed),
            attachments={
                "chain": b"".join(c.public_bytes(Encoding.PEM) for c, _ in chain),
                **{name: value for name, value in optional.items() if name in attach},
            },
        )

    def signed_bytes(self, evidence: Evidence) -> list[range]:
        """Return where a flipped bit of the body must be refused: everywhere."""
        return [range(len(evidence.body))]

    def sign_rim(self, version: str, indexes: range) -> bytes:
        """Return signed reference measurements of a driver or VBIOS version.

        Args:
            version: Of the driver or VBIOS.
            indexes: The measurements, counted from 0, that it speaks about.
        """
        rows = "".join(
            f'  <s:Resource type="Measurement" index="{i}" active="{i in indexes}"'
            f' alternatives="1" h:Hash0="{hashlib.sha384(str(i).encode()).hexdigest()}"'
            f' name="Measurement_{i}" size="48"/>\n'
            for i in range(_MEASUREMENTS)
        )
        head = (
            f'<SoftwareIdentity xmlns="{SWID}" xmlns:s="{SWID}" xmlns:h="{SHA384_HASHES}"'
            f' name="GH100">\n<s:Meta colloquialVersion="{version}" edition="GPU"/>\n'
            f"<s:Payload>\n{rows}</s:Payload>\n"
        )
        return self._sign_xml(head, "</SoftwareIdentity>")

    def _sign_xml(self, head: str, tail: str) -> bytes:
        digest = hashlib.sha384(canonicalize(parse_xml((head + tail).encode()))).digest()
        info = (
            f'<d:SignedInfo><d:CanonicalizationMethod Algorithm="{C14N_11}"/>'
            f'<d:SignatureMethod Algorithm="{ECDSA_SHA384}"/><d:Reference URI=""><d:Transforms>'
            f'<d:Transform Algorithm="{ENVELOPED}"/><d:Transform Algorithm="{C14N_11}"/>'
            f'</d:Transforms><d:DigestMethod Algorithm="{SHA384}"/>'
            f"<d:DigestValue>{_base64(digest)}</d:DigestValue></d:Reference></d:SignedInfo>"
        )
        signature = f'{head}<d:Signature xmlns:d="{DS}">{info}'
        closing = f"</d:Signature>{tail}"
        unsigned = parse_xml((signature + closing).encode())
        value = _sign(self._rim_signer[1], canonicalize(unsigned.elements[-1].elements[0]))
        certificates = "".join(
            f"<d:X509Certificate>{_base64(der(c))}</d:X509Certificate>"
            for c, _ in (self._rim_signer, self._rim_root)
        )
        return (
            f"{signature}<d:SignatureValue>{_base64(value)}</d:SignatureValue>"
            f"<d:KeyInfo><d:X509Data>{certificates}</d:X509Data></d:KeyInfo>{closing}"
        ).encode()

    def _use_chip(self, serial: str) -> None:
        self._brom = self._issue("GH100 A01 GSP BROM", self._authorities[0])
        self._leaf = self._issue("GH100 A01 GSP FMC LF", self._brom, leaf=True, serial=serial)
        self._debug_leaf = self._issue(
            "GH100 A01 GSP FMC LF", self._brom, leaf=True, serial=serial, flags=_FLAGS_DEBUG
        )

    def _issue(
        self,
        name: str,
        issuer: Signer | None,
        *,
        leaf: bool = False,
        serial: str | None = None,
        flags: bytes = _FLAGS_NORMAL,
    ) -> Signer:
        key = ec.generate_private_key(self._curve if leaf and serial else ec.SECP384R1())
        subject = _name(name)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer[0].subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_BEGINNING)
            .not_valid_after(self._not_after)
            .add_extension(_key_usage(leaf=leaf), critical=True)
        )
        if not leaf:
            builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)  # noqa: FBT003
        if serial:
            device = x509.OtherName(DEVICE_INFO, _element(0x0C, f"NVIDIA:GH100:{serial}".encode()))
            tcb_info = x509.UnrecognizedExtension(TCB_INFO, _tcb_info(self._fwid, flags))
            builder = builder.add_extension(
                x509.SubjectAlternativeName([device]), critical=False
            ).add_extension(tcb_info, critical=False)
        return builder.sign(issuer[1] if issuer else key, hashes.SHA384()), key

    def _ocsp(self, chain: list[Signer], *, revoked: bool, start: datetime) -> bytes:
        """Return a response for each certificate but the device's own and the root."""
        responses = []
        pairs = [*itertools.pairwise(chain[1:]), (self._rim_signer, self._rim_root)]
        for subject, issuer in pairs:
            bad = revoked and subject is self._brom
            response = (
                ocsp.OCSPResponseBuilder()
                .add_response(
                    cert=subject[0],
                    issuer=issuer[0],
                    algorithm=hashes.SHA1(),  # noqa: S303 (names the issuer, as NVIDIA's does)
                    cert_status=ocsp.OCSPCertStatus.REVOKED if bad else ocsp.OCSPCertStatus.GOOD,
                    this_update=start,
                    next_update=start + _OCSP_LIFE,
                    revocation_time=start if bad else None,
                    revocation_reason=x509.ReasonFlags.certificate_hold if bad else None,
                )
                .responder_id(ocsp.OCSPResponderEncoding.HASH, issuer[0])
                .sign(issuer[1], hashes.SHA384())
            )
            responses.append(response.public_bytes(Encoding.DER))
        return b"".join(responses)


def _request(nonce: bytes) -> bytes:
    if len(nonce) != NONCE_SIZE:
        msg = f"a nonce of {NONCE_SIZE} bytes is expected, found {len(nonce)}"
        raise ValueError(msg)
    return bytes.fromhex("11e001ff") + nonce + b"\0"


def _response(values: list[bytes], opaque: bytes) -> bytes:
    record = b"".join(
        bytes([index, 1])
        + (len(value) + 3).to_bytes(2, "little")
        + b"\1"
        + len(value).to_bytes(2, "little")
        + value
        for index, value in enumerate(values, 1)
    )
    return (
        bytes.fromhex("11600000")
        + bytes([len(values)])
        + len(record).to_bytes(3, "little")
        + record
        + hashlib.sha256(record).digest()  # the device's nonce, of which nothing depends
        + len(opaque).to_bytes(2, "little")
        + opaque
    )


def _field(number: int, value: bytes) -> bytes:
    return number.to_bytes(2, "little") + len(value).to_bytes(2, "little") + value


def _vbios_bytes(version: str) -> bytes:
    parts = bytes.fromhex(version.replace(".", ""))
    return bytes(reversed(parts[:4])) + parts[4:] + bytes(3)


def _sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA384())))
    half = SIGNATURE_SIZE // 2
    return r.to_bytes(half, "big") + s.to_bytes(half, "big")


def _tcb_info(fwid: bytes, flags: bytes) -> bytes:
    entry = _element(0x30, SHA384_OID + _element(0x04, fwid))
    return _element(0x30, _element(0x80, b"NVIDIA") + _element(0xA6, entry) + flags)


def _element(tag: int, content: bytes) -> bytes:
    size = len(content)
    return bytes([tag, size] if size < 0x80 else [tag, 0x81, size]) + content  # noqa: PLR2004 (DER)


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Fake NVIDIA"),
        ]
    )


def _key_usage(*, leaf: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=leaf,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=not leaf,
        crl_sign=not leaf,
        encipher_only=False,
        decipher_only=False,
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
