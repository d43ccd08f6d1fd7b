"""Launch digests of SEV-SNP: what is passed to the library, and what is refused."""

import pytest

from blindai.errors import ConfigurationError
from blindai.measure.image import load_image
from blindai.measure.sev_snp import measure_sev_snp
from tests.measure.images import firmware, kernel, machine

pytest.importorskip("sevsnpmeasure", reason="the extra `measure` is not installed")

HASHES = (0x10000, 0x1000, 0x10)
MEMORY, SECRETS, CPUID = (0x1000, 0x1000, 1), (0xD000, 0x1000, 2), (0xE000, 0x1000, 3)


@pytest.fixture
def ovmf(tmp_path):
    path = tmp_path / "OVMF.fd"
    path.write_bytes(firmware(snp=(MEMORY, SECRETS, CPUID, HASHES)))
    return path


def digest(folder, ovmf, *, processors=1, model="EPYC-v4", **parts):
    image = load_image(machine(folder, **parts))
    (line,) = measure_sev_snp(image, ovmf, processors=processors, model=model).predictions
    assert line.name == "measurement"
    return line.values[0]


def test_the_digest_is_the_same_each_time(tmp_path, ovmf):
    """It depends on nothing but the files."""
    first, second = digest(tmp_path / "a", ovmf), digest(tmp_path / "b", ovmf)
    assert first == second
    assert len(first) == 48


@pytest.mark.parametrize(
    "change",
    [
        {"command_line": "console=ttyS1"},
        {"initrd": b"initrD"},
        {"linux": kernel(b"other code")},
        {"processors": 2},
        {"model": "EPYC-Genoa"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_part_of_the_machine_is_in_the_digest(tmp_path, ovmf, change):
    """Kernel, initrd, command line and processors."""
    assert digest(tmp_path / "a", ovmf) != digest(tmp_path / "b", ovmf, **change)


def test_firmware_that_does_not_measure_the_kernel_is_refused(tmp_path):
    """Its digest would pin no code of ours."""
    path = tmp_path / "OVMF.fd"
    path.write_bytes(firmware(snp=(MEMORY, SECRETS, CPUID)))
    with pytest.raises(ConfigurationError, match="this firmware"):
        digest(tmp_path / "image", path)


@pytest.mark.parametrize("content", [b"", b"x" * 5000, bytes(4096)])
def test_what_is_no_firmware_is_refused(tmp_path, content):
    """With its name."""
    path = tmp_path / "OVMF.fd"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"OVMF\.fd"):
        digest(tmp_path / "image", path)


def test_an_unknown_processor_is_refused(tmp_path, ovmf):
    """And those that are known are listed."""
    with pytest.raises(ConfigurationError, match="EPYC-v4"):
        digest(tmp_path / "image", ovmf, model="Z80")
