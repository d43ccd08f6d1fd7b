"""What a kernel shows, read from a machine that is built in a folder."""

import gzip
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.attesters.kernel import survey
from blindai.attesters.kernel_files import read_bounded, write_once
from blindai.errors import EvidenceError

CONFIGURATION = "# comment\nCONFIG_CONFIGFS_FS=y\nCONFIG_TSM_REPORTS=m\nCONFIG_SEV_GUEST=m\n"


@pytest.fixture
def root(tmp_path):
    """A machine with a kernel, a processor and one device."""
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text("6.12.1-cloud\n")
    (tmp_path / "proc/modules").write_text("sev_guest 16384 0 - Live 0x0\n")
    (tmp_path / "proc/cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: AMD EPYC 9654\nflags\t\t: fpu hypervisor sev_snp\n\n"
        "processor\t: 1\nmodel name\t: another\nflags\t\t: fpu sgx\n"
    )
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/config-6.12.1-cloud").write_text(CONFIGURATION)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/sev-guest").touch(mode=0o600)
    return tmp_path


def states(root):
    return {option.name: option.state for option in survey(root).options}


def test_survey(root):
    """Release, processor, flags, options and devices are found."""
    found = survey(root)
    assert found.release == "6.12.1-cloud"
    assert found.processor == "AMD EPYC 9654"
    assert found.flags == ("hypervisor", "sev_snp")
    (device,) = found.devices
    assert device.path == root / "dev/sev-guest"
    assert device.mode == stat.filemode(device.path.stat().st_mode)
    assert device.usable


def test_options(root):
    """An option is built in, a module that is loaded or not, or missing."""
    found = states(root)
    assert found["CONFIG_CONFIGFS_FS"] == "built in"
    assert found["CONFIG_TSM_REPORTS"] == "module, not loaded"
    assert found["CONFIG_SEV_GUEST"] == "module, loaded"
    assert found["CONFIG_NSM"] == "missing"


def test_packed_configuration(root):
    """The kernel's own packed configuration comes before the file in /boot."""
    (root / "proc/config.gz").write_bytes(gzip.compress(b"CONFIG_NSM=y\n"))
    assert states(root)["CONFIG_NSM"] == "built in"
    (root / "proc/config.gz").write_bytes(b"no gzip")
    assert states(root)["CONFIG_CONFIGFS_FS"] == "built in"


def test_packed_configuration_that_grows(root):
    """A small file that unpacks to 64 MiB is cut, not unpacked: what stands behind is not seen."""
    content = b"CONFIG_CONFIGFS_FS=y\n" + b"#" * (64 << 20) + b"\nCONFIG_NSM=y\n"
    (root / "proc/config.gz").write_bytes(gzip.compress(content))
    assert states(root)["CONFIG_CONFIGFS_FS"] == "built in"
    assert states(root)["CONFIG_NSM"] == "missing"


def test_empty_machine(tmp_path):
    """Where nothing can be read, everything is unknown, and nothing fails."""
    found = survey(tmp_path)
    assert (found.release, found.processor, found.flags, found.devices) == ("", "", (), ())
    assert set(states(tmp_path).values()) == {"unknown"}


@given(content=st.binary(max_size=300))
def test_any_content(content, tmp_path_factory):
    """No content of these files makes a survey fail."""
    root = tmp_path_factory.mktemp("machine")
    (root / "proc").mkdir()
    for name in ("cpuinfo", "modules", "config.gz"):
        (root / "proc" / name).write_bytes(content)
    assert len(survey(root).options) == 10


def test_read_bounded(tmp_path):
    """A file is read up to its bound, and refused beyond; endless ones, too."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)
    assert read_bounded(path, at_most=100_000) == b"x" * 100_000
    for file in (path, "/dev/zero"):
        with pytest.raises(EvidenceError, match="more than the 99999 bytes"):
            read_bounded(file, at_most=99_999)


def test_write_once(tmp_path):
    """A write makes no file, and tells when the kernel refuses."""
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        write_once(path, b"x")
    path.touch()
    write_once(path, b"x")
    assert path.read_bytes() == b"x"
    with pytest.raises(OSError, match="No space left"):
        write_once("/dev/full", b"x")
