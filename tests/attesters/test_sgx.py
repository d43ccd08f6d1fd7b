"""The SGX attester, over a folder that looks as Gramine's does."""

from dataclasses import replace

import pytest

from blindai.attestation.steps import Steps
from blindai.attesters import Machine, create_attester
from blindai.attesters.sgx import SgxAttester, probe
from blindai.errors import ConfigurationError, EvidenceError
from blindai.platforms.dcap import sgx
from blindai.testing.fake_dcap import FakeIntelSGX, FakeIntelTDX

BINDING = bytes(range(32))


@pytest.fixture(scope="module")
def intel():
    return FakeIntelSGX()


@pytest.fixture
def machine(tmp_path, intel):
    """An enclave whose next quote is over BINDING."""
    found = Machine(root=tmp_path)
    (found.gramine / "keys").mkdir(parents=True)
    (found.gramine / "attestation_type").write_text("dcap\n")
    (found.gramine / "user_report_data").touch()
    (found.gramine / "quote").write_bytes(intel.attest(BINDING).body)
    (found.gramine / "keys/_sgx_mrenclave").write_bytes(bytes(range(16)))
    return found


def test_attest(machine, intel):
    """The data is written in full, and the quote verifies once collateral is beside it."""
    evidence = create_attester("sgx", machine).attest(BINDING)
    assert (machine.gramine / "user_report_data").read_bytes() == BINDING + bytes(32)
    assert evidence.attachments == {}
    collateral = intel.attest(BINDING).attachments
    claims = sgx.verify(
        replace(evidence, attachments=collateral),
        anchors=intel.anchors,
        now=intel.now,
        steps=Steps(sgx.STEPS),
    )
    assert claims.report_data == BINDING + bytes(32)


def test_quote_over_other_data(machine):
    """A quote with other data than was asked for is not passed on."""
    with pytest.raises(EvidenceError, match="other data than was asked for"):
        SgxAttester(machine).attest(bytes(32))


def test_quote_of_another_tee(machine):
    """A TDX quote is none of an enclave."""
    (machine.gramine / "quote").write_bytes(FakeIntelTDX().attest(BINDING).body)
    with pytest.raises(EvidenceError, match="other data"):
        SgxAttester(machine).attest(BINDING)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "quote"), (b"\xff" * 700, "quote"), (bytes((32 << 10) + 1), "more than the 32768")],
)
def test_garbage(machine, content, message):
    """What is no quote, or too large for one, is a clear error."""
    (machine.gramine / "quote").write_bytes(content)
    with pytest.raises(EvidenceError, match=message):
        SgxAttester(machine).attest(BINDING)


@pytest.mark.parametrize("kind", ["none", "epid", "\xff"])
def test_other_kinds_of_attestation(machine, kind):
    """Without DCAP attestation in the manifest there is no evidence."""
    (machine.gramine / "attestation_type").write_text(kind)
    with pytest.raises(ConfigurationError, match="expected 'dcap', found"):
        SgxAttester(machine).attest(BINDING)


def test_no_enclave(tmp_path):
    """Outside of Gramine there are no such files."""
    attester = SgxAttester(Machine(root=tmp_path))
    with pytest.raises(ConfigurationError, match="attestation_type: No such file"):
        attester.attest(BINDING)
    with pytest.raises(ConfigurationError, match="SGX sealing key: No such file"):
        attester.sealing_key()


def test_missing_quote(machine):
    """A quoting service that fails is said to be the reason."""
    (machine.gramine / "quote").unlink()
    with pytest.raises(ConfigurationError, match="SGX quote: No such file"):
        SgxAttester(machine).attest(BINDING)


def test_sealing_key(machine):
    """The key is of 32 bytes, depends on Gramine's, and is not Gramine's itself."""
    attester = SgxAttester(machine)
    key = attester.sealing_key()
    assert len(key) == 32
    assert key == attester.sealing_key()
    assert bytes(range(16)) not in key
    path = machine.gramine / "keys/_sgx_mrenclave"
    path.write_bytes(bytes(16))
    assert attester.sealing_key() != key
    path.write_bytes(bytes(15))
    with pytest.raises(ConfigurationError, match="expected 16 bytes, found 15"):
        attester.sealing_key()


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_only_a_binding_is_attested(size):
    """Nothing is padded or cut silently."""
    with pytest.raises(ConfigurationError, match="expected 32 bytes"):
        SgxAttester().attest(bytes(size))


def test_probe(machine, tmp_path):
    """An enclave is found, and its absence explained."""
    assert probe(machine).available
    finding = probe(Machine(root=tmp_path / "nothing"))
    assert not finding.available
    assert "Gramine" in finding.advice
