"""What a process may ask the kernel for itself: no dumps, no new privileges, no swap, no excess.

Specification: prctl(2), mlockall(2), core(5), getrlimit(2); cgroups v2 and v1 (memory.max).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Final

from blindai.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_SIGKILL: Final = 9
_MCL_CURRENT: Final = 1
_MCL_FUTURE: Final = 2
_MCL_ONFAULT: Final = 4
_CAP_IPC_LOCK: Final = 14
_SELF: Final = Path("/proc/self")
# Where nothing says how much there is.
_UNKNOWN: Final = 4 << 30
_KIB: Final = 1024

_libc: Final = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: int | ctypes.Array[ctypes.c_char] | None) -> int:
    """Call a function of the C library that returns -1 and sets errno where it fails.

    Args:
        name: Of the function; "syscall" takes a number first.
        arguments: Integers as the kernel's longs, and buffers.

    Raises:
        OSError: It failed.
    """
    passed = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    function = getattr(_libc, name)
    function.restype = ctypes.c_long
    result = int(function(*passed))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def forbid_dumps() -> None:
    """Let nobody read this process's memory: no core file, no debugger, no /proc/PID/mem.

    The mapping filter stands behind the rest: even a dump that root forces holds no data.

    Raises:
        ConfigurationError: The kernel refuses.
    """
    # First, because afterwards this file belongs to root.
    with contextlib.suppress(OSError):  # not under Gramine, which dumps nothing
        (_SELF / "coredump_filter").write_text("0")
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)
    except OSError as error:
        msg = f"cannot be made undumpable: {error.strerror}"
        raise ConfigurationError(msg) from error


def forbid_new_privileges() -> None:
    """Give up setuid programs and file capabilities, for this process and all it starts.

    Raises:
        ConfigurationError: The kernel refuses.
    """
    try:
        call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    except OSError as error:
        msg = f"cannot give up new privileges: {error.strerror}"
        raise ConfigurationError(msg) from error


def lock_memory() -> None:
    """Keep all memory of this process out of swap: keys, and whatever clients send.

    Pages are locked as they are used, so what is only reserved costs nothing.

    Raises:
        ConfigurationError: This process may not lock as much as it may come to use.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    # With a limit, it is later allocations that would fail, in the midst of a request.
    if soft != resource.RLIM_INFINITY and not _may_lock():
        msg = (
            f"memory can be swapped out: this process may lock {soft} bytes; give it "
            "CAP_IPC_LOCK or no limit of locked memory (systemd: LimitMEMLOCK=infinity)"
        )
        raise ConfigurationError(msg)
    try:
        call("mlockall", _MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)
    except OSError as error:
        msg = f"memory can be swapped out: mlockall: {error.strerror}"
        raise ConfigurationError(msg) from error


def machine_memory(root: Path = Path("/")) -> int:
    """Return how many bytes of memory there are: the machine's, or less where a container has less.

    Args:
        root: Of the file system.
    """
    limits = [_machine(root), *_control_groups(root)]
    known = [limit for limit in limits if limit is not None]
    return min(known, default=_UNKNOWN)


def limit_memory(size: int) -> None:
    """Let an allocation fail, and with it one request, before the kernel kills the whole process.

    Args:
        size: Bytes that this process may have for itself: models, runs and bodies together.

    Raises:
        ConfigurationError: The kernel refuses.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        size = min(size, hard)
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    except (OSError, ValueError) as error:
        msg = f"memory cannot be limited to {size} bytes: {error}"
        raise ConfigurationError(msg) from error


def die_with_parent(parent: int) -> None:
    """Be killed when the thread that started this process ends.

    Args:
        parent: Process id of who started it.

    Raises:
        ConfigurationError: It is gone already, or the kernel refuses.
    """
    try:
        call("prctl", _PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    except OSError as error:
        msg = f"cannot end with its parent: {error.strerror}"
        raise ConfigurationError(msg) from error
    if os.getppid() != parent:
        msg = "whoever started this process is gone"
        raise ConfigurationError(msg)


def threads() -> int:
    """Return how many threads this process has, those of C libraries included."""
    return len(list((_SELF / "task").iterdir()))


def is_missing(error: OSError) -> bool:
    """Return whether an error says that the kernel has no such thing."""
    return error.errno in {errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


def _may_lock() -> bool:
    """Return whether this process has CAP_IPC_LOCK."""
    try:
        status = (_SELF / "status").read_text("ascii")
    except OSError:
        return False
    line = next((line for line in status.splitlines() if line.startswith("CapEff:")), "CapEff: 0")
    return bool(int(line.split()[1], 16) >> _CAP_IPC_LOCK & 1)


def _machine(root: Path) -> int | None:
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        number = value.strip().partition(" ")[0]
        if name == "MemTotal" and number.isdecimal():
            return int(number) * _KIB
    return None


def _control_groups(root: Path) -> Iterator[int | None]:
    """Yield what the groups of this process, and those above them, may have."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            base, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = base / path.lstrip("/")
        # In a container its own group is the root of what it sees, whatever the path says.
        for folder in {base, group, *(each for each in group.parents if base in each.parents)}:
            text = _read(folder / name).strip()
            yield int(text) if text.isdecimal() and int(text) > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")
    except OSError:
        return ""
