"""A fake AWS: signs attestation documents as a Nitro Security Module would.

Everything but the root is as in real life: five certificates on P-384 down to a leaf that
lives for three hours, and an untagged COSE_Sign1 document.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Final

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from blindai.attestation.certs import der, fingerprint
from blindai.attestation.model import Evidence, Platform
from blindai.attestation.trust import Anchor
from blindai.platforms.nitro import parse_envelope
from blindai.testing.fake_ca import FakeCA

_LEAF_LIFE: Final = timedelta(hours=3)
_TIERS: Final = ("region", "zone", "instance")
_CA_LIFE: Final = timedelta(days=365)
_PCR_SIZE: Final = 48
_COORDINATE_SIZE: Final = 48


class FakeNitro:
    """A Nitro hypervisor under a root of its own.

    Attributes:
        platform: `Platform.NITRO`.
        anchors: The fake root; pass it where the vendor's anchors would go.
        now: A moment at which its documents verify.
        module_id: Name of the enclave.

    Example:
        >>> vendor = FakeNitro()
        >>> vendor.attest(bytes(32)).platform
        <Platform.NITRO: 'nitro'>
    """

    platform: Final = Platform.NITRO
    now: Final = datetime(2026, 6, 1, 12, tzinfo=UTC)
    module_id: Final = "i-0123456789abcdef0-enc0123456789abcdef"

    def __init__(self) -> None:
        life = (self.now - _CA_LIFE, self.now + _CA_LIFE)
        ca = FakeCA.root("aws.nitro-enclaves", _new_key(), *life)
        self.anchors: tuple[Anchor, ...] = (
            Anchor("Fake AWS Nitro Enclaves Root", fingerprint(ca.certificate), "blindai.testing"),
        )
        self._cabundle = [der(ca.certificate)]
        for name in _TIERS:
            ca = ca.issue_ca(name, _new_key(), *life)
            self._cabundle.append(der(ca.certificate))
        self._issuer = ca

    def attest(
        self,
        report_data: bytes,
        *,
        debug: bool = False,
        issued_at: datetime | None = None,
        leaf_issued_at: datetime | None = None,
        curve: ec.EllipticCurve | None = None,
        nonce: bytes | None = None,
        fields: dict[str, object] | None = None,
    ) -> Evidence:
        """Return a document that carries `report_data` as its `user_data`.

        Args:
            report_data: At most 512 bytes.
            debug: Whether the enclave runs in debug mode: all its PCRs are zero.
            issued_at: When the document says it was made; default: `now`.
            leaf_issued_at: When the leaf begins to live; default: `issued_at`.
            curve: Of the leaf's key; anything but P-384 makes evidence to be refused.
            nonce: As the caller of the NSM may add.
            fields: Replaces fields of the payload before it is signed.
        """
        moment = self.now if issued_at is None else issued_at
        key = _new_key(curve)
        begin = moment if leaf_issued_at is None else leaf_issued_at
        leaf = self._issuer.issue("enclave", key.public_key(), begin, begin + _LEAF_LIFE)
        payload: dict[str, object] = {
            "module_id": self.module_id,
            "digest": "SHA384",
            "timestamp": int(moment.timestamp() * 1000),
            "pcrs": _pcrs(debug=debug),
            "certificate": der(leaf),
            "cabundle": self._cabundle,
            "public_key": None,
            "user_data": report_data,
            "nonce": nonce,
        }
        return self.sign(cbor2.dumps(payload | (fields or {})), key)

    def sign(self, payload: bytes, key: ec.EllipticCurvePrivateKey) -> Evidence:
        """Return evidence of any payload, signed with any key."""
        protected = cbor2.dumps({1: -35})
        signed = cbor2.dumps(["Signature1", protected, b"", payload])
        pair = decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA384())))
        # A larger curve's numbers do not fit; cutting them is fine for what is to be refused.
        signature = b"".join(n.to_bytes(66)[-_COORDINATE_SIZE:] for n in pair)
        return Evidence(Platform.NITRO, cbor2.dumps([protected, {}, payload, signature]))

    def signed_bytes(self, evidence: Evidence) -> list[range]:
        """Return the ranges of the body of which every flipped bit must be refused."""
        envelope = parse_envelope(evidence.body)
        parts = (envelope.protected, envelope.payload, envelope.signature)
        starts = [evidence.body.rindex(part) for part in parts]
        return [range(s, s + len(part)) for s, part in zip(starts, parts, strict=True)]


def _new_key(curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve or ec.SECP384R1())


def _pcrs(*, debug: bool) -> dict[int, bytes]:
    zero = bytes(_PCR_SIZE)
    registers = dict.fromkeys(range(16), zero)
    if not debug:
        for index in (0, 1, 2, 4, 8):
            registers[index] = hashlib.sha384(b"fake PCR %d" % index).digest()
    return registers
