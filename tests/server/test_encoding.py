"""Compressed bodies: what they stand for, and never more of it than there is room for."""

import gzip
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blindai.errors import InvalidInput, LimitExceeded, Overloaded
from blindai.server.encoding import CODINGS, choose_coding, compress, inflate
from blindai.server.limits import ByteBudget

PACK = {b"gzip": gzip.compress, b"x-gzip": gzip.compress, b"deflate": zlib.compress}
CODING = st.sampled_from(sorted(PACK))
LIMIT = 1 << 20


async def unpack(data, coding=b"gzip", *, limit=LIMIT, room=LIMIT) -> bytes:
    budget = ByteBudget(room)
    with budget.share() as share:
        inflated = bytes(await inflate(data, coding, limit=limit, share=share))
        assert share.used == len(inflated)
    return inflated


def test_every_coding_is_tested():
    """The codings here are those of the server."""
    assert {*PACK, b"identity"} == CODINGS


@given(st.binary(max_size=5000), st.integers(1, 200), CODING)
@example(b"", 1, b"gzip")
@example(bytes(1), 100_000, b"deflate")
async def test_round_trip(data, times, coding):
    """What was compressed comes back, in whatever way it was cut into steps."""
    data *= times
    assert await unpack(PACK[coding](data), coding) == data[:LIMIT]


@given(st.binary(max_size=300), CODING)
async def test_garbage(data, coding):
    """Whatever the bytes, they are inflated or refused."""
    try:
        await unpack(data, coding)
    except InvalidInput:
        return
    assert data[0] in {0x1F, 0x78, 0x08, 0x18, 0x28, 0x38, 0x48, 0x58, 0x68}


@given(st.binary(min_size=1, max_size=500), CODING, st.data())
async def test_cut_short(data, coding, draw):
    """A body that ends early is refused at each length."""
    packed = PACK[coding](data)
    length = draw.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(InvalidInput):
        await unpack(packed[:length], coding)


@pytest.mark.parametrize("coding", sorted(PACK))
@pytest.mark.parametrize("size", [10, 300_000])
async def test_something_behind_it(coding, size):
    """Bytes behind the data are refused, also where they are another member of gzip."""
    packed = PACK[coding](bytes(size))
    for more in (b"x", packed, bytes(100_000)):
        with pytest.raises(InvalidInput, match="nothing after the end"):
            await unpack(packed + more, coding)


@pytest.mark.parametrize("coding", sorted(PACK))
async def test_bomb(coding):
    """A bomb is refused when it passes the limit; no more of it than one step was held."""
    bomb = PACK[coding](bytes(64 << 20))
    assert len(bomb) < 1 << 17
    with pytest.raises(LimitExceeded, match="inflated"):
        await unpack(bomb, coding)
    budget = ByteBudget(LIMIT)
    with budget.share() as share, pytest.raises(Overloaded):
        await inflate(bomb, coding, limit=64 << 20, share=share)
    assert budget.used == 0


async def test_gzip_of_gzip():
    """One coding is taken off, not two."""
    inner = gzip.compress(b"{}")
    assert await unpack(gzip.compress(inner)) == inner


async def test_raw_deflate():
    """Deflate without its frame is none: RFC 9110 asks for zlib's."""
    encoder = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    with pytest.raises(InvalidInput):
        await unpack(encoder.compress(b"abc") + encoder.flush(), b"deflate")


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        (None, None),
        (b"", None),
        (b"gzip", b"gzip"),
        (b" Deflate ", b"deflate"),
        (b"gzip, deflate", None),
        (b"gzip;q=0", None),
        (b"*", None),
        (b"br", None),
        (b"identity", None),
    ],
)
def test_who_gets_a_compressed_answer(accepted, chosen):
    """An answer is compressed for who names one coding, for nobody else."""
    assert choose_coding(accepted) == chosen


@given(st.lists(st.binary(max_size=2000), max_size=5), CODING)
@example([bytes(5000)], b"gzip")
async def test_compressed_answers(parts, coding):
    """An answer is what was compressed; a small one is left alone."""
    packed = compress(parts, coding)
    whole = b"".join(parts)
    if len(whole) < 1024:
        assert packed is None
    else:
        assert await unpack(b"".join(packed), coding) == whole
