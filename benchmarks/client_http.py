"""Time per request of Python HTTP clients over pinned TLS: what the SDK's choice rests on.

One server process answers every request with the same bytes, so what is measured is the
client. Libraries take turns, round by round, so a busy machine is busy for all of them::

    python benchmarks/client_http.py [--requests 2000] [--rounds 5] [--only raw,blindai] [--json]

The size of request and answer is that of a tiny model: some 400 bytes each. Rows appear for
the libraries that are installed. docs/adr/0003-client-http-library.md records one run.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import http.client
import importlib.util
import json
import multiprocessing
import socket
import ssl
import statistics
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from blindai.channel.keyset import PrivateKeyset
from blindai.channel.tls import create_certificate, pinned_context, server_context
from blindai.client.address import Address
from blindai.client.messages import Request
from blindai.client.transport import Transport

HOST = "127.0.0.1"
PATH = "/v2/models/tiny/infer"
REQUEST = b"x" * 300
ANSWER = b"y" * 300
HEADERS = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "256"}
RESPONSE = (
    b"HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 12:00:00 GMT\r\nserver: blindai\r\n"
    b"content-type: application/octet-stream\r\ninference-header-content-length: 256\r\n"
    b"content-length: %d\r\n\r\n" % len(ANSWER)
) + ANSWER


class Answering(asyncio.Protocol):
    """Answers when a whole request is there; knows only the one request that is sent here."""

    def connection_made(self, transport):
        self.transport = transport
        self.received = b""

    def data_received(self, data):
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        if end and (len(body) >= len(REQUEST) or head.startswith(b"GET")):
            self.received = b""
            self.transport.write(RESPONSE)


def serve(ready):
    """Run the server; sends its port and certificate through `ready`."""
    now = datetime.now(UTC)
    keys = PrivateKeyset.generate(
        now=now, lifetime=timedelta(days=1), configuration=hashlib.sha256(b"benchmark").digest()
    )
    certificate = create_certificate(
        keys.tls, names=[HOST], not_before=now - timedelta(hours=1), not_after=now + timedelta(1)
    )

    async def main():
        context = server_context(keys.tls, certificate)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Answering, HOST, 0, ssl=context)
        ready.send((server.sockets[0].getsockname()[1], certificate))
        await server.serve_forever()

    if importlib.util.find_spec("uvloop"):
        import uvloop  # noqa: PLC0415

        uvloop.run(main())
    asyncio.run(main())


def raw(port, context):
    sock = socket.create_connection((HOST, port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock = context.wrap_socket(sock, server_hostname=HOST)
    lines = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    head = f"POST {PATH} HTTP/1.1\r\nHost: {HOST}\r\n{lines}Content-Length: {len(REQUEST)}\r\n\r\n"
    message = head.encode() + REQUEST
    while True:
        yield
        sock.sendall(message)
        received = 0
        while received < len(RESPONSE):
            received += len(sock.recv(65536))


def blindai_transport(port, context):
    transport = Transport(Address(HOST, port), None)
    while True:
        yield
        request = Request("POST", PATH, HEADERS, [REQUEST])
        transport.send(request, context, timeout=10, limit=1 << 20)


def http_client(port, context):
    connection = http.client.HTTPSConnection(HOST, port, context=context)
    while True:
        yield
        connection.request("POST", PATH, REQUEST, HEADERS)
        connection.getresponse().read()


def urllib3(port, context):
    import urllib3  # noqa: PLC0415

    pool = urllib3.HTTPSConnectionPool(HOST, port, ssl_context=context)
    while True:
        yield
        pool.urlopen("POST", PATH, REQUEST, HEADERS, redirect=False, retries=False)


def httpx(port, context):
    import httpx  # noqa: PLC0415

    with httpx.Client(verify=context, trust_env=False) as client:
        while True:
            yield
            client.post(f"https://{HOST}:{port}{PATH}", content=REQUEST, headers=HEADERS)


def _with_adapter(library, port, context):
    class Pinned(library.adapters.HTTPAdapter):
        def init_poolmanager(self, *args, **kwargs):
            return super().init_poolmanager(*args, ssl_context=context, **kwargs)

    session = library.Session()
    session.trust_env = False
    session.mount("https://", Pinned())
    while True:
        yield
        answer = session.post(
            f"https://{HOST}:{port}{PATH}", data=REQUEST, headers=HEADERS, verify=True
        )
        answer.raise_for_status()


def requests(port, context):
    import requests  # noqa: PLC0415

    # It would otherwise load the public authorities over the pinned certificate.
    requests.adapters.HTTPAdapter.cert_verify = lambda *_: None
    yield from _with_adapter(requests, port, context)


def niquests(port, context):
    import niquests  # noqa: PLC0415

    session = niquests.Session()
    session.trust_env = False
    pem = "\n".join(map(ssl.DER_cert_to_PEM_cert, context.get_ca_certs(binary_form=True)))
    while True:
        yield
        session.post(f"https://{HOST}:{port}{PATH}", data=REQUEST, headers=HEADERS, verify=pem)


async def asyncio_streams(port, context):
    reader, writer = await asyncio.open_connection(HOST, port, ssl=context)
    lines = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    head = f"POST {PATH} HTTP/1.1\r\nHost: {HOST}\r\n{lines}Content-Length: {len(REQUEST)}\r\n\r\n"
    while True:
        yield
        writer.write(head.encode() + REQUEST)
        await reader.readexactly(len(RESPONSE))


async def aiohttp(port, context):
    import aiohttp  # noqa: PLC0415

    async with aiohttp.ClientSession(auto_decompress=False) as session:
        while True:
            yield
            async with session.post(
                f"https://{HOST}:{port}{PATH}", data=REQUEST, headers=HEADERS, ssl=context
            ) as answer:
                await answer.read()


async def httpx_async(port, context):
    import httpx  # noqa: PLC0415

    async with httpx.AsyncClient(verify=context, trust_env=False) as client:
        while True:
            yield
            await client.post(f"https://{HOST}:{port}{PATH}", content=REQUEST, headers=HEADERS)


SYNC = {
    "raw socket": raw,
    "blindai": blindai_transport,
    "http.client": http_client,
    "urllib3": urllib3,
    "httpx": httpx,
    "requests": requests,
    "niquests": niquests,
}
ASYNC = {"asyncio streams": asyncio_streams, "aiohttp": aiohttp, "httpx (async)": httpx_async}


@contextmanager
def started(name, port, context, loop):
    """Yield a function that makes one request, or `count` of them for asyncio."""
    if name in SYNC:
        steps = SYNC[name](port, context)
        next(steps)

        def sync_times(count):
            times = []
            for _ in range(count):
                start = time.perf_counter()
                next(steps)
                times.append(time.perf_counter() - start)
            return times

        yield sync_times
        steps.close()
        return

    steps = ASYNC[name](port, context)

    async def async_times(count):
        times = []
        for _ in range(count):
            start = time.perf_counter()
            await anext(steps)
            times.append(time.perf_counter() - start)
        return times

    loop.run_until_complete(anext(steps))
    yield lambda count: loop.run_until_complete(async_times(count))
    loop.run_until_complete(steps.aclose())


def installed(name):
    module = name.split()[0]
    return module in {"raw", "asyncio"} or importlib.util.find_spec(module) is not None


def measure(names, count, rounds):
    """Return name → seconds of each request."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(there,))
    process.start()
    loop = asyncio.new_event_loop()
    times = {name: [] for name in names}
    try:
        port, certificate = here.recv()
        for _ in range(rounds):
            for name in names:
                with started(name, port, pinned_context(certificate), loop) as run:
                    run(count // 10)
                    times[name] += run(count)
    finally:
        process.terminate()
        process.join()
        loop.close()
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000, help="per library and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="names, separated by commas")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    wanted = [name for name in options.only.split(",") if name]
    names = [n for n in (*SYNC, *ASYNC) if installed(n) and (not wanted or n in wanted)]
    times = measure(names, options.requests, options.rounds)
    p50 = {name: statistics.median(found) * 1e6 for name, found in times.items()}
    if options.json:
        print(json.dumps({name: round(value, 1) for name, value in p50.items()}))
        return
    first = next(iter(p50.values()))
    print(f"{'client':<18}{'p50 µs':>9}{'ratio to ' + names[0]:>22}")
    for name, value in sorted(p50.items(), key=lambda item: item[1]):
        print(f"{name:<18}{value:>9.0f}{value / first:>22.2f}")


if __name__ == "__main__":
    main()
