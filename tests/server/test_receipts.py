"""Receipts that a real server signs, over real sockets."""

import asyncio
import base64
import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from blindai.attestation import wire
from blindai.attestation.model import Platform
from blindai.attestation.policy import Policy
from blindai.attesters.simulation import SimulationAttester
from blindai.channel.receipt_file import ReceiptFile
from blindai.channel.receipts import Receipt
from blindai.channel.statement import Kind, TensorDigest, digest_evidence
from blindai.errors import InvalidInput, LimitExceeded
from blindai.inference.tensors import DataType
from blindai.receipt import verify_receipt
from blindai.server.config import Limits, ServerConfig
from blindai.server.identity import EvidenceDesk, Identity
from blindai.server.receipts import Facts, ReceiptDesk, ReceiptWish, parse_wish
from tests.inference.models import identity
from tests.server.talk import authorized, infer_body, request

INFER = "/v2/models/identity-fp32/infer"
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
CONFIG = ServerConfig(platform=Platform.SIMULATION, key_lifetime=timedelta(days=1))
OTHER = hashlib.sha256(b"other").digest()


def receipt_of(reply):
    """Return the receipt that an answer's header carries."""
    return Receipt.parse(base64.b64decode(reply.headers["x-blindai-receipt"], validate=True))


def file_of(server, reply):
    """Return a file of an answer's receipt and the evidence that everybody gets."""
    bundle = wire.parse_bundle(request(server, "GET", "/blindai/v1/evidence").body)
    return ReceiptFile((receipt_of(reply),), bundle, None)


def test_a_run_with_plain_json(server):
    """Anybody with an HTTP library gets a receipt of the bytes that went over the wire."""
    parameters = {"receipt": True, "receipt_nonce": "0a0b"}
    body = infer_body([1.0, 2.0], parameters=parameters)
    reply = request(server, "POST", INFER, body)
    assert reply.status == 200
    result = verify_receipt(
        file_of(server, reply),
        Policy.simulation(),
        inputs={"x": [1.0, 2.0]},
        outputs={"y": [1.0, 2.0]},
        model=identity(DataType.FP32),
        request=body,
        response=reply.body,
        nonce=b"\x0a\x0b",
        now=datetime.now(UTC),
    )
    assert result.simulated
    assert result.statement.kind is Kind.RUN


def test_no_receipt_unless_asked(server):
    """A request that asks for none, or says so, gets none."""
    for parameters in ({}, {"receipt": False}):
        reply = request(server, "POST", INFER, infer_body([1.0], parameters=parameters))
        assert reply.status == 200
        assert "x-blindai-receipt" not in reply.headers


def test_the_evidence_that_the_caller_verified(server):
    """The receipt names the evidence that the caller says, so it fits in one file with it."""
    parameters = {"receipt": True, "receipt_evidence": OTHER.hex()}
    reply = request(server, "POST", INFER, infer_body([1.0], parameters=parameters))
    assert receipt_of(reply).statement.evidence_sha256 == OTHER


def test_an_upload(server):
    """An upload's receipt is of the model's file and the answer's bytes."""
    model = identity(DataType.INT32)
    path = "/blindai/v1/models/received?receipt=true&receipt_nonce=ff&replace=true"
    reply = request(server, "PUT", path, model, authorized(server))
    assert reply.status == 201
    result = verify_receipt(
        file_of(server, reply),
        Policy.simulation(),
        model=model,
        request=model,
        response=reply.body,
        nonce=b"\xff",
    )
    assert result.statement.kind is Kind.UPLOAD
    plain = request(server, "PUT", "/blindai/v1/models/received", model, authorized(server))
    assert "x-blindai-receipt" not in plain.headers
    bad = "/blindai/v1/models/received?receipt=yes"
    assert request(server, "PUT", bad, model, authorized(server)).status == 400


@pytest.mark.parametrize(
    "parameters",
    [
        {"receipt": 1},
        {"receipt": "true"},
        {"receipt": True, "receipt_nonce": "0"},
        {"receipt": True, "receipt_nonce": "0G"},
        {"receipt": True, "receipt_nonce": "00" * 65},
        {"receipt": True, "receipt_nonce": 7},
        {"receipt": True, "receipt_evidence": "00"},
        {"receipt": True, "receipt_evidence": ["00" * 32]},
        {"receipt": True, "receipt_evidence": "00" * 32 + "\n"},
    ],
)
def test_wishes_that_cannot_be_understood(server, parameters):
    """What is no wish for a receipt is refused, before the model runs."""
    with pytest.raises(InvalidInput, match=r"parameters\.receipt"):
        parse_wish(parameters)
    reply = request(server, "POST", INFER, infer_body([1.0], parameters=parameters))
    assert reply.status == 400
    assert reply.error == "InvalidInput"


def facts(nonce=b"", *, tensors=0):
    """Return what a run of nothing states."""
    outputs = tuple(TensorDigest(f"y{i}", "FP32", (1,), OTHER) for i in range(tensors))
    return Facts(ReceiptWish(nonce, None), Kind.RUN, OTHER, "onnx.fp32", (), outputs, OTHER, OTHER)


@pytest.fixture
def desk():
    with ThreadPoolExecutor(1) as executor:
        made = Identity.create(SimulationAttester(NOW.timestamp), CONFIG, now=NOW)
        yield EvidenceDesk(made, executor, Limits())


async def test_one_signature_for_all_that_finish_together(desk):
    """What waits in the same turn of the loop is signed once; each receipt stands alone."""
    receipts = ReceiptDesk(desk, clock=lambda: NOW)
    await receipts.sign(facts())
    headers = await asyncio.gather(*(receipts.sign(facts(bytes([i]))) for i in range(9)))
    found = [Receipt.parse(base64.b64decode(value)) for _, value in headers]
    assert [receipt.statement.nonce for receipt in found] == [bytes([i]) for i in range(9)]
    assert len({receipt.envelope for receipt in found}) == 1
    bundle = wire.parse_bundle(await desk.cached())
    assert {receipt.statement.evidence_sha256 for receipt in found} == {digest_evidence(bundle)}
    for receipt in found:
        receipt.check_signature(desk.identity.keys.public.receipt_public_key)


async def test_too_many_tensors(desk):
    """A receipt that no header holds is an error of its request, and spoils no other's."""
    receipts = ReceiptDesk(desk, clock=lambda: NOW)
    outcomes = await asyncio.gather(
        receipts.sign(facts(tensors=500)),
        receipts.sign(facts(tensors=5000)),
        receipts.sign(facts()),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [LimitExceeded, LimitExceeded, tuple]


async def test_a_caller_that_left(desk):
    """A request that is cancelled while it waits for its receipt takes none from others."""
    receipts = ReceiptDesk(desk, clock=lambda: NOW)
    await receipts.sign(facts())
    gone = asyncio.create_task(receipts.sign(facts(b"gone")))
    stays = asyncio.create_task(receipts.sign(facts(b"stays")))
    await asyncio.sleep(0)
    gone.cancel()
    name, value = await stays
    assert name == b"x-blindai-receipt"
    assert Receipt.parse(base64.b64decode(value)).statement.nonce == b"stays"
    with pytest.raises(asyncio.CancelledError):
        await gone
