"""Stopped at any write, sync or rename, a vault holds what it held or what it was to hold."""

import errno
import io
import shutil
import subprocess
from dataclasses import dataclass, field

import pytest

from blindai.errors import BlindAIError, Overloaded, SealedDataError
from blindai.inference.disk import Disk
from blindai.inference.vault import Vault, take_over
from tests.inference.vaults import (
    KEY,
    LARGE,
    MIB,
    OTHER_KEY,
    SMALL,
    Counter,
    contents,
    file_of,
    seal,
    sha256,
    unseal,
)

HUGE = b"more than there is room for" * (3 * MIB // 27)


class PowerCut(BaseException):
    """Nothing catches a power cut."""


@dataclass
class Inode:
    """A file's bytes, in the cache and on the platter."""

    cached: bytes = b""
    synced: bytes = b""


@dataclass
class FragileDisk(Disk):
    """A disk whose power is cut before the operation number `cut_at`, and for good.

    It does everything for real and keeps account of what would survive.
    """

    cut_at: int
    done: int = 0
    inodes: dict = field(default_factory=dict)
    cached_names: dict = field(default_factory=dict)
    synced_names: dict = field(default_factory=dict)
    open_files: dict = field(default_factory=dict)

    @classmethod
    def holding(cls, folder, cut_at):
        """Return a disk that holds what a folder does, all of it safe."""
        names = {}
        if folder.exists():
            names = {p.name: Inode(p.read_bytes(), p.read_bytes()) for p in folder.iterdir()}
        return cls(cut_at, cached_names=dict(names), synced_names=dict(names))

    def step(self):
        """Count an operation, unless the power is cut."""
        if self.done >= self.cut_at:
            raise PowerCut
        self.done += 1

    def create(self, path):
        self.step()
        descriptor = super().create(path)
        self.open_files[descriptor] = self.cached_names[path.name] = Inode()
        return descriptor

    def write(self, descriptor, data):
        self.step()
        super().write(descriptor, data)
        self.open_files[descriptor].cached += bytes(data)

    def sync(self, descriptor):
        self.step()
        inode = self.open_files[descriptor]
        inode.synced = inode.cached

    def rename(self, source, target):
        self.step()
        super().rename(source, target)
        self.cached_names[target.name] = self.cached_names.pop(source.name)

    def sync_folder(self, folder):
        self.step()
        self.synced_names = dict(self.cached_names)

    def unlink(self, path):
        self.step()
        super().unlink(path)
        self.cached_names.pop(path.name, None)

    def survivors(self):
        """Return what the folder may hold after the cut, as name → bytes."""
        halves = {
            name: inode.synced + inode.cached[len(inode.synced) :][: len(inode.cached) // 2]
            for name, inode in self.cached_names.items()
        }
        registry = {n: i.synced for n, i in self.cached_names.items() if n == "registry.sealed"}
        return {
            "the registry first": {n: i.synced for n, i in self.synced_names.items()} | registry,
            "only what was synced": {n: i.synced for n, i in self.synced_names.items()},
            "names before bytes": {n: i.synced for n, i in self.cached_names.items()},
            "half of the bytes": halves,
            "bytes before names": {n: i.cached for n, i in self.synced_names.items()},
            "everything": {n: i.cached for n, i in self.cached_names.items()},
        }


class FragileCounter(Counter):
    """A rollback counter behind the same power supply."""

    def __init__(self, value, disk):
        super().__init__(value)
        self.disk = disk

    def advance(self):
        self.disk.step()
        return super().advance()


# What is done, to a vault with SMALL as "a" and "b", and what it holds afterwards.
ACTIONS = {
    "begin": (lambda v: None, {}),
    "seal": (lambda v: seal(v, LARGE, "c"), {"a": SMALL, "b": SMALL, "c": LARGE}),
    "replace": (lambda v: seal(v, LARGE, "a", "b"), {"a": LARGE, "b": LARGE}),
    "mend": (lambda v: seal(v, SMALL, "a"), {"a": SMALL, "b": SMALL}),
    "name": (lambda v: v.add_name("c", sha256(SMALL)), {"a": SMALL, "b": SMALL, "c": SMALL}),
    "unname": (lambda v: v.remove("a"), {"b": SMALL}),
    "remove": (lambda v: (v.remove("a"), v.remove("b")), {}),
    "reseal": (lambda v: v.reseal(OTHER_KEY), {"a": SMALL, "b": SMALL}),
}


def open_either(folder, counter):
    """Return what a vault holds under whichever key opens it, and that key."""
    try:
        return contents(folder, KEY, counter=counter), KEY
    except SealedDataError:
        return contents(folder, OTHER_KEY, counter=counter), OTHER_KEY


@pytest.mark.parametrize("counted", [False, True], ids=["uncounted", "counted"])
@pytest.mark.parametrize("name", ACTIONS)
def test_old_or_new_never_neither(tmp_path, name, counted):
    """Whatever of the cache survives a cut at any step, the vault opens, as old or as new."""
    action, after = ACTIONS[name]
    start = tmp_path / "start"
    value = 0
    before = {}
    if name != "begin":
        counter = Counter()
        with Vault(start, KEY, counter=counter if counted else None) as vault:
            seal(vault, SMALL, "a", "b")
        before, value = {"a": SMALL, "b": SMALL}, counter.value
    allowed = [before, after] + ([{"b": SMALL}] if name == "remove" else [])
    seen = []
    for cut_at in range(1000):
        folder = tmp_path / "cut"
        shutil.rmtree(folder, ignore_errors=True)
        if start.exists():
            shutil.copytree(start, folder)
        disk = FragileDisk.holding(folder, cut_at)
        counter = FragileCounter(value, disk) if counted else None
        try:
            with Vault(folder, KEY, counter=counter, disk=disk) as vault:
                action(vault)
                finished = True
        except PowerCut:
            finished = False
        for survivor, files in disk.survivors().items():
            again = tmp_path / "again"
            shutil.rmtree(again, ignore_errors=True)
            again.mkdir()
            for file, content in files.items():
                (again / file).write_bytes(content)
            left = Counter(counter.value) if counted else None
            found, key = open_either(again, left)
            assert found in ([after] if finished else allowed), (cut_at, survivor)
            assert key == (OTHER_KEY if finished and name == "reseal" else key)
            seen.append((found, key))
            with Vault(again, key, counter=left) as vault:
                seal(vault, b"next", "next")
            assert contents(again, key, counter=left) == found | {"next": b"next"}
            assert len(list(again.iterdir())) == 1 + len({*found.values(), b"next"})
        if finished:
            break
    assert finished
    if name != "begin":
        assert cut_at > 4
    assert all((state, KEY) in seen for state in allowed[:-1])
    assert (after, OTHER_KEY if name == "reseal" else KEY) in seen


@pytest.mark.parametrize("counted", [False, True], ids=["uncounted", "counted"])
def test_taking_over_can_be_begun_again(tmp_path, counted):
    """Stopped at any step, the next start of the new code finishes what the first one began."""
    for cut_at in range(100):
        folder = tmp_path / str(cut_at)
        counter = Counter() if counted else None
        with Vault(folder, KEY, counter=counter) as vault:
            seal(vault, SMALL, "a")
            handed = vault.data_key
        disk = FragileDisk.holding(folder, cut_at)
        keys = {"data_key": handed, "sealing_key": OTHER_KEY, "counter": counter}
        try:
            assert take_over(folder, **keys, disk=disk) is None
            finished = True
        except PowerCut:
            finished = False
        assert take_over(folder, **keys) is None
        assert contents(folder, OTHER_KEY, counter=counter) == {"a": SMALL}
        with Vault(folder, OTHER_KEY, counter=counter) as vault:
            assert vault.data_key != handed
        if finished:
            break
    assert finished
    assert cut_at > 4


class FailingDisk(Disk):
    """A disk that refuses the operation number `fails_at`, and works again afterwards."""

    def __init__(self, fails_at, code):
        self.left = fails_at
        self.code = code

    def step(self):
        self.left -= 1
        if self.left == -1:
            raise OSError(self.code, "refused")

    def create(self, path):
        self.step()
        return super().create(path)

    def write(self, descriptor, data):
        self.step()
        super().write(descriptor, data)

    def sync(self, descriptor):
        self.step()
        super().sync(descriptor)

    def rename(self, source, target):
        self.step()
        super().rename(source, target)

    def sync_folder(self, folder):
        self.step()
        super().sync_folder(folder)


def announced(vault):
    """Return what a vault says that it holds, as name → bytes."""
    known = {sha256(data): data for data in (SMALL, LARGE)}
    return {name: known[model.sha256] for model in vault.models() for name in model.names}


@pytest.mark.parametrize("goes_on", [False, True], ids=["stops", "goes on"])
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, Overloaded),
        (errno.EDQUOT, Overloaded),
        (errno.EIO, SealedDataError),
        (errno.EROFS, SealedDataError),
    ],
)
@pytest.mark.parametrize("name", ["seal", "replace", "mend", "name", "unname", "reseal"])
def test_a_disk_that_refuses_once(tmp_path, name, code, kind, goes_on):
    """An error at any step is one error of ours; what is announced then is, or the next is."""
    action, after = ACTIONS[name]
    for fails_at in range(1000):
        folder = tmp_path / f"{fails_at}"
        with Vault(folder, KEY) as vault:
            seal(vault, SMALL, "a", "b")
        disk = FailingDisk(fails_at, code)
        with Vault(folder, KEY, disk=disk) as vault:
            try:
                action(vault)
            except BlindAIError as error:
                failure = error
            else:
                break
            if goes_on:
                vault.add_name("next", sha256(SMALL))
            said = announced(vault)
            assert all(unseal(vault, data) == data for data in said.values())
        assert type(failure) is kind
        assert "refused" in str(failure)
        found, key = open_either(folder, None)
        assert found in ([said] if goes_on else [said, after])
        assert key == KEY or (name == "reseal" and not goes_on)
    assert fails_at > 3


def test_no_room(tmp_path):
    """A file system that is really full: one clear error, all else untouched, nothing left."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "tmpfs", folder],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("may not mount a small file system; FailingDisk stands in")
    try:
        with Vault(folder / "vault", KEY) as vault:
            model = seal(vault, LARGE, "a")
            for name in ("a", "b"):
                with pytest.raises(Overloaded, match="No space left"):
                    vault.seal(io.BytesIO(HUGE), sha256=sha256(HUGE), size=len(HUGE), names=[name])
            with pytest.raises(Overloaded, match="No space left"):
                vault.reseal(OTHER_KEY)
            assert vault.models() == (model,)
            assert unseal(vault, LARGE) == LARGE
            assert len(list((folder / "vault").iterdir())) == 2
            vault.remove("a")
            assert not file_of(folder / "vault", model).exists()
            seal(vault, LARGE, "b")
        assert contents(folder / "vault") == {"b": LARGE}
    finally:
        subprocess.run(["umount", folder], check=True)
