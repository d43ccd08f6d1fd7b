"""The statement of a server's keys: one encoding, or `EvidenceError`."""

import pickle
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from blindai.channel.keyset import Keyset, PrivateKeyset
from blindai.errors import BindingError, EvidenceError

NOW = datetime(2026, 6, 1, 12, 30, 15, 999_999, tzinfo=UTC)
KEYS = PrivateKeyset.generate(now=NOW, lifetime=timedelta(hours=24), configuration=b"\x01" * 32)
GOOD = KEYS.public.dump()


def spki(key):
    """Return the DER SubjectPublicKeyInfo of a private key."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_round_trip():
    """A generated keyset reads back equal; its time is cut to whole seconds, never extended."""
    assert Keyset.parse(GOOD) == KEYS.public
    assert Keyset.parse(GOOD).dump() == GOOD
    assert KEYS.public.not_after == datetime(2026, 6, 2, 12, 30, 15, tzinfo=UTC)


@given(
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=1216, max_size=1216),
    st.binary(min_size=32, max_size=32),
    st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)),  # noqa: DTZ001
)
def test_any_keyset(receipt, message, configuration, not_after):
    """Every keyset reads back equal."""
    keyset = Keyset(
        KEYS.public.tls_public_key,
        receipt,
        message,
        not_after.replace(microsecond=0),
        configuration,
    )
    assert Keyset.parse(keyset.dump()) == keyset


def test_private_halves_fit():
    """Each private key is that of the public one in the statement."""
    signature = KEYS.receipt.sign(b"receipt")
    ed25519.Ed25519PublicKey.from_public_bytes(KEYS.public.receipt_public_key).verify(
        signature, b"receipt"
    )
    suite = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    sealed = suite.encrypt(b"message", KEYS.message.public_key())
    assert suite.decrypt(sealed, KEYS.message) == b"message"
    assert spki(KEYS.tls) == KEYS.public.tls_public_key


def test_fresh_keys():
    """No two starts share a key."""
    other = PrivateKeyset.generate(
        now=NOW, lifetime=timedelta(hours=24), configuration=b"\x01" * 32
    ).public
    assert other.tls_public_key != KEYS.public.tls_public_key
    assert other.receipt_public_key != KEYS.public.receipt_public_key
    assert other.message_public_key != KEYS.public.message_public_key


def test_private_keys_are_not_shown():
    """Neither `repr` nor pickle gives a private key away."""
    secret = KEYS.receipt.private_bytes_raw()
    assert repr(KEYS).startswith("<blindai.channel.keyset.PrivateKeyset object")
    assert secret.hex() not in repr(KEYS)
    with pytest.raises(TypeError):
        pickle.dumps(KEYS)


def test_expiry():
    """The keys hold until the second before `not_after`."""
    end = KEYS.public.not_after
    KEYS.public.check_current(end - timedelta(microseconds=1))
    for moment in (end, end + timedelta(days=1)):
        with pytest.raises(BindingError, match="expired at 2026-06-02 12:30:15Z"):
            KEYS.public.check_current(moment)


def changed(**fields):
    """Return the good statement with some fields replaced."""
    return cbor2.dumps(cbor2.loads(GOOD) | fields, canonical=True)


def key(algorithm, content):
    """Return a key as it stands in a statement."""
    return {"algorithm": algorithm, "key": content}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (changed(version=2), "version 1"),
        (changed(version=True), "canonical"),
        (changed(extra=1), "exactly"),
        (cbor2.dumps([]), "exactly"),
        (changed(not_after=-1), "Unix seconds"),
        (changed(not_after=253_402_300_800), "Unix seconds"),
        (changed(not_after=True), "Unix seconds"),
        (changed(not_after=None), "Unix seconds"),
        (changed(configuration=bytes(31)), "SHA-256"),
        (changed(configuration="a" * 32), "SHA-256"),
        (changed(tls=b"key"), "algorithm and key"),
        (changed(tls={"algorithm": "ecdsa-p256"}), "algorithm and key"),
        (changed(tls=key("ecdsa-p384", KEYS.public.tls_public_key)), "expected tls algorithm"),
        (changed(tls=key("ecdsa-p256", b"")), "no SubjectPublicKeyInfo"),
        (changed(tls=key("ecdsa-p256", "text")), "wrong type or size"),
        (
            changed(tls=key("ecdsa-p256", bytes.fromhex("300e300806062a0304050607030200ff"))),
            "no SubjectPublicKeyInfo",
        ),
        (
            changed(tls=key("ecdsa-p256", spki(ec.generate_private_key(ec.SECP384R1())))),
            "not on P-256",
        ),
        (
            changed(tls=key("ecdsa-p256", spki(rsa.generate_private_key(65537, 2048)))),
            "not on P-256",
        ),
        (
            changed(tls=key("ecdsa-p256", spki(ed25519.Ed25519PrivateKey.generate()))),
            "not on P-256",
        ),
        (changed(tls=key("ecdsa-p256", KEYS.public.tls_public_key + b"\0")), "SubjectPublicKey"),
        (changed(receipt=key("ed25519", bytes(31))), "receipt key has the wrong"),
        (changed(receipt=key("ed448", bytes(32))), "expected receipt algorithm"),
        (
            changed(message=key("hpke-mlkem768x25519-hkdfsha256-aes256gcm", bytes(1215))),
            "message key has the wrong",
        ),
        (b"", "ends early"),
        (GOOD + b"\0", "unexpected bytes"),
        (GOOD[:-1], "keyset"),
        (bytes(8193), "at most 8192"),
    ],
)
def test_refusals(data, why):
    """Each field has one type, size and algorithm."""
    with pytest.raises(EvidenceError, match=why):
        Keyset.parse(data)


def test_one_encoding_of_a_point():
    """A compressed point is the same key in other bytes, so it is refused."""
    point = KEYS.tls.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    header = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200")
    with pytest.raises(EvidenceError, match="canonical encoding"):
        Keyset.parse(changed(tls=key("ecdsa-p256", header + point)))


def test_not_canonical():
    """Another order of the same fields is another digest: refused."""
    document = cbor2.loads(GOOD)
    with pytest.raises(EvidenceError, match="not in canonical form"):
        Keyset.parse(cbor2.dumps({name: document[name] for name in sorted(document)[::-1]}))


@given(st.binary(max_size=300))
def test_any_bytes(data):
    """Garbage is `EvidenceError`."""
    with pytest.raises(EvidenceError):
        Keyset.parse(data)


@given(st.data())
def test_any_mutant(data):
    """A spoilt statement is refused, or is another keyset in its one encoding."""
    mutant = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        mutant[data.draw(st.integers(0, len(GOOD) - 1))] = data.draw(st.integers(0, 255))
    try:
        keyset = Keyset.parse(bytes(mutant))
    except EvidenceError:
        return
    assert keyset.dump() == bytes(mutant)
    assert (keyset == KEYS.public) == (bytes(mutant) == GOOD)


def test_replaced_fields_change_the_statement():
    """Every field is part of what evidence is bound to."""
    for change in (
        {"receipt_public_key": bytes(32)},
        {"message_public_key": bytes(1216)},
        {"not_after": KEYS.public.not_after + timedelta(seconds=1)},
        {"configuration": bytes(32)},
        {"tls_public_key": spki(ec.generate_private_key(ec.SECP256R1()))},
    ):
        assert replace(KEYS.public, **change).dump() != GOOD
