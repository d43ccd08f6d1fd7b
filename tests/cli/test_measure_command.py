"""`blindai measure`, run as a person does."""

import hashlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from blindai.attestation.policy import Policy
from blindai.cli import main
from tests.measure.images import eif, firmware, machine, sigstruct

AK = "ab" * 32
EIF = eif((1, b"kernel"), (2, b"line"), (3, b"init"))


def run(capsys, *arguments):
    """Return the exit code, standard output and standard error of one command."""
    with pytest.raises(SystemExit) as ended:
        main(["measure", *map(str, arguments)])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def test_the_policy_that_is_written_loads_and_pins_the_image(tmp_path, capsys):
    """What `verify --policy` takes."""
    out = tmp_path / "policy.toml"
    code, text, _ = run(capsys, machine(tmp_path / "image"), "--ak", AK, "--out", out)
    assert code == 0
    block = Policy.load(out).accept[0]
    assert {"pcr4", "pcr9", "ak"} <= set(block.measurements)
    assert f"wrote {out}" in text


def test_what_is_not_predicted_is_named(tmp_path, capsys):
    """So is a key that nobody enrolled."""
    _, text, _ = run(capsys, machine(tmp_path / "image"))
    assert "not predicted  pcr0" in text
    assert "no --ak" in text


def test_the_policy_is_printed_where_no_file_is_named(tmp_path, capsys):
    """And is the same."""
    _, text, _ = run(capsys, machine(tmp_path / "image"), "--ak", AK)
    printed = Policy.from_toml(text[text.index("version = 1") :])
    run(capsys, tmp_path / "image", "--ak", AK, "--out", tmp_path / "policy.toml")
    assert Policy.load(tmp_path / "policy.toml") == printed


def test_a_firmware_that_the_manifest_knows_brings_golden_values(tmp_path, capsys):
    """Marked as seen, with where."""
    data = firmware()
    (tmp_path / "fw").write_bytes(data)
    seen = {"values": {"pcr0": "cd" * 32}, "how": "seen in the lab"}
    seen["firmware_sha256"] = hashlib.sha256(data).hexdigest()
    image = machine(tmp_path / "image", golden=[seen])
    _, text, _ = run(capsys, image, "--firmware", tmp_path / "fw", "--json")
    found = json.loads(text)["predicted"]["pcr0"]
    assert found == {"values": ["cd" * 32], "how": "golden: seen in the lab", "golden": True}


@pytest.mark.parametrize(
    ("name", "make", "platform", "names"),
    [
        ("server.eif", lambda: EIF, "nitro", {"pcr0", "pcr1", "pcr2"}),
        (
            "server.sig",
            lambda: sigstruct(rsa.generate_private_key(3, 3072)),
            "sgx",
            {"mrenclave", "mrsigner", "isv_prod_id"},
        ),
    ],
)
def test_the_platform_follows_from_the_file(tmp_path, capsys, name, make, platform, names):
    """An EIF is of Nitro, a SIGSTRUCT of SGX."""
    path = tmp_path / name
    path.write_bytes(make())
    code, text, _ = run(capsys, path, "--json")
    document = json.loads(text)
    assert (code, document["platform"]) == (0, platform)
    assert set(document["policy"]["accept"][0]["measurements"]) == names


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--platform", "tdx"], "--firmware"),
        (["--platform", "sev-snp"], "--firmware"),
        (["--ak", "12"], "--ak: expected 64"),
        (["--platform", "tdx", "--ak", AK], "no attestation key"),
        (["--golden", "nowhere"], "cannot read nowhere"),
    ],
)
def test_options_that_do_not_fit_exit_with_2(tmp_path, capsys, arguments, says):
    """Your settings: the message says which."""
    code, _, err = run(capsys, machine(tmp_path / "image"), *arguments)
    assert code == 2
    assert says in err


def test_a_file_of_no_known_kind_is_refused(tmp_path, capsys):
    """Nothing is guessed."""
    (tmp_path / "image.bin").write_bytes(EIF)
    code, _, err = run(capsys, tmp_path / "image.bin")
    assert (code, "--platform" in err) == (2, True)
