"""PCRs of a machine image, and what the kernel's digest is of."""

import contextlib
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.errors import ConfigurationError, EvidenceError
from blindai.measure.image import MachineImage, load_image
from blindai.measure.kernel import as_qemu_loads, authenticode, extend, load_options
from blindai.measure.tpm import golden_from_log, golden_of_firmware, measure_tpm
from tests.measure.images import kernel, machine

GIB = 1 << 30


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def values(measured):
    return {line.name: line.values for line in measured.predictions}


def event(register, digest, data=b"", kind=0x0D):
    head = register.to_bytes(4, "little") + kind.to_bytes(4, "little")
    head += (1).to_bytes(4, "little") + (0x0B).to_bytes(2, "little") + digest
    return head + len(data).to_bytes(4, "little") + data


def log(*events):
    """Return a crypto-agile event log with a SHA-256 bank."""
    spec = b"Spec ID Event03\0" + bytes(8) + (1).to_bytes(4, "little")
    spec += (0x0B).to_bytes(2, "little") + (32).to_bytes(2, "little") + b"\0"
    first = bytes(4) + (3).to_bytes(4, "little") + bytes(20)
    return first + len(spec).to_bytes(4, "little") + spec + b"".join(events)


@pytest.fixture
def image(tmp_path):
    return load_image(machine(tmp_path))


def test_the_kernels_digest_leaves_out_checksum_and_signatures():
    """A signature may be added to a kernel, and its digest stays."""
    plain = kernel()
    signed = kernel(signatures=b"signature of somebody")
    patched = bytearray(plain)
    patched[0x58 + 64] ^= 0xFF
    assert authenticode(plain, "sha256") == authenticode(signed, "sha256")
    assert authenticode(plain, "sha256") == authenticode(bytes(patched), "sha256")


def test_the_kernels_digest_is_of_headers_and_sections_in_the_order_of_the_file():
    """Computed by hand from the layout of the test's kernel."""
    image = kernel()
    by_hand = sha256(image[: 0x58 + 64], image[0x58 + 68 : 0x58 + 144], image[0x58 + 152 :])
    assert authenticode(image, "sha256") == by_hand


@given(st.integers(0x400, len(kernel()) - 1))
def test_any_byte_of_the_kernels_code_changes_its_digest(at):
    """Nothing of a section is left out."""
    changed = bytearray(kernel())
    changed[at] ^= 1
    assert authenticode(bytes(changed), "sha256") != authenticode(kernel(), "sha256")


@given(st.binary(max_size=512) | st.binary(max_size=300).map(lambda rest: kernel()[:0x60] + rest))
def test_garbage_for_a_kernel_is_a_configuration_error_or_a_digest(garbage):
    """No bytes at all end in another error."""
    with contextlib.suppress(ConfigurationError):
        assert len(authenticode(garbage, "sha256")) == 32


@pytest.mark.parametrize(("memory", "below"), [(GIB, GIB), (2 * GIB, 2 * GIB), (64 * GIB, 2 * GIB)])
def test_qemu_puts_the_initrd_below_the_end_of_low_memory(image, memory, below):
    """Its address, which the kernel's header then holds, follows from the memory alone."""
    loaded = as_qemu_loads(image, memory)
    address = int.from_bytes(loaded[0x218:0x21C], "little")
    assert address == (below - 0x28000 - 1 - len(image.initrd)) & ~0xFFF
    assert int.from_bytes(loaded[0x21C:0x220], "little") == len(image.initrd)


def test_memory_too_small_for_the_image_is_refused(image):
    """A prediction of a machine that cannot boot is worth nothing."""
    with pytest.raises(ConfigurationError, match="too few"):
        as_qemu_loads(image, 0x28000 + 100)


def test_a_kernel_without_a_boot_protocol_is_refused(image):
    """QEMU would load it in another way."""
    other = MachineImage(image.folder, bytes(len(image.kernel)), image.initrd, "")
    with pytest.raises(ConfigurationError, match="boot protocol"):
        as_qemu_loads(other, GIB)


def test_pcr9_is_of_command_line_and_initrd(image):
    """Computed by hand, as the kernel's EFI stub measures."""
    options = sha256("console=ttyS0 initrd=initrd\0".encode("utf-16-le"))
    by_hand = sha256(sha256(bytes(32), options), sha256(b"initrd"))
    assert values(measure_tpm(image))["pcr9"] == (by_hand,)
    assert extend("sha256", sha256(load_options("console=ttyS0"))) == sha256(bytes(32), options)


@pytest.mark.parametrize(
    ("change", "differ"),
    [
        ({"command_line": "console=ttyS1"}, {"pcr9"}),
        ({"initrd": b"initrD"}, {"pcr9"}),
        ({"initrd": b"initrd, longer"}, {"pcr4", "pcr9"}),
        ({"linux": kernel(b"other code")}, {"pcr4"}),
    ],
)
def test_each_part_of_the_image_is_in_a_register(tmp_path, change, differ):
    """What is changed shows, and only where it is measured."""
    before = values(measure_tpm(load_image(machine(tmp_path / "before"))))
    after = values(measure_tpm(load_image(machine(tmp_path / "after", **change))))
    assert {name for name in before if before[name] != after[name]} == differ


def test_firmware_is_not_predicted_but_named(image):
    """Nobody is told that PCR 0 was pinned where it was not."""
    measured = measure_tpm(image)
    assert [left.name for left in measured.unpredicted] == ["pcr0", "pcr1"]
    assert {"pcr0", "pcr1"}.isdisjoint(values(measured))


def test_golden_values_come_from_a_log_of_this_image(image):
    """They are marked as seen, not as computed, with where they were seen."""
    options, initrd = sha256(load_options(image.command_line)), sha256(image.initrd)
    events = [event(0, sha256(b"fw")), event(1, sha256(b"cfg")), event(9, options)]
    seen = golden_from_log(image, log(*events, event(9, initrd)), "the lab")
    measured = measure_tpm(image, golden=seen)
    assert values(measured)["pcr0"] == (sha256(bytes(32), sha256(b"fw")),)
    assert [line.how for line in measured.predictions if line.golden] == ["golden: the lab"] * 2
    assert measured.unpredicted == ()


def test_the_log_of_another_image_gives_no_golden_values(image):
    """Else whoever made it could have booted anything."""
    with pytest.raises(ConfigurationError, match="another image"):
        golden_from_log(image, log(event(0, sha256(b"fw")), event(9, sha256(b"x"))), "")


def test_a_malformed_log_is_an_evidence_error(image):
    """As everywhere."""
    with pytest.raises(EvidenceError):
        golden_from_log(image, b"\0" * 40, "")


def test_golden_values_of_the_manifest_are_those_of_the_firmware_given(tmp_path):
    """Values seen with one firmware say nothing of another."""
    entry = {"firmware_sha256": sha256(b"fw").hex(), "values": {"pcr0": "ab" * 32}, "how": "x"}
    image = load_image(machine(tmp_path, golden=[entry]))
    found = golden_of_firmware(image, b"fw")
    assert found is not None
    assert found.values == {"pcr0": b"\xab" * 32}
    assert golden_of_firmware(image, b"other") is None


@pytest.mark.parametrize("broken", [{"values": 3}, {"values": {"pcr0": "zz"}}, {"how": None}])
def test_malformed_golden_values_are_a_configuration_error(tmp_path, broken):
    """They are refused where they are read."""
    entry = {"firmware_sha256": sha256(b"fw").hex(), "values": {}, "how": "x"} | broken
    image = load_image(machine(tmp_path, golden=[entry]))
    with pytest.raises(ConfigurationError, match="golden"):
        golden_of_firmware(image, b"fw")


def test_the_policy_pins_what_is_known_and_the_key_that_was_enrolled(image):
    """And is one that loads."""
    measured = measure_tpm(image)
    block = measured.policy(
        pinned={"ak": (b"\x22" * 32,)}, tolerate=frozenset({"ak-not-certified"})
    ).accept[0]
    assert {"pcr4", "pcr9", "ak"} <= set(block.measurements)
    assert block.tolerate == {"memory-not-encrypted", "ak-not-certified"}
    assert "ak-not-certified" not in measured.policy().accept[0].tolerate
