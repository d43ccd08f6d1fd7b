"""A receipt years later, in the hands of somebody who trusts nobody but the hardware's vendor."""

import hashlib
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

import blindai
from blindai.attestation.model import Platform
from blindai.attestation.policy import Acceptance, Pattern, Policy
from blindai.channel.receipt_file import ReceiptFile
from blindai.channel.receipts import sign, sign_batch
from blindai.channel.statement import Kind, TensorDigest
from blindai.errors import (
    AppraisalError,
    AttestationError,
    BindingError,
    ConfigurationError,
    EvidenceError,
    InvalidInput,
    SignatureError,
)
from blindai.inference.tensors import from_array
from blindai.receipt import STEPS, ReceiptResult, verify_receipt
from blindai.testing import FAKES
from tests.receipts import CLIENT_NONCE, HELD, INPUTS, MODEL, OUTPUTS, Signer
from tests.servers import NONCE

OTHER = hashlib.sha256(b"other").digest()
TEN_YEARS = timedelta(days=3653)
MACHINES = [platform for platform in FAKES if platform is not Platform.NVIDIA_GPU]


@pytest.fixture(scope="module")
def server():
    return Signer()


def accepting(server):
    """Return a policy that accepts exactly what a server's machine claims."""
    claims = server.verify_platform()
    return Policy(
        (
            Acceptance(
                claims.platform,
                {name: (Pattern(value),) for name, value in claims.measurements.items()},
                tolerate=claims.weaknesses,
            ),
        )
    )


def assert_failed_at(error, name):
    """Everything before the step `name` passed, it failed, and nothing after it was looked at."""
    names = [step.name for step in STEPS]
    index = names.index(name)
    states = [step.status for step in error.value.steps[: len(STEPS)]]
    assert states == ["passed"] * index + ["failed"] + ["skipped"] * (len(STEPS) - index - 1)


def test_an_honest_receipt(server):
    """The result says what was compared, and that it is simulated."""
    result = server.verify_receipt(**HELD)
    assert isinstance(result, ReceiptResult)
    assert result.statement == server.statement()
    assert sorted(result.compared) == sorted(HELD)
    assert result.attestation.verified_at == server.time
    assert [step.name for step in result.steps[: len(STEPS)]] == [step.name for step in STEPS]
    assert result.steps[len(STEPS) :] == result.attestation.steps
    assert {step.status for step in result.steps} == {"passed"}
    assert result.simulated
    assert str(result).startswith("SIMULATED, not protected by hardware: receipt of a run")
    assert "ids: INT64[1, 3]" in str(result)


def test_nothing_to_compare_with(server):
    """Without anything held, the server's word stands alone, and the result says so."""
    result = server.verify_receipt()
    assert result.compared == ()
    assert "compared    with nothing that you hold" in str(result)


@pytest.mark.parametrize("platform", MACHINES)
def test_ten_years_later_on_every_platform(platform):
    """A receipt holds on any hardware, offline, with the clock ten years on."""
    server = Signer(FAKES[platform]())
    policy = accepting(server)
    result = server.verify_receipt(policy=policy, now=server.now + TEN_YEARS, **HELD)
    assert result.attestation.platform is platform
    assert result.simulated is (platform is Platform.SIMULATION)
    assert str(result).startswith("SIMULATED" if result.simulated else "verified")
    assert platform in str(result)


@pytest.mark.parametrize("platform", MACHINES)
def test_evidence_that_did_not_hold_then(platform):
    """Endorsements and keys had to hold as of the receipt's time, whatever signs it."""
    server = Signer(FAKES[platform]())
    file = server.file(time=server.now + TEN_YEARS)
    with pytest.raises(BindingError, match=r"^time: .*expired") as error:
        server.verify_receipt(file, accepting(server))
    assert_failed_at(error, "time")


def test_a_life_that_ended_before_the_keys():
    """Where the evidence rests on what ended earlier, the keys' own end does not help."""
    server = Signer(FAKES[Platform.NITRO](), lifetime=timedelta(days=30))
    file = server.file(time=server.now + timedelta(days=20))
    with pytest.raises(AttestationError) as error:
        server.verify_receipt(file, accepting(server))
    assert_failed_at(error, "evidence")
    assert "failed" in [step.status for step in error.value.steps[len(STEPS) :]]


@pytest.mark.parametrize(
    ("field", "value", "step", "match"),
    [
        ("model_sha256", OTHER, "content", "model: expected sha256:"),
        ("inputs", (), "content", "inputs: expected ids, mask, text, found none"),
        ("outputs", (), "content", "outputs: expected logits, found none"),
        ("request_sha256", OTHER, "content", "request: expected sha256:"),
        ("response_sha256", OTHER, "content", "response: expected sha256:"),
        ("nonce", b"yesterday's", "content", "nonce: expected"),
        ("nonce", b"", "content", "nonce: expected .* found none"),
        ("platform", Platform.TDX, "origin", "platform: expected simulation, found tdx"),
        ("keyset_sha256", OTHER, "origin", "keyset: expected"),
        ("evidence_sha256", OTHER, "origin", "evidence: expected"),
        ("simulated", False, "evidence", "simulated: the receipt says False"),
    ],
)
def test_another_field_by_name(server, field, value, step, match):
    """What the genuine key signed of something else is refused by the name of what differs."""
    with pytest.raises(BindingError, match=match) as error:
        server.verify_receipt(server.file(**{field: value}), **HELD)
    assert_failed_at(error, step)


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("kind", Kind.UPLOAD, "key"),
        ("model_sha256", OTHER, "differs in model$"),
        ("model_form", "onnx.int8", "key"),
        ("inputs", (), "differs in inputs$"),
        ("outputs", (), "differs in outputs$"),
        ("request_sha256", OTHER, "differs in request$"),
        ("response_sha256", OTHER, "differs in response$"),
        ("nonce", b"", "differs in nonce$"),
        ("time", None, "key"),
        ("server_version", "9.9.9", "key"),
        ("platform", Platform.SGX, "differs in platform$"),
        ("keyset_sha256", OTHER, "differs in keyset$"),
        ("evidence_sha256", OTHER, "differs in evidence$"),
        ("simulated", False, "key"),
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_a_field_changed_after_signing(server, count, field, value, match):
    """A changed receipt is refused by its signature, and by name where that can be told."""
    receipt = sign_batch([server.statement()] * count, server.keys.receipt)[0]
    value = server.time + timedelta(seconds=1) if field == "time" else value
    other = replace(receipt.statement, **{field: value})
    # Under the genuine signature, and as a forger signs it who has no such key.
    forged = [replace(receipt, statement=other), sign(other, Signer().keys.receipt)]
    for each in forged:
        with pytest.raises(SignatureError, match=match) as error:
            server.verify_receipt(replace(server.file(), receipts=(each,)), **HELD)
        assert_failed_at(error, "receipt")


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        (
            dict(reversed(INPUTS.items())),
            "inputs: expected text, mask, ids in this order, found ids",
        ),
        (INPUTS | {"ids": INPUTS["mask"], "mask": INPUTS["ids"]}, "inputs.ids.sha256.*inputs.mask"),
        (INPUTS | {"ids": INPUTS["ids"].astype(np.int32)}, "inputs.ids.datatype: expected INT32"),
        (INPUTS | {"ids": INPUTS["ids"].reshape(3)}, r"inputs.ids.shape: expected \[3\]"),
        (INPUTS | {"text": np.array([b"ab", b"c"], object)}, "inputs.text.sha256"),
        (INPUTS | {"more": INPUTS["ids"]}, "inputs: expected ids, mask, text, more"),
        ({"ids": INPUTS["ids"]}, "inputs: expected ids, found ids, mask, text"),
        ({}, "inputs: expected none, found ids"),
    ],
)
def test_other_inputs_by_name(server, inputs, match):
    """Other elements, types, shapes, names or another order are refused by name."""
    with pytest.raises(BindingError, match=match) as error:
        server.verify_receipt(inputs=inputs)
    assert_failed_at(error, "content")


def test_what_a_caller_may_hold(server, tmp_path):
    """Lists, tensors and paths are as good as arrays and bytes; what is no tensor is refused."""
    path = tmp_path / "model.onnx"
    path.write_bytes(MODEL)
    tensors = [from_array(name, value) for name, value in INPUTS.items()]
    lists = {"ids": [[1, 2, 3]], "mask": [[1, 1, 0]], "text": ["a", "bc"]}
    for inputs in (tensors, lists):
        result = server.verify_receipt(inputs=inputs, outputs=OUTPUTS, model=path)
        assert set(result.compared) == {"model", "inputs", "outputs"}
    file = tmp_path / "run.receipt"
    server.file().save(file)
    for shown in (file, str(file), file.read_bytes()):
        assert server.verify_receipt(shown).statement == server.statement()
    with pytest.raises(InvalidInput):
        server.verify_receipt(inputs=INPUTS | {"ids": [[1], [2, 3]]})
    with pytest.raises(ConfigurationError, match="cannot read the model"):
        server.verify_receipt(model=tmp_path / "nothing")


def test_a_datatype_that_nobody_knows(server):
    """A statement with a datatype of the future differs from what is held; nothing else."""
    inputs = (TensorDigest("x", "FP4", (1,), OTHER),)
    with pytest.raises(BindingError, match=r"inputs.x.datatype: expected INT64, found FP4"):
        server.verify_receipt(server.file(inputs=inputs), inputs={"x": [1]})


def test_a_policy_that_names_models(server):
    """A receipt of weights that the policy does not name is refused."""
    block = Policy.simulation().accept
    good = Policy(block, {"mine": frozenset({hashlib.sha256(MODEL).digest()})})
    assert server.verify_receipt(policy=good)
    with pytest.raises(AppraisalError, match="models: expected one of mine") as error:
        server.verify_receipt(policy=Policy(block, {"mine": frozenset({OTHER})}))
    assert_failed_at(error, "content")
    assert error.value.mismatches


def test_simulation_has_to_be_named(server):
    """A policy for hardware accepts no receipt of a simulated server."""
    policy = Policy(
        (
            Acceptance(
                Platform.TDX, dict.fromkeys(("mrtd", "rtmr1", "rtmr2"), (Pattern(b"\x01" * 48),))
            ),
        )
    )
    with pytest.raises(AppraisalError, match="simulation") as error:
        server.verify_receipt(policy=policy)
    assert_failed_at(error, "evidence")


def test_evidence_of_another_server(server):
    """Genuine evidence of one server does not vouch for what another's key signed."""
    mallory = Signer(server.vendor)
    receipt = sign(mallory.statement(), mallory.keys.receipt)
    stolen = server.file(receipt)
    with pytest.raises(SignatureError, match="differs in keyset, evidence"):
        server.verify_receipt(stolen)
    # Mallory's keys in the honest server's evidence.
    swapped = replace(stolen, bundle=replace(server.shown, keyset=mallory.keyset))
    with pytest.raises(BindingError, match="evidence: expected") as error:
        server.verify_receipt(swapped)
    assert_failed_at(error, "origin")
    # And named so by Mallory: now the hardware's signature itself does not fit.
    mallory.shown = swapped.bundle
    signed = sign(mallory.statement(), mallory.keys.receipt)
    with pytest.raises(BindingError, match="another key or nonce") as error:
        server.verify_receipt(replace(swapped, receipts=(signed,)))
    assert_failed_at(error, "evidence")
    assert [s.status for s in error.value.steps if s.name == "binding"] == ["failed"]


def test_time(server):
    """A receipt is refused in the caller's future, before its evidence, and after its keys."""
    for now in (server.time, server.time - timedelta(minutes=4), server.now + TEN_YEARS):
        assert server.verify_receipt(now=now)
    with pytest.raises(BindingError, match=r"^time: .*now it is") as error:
        server.verify_receipt(now=server.time - timedelta(minutes=6))
    assert_failed_at(error, "time")
    early = server.file(time=server.now - timedelta(minutes=6))
    with pytest.raises(BindingError, match=r"^time: .*evidence was made") as error:
        server.verify_receipt(early)
    assert_failed_at(error, "evidence")
    late = server.file(time=server.keys.public.not_after)
    with pytest.raises(BindingError, match=r"^time: .*key expired"):
        server.verify_receipt(late)
    last = server.keys.public.not_after - timedelta(milliseconds=1)
    assert server.verify_receipt(server.file(time=last)).statement.time == last
    with pytest.raises(ConfigurationError, match="time zone"):
        server.verify_receipt(now=server.time.replace(tzinfo=None))


def test_evidence_that_nobody_asked_for(server):
    """Evidence without a nonce serves as well; with a wrong nonce it does not."""
    nobodys = Signer(server.vendor)
    nobodys.shown = nobodys.bundle(None)
    receipt = sign(nobodys.statement(), nobodys.keys.receipt)
    file = ReceiptFile((receipt,), nobodys.shown, None)
    assert nobodys.verify_receipt(file).attestation.nonce is None
    with pytest.raises(BindingError, match="another key or nonce"):
        nobodys.verify_receipt(replace(file, nonce=NONCE))


def test_many_receipts_in_a_file(server):
    """Each of a batch verifies on its own; which one is meant has to be said."""
    statements = [server.statement(nonce=bytes([i])) for i in range(7)]
    file = server.file(*sign_batch(statements, server.keys.receipt))
    for index, statement in enumerate(statements):
        result = server.verify_receipt(file, index=index, nonce=bytes([index]))
        assert result.statement == statement
        assert result.steps[0].detail == f"leaf {index} under a signed Merkle root"
    for index in (None, 7, -1):
        with pytest.raises(ConfigurationError, match="receipt"):
            server.verify_receipt(file, index=index)
    with pytest.raises(BindingError, match="nonce"):
        server.verify_receipt(file, index=3, nonce=bytes([4]))


def test_an_upload(server):
    """A receipt of an upload speaks of the model's file, which is also the request's body."""
    digest = hashlib.sha256(MODEL).digest()
    file = server.file(kind=Kind.UPLOAD, inputs=(), outputs=(), request_sha256=digest)
    result = server.verify_receipt(file, model=MODEL, request=MODEL, nonce=CLIENT_NONCE)
    assert "receipt of an upload" in str(result)


def test_results_are_not_made_by_hand(server):
    """Only a verification makes a result."""
    result = server.verify_receipt()
    with pytest.raises(TypeError, match="never by hand"):
        ReceiptResult(
            statement=result.statement,
            attestation=result.attestation,
            compared=("model",),
            steps=(),
            _verified=None,
        )
    with pytest.raises((TypeError, ValueError)):
        replace(result, compared=("model",))


def test_garbage():
    """What is no receipt file is an EvidenceError."""
    with pytest.raises(EvidenceError):
        verify_receipt(b"garbage", Policy.simulation())


def test_the_public_name(server):
    """`blindai.verify_receipt` is the function, and a policy may be a path."""
    assert blindai.verify_receipt is verify_receipt
    with pytest.raises(ConfigurationError):
        blindai.verify_receipt(server.file(), Path("no-policy.toml"))
