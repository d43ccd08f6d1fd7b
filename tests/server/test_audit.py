"""What is audited is on the disk before it happens, or does not happen."""

import errno
import os
from datetime import timedelta

import msgspec
import pytest

from blindai.audit import verify_audit_log
from blindai.channel.audit import parse_entry
from blindai.errors import ConfigurationError, ModelNotFound, Overloaded
from blindai.inference.disk import Disk
from blindai.server.audit import AuditLog
from tests.audit_logs import MODEL, NOW, Person, begin, identity, write_log


class FailingDisk(Disk):
    """A disk that can be told to take no more."""

    room = 1 << 30
    syncs = True

    def write(self, descriptor, data):
        written = bytes(data)[: self.room]
        os.write(descriptor, written)
        if len(written) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self, descriptor):
        if not self.syncs:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync(descriptor)


def entries(path):
    """Return what a log says."""
    return [parse_entry(line) for line in path.read_bytes().splitlines()]


def verify(path):
    """Verify a log that should be whole."""
    with path.open("rb") as file:
        return verify_audit_log(file, None, now=NOW)


def fail():
    """Fail as the store does, with a message that names a model."""
    msg = "a name that is somebody's secret"
    raise ModelNotFound(msg)


@pytest.fixture(scope="module")
def keys():
    return identity()


def test_who_did_what(tmp_path, keys):
    """An action has two entries, with who asked, what it was about, and how it ended."""
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, now=lambda: NOW)
    begin(log, keys)
    with log.action("upload", Person(), model=MODEL, size=7):
        begun = entries(path)[-1]
        assert (begun.event, begun.outcome) == ("upload", "begun")
        assert (begun.kind, begun.subject, begun.tenant) == ("key", Person().subject, "clinic")
        assert (begun.model, begun.size, begun.time) == (MODEL, 7, NOW)
    with pytest.raises(ModelNotFound), log.action("delete", Person(tenant="")):
        fail()
    log.close()
    ends = [(e.event, e.outcome, e.of, e.error) for e in entries(path)][2:]
    assert ends == [
        ("upload", "done", 2, None),
        ("delete", "begun", None, None),
        ("delete", "failed", 4, "ModelNotFound"),
        ("stop", None, None, None),
    ]
    assert b"secret" not in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert verify(path).head == log.head


def test_full_disk(tmp_path, keys):
    """Where the entry has no room nothing happens; when there is room again, it goes on."""
    path, disk = tmp_path / "audit.jsonl", FailingDisk()
    log = AuditLog(path, now=lambda: NOW, disk=disk)
    begin(log, keys)
    happened = []
    for room in (0, 1, 100):
        disk.room = room
        with pytest.raises(Overloaded, match="nothing was done"), log.action("delete", Person()):
            happened.append(room)
    assert happened == []
    assert log.failures == 3
    disk.room = 1 << 30
    with log.action("delete", Person()):
        happened.append("again")
        disk.room = 5  # too late to refuse: the entry "begun" stands alone
    disk.room = 1 << 30
    log.close()
    assert happened == ["again"]
    result = verify(path)
    assert result.open == (2,)
    assert result.torn == 0


def test_failed_sync(tmp_path, keys):
    """After a disk could not say that it has an entry, nothing is audited, and so nothing done."""
    path, disk = tmp_path / "audit.jsonl", FailingDisk()
    log = AuditLog(path, now=lambda: NOW, disk=disk)
    begin(log, keys)
    for syncs in (False, True):
        disk.syncs = syncs
        with pytest.raises(Overloaded), log.action("upload", Person()):
            pytest.fail("the action began")
    log.close()
    assert AuditLog(path).head.entries == 2


def test_nothing_happens_without_keys(tmp_path):
    """An action before the server has keys is refused, as its entry could not be signed."""
    log = AuditLog(tmp_path / "audit.jsonl")
    with pytest.raises(Overloaded), log.action("upload", Person()):
        pytest.fail("the action began")
    log.close()


def test_restart_goes_on(tmp_path):
    """The next server, with keys of its own, goes on after the last line."""
    path = tmp_path / "audit.jsonl"
    write_log(path)
    first = verify(path).head
    write_log(path)
    assert verify(path).head.entries == 2 * first.entries
    with path.open("rb") as file:
        verify_audit_log(file, None, now=NOW, head=first.sha256)


def test_power_cut_at_every_byte(tmp_path, keys):
    """Whatever part of the last line the disk had, what was acknowledged before it is there."""
    path = tmp_path / "audit.jsonl"
    write_log(path, keys)
    content = path.read_bytes()
    whole = content.rstrip(b"\n").rpartition(b"\n")[0] + b"\n"
    for cut in range(len(whole), len(content)):
        path.write_bytes(content[:cut])
        log = AuditLog(path, now=lambda: NOW)
        assert log.head.entries == whole.count(b"\n")
        if cut % 50 == 0:
            begin(log, keys)
            assert entries(path)[-1].torn == (cut - len(whole) or None)
        log.close()
        assert verify(path).torn == 0


def test_changed_log_is_not_continued(tmp_path):
    """A server does not go on with a log that is not as it was written."""
    path = tmp_path / "audit.jsonl"
    write_log(path)
    path.write_bytes(path.read_bytes().replace(b'"clinic"', b'"office"', 1))
    with pytest.raises(ConfigurationError, match="line 3: expected an entry after"):
        AuditLog(path)


@pytest.mark.parametrize("kind", ["folder", "link", "taken", "missing folder"])
def test_files_that_cannot_be_used(tmp_path, kind):
    """A folder, a link, another server's log and a path to nowhere are refused at the start."""
    path, held = tmp_path / "audit.jsonl", None
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "missing folder":
        path = tmp_path / "missing" / "audit.jsonl"
    else:
        held = AuditLog(path)
    with pytest.raises(ConfigurationError, match="audit_log"):
        AuditLog(path)
    if held is not None:
        held.close()


def test_long_subject_is_cut(tmp_path, keys):
    """A subject as long as a stranger likes takes a bounded part of the disk."""
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, now=lambda: NOW)
    begin(log, keys)
    with log.action("delete", Person(kind="jwt", subject="x" * 10_000)):
        pass
    log.close()
    assert len(entries(path)[1].subject) == 256
    assert msgspec.json.decode(path.read_bytes().splitlines()[1])["kind"] == "jwt"


def test_clock_may_go_back(tmp_path, keys):
    """A clock that is set back stops nothing: the order is the chain's."""
    path = tmp_path / "audit.jsonl"
    times = iter([NOW, NOW - timedelta(hours=1), NOW])
    log = AuditLog(path, now=lambda: next(times))
    begin(log, keys)
    log.note("access", count=1)
    log.close()
    assert [entry.time for entry in entries(path)][1] < NOW
    assert verify(path).head.entries == 3
