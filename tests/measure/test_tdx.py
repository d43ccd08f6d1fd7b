"""MRTD and RTMRs of a machine image."""

import contextlib
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.errors import ConfigurationError
from blindai.measure.image import load_image
from blindai.measure.tdx import measure_tdx
from tests.measure.images import firmware, machine

CODE = (0x1000, 0x1000, 0xFFFFF000, 0x2000, 0x01)
SCRATCH = (0, 0, 0x810000, 0x1000, 0)
LATE = (0, 0, 0x900000, 0x1000, 0x02)


@pytest.fixture
def image(tmp_path):
    return load_image(machine(tmp_path))


def values(measured):
    return {line.name: line.values for line in measured.predictions}


def add(place):
    return (b"MEM.PAGE.ADD\0\0\0\0" + place.to_bytes(8, "little")).ljust(128, b"\0")


def measure(place, content):
    return b"".join(
        (b"MR.EXTEND\0\0\0\0\0\0\0" + (place + at).to_bytes(8, "little")).ljust(128, b"\0")
        + content[at : at + 256]
        for at in range(0, 4096, 256)
    )


def test_mrtd_is_of_every_page_and_its_place(image):
    """Computed by hand: pages of code with their content, scratch pages by their place alone."""
    data = firmware(tdx=(CODE, SCRATCH, LATE))
    full, empty = data[0x1000:0x2000], bytes(0x1000)
    a, b = 0xFFFFF000, 0x100000000
    paged = add(a) + measure(a, full) + add(b) + measure(b, empty) + add(0x810000)
    grouped = add(a) + add(b) + measure(a, full) + measure(b, empty) + add(0x810000)
    expected = tuple(hashlib.sha384(each).digest() for each in (paged, grouped))
    assert values(measure_tdx(image, data))["mrtd"] == expected


def test_rtmr2_is_of_command_line_and_initrd(image):
    """The same events as PCR 9, in the bank of TDX."""
    held = bytes(48)
    for part in ("console=ttyS0 initrd=initrd\0".encode("utf-16-le"), b"initrd"):
        held = hashlib.sha384(held + hashlib.sha384(part).digest()).digest()
    assert values(measure_tdx(image, firmware(tdx=(CODE,))))["rtmr2"] == (held,)


def test_the_policy_pins_a_whole_identity_and_names_what_is_left(image):
    """Firmware, kernel and files together; what the hypervisor chooses is said to be open."""
    measured = measure_tdx(image, firmware(tdx=(CODE,)))
    assert set(measured.policy().accept[0].measurements) == {"mrtd", "rtmr1", "rtmr2", "rtmr3"}
    assert [left.name for left in measured.unpredicted] == ["rtmr0"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (firmware(), "built without TDX"),
        (b"", "no table"),
        (bytes(0x4000), "no table"),
        (firmware(tdx=((0x3000, 0x2000, 0x1000, 0x2000, 1),)), "whole firmware"),
        (firmware(tdx=((0, 0x2000, 0x1000, 0x1000, 1),)), "does not fit"),
        (firmware(tdx=((0, 0, 0x1001, 0x1000, 1),)), "does not fit"),
        (firmware(tdx=((0, 0, 0, 1 << 40, 0),)), "does not fit"),
    ],
)
def test_firmware_that_cannot_be_measured_is_refused(image, data, says):
    """By name of what is wrong with it."""
    with pytest.raises(ConfigurationError, match=says):
        measure_tdx(image, data)


@given(at=st.integers(0x3000, 0x3FFF), value=st.integers(0, 255))
def test_any_change_of_the_tables_is_a_measurement_or_a_configuration_error(
    tmp_path_factory, at, value
):
    """A damaged firmware ends in no other error."""
    folder = tmp_path_factory.getbasetemp() / "tdx"
    image = load_image(machine(folder))
    data = bytearray(firmware(tdx=(CODE, SCRATCH)))
    data[at] = value
    with contextlib.suppress(ConfigurationError):
        assert len(values(measure_tdx(image, bytes(data)))["rtmr2"][0]) == 48
