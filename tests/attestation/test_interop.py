"""Results as EAR and evidence as CMW: what others read in them."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta

import cbor2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from blindai.attestation.binding import binding
from blindai.attestation.draft import draft_policy
from blindai.attestation.interop import to_cmw, to_cmw_json, to_ear
from blindai.attestation.model import EvidenceBundle, Platform
from blindai.attestation.policy import Policy
from blindai.attestation.steps import Steps
from blindai.attestation.stored import StoredEvidence
from blindai.attestation.wire import MEDIA_TYPE, dump_bundle
from blindai.channel.keyset import PrivateKeyset
from blindai.channel.tls import create_certificate
from blindai.errors import EvidenceError
from blindai.platforms import VERIFIERS
from blindai.testing import FAKES
from blindai.verify import verify

NONCE = bytes(range(32))


def shown(platform):
    """Return a bundle of the platform's fake, its vendor, and the policy that fits it."""
    vendor = FAKES[platform]()
    keys = PrivateKeyset.generate(
        now=vendor.now, lifetime=timedelta(days=1), configuration=bytes(32)
    )
    keyset = keys.public.dump()
    certificate = create_certificate(
        keys.tls, names=["localhost"], not_before=vendor.now, not_after=keys.public.not_after
    )
    bundle = EvidenceBundle(vendor.attest(binding(NONCE, keyset)), keyset, certificate)
    verifier = VERIFIERS[platform]
    claims = verifier.verify(
        bundle.evidence, anchors=vendor.anchors, now=vendor.now, steps=Steps(verifier.STEPS)
    )
    return bundle, vendor, draft_policy([claims])


def accepted(platform):
    """Return the result of verifying what the platform's fake shows."""
    bundle, vendor, policy = shown(platform)
    anchors = {platform: vendor.anchors}
    return verify(bundle, policy, nonce=NONCE, now=vendor.now, anchors=anchors)


def read_ear(token, key):
    """Check an EAR as a relying party does, and return its one submodule's appraisal."""
    payload = jwt.decode(
        token, key.public_key(), algorithms=["EdDSA"], options={"verify_exp": False}
    )
    assert payload["eat_profile"] == "tag:github.com,2023:veraison/ear"
    assert payload["eat_nonce"] == base64.urlsafe_b64encode(NONCE).rstrip(b"=").decode()
    (appraisal,) = payload["submods"].values()
    return appraisal


@pytest.mark.parametrize(
    ("platform", "status"),
    [
        (Platform.SIMULATION, "contraindicated"),
        (Platform.TPM, "contraindicated"),
        (Platform.SEV_SNP, "affirming"),
        (Platform.NITRO, "warning"),
    ],
)
def test_ear_status(platform, status):
    """An EAR never says more than the hardware gives."""
    key = Ed25519PrivateKey.generate()
    result = accepted(platform)
    token = to_ear(result, key, developer="hospital", build="1")
    appraisal = read_ear(token, key)
    assert appraisal["ear.status"] == status
    assert appraisal["ear.appraisal-policy-id"].endswith(result.policy_digest.hex())


def test_ear_by_another_key_is_refused():
    """The signature is the relying party's."""
    token = to_ear(
        accepted(Platform.SEV_SNP), Ed25519PrivateKey.generate(), developer="x", build="1"
    )
    with pytest.raises(jwt.InvalidSignatureError):
        read_ear(token, Ed25519PrivateKey.generate())


def test_cmw_records():
    """Both forms carry the media type, the bundle's bytes, and that it is evidence."""
    bundle, _, _ = shown(Platform.SIMULATION)
    assert cbor2.loads(to_cmw(bundle)) == [MEDIA_TYPE, dump_bundle(bundle), 4]
    kind, value, indicator = json.loads(to_cmw_json(bundle))
    assert (kind, indicator) == (MEDIA_TYPE, 4)
    assert base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)) == dump_bundle(bundle)


def test_stored_evidence_verifies_again_as_of_its_time():
    """What was stored verifies years later as of its time, and is expired as of today."""
    bundle, vendor, policy = shown(Platform.SEV_SNP)
    stored = StoredEvidence(bundle, NONCE, bundle.certificate)
    again = StoredEvidence.parse(stored.dump())
    assert again == stored
    arguments = {"nonce": again.nonce, "peer_certificate": again.peer_certificate}
    arguments["anchors"] = {Platform.SEV_SNP: vendor.anchors}
    assert verify(again.bundle, policy, now=vendor.now, **arguments).nonce == NONCE
    with pytest.raises(Exception, match="expired"):
        verify(again.bundle, policy, now=datetime(2040, 1, 1, tzinfo=UTC), **arguments)


@given(st.binary(max_size=200))
def test_any_bytes_are_stored_evidence_or_an_evidence_error(data):
    """Reading a file raises EvidenceError and nothing else."""
    try:
        StoredEvidence.parse(data)
    except EvidenceError:
        pass
    else:
        pytest.fail("no 200 bytes are stored evidence")


def test_simulation_policy_digest_is_in_the_ear():
    """Two policies give two ids."""
    result = accepted(Platform.SIMULATION)
    assert result.policy_digest == Policy.simulation().digest
