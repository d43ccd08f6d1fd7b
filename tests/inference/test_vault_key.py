"""The simulated sealing key is private to its file's owner, stays the same, and is loud."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from blindai.errors import ConfigurationError, SealedDataError, SimulationWarning
from blindai.inference.sealing_key import (
    FileSealingKey,
    sealing_key_id,
    unwrap_data_key,
    wrap_data_key,
)
from tests.inference.vaults import KEY, OTHER_KEY


def test_a_key_in_a_file(tmp_path):
    """The file is made with mode 0600, whatever the umask, and read again; each use warns."""
    path = tmp_path / "key"
    old = os.umask(0)
    try:
        with pytest.warns(SimulationWarning, match="whoever reads it reads"):
            key = FileSealingKey(path).sealing_key()
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(set(key)) > 8
    with pytest.warns(SimulationWarning, match="tests only"):
        assert FileSealingKey(path).sealing_key() == key
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o700])
def test_a_key_that_others_can_read(tmp_path, mode):
    """A key file with another mode is refused."""
    path = tmp_path / "key"
    path.write_bytes(KEY)
    path.chmod(mode)
    with pytest.warns(SimulationWarning), pytest.raises(ConfigurationError, match="mode 0600"):
        FileSealingKey(path).sealing_key()


@pytest.mark.parametrize("content", [b"", KEY[1:], KEY + b"\n"])
def test_a_key_of_another_size(tmp_path, content):
    """A file that holds no 32 bytes is refused, and left as it is."""
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.warns(SimulationWarning), pytest.raises(ConfigurationError, match="32 bytes"):
        FileSealingKey(path).sealing_key()
    assert path.read_bytes() == content


def test_a_key_that_is_no_file(tmp_path):
    """A link, a folder and a place that is not there are refused by name."""
    (tmp_path / "real").write_bytes(KEY)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "folder").mkdir(mode=0o600)
    for path in (tmp_path / "link", tmp_path / "folder", tmp_path / "none" / "key"):
        with pytest.warns(SimulationWarning), pytest.raises(ConfigurationError, match=str(path)):
            FileSealingKey(path).sealing_key()


@pytest.mark.filterwarnings("ignore::blindai.errors.SimulationWarning")
def test_two_that_start_at_once(tmp_path):
    """Whoever makes the file first, all get the same key."""
    for attempt in range(20):
        sealing = FileSealingKey(tmp_path / f"key{attempt}")
        with ThreadPoolExecutor(4) as pool:
            keys = list(pool.map(lambda _, s=sealing: s.sealing_key(), range(4)))
        assert len(set(keys)) == 1


def test_wrapping():
    """A wrapped key opens under its sealing key alone, and not if any byte was changed."""
    wrapped = wrap_data_key(KEY, bytes(32))
    assert unwrap_data_key(KEY, wrapped) == bytes(32)
    assert sealing_key_id(KEY) != sealing_key_id(OTHER_KEY)
    changed = [wrapped[:i] + bytes([wrapped[i] ^ 1]) + wrapped[i + 1 :] for i in range(40)]
    for key, data in [(OTHER_KEY, wrapped), *((KEY, data) for data in changed)]:
        with pytest.raises(SealedDataError, match="was changed"):
            unwrap_data_key(key, data)
