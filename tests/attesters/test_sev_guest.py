"""Keys that the AMD chip derives, over an ioctl that behaves as the kernel's driver does."""

import ctypes
import errno
import hashlib
import struct

import pytest

from blindai.attesters.sev_guest import SNP_GET_DERIVED_KEY, derive_key
from blindai.errors import ConfigurationError


def chip(status=0, secret=b"chip"):
    """Return an ioctl that answers as AMD 56860 says for MSG_KEY_REQ."""

    def ioctl(descriptor, number, message):
        assert number == 0xC0205301
        version, request, response, _ = struct.unpack("<B7xQQQ", message)
        assert version == 1
        asked = ctypes.string_at(request, 32)
        root, reserved, fields, _, _, _ = struct.unpack("<IIQIIQ", asked)
        assert (root, reserved) == (0, 0)
        assert fields == 0b1001  # policy and measurement
        key = hashlib.sha256(secret + asked).digest()
        content = struct.pack("<I28x", status) + (bytes(32) if status else key)
        ctypes.memmove(response, content, 64)
        return 0

    return ioctl


@pytest.fixture
def device(tmp_path):
    path = tmp_path / "sev-guest"
    path.touch()
    return path


def test_number_of_the_ioctl():
    """The number is what the kernel's macro gives: direction, size, type, number."""
    assert SNP_GET_DERIVED_KEY == 0xC0205301


def test_derive_key(device):
    """One chip gives one key each time; another chip and another level give another."""
    key = derive_key(device, ioctl=chip())
    assert len(key) == 32
    assert key == derive_key(device, ioctl=chip())
    assert key != derive_key(device, ioctl=chip(secret=b"another"))
    assert key != derive_key(device, vmpl=2, ioctl=chip())


def test_refused_by_firmware(device):
    """A status of the firmware is no key."""
    with pytest.raises(ConfigurationError, match=r"derives no key \(status 0x16\)"):
        derive_key(device, ioctl=chip(status=0x16))


def test_key_of_zeros(device):
    """A driver that answers nothing leaves zeros, which are no key."""
    with pytest.raises(ConfigurationError, match="derives no key"):
        derive_key(device, ioctl=lambda *_: 0)


def test_refused_by_kernel(device, tmp_path):
    """A missing device and a refused request are said with the device."""

    def refuse(*_):
        raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")

    with pytest.raises(ConfigurationError, match="sev-guest: Inappropriate ioctl"):
        derive_key(device, ioctl=refuse)
    with pytest.raises(ConfigurationError, match="none: No such file"):
        derive_key(tmp_path / "none")
