"""A server whose evidence and sealing key come from a real TPM (in software), over restarts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
import warnings
from datetime import UTC, datetime

import numpy as np
import pytest

import blindai
from blindai.attestation.steps import Steps
from blindai.attesters import Machine
from blindai.attesters.tpm import TpmAttester
from blindai.platforms import tpm as verifier
from tests.attesters.conftest import factory_state, other_tpm, tpm, vendor  # noqa: F401 - fixtures
from tests.inference.models import identity

PINNED = ("pcr0", "pcr4", "pcr9", "ak")
X = {"x": np.array([1.5, 2.5], np.float32)}


@contextlib.contextmanager
def serving(tpm, folder, *options):  # noqa: F811 - the fixture's value
    """Yield what `blindai serve` says when it is ready, in a process of its own."""
    command = [sys.executable, "-W", "error", "-m", "blindai", "serve", "--platform", "tpm"]
    command += ["--tpm", tpm.tcti, "--port", "0", "--public-port", "0", "--no-grpc", "--json"]
    command += ["--no-fetch-endorsements", "--sealed-models", str(folder), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            for line in iter(process.stdout.readline, ""):
                if line.startswith("{"):
                    yield json.loads(line)
                    break
        finally:
            process.terminate()
            assert process.wait(30) == 0


@pytest.fixture(autouse=True)
def booted(tpm, other_tpm):  # noqa: F811
    """Measure the same boot into both machines."""
    for each in (tpm, other_tpm):
        each.extend(4, b"boot loader")
        each.extend(9, b"kernel")


def policy_of(tpm, tmp_path):  # noqa: F811
    """Return a policy that pins this TPM's key and some of its PCRs as they are now."""
    evidence = TpmAttester(Machine(root=tmp_path, tpm=tpm.tcti)).attest(bytes(32))
    claims = verifier.verify(
        evidence, anchors=(), now=datetime.now(UTC), steps=Steps(verifier.STEPS)
    )
    pins = ", ".join(f'{name} = ["{claims.measurements[name].hex()}"]' for name in PINNED)
    return blindai.Policy.from_toml(
        'version = 1\n[[accept]]\nplatform = "tpm"\n'
        f'measurements = {{ {pins} }}\ntolerate = ["memory-not-encrypted", "ak-not-certified"]\n'
    )


def connect(ready, policy):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", blindai.SecurityWarning)
        return blindai.connect(ready["attested"], policy=policy, token=ready["token"])


def test_attest_seal_restart(tpm, tmp_path):  # noqa: F811
    """The client verifies PCRs over TLS; models are back after a restart, shut after a change."""
    folder, policy = tmp_path / "vault", policy_of(tpm, tmp_path)
    with serving(tpm, folder) as ready:
        assert ready["platform"] == "tpm"
        assert not any("rollback" in caveat for caveat in ready["caveats"])  # the TPM counts
        with connect(ready, policy) as client:
            client.upload_model(identity(), name="m")
            assert client.run_model("m", X)[0].tolist() == [1.5, 2.5]
            assert not client.attestation.simulated
    with serving(tpm, folder) as ready, connect(ready, policy) as client:
        assert ready["failed"] == []
        assert client.run_model("m", X)[0].tolist() == [1.5, 2.5]
    tpm.extend(9, b"another kernel")
    with serving(tpm, folder) as ready:
        (failed,) = ready["failed"]
        assert "stay shut: they were sealed by other code or on another machine" in failed["error"]
        with pytest.raises(blindai.AppraisalError) as caught:
            connect(ready, policy)
        assert [one.rule for one in caught.value.mismatches] == ["accept[0].measurements.pcr9"]
        with connect(ready, policy_of(tpm, tmp_path)) as client:
            assert client.models() == []
            with pytest.raises(blindai.SealedDataError, match="stay shut"):
                client.upload_model(identity(), name="m")


def test_another_tpm(tpm, other_tpm, tmp_path):  # noqa: F811
    """A machine with the same measurements and another TPM is refused, and opens nothing."""
    folder, policy = tmp_path / "vault", policy_of(tpm, tmp_path)
    with serving(tpm, folder) as ready, connect(ready, policy) as client:
        client.upload_model(identity(), name="m")
    with serving(other_tpm, folder) as ready:
        assert "stay shut" in ready["failed"][0]["error"]
        with pytest.raises(blindai.AppraisalError) as caught:
            connect(ready, policy)
        assert [one.rule for one in caught.value.mismatches] == ["accept[0].measurements.ak"]


def test_files_put_back(tpm, tmp_path):  # noqa: F811
    """The owner of the disk cannot bring a deleted model back."""
    folder, policy = tmp_path / "vault", policy_of(tpm, tmp_path)
    with serving(tpm, folder) as ready, connect(ready, policy) as client:
        client.upload_model(identity(), name="m")
        saved = {path.name: path.read_bytes() for path in folder.iterdir()}
        client.delete_model("m")
    for path in folder.iterdir():
        path.unlink()
    for name, content in saved.items():
        (folder / name).write_bytes(content)
    with serving(tpm, folder) as ready:
        assert "rolled back" in ready["failed"][0]["error"]


def extended(value, content):
    """Return a PCR's value after an event was measured into it."""
    return hashlib.sha256(value + hashlib.sha256(content).digest()).digest()


def test_upgrade_that_the_old_code_agreed_to(tpm, tmp_path):  # noqa: F811
    """The next version opens the models that it was handed; a third one does not."""
    folder, policy = tmp_path / "vault", policy_of(tpm, tmp_path)
    now = policy.accept[0].measurements["pcr9"][0].value
    following = tmp_path / "next.toml"
    with serving(tpm, folder) as ready:
        with connect(ready, policy) as client:
            client.upload_model(identity(), name="m")
            with pytest.raises(blindai.InvalidInput, match="came pcr10"):
                client.hand_over({"pcr10": bytes(32)})
        with (
            pytest.raises(blindai.AccessDenied),
            connect(ready | {"token": None}, policy) as client,
        ):
            client.hand_over({"pcr9": bytes(32)})
        next_pcr9 = extended(now, b"next version").hex()
        following.write_text(
            'version = 1\n[[accept]]\nplatform = "tpm"\n'
            f'measurements = {{ pcr9 = ["{next_pcr9}"] }}\ntolerate = ["memory-not-encrypted"]\n'
        )
        current = tmp_path / "current.toml"
        current.write_text(policy.to_toml())
        command = [sys.executable, "-m", "blindai", "reseal", "--next", str(following)]
        command += ["--server", ready["attested"], "--policy", str(current)]
        done = subprocess.run(
            [*command, "--token", ready["token"]], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "handed over to code with this pcr9" in done.stdout
    with serving(tpm, folder) as ready:  # the old version still can
        assert ready["failed"] == []
    tpm.extend(9, b"next version")
    with serving(tpm, folder) as ready:  # nobody takes over unasked
        assert "stay shut" in ready["failed"][0]["error"]
    with serving(tpm, folder, "--take-over") as ready:
        assert ready["failed"] == []
        with connect(ready, policy_of(tpm, tmp_path)) as client:
            assert client.run_model("m", X)[0].tolist() == [1.5, 2.5]
    assert not folder.with_name("vault.handover").exists()
    with serving(tpm, folder) as ready:  # from now on under its own key
        assert ready["failed"] == []
    tpm.extend(9, b"a third version")
    with serving(tpm, folder, "--take-over") as ready:
        assert "stay shut" in ready["failed"][0]["error"]
