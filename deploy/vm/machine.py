"""The first program of the root image: networking, then the server, and nothing else.

Always true here: no shell is started and no other program than the server; no command comes
from outside; and when the server ends, however it ends, the machine goes off. This process keeps
its rights only to renew the address it was lent (DHCP, RFC 2131); the server runs without
any capability, and can never gain one.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import secrets
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass

SERVER = (
    "/usr/bin/python3.11",
    "-IB",
    "-m",
    "blindai",
    "serve",
    "--json",
    "--host=0.0.0.0",
    "--models=/models",
    # Nobody can read it: there is no shell. Models come with the image, which is measured.
    "--token-file=/run/blindai/token",
    "--no-fetch-endorsements",
)
ENVIRONMENT = {
    "PATH": "/usr/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "ORT_DISABLE_TELEMETRY": "1",
    "BLINDAI_DISABLE_TELEMETRY": "1",
}
SYSFS_INTERFACES = "/sys/class/net"

SIOCSIFADDR, SIOCSIFNETMASK, SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCADDRT = (
    0x8916,
    0x891C,
    0x8913,
    0x8914,
    0x890B,
)
IFF_UP, RTF_UP_GATEWAY = 0x1, 0x3
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
LAST_CAPABILITY = 63
RB_POWER_OFF = 0x4321FEDC

DISCOVER, OFFER, REQUEST, ACK = 1, 2, 3, 5
MAGIC = bytes.fromhex("63825363")
MINIMUM_LEASE = 120
ATTEMPTS = 15


@dataclass(frozen=True)
class Lease:
    """What a DHCP server lent: addresses in four bytes, the time in seconds."""

    address: bytes
    mask: bytes
    router: bytes | None
    server: bytes
    seconds: int


def say(text: str) -> None:
    """Write one line to the console."""
    sys.stderr.write(f"blindai-machine: {text}\n")
    sys.stderr.flush()


def find_interface() -> str:
    """Return the first network interface that is not the loopback, once it is there."""
    for _ in range(100):
        names = sorted(set(os.listdir(SYSFS_INTERFACES)) - {"lo"})
        if names:
            return names[0]
        time.sleep(0.1)
    msg = "there is no network interface"
    raise OSError(msg)


def raise_interface(control: socket.socket, name: str) -> None:
    """Set an interface up."""
    request = struct.pack("16sH14x", name.encode(), 0)
    flags = struct.unpack_from("16xH", fcntl.ioctl(control, SIOCGIFFLAGS, request))[0]
    fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", name.encode(), flags | IFF_UP))


def set_address(control: socket.socket, name: str, lease: Lease) -> None:
    """Give an interface the address that was lent, and route through the router."""
    for command, value in ((SIOCSIFADDR, lease.address), (SIOCSIFNETMASK, lease.mask)):
        fcntl.ioctl(control, command, struct.pack("16s", name.encode()) + _endpoint(value))
    if lease.router:
        route = bytes(8) + _endpoint(b"") + _endpoint(lease.router) + _endpoint(b"")
        route += struct.pack("H", RTF_UP_GATEWAY)
        with contextlib.suppress(FileExistsError):
            fcntl.ioctl(control, SIOCADDRT, route.ljust(120, b"\0"))


def _endpoint(address: bytes) -> bytes:
    return struct.pack("HH4s8x", socket.AF_INET, 0, address)


def request_lease(name: str) -> Lease:
    """Ask for an address until somebody lends one.

    Raises:
        OSError: If nobody does.
    """
    with open(f"{SYSFS_INTERFACES}/{name}/address") as file:
        hardware = bytes.fromhex(file.read().strip().replace(":", ""))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
        channel.bind(("0.0.0.0", 68))
        for _ in range(ATTEMPTS):
            transaction = secrets.token_bytes(4)
            offer = exchange(channel, hardware, transaction, DISCOVER, OFFER, None)
            lease = offer and exchange(channel, hardware, transaction, REQUEST, ACK, offer)
            if lease:
                return lease
    msg = "no DHCP server lends an address"
    raise OSError(msg)


def exchange(
    channel: socket.socket,
    hardware: bytes,
    transaction: bytes,
    kind: int,
    wanted: int,
    offer: Lease | None,
) -> Lease | None:
    """Send one message, and return the answer; `None` if none comes in two seconds."""
    message = struct.pack(">BBBB4sHH16x", 1, 1, 6, 0, transaction, 0, 0x8000)
    message += hardware.ljust(16, b"\0") + bytes(192) + MAGIC + bytes((53, 1, kind))
    if offer:
        message += bytes((50, 4)) + offer.address + bytes((54, 4)) + offer.server
    message += bytes((55, 3, 1, 3, 51, 255))
    channel.sendto(message.ljust(300, b"\0"), ("255.255.255.255", 67))
    deadline = time.monotonic() + 2
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([channel], [], [], left)[0]:
            return None
        answer = channel.recv(2048)
        if answer[4:8] == transaction and answer[:1] == b"\x02":
            lease = parse_answer(answer, wanted)
            if lease:
                return lease
    return None


def parse_answer(answer: bytes, wanted: int) -> Lease | None:
    """Return what a DHCP answer lends; `None` if it is another kind, or malformed."""
    if len(answer) < 240 or answer[236:240] != MAGIC:
        return None
    options: dict[int, bytes] = {}
    at = 240
    while at < len(answer) and answer[at] != 255:
        if answer[at] == 0:
            at += 1
            continue
        if at + 1 >= len(answer) or at + 2 + answer[at + 1] > len(answer):
            return None
        options.setdefault(answer[at], answer[at + 2 : at + 2 + answer[at + 1]])
        at += 2 + answer[at + 1]
    if options.get(53) != bytes((wanted,)) or any(len(options.get(o, b"")) != 4 for o in (1, 54)):
        return None
    router, seconds = options.get(3, b"")[:4], options.get(51, b"")
    return Lease(
        address=answer[16:20],
        mask=options[1],
        router=router if len(router) == 4 else None,
        server=options[54],
        seconds=int.from_bytes(seconds) if len(seconds) == 4 else 3600,
    )


def start_server() -> int:
    """Start the server without any right but to its own files and devices."""
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in range(LAST_CAPABILITY + 1):
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)  # those the kernel lacks fail
        if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            os._exit(126)
        os.execve(SERVER[0], SERVER, ENVIRONMENT)
    finally:
        os._exit(127)


def wait_for(child: int, name: str, control: socket.socket, lease: Lease) -> int:
    """Return the server's exit status once it ends; renew the address meanwhile."""
    renewal = time.monotonic() + max(lease.seconds, MINIMUM_LEASE) / 2
    while True:
        signal.sigtimedwait({signal.SIGCHLD}, max(1.0, renewal - time.monotonic()))
        while True:
            try:
                ended, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return 1
            if ended == child:
                return os.waitstatus_to_exitcode(status)
            if ended == 0:
                break
        if time.monotonic() >= renewal:
            try:
                lease = request_lease(name)
                set_address(control, name, lease)
            except OSError as error:
                say(f"the address was not renewed: {error}")
            renewal = time.monotonic() + max(lease.seconds, MINIMUM_LEASE) / 2


def run() -> int:
    """Bring the machine up and serve."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    os.makedirs("/run/blindai", mode=0o700)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        raise_interface(control, "lo")
        name = find_interface()
        raise_interface(control, name)
        lease = request_lease(name)
        set_address(control, name, lease)
        say(f"address {socket.inet_ntoa(lease.address)}")
        return wait_for(start_server(), name, control, lease)


def main() -> None:
    """Run, and switch the machine off at the end."""
    try:
        say(f"the server ended with status {run()}")
    except Exception as error:  # noqa: BLE001 - whatever it is, the machine must not idle
        say(f"{type(error).__name__}: {error}")
    finally:
        os.sync()
        ctypes.CDLL(None).reboot(RB_POWER_OFF)


if __name__ == "__main__":
    main()
