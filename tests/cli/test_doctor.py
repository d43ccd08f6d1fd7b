"""`blindai doctor` says what there is and what is missing, to people and to programs."""

import json

import pytest
from click.testing import CliRunner

from blindai.attestation.model import Platform
from blindai.cli.doctor import doctor


@pytest.fixture
def root(tmp_path):
    """A machine that is an SGX enclave."""
    folder = tmp_path / "dev/attestation"
    folder.mkdir(parents=True)
    (folder / "attestation_type").write_text("dcap")
    return tmp_path


def test_person(root):
    """A person reads each platform with what was found, and how to get what is not there."""
    result = CliRunner().invoke(doctor, ["--root", str(root)])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert any(line.split() == ["sgx", "yes"] for line in lines)
    assert any(line.split() == ["tpm", "no"] for line in lines)
    assert "  to get it   " in result.output
    assert "CONFIG_TSM_REPORTS" in result.output
    assert str(root / "dev/attestation") in result.output
    assert "--platform simulation" in result.output


def test_program(root):
    """A program gets one JSON document with the same content."""
    result = CliRunner().invoke(doctor, ["--root", str(root), "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.output)
    found = {one["platform"]: one for one in document["platforms"]}
    assert set(found) == set(Platform) - {Platform.SIMULATION}
    assert found["sgx"]["available"] is True
    assert found["nitro"]["available"] is False
    assert found["nitro"]["advice"]
    assert {device["path"] for device in document["kernel"]["devices"]} == {
        str(root / "dev/attestation")
    }


def test_empty_machine(tmp_path):
    """A machine that shows nothing at all is no error."""
    result = CliRunner().invoke(doctor, ["--root", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "release     unknown" in result.output
    assert "none of trusted hardware" in result.output


def test_tpm(tmp_path):
    """A TPM that is named is looked for there."""
    arguments = ["--root", str(tmp_path), "--tpm", f"device:{tmp_path}/mine", "--json"]
    document = json.loads(CliRunner().invoke(doctor, arguments).output)
    found = {one["platform"]: one for one in document["platforms"]}
    assert found["tpm"]["looked_for"] == f"device:{tmp_path}/mine"
    assert found["tpm"]["found"] == "no such device"
