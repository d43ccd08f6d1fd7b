"""Too many at once: connections, descriptors, uploads, and a signal in the middle of it all."""

from __future__ import annotations

import contextlib
import resource
import socket
import ssl
import statistics
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

import grpc

from blindai.channel.tls import unverified_context
from tests.faults.disk import Finding, losses, served
from tests.faults.kill import path_of, scaled
from tests.served import Served, serving
from tests.server.grpc.talk import INFER, floats, request_for, root_of
from tests.server.talk import (
    ask,
    authorized,
    connect,
    infer_body,
    request,
    tcp,
    tls,
)

PATIENCE = 30.0
GONE = (OSError, HTTPException)


@dataclass
class Predictions:
    """Callers that predict on connections of their own, as long as the block lasts.

    Attributes:
        seconds: That each answer took.
        failed: What came instead of an answer, counted.
    """

    server: Served
    callers: int
    anew: bool = False
    seconds: list[float] = field(default_factory=list)
    failed: Counter = field(default_factory=Counter)

    def __enter__(self):
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(self.callers)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _call(self) -> None:
        while not self._stop.is_set():
            try:
                with contextlib.closing(connect(self.server)) as connection:
                    while not self._stop.is_set():
                        self._ask(connection)
                        if self.anew:
                            break
            except GONE as error:
                self.failed[type(error).__name__] += 1

    def _ask(self, connection) -> None:
        began = time.monotonic()
        reply = ask(connection, "POST", "/v2/models/m/infer", body())
        self.seconds.append(time.monotonic() - began)
        if reply.status != 200:
            self.failed[reply.error] += 1
        self._stop.wait(0.02)

    @property
    def told(self) -> str:
        """Of how long it took, in words."""
        cuts = statistics.quantiles(self.seconds, n=100)
        median, p99 = cuts[49] * 1000, cuts[98] * 1000
        return f"{len(self.seconds)} predictions, median {median:.0f} ms, p99 {p99:.0f}"


def body() -> bytes:
    """Return a request for the model of `scaled`."""
    return infer_body([1.0] * 256, shape=[1, 256])


def crowd(folder: Path, connections: int) -> Finding:
    """Hold idle connections, trickle headers and bodies, and predict beside them.

    Of eight connections one stops after TCP, six after TLS, and one sends a byte a second.
    """
    allow_files(4 * connections)
    trickles = [
        b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nX: ",
        b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\n",
    ]
    with serving("--sealed-models", folder / "vault") as server, contextlib.ExitStack() as stack:
        put_model(server)
        held: list[socket.socket] = []

        def hold(number: int) -> None:
            with contextlib.suppress(OSError):
                kind = number % 8
                plain = tcp(server)
                if kind > 0:
                    plain = unverified_context().wrap_socket(plain)
                if kind == 1:
                    plain.sendall(trickles[number % 16 // 8])
                held.append(plain)

        with Predictions(server, 4) as before:
            time.sleep(3)
        with Predictions(server, 4, anew=True) as beside, Predictions(server, 2) as staying:
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(hold, range(connections)))
            ends = time.monotonic() + 10
            while time.monotonic() < ends:
                for each in held[1::8]:
                    with contextlib.suppress(OSError):
                        each.sendall(b"a")
                time.sleep(1)
        for each in held:
            each.close()
        assert not before.failed, before.failed
        refused = beside.failed + staying.failed
        lost = sum(refused.values())
        stack.callback(server.kill)
        with Predictions(server, 2, anew=True) as after:
            time.sleep(1)
        lost += sum(after.failed.values())
    said = f"beside them {beside.told} on new connections, {staying.told} on old ones"
    if refused:
        said += f"; failed: {dict(refused)}"
    return Finding(connections, lost, said)


def put_model(server: Served) -> None:
    """Upload what is predicted with."""
    reply = request(server, "PUT", path_of("m"), scaled(1.0), authorized(server))
    assert reply.status == 201, reply.body


def allow_files(count: int) -> None:
    """Let this process have so many open files, as far as it may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if most == resource.RLIM_INFINITY else min(count, most)
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), most))


def no_descriptors(folder: Path, files: int = 120) -> Finding:
    """Take more connections than the process may have files; then let go."""
    limited = ("prlimit", f"--nofile={files}:{files}", sys.executable, "-I")
    kept = {"m": 1.0}
    with serving("--sealed-models", folder / "vault", prefix=limited) as server:
        put_model(server)
        with (
            contextlib.closing(connect(server)) as staying,
            contextlib.closing(connect(server)) as uploading,
        ):
            uploading.connect()
            assert ask(staying, "POST", "/v2/models/m/infer", body()).status == 200
            held = []
            for _ in range(2 * files):
                with contextlib.suppress(OSError):
                    held.append(tcp(server))
            # Who was here before is served.
            statuses = Counter()
            for number in range(50):
                statuses[ask(staying, "POST", "/v2/models/m/infer", body()).status] += 1
                if number % 10 == 0:
                    with contextlib.suppress(*GONE):
                        reply = ask(uploading, "PUT", path_of("n"), scaled(2.0), authorized(server))
                        assert reply.status in {200, 201, 503}, reply.body
                        if reply.status < 300:
                            kept["n"] = 2.0
            for each in held:
                each.close()
        ends = time.monotonic() + PATIENCE
        found: dict[str, float] | None = None
        while found is None and time.monotonic() < ends:
            with contextlib.suppress(*GONE):
                found = served(server)
        assert found is not None, "nobody was served after all descriptors were free again"
        lost = losses(found, kept)
        assert statuses == {200: 50}, statuses
        assert server.stop().status == 0
    return Finding(2 * files, lost, "who was connected was served; afterwards everybody was")


def uploads(folder: Path, count: int) -> Finding:
    """Upload so many models at once, each with other weights; see what memory that takes."""
    kept: dict[str, float] = {}
    statuses: Counter[int] = Counter()
    with serving("--sealed-models", folder / "vault") as server:
        put_model(server)
        before, peak = server.rss, server.rss
        big = [scaled(number + 2.0) for number in range(count)]

        def upload(number: int) -> None:
            nonlocal peak
            try:
                reply = request(
                    server, "PUT", path_of(f"m{number}"), big[number], authorized(server)
                )
            except GONE as error:
                statuses[type(error).__name__] += 1
                return
            statuses[reply.status] += 1
            peak = max(peak, server.rss)
            if reply.status == 201:
                kept[f"m{number}"] = number + 2.0
            else:
                assert int(reply.headers["retry-after"]) > 0

        with Predictions(server, 2) as beside, ThreadPoolExecutor(count) as pool:
            list(pool.map(upload, range(count)))
        assert not beside.failed, beside.failed
        assert set(statuses) <= {201, 503}, statuses
        lost = losses(served(server), kept | {"m": 1.0})
        assert server.stop().status == 0
    said = (
        f"{statuses[201]} accepted, {statuses[503]} told to come again, "
        f"memory from {before >> 20} to at most {peak >> 20} MiB; beside them {beside.told}"
    )
    return Finding(count, lost, said)


@dataclass
class Accepted:
    """Requests that a server said yes to, and what became of them.

    Over HTTP/1.1, yes is the `100 Continue` that a request with `Expect` waits for.

    Attributes:
        count: That were accepted.
        answered: Of them, with success.
        refused: That were not accepted: 503, or a connection that was closed or refused.
    """

    count: int = 0
    answered: int = 0
    refused: int = 0
    wrong: list[object] = field(default_factory=list)

    def rest(self, server: Served, stop: threading.Event) -> None:
        """Ask on one connection after the other, until there is no server any more."""
        data = body()
        head = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"
        head += b"Content-Length: %d\r\n\r\n" % len(data)
        while not stop.is_set():
            try:
                with tls(server) as connection:
                    while self._ask(connection, head, data):
                        pass
            except OSError:
                self.refused += 1
                return

    def _ask(self, connection: ssl.SSLSocket, head: bytes, data: bytes) -> bool:
        """Ask once; return whether the connection goes on."""
        connection.sendall(head)
        answer = connection.recv(65536)
        if not answer.startswith(b"HTTP/1.1 100"):
            self.refused += 1
            if answer and not answer.startswith(b"HTTP/1.1 503"):
                self.wrong.append(answer)
            return False
        self.count += 1
        try:
            connection.sendall(data)
            got = answer.partition(b"\r\n\r\n")[2] or connection.recv(65536)
            whole = got.partition(b"\r\n\r\n")
            length = int(whole[0].lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            rest = len(whole[2])
            while rest < length and (piece := connection.recv(65536)):
                rest += len(piece)
            self.answered += got.startswith(b"HTTP/1.1 200") and rest == length
            if not got.startswith(b"HTTP/1.1 200"):
                self.wrong.append(got)
        except (OSError, ValueError) as error:
            self.wrong.append(error)
            return False
        return b"connection: close" not in whole[0].lower()

    def grpc(self, server: Served, certificate: bytes, stop: threading.Event) -> None:
        """Call until there is no server any more; UNAVAILABLE says that a call was not taken."""
        credentials = grpc.ssl_channel_credentials(certificate)
        message = request_for(floats(256).reshape(1, 256), model="m").SerializeToString()
        with grpc.secure_channel(server.grpc_address, credentials) as channel:
            call = channel.unary_unary(INFER)
            while not stop.is_set():
                try:
                    call(message, timeout=30)
                except grpc.RpcError as error:
                    self.refused += 1
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        self.wrong.append(error)
                    return
                self.count += 1
                self.answered += 1


def terminated(folder: Path, rounds: int, callers: int = 8) -> Finding:
    """Send SIGTERM while everybody asks, over REST and gRPC."""
    accepted, seconds = Accepted(), []
    for _ in range(rounds):
        stop = threading.Event()
        with serving("--sealed-models", folder / "vault") as server:
            with contextlib.suppress(AssertionError):  # it is there from the second time on
                put_model(server)
            certificate = root_of(server)
            threads = [
                threading.Thread(target=accepted.rest, args=(server, stop)) for _ in range(callers)
            ]
            threads += [
                threading.Thread(target=accepted.grpc, args=(server, certificate, stop))
                for _ in range(callers // 2)
            ]
            for thread in threads:
                thread.start()
            time.sleep(1.0)
            ended = server.stop()
            stop.set()
            for thread in threads:
                thread.join()
            assert ended.status == 0, ended.log
            seconds.append(ended.seconds)
    lost = accepted.count - accepted.answered + len(accepted.wrong)
    said = (
        f"{accepted.count} requests accepted, {accepted.answered} answered, the rest refused; "
        f"the longest end took {max(seconds):.1f} s"
    )
    if accepted.wrong:
        said += f"; {accepted.wrong[:3]}"
    return Finding(rounds, lost, said)
