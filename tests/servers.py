"""What servers show, honest ones and others, without a server."""

from __future__ import annotations

import hashlib
from datetime import timedelta

from blindai.attestation.binding import binding, device_nonce
from blindai.attestation.model import EvidenceBundle
from blindai.attestation.policy import Policy
from blindai.attestation.steps import Steps
from blindai.attestation.wire import dump_evidence
from blindai.channel.keyset import PrivateKeyset
from blindai.channel.tls import create_certificate
from blindai.platforms import VERIFIERS
from blindai.testing.fake_simulation import FakeSimulation
from blindai.verify import verify

NONCE = bytes(range(32))
CONFIGURATION = b"\x0c" * 32


class Server:
    """A server with fresh keys on the machine of a fake vendor."""

    def __init__(self, vendor=None, *, lifetime=timedelta(hours=24)):
        self.vendor = vendor or FakeSimulation()
        self.now = self.vendor.now
        self.keys = PrivateKeyset.generate(
            now=self.now, lifetime=lifetime, configuration=CONFIGURATION
        )
        self.keyset = self.keys.public.dump()
        self.certificate = create_certificate(
            self.keys.tls,
            names=["localhost"],
            not_before=self.now,
            not_after=self.keys.public.not_after,
        )

    def bundle(self, nonce=NONCE, *, devices=(), evidence=None):
        """Return what the server shows in answer to `nonce`."""
        shown = tuple(device.attest(device_nonce(nonce, self.keyset)) for device in devices)
        digests = [hashlib.sha256(dump_evidence(device)).digest() for device in shown]
        if evidence is None:
            evidence = self.vendor.attest(binding(nonce, self.keyset, digests))
        return EvidenceBundle(evidence, self.keyset, self.certificate, shown)

    def verify_platform(self):
        """Return what the machine itself claims."""
        verifier = VERIFIERS[self.vendor.platform]
        return verifier.verify(
            self.bundle().evidence,
            anchors=self.vendor.anchors,
            now=self.now,
            steps=Steps(verifier.STEPS),
        )

    def verify(self, bundle=None, policy=None, *, devices=(), **changes):
        """Verify what the server shows as a client with a connection to it does."""
        vendors = [self.vendor, *devices]
        arguments = {
            "nonce": NONCE,
            "now": self.now,
            "peer_certificate": self.certificate,
            "anchors": {
                vendor.platform: tuple(
                    anchor
                    for each in vendors
                    if each.platform is vendor.platform
                    for anchor in each.anchors
                )
                for vendor in vendors
            },
        } | changes
        return verify(
            bundle or self.bundle(devices=devices), policy or Policy.simulation(), **arguments
        )
