"""`blindai receipt verify` as an auditor runs it: a file, a policy, and no network."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from blindai.attestation.binding import binding
from blindai.attesters.simulation import SimulationAttester
from blindai.channel.receipts import sign, sign_batch
from blindai.testing.fake_simulation import FakeSimulation
from tests.receipts import CLIENT_NONCE, INPUTS, MODEL, OUTPUTS, REQUEST, RESPONSE, Signer, digests
from tests.servers import NONCE

# numpy keeps objects as pickles, which are never read.
NUMBERS = {name: array for name, array in INPUTS.items() if array.dtype != object}


@pytest.fixture(scope="module")
def server():
    """A server that began an hour ago, under the simulation key that everybody has."""
    begun = datetime.now(UTC) - timedelta(hours=1)
    vendor = FakeSimulation()
    vendor.now = begun
    server = Signer(vendor)
    attester = SimulationAttester(clock=begun.timestamp)
    server.shown = server.bundle(evidence=attester.attest(binding(NONCE, server.keyset)))
    return server


@pytest.fixture
def folder(tmp_path, server):
    """Everything that the auditor has been given."""
    for name, content in (("model", MODEL), ("request", REQUEST), ("response", RESPONSE)):
        (tmp_path / name).write_bytes(content)
    for name, array in {**NUMBERS, **OUTPUTS}.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.savez(tmp_path / "outputs.npz", **OUTPUTS)
    server.file(inputs=digests(NUMBERS)).save(tmp_path / "run.receipt")
    return tmp_path


def arguments(folder, *more, inputs=("ids", "mask")):
    """Return the arguments that compare a receipt with all that is held."""
    found = ["receipt", "verify", folder / "run.receipt", "--simulation"]
    for name in inputs:
        found += ["--input", f"{name}={folder / name}.npy"]
    found += ["--input", folder / "request", "--output", f"logits={folder / 'logits.npy'}"]
    found += ["--output", folder / "response", "--model", folder / "model"]
    return [*found, "--nonce", CLIENT_NONCE.hex(), *more]


def test_a_good_receipt(blindai, folder):
    """Every step, then that it is SIMULATED, what it says, and what it was compared with."""
    done = blindai(*arguments(folder, "--explain"))
    assert done.returncode == 0, done.stderr
    assert "SIMULATED, not protected by hardware: receipt of a run" in done.stdout
    assert "passed  receipt" in done.stdout
    assert f"sha256:{hashlib.sha256(MODEL).hexdigest()}" in done.stdout
    assert "compared    model, request, response, inputs, outputs, nonce" in done.stdout
    assert "RFC 9052" in done.stdout


def test_json(blindai, folder, server):
    """Programs get the statement in full, and that nothing is verified where it is simulated."""
    done = blindai(*arguments(folder, "--json"))
    (found,) = json.loads(done.stdout)["receipts"]
    assert found["simulated"] is True
    assert found["verified"] is False
    stated = found["statement"]
    assert stated["request"] == hashlib.sha256(REQUEST).hexdigest()
    assert stated["inputs"][0]["name"] == "ids"
    assert stated["inputs"][0]["shape"] == [1, 3]
    assert stated["keyset"] == found["attestation"]["keyset"]
    assert stated["time"].startswith(f"{server.time:%Y-%m-%dT%H:%M}")
    assert sorted(found["compared"]) == sorted(
        ["model", "request", "response", "inputs", "outputs", "nonce"]
    )


def test_archive_of_outputs(blindai, folder):
    """What `blindai run --output` wrote is compared as it is."""
    base = ["receipt", "verify", folder / "run.receipt", "--simulation"]
    assert blindai(*base, "--output", folder / "outputs.npz").returncode == 0
    np.savez(folder / "outputs.npz", logits=OUTPUTS["logits"] + 1)
    done = blindai(*base, "--output", folder / "outputs.npz")
    assert done.returncode == 3
    assert "outputs.logits.sha256" in done.stderr


@pytest.mark.parametrize("name", ["model", "request", "response"])
def test_another_file(blindai, folder, name):
    """Another model or body is refused by name, with exit code 3."""
    (folder / name).write_bytes(b"another")
    done = blindai(*arguments(folder))
    assert done.returncode == 3
    assert f"speaks of something else: {name}: expected sha256:" in done.stderr
    assert "failed  content" in done.stdout
    document = json.loads(blindai(*arguments(folder, "--json")).stdout)
    assert document["verified"] is False
    assert document["type"] == "BindingError"


def test_another_order_of_inputs(blindai, folder):
    """The order of the inputs counts."""
    done = blindai(*arguments(folder, inputs=("mask", "ids")))
    assert done.returncode == 3
    assert "expected mask, ids in this order, found ids, mask" in done.stderr


def test_a_changed_receipt(blindai, folder, server):
    """A receipt that another key signed is refused by its signature."""
    forged = sign(server.statement(), Signer().keys.receipt)
    replace(server.file(), receipts=(forged,)).save(folder / "run.receipt")
    done = blindai(*arguments(folder))
    assert done.returncode == 3
    assert "SignatureError" in done.stderr


def test_of_the_future(blindai, folder, server):
    """A receipt that says tomorrow is refused, though its keys would still live."""
    server.file(time=datetime.now(UTC) + timedelta(hours=1)).save(folder / "run.receipt")
    done = blindai("receipt", "verify", folder / "run.receipt", "--simulation")
    assert done.returncode == 3
    assert "now it is" in done.stderr


def test_many(blindai, folder, server):
    """All receipts of a file are verified, or the one that is named."""
    statements = [server.statement(nonce=bytes([i])) for i in range(3)]
    path = folder / "run.receipt"
    server.file(*sign_batch(statements, server.keys.receipt)).save(path)
    base = ["receipt", "verify", path, "--simulation", "--json"]
    found = json.loads(blindai(*base).stdout)["receipts"]
    assert [each["statement"]["nonce"] for each in found] == ["00", "01", "02"]
    found = json.loads(blindai(*base, "--index", 1, "--nonce", "01").stdout)["receipts"]
    assert [each["statement"]["nonce"] for each in found] == ["01"]
    assert blindai(*base, "--nonce", "01").returncode == 2
    assert blindai(*base, "--index", 3).returncode == 2


@pytest.mark.parametrize(
    "options",
    [
        ["--nonce", "xyz"],
        ["--input", "ids=/nowhere.npy"],
        ["--input", "/nowhere.npz"],
        ["--output", "/nowhere"],
        ["--input", "a", "--input", "b"],
        ["--model", "/nowhere"],
        ["--policy", "/nowhere.toml"],
        ["--policy-key", "/nowhere.pem"],
    ],
)
def test_wrong_options(blindai, folder, options):
    """Options that cannot be used end with exit code 2."""
    done = blindai("receipt", "verify", folder / "run.receipt", "--simulation", *options)
    assert done.returncode == 2, done.stderr


def test_twice_the_same_input(blindai, folder):
    """An input that is named twice is a mistake."""
    done = blindai(*arguments(folder, inputs=("ids", "ids")))
    assert done.returncode == 2
    assert "ids came twice" in done.stderr


def test_no_policy_and_no_file(blindai, folder):
    """What to accept has to be said; a file that is missing or none is told apart."""
    path = folder / "run.receipt"
    done = blindai("receipt", "verify", path)
    assert done.returncode == 2
    assert "--policy FILE or --simulation" in done.stderr
    assert blindai("receipt", "verify", folder / "nothing", "--simulation").returncode == 2
    path.write_bytes(b"garbage")
    assert blindai("receipt", "verify", path, "--simulation").returncode == 3
