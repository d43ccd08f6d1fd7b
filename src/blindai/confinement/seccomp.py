"""A filter of system calls: what is not named is refused, and nothing can take it off.

Always true: the filter holds for all threads of the process and for what they start; programs
can no longer be started, other processes neither read nor signalled, and memory that can be
written is never run (unless `jit` is asked for). A refused call fails with EPERM, so a
library that only tries goes on; calls that are newer than this file fail with ENOSYS, so that
the C library falls back on those it knows.

Specification: seccomp(2), Linux, Documentation/userspace-api/seccomp_filter.rst; BPF(4).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from blindai.confinement.kernel import call
from blindai.confinement.syscalls import NEWEST, this_architecture
from blindai.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from blindai.confinement.syscalls import Architecture

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_GREATER: Final = 0x25  # BPF_JMP | BPF_JGT | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K

_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000
_ERROR: Final = 0x00050000

# Places in struct seccomp_data; both architectures are little-endian.
_NUMBER_AT: Final = 0
_ARCHITECTURE_AT: Final = 4
_ARGUMENTS_AT: Final = 16

_SET_MODE_FILTER: Final = 1
_TSYNC: Final = 1

_ANY: Final = 0xFFFFFFFF
_PROT_EXEC: Final = 4
_CLONE_THREAD: Final = 0x10000
_PR_NAMES: Final = (15, 16)  # PR_SET_NAME, PR_GET_NAME
_PR_SET_VMA: Final = 0x53564D41
_AF_UNIX: Final = 1
_AF_INET: Final = 2
_AF_INET6: Final = 10
# For terminals and sockets: TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX. Not TIOCSTI.
_IOCTLS: Final = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FILES: Final = _names(
    """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 sendfile splice
    copy_file_range close close_range lseek fstat newfstatat stat lstat statx statfs fstatfs open
    openat openat2 access faccessat faccessat2 readlink readlinkat getdents64 getcwd mkdir mkdirat
    link linkat unlink unlinkat rmdir rename renameat renameat2 ftruncate fallocate
    fadvise64 fsync fdatasync sync_file_range flock fcntl fchmod fchmodat dup dup2 dup3 pipe pipe2
    memfd_create umask
    """
)
MEMORY: Final = _names("munmap mremap madvise brk mlock mlock2 munlock membarrier msync mincore")
WAITING: Final = _names(
    """
    poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait
    epoll_pwait2 eventfd2 timerfd_create timerfd_settime timerfd_gettime futex futex_waitv
    nanosleep clock_nanosleep pause restart_syscall
    """
)
PROCESS: Final = _names(
    """
    exit exit_group wait4 set_robust_list get_robust_list rseq set_tid_address arch_prctl
    rt_sigaction
    rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait sigaltstack signalfd4 clock_gettime
    clock_getres gettimeofday time times getpid getppid gettid getuid geteuid getgid getegid
    getresuid getresgid getgroups getpgrp getpgid getsid sched_yield sched_getaffinity
    sched_setaffinity sched_getparam sched_getscheduler sched_get_priority_max
    sched_get_priority_min getcpu getpriority get_mempolicy sysinfo uname getrusage getrlimit
    getrandom capget
    """
)
SOCKETS: Final = _names(
    """
    socketpair bind listen accept accept4 connect getsockname getpeername getsockopt setsockopt
    shutdown sendto sendmsg sendmmsg recvfrom recvmsg recvmmsg
    """
)
# Absent, and not forbidden: who asks for them has another way, and takes it.
_ABSENT: Final = ("clone3", "io_uring_setup")


@dataclass(frozen=True, slots=True)
class Rule:
    """A call that is allowed where one argument says so.

    Attributes:
        name: Of the call.
        argument: Its index.
        values: Those that are allowed.
        mask: Bits of the lower 32 that are looked at.
    """

    name: str
    argument: int
    values: tuple[int, ...]
    mask: int = _ANY


def server_rules(*, jit: bool, ioctls: Iterable[int] = ()) -> tuple[Rule, ...]:
    """Return the rules for a process that serves.

    Args:
        jit: Whether an engine loads libraries, or writes machine code, while it runs.
        ioctls: Requests to devices, beside those for terminals and sockets.
    """
    families = (_AF_UNIX, _AF_INET, _AF_INET6)
    return (
        *_computing_rules(jit=jit),
        Rule("socket", 0, families),
        Rule("ioctl", 1, (*_IOCTLS, *ioctls)),
    )


def model_rules(*, jit: bool) -> tuple[Rule, ...]:
    """Return the rules for a process that loads a stranger's model: no sockets, no devices."""
    return (*_computing_rules(jit=jit), Rule("ioctl", 1, _IOCTLS))


def _computing_rules(*, jit: bool) -> tuple[Rule, ...]:
    # A library is a file that is mapped to be run; after the start, none is.
    memory = (
        () if jit else (Rule("mmap", 2, (0,), _PROT_EXEC), Rule("mprotect", 2, (0,), _PROT_EXEC))
    )
    return (
        *memory,
        Rule("clone", 0, (_CLONE_THREAD,), _CLONE_THREAD),
        # Not PR_SET_DUMPABLE: what was given up stays given up.
        Rule("prctl", 0, (*_PR_NAMES, _PR_SET_VMA)),
        Rule("tgkill", 0, (os.getpid(),)),
        Rule("prlimit64", 0, (0, os.getpid())),
    )


def restrict_system_calls(allowed: Sequence[str], rules: Sequence[Rule], *, jit: bool) -> None:
    """Allow these system calls alone, to all threads of this process, for good.

    Args:
        allowed: Names; those that the architecture does not have are left out.
        rules: Calls that depend on an argument; several of one call: any of them suffices.
        jit: Whether memory may become code.

    Raises:
        ConfigurationError: The kernel has no filters, or this is an architecture that is not
            known here.
    """
    names = [*allowed, "mmap", "mprotect"] if jit else allowed
    program = filter_program(names, rules, this_architecture())
    code = ctypes.create_string_buffer(program)
    # struct sock_fprog: a count, padding, and a pointer.
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    number = this_architecture().numbers["seccomp"]
    try:
        result = call(
            "syscall", number, _SET_MODE_FILTER, _TSYNC, ctypes.create_string_buffer(header)
        )
    except OSError as error:
        msg = f"system calls cannot be restricted: {error.strerror}"
        raise ConfigurationError(msg) from error
    if result:
        msg = f"system calls cannot be restricted: thread {result} has filters of its own"
        raise ConfigurationError(msg)


def filter_program(
    allowed: Sequence[str], rules: Sequence[Rule], architecture: Architecture
) -> bytes:
    """Return the filter as BPF instructions of 8 bytes each."""
    numbers = architecture.numbers
    absent = [numbers[name] for name in _ABSENT if name in numbers]
    code = [
        _instruction(_LOAD, _ARCHITECTURE_AT),
        _instruction(_IF_EQUAL, architecture.audit, 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER_AT),
        # Also the calls of x32, whose numbers have a bit of their own.
        _instruction(_IF_GREATER, NEWEST, 0, 1),
        _instruction(_RETURN, _ERROR | errno.ENOSYS),
    ]
    for name in dict.fromkeys(rule.name for rule in rules):
        if name in numbers:
            code += _conditional(numbers[name], [rule for rule in rules if rule.name == name])
    conditional = {rule.name for rule in rules}
    for name in dict.fromkeys(allowed):
        if name in numbers and name not in conditional:
            code += [_instruction(_IF_EQUAL, numbers[name], 0, 1), _instruction(_RETURN, _ALLOW)]
    for number in absent:
        code += [
            _instruction(_IF_EQUAL, number, 0, 1),
            _instruction(_RETURN, _ERROR | errno.ENOSYS),
        ]
    code.append(_instruction(_RETURN, _ERROR | errno.EPERM))
    return b"".join(code)


def _conditional(number: int, rules: Sequence[Rule]) -> list[bytes]:
    """Return: if this is the call, allow it where a rule does, and refuse it otherwise."""
    body: list[bytes] = []
    for rule in rules:
        body.append(_instruction(_LOAD, _ARGUMENTS_AT + 8 * rule.argument))
        body.append(_instruction(_AND, rule.mask))
        for value in rule.values:
            body.append(_instruction(_IF_EQUAL, value & _ANY, 0, 1))
            body.append(_instruction(_RETURN, _ALLOW))
    body.append(_instruction(_RETURN, _ERROR | errno.EPERM))
    return [_instruction(_IF_EQUAL, number, 0, len(body)), *body]


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """Return a struct sock_filter."""
    return struct.pack("<HBBI", code, if_true, if_false, value)
