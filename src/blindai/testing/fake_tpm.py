"""A fake TPM vendor: quotes in the TPM's format, by keys in software.

The event log is one of a machine with Secure Boot, a signed boot loader, GRUB and a kernel;
replaying it gives the PCR values that are quoted.
"""

from __future__ import annotations

import hashlib
import struct
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Final, Literal

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from blindai.attestation.certs import fingerprint
from blindai.attestation.model import Evidence, Platform
from blindai.attestation.trust import Anchor
from blindai.platforms.tpm import boot
from blindai.platforms.tpm.eventlog import BANKS, EV_NO_ACTION, parse_event_log, replay
from blindai.platforms.tpm.keys import ECDSA, HASHES, RSAPSS, RSASSA
from blindai.platforms.tpm.quote import MAGIC, TYPE_QUOTE, dump_registers
from blindai.testing.fake_ca import FakeCA

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from blindai.platforms.tpm.keys import PublicKey

SchemeName = Literal["ECDSA", "RSASSA", "RSAPSS"]

RESTRICTED_SIGNING: Final = 0x00050072
"""TPMA_OBJECT of an attestation key: fixedTPM, fixedParent, restricted, sign and others."""
COMMAND_LINE: Final = "/vmlinuz root=/dev/vda1 ro quiet"

_SCHEMES: Final[dict[str, int]] = {"ECDSA": ECDSA, "RSASSA": RSASSA, "RSAPSS": RSAPSS}
_ALGORITHMS: Final = {name: number for number, name in BANKS.items()}
_CURVES: Final = {"secp256r1": 3, "secp384r1": 4, "secp521r1": 5}
_NULL: Final = 0x0010
_LIFE: Final = timedelta(days=365)

_LOADER_CERTIFICATE: Final = b"\x30\x82\x00\x04fake"
_GLOBAL: Final = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
_SECURITY: Final = bytes.fromhex("cbb219d73a3d9645a3bcdad00e67656f")


@cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """Return one RSA key for the whole process: making them is slow."""
    return rsa.generate_private_key(65537, bits)


class FakeTPM:
    """A machine with a TPM, whose vendor certifies attestation keys.

    Attributes:
        platform: `Platform.TPM`.
        anchors: The vendor's fake root.
        now: A moment at which its evidence verifies.
        event_log: What the firmware logged.

    Args:
        scheme: What the attestation key signs with.
        curve: Of an ECDSA attestation key.
        bits: Of an RSA attestation key.
    """

    platform: Final = Platform.TPM
    now: Final = datetime(2026, 6, 1, 12, tzinfo=UTC)

    def __init__(
        self,
        scheme: SchemeName = "ECDSA",
        *,
        curve: ec.EllipticCurve | None = None,
        bits: int = 2048,
    ) -> None:
        self.scheme = scheme
        self.key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = (
            _ecdsa_key(curve) if scheme == "ECDSA" else rsa_key(bits)
        )
        life = (self.now - 2 * _LIFE, self.now + 2 * _LIFE)
        self._root = FakeCA.root("Fake TPM Root", _ecdsa_key(), *life)
        self._issuer = self._root.issue_ca("Fake TPM Issuer", _ecdsa_key(), *life)
        self.anchors: tuple[Anchor, ...] = (
            Anchor("Fake TPM Root", fingerprint(self._root.certificate), "blindai.testing"),
        )
        self.event_log = make_event_log(boot_events())

    def attest(
        self,
        report_data: bytes,
        *,
        revoked: bool = False,
        issued_at: datetime | None = None,
        hash_name: str = "sha256",
        banks: Sequence[str] = ("sha256",),
        attributes: int = RESTRICTED_SIGNING,
        certified: bool = True,
        event_log: bytes | None = None,
        registers: Mapping[int, bytes] | None = None,
    ) -> Evidence:
        """Return a quote that carries `report_data` as its qualifying data.

        Args:
            report_data: At most 64 bytes.
            revoked: Whether the vendor revoked the attestation key's certificate.
            issued_at: When that certificate begins to hold; it does so for a year. Default: a
                month before `now`. A quote itself says no time.
            hash_name: Of the signature.
            banks: Whose PCRs are quoted.
            attributes: TPMA_OBJECT of the key.
            certified: Whether certificates are attached.
            event_log: Attached instead of the own one.
            registers: SHA-256 PCRs that hold something else than the log says.
        """
        log = parse_event_log(self.event_log)
        values = {bank: replay(log, bank) for bank in banks}
        if registers:
            values["sha256"] |= registers
        body = make_quote(report_data, values, hash_name)
        attachments = {
            "signature": self.sign(body, hash_name),
            "ak_public": make_public_area(
                self.key.public_key(), attributes, self.scheme, hash_name
            ),
            "pcrs": dump_registers(values),
            "event_log": self.event_log if event_log is None else event_log,
        }
        if certified:
            begin = self.now - timedelta(days=30) if issued_at is None else issued_at
            attachments |= self._endorsements(begin, revoked=revoked)
        return Evidence(Platform.TPM, body, attachments)

    def sign(self, message: bytes, hash_name: str = "sha256") -> bytes:
        """Return a TPMT_SIGNATURE over `message`."""
        algorithm = HASHES[hash_name]
        head = struct.pack(">HH", _SCHEMES[self.scheme], _ALGORITHMS[hash_name])
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            size = (self.key.curve.key_size + 7) // 8
            pair = decode_dss_signature(self.key.sign(message, ec.ECDSA(algorithm)))
            return head + b"".join(_sized(number.to_bytes(size)) for number in pair)
        if self.scheme == "RSASSA":
            return head + _sized(self.key.sign(message, padding.PKCS1v15(), algorithm))
        pss = padding.PSS(padding.MGF1(algorithm), padding.PSS.DIGEST_LENGTH)
        return head + _sized(self.key.sign(message, pss, algorithm))

    def signed_bytes(self, evidence: Evidence) -> list[range]:
        """Return the ranges of the body of which every flipped bit must be refused."""
        return [range(len(evidence.body))]

    def _endorsements(self, begin: datetime, *, revoked: bool) -> dict[str, bytes]:
        leaf = self._issuer.issue("Fake AK", self.key.public_key(), begin, begin + _LIFE)
        chain = [leaf, self._issuer.certificate, self._root.certificate]
        period = (self.now - timedelta(days=1), self.now + timedelta(days=30))
        lists = [
            self._issuer.revocation_list([leaf] if revoked else [], *period),
            self._root.revocation_list([], *period),
        ]
        return {
            "ak_certificates": b"".join(c.public_bytes(Encoding.PEM) for c in chain),
            "crl": b"".join(crl.public_bytes(Encoding.PEM) for crl in lists),
        }


def make_quote(
    report_data: bytes, values: Mapping[str, Mapping[int, bytes]], hash_name: str
) -> bytes:
    """Return a TPMS_ATTEST that quotes `values` (bank → PCR → value)."""
    digest = hashlib.new(hash_name)
    selections = b""
    for bank, registers in values.items():
        mask = sum(1 << index for index in registers)
        selections += struct.pack(">HB3s", _ALGORITHMS[bank], 3, mask.to_bytes(3, "little"))
        for index in sorted(registers):
            digest.update(registers[index])
    return (
        struct.pack(">IH", MAGIC, TYPE_QUOTE)
        + _sized(b"\x00\x0b" + hashlib.sha256(b"fake AK name").digest())
        + _sized(report_data)
        + struct.pack(">QIIBQ", 3_600_000, 7, 0, 1, 0x20240101)
        + struct.pack(">I", len(values))
        + selections
        + _sized(digest.digest())
    )


def make_public_area(public: PublicKey, attributes: int, scheme: str, hash_name: str) -> bytes:
    """Return the TPM2B_PUBLIC of an attestation key."""
    rsa_kind = isinstance(public, rsa.RSAPublicKey)
    area = struct.pack(">HHI", 1 if rsa_kind else 0x23, _ALGORITHMS["sha256"], attributes)
    area += _sized(b"") + struct.pack(">HHH", _NULL, _SCHEMES[scheme], _ALGORITHMS[hash_name])
    if isinstance(public, rsa.RSAPublicKey):
        modulus = public.public_numbers().n.to_bytes(public.key_size // 8)
        return _sized(area + struct.pack(">HI", public.key_size, 0) + _sized(modulus))
    size = (public.curve.key_size + 7) // 8
    numbers = public.public_numbers()
    area += struct.pack(">HH", _CURVES[public.curve.name], _NULL)
    return _sized(area + _sized(numbers.x.to_bytes(size)) + _sized(numbers.y.to_bytes(size)))


def boot_events(*, secure_boot: bool = True) -> list[tuple[int, int, bytes, bytes]]:
    """Return (PCR, type, what is hashed, data) of each event of a usual boot."""
    switch = _variable(_GLOBAL, "SecureBoot", bytes([secure_boot]))
    authority = _variable(_SECURITY, "db", bytes(16) + _LOADER_CERTIFICATE)
    return [
        (0, 0x8, b"fake firmware 1.0", b"fake firmware 1.0"),
        (7, boot.EV_EFI_VARIABLE_DRIVER_CONFIG, switch, switch),
        *((pcr, boot.EV_SEPARATOR, bytes(4), bytes(4)) for pcr in range(8)),
        (7, boot.EV_EFI_VARIABLE_AUTHORITY, authority, authority),
        (4, boot.EV_EFI_BOOT_SERVICES_APPLICATION, b"fake boot loader", b"device path"),
        _ipl(8, b"grub_cmd: ", b"linux " + COMMAND_LINE.encode()),
        (9, boot.EV_IPL, b"fake kernel", b"/vmlinuz\0"),
        _ipl(8, b"kernel_cmdline: ", COMMAND_LINE.encode()),
        _ipl(8, b"grub_cmd: ", b"initrd /initrd"),
        (9, boot.EV_IPL, b"fake initrd", b"/initrd\0"),
    ]


def make_event_log(
    events: Sequence[tuple[int, int, bytes, bytes]], banks: Sequence[str] = ("sha1", "sha256")
) -> bytes:
    """Return a crypto-agile log of (register, type, what is hashed, data)."""
    sizes = b"".join(
        struct.pack("<HH", _ALGORITHMS[bank], hashlib.new(bank).digest_size) for bank in banks
    )
    spec = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(banks)) + sizes + b"\0"
    log = struct.pack("<II20sI", 0, EV_NO_ACTION, b"", len(spec)) + spec
    for register, kind, content, data in events:
        log += struct.pack("<III", register, kind, len(banks))
        for bank in banks:
            log += struct.pack("<H", _ALGORITHMS[bank]) + hashlib.new(bank, content).digest()
        log += struct.pack("<I", len(data)) + data
    return log


def _ipl(pcr: int, prefix: bytes, text: bytes) -> tuple[int, int, bytes, bytes]:
    return pcr, boot.EV_IPL, text, prefix + text + b"\0"


def _variable(owner: bytes, name: str, value: bytes) -> bytes:
    encoded = name.encode("utf-16-le")
    return owner + struct.pack("<QQ", len(name), len(value)) + encoded + value


def _sized(content: bytes) -> bytes:
    return struct.pack(">H", len(content)) + content


def _ecdsa_key(curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve or ec.SECP256R1())
