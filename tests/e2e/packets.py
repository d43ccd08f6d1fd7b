"""Run under `unshare -n`: a network of one's own in which every packet is seen.

There is a way out, through which nobody answers: so who tries to look up a name or to call
somebody sends packets, instead of being told at once that there is no network.

Specification: packet(7); RFC 791, RFC 8200, RFC 9293.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
from pathlib import Path

_ALL = 0x0003
_IPV4, _IPV6 = 0x0800, 0x86DD
_TCP, _UDP = 6, 17
_SETUP = (
    "link set lo up",
    "link add out0 type veth peer name out1",
    "link set out0 up",
    "link set out1 up",
    "address add 198.51.100.2/24 dev out0",
    "neighbor add 198.51.100.1 lladdr 02:00:00:00:00:01 dev out0",
    "route add default via 198.51.100.1",
)


def open_network():
    """Bring the loopback device and the way out up."""
    for name in ("all", "default"):
        # Or the kernel announces itself on each new device.
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
    for command in _SETUP:
        subprocess.run(["ip", *command.split()], check=True)


class Sniffer:
    """Takes down what passes on any device, as "tcp 127.0.0.1:1 > 127.0.0.1:2"."""

    def __init__(self):
        self.seen = {}
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ALL))
        self._socket.settimeout(0.2)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def _listen(self):
        while not self._stop.is_set():
            try:
                content, (_, protocol, *_) = self._socket.recvfrom(256)
            except TimeoutError:
                continue
            packet = describe(protocol, content)
            self.seen[packet] = self.seen.get(packet, 0) + 1


def describe(protocol, content):
    """Return from where to where a packet goes, as far as that can be told."""
    if protocol == _IPV4:
        kind, start = content[9], (content[0] & 15) * 4
        source, target = (socket.inet_ntoa(content[at : at + 4]) for at in (12, 16))
    elif protocol == _IPV6:
        kind, start = content[6], 40
        source, target = (
            socket.inet_ntop(socket.AF_INET6, content[at : at + 16]) for at in (8, 24)
        )
    else:
        return f"ethernet {protocol:#06x}"
    name = {_TCP: "tcp", _UDP: "udp"}.get(kind)
    if name is None:
        return f"ip {kind} {source} > {target}"
    ports = struct.unpack_from("!HH", content, start)
    return f"{name} {source}:{ports[0]} > {target}:{ports[1]}"


def unexplained(seen, ports):
    """Return the packets that are not TCP on the loopback device to or from one of these ports."""
    return [packet for packet in seen if not _is_explained(packet, ports)]


def _is_explained(packet, ports):
    kind, source, _, target = (packet.split(" ") + [""] * 4)[:4]
    ends = [end.rpartition(":") for end in (source, target)]
    return (
        kind == "tcp"
        and all(host == "127.0.0.1" for host, _, _ in ends)
        and any(port in {str(each) for each in ports} for _, _, port in ends)
    )
