"""Models' files go with their server, however it ended."""

import os
from pathlib import Path

import pytest

from blindai.attestation.model import Platform
from blindai.server.config import ServerConfig
from blindai.server.store_folder import IN_USE, remove_abandoned, store_folder
from tests.served import launch

CONFIG = ServerConfig(platform=Platform.SIMULATION)


@pytest.mark.slow
def test_what_a_killed_server_left_is_removed():
    """The next server that starts removes it; folders of servers that live are left alone."""
    with store_folder(CONFIG) as mine:
        first = launch().wait_until_ready()
        open_files = Path(f"/proc/{first.process.pid}/fd").iterdir()
        (in_use,) = (p for fd in open_files if (p := fd.readlink()).name == IN_USE)
        first.kill()
        assert in_use.exists()
        second = launch().wait_until_ready()
        assert second.stop().status == 0
        assert not in_use.parent.exists()
        assert mine.exists()


def test_it_is_removed_at_the_end():
    """A server that ends leaves no folder."""
    with store_folder(CONFIG) as folder:
        (folder / "model").write_bytes(b"weights")
    assert not folder.exists()


def test_only_what_is_abandoned_is_removed(tmp_path):
    """What has another name, no lock, is no folder, a link, or may be in use stays."""
    keep = [tmp_path / name for name in ("other", "blindai-store-mine", "blindai-trial-young")]
    for folder in (*keep, tmp_path / "blindai-trial-old", tmp_path / "blindai-store-old"):
        folder.mkdir()
        (folder / "file").write_bytes(b"x")
    (tmp_path / "blindai-store-old" / IN_USE).touch()
    (tmp_path / "blindai-store-link").symlink_to(tmp_path / "blindai-store-old")
    (tmp_path / "blindai-trial-file").write_bytes(b"x")
    now = (tmp_path / "blindai-trial-young").stat().st_mtime
    for name in ("blindai-store-mine", "blindai-trial-old", "blindai-trial-file"):
        os.utime(tmp_path / name, (now - 4000, now - 4000))
    remove_abandoned(tmp_path, now=now + 60)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*(each.name for each in keep), "blindai-store-link", "blindai-trial-file"}
    assert all((folder / "file").exists() for folder in keep)


def test_a_folder_that_is_given_is_left_alone(tmp_path):
    """What the operator named is theirs, and nothing of it is removed."""
    with store_folder(ServerConfig(platform=Platform.SIMULATION, store=tmp_path)) as folder:
        (folder / "kept").write_bytes(b"x")
    assert folder == Path(tmp_path)
    assert (tmp_path / "kept").exists()
