"""The formats of sealed files are pinned, and their parsers refuse everything else."""

import io

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from hypothesis import given
from hypothesis import strategies as st

from blindai.errors import InvalidInput, SealedDataError
from blindai.inference.records import check_name
from blindai.inference.registry import (
    Registry,
    SealedModel,
    VaultKey,
    dump_registry,
    is_sealed_under,
    parse_registry,
    seal_registry,
    unseal_registry,
)
from blindai.inference.sealed_file import (
    HEADER_SIZE,
    Header,
    Kind,
    new_header,
    parse_header,
    seal_stream,
    unseal_pieces,
)
from tests.inference.vaults import KEY, LARGE, MIB, OTHER_KEY, SMALL, sha256

DATA_KEY = bytes(range(100, 132))
FILE_ID = bytes(range(16))

headers = st.builds(
    Header,
    kind=st.sampled_from(Kind),
    key_version=st.integers(0, 2**32 - 1),
    file_id=st.binary(min_size=16, max_size=16),
    size=st.integers(0, (1 << 52) - 1),
    chunk_log2=st.integers(20, 22),
)
options = st.dictionaries(st.text(max_size=9), st.booleans() | st.integers(-9, 9) | st.text())


def is_name(text):
    try:
        check_name(text)
    except InvalidInput:
        return False
    return True


@st.composite
def registries(draw):
    """Draw a registry that a vault could write."""
    texts = st.from_regex(r"[a-z][a-z0-9.]{0,9}", fullmatch=True).filter(is_name)
    names = draw(st.lists(texts, unique=True, max_size=6))
    models = tuple(
        SealedModel(
            sha256(str(i).encode()),
            draw(st.integers(0, 2**63)),
            tuple(sorted(names[i : i + 2])),
            bytes([i]) * 16,
            draw(options),
            draw(st.integers(0, 99_999)),
        )
        for i in range(0, len(names), 2)
    )
    return Registry(draw(st.none() | st.integers(0, 2**63)), models)


def seal(data, header):
    out = io.BytesIO()
    seal_stream(io.BytesIO(data), out.write, header, DATA_KEY)
    return out.getvalue()


def unseal(file, header, key=DATA_KEY):
    return b"".join(map(bytes, unseal_pieces(io.BytesIO(file[HEADER_SIZE:]), header, key)))


def test_the_format_of_a_file():
    """A sealed file is what the specification at the top of the module says, bit for bit."""
    header = Header(Kind.MODEL, 7, FILE_ID, len(LARGE))
    info = b"blindai sealed file v1" + b"\x01" + b"\0\0\0\x07"
    derived = HKDF(SHA256(), 39, salt=FILE_ID, info=info).derive(DATA_KEY)
    associated = b"BAISEAL1\x01\x14\0\0\0\x07" + FILE_ID + len(LARGE).to_bytes(8)
    expected = associated
    for number, last in ((0, 0), (1, 0), (2, 1)):
        nonce = derived[32:] + bytes([0, 0, 0, number, last])
        chunk = LARGE[number * MIB : (number + 1) * MIB]
        expected += AESGCM(derived[:32]).encrypt(nonce, chunk, associated)
    assert seal(LARGE, header) == expected
    assert header.sealed_size == len(expected)
    assert unseal(expected, header) == LARGE


def test_the_format_of_a_registry():
    """A registry's file begins as its specification says; the wrapped key is RFC 3394's."""
    file = seal_registry(Registry(), VaultKey(KEY, DATA_KEY, 3))
    wrap = HKDF(SHA256(), 32, salt=None, info=b"blindai data key wrap v1").derive(KEY)
    key_id = HKDF(SHA256(), 16, salt=None, info=b"blindai sealing key id v1").derive(KEY)
    front = b"BAIVAUL1" + key_id + b"\0\0\0\x03" + aes_key_wrap(wrap, DATA_KEY)
    assert file.startswith(front + bytes.fromhex(sha256(front)) + b"BAISEAL1\x02\x14\0\0\0\x03")
    assert is_sealed_under(file, KEY)
    assert not is_sealed_under(file, OTHER_KEY)


@given(headers)
def test_headers_come_back(header):
    """A header is read as it was written, and its sizes add up."""
    data = header.to_bytes()
    assert len(data) == HEADER_SIZE
    assert parse_header(data) == header
    assert (header.chunks - 1) * header.chunk_size <= header.size
    assert header.size <= header.chunks * header.chunk_size
    assert header.sealed_size == HEADER_SIZE + header.size + 16 * header.chunks


@given(st.binary(max_size=60) | headers.map(lambda h: h.to_bytes()), st.binary(max_size=9))
def test_strange_headers(data, more):
    """Any bytes are a header that would be written the same way, or a SealedDataError."""
    try:
        header = parse_header(data + more)
    except SealedDataError:
        return
    assert header.to_bytes() == data + more


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [(0, 0x41, "beginning with"), (8, 0, "kind"), (8, 3, "kind"), (9, 19, "2.19"), (9, 23, "2.23")],
)
def test_headers_of_other_formats(at, value, message):
    """Another magic, kind or size of chunks is refused by name."""
    data = bytearray(Header(Kind.MODEL, 1, FILE_ID, 5).to_bytes())
    data[at] = value
    with pytest.raises(SealedDataError, match=message):
        parse_header(bytes(data))


def test_sizes_beyond_the_counter():
    """A file with more chunks than the nonce can count is neither read nor begun."""
    with pytest.raises(SealedDataError, match="less than"):
        parse_header(Header(Kind.MODEL, 1, FILE_ID, 1 << 52).to_bytes())
    with pytest.raises(InvalidInput, match="expected at most"):
        new_header(Kind.MODEL, 1, 1 << 52)


@pytest.mark.parametrize(
    "other",
    [
        Header(Kind.REGISTRY, 1, FILE_ID, len(SMALL)),
        Header(Kind.MODEL, 2, FILE_ID, len(SMALL)),
        Header(Kind.MODEL, 1, bytes(16), len(SMALL)),
        Header(Kind.MODEL, 1, FILE_ID, len(SMALL), 21),
    ],
)
def test_every_field_of_the_header_is_bound(other):
    """Chunks open under the very header that they were sealed under, and under no other."""
    header = Header(Kind.MODEL, 1, FILE_ID, len(SMALL))
    file = seal(SMALL, header)
    with pytest.raises(SealedDataError, match="not what was sealed"):
        unseal(file, other)
    with pytest.raises(SealedDataError, match="of another key"):
        unseal(file, header, bytes(32))
    assert unseal(file, header) == SMALL


def test_streams_that_end_wrongly():
    """Without the size of the file, too, a stream cut at a chunk or extended is refused."""
    header = Header(Kind.MODEL, 1, FILE_ID, len(LARGE))
    file = seal(LARGE, header)
    with pytest.raises(SealedDataError, match="truncated"):
        unseal(file[: HEADER_SIZE + 2 * (MIB + 16)], header)
    with pytest.raises(SealedDataError, match="extended"):
        unseal(file + b"\0", header)
    shorter = Header(Kind.MODEL, 1, FILE_ID, 2 * MIB)
    with pytest.raises(SealedDataError, match="chunk 1 of 2"):
        unseal(file[: HEADER_SIZE + 2 * (MIB + 16)], shorter)


@given(registries())
def test_registries_come_back(registry):
    """A registry is read as it was written."""
    assert parse_registry(dump_registry(registry)) == registry
    file = seal_registry(registry, VaultKey(KEY, DATA_KEY, 1))
    assert unseal_registry(file, KEY) == (registry, VaultKey(KEY, DATA_KEY, 1))


@given(st.binary(max_size=200) | registries().map(dump_registry), st.binary(max_size=4))
def test_strange_registries(data, more):
    """Any bytes are a registry that would be written the same way, or a SealedDataError."""
    for read in (parse_registry, lambda data: unseal_registry(data, KEY)[0]):
        try:
            registry = read(data + more)
        except SealedDataError:
            continue
        assert dump_registry(registry) == data + more


GOOD = SealedModel(sha256(b""), 0, ("a",), FILE_ID)


@pytest.mark.parametrize(
    "models",
    [
        (GOOD, GOOD),
        (GOOD, SealedModel(sha256(b"1"), 0, ("b",), FILE_ID)),
        (GOOD, SealedModel(sha256(b"1"), 0, ("a",), bytes(16))),
        (SealedModel(sha256(b""), 0, (), FILE_ID),),
        (SealedModel(sha256(b""), 0, ("b", "a"), FILE_ID),),
        (SealedModel(sha256(b""), 0, ("../a",), FILE_ID),),
        (SealedModel(sha256(b""), -1, ("a",), FILE_ID),),
        (SealedModel("0", 0, ("a",), FILE_ID),),
        (SealedModel(sha256(b""), 0, ("a",), b"/etc"),),
    ],
)
def test_registries_that_contradict_themselves(models):
    """A list with a model, name or file twice, or with an impossible one, is refused."""
    with pytest.raises(SealedDataError, match="the registry"):
        parse_registry(dump_registry(Registry(models=models)))


@pytest.mark.parametrize(
    "data",
    [b"{}", b'{"epoch":null,"models":[],"format":2}', b"[" * 100_000, b" " * (4 * MIB + 1)],
    ids=["defaults", "format", "depth", "size"],
)
def test_registries_of_other_formats(data):
    """Left-out fields, another version, deep nesting or too many bytes are refused."""
    with pytest.raises(SealedDataError, match="registry"):
        parse_registry(data)


def test_keys_are_not_shown():
    """The repr of keys has no key in it, so no traceback or log has."""
    assert repr(VaultKey(KEY, DATA_KEY, 1)) == "VaultKey(version=1)"
