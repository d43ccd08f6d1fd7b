"""Receipts as both clients get them from the real server, and what they refuse."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

import blindai
from blindai.attestation.stored import StoredEvidence
from blindai.channel.receipts import sign
from blindai.channel.statement import Kind
from blindai.client.messages import Response
from blindai.client.receipts import RECEIPT_HEADER, ReceiptRequest
from blindai.testing.server import start_server
from tests.client.test_real_server import ROW, double
from tests.receipts import CLIENT_NONCE, MODEL, REQUEST, RESPONSE, Signer
from tests.servers import NONCE

TEN_YEARS = timedelta(days=3653)
SIGNER = Signer()
OTHER = hashlib.sha256(b"other").digest()


@pytest.fixture(scope="module")
def real():
    """Return a running server with one model."""
    with start_server(models={"double": double()}) as running:
        yield running


def check(file, **held):
    """Verify a receipt file ten years later."""
    now = datetime.now(UTC) + TEN_YEARS
    return blindai.verify_receipt(file, blindai.Policy.simulation(), now=now, **held)


def test_a_run_and_an_upload(connect, real, tmp_path):
    """A receipt of each is saved, and verifies without the server, ten years on."""
    client = connect(real.address, token=real.token)
    assert client.run_model("double", ROW).receipt is None
    result = client.run_model("double", ROW, receipt=True)
    path = tmp_path / "run.receipt"
    result.receipt.save(path)
    verified = check(path, inputs={"x": ROW}, outputs=result.as_numpy(), model=double())
    assert verified.simulated
    with pytest.raises(blindai.BindingError, match=r"inputs\.x\.sha256"):
        check(path, inputs={"x": ROW + 1})
    info = client.upload_model(double("z"), "mine", receipt=True)
    assert check(info.receipt, model=double("z")).statement.kind is Kind.UPLOAD
    assert client.upload_model(double("z"), "mine", replace=True).receipt is None


async def test_asyncio(real):
    """The asyncio client asks for receipts as well."""
    client = blindai.AsyncClient(real.address, simulation=True, token=real.token)
    with pytest.warns(blindai.SimulationWarning):
        await client.connect()
    async with client:
        result = await client.run_model("double", ROW, receipt=True)
        info = await client.upload_model(double("w"), "async", receipt=True)
    np.testing.assert_array_equal(result["y"], ROW * 2)
    assert check(result.receipt, inputs={"x": ROW}, outputs=result.as_numpy())
    assert check(info.receipt, model=double("w"))


def test_after_a_restart(connect):
    """After new keys the next receipt is for the new keys' evidence."""
    with start_server(models={"double": double()}) as server:
        client = connect(server.address)
        first = client.run_model("double", ROW, receipt=True)
        server.restart()
        client.run_model("double", ROW)
        second = client.run_model("double", ROW, receipt=True)
    assert first.receipt.bundle.keyset != second.receipt.bundle.keyset
    for result in (first, second):
        assert check(result.receipt, outputs=result.as_numpy())


def test_a_restart_that_nobody_saw_before_the_request(connect):
    """A request that meets new keys is made anew for them: its result and receipt are not lost."""
    with start_server(models={"double": double()}) as server:
        client = connect(server.address, token=server.token)
        client.run_model("double", ROW)
        server.restart()
        result = client.run_model("double", ROW, receipt=True)
        server.restart()
        info = client.upload_model(double("z"), "mine", receipt=True)
    assert check(result.receipt, inputs={"x": ROW}, outputs=result.as_numpy())
    assert check(info.receipt, model=double("z"))
    assert info.receipt.bundle.keyset != result.receipt.bundle.keyset


def test_a_restart_that_a_lookup_meets(connect):
    """Where looking the model up again meets the new keys, the run's receipt is one of theirs."""
    with start_server(models={"double": double()}) as server:
        client = connect(server.address)
        client.run_model("double", ROW, receipt=True)
        for _ in range(2):
            server.restart()
            with pytest.raises(blindai.InvalidInput):
                # Looked up again, at the new keys, and refused here.
                client.run_model("double", np.zeros((1, 9), np.float32), receipt=True)
            assert client.run_model("double", ROW, receipt=True).receipt is not None


def taken(value, **changes):
    """Return what the client takes from an answer with a receipt header of `value`."""
    headers = {} if value is None else {RECEIPT_HEADER: value}
    shown = StoredEvidence(SIGNER.shown, NONCE, SIGNER.certificate)
    expected = {
        "model_sha256": hashlib.sha256(MODEL).hexdigest(),
        "request_sha256": hashlib.sha256(REQUEST).digest(),
    }
    answer = Response(200, headers, memoryview(bytearray(RESPONSE)))
    return ReceiptRequest(shown, CLIENT_NONCE).take(answer, Kind.RUN, **expected | changes)


def header(statement, key=SIGNER.keys.receipt):
    """Return the header that carries a signed statement."""
    return base64.b64encode(sign(statement, key).dump()).decode()


def test_an_honest_answer():
    """The receipt is returned with the evidence that the client verified."""
    file = taken(header(SIGNER.statement()))
    assert file.bundle == SIGNER.shown
    assert file.nonce == NONCE


@pytest.mark.parametrize("value", [None, "", "!", "AAAA", "é", "A" * 1_000_000])
def test_no_receipt(value):
    """An answer without a receipt, or with garbage, is an error: it was asked for."""
    with pytest.raises(blindai.InferenceError):
        taken(value)


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("keyset_sha256", OTHER, "keyset"),
        ("evidence_sha256", OTHER, "evidence"),
        ("kind", Kind.UPLOAD, "kind"),
        ("nonce", b"yesterday's", "nonce"),
        ("model_sha256", OTHER, "model"),
        ("request_sha256", OTHER, "request"),
        ("response_sha256", OTHER, "response"),
    ],
)
def test_a_receipt_of_something_else(field, value, name):
    """A receipt of another request, model or key is refused by name, when it comes."""
    with pytest.raises(blindai.BindingError, match=f"differs in {name}$"):
        taken(header(SIGNER.statement(**{field: value})))


def test_another_key():
    """A receipt that another key signed is refused when it comes."""
    with pytest.raises(blindai.SignatureError):
        taken(header(SIGNER.statement(), Signer().keys.receipt))
