"""What each command prints, and the exit code it ends with."""

from __future__ import annotations

import json
import re
import signal
import socket
import stat
import subprocess
import sys

import cbor2
import jwt
import numpy as np
import pytest

from blindai import errors
from blindai.attestation.signed import load_private_key
from blindai.attestation.wire import MEDIA_TYPE
from blindai.cli import EXIT_CODES, exit_code


def test_verify_says_simulated_in_the_line_of_the_verdict(blindai, server):
    """A simulated server is never called verified without SIMULATED in the same line."""
    done = blindai("verify", server.address, "--simulation")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^SIMULATED: ", done.stdout, re.MULTILINE)
    for line in done.stdout.splitlines():
        if re.search(r"\bverified\b|VERIFIED", line) and "verified at" not in line:
            assert "SIMULATED" in line
    assert " passed  binding" in done.stdout


def test_verify_json_names_every_step(blindai, server):
    """`--json` holds the claims, the steps and that nothing but simulation stands behind."""
    document = json.loads(blindai("verify", server.address, "--simulation", "--json").stdout)
    assert document["simulated"] is True
    assert document["verified"] is False
    assert document["weaknesses"] == ["simulated"]
    assert {step["status"] for step in document["steps"]} == {"passed"}


def test_verify_explain_shows_what_was_compared(blindai, server):
    """`--explain` shows the compared bytes."""
    done = blindai("verify", server.address, "--simulation", "--explain")
    assert re.search(r"report data: expected [0-9a-f]{64}", done.stdout)


def test_verify_without_policy_refuses_with_exit_code_3(blindai, server):
    """A simulated server is refused where simulation was not asked for, and says what to do."""
    done = blindai("verify", server.address)
    assert done.returncode == 3
    assert "NOT VERIFIED" in done.stderr
    assert "--simulation" in done.stderr
    assert "failed  appraisal" in done.stderr


def test_verify_without_policy_as_json_carries_the_steps(blindai, server):
    """The refusal is JSON too, with the failed step."""
    done = blindai("verify", server.address, "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 3
    assert document["type"] == "AppraisalError"
    assert [s["name"] for s in document["steps"] if s["status"] == "failed"] == ["appraisal"]


def test_policy_and_simulation_together_are_a_settings_error(blindai, server, tmp_path):
    """Contradicting options end with exit code 2."""
    policy = tmp_path / "policy.toml"
    policy.write_text(
        'version = 1\n[[accept]]\nplatform = "simulation"\ntolerate = ["simulated"]\n'
    )
    done = blindai("verify", server.address, "--simulation", "--policy", policy)
    assert done.returncode == 2
    assert blindai("verify", server.address, "--policy", policy).returncode == 0


def test_no_server_is_exit_code_5(blindai):
    """Nothing listens: the network's error, which may be retried."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        done = blindai("verify", f"127.0.0.1:{free.getsockname()[1]}", "--simulation")
    assert done.returncode == 5
    assert "ConnectionFailed" in done.stderr


def test_the_unattested_port_is_recognised(blindai, server):
    """Plain HTTP where TLS is expected: the error names the likely mistake."""
    done = blindai("verify", server.public_address, "--simulation")
    assert done.returncode == 5
    assert "Traceback" not in done.stderr


def test_upload_run_list_delete(blindai, server, model_file, input_file, tmp_path):
    """A model goes up, is listed, runs, and is gone after it was deleted."""
    target = ("--server", server.address, "--simulation")
    up = blindai("upload", model_file, "--name", "mine", *target, "--token", server.token)
    assert up.returncode == 0, up.stderr
    assert "sha256:" in up.stdout
    listed = json.loads(blindai("models", *target, "--json").stdout)
    assert "mine" in [model["name"] for model in listed]

    out = tmp_path / "out.npz"
    ran = blindai("run", "mine", *target, "--input", f"x={input_file}", "--output", out)
    assert ran.returncode == 0, ran.stderr
    with np.load(out) as arrays:
        np.testing.assert_array_equal(arrays["y"], [[2, 4, 6, 8]])

    assert blindai("delete", "mine", *target, "--token", server.token).returncode == 0
    gone = blindai("run", "mine", *target, "--input", f"x={input_file}")
    assert gone.returncode == 4
    assert "ModelNotFound" in gone.stderr


def test_upload_without_token_is_refused(blindai, server, model_file):
    """No token: exit code 4, and the token is never shown."""
    done = blindai("upload", model_file, "--server", server.address, "--simulation")
    assert done.returncode == 4
    assert "AccessDenied" in done.stderr
    assert server.token not in done.stdout + done.stderr


def test_wrong_input_says_what_was_expected(blindai, server, tmp_path):
    """A wrong dtype names the input, what was expected and what came."""
    path = tmp_path / "x.npy"
    np.save(path, np.array([[1, 2, 3]], np.int64))
    target = ("--server", server.address, "--simulation")
    done = blindai("run", "tiny", *target, "--input", f"x={path}")
    assert done.returncode == 4
    assert "x" in done.stderr
    assert re.search("FP32|float32", done.stderr)


@pytest.mark.parametrize("argument", ["x", "=x.npy", "x=missing.npy"])
def test_malformed_input_option_is_a_settings_error(blindai, server, argument):
    """`--input` that names no file ends with exit code 2."""
    done = blindai("run", "tiny", "--server", server.address, "--simulation", "--input", argument)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_pickled_input_is_refused(blindai, server, tmp_path):
    """A .npy file with a pickle in it is never unpickled."""
    path = tmp_path / "x.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    target = ("--server", server.address, "--simulation")
    assert blindai("run", "tiny", *target, "--input", f"x={path}").returncode == 2


def test_serve_writes_the_token_with_mode_0600_and_ends_on_sigterm(tmp_path):
    """`serve` prints one ready line, keeps the token private, and ends with 0."""
    token_file = tmp_path / "token"
    command = [sys.executable, "-m", "blindai", "serve", "--platform", "simulation"]
    command += ["--port", "0", "--public-port", "0", "--grpc-port", "0"]
    command += ["--token-file", str(token_file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        lines = []
        while not lines or not lines[-1].startswith("ready "):
            lines.append(process.stdout.readline())
            assert lines[-1], "the server ended early"
        address = r"127\.0\.0\.1:\d+"
        ready = rf"ready attested={address} public={address} grpc={address}\n"
        assert re.fullmatch(ready, lines[-1])
        assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
        assert token_file.read_text().strip() not in "".join(lines)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_serve_refuses_a_taken_port(blindai):
    """A port in use ends with exit code 2 and names the port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = blindai(
            "serve", "--platform", "simulation", "--port", port, "--public-port", 0, "--no-grpc"
        )
    assert done.returncode == 2
    assert port in done.stderr


def test_serve_refuses_an_unknown_platform(blindai):
    """There is no fallback: a platform that is not known is refused."""
    done = blindai("serve", "--platform", "sgx2", "--port", 0, "--public-port", 0)
    assert done.returncode == 2
    assert "simulation" in done.stderr


def test_exit_codes_cover_every_error():
    """Each public error class has the exit code of design.md §7."""
    expected = {"ConfigurationError": 2, "AttestationError": 3, "InferenceError": 4}
    expected |= {"AccessDenied": 4, "ConnectionFailed": 5}
    for name in errors.__all__:
        kind = getattr(errors, name)
        if issubclass(kind, Warning) or kind is errors.BlindAIError:
            continue
        family = next(c.__name__ for c in kind.__mro__ if c in EXIT_CODES)
        error = kind("x")
        assert exit_code(error) == expected[family]


def test_help_lists_every_command(blindai):
    """`--help` names the commands and the exit codes."""
    done = blindai("--help")
    assert done.returncode == 0
    for command in ("serve", "verify", "upload", "run", "models", "delete", "demo", "evidence"):
        assert re.search(rf"^  {command}\b", done.stdout, re.MULTILINE)
    assert "Exit codes" in done.stdout


def test_saved_evidence_verifies_again_without_the_server(blindai, server, tmp_path):
    """What `--save` kept passes offline, and a changed byte in it does not."""
    kept = tmp_path / "evidence.blindai"
    assert blindai("verify", server.address, "--simulation", "--save", kept).returncode == 0
    again = blindai("verify", "--bundle", kept, "--simulation", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["simulated"] is True

    late = blindai("verify", "--bundle", kept, "--simulation", "--at", "2040-01-01T00:00:00Z")
    assert late.returncode == 3
    assert "expired" in late.stderr

    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    assert blindai("verify", "--bundle", kept, "--simulation").returncode == 3
    assert blindai("verify", "--bundle", kept).returncode == 2


def test_result_as_ear_and_evidence_as_cmw(blindai, server, tmp_path):
    """`--ear` writes a JWT that the key signed, `--cmw` a record with the media type."""
    key = tmp_path / "key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    ear, cmw = tmp_path / "result.jwt", tmp_path / "evidence.cmw"
    options = ("--ear", ear, "--ear-key", key, "--cmw", cmw)
    done = blindai("verify", server.address, "--simulation", *options)
    assert done.returncode == 0, done.stderr
    payload = jwt.decode(ear.read_text(), load_private_key(key).public_key(), ["EdDSA"])
    assert payload["submods"]["simulation"]["ear.status"] == "contraindicated"
    assert cbor2.loads(cmw.read_bytes())[0] == MEDIA_TYPE
    assert blindai("verify", server.address, "--simulation", "--ear", ear).returncode == 2
