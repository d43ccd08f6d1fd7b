"""How long an answer holds is read from the answer; anything that is none is refused."""

import base64
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.attestation.certs import der
from blindai.endorsements import Answer, Kind
from blindai.endorsements.lifetime import Lifetime, overlap, parse_rim_answer, read_lifetime
from blindai.errors import AttestationError, EndorsementError, EvidenceError
from blindai.testing.fake_dcap import FakeIntelSGX
from blindai.testing.fake_nvidia import FakeNVIDIA
from blindai.testing.fake_sev_snp import FakeAMD
from tests.endorsements.services import Intel

AMD = FakeAMD()
SGX = FakeIntelSGX()
GPU = FakeNVIDIA()
COLLATERAL = Intel(SGX.attest(bytes(32)))
RIM = GPU.attest(bytes(32)).attachments["rim_driver"]
OCSP = GPU.attest(bytes(32)).attachments["ocsp"]


def answer_of(kind):
    """Return a good answer of a kind."""
    named = {name: COLLATERAL.answers[url] for name, url in COLLATERAL.urls.items()}
    return {
        Kind.CERTIFICATES: Answer(der(AMD.certify()), {}),
        Kind.CRL: named["pck_crl"],
        Kind.TCB_INFO: named["tcb_info"],
        Kind.QE_IDENTITY: named["qe_identity"],
        Kind.OCSP: Answer(OCSP, {}),
        Kind.RIM: Answer(json.dumps({"rim": base64.b64encode(RIM).decode()}).encode(), {}),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "life"),
    [
        (Kind.CERTIFICATES, timedelta(days=7 * 365)),
        (Kind.CRL, timedelta(days=30)),
        (Kind.TCB_INFO, timedelta(days=30)),
        (Kind.QE_IDENTITY, timedelta(days=30)),
        (Kind.OCSP, timedelta(days=1)),
    ],
)
def test_lifetimes_are_those_in_the_answer(kind, life):
    """Every kind of answer says from when until when it holds."""
    found = read_lifetime(kind, answer_of(kind))
    assert found.end - found.begin == life


def test_references_hold_as_long_as_their_signers():
    """Reference measurements carry no end of their own."""
    assert read_lifetime(Kind.RIM, answer_of(Kind.RIM)).end.year == 9999


def test_issuer_chains_in_headers_count():
    """A statement ends with the certificate of its signer at the latest, and so its header."""
    good = answer_of(Kind.TCB_INFO)
    (name,) = good.headers
    with pytest.raises(EvidenceError):
        read_lifetime(Kind.TCB_INFO, Answer(good.body, {name: "garbage"}))


@pytest.mark.parametrize("kind", Kind)
def test_answers_of_another_kind_are_refused(kind):
    """Whatever is no answer of the kind that was asked for raises an AttestationError."""
    shape = {Kind.TCB_INFO: Kind.QE_IDENTITY}
    for other in Kind:
        if other is kind or shape.get(kind) is other:
            continue
        with pytest.raises(AttestationError):
            read_lifetime(kind, Answer(answer_of(other).body, {}))


def test_a_statement_without_an_end_is_refused():
    """Nothing is kept that does not say until when it holds."""
    body = b'{"tcbInfo":{"issueDate":"2026-01-01T00:00:00Z"},"signature":"00"}'
    with pytest.raises(EvidenceError, match="nextUpdate"):
        read_lifetime(Kind.TCB_INFO, Answer(body, {}))
    with pytest.raises(EvidenceError):
        overlap([])


def test_overlap_may_be_empty():
    """Parts that never held together hold at no moment."""
    day = datetime(2026, 1, 1, tzinfo=UTC)
    apart = overlap(
        [Lifetime(day, day + timedelta(1)), Lifetime(day + timedelta(2), day + timedelta(3))]
    )
    assert not any(apart.holds_at(day + timedelta(hours=12 * n)) for n in range(8))


@given(st.sampled_from(Kind), st.binary(max_size=200))
def test_garbage_is_refused(kind, data):
    """Random bytes are no answer of any kind, and raise nothing but AttestationError."""
    with pytest.raises(AttestationError):
        read_lifetime(kind, Answer(data, {}))


@given(st.sampled_from(Kind), st.integers(0, 4000), st.integers(1, 255))
def test_mutated_answers_are_read_or_refused(kind, position, flip):
    """One changed byte of a good answer gives a lifetime or an AttestationError."""
    body = bytearray(answer_of(kind).body)
    body[position % len(body)] ^= flip
    try:
        found = read_lifetime(kind, Answer(bytes(body), {}))
    except (EvidenceError, EndorsementError):
        return
    assert isinstance(found, Lifetime)


@given(st.recursive(st.none() | st.text(max_size=9), lambda c: st.dictionaries(st.text(), c)))
def test_any_json_is_a_tag_or_refused(document):
    """An answer about reference measurements is one object with base64, or refused."""
    with pytest.raises(EvidenceError):
        parse_rim_answer(json.dumps({"rim": [document]}).encode())
