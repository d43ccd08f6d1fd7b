"""Time per request of Python HTTP clients over pinned TLS: what the SDK's choice rests on.

One server process answers every run with zeros as large as the input, so what is measured is
the client. Clients take turns, round by round, so a busy machine is busy for all of them::

    python benchmarks/client_http.py [--requests 2000] [--rounds 5] [--only raw,blindai] [--json]
    python benchmarks/client_http.py --bytes 67108864 --requests 5     # large tensors
    python benchmarks/client_http.py --in-flight 64                    # asyncio, one core

Columns: median time, the client's CPU time and the client's page faults per request. By
default request and answer are those of a tiny model, some 600 bytes each. Rows appear for the
libraries that are installed. docs/adr/0003-client-http-library.md records one run.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import http.client
import importlib.util
import json
import multiprocessing
import os
import resource
import socket
import ssl
import statistics
import sys
import time
import warnings
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import numpy as np

import blindai
from blindai.attestation import wire
from blindai.attestation.binding import binding
from blindai.attestation.model import EvidenceBundle
from blindai.attesters.simulation import SimulationAttester
from blindai.channel.keyset import PrivateKeyset
from blindai.channel.tls import create_certificate, pinned_context, server_context
from blindai.client.address import Address
from blindai.client.messages import Request, infer_request
from blindai.client.transport import Transport
from blindai.inference.tensors import from_array

HOST = "127.0.0.1"
SHA256 = "ab" * 32
SPEC = {"name": "x", "datatype": "FP32", "shape": [-1]}
METADATA = {
    "name": "tiny",
    "inputs": [SPEC],
    "outputs": [{**SPEC, "name": "y"}],
    "parameters": {"sha256": SHA256, "size": 1},
}
# Ours in full: what users call. The rest send the same bytes and parse none of the answer.
SIZE = int(os.environ.get("BLINDAI_BENCH_BYTES", "64"))


def inputs():
    """Return what a run gets."""
    return np.zeros(SIZE // 4, np.float32)


def request():
    """Return the request that the SDK makes of it."""
    return infer_request("tiny", [from_array("x", inputs())], {}, outputs=None, timeout=None)


def encode_answer(body, headers=()):
    """Return an answer with a body that is JSON or evidence."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    head = f"HTTP/1.1 200 OK\r\nserver: blindai\r\n{lines}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def run_answer(size):
    """Return the answer to a run whose tensor has `size` bytes."""
    output = {"name": "y", "datatype": "FP32", "shape": [size // 4]}
    header = {
        "model_name": "tiny",
        "outputs": [{**output, "parameters": {"binary_data_size": size}}],
        "parameters": {"sha256": SHA256},
    }
    encoded = json.dumps(header).encode()
    headers = [
        ("date", "Sun, 22 Nov 2026 12:00:00 GMT"),
        ("content-type", "application/octet-stream"),
        ("inference-header-content-length", len(encoded)),
    ]
    return encode_answer(encoded + bytes(size), headers)


class Answering(asyncio.BufferedProtocol):
    """Answers when a whole request is there; its large answer is made once."""

    identity = None
    answer = b""

    def connection_made(self, transport):
        self.transport = transport
        self.memory = memoryview(bytearray(1 << 20))
        self.head = b""
        self.left = None

    def get_buffer(self, _):
        return self.memory

    def buffer_updated(self, count):
        if self.left is None:
            self.head += self.memory[:count]
            head, end, body = self.head.partition(b"\r\n\r\n")
            if not end:
                return
            _, said, length = head.lower().partition(b"content-length: ")
            if b"inference-header-" in head.lower().partition(b"content-length: ")[0][-20:]:
                _, said, length = length.partition(b"\ncontent-length: ")
            self.left = int(length.split(b"\r\n")[0]) if said else 0
            count = len(body)
        self.left -= count
        if self.left <= 0:
            target = self.head.split(b" ", 2)[1].decode()
            self.head, self.left = b"", None
            self.transport.write(self.reply(target))

    def reply(self, target):
        if target.endswith("/infer"):
            return self.answer
        if "evidence" in target:
            nonce = bytes.fromhex(target.partition("nonce=")[2])
            keys, certificate = self.identity
            keyset = keys.public.dump()
            evidence = SimulationAttester().attest(binding(nonce, keyset))
            bundle = wire.dump_bundle(EvidenceBundle(evidence, keyset, certificate))
            return encode_answer(bundle, [("content-type", wire.MEDIA_TYPE)])
        return encode_answer(json.dumps(METADATA).encode())


def serve(ready):
    """Run the server; sends its port and certificate through `ready`."""
    now = datetime.now(UTC)
    keys = PrivateKeyset.generate(
        now=now, lifetime=timedelta(days=1), configuration=hashlib.sha256(b"benchmark").digest()
    )
    certificate = create_certificate(
        keys.tls, names=[HOST], not_before=now - timedelta(hours=1), not_after=now + timedelta(1)
    )
    Answering.identity = keys, certificate
    Answering.answer = run_answer(SIZE)

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
    head = f"POST {PATH} HTTP/1.1\r\nHost: {HOST}\r\n{lines}Content-Length: {len(BODY)}\r\n\r\n"
    message = head.encode() + BODY
    memory = memoryview(bytearray(max(65536, ANSWER_BYTES)))
    while True:
        yield
        sock.sendall(message)
        received = 0
        while received < ANSWER_BYTES:
            received += sock.recv_into(memory[received:])


def blindai_transport(port, context):
    transport = Transport(Address(HOST, port), None)
    parts = request().body
    while True:
        yield
        transport.send(
            Request("POST", PATH, HEADERS, parts), context, timeout=60, limit=2 * ANSWER_BYTES
        )


def blindai_run_model(port, _):
    array = inputs()
    with blindai.connect(f"{HOST}:{port}", simulation=True) as client:
        while True:
            yield
            client.run_model("tiny", array)


async def blindai_async(port, _):
    array = inputs()
    async with blindai.AsyncClient(f"{HOST}:{port}", simulation=True) as client:
        while True:
            yield
            await client.run_model("tiny", array)


def http_client(port, context):
    connection = http.client.HTTPSConnection(HOST, port, context=context)
    while True:
        yield
        connection.request("POST", PATH, BODY, HEADERS)
        connection.getresponse().read()


def urllib3(port, context):
    import urllib3  # noqa: PLC0415

    pool = urllib3.HTTPSConnectionPool(HOST, port, ssl_context=context)
    while True:
        yield
        pool.urlopen("POST", PATH, BODY, HEADERS, redirect=False, retries=False)


def httpx(port, context):
    import httpx  # noqa: PLC0415

    with httpx.Client(verify=context, trust_env=False) as client:
        while True:
            yield
            client.post(f"https://{HOST}:{port}{PATH}", content=BODY, headers=HEADERS)


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
            f"https://{HOST}:{port}{PATH}", data=BODY, headers=HEADERS, verify=True
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
        session.post(f"https://{HOST}:{port}{PATH}", data=BODY, headers=HEADERS, verify=pem)


async def asyncio_streams(port, context):
    reader, writer = await asyncio.open_connection(HOST, port, ssl=context)
    lines = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    head = f"POST {PATH} HTTP/1.1\r\nHost: {HOST}\r\n{lines}Content-Length: {len(BODY)}\r\n\r\n"
    while True:
        yield
        writer.write(head.encode() + BODY)
        await reader.readexactly(ANSWER_BYTES)


async def aiohttp(port, context):
    import aiohttp  # noqa: PLC0415

    async with aiohttp.ClientSession(auto_decompress=False) as session:
        while True:
            yield
            async with session.post(
                f"https://{HOST}:{port}{PATH}", data=BODY, headers=HEADERS, ssl=context
            ) as answer:
                await answer.read()


async def httpx_async(port, context):
    import httpx  # noqa: PLC0415

    async with httpx.AsyncClient(verify=context, trust_env=False) as client:
        while True:
            yield
            await client.post(f"https://{HOST}:{port}{PATH}", content=BODY, headers=HEADERS)


# Made once, here and in the server's process alike.
BODY = b"".join(request().body)
PATH = request().target
HEADERS = request().headers
ANSWER_BYTES = len(run_answer(SIZE))

SYNC = {
    "raw socket": raw,
    "blindai transport": blindai_transport,
    "blindai run_model": blindai_run_model,
    "http.client": http_client,
    "urllib3": urllib3,
    "httpx": httpx,
    "requests": requests,
    "niquests": niquests,
}
ASYNC = {
    "asyncio streams": asyncio_streams,
    "blindai AsyncClient": blindai_async,
    "aiohttp": aiohttp,
    "httpx (async)": httpx_async,
}


@contextmanager
def started(name, port, context, loop):
    """Yield a function that makes `count` requests and returns the seconds of each."""
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


def cost(run, count):
    """Return the seconds of each request, CPU seconds and page faults per request."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    times = run(count)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return times, cpu / count, (after.ru_minflt - before.ru_minflt) / count


@contextmanager
def server():
    """Run the server in a process of its own; yields its port and a context pinned to it."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(there,))
    process.start()
    try:
        port, certificate = here.recv()
        yield port, certificate
    finally:
        process.terminate()
        process.join()


def measure(names, count, rounds):
    """Return name → p50, CPU time (both in seconds) and page faults of a request."""
    loop = asyncio.new_event_loop()
    found = {name: ([], [], []) for name in names}
    with server() as (port, certificate):
        for _ in range(rounds):
            for name in names:
                with started(name, port, pinned_context(certificate), loop) as run:
                    run(max(1, count // 10))
                    times, cpu, faults = cost(run, count)
                found[name][0].extend(times)
                found[name][1].append(cpu)
                found[name][2].append(faults)
    loop.close()
    return {name: [statistics.median(column) for column in found[name]] for name in names}


async def gathered(run, workers, count):
    """Return requests a second of `workers` tasks, each with one request on its way."""

    async def work():
        for _ in range(count // workers):
            await run()

    await run()
    start = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(workers)))
    return count / (time.perf_counter() - start)


async def flying_run_model(port, _, workers, count):
    array = inputs()
    async with blindai.AsyncClient(f"{HOST}:{port}", simulation=True) as client:
        return await gathered(lambda: client.run_model("tiny", array), workers, count)


async def flying_run_many(port, _, workers, count):
    array = inputs()
    async with blindai.AsyncClient(f"{HOST}:{port}", simulation=True) as client:
        await client.run_model("tiny", array)
        start = time.perf_counter()
        many = client.run_many("tiny", (array for _ in range(count)), connections=workers)
        async for _ in many:
            pass
        return count / (time.perf_counter() - start)


async def flying_aiohttp(port, certificate, workers, count):
    import aiohttp  # noqa: PLC0415

    url, context = f"https://{HOST}:{port}{PATH}", pinned_context(certificate)
    async with aiohttp.ClientSession(auto_decompress=False) as session:

        async def post():
            async with session.post(url, data=BODY, headers=HEADERS, ssl=context) as answer:
                await answer.read()

        return await gathered(post, workers, count)


async def flying_threads(port, _, workers, count):
    array = inputs()
    with blindai.connect(f"{HOST}:{port}", simulation=True) as client:
        client.run_model("tiny", array)
        start = time.perf_counter()
        for _ in client.run_many("tiny", (array for _ in range(count)), connections=workers):
            pass
        return count / (time.perf_counter() - start)


FLYING = {
    "AsyncClient.run_model": flying_run_model,
    "AsyncClient.run_many": flying_run_many,
    "Client.run_many": flying_threads,
    "aiohttp, no parsing": flying_aiohttp,
}


def measure_in_flight(workers, count, rounds):
    """Return client → requests a second with `workers` of them on their way, on one core."""
    rates = {name: [] for name in FLYING if "aiohttp" not in name or installed("aiohttp")}
    with server() as (port, certificate):
        # One core for all of the client; the server keeps the others.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        for _ in range(rounds):
            for name, found in rates.items():
                found.append(asyncio.run(FLYING[name](port, certificate, workers, count)))
    return {name: statistics.median(values) for name, values in rates.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000, help="per client and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="starts of names, separated by commas")
    parser.add_argument("--bytes", type=int, default=SIZE, help="of the tensor, each way")
    parser.add_argument("--in-flight", type=int, help="requests at once, for clients that can")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.bytes != SIZE:
        # The server's process and this one make the same bytes of it.
        os.environ["BLINDAI_BENCH_BYTES"] = str(options.bytes)
        os.execv(sys.executable, [sys.executable, *sys.argv])
    warnings.simplefilter("ignore", blindai.SimulationWarning)
    if options.in_flight:
        rates = measure_in_flight(options.in_flight, options.requests, options.rounds)
        if options.json:
            print(json.dumps({name: round(value) for name, value in rates.items()}))
            return
        for name, value in sorted(rates.items(), key=lambda item: -item[1]):
            print(f"{name:<24}{value:>9.0f} req/s")
        return
    wanted = tuple(name for name in options.only.split(",") if name)
    names = [n for n in (*SYNC, *ASYNC) if installed(n) and n.startswith(wanted or n)]
    found = measure(names, options.requests, options.rounds)
    if options.json:
        keys = ("p50_us", "cpu_us", "faults")
        rounded = {
            name: dict(zip(keys, (round(p50 * 1e6, 1), round(cpu * 1e6, 1), faults), strict=True))
            for name, (p50, cpu, faults) in found.items()
        }
        print(json.dumps(rounded))
        return
    first = found[names[0]][0]
    print(f"{'client':<20}{'p50 µs':>10}{'CPU µs':>10}{'faults':>9}{'over ' + names[0]:>20}")
    for name, (p50, cpu, faults) in sorted(found.items(), key=lambda item: item[1][0]):
        print(
            f"{name:<20}{p50 * 1e6:>10.0f}{cpu * 1e6:>10.0f}{faults:>9.1f}"
            f"{(p50 - first) * 1e6:>17.0f} µs"
        )


if __name__ == "__main__":
    main()
