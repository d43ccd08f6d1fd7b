"""Ten thousand requests at once: bounded memory, a quick refusal for most, then service again."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from blindai.channel.tls import unverified_context
from tests.inference.models import slow
from tests.server.talk import request, status_of
from tests.server.test_run import Subprocess

WIDTH = 200
CONNECTIONS = 1000
PIPELINED = 10
# Of `blindai.server.config.Limits`.
MAX_QUEUE = 256
_MEBIBYTE = 1 << 20


def run_request() -> bytes:
    """Return a request of a millisecond or two for the model."""
    data = np.zeros((1, WIDTH), np.float32).tobytes()
    header = (
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,%d],"parameters":'
        b'{"binary_data_size":%d}}],"parameters":{"binary_data_output":true}}' % (WIDTH, len(data))
    )
    return (
        b"POST /v2/models/slow/infer HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n"
        b"Inference-Header-Content-Length: %d\r\n\r\n"
        % (len(header) + len(data), len(header))
        + header
        + data
    )


async def answer(reader: asyncio.StreamReader) -> tuple[int, str | None]:
    """Take one answer; return its status and its Retry-After."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = re.search(rb"\r\ncontent-length: (\d+)\r\n", head)
    assert length is not None
    await reader.readexactly(int(length[1]))
    hint = re.search(rb"\r\nretry-after: (\d+)\r\n", head)
    return status_of(head), None if hint is None else hint[1].decode()


class Flood:
    """Connections that all send at once.

    Attributes:
        answers: Status → how many came.
        hints: The Retry-After of those that were refused; `None`: they had none.
    """

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self._to = host, int(port)
        self._context = unverified_context()
        self._connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._hurry = asyncio.Semaphore(50)
        self.answers: Counter[int] = Counter()
        self.hints: Counter[str | None] = Counter()

    async def connect(self, count: int) -> None:
        """Open so many connections, each of which has asked something already."""
        await asyncio.gather(*(self._connect() for _ in range(count)))

    async def send(self, message: bytes, times: int) -> None:
        """Send a message so many times on all connections, and take the answers."""
        await asyncio.gather(*(self._send(*each, message, times) for each in self._connections))

    async def close(self) -> None:
        """Close the connections."""
        for _, writer in self._connections:
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _connect(self) -> None:
        async with self._hurry:
            reader, writer = await asyncio.open_connection(*self._to, ssl=self._context)
            writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await answer(reader))[0] == 200
            self._connections.append((reader, writer))

    async def _send(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes, times: int
    ) -> None:
        writer.write(message * times)
        for _ in range(times):
            status, hint = await answer(reader)
            self.answers[status] += 1
            if status == 503:
                self.hints[hint] += 1


@pytest.fixture
def server(tmp_path):
    """A server in a process of its own, whose memory can be told from ours."""
    (tmp_path / "slow.onnx").write_bytes(slow(layers=100, width=WIDTH))
    running = Subprocess(tmp_path, 1.0)
    yield running
    running.kill()


def memory(server, field: str) -> float:
    """Return VmRSS or VmHWM of a server, in MiB."""
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) * 1024 / _MEBIBYTE


@pytest.mark.slow
async def test_ten_thousand_requests_at_once(server):
    """Each is answered, with its result or with 503 and when to come back; memory is bounded."""
    flood = Flood(server.address)
    try:
        await flood.connect(CONNECTIONS)
        before = memory(server, "VmRSS")
        await flood.send(run_request(), PIPELINED)
        grown = memory(server, "VmHWM") - before
    finally:
        await flood.close()
    assert flood.answers.keys() == {200, 503}
    assert flood.answers.total() == CONNECTIONS * PIPELINED
    assert flood.answers[200] > MAX_QUEUE
    assert all(hint is not None and int(hint) >= 1 for hint in flood.hints)
    assert grown < 100, f"{grown:.0f} MiB"
    reply = await asyncio.to_thread(request, server, "GET", "/v2/models/slow")
    assert reply.status == 200
