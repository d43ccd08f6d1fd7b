"""A stand-in for the kernel's configfs-tsm, as a FUSE file system.

Behaves as Linux documents it (Documentation/ABI/testing/configfs-tsm-report): entries are made
with mkdir and appear with all their files, every write counts in `generation`, and a report is
made when it is read.
"""

import contextlib
import errno
import os
import stat
import subprocess
import threading
import time

WRITABLE = {"inblob", "privlevel"}
READABLE = {"outblob", "auxblob", "provider", "generation", "privlevel_floor"}


def missing():
    """Return what is missing to mount a file system; nothing if it can be mounted."""
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse, usable by this user"
    try:
        import mfusepy  # noqa: F401
    except (ImportError, OSError) as error:
        return str(error)
    return ""


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
        import mfusepy

        return mfusepy.FuseOSError(number)


def _operations(tsm):
    import mfusepy

    class Operations(mfusepy.Operations):
        use_ns = True

        def getattr(self, path, fh=None):
            _, name = tsm.split(path)
            times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), time.time_ns())
            if name is None:
                return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2, **times}
            if name in WRITABLE:
                mode = 0o200
            elif name in READABLE and not (name == "privlevel_floor" and tsm.floor is None):
                mode = 0o400
            else:
                raise tsm.error(errno.ENOENT)
            return {"st_mode": stat.S_IFREG | mode, "st_nlink": 1, "st_size": 4096, **times}

        def readdir(self, path, fh):
            entry, _ = tsm.split(path)
            return [".", "..", *sorted(tsm.entries if entry is None else WRITABLE | READABLE)]

        def mkdir(self, path, mode):
            tsm.check("mkdir")
            tsm.made += 1
            tsm.entries[path.strip("/")] = {"inblob": b"", "level": 0, "generation": 0}
            return 0

        def rmdir(self, path):
            tsm.split(path)
            del tsm.entries[path.strip("/")]
            return 0

        def open(self, path, flags):
            return 0

        def write(self, path, data, offset, fh):
            entry, name = tsm.split(path)
            tsm.check(name)
            if name == "inblob":
                if len(data) > 64:
                    raise tsm.error(errno.EINVAL)
                entry["inblob"] = bytes(data)
            elif int(data) < (tsm.floor or 0):
                raise tsm.error(errno.EINVAL)
            else:
                entry["level"] = int(data)
            entry["generation"] += 1
            return len(data)

        def read(self, path, size, offset, fh):
            entry, name = tsm.split(path)
            tsm.check(name)
            if name in ("outblob", "auxblob"):
                if not entry["inblob"]:
                    raise tsm.error(errno.EINVAL)
                if "report" not in entry:
                    tsm.before_report(entry)
                    entry["report"] = tsm.make(entry["inblob"], entry["level"])
                content = entry["report"][name == "auxblob"]
            else:
                values = {
                    "provider": f"{tsm.provider}\n",
                    "generation": f"{entry['generation']}\n",
                    "privlevel_floor": f"{tsm.floor}\n",
                }
                content = values[name].encode()
            return content[offset : offset + size]

    return Operations()


@contextlib.contextmanager
def mounted(tsm, folder):
    """Mount `tsm` at `folder` until the end of the block."""
    import mfusepy

    folder.mkdir(parents=True)
    thread = threading.Thread(
        target=mfusepy.FUSE,
        args=(_operations(tsm), str(folder)),
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
