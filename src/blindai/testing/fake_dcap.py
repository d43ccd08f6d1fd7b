"""A fake Intel that signs SGX and TDX quotes of the real format, for tests without hardware.

Its chain, collateral and quotes have the form of Intel's, down to the SGX extensions of the
PCK certificate; only its root is its own. So they verify only where that root is passed as
an anchor. Collateral is issued anew for every quote.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from blindai.attestation.certs import fingerprint
from blindai.attestation.model import Evidence, Platform
from blindai.attestation.trust import Anchor
from blindai.testing.fake_pck import FMSPC, PCESVN, SVNS, certify, revoke, sgx_extensions

if TYPE_CHECKING:
    from cryptography import x509

_NOW: Final = datetime(2026, 1, 15, 12, tzinfo=UTC)
_QE_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_PEM_START: Final = b"-----BEGIN CERTIFICATE-----"


class _FakeIntel:
    """What fake SGX and fake TDX share: a chain, collateral, and the signatures of a quote."""

    platform: Platform
    _tee_type: int
    _ids: tuple[str, str]
    _qe_product: int

    def __init__(
        self,
        *,
        flags: frozenset[str] = frozenset(),
        pck_curve: ec.EllipticCurve | None = None,
    ) -> None:
        """Make fresh keys and certificates.

        Args:
            flags: Those of "smt", "cached-keys" and "dynamic-platform" that the PCK
                certificate says of the platform.
            pck_curve: Curve of the PCK key, P-256 unless told; others must be refused.
        """
        self.now = _NOW
        self._root_key = ec.generate_private_key(ec.SECP256R1())
        self.root = certify("Intel SGX Root CA", self._root_key, None, ca=1)
        self._ca_key = ec.generate_private_key(ec.SECP256R1())
        root = (self.root, self._root_key)
        self._ca = certify("Intel SGX PCK Platform CA", self._ca_key, root, ca=0)
        self._tcb_key = ec.generate_private_key(ec.SECP256R1())
        self._tcb_signer = certify("Intel SGX TCB Signing", self._tcb_key, root)
        self._pck_key = ec.generate_private_key(pck_curve or ec.SECP256R1())
        self._pck = self._certify_pck(self._pck_key, flags)
        self._attestation_key = ec.generate_private_key(ec.SECP256R1())
        self.anchors = (
            Anchor("fake Intel root", fingerprint(self.root), "blindai.testing.fake_dcap"),
        )

    def signed_bytes(self, evidence: Evidence) -> list[range]:
        """Return the ranges of `evidence.body` of which any flipped bit must be refused.

        All but the certificates: their PEM armour is not signed.
        """
        return [range(evidence.body.index(_PEM_START))]

    def _evidence(
        self,
        version: int,
        body: bytes,
        *,
        revoked: bool,
        issued_at: datetime | None,
        tcb_status: str,
        advisories: tuple[str, ...],
        another_chip: bool,
    ) -> Evidence:
        quote = self._quote(version, body, another_chip=another_chip)
        issued = issued_at or self.now - timedelta(days=1)
        collateral = self._collateral(issued, tcb_status, advisories, revoked=revoked)
        return Evidence(self.platform, quote, {"collateral": json.dumps(collateral).encode()})

    def _quote(self, version: int, body: bytes, *, another_chip: bool) -> bytes:
        header = b"".join(
            [
                version.to_bytes(2, "little"),
                (2).to_bytes(2, "little"),
                self._tee_type.to_bytes(4, "little"),
                bytes(4),
                _QE_VENDOR,
                bytes(20),
            ]
        )
        point = self._attestation_key.public_key().public_bytes(
            Encoding.X962, PublicFormat.UncompressedPoint
        )[1:]
        auth_data = bytes(range(32))
        qe_report = sgx_report(
            hashlib.sha256(point + auth_data).digest() + bytes(32),
            attributes=0x15,
            mrsigner=_digest("quoting enclave's signer"),
            isv_prod_id=self._qe_product,
            isv_svn=8,
        )
        pck = self._pck
        if another_chip:
            pck = self._certify_pck(ec.generate_private_key(ec.SECP256R1()), frozenset())
        certificates = b"".join(_pem(c).encode() for c in (pck, self._ca, self.root)) + b"\0"
        certification = b"".join(
            [
                qe_report,
                _sign(self._pck_key, qe_report),
                len(auth_data).to_bytes(2, "little") + auth_data,
                (5).to_bytes(2, "little"),
                len(certificates).to_bytes(4, "little") + certificates,
            ]
        )
        if version > 3:  # noqa: PLR2004 - the envelope came with version 4
            envelope = (6).to_bytes(2, "little") + len(certification).to_bytes(4, "little")
            certification = envelope + certification
        signed = header + body
        data = _sign(self._attestation_key, signed) + point + certification
        return signed + len(data).to_bytes(4, "little") + data

    def _collateral(
        self, issued: datetime, status: str, advisories: tuple[str, ...], *, revoked: bool
    ) -> dict[str, str]:
        chain = _pem(self._tcb_signer) + _pem(self.root)
        tcb_info = json.dumps(self._tcb_info(issued, status, advisories))
        identity = json.dumps(self._qe_identity(issued))
        serials = [self._pck.serial_number] if revoked else []
        return {
            "pck_crl_issuer_chain": _pem(self._ca) + _pem(self.root),
            "root_ca_crl": revoke(self.root, self._root_key, issued, []).hex(),
            "pck_crl": revoke(self._ca, self._ca_key, issued, serials).hex(),
            "tcb_info_issuer_chain": chain,
            "tcb_info": tcb_info,
            "tcb_info_signature": _sign(self._tcb_key, tcb_info.encode()).hex(),
            "qe_identity_issuer_chain": chain,
            "qe_identity": identity,
            "qe_identity_signature": _sign(self._tcb_key, identity.encode()).hex(),
        }

    def _tcb_info(
        self, issued: datetime, status: str, advisories: tuple[str, ...]
    ) -> dict[str, object]:
        level: dict[str, object] = {
            "tcb": {
                "sgxtcbcomponents": [{"svn": svn} for svn in SVNS],
                "pcesvn": PCESVN,
                **self._tdx_components(),
            },
            "tcbDate": "2025-05-14T00:00:00Z",
            "tcbStatus": status,
        }
        if advisories:
            level["advisoryIDs"] = list(advisories)
        return {
            "id": self._ids[0],
            "version": 3,
            **_dates(issued),
            "fmspc": FMSPC.hex().upper(),
            "pceId": "0000",
            "tcbType": 0,
            "tcbEvaluationDataNumber": 20,
            **self._tdx_modules(),
            "tcbLevels": [level],
        }

    def _qe_identity(self, issued: datetime) -> dict[str, object]:
        return {
            "id": self._ids[1],
            "version": 2,
            **_dates(issued),
            "tcbEvaluationDataNumber": 20,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": "11000000000000000000000000000000",
            "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
            "mrsigner": _digest("quoting enclave's signer").hex().upper(),
            "isvprodid": self._qe_product,
            "tcbLevels": [
                {
                    "tcb": {"isvsvn": 8},
                    "tcbDate": "2025-05-14T00:00:00Z",
                    "tcbStatus": "UpToDate",
                }
            ],
        }

    def _tdx_components(self) -> dict[str, object]:
        return {}

    def _tdx_modules(self) -> dict[str, object]:
        return {}

    def _certify_pck(
        self, key: ec.EllipticCurvePrivateKey, flags: frozenset[str]
    ) -> x509.Certificate:
        extension = sgx_extensions(_digest("ppid")[:16], _digest("piid")[:16], flags)
        issuer = (self._ca, self._ca_key)
        return certify("Intel SGX PCK Certificate", key, issuer, extension=extension)


class FakeIntelSGX(_FakeIntel):
    """A fake Intel whose enclaves sign SGX quotes of version 3.

    Attributes:
        platform: `Platform.SGX`.
        anchors: Its root.
        now: A fixed moment at which its evidence verifies.
        root: Its root certificate.
    """

    platform = Platform.SGX
    _tee_type = 0x00
    _ids = ("SGX", "QE")
    _qe_product = 1

    def attest(
        self,
        report_data: bytes,
        *,
        debug: bool = False,
        revoked: bool = False,
        issued_at: datetime | None = None,
        tcb_status: str = "UpToDate",
        advisories: tuple[str, ...] = (),
        another_chip: bool = False,
        kss: bool = False,
    ) -> Evidence:
        """Return the evidence of an enclave.

        Args:
            report_data: At most 64 bytes; zeros are added.
            debug: Whether the enclave is in debug mode.
            revoked: Whether the PCK certificate is revoked.
            issued_at: When the collateral was issued; it holds for 30 days.
            tcb_status: What Intel says of the platform.
            advisories: Intel's advisories that apply to it.
            another_chip: Whether the quote carries the PCK certificate of another platform.
            kss: Whether the enclave uses key separation and sharing.
        """
        attributes = 0x05 | (0x02 if debug else 0) | (0x80 if kss else 0)
        body = sgx_report(
            report_data,
            attributes=attributes,
            mrsigner=_digest("mrsigner"),
            isv_prod_id=7,
            isv_svn=3,
        )
        return self._evidence(
            3,
            body,
            revoked=revoked,
            issued_at=issued_at,
            tcb_status=tcb_status,
            advisories=advisories,
            another_chip=another_chip,
        )


class FakeIntelTDX(_FakeIntel):
    """A fake Intel whose trust domains sign TDX quotes of version 4 or 5.

    Attributes:
        platform: `Platform.TDX`.
        anchors: Its root.
        now: A fixed moment at which its evidence verifies.
        root: Its root certificate.
    """

    platform = Platform.TDX
    _tee_type = 0x81
    _ids = ("TDX", "TD_QE")
    _qe_product = 2

    def attest(  # noqa: PLR0913 - knobs of a test double
        self,
        report_data: bytes,
        *,
        debug: bool = False,
        revoked: bool = False,
        issued_at: datetime | None = None,
        tcb_status: str = "UpToDate",
        advisories: tuple[str, ...] = (),
        another_chip: bool = False,
        version: int = 4,
        attributes: int = 1 << 28,
        service_td: bytes = bytes(48),
        rtmrs: tuple[bytes, bytes, bytes, bytes] | None = None,
        module_svn: int = 5,
    ) -> Evidence:
        """Return the evidence of a trust domain.

        Args:
            report_data: At most 64 bytes; zeros are added.
            debug: Whether the domain is in debug mode.
            revoked: Whether the PCK certificate is revoked.
            issued_at: When the collateral was issued; it holds for 30 days.
            tcb_status: What Intel says of the platform.
            advisories: Intel's advisories that apply to it.
            another_chip: Whether the quote carries the PCK certificate of another platform.
            version: 4 with a TD report 1.0, or 5 with a TD report 1.5.
            attributes: TDATTRIBUTES; SEPT_VE_DISABLE alone unless told.
            service_td: MRSERVICETD, 48 bytes; version 5 only.
            rtmrs: Runtime registers, 48 bytes each.
            module_svn: Security version of the TDX module that launched the domain: 5 is up
                to date, 2 to 4 are not. The module that runs by now is up to date.
        """
        registers = rtmrs or tuple(_digest48(f"rtmr{index}") for index in range(4))
        tee_tcb_svn, current = (bytes([svn, 1, 3, *bytes(13)]) for svn in (module_svn, 5))
        body = b"".join(
            [
                tee_tcb_svn,
                _digest48("mrseam"),
                bytes(48 + 8),
                (attributes | int(debug)).to_bytes(8, "little"),
                (0x61AE7).to_bytes(8, "little"),
                _digest48("mrtd"),
                bytes(3 * 48),
                *registers,
                report_data.ljust(64, b"\0"),
            ]
        )
        if version == 5:  # noqa: PLR2004 - the body has a head and two more fields
            body += current + service_td
            body = (3).to_bytes(2, "little") + len(body).to_bytes(4, "little") + body
        return self._evidence(
            version,
            body,
            revoked=revoked,
            issued_at=issued_at,
            tcb_status=tcb_status,
            advisories=advisories,
            another_chip=another_chip,
        )

    def _tdx_components(self) -> dict[str, object]:
        return {"tdxtcbcomponents": [{"svn": svn} for svn in (5, 0, 3, *bytes(13))]}

    def _tdx_modules(self) -> dict[str, object]:
        module = {
            "mrsigner": "00" * 48,
            "attributes": "00" * 8,
            "attributesMask": "FF" * 8,
        }
        levels = [
            {
                "tcb": {"isvsvn": svn},
                "tcbDate": "2025-05-14T00:00:00Z",
                "tcbStatus": status,
            }
            for svn, status in ((5, "UpToDate"), (2, "OutOfDate"))
        ]
        identities = [{"id": "TDX_01", **module, "tcbLevels": levels}]
        return {"tdxModule": module, "tdxModuleIdentities": identities}


def sgx_report(
    report_data: bytes, *, attributes: int, mrsigner: bytes, isv_prod_id: int, isv_svn: int
) -> bytes:
    """Return the 384 bytes of an enclave's report."""
    return b"".join(
        [
            SVNS,
            bytes(16),
            _digest("isv_ext_prod_id")[:16] if attributes & 0x80 else bytes(16),
            attributes.to_bytes(8, "little"),
            (0xE7).to_bytes(8, "little"),
            _digest("mrenclave"),
            bytes(32),
            mrsigner,
            bytes(32),
            _digest("config_id").ljust(64, b"\0") if attributes & 0x80 else bytes(64),
            isv_prod_id.to_bytes(2, "little"),
            isv_svn.to_bytes(2, "little"),
            bytes(2 + 42),
            _digest("isv_family_id")[:16] if attributes & 0x80 else bytes(16),
            report_data.ljust(64, b"\0"),
        ]
    )


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _digest48(name: str) -> bytes:
    return hashlib.sha384(name.encode()).digest()


def _dates(issued: datetime) -> dict[str, str]:
    form = "%Y-%m-%dT%H:%M:%SZ"
    return {
        "issueDate": issued.strftime(form),
        "nextUpdate": (issued + timedelta(days=30)).strftime(form),
    }


def _sign(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    mask = (1 << 256) - 1  # numbers of a larger curve do not fit, and need not
    return (r & mask).to_bytes(32) + (s & mask).to_bytes(32)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()
