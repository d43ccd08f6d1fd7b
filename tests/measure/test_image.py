"""Reading the folder of a machine image."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.errors import ConfigurationError
from blindai.measure.image import MAX_COMMAND_LINE_BYTES, load_image
from tests.measure.images import machine


def test_an_image_is_read(tmp_path):
    """Every part is what its file holds."""
    image = load_image(machine(tmp_path, initrd=b"first files", command_line="quiet x=1"))
    assert (image.initrd, image.command_line) == (b"first files", "quiet x=1")
    assert image.kernel == (tmp_path / "vmlinuz").read_bytes()


@pytest.mark.parametrize("name", ["vmlinuz", "initrd", "cmdline", "root.img"])
def test_one_changed_byte_of_a_file_is_named(tmp_path, name):
    """What was changed after the build is not measured, but refused by name."""
    path = machine(tmp_path) / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"{name}: expected SHA-256"):
        load_image(tmp_path)


@pytest.mark.parametrize("name", ["vmlinuz", "initrd", "cmdline", "root.img", "manifest.json"])
def test_a_missing_file_is_named(tmp_path, name):
    """A folder that is no image says what it lacks."""
    (machine(tmp_path) / name).unlink()
    with pytest.raises(ConfigurationError, match=f"cannot read .*{name}"):
        load_image(tmp_path)


def test_a_command_line_longer_than_the_kernel_takes_is_refused(tmp_path):
    """A file is not read beyond what it may hold."""
    machine(tmp_path, command_line="x" * (MAX_COMMAND_LINE_BYTES + 1))
    with pytest.raises(ConfigurationError, match="larger than 4,096 bytes"):
        load_image(tmp_path)


def test_a_command_line_that_is_no_ascii_is_refused(tmp_path):
    """The firmware would get other characters than the file has."""
    machine(tmp_path, command_line="é")
    with pytest.raises(ConfigurationError, match="expected ASCII"):
        load_image(tmp_path)


@given(st.recursive(
    st.none() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["format", "version", "files", "golden", "initrd"]), inner, max_size=4
    ),
))  # fmt: skip
def test_any_manifest_is_an_image_or_a_configuration_error(tmp_path_factory, document):
    """No JSON at all ends in another error."""
    folder = machine(tmp_path_factory.getbasetemp() / "any-manifest")
    (folder / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(ConfigurationError):
        load_image(folder)


@given(st.binary(max_size=64))
def test_garbage_for_a_manifest_is_a_configuration_error(tmp_path_factory, garbage):
    """Neither do bytes that are no JSON."""
    folder = machine(tmp_path_factory.getbasetemp() / "garbage-manifest")
    (folder / "manifest.json").write_bytes(garbage)
    with pytest.raises(ConfigurationError):
        load_image(folder)
