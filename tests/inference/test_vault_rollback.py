"""With a counter, an older state of the vault is never opened; without one, that is said."""

import shutil

import pytest

from blindai.errors import Overloaded, SealedDataError
from blindai.inference.disk import Disk
from blindai.inference.vault import Vault
from tests.inference.vaults import KEY, LARGE, OTHER_KEY, SMALL, Counter, contents, opens, seal


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "vault"


def put_back(saved, folder):
    """Replace a folder by an earlier copy of it."""
    shutil.rmtree(folder)
    shutil.copytree(saved, folder)


def test_an_older_state_is_refused(folder, tmp_path):
    """A deleted model cannot be brought back by putting all files back."""
    counter = Counter()
    with Vault(folder, KEY, counter=counter) as vault:
        seal(vault, SMALL, "a")
        shutil.copytree(folder, tmp_path / "saved")
        vault.remove("a")
    assert contents(folder, counter=counter) == {}
    put_back(tmp_path / "saved", folder)
    assert "rolled back or removed: the counter stands at" in opens(folder, counter=counter)
    shutil.rmtree(folder)
    assert "there is no registry" in opens(folder, counter=counter)


def test_without_a_counter_it_is_said(folder, tmp_path):
    """Without a counter the older state opens, which the vault says beforehand."""
    with Vault(folder, KEY) as vault:
        assert "no rollback protection" in vault.caveats[0]
        seal(vault, SMALL, "a")
        shutil.copytree(folder, tmp_path / "saved")
        vault.remove("a")
    put_back(tmp_path / "saved", folder)
    assert contents(folder) == {"a": SMALL}
    with Vault(folder, KEY, counter=Counter()) as vault:
        assert not vault.caveats


def test_the_counter_cannot_be_taken_away(folder):
    """A vault with a counter does not open without it, nor with one that was reset."""
    counter = Counter()
    with Vault(folder, KEY, counter=counter) as vault:
        seal(vault, SMALL, "a")
    assert "none can be reached here" in opens(folder)
    assert "was reset" in opens(folder, counter=Counter())
    assert contents(folder, counter=counter) == {"a": SMALL}


def test_a_counter_can_be_added(folder, tmp_path):
    """A vault takes a new counter up; what it was before is then refused."""
    with Vault(folder, KEY) as vault:
        seal(vault, SMALL, "a")
    shutil.copytree(folder, tmp_path / "saved")
    counter = Counter()
    assert contents(folder, counter=counter) == {"a": SMALL}
    put_back(tmp_path / "saved", folder)
    assert "rolled back" in opens(folder, counter=counter)


def test_resealing_counts_too(folder, tmp_path):
    """What was there before a resealing is refused, under either key."""
    counter = Counter()
    with Vault(folder, KEY, counter=counter) as vault:
        seal(vault, SMALL, "a")
        shutil.copytree(folder, tmp_path / "saved")
        vault.reseal(OTHER_KEY)
    assert contents(folder, OTHER_KEY, counter=counter) == {"a": SMALL}
    put_back(tmp_path / "saved", folder)
    assert "rolled back" in opens(folder, KEY, counter=counter)


class StuckCounter(Counter):
    """A counter that can be made to refuse."""

    stuck = False

    def advance(self):
        if self.stuck:
            msg = "the TPM is busy"
            raise Overloaded(msg)
        return super().advance()


@pytest.mark.parametrize("restart", [True, False])
def test_an_unannounced_state_does_not_come_back(folder, tmp_path, restart):
    """A registry that was written while the counter stuck is worth nothing after the next one.

    Whoever can stop the machine between file and counter has two registries for one value,
    and could exchange them later.
    """
    counter = StuckCounter()
    vault = Vault(folder, KEY, counter=counter)
    seal(vault, SMALL, "a")
    shutil.copytree(folder, tmp_path / "before")
    counter.stuck = True
    with pytest.raises(Overloaded):
        seal(vault, LARGE, "b")
    shutil.copytree(folder, tmp_path / "unannounced")
    counter.stuck = False
    if restart:
        vault.close()
        put_back(tmp_path / "before", folder)
        vault = Vault(folder, KEY, counter=counter)
    vault.remove("a")
    vault.close()
    shutil.copytree(folder, tmp_path / "after")
    put_back(tmp_path / "unannounced", folder)
    assert "rolled back" in opens(folder, counter=counter)
    put_back(tmp_path / "after", folder)
    assert contents(folder, counter=counter) == {}


def test_a_power_cut_before_the_counter(folder):
    """A registry that is one ahead of the counter is opened, and the counter catches up."""
    counter = StuckCounter()
    with Vault(folder, KEY, counter=counter) as vault:
        counter.stuck = True
        with pytest.raises(Overloaded):
            seal(vault, SMALL, "a")
    counter.stuck = False
    assert contents(folder, counter=counter) == {"a": SMALL}
    assert contents(folder, counter=counter) == {"a": SMALL}


class FailingFolderSync(Disk):
    """A disk whose folder syncs fail on demand."""

    fails = False

    def sync_folder(self, folder):
        if self.fails:
            raise OSError(5, "Input/output error")
        super().sync_folder(folder)


def test_a_write_that_may_have_failed(folder):
    """After a failed sync the vault goes on from what it announced, and opens afterwards."""
    counter, disk = Counter(), FailingFolderSync()
    with Vault(folder, KEY, counter=counter, disk=disk) as vault:
        seal(vault, SMALL, "a")
        disk.fails = True
        with pytest.raises(SealedDataError, match="cannot be written: Input/output error"):
            vault.add_name("b", vault.models()[0].sha256)
        disk.fails = False
        assert [model.names for model in vault.models()] == [("a",)]
        vault.add_name("c", vault.models()[0].sha256)
    assert contents(folder, counter=counter) == {"a": SMALL, "c": SMALL}
