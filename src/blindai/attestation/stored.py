"""A verification that can be taken again, offline, by somebody else, later.

The file holds what the server showed and what it answered to: the bundle, the nonce, and the
certificate of the TLS peer. It holds no result: whoever reads it verifies for themselves,
against a policy of their own, as of a moment of their choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import cbor2

from blindai.attestation.binding import NONCE_SIZE
from blindai.attestation.wire import MAX_BUNDLE_BYTES, dump_bundle, load_cbor, parse_bundle
from blindai.errors import EvidenceError

if TYPE_CHECKING:
    from blindai.attestation.model import EvidenceBundle

STORED_VERSION: Final = 1
MAX_STORED_BYTES: Final = MAX_BUNDLE_BYTES + (64 << 10)


@dataclass(frozen=True, slots=True)
class StoredEvidence:
    """What one verification looked at.

    Attributes:
        bundle: What the server showed.
        nonce: The 32 bytes that it answered.
        peer_certificate: DER of the certificate that the TLS peer presented.
    """

    bundle: EvidenceBundle
    nonce: bytes
    peer_certificate: bytes

    def dump(self) -> bytes:
        """Return the file's content: deterministic CBOR."""
        return cbor2.dumps(
            {
                "version": STORED_VERSION,
                "bundle": dump_bundle(self.bundle),
                "nonce": self.nonce,
                "peer_certificate": self.peer_certificate,
            },
            canonical=True,
        )

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a file's content.

        Raises:
            EvidenceError: If it is anything else.
        """
        document = load_cbor(data, "stored evidence", at_most=MAX_STORED_BYTES)
        names = {"version", "bundle", "nonce", "peer_certificate"}
        if not isinstance(document, dict) or set(document) != names:
            msg = f"stored evidence: expected a map of exactly {', '.join(sorted(names))}"
            raise EvidenceError(msg)
        if document["version"] != STORED_VERSION:
            msg = f"stored evidence: expected version {STORED_VERSION}"
            raise EvidenceError(msg)
        bundle, nonce, peer = (document[n] for n in ("bundle", "nonce", "peer_certificate"))
        if not all(isinstance(each, bytes) for each in (bundle, nonce, peer)):
            msg = "stored evidence: bundle, nonce and peer_certificate have to be bytes"
            raise EvidenceError(msg)
        if len(nonce) != NONCE_SIZE:
            msg = f"stored evidence: the nonce has {len(nonce)} bytes, expected {NONCE_SIZE}"
            raise EvidenceError(msg)
        return cls(parse_bundle(bundle), nonce, peer)
