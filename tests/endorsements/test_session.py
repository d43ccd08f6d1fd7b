"""A client completes what a server shows before it verifies, unless it was told not to."""

import pytest

from blindai.attestation import wire
from blindai.attestation.binding import binding
from blindai.attestation.model import EvidenceBundle, Platform
from blindai.client.session import Session
from blindai.endorsements import Endorser
from blindai.errors import EndorsementError
from blindai.testing.fake_sev_snp import FakeAMD
from tests.client.fakes import FakeServer
from tests.endorsements.services import AMD, bare, policy_for

VENDOR = FakeAMD()


@pytest.fixture
def server():
    """Return a server on SEV-SNP that staples nothing."""
    with FakeServer(now=VENDOR.now) as serving:
        identity = serving.identity
        keyset = identity.keys.public.dump()

        def evidence(nonce):
            shown = bare(VENDOR.attest(binding(nonce, keyset)))
            return wire.dump_bundle(EvidenceBundle(shown, keyset, identity.certificate))

        serving.evidence = evidence
        yield serving


def session(server, get):
    """Return a session with the server, which asks vendors through `get`."""
    return Session(
        server.address,
        policy_for(VENDOR, VENDOR.attest(bytes(32))),
        clock=lambda: VENDOR.now,
        anchors={Platform.SEV_SNP: VENDOR.anchors},
        endorser=Endorser(get=get),
    )


def test_missing_endorsements_are_fetched(server):
    """What the server did not staple comes from the vendor, once for two verifications."""
    service = AMD(VENDOR, VENDOR.attest(bytes(32)))
    verified = session(server, service)
    channel = verified.channel()
    assert set(channel.attestation.endorsements.values()) == {"fetched"}
    # What is stored can be verified again without a network.
    assert set(channel.shown.bundle.evidence.attachments) == {"certificates", "crl"}
    asked = len(service.asked)
    again = verified.renew(channel)
    assert set(again.attestation.endorsements.values()) == {"cached"}
    assert len(service.asked) == asked


def test_fetching_can_be_switched_off(server):
    """Without a `get` nobody is asked, and the server is refused."""
    with pytest.raises(EndorsementError, match="no certificate"):
        session(server, None).channel()
