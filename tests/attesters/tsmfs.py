"""A stand-in for the kernel's configfs-tsm, as a FUSE file system.

Behaves as Linux documents it (Documentation/ABI/testing/configfs-tsm-report): entries are made
with mkdir and appear with all their files, every write counts in `generation`, and a report is
made when it is read.
"""

import contextlib
import errno
import os
import signal
import stat
import subprocess
import threading
import time

try:
    import mfusepy
except (ImportError, OSError):  # the tests that need it are skipped
    mfusepy = None

WRITABLE = {"inblob", "privlevel"}
READABLE = {"outblob", "auxblob", "provider", "generation", "privlevel_floor"}


def missing():
    """Return what is missing to mount a file system; nothing if it can be mounted."""
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse, usable by this user"
    return "" if mfusepy else "mfusepy, or libfuse"


class FakeTsm:
    """What the kernel would do; a test sets how it behaves.

    Attributes:
        provider: What `provider` says.
        make: Called with inblob and VMPL; returns outblob and auxblob.
        floor: `privlevel_floor`; `None`: there is no such file.
        before_report: Called with the entry before a report is read; a test interferes there.
        fail: Name of a file → numbers of the errors that the next uses of it end in.
        entries: Those that are there now.
        made: How many were ever made.
    """

    def __init__(self, provider, make, floor=0):
        self.provider = provider
        self.make = make
        self.floor = floor
        self.before_report = lambda _: None
        self.fail = {}
        self.entries = {}
        self.made = 0

    def check(self, name):
        if self.fail.get(name):
            raise self.error(self.fail[name].pop(0))

    def split(self, path):
        parts = [part for part in path.split("/") if part]
        if not parts:
            return None, None
        if parts[0] not in self.entries:
            raise self.error(errno.ENOENT)
        return self.entries[parts[0]], parts[1] if len(parts) > 1 else None

    @staticmethod
    def error(number):
        return mfusepy.FuseOSError(number)

    def exists(self, name):
        return name in WRITABLE | READABLE and not (
            name == "privlevel_floor" and self.floor is None
        )

    def value(self, entry, name):
        if name not in ("outblob", "auxblob"):
            values = {
                "provider": self.provider,
                "generation": entry["generation"],
                "privlevel_floor": self.floor,
            }
            return f"{values[name]}\n".encode()
        if not entry["inblob"]:
            raise self.error(errno.EINVAL)
        if "report" not in entry:
            self.before_report(entry)
            entry["report"] = self.make(entry["inblob"], entry["level"])
        return entry["report"][name == "auxblob"]


class Operations(mfusepy.Operations if mfusepy else object):
    """The file system's operations, as libfuse calls them."""

    use_ns = True

    def __init__(self, tsm):
        self.tsm = tsm

    def getattr(self, path, fh=None):
        _, name = self.tsm.split(path)
        times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), time.time_ns())
        if name is None:
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2, **times}
        if not self.tsm.exists(name):
            raise self.tsm.error(errno.ENOENT)
        mode = stat.S_IFREG | (0o200 if name in WRITABLE else 0o400)
        return {"st_mode": mode, "st_nlink": 1, "st_size": 4096, **times}

    def readdir(self, path, fh):
        entry, _ = self.tsm.split(path)
        return [".", "..", *sorted(self.tsm.entries if entry is None else WRITABLE | READABLE)]

    def mkdir(self, path, mode):
        self.tsm.check("mkdir")
        self.tsm.made += 1
        self.tsm.entries[path.strip("/")] = {"inblob": b"", "level": 0, "generation": 0}
        return 0

    def rmdir(self, path):
        self.tsm.split(path)
        del self.tsm.entries[path.strip("/")]
        return 0

    def open(self, path, flags):
        return 0

    def write(self, path, data, offset, fh):
        entry, name = self.tsm.split(path)
        self.tsm.check(name)
        if len(data) > 64 or (name == "privlevel" and int(data) < (self.tsm.floor or 0)):
            raise self.tsm.error(errno.EINVAL)
        entry.update({"inblob": bytes(data)} if name == "inblob" else {"level": int(data)})
        entry["generation"] += 1
        return len(data)

    def read(self, path, size, offset, fh):
        entry, name = self.tsm.split(path)
        self.tsm.check(name)
        return self.tsm.value(entry, name)[offset : offset + size]


@contextlib.contextmanager
def mounted(tsm, folder):
    """Mount `tsm` at `folder` until the end of the block."""
    folder.mkdir(parents=True)
    thread = threading.Thread(
        target=mfusepy.FUSE,
        args=(Operations(tsm), str(folder)),
        kwargs={"foreground": True, "nothreads": True, "direct_io": True},
        daemon=True,
    )
    thread.start()
    for _ in range(200):
        if os.path.ismount(folder):
            break
        time.sleep(0.01)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True, timeout=10)
        thread.join(10)
        # At its end libfuse sets SIGPIPE to its default: the next broken connection of any
        # other test would end the whole process.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
