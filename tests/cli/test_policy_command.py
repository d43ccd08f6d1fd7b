"""`blindai policy`: write, check, import, compare, sign."""

from __future__ import annotations

import subprocess

import pytest

from blindai import Policy, PolicyError
from blindai.attestation.draft import diff_policies, explain_policy
from blindai.attestation.legacy import import_policy
from blindai.attestation.signed import load_public_key

MRENCLAVE = "ab" * 32
OLD_MANIFEST = f"""
mr_enclave = "{MRENCLAVE}"
allow_debug = false
attributes_flags_hex = "0x4"
attributes_mask_flags_hex = "0xfffffffffffffffd"
attributes_xfrm_hex = "0x3"
attributes_mask_xfrm_hex = "0xffffffffffffff1b"
misc_select_hex = "0x0"
misc_mask_hex = "0xffffffff"
"""
SNP = """
version = 1
[[accept]]
platform = "sev-snp"
measurement = ["{measurement}"]
tolerate = ["smt"]
[accept.minimum]
snp = {snp}
"""


def test_from_server_writes_a_policy_that_accepts_that_server(blindai, server, tmp_path):
    """What `from-server` writes verifies the same server, and says that it proves nothing."""
    path = tmp_path / "policy.toml"
    done = blindai("policy", "from-server", server.address, "--output", path)
    assert done.returncode == 0, done.stderr
    assert "proves nothing by itself" in path.read_text()
    assert blindai("verify", server.address, "--policy", path).returncode == 0
    again = blindai("policy", "from-server", server.address, "--output", path)
    assert again.returncode == 2, "an existing policy must not be overwritten"


def test_check_explains_what_is_left_open(blindai, tmp_path):
    """`check` names what is accepted and what is not pinned."""
    path = tmp_path / "policy.toml"
    path.write_text(SNP.format(measurement="ab" * 48, snp=14))
    done = blindai("policy", "check", path)
    assert done.returncode == 0, done.stderr
    assert "snp of at least 14" in done.stdout
    assert "any chip" in done.stdout
    assert "tolerates smt" in done.stdout


def test_check_refuses_a_policy_without_identity(blindai, tmp_path):
    """A policy that pins no code is refused with exit code 2."""
    path = tmp_path / "policy.toml"
    path.write_text('version = 1\n[[accept]]\nplatform = "nitro"\n')
    done = blindai("policy", "check", path)
    assert done.returncode == 2
    assert "pins no code identity" in done.stderr


def test_simulation_is_a_warning_in_words():
    """The explanation of the simulation policy warns."""
    assert next(iter(explain_policy(Policy.simulation()))).level == "warning"


def test_import_keeps_masks_and_refuses_debug():
    """The old manifest becomes masked measurements; debug stays refused."""
    block = import_policy(OLD_MANIFEST).accept[0]
    assert block.measurements["mrenclave"][0].value.hex() == MRENCLAVE
    attributes = block.measurements["attributes"][0]
    assert attributes.matches((0x5).to_bytes(8, "little"))
    assert attributes.matches((0x7).to_bytes(8, "little")), "the old mask left DEBUG to allow_debug"
    assert not attributes.matches((0x15).to_bytes(8, "little"))
    xfrm = block.measurements["xfrm"][0]
    assert xfrm.matches((0xE7).to_bytes(8, "little"))
    assert not xfrm.matches((0x1).to_bytes(8, "little"))
    assert block.tolerate == {"sw-hardening-needed"}
    assert "debug" in import_policy(OLD_MANIFEST.replace("false", "true")).accept[0].tolerate


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x = 1",
        'mr_enclave = "ab"',
        "mr_enclave = 3",
        "= broken",
        f'mr_enclave = "{MRENCLAVE}"\nallow_debug = 1',
        f'mr_enclave = "{MRENCLAVE}"\nmisc_select_hex = "0x1ffffffff"',
    ],
)
def test_import_refuses_what_is_no_old_policy(text):
    """Anything else is a PolicyError."""
    with pytest.raises(PolicyError):
        import_policy(text)


def test_import_command_writes_toml_that_loads(blindai, tmp_path):
    """The imported policy is a policy."""
    path = tmp_path / "manifest.toml"
    path.write_text(OLD_MANIFEST)
    done = blindai("policy", "import", path)
    assert done.returncode == 0, done.stderr
    assert Policy.from_toml(done.stdout).digest == import_policy(OLD_MANIFEST).digest


def test_diff_shows_both_sides_and_ends_with_1(blindai, tmp_path):
    """`diff` ends with 1 where the policies differ, with 0 where they do not."""
    old, new = tmp_path / "old.toml", tmp_path / "new.toml"
    old.write_text(SNP.format(measurement="ab" * 48, snp=14))
    new.write_text(SNP.format(measurement="ab" * 48, snp=15))
    done = blindai("policy", "diff", old, new)
    assert done.returncode == 1
    assert "- accept[0].minimum.snp: 14" in done.stdout
    assert "+ accept[0].minimum.snp: 15" in done.stdout
    assert blindai("policy", "diff", old, old).returncode == 0
    assert diff_policies(Policy.load(old), Policy.load(old)) == []


def test_signed_policy(blindai, server, tmp_path):
    """A signature by the pinned key passes; a changed policy or another key does not."""
    key, public = tmp_path / "key.pem", tmp_path / "public.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True)
    path = tmp_path / "policy.toml"
    path.write_text(Policy.simulation().to_toml())
    assert blindai("policy", "sign", path, "--key", key).returncode == 0
    signer = load_public_key(public)
    assert Policy.load(path, signed_by=signer) == Policy.simulation()
    accepted = blindai("verify", server.address, "--policy", path, "--policy-key", public)
    assert accepted.returncode == 0, accepted.stderr

    path.write_text(path.read_text() + "\n# changed\n")
    with pytest.raises(PolicyError, match="not signed by the key"):
        Policy.load(path, signed_by=signer)
    refused = blindai("verify", server.address, "--policy", path, "--policy-key", public)
    assert refused.returncode == 2
    path.with_name("policy.toml.sig").unlink()
    with pytest.raises(PolicyError):
        Policy.load(path, signed_by=signer)
