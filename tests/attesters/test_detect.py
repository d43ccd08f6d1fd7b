"""Detection: the best hardware that is there, and never simulation by itself."""

import pytest

from blindai.attestation.model import DEVICE_PLATFORMS, Platform
from blindai.attesters import ATTESTERS, Machine, create_attester, detect, probe
from blindai.attesters.detect import PROBES, find_platform
from blindai.errors import ConfigurationError


@pytest.fixture
def enclave(tmp_path):
    """A machine that is an SGX enclave."""
    machine = Machine(root=tmp_path)
    machine.gramine.mkdir(parents=True)
    (machine.gramine / "attestation_type").write_text("dcap")
    return machine


def test_nothing_found(tmp_path):
    """Without hardware the error lists all that was looked for, and how to ask for simulation."""
    with pytest.raises(ConfigurationError) as caught:
        detect(Machine(root=tmp_path))
    message = str(caught.value)
    for platform in set(PROBES) - DEVICE_PLATFORMS:
        assert f"  {platform}: looked for " in message
    for path in ("dev/attestation", "dev/nsm", "dev/tpmrm0", "sys/kernel/config/tsm/report"):
        assert str(tmp_path / path) in message
    assert "--platform simulation" in message
    assert "blindai doctor" in message


def test_named_platform_is_taken_by_its_name(tmp_path):
    """A platform that is named is made, also where its hardware is missing: that shows later."""
    machine = Machine(root=tmp_path)
    for platform in ATTESTERS:
        assert create_attester(platform, machine).platform is platform
    with pytest.raises(ConfigurationError, match="expected one of sgx"):
        create_attester("nvidia-gpu", machine)


def test_detect(enclave):
    """An enclave is found, and its attester made."""
    assert detect(enclave).platform is Platform.SGX
    assert create_attester(None, enclave).platform is Platform.SGX


def test_memory_protection_comes_before_a_tpm(enclave, tpm):
    """Where there is a TEE and a TPM, the TEE is chosen; a TPM alone is chosen last."""
    both = Machine(root=enclave.root, tpm=tpm.tcti)
    assert find_platform(both) is Platform.SGX
    (enclave.gramine / "attestation_type").write_text("none")
    assert find_platform(both) is Platform.TPM


def test_probe(enclave):
    """Every platform with hardware is looked for, and each finding explains itself."""
    findings = {finding.platform: finding for finding in probe(enclave)}
    assert set(findings) == set(Platform) - {Platform.SIMULATION}
    assert findings[Platform.SGX].available
    for finding in findings.values():
        assert finding.looked_for
        assert finding.found
        assert finding.available or finding.advice


def test_every_platform_has_an_attester():
    """What can be looked for can be made, but for devices; simulation is made by name only."""
    assert set(ATTESTERS) == set(Platform) - DEVICE_PLATFORMS
    assert set(PROBES) == set(Platform) - {Platform.SIMULATION}
