"""Statements, receipts and receipt files: one encoding, or `EvidenceError`."""

import hashlib
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from blindai.attestation.binding import device_nonce
from blindai.attestation.model import Platform
from blindai.channel.merkle import MAX_LEAVES
from blindai.channel.receipt_file import MAX_RECEIPTS, ReceiptFile
from blindai.channel.receipts import (
    ROOT_TYPE,
    STATEMENT_TYPE,
    Inclusion,
    Receipt,
    sign,
    sign_batch,
)
from blindai.channel.statement import (
    Kind,
    Statement,
    TensorDigest,
    digest_evidence,
    digest_tensor,
)
from blindai.errors import ConfigurationError, EvidenceError, LimitExceeded, SignatureError
from tests.receipts import Signer
from tests.servers import NONCE

SERVER = Signer()
KEY = SERVER.keys.receipt
PUBLIC = SERVER.keys.public.receipt_public_key
STATEMENT = SERVER.statement()
RECEIPT = sign(STATEMENT, KEY)
BATCH = sign_batch([replace(STATEMENT, nonce=bytes([i])) for i in range(5)], KEY)
FILE = ReceiptFile((RECEIPT, *BATCH), SERVER.shown, NONCE)
OTHER = hashlib.sha256(b"other").digest()

digest = st.binary(min_size=32, max_size=32)
tensor = st.builds(
    TensorDigest,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.sampled_from(["FP32", "BYTES", "INT64"]),
    st.lists(st.integers(0, 2**63 - 1), max_size=5).map(tuple),
    digest,
)
statements = st.builds(
    Statement,
    kind=st.sampled_from(Kind),
    model_sha256=digest,
    model_form=st.text(max_size=20),
    inputs=st.lists(tensor, max_size=4).map(tuple),
    outputs=st.lists(tensor, max_size=4).map(tuple),
    request_sha256=digest,
    response_sha256=digest,
    nonce=st.binary(max_size=64),
    time=st.integers(0, 253_402_300_799_999).map(
        lambda ms: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
    ),
    server_version=st.text("0123456789.", max_size=20),
    platform=st.sampled_from(Platform),
    keyset_sha256=digest,
    evidence_sha256=digest,
    simulated=st.booleans(),
)


def envelope_parts(receipt):
    """Return protected header, unprotected header, payload and signature."""
    return cbor2.loads(receipt.envelope).value


@given(statements)
def test_any_statement(statement):
    """Every statement reads back equal."""
    assert Statement.parse(statement.dump()) == statement


@given(st.lists(statements, min_size=1, max_size=9))
def test_any_batch(batch):
    """Every receipt of a batch reads back equal, and verifies on its own."""
    for statement, receipt in zip(batch, sign_batch(batch, KEY), strict=True):
        again = Receipt.parse(receipt.dump())
        assert again == receipt
        assert again.statement == statement
        again.check_signature(PUBLIC)


@given(st.binary(max_size=300))
def test_garbage(data):
    """Whatever the bytes, each parser raises `EvidenceError` and nothing else."""
    for parse in (Statement.parse, Receipt.parse, ReceiptFile.parse):
        with pytest.raises(EvidenceError):
            parse(data)


@pytest.mark.parametrize(
    ("parse", "good"),
    [
        (Statement.parse, STATEMENT.dump()),
        (Receipt.parse, RECEIPT.dump()),
        (Receipt.parse, BATCH[2].dump()),
    ],
)
def test_every_length_and_every_byte(parse, good):
    """Cut anywhere it is refused; with a byte changed it is refused, or is another value."""
    for size in range(len(good)):
        with pytest.raises(EvidenceError):
            parse(good[:size])
    with pytest.raises(EvidenceError):
        parse(good + b"\0")
    for position in range(len(good)):
        changed = bytearray(good)
        changed[position] ^= 1
        try:
            found = parse(bytes(changed))
        except EvidenceError:
            continue
        assert found != parse(good)
        assert found.dump() == changed


@pytest.mark.parametrize("receipt", [RECEIPT, *BATCH])
def test_any_changed_byte_breaks_the_signature(receipt):
    """No byte of a receipt can be changed: it is then malformed, or not what was signed."""
    good = receipt.dump()
    for position in range(len(good)):
        changed = bytearray(good)
        changed[position] ^= 0x10
        with pytest.raises((EvidenceError, SignatureError)):
            Receipt.parse(bytes(changed)).check_signature(PUBLIC)


@pytest.mark.parametrize("name", [field.name for field in fields(Statement)])
@pytest.mark.parametrize("receipt", [RECEIPT, BATCH[3]], ids=["single", "batch"])
def test_another_statement_under_a_good_signature(receipt, name):
    """A receipt that states another thing than was signed is refused, whatever it is."""
    other = {
        "kind": Kind.UPLOAD,
        "inputs": STATEMENT.inputs[::-1],
        "outputs": (),
        "nonce": b"other",
        "time": STATEMENT.time + timedelta(milliseconds=1),
        "server_version": "0",
        "model_form": "onnx.int8",
        "platform": Platform.TDX,
        "simulated": False,
    }.get(name, OTHER)
    forged = replace(receipt, statement=replace(receipt.statement, **{name: other}))
    with pytest.raises(SignatureError):
        forged.check_signature(PUBLIC)


def test_another_key():
    """The signature of another key, and a key that is none, are refused."""
    for key in (Ed25519PrivateKey.generate().public_key().public_bytes_raw(), b"short"):
        for receipt in (RECEIPT, BATCH[0]):
            with pytest.raises(SignatureError, match="another's"):
                receipt.check_signature(key)


def test_a_signature_by_hand():
    """The envelope is COSE_Sign1 as RFC 9052 §4.4 has it, with the statement as payload."""
    protected, unprotected, payload, signature = envelope_parts(RECEIPT)
    assert cbor2.loads(RECEIPT.envelope).tag == 18
    assert cbor2.loads(protected) == {1: -8, 3: STATEMENT_TYPE}
    assert unprotected == {}
    assert payload == STATEMENT.dump()
    signed = cbor2.dumps(["Signature1", protected, b"", payload])
    Ed25519PublicKey.from_public_bytes(PUBLIC).verify(signature, signed)


def test_one_signature_for_many():
    """A batch has one envelope, of another type than a statement's; a batch of one has none."""
    assert len({receipt.envelope for receipt in BATCH}) == 1
    assert cbor2.loads(envelope_parts(BATCH[0])[0])[3] == ROOT_TYPE
    assert sign_batch([STATEMENT], KEY) == [RECEIPT]
    for size in (0, MAX_LEAVES + 1):
        with pytest.raises(LimitExceeded, match="one signature"):
            sign_batch([STATEMENT] * size, KEY)


def test_places_in_a_batch_are_not_exchanged():
    """A receipt under its neighbour's proof, or with one taken from a larger tree, is refused."""
    swapped = replace(BATCH[0], inclusion=BATCH[1].inclusion)
    with pytest.raises(SignatureError, match="not among those"):
        swapped.check_signature(PUBLIC)
    for inclusion in (Inclusion(5, BATCH[0].inclusion.path), Inclusion(0, ())):
        with pytest.raises(EvidenceError, match="inclusion proof"):
            replace(BATCH[0], inclusion=inclusion).check_signature(PUBLIC)


def test_a_root_is_no_statement():
    """A root passes for no statement, and a statement for no root, also under a good key."""
    for receipt in (
        replace(BATCH[0], inclusion=None),
        replace(RECEIPT, inclusion=Inclusion(0, ())),
    ):
        with pytest.raises(EvidenceError, match="expected EdDSA"):
            receipt.check_signature(PUBLIC)
        with pytest.raises(EvidenceError):
            Receipt.parse(receipt.dump())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 2}, "version 1"),
        ({"extra": 1}, "a map of exactly"),
        ({"kind": "delete"}, "kind"),
        ({"platform": "abacus"}, "platform"),
        ({"platform": ["x"]}, "platform"),
        ({"nonce": bytes(65)}, "nonce"),
        ({"nonce": "text"}, "nonce"),
        ({"time": -1}, "time"),
        ({"time": 253_402_300_800_000}, "time"),
        ({"time": True}, "time"),
        ({"simulated": 1}, "simulated"),
        ({"model_sha256": bytes(31)}, "model_sha256"),
        ({"server_version": "x" * 65}, "server_version"),
        ({"inputs": {}}, "inputs"),
        ({"inputs": [["x", "FP32", [1]]]}, "inputs"),
        ({"inputs": [["x", "FP32", [-1], OTHER]]}, "shape"),
        ({"inputs": [["x", "FP32", [True], OTHER]]}, "shape"),
        ({"inputs": [["x", 1, [], OTHER]]}, "datatype"),
        ({"outputs": [["x", "FP32", [1], b""]]}, "outputs"),
    ],
)
def test_malformed_statements(change, match):
    """Each field has one type and its bounds."""
    document = cbor2.loads(STATEMENT.dump()) | change
    with pytest.raises(EvidenceError, match=match):
        Statement.parse(cbor2.dumps(document, canonical=True))


def test_deterministic_encoding():
    """A statement is written as RFC 8949 §4.2 says, without being sorted first."""
    data = STATEMENT.dump()
    assert cbor2.dumps(cbor2.loads(data), canonical=True) == data


def test_other_encodings():
    """The same statement, receipt or file in another encoding is refused."""
    for parse, data in (
        (Statement.parse, STATEMENT.dump()),
        (Receipt.parse, RECEIPT.dump()),
        (ReceiptFile.parse, FILE.dump()),
    ):
        document = cbor2.loads(data)
        reordered = dict(reversed(document.items()))
        with pytest.raises(EvidenceError, match="canonical"):
            parse(cbor2.dumps(reordered))


def test_more_tensors_than_a_receipt_holds():
    """Too many tensors, or names too long, are an error when signing, not when verifying."""
    many = replace(STATEMENT, inputs=STATEMENT.inputs * 1000)
    long = replace(STATEMENT, outputs=(TensorDigest("x" * (256 << 10), "FP32", (), OTHER),))
    for statement in (many, long):
        with pytest.raises(LimitExceeded, match="a receipt describes"):
            sign(statement, KEY)
    wide = replace(STATEMENT, inputs=(TensorDigest("x", "FP32", (1,) * 3, OTHER),) * 999)
    assert Receipt.parse(sign(wide, KEY).dump()).statement == wide


def test_tensors_have_boundaries():
    """Name, type, shape, and where one tensor ends, change the digest; the same bytes do not."""
    base = digest_tensor("x", "INT8", [2, 2], b"abcd")
    assert base == digest_tensor("x", "INT8", (2, 2), memoryview(bytearray(b"abcd")))
    others = [
        digest_tensor("y", "INT8", [2, 2], b"abcd"),
        digest_tensor("x", "UINT8", [2, 2], b"abcd"),
        digest_tensor("x", "INT8", [4], b"abcd"),
        digest_tensor("x", "INT8", [2, 2], b"abce"),
        digest_tensor("x", "INT8", [2, 2], b"abcd\0"),
    ]
    assert len({base.sha256, *(other.sha256 for other in others)}) == 6
    framed = cbor2.dumps(["blindai tensor v1", "x", "INT8", [2, 2], 4], canonical=True) + b"abcd"
    assert base.sha256 == hashlib.sha256(framed).digest()


def test_attachments_are_not_in_the_evidence_digest():
    """Endorsements that are added later leave the digest; other evidence or keys do not."""
    shown = SERVER.shown
    evidence = shown.evidence
    added = replace(evidence, attachments={**evidence.attachments, "crl": b"new"})
    assert digest_evidence(replace(shown, evidence=added)) == digest_evidence(shown)
    others = [
        replace(shown, evidence=replace(evidence, body=b"other")),
        replace(shown, evidence=replace(evidence, platform=Platform.TPM)),
        replace(shown, keyset=b"other"),
        replace(shown, devices=(evidence,)),
    ]
    assert len({digest_evidence(each) for each in (shown, *others)}) == 5


def test_a_file():
    """A file reads back equal, with and without a nonce, and with devices' attachments."""
    assert ReceiptFile.parse(FILE.dump()) == FILE
    nobodys = replace(FILE, nonce=None)
    assert ReceiptFile.parse(nobodys.dump()) == nobodys
    device = SERVER.vendor.attest(device_nonce(NONCE, SERVER.keyset))
    bundle = replace(SERVER.shown, devices=(device,))
    with_device = replace(FILE, bundle=bundle, device_attachments=({"ocsp": b"good"},))
    assert ReceiptFile.parse(with_device.dump()) == with_device


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 2}, "version 1"),
        ({"more": 1}, "a map of exactly"),
        ({"receipts": []}, "1 to 1024"),
        ({"receipts": [RECEIPT.dump()] * (MAX_RECEIPTS + 1)}, "1 to 1024"),
        ({"receipts": ["text"]}, "bytes"),
        ({"bundle": b""}, "evidence bundle"),
        ({"bundle": None}, "bytes"),
        ({"nonce": bytes(31)}, "nonce"),
        ({"nonce": 1}, "nonce"),
        ({"device_attachments": [{}]}, "more devices"),
        ({"device_attachments": [1]}, "attachments"),
        ({"device_attachments": [{1: b""}]}, "text"),
        ({"device_attachments": [{"a": 1}]}, "bytes"),
        ({"device_attachments": [{str(i): b"" for i in range(33)}]}, "32"),
        ({"device_attachments": {}}, "32"),
    ],
)
def test_malformed_files(change, match):
    """Each part of a file has one type and its bounds."""
    document = cbor2.loads(FILE.dump()) | change
    with pytest.raises(EvidenceError, match=match):
        ReceiptFile.parse(cbor2.dumps(document, canonical=True))


def test_saving(tmp_path):
    """A file is written whole or not at all, and read back within bounds."""
    path = tmp_path / "run.receipt"
    FILE.save(path)
    replace(FILE, nonce=None).save(path)
    assert ReceiptFile.load(path) == replace(FILE, nonce=None)
    assert [each.name for each in tmp_path.iterdir()] == ["run.receipt"]
    with pytest.raises(ConfigurationError, match="cannot write"):
        FILE.save(tmp_path / "no folder" / "run.receipt")
    with pytest.raises(ConfigurationError, match="cannot write"):
        FILE.save(tmp_path)
    with pytest.raises(ConfigurationError, match="cannot read"):
        ReceiptFile.load(tmp_path / "nothing")
    assert [each.name for each in tmp_path.iterdir()] == ["run.receipt"]
    path.write_bytes(bytes(9 << 20))
    with pytest.raises(EvidenceError, match="at most"):
        ReceiptFile.load(path)
