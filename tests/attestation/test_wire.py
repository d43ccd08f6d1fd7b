"""Bytes become a bundle or `EvidenceError`, in bounded time and memory."""

import time
import tracemalloc

import cbor2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blindai.attestation.model import Evidence, EvidenceBundle, Platform
from blindai.attestation.wire import (
    MAX_ATTACHMENTS,
    MAX_BUNDLE_BYTES,
    MAX_DEVICES,
    dump_bundle,
    dump_evidence,
    load_cbor,
    parse_bundle,
)
from blindai.errors import EvidenceError
from tests.attestation.examples import bundles, evidences

EVIDENCE = Evidence(Platform.SIMULATION, b"body", {"signature": b"s", "public_key": b"k"})
BUNDLE = EvidenceBundle(EVIDENCE, b"keyset", b"certificate", (EVIDENCE,))


def load(data: bytes) -> object:
    """Decode `data` as anything of evidence is decoded."""
    return load_cbor(data, "test", at_most=MAX_BUNDLE_BYTES)


def document() -> dict:
    """Return a good bundle as plain data, to be spoilt."""
    return cbor2.loads(dump_bundle(BUNDLE))


@given(bundles)
def test_round_trip(bundle):
    """Every bundle reads back equal, and has one encoding."""
    data = dump_bundle(bundle)
    assert parse_bundle(data) == bundle
    assert dump_bundle(parse_bundle(data)) == data


@given(evidences, evidences)
def test_device_digests_cover_everything(one, other):
    """What a device digest covers tells any two pieces of evidence apart."""
    assert (dump_evidence(one) == dump_evidence(other)) == (one == other)


@given(st.binary(max_size=200))
def test_any_bytes(data):
    """Garbage gives a bundle that writes back to it, or `EvidenceError`."""
    try:
        bundle = parse_bundle(data)
    except EvidenceError:
        return
    assert dump_bundle(bundle) == data


@given(bundles, st.data())
def test_any_mutant(bundle, data):
    """A spoilt bundle is refused, or is another bundle in its one encoding."""
    good = bytearray(dump_bundle(bundle))
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        parsed = parse_bundle(bytes(good))
    except EvidenceError:
        return
    assert dump_bundle(parsed) == bytes(good)


def test_every_truncation():
    """No prefix of a bundle is a bundle, and nothing may follow one."""
    data = dump_bundle(BUNDLE)
    for length in range(len(data)):
        with pytest.raises(EvidenceError):
            parse_bundle(data[:length])
    with pytest.raises(EvidenceError, match="unexpected bytes"):
        parse_bundle(data + b"\0")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"version": 2}, "version 1"),
        ({"version": True}, "canonical"),
        ({"version": "x" * 5_000}, "version 1"),
        ({"version": None}, "version 1"),
        ({"extra": 1}, "exactly"),
        ({"devices": None}, "devices"),
        ({"devices": {}}, "devices"),
        ({"devices": [None]}, r"devices\[0\]"),
        ({"keyset": "text"}, "expected bytes"),
        ({"certificate": None}, "expected bytes"),
        ({"evidence": []}, "exactly"),
        ({"evidence": {"platform": "sgx", "body": b""}}, "exactly"),
        ({"evidence": {"platform": "sgx", "body": "", "attachments": {}}}, "expected bytes"),
        ({"evidence": {"platform": "sgx", "body": b"", "attachments": []}}, "attachments"),
        ({"evidence": {"platform": "sgx", "body": b"", "attachments": {1: b""}}}, "text"),
        ({"evidence": {"platform": "sgx", "body": b"", "attachments": {"a": 1}}}, "bytes"),
        ({"evidence": {"platform": "sev", "body": b"", "attachments": {}}}, "unsupported"),
        ({"evidence": {"platform": [], "body": b"", "attachments": {}}}, "unsupported"),
        ({"evidence": {"platform": 2**63, "body": b"", "attachments": {}}}, "unsupported"),
        (
            {
                "evidence": {
                    "platform": "sgx",
                    "body": b"",
                    "attachments": {f"{i:04}": b"" for i in range(MAX_ATTACHMENTS + 1)},
                }
            },
            "at most",
        ),
        ({"devices": [document()["evidence"]] * (MAX_DEVICES + 1)}, "at most"),
    ],
)
def test_refusals(change, why):
    """A document of another shape is refused with the name of what is wrong."""
    data = cbor2.dumps(document() | change, canonical=True)
    with pytest.raises(EvidenceError, match=why) as error:
        parse_bundle(data)
    assert len(str(error.value)) < 300


def test_missing_field():
    """Every field has to be there."""
    for name in document():
        data = cbor2.dumps({k: v for k, v in document().items() if k != name}, canonical=True)
        with pytest.raises(EvidenceError, match="exactly"):
            parse_bundle(data)


def test_only_the_canonical_encoding():
    """Another order, a longer length or an indefinite one is another digest: refused."""
    good = document()
    keys = sorted(good, reverse=True)
    shuffled = cbor2.dumps({key: good[key] for key in keys})
    indefinite = cbor2.dumps(good, canonical=True)
    indefinite = b"\xbf" + indefinite[1:] + b"\xff"
    longer = dump_bundle(BUNDLE).replace(b"\x44body", b"\x58\x04body")
    for data in (shuffled, indefinite, longer):
        assert load(data) == good
        with pytest.raises(EvidenceError, match="canonical"):
            parse_bundle(data)


def test_too_large():
    """Size is judged before anything is decoded."""
    with pytest.raises(EvidenceError, match="at most 4194304"):
        parse_bundle(bytes(MAX_BUNDLE_BYTES + 1))


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.binary(max_size=300)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text("abc", max_size=3) | st.integers(-3, 300), inner, max_size=5)
    ),
    max_leaves=8,
)


@given(plain)
def test_load_plain(item):
    """What an independent encoder writes of plain data is read, type by type."""
    data = cbor2.dumps(item)
    try:
        found = load(data)
    except EvidenceError as error:
        assert "nested too deeply" in str(error)  # noqa: PT017
        return
    assert found == item
    assert cbor2.dumps(found) == data


@given(st.binary(max_size=64))
@example(b"\x9f\xff")
@example(b"\xbf\x01\x02\xff")
@example(b"\x9f")
@example(b"\xbf\x01")
@example(b"\x81\xff")
def test_load_agrees_with_another_decoder(data):
    """Whatever is accepted, `cbor2` reads as the same; so nobody sees another document."""
    try:
        found = load(data)
    except EvidenceError:
        return
    assert cbor2.loads(data, allow_duplicate_keys=False) == found


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(bytes.fromhex(text), id=what)
        for what, text in {
            "tag: date": "c074323032302d30312d30315430303a30303a30305a",
            "tag: bignum": "c24101",
            "tag: decimal of 10^4294967295": "c4821affffffff03",
            "tag: bigfloat of 2^(2^63)": "c5821b7fffffffffffffff03",
            "tag: shared": "d81c80",
            "tag: cyclic": "d81c81d81d00",
            "tag: reference": "82d81c8101d81d00",
            "tag: string references": "d901008344616161614461616161d81900",
            "tag: regular expression": "d8236128",
            "tag: set": "d9010283010203",
            "tag: complex": "d9a7f8820102",
            "tag: itself": "d9d9f700",
            "tag inside": "81c100",
            "tag as a key": "a1c10000",
            "float": "fb3ff0000000000000",
            "half float": "f93c00",
            "infinity": "f97c00",
            "undefined": "f7",
            "simple value": "f0",
            "simple value in a byte": "f8ff",
            "false in two bytes": "f814",
            "break": "ff",
            "break as a value": "bf01ff",
            "break in an array of a length": "82ff",
            "reserved length": "1c",
            "reserved length of a string": "5d",
            "indefinite integer": "1f",
            "indefinite bytes": "5f4161ff",
            "indefinite text": "7f6161ff",
            "key twice": "a201000100",
            "key twice, encoded differently": "a20100180100",
            "array as a key": "a18000",
            "map as a key": "a1a000",
            "bytes as a key": "a1416100",
            "true as a key": "a1f500",
            "null as a key": "a1f600",
            "bad UTF-8": "61ff",
            "surrogate": "63eda080",
            "nothing": "",
            "two items": "0000",
            "nine levels": "818181818181818180",
            "nine levels of maps": "a100a100a100a100a100a100a100a100a0",
        }.items()
    ],
)
def test_load_refuses(data):
    """Nothing but plain data is ever built."""
    with pytest.raises(EvidenceError):
        load(data)


def sharing(levels: int, width: int) -> bytes:
    """Return arrays of which each holds `width` references to the one before (tags 28, 29)."""
    data = bytes([0x80 + levels]) + b"\xd8\x1c\x81\x00"
    for level in range(1, levels):
        data += b"\xd8\x1c\x98" + bytes([width]) + (b"\xd8\x1d" + bytes([level - 1])) * width
    return data


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(data, id=what)
        for what, data in {
            "bytes of 2^62": b"\x5b\x40" + bytes(7) + b"a",
            "bytes of 2^64 - 1": b"\x5b" + b"\xff" * 8,
            "text of 2^62": b"\x7b\x40" + bytes(7) + b"a",
            "array of 2^62": b"\x9b\x40" + bytes(7) + b"\0",
            "array of 2^64 - 1": b"\x9b" + b"\xff" * 9,
            "map of 2^62": b"\xbb\x40" + bytes(7) + b"\0\0",
            "arrays of 2^28 in each other": b"\x9a\x10\0\0\0" * 7,
            "100,000 levels": b"\x81" * 100_000,
            "100,000 levels of tags": b"\xc6" * 100_000,
            "100,000 endless levels": b"\x9f" * 100_000,
            "references that multiply": sharing(7, 255),
            "4 million zeros": b"\x9a\x00\x3f\xff\xf0" + bytes(0x3FFFF0),
            "4 million empty arrays": b"\x9f" + b"\x80" * 0x3FFFF0 + b"\xff",
            "a million keys": b"\xbf"
            + b"".join(b"\x19" + i.to_bytes(2) + b"\0" for i in range(1 << 16))
            + b"\xff",
            "a million digits": b"\xc2\x5a\x00\x10\x00\x00" + b"\xff" * (1 << 20),
            "a string that is referred to": b"\xd9\x01\x00\x9f\x5a\x00\x20\x00\x00"
            + bytes(1 << 21)
            + b"\xd8\x19\x00" * 10_000
            + b"\xff",
        }.items()
    ],
)
def test_bombs(data):
    """A few bytes can take neither time nor memory, whatever lengths they declare."""
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(EvidenceError):
            load(data)
        seconds = time.process_time() - start
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (8 << 20)
    assert seconds < 1
