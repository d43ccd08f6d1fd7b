"""The server's HTTP against uvicorn's with a raw ASGI callable, over TLS, in one run.

Rows: `uvicorn` reads a body, runs the model on its event loop and answers, and does nothing
else; `front` is the same on the server's own protocol; `blindai` is the whole server. For
large tensors `uvicorn` and `front` send the body back, and `blindai` runs the identity.
Servers take turns, round by round, so a busy machine is busy for all of them; figures are
medians::

    python benchmarks/front_end.py [--rounds 5] [--seconds 1] [--only uvicorn,blindai] [--json FILE]

The load comes from one process that speaks TLS on non-blocking sockets and counts bytes: it
parses no answers, since the server is what is measured. docs/adr/0007-front-end.md has a run.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import select
import socket
import ssl
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime
import uvicorn
import uvloop
from onnx import TensorProto, helper
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from blindai.channel.keyset import PrivateKeyset
from blindai.channel.tls import create_certificate, server_context, unverified_context
from blindai.errors import ConnectionFailed
from blindai.server.config import Limits
from blindai.server.limits import ByteBudget
from blindai.server.listener import Listener, bind
from blindai.server.request import Request
from blindai.testing.server import start_server

HOST = "127.0.0.1"
IMAGE = (1, 3, 224, 224)
BINARY = b"application/octet-stream"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--only", help="rows, with commas between")
    parser.add_argument("--connections", help="with commas between")
    parser.add_argument("--workload", choices=sorted(WORKLOADS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", choices=sorted(SERVERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        SERVERS[options.serve]()
        return
    results = []
    for workload, (all_rows, usual, make) in WORKLOADS.items():
        if options.workload not in {None, workload}:
            continue
        rows = [row for row in all_rows if not options.only or row in options.only.split(",")]
        asked = options.connections and [int(count) for count in options.connections.split(",")]
        results += compare(workload, rows, asked or usual, make(), options)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


# The load.


def compare(workload, rows, connections, request, options):
    results = []
    with ExitStack() as stack:
        servers = {row: stack.enter_context(server(row)) for row in rows}
        for count in connections:
            rounds = {row: [] for row in rows}
            for _ in range(options.rounds):
                for row, (port, pid) in servers.items():
                    rounds[row].append(load(port, pid, request, count, options.seconds))
            for row in rows:
                rate, p50, p99, cpu = (
                    statistics.median(column) for column in zip(*rounds[row], strict=True)
                )
                results.append(
                    {
                        "workload": workload,
                        "connections": count,
                        "server": row,
                        "req_s": round(rate, 1),
                        "p50_ms": round(p50 * 1e3, 3),
                        "p99_ms": round(p99 * 1e3, 3),
                        "cpu_us": round(cpu * 1e6, 1),
                    }
                )
                print(
                    "{workload:<8} {connections:>3} {server:<8} {req_s:>9} req/s  p50 {p50_ms:>8} "
                    "ms  p99 {p99_ms:>8} ms  CPU {cpu_us:>8} µs".format(**results[-1]),
                    flush=True,
                )
    return results


@contextmanager
def server(row):
    command = [sys.executable, __file__, "--serve", row]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    try:
        yield int(process.stdout.readline()), process.pid
    finally:
        process.stdin.close()  # its sign to end
        process.wait(20)


class Caller:
    """One connection with one request under way."""

    def __init__(self, port, request):
        plain = socket.create_connection((HOST, port), timeout=20)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = unverified_context().wrap_socket(plain)
        self.request = memoryview(request)
        self.buffer = bytearray(256 << 10)
        # The first answer says how long all of them are.
        self.socket.sendall(request)
        answer = bytearray()
        while b"\r\n\r\n" not in answer:
            answer += self.socket.recv(65536)
        head, _, body = bytes(answer).partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            sys.exit(f"the server said {bytes(answer[:500])!r}")
        length = int(head.lower().partition(b"\r\ncontent-length: ")[2].split(b"\r\n")[0])
        self.answer = len(head) + 4 + length
        self._receive(length - len(body))
        self.socket.settimeout(0)
        self.times = []

    def _receive(self, left):
        while left > 0:
            left -= self.socket.recv_into(self.buffer, min(left, len(self.buffer)))

    def begin(self):
        self.began = time.perf_counter()
        self.unsent, self.left = self.request, self.answer
        with suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
            self._send()

    def _send(self):
        while self.unsent:
            self.unsent = self.unsent[self.socket.send(self.unsent[: 256 << 10]) :]

    def go_on(self):
        """Send and receive what goes without waiting; return whether the answer is complete."""
        try:
            self._send()
            while self.left:
                got = self.socket.recv_into(self.buffer, min(self.left, len(self.buffer)))
                if not got:
                    sys.exit("the server ended the connection")
                self.left -= got
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        self.times.append(time.perf_counter() - self.began)
        return True


def load(port, pid, request, connections, seconds):
    """Return requests per second, their median and 99th percentile, and CPU time of one."""
    with ExitStack() as stack:
        callers = [Caller(port, request) for _ in range(connections)]
        poll = select.epoll()
        for caller in callers:
            stack.enter_context(closing(caller.socket))
            flags = select.EPOLLIN | (
                select.EPOLLOUT | select.EPOLLET if len(request) > 16384 else 0
            )
            poll.register(caller.socket, flags)
        by_number = {caller.socket.fileno(): caller for caller in callers}
        cpu, began = cpu_time(pid), time.perf_counter()
        for caller in callers:
            caller.begin()
        while time.perf_counter() - began < seconds:
            for number, _ in poll.poll(1):
                caller = by_number[number]
                if caller.go_on():
                    caller.begin()
        took, cpu = time.perf_counter() - began, cpu_time(pid) - cpu
        times = sorted(time for caller in callers for time in caller.times)
        return (
            len(times) / took,
            statistics.median(times),
            times[len(times) * 99 // 100],
            cpu / len(times),
        )


def cpu_time(pid):
    """Return the seconds that all threads of a process have run."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    try:
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9
    except OSError:  # a kernel that counts no nanoseconds
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def infer_request(name, shape):
    data = np.ones(shape, np.float32).tobytes()
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "shape": shape,
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": len(data)},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    return (
        (
            b"POST /v2/models/%s/infer HTTP/1.1\r\nHost: a\r\nContent-Type: %s\r\n"
            b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n"
            % (name, BINARY, len(header), len(header) + len(data))
        )
        + header
        + data
    )


WORKLOADS = {
    "tiny": (["uvicorn", "front", "blindai"], [1, 8, 64], lambda: infer_request(b"tiny", (1, 16))),
    "602KB": (
        ["uvicorn-echo", "front-echo", "blindai"],
        [1, 4],
        lambda: infer_request(b"image", IMAGE),
    ),
    "8MB": (
        ["uvicorn-echo", "front-echo", "blindai"],
        [1, 4],
        lambda: infer_request(b"image", (1, 2_000_000)),
    ),
    "64MB": (
        ["uvicorn-echo", "front-echo", "blindai"],
        [1],
        lambda: infer_request(b"image", (1, 16_000_000)),
    ),
}


# The servers.


def tiny_model():
    """Return a two-layer perceptron, 16 → 16 → 4."""
    rng = np.random.default_rng(0)
    weights = [
        helper.make_tensor(name, TensorProto.FLOAT, shape, rng.standard_normal(shape).astype("f4"))
        for name, shape in (("w1", (16, 16)), ("w2", (16, 4)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["y"]),
    ]
    return model(nodes, weights, ["batch", 16], ["batch", 4])


def image_model():
    """Return a model whose answer is as large as its input, and that does nothing."""
    return model([helper.make_node("Identity", ["x"], ["y"])], [], None, None)


def model(nodes, weights, shape_in, shape_out):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape_in)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape_out)
    graph = helper.make_graph(nodes, "model", [x], [y], weights)
    opset = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


def read_tensor(headers, body):
    """Return the header and the tensor of a request, in the shortest way there is."""
    length = int(headers[b"inference-header-content-length"])
    return json.loads(bytes(body[:length])), np.frombuffer(body, np.float32, offset=length)


def session():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(tiny_model(), options, providers=["CPUExecutionProvider"])


def asgi(answer):
    async def app(scope, receive, send):
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            if not body and not message["more_body"]:
                body = message.get("body", b"")
                break
            body += message.get("body", b"")
            if not message["more_body"]:
                break
        result = answer(dict(scope["headers"]), body)
        headers = [(b"content-type", BINARY), (b"content-length", b"%d" % len(result))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": result})

    return app


def run_tiny():
    run = session().run

    def answer(headers, body):
        _, tensor = read_tensor(headers, body)
        outputs = run(None, {"x": tensor.reshape(1, 16)})
        header = json.dumps(
            {
                "model_name": "tiny",
                "model_version": "1",
                "outputs": [
                    {
                        "name": "y",
                        "datatype": "FP32",
                        "shape": outputs[0].shape,
                        "parameters": {"binary_data_size": outputs[0].nbytes},
                    }
                ],
            }
        ).encode()
        return header + outputs[0].tobytes()

    return answer


def echo(_, body):
    return body


def serve_front(answer):
    async def app(exchange):
        request = Request(exchange)
        try:
            with budget.share() as share:
                body = await request.body(limit=1 << 30, share=share)
        except ConnectionFailed:
            return
        result = answer(request.headers, body)
        headers = [(b"content-type", BINARY)]
        if len(result) < 64 << 10:
            await exchange.respond(200, headers, result)
            return
        head = exchange.start(200, headers, len(result))
        for start in range(0, len(result), 256 << 10):
            await exchange.send(head, result[start : start + (256 << 10)])
            head = b""
        exchange.end()

    async def serve():
        listener = Listener(bind(HOST, 0, "port"), Limits())
        await listener.serve(app, tls_context())
        print(listener.address[1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await listener.close()

    budget = ByteBudget(4 << 30)
    uvloop.run(serve())


def serve_uvicorn(answer):
    async def serve():
        config = uvicorn.Config(
            asgi(answer),
            log_config=None,
            access_log=False,
            proxy_headers=False,
            ws="none",
            lifespan="off",
            interface="asgi3",
        )
        config.load()
        loop = asyncio.get_running_loop()
        state = ServerState()
        listening = await loop.create_server(
            lambda: HttpToolsProtocol(config, state, {}), HOST, 0, ssl=tls_context(), backlog=512
        )
        print(listening.sockets[0].getsockname()[1], flush=True)
        await loop.run_in_executor(None, sys.stdin.read)

    uvloop.run(serve())


def serve_blindai():
    models = {"tiny": tiny_model(), "image": image_model()}
    with start_server(models=models) as running:
        print(running.port, flush=True)
        sys.stdin.read()


def tls_context():
    now = datetime.now(UTC)
    configuration = hashlib.sha256(b"benchmark").digest()
    keys = PrivateKeyset.generate(now=now, lifetime=timedelta(days=1), configuration=configuration)
    certificate = create_certificate(
        keys.tls,
        names=["localhost"],
        not_before=now - timedelta(minutes=1),
        not_after=now + timedelta(days=1),
    )
    return server_context(keys.tls, certificate)


SERVERS = {
    "uvicorn": lambda: serve_uvicorn(run_tiny()),
    "uvicorn-echo": lambda: serve_uvicorn(echo),
    "front": lambda: serve_front(run_tiny()),
    "front-echo": lambda: serve_front(echo),
    "blindai": serve_blindai,
}

if __name__ == "__main__":
    main()
