"""A closed loop of HTTP requests on raw sockets: the same load for every server.

One process, one thread, non-blocking sockets: each connection has one request under way and
sends the next as soon as its answer is complete. What is sent is made before; of an answer
only the status and the length are read, since servers are what is measured.
"""

from __future__ import annotations

import os
import re
import select
import socket
import ssl
import statistics
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

HOST = "127.0.0.1"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class Load(NamedTuple):
    """What one round measured."""

    rate: float  # requests per second
    p50: float  # seconds
    p99: float
    cpu: float  # seconds of the server's processes, for one request


class RefusedError(Exception):
    """The server answered with something else than 200."""


class Caller:
    """One connection with at most one request under way."""

    def __init__(self, port, request, context=None):
        plain = socket.create_connection((HOST, port), timeout=60)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = plain if context is None else context.wrap_socket(plain)
        self.request = memoryview(request)
        self.buffer = bytearray(256 << 10)
        self.times = []

    def begin(self):
        self.began = time.perf_counter()
        self.unsent = self.request
        self.head, self.left = b"", None

    def go_on(self):
        """Send and receive what goes without waiting; return whether the answer is complete."""
        try:
            while self.unsent:
                self.unsent = self.unsent[self.socket.send(self.unsent[: 256 << 10]) :]
            while self.left != 0:
                got = self.socket.recv_into(self.buffer)
                if not got:
                    msg = "the server ended the connection"
                    raise RefusedError(msg)
                self._take(got)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
            return False
        self.times.append(time.perf_counter() - self.began)
        return True

    def _take(self, got):
        if self.left is not None and self.left > 0:
            self.left -= got
            return
        self.head += self.buffer[:got]
        if self.left == -1:  # chunked
            self.left = 0 if self.head.endswith(b"0\r\n\r\n") else -1
            return
        head, end, body = self.head.partition(b"\r\n\r\n")
        if not end:
            return
        if not head.startswith(b"HTTP/1.1 200 "):
            msg = f"the server said {self.head[:400]!r}"
            raise RefusedError(msg)
        length = _LENGTH.search(head + b"\r\n")
        if length is None:
            self.left = 0 if body.endswith(b"0\r\n\r\n") else -1
        else:
            self.left = int(length[1]) - len(body)


def measure(port, pid, request, *, connections, seconds, context=None):
    """Return what `connections` of the same request got, for `seconds` and to its last answer.

    Args:
        port: Of the server, on loopback.
        pid: Its process; the processes it started are counted too.
        request: The bytes of one request.
        connections: Each with one request under way.
        seconds: How long new requests are begun.
        context: TLS, where the server speaks it.
    """
    with ExitStack() as stack:
        callers = [Caller(port, request, context) for _ in range(connections)]
        poll = select.epoll()
        stack.enter_context(closing(poll))
        flags = select.EPOLLIN | (select.EPOLLOUT | select.EPOLLET if len(request) > 16384 else 0)
        by_number = {}
        for caller in callers:
            stack.enter_context(closing(caller.socket))
            caller.begin()
            while not caller.go_on():  # the connection's first answer counts for nothing
                pass
            caller.times.clear()
            caller.socket.settimeout(0)
            by_number[caller.socket.fileno()] = caller
            poll.register(caller.socket, flags)
        cpu, began = cpu_seconds(pid), time.perf_counter()
        waiting = set()
        ready = callers
        while ready or waiting:
            at_once = []
            for caller in ready:
                waiting.discard(caller)
                if time.perf_counter() - began < seconds:
                    waiting.add(caller)
                    caller.begin()
                    if caller.go_on():
                        at_once.append(caller)
            if not waiting:
                break
            if time.perf_counter() - began > seconds + 120:
                msg = "no answer for two minutes"
                raise RefusedError(msg)
            ready = at_once + [
                caller
                for number, _ in poll.poll(0 if at_once else 1)
                if (caller := by_number[number]) in waiting
                and caller not in at_once
                and caller.go_on()
            ]
        took, cpu = time.perf_counter() - began, cpu_seconds(pid) - cpu
    return summary([t for caller in callers for t in caller.times], took, cpu)


def summary(times, took, cpu):
    """Return the `Load` of these request times."""
    times = sorted(times)
    p99 = times[min(len(times) - 1, len(times) * 99 // 100)]
    return Load(len(times) / took, statistics.median(times), p99, cpu / len(times))


def cpu_seconds(pid):
    """Return the CPU time of a process and of all its descendants."""
    return sum(_cpu_of(each) for each in tree(pid)) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid):
    """Return the memory of a process and of all its descendants that no other has too."""
    total = 0
    for each in tree(pid):
        try:
            text = Path(f"/proc/{each}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(n) for n in re.findall(r"^Private_\w+: +(\d+) kB", text, re.MULTILINE))
    return total * 1024


def tree(pid):
    """Return a process and all its descendants."""
    children = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, ahead = [], [pid]
    while ahead:
        each = ahead.pop()
        found.append(each)
        ahead += children.get(each, [])
    return found


def _cpu_of(pid):
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])
