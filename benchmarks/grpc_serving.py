"""The server's gRPC against grpcio's two servers, over TLS, in one run.

Rows: `grpcio-sync`, `grpcio-sync-4` (threads) and `grpcio-aio` parse a request with protobuf, run
the model where they are called, and do nothing else; `ours` is the same on the server's own
HTTP/2; `blindai` is the whole server, and `blindai-rest` its REST beside it. For the image, they
send back what came, and `blindai` runs the identity. Servers take turns, round by round, so a busy
machine is busy for all of them; figures are medians::

    python benchmarks/grpc_serving.py [--rounds 5] [--seconds 1] [--only ours,blindai] [--json FILE]

The load comes from one process that speaks HTTP/2 with made frames and looks at no answer's
content, since the server is what is measured; `8x8` is eight connections with eight calls each.
docs/adr/0008-grpc.md has a run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import front_end  # turns onnxruntime's telemetry off before it is imported
import grpc
import load
import numpy as np
import uvloop
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from blindai.channel.tls import create_certificate, server_context, unverified_context
from blindai.server.config import Limits
from blindai.server.grpc import frames
from blindai.server.grpc.call import Method
from blindai.server.grpc.connection import Connection, Port
from blindai.server.grpc.inference import REQUEST, encode_varint, open_envelope
from blindai.server.grpc.messages import message_class
from blindai.server.grpc.request import PREFIX
from blindai.server.limits import ByteBudget
from blindai.testing.server import start_server

HOST = "127.0.0.1"
SERVICE = "inference.GRPCInferenceService"
RESPONSE = message_class("inference.ModelInferResponse")
SHAPES = {"tiny": (1, 16), "image": (1, 3, 224, 224)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--only", help="rows, with commas between")
    parser.add_argument("--connections", help="with commas between")
    parser.add_argument("--model", choices=sorted(SHAPES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", choices=sorted(SERVERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        SERVERS[options.serve](options.model)
        return
    results = []
    for model, usual in (("tiny", "1,8,64,8x8"), ("image", "1,4")):
        if options.model in {None, model}:
            results += compare(model, (options.connections or usual).split(","), options)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


def compare(model, loads, options):
    """Measure all servers in turn; return and print the medians."""
    results = []
    rows = [row for row in SERVERS if not options.only or row in options.only.split(",")]
    with ExitStack() as stack:
        servers = {row: stack.enter_context(server(row, model)) for row in rows}
        for label in loads:
            count, _, streams = label.partition("x")
            rounds = {row: [] for row in rows}
            for _ in range(options.rounds):
                for row, (port, pid) in servers.items():
                    measured = measure(
                        row, port, pid, model, int(count), int(streams or 1), options
                    )
                    rounds[row].append(measured)
            for row in rows:
                rate, p50, p99, cpu = map(statistics.median, zip(*rounds[row], strict=True))
                print(
                    f"{model:<6} {label:>4} {row:<14} {rate:>8.0f} req/s  p50 {p50 * 1e3:>7.2f} ms"
                    f"  p99 {p99 * 1e3:>7.2f} ms  CPU {cpu * 1e6:>6.0f} µs",
                    flush=True,
                )
                figures = {"req_s": rate, "p50_s": p50, "p99_s": p99, "cpu_s": cpu}
                results.append({"model": model, "load": label, "server": row, **figures})
    return results


@contextmanager
def server(row, model):
    """Run a server in a process of its own; yield its port and process."""
    command = [sys.executable, __file__, "--serve", row, "--model", model]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    try:
        yield int(process.stdout.readline()), process.pid
    finally:
        process.stdin.close()  # its sign to end
        process.wait(20)


# The load.


def measure(row, port, pid, model, connections, streams, options):
    """Return what one server did for `seconds`."""
    if row == "blindai-rest":
        request = front_end.infer_request(model.encode(), SHAPES[model])
        context = unverified_context()
        many = connections * streams
        return load.measure(
            port, pid, request, connections=many, seconds=options.seconds, context=context
        )
    return uvloop.run(call_for(port, pid, model, connections, streams, options.seconds))


async def call_for(port, pid, model, connections, streams, seconds):
    """Keep `streams` calls under way on each connection; return the `load.Load`."""
    context = unverified_context()
    context.set_alpn_protocols(["h2"])
    loop = asyncio.get_running_loop()
    callers = [Caller(request_for(model), streams) for _ in range(connections)]
    for caller in callers:
        await loop.create_connection(lambda caller=caller: caller, HOST, port, ssl=context)
    await asyncio.sleep(0.3)  # what a connection's first calls cost counts for nothing
    for caller in callers:
        caller.times.clear()
    cpu, began = front_end.cpu_time(pid), time.perf_counter()
    await asyncio.sleep(seconds)
    took, cpu = time.perf_counter() - began, front_end.cpu_time(pid) - cpu
    times = [each for caller in callers for each in caller.times]
    for caller in callers:
        caller.transport.abort()
    if not times or any(caller.failed for caller in callers):
        sys.exit(f"a call failed: {[caller.failed for caller in callers]}")
    return load.summary(times, took, cpu)


def request_for(model):
    values = np.ones(SHAPES[model], np.float32)
    request = REQUEST(model_name=model)
    request.inputs.add(name="x", datatype="FP32", shape=values.shape)
    request.raw_input_contents.append(values.tobytes())
    data = request.SerializeToString()
    return PREFIX.pack(0, len(data)) + data


FIELDS = (
    (b":method", b"POST"),
    (b":scheme", b"https"),
    (b":path", f"/{SERVICE}/ModelInfer".encode()),
    (b":authority", b"localhost"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
    (b"user-agent", b"benchmark"),
)
# As clients send them: into the table with the first call, one byte each from then on.
FIRST = b"".join(
    b"\x40" + encode_literal
    for encode_literal in (
        bytes((len(name),)) + name + bytes((len(value),)) + value for name, value in FIELDS
    )
)
NEXT = bytes(0x80 | 62 + number for number in reversed(range(len(FIELDS))))
ROOM = frames.MAX_WINDOW - frames.DEFAULT_WINDOW


class Caller(asyncio.Protocol):
    """One connection, with a number of calls under way."""

    def __init__(self, message, streams):
        self.message = message
        self.streams = streams
        self.times = []
        self.failed = ""
        self.held = b""
        self.stream = -1
        self.window = frames.DEFAULT_WINDOW
        self.stream_window = frames.DEFAULT_WINDOW
        self.frame_size = frames.MIN_FRAME_SIZE
        self.calls = {}  # stream: when it began, room, and the position in the message

    def connection_made(self, transport):
        self.transport = transport
        settings = frames.settings_frame({frames.SETTING_WINDOW: frames.MAX_WINDOW})
        transport.write(frames.PREFACE + settings + frames.window_frame(0, ROOM))
        self.taken = 0
        for _ in range(self.streams):
            self.begin()

    def begin(self):
        block = FIRST if self.stream < 0 else NEXT
        self.stream += 2
        self.calls[self.stream] = [time.perf_counter(), self.stream_window, 0]
        self.send(self.stream, frames.frame(frames.HEADERS, frames.END_HEADERS, self.stream, block))

    def send(self, stream, out=b""):
        """Send as much of a call's message as the server takes."""
        call = self.calls[stream]
        parts = [out]
        while (left := len(self.message) - call[2]) > 0:
            room = min(left, self.window, call[1], self.frame_size)
            if room <= 0:
                break
            piece = self.message[call[2] : call[2] + room]
            parts.append(frames.frame(frames.DATA, int(room == left), stream, piece))
            call[1] -= room
            call[2] += room
            self.window -= room
        self.transport.write(b"".join(parts))

    def data_received(self, data):
        data = self.held + data
        position = 0
        while len(data) - position >= frames.HEADER_SIZE:
            high, low, kind, flags, stream = frames.parse_header(data, position)
            end = position + frames.HEADER_SIZE + (high << 8 | low)
            if end > len(data):
                break
            if kind in {frames.DATA, frames.HEADERS}:
                self.take(kind, flags, stream, end - position)
            elif not flags & frames.ACK or kind == frames.WINDOW_UPDATE:
                self.control(kind, stream, data[position + frames.HEADER_SIZE : end])
            position = end
        self.held = data[position:]

    def take(self, kind, flags, stream, size):
        if kind == frames.DATA:
            self.taken += size
            if self.taken > ROOM // 2:
                self.transport.write(frames.window_frame(0, self.taken))
                self.taken = 0
        if flags & frames.END_STREAM:
            self.times.append(time.perf_counter() - self.calls.pop(stream)[0])
            self.begin()

    def control(self, kind, stream, payload):
        if kind == frames.SETTINGS:
            settings = frames.parse_settings(payload)
            self.frame_size = settings.get(frames.SETTING_FRAME_SIZE, self.frame_size)
            change = settings.get(frames.SETTING_WINDOW, self.stream_window) - self.stream_window
            self.stream_window += change
            for call in self.calls.values():
                call[1] += change
            self.transport.write(frames.frame(frames.SETTINGS, frames.ACK, 0, b""))
        elif kind == frames.PING:
            self.transport.write(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif kind == frames.WINDOW_UPDATE and not stream:
            self.window += frames.parse_word(payload)
        elif kind == frames.WINDOW_UPDATE and stream in self.calls:
            self.calls[stream][1] += frames.parse_word(payload)
        elif kind in {frames.RST_STREAM, frames.GOAWAY}:
            self.failed = f"{kind} {payload!r}"
        for each in list(self.calls):
            self.send(each)


# The servers.


def answerer(model):
    """Return what turns a request's bytes into an answer's parts, in the shortest way there is."""
    run = front_end.session().run if model == "tiny" else None

    def answer(data):
        envelope = open_envelope(data)
        (raw,) = envelope.raw
        if run is not None:
            (output,) = run(None, {"x": np.frombuffer(raw, np.float32).reshape(SHAPES[model])})
            raw = output.tobytes()
        response = RESPONSE(model_name=model, model_version="1")
        response.outputs.add(name="y", datatype="FP32", shape=(1, len(raw) // 4))
        return [response.SerializeToString(), b"\x32" + encode_varint(len(raw)), raw]

    return answer


def identity():
    """Return a key and a certificate for it, in PEM, and the context that serves with them."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    hour = timedelta(hours=1)
    der = create_certificate(key, names=["localhost"], not_before=now - hour, not_after=now + hour)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pem = front_end.ssl.DER_cert_to_PEM_cert(der).encode()
    return private, pem, server_context(key, der, protocols=["h2"])


def grpcio_options(handler):
    method = grpc.unary_unary_rpc_method_handler(handler)
    return {
        "handlers": [grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": method})],
        "options": [("grpc.max_receive_message_length", -1)],
    }


def generated(model):
    """Return the same, but parsed and made by protobuf alone, as grpcio's servers do."""
    run = front_end.session().run if model == "tiny" else None

    def answer(data):
        request = REQUEST.FromString(data)
        raw = request.raw_input_contents[0]
        if run is not None:
            (output,) = run(None, {"x": np.frombuffer(raw, np.float32).reshape(SHAPES[model])})
            raw = output.tobytes()
        response = RESPONSE(model_name=model, model_version="1")
        response.outputs.add(name="y", datatype="FP32", shape=(1, len(raw) // 4))
        response.raw_output_contents.append(raw)
        return response.SerializeToString()

    return answer


def serve_sync(threads):
    def serve(model):
        answer = generated(model)
        pool = ThreadPoolExecutor(threads)
        running = grpc.server(pool, **grpcio_options(lambda data, _: answer(data)))
        private, pem, _ = identity()
        credentials = grpc.ssl_server_credentials([(private, pem)])
        print(running.add_secure_port(f"{HOST}:0", credentials), flush=True)
        running.start()
        sys.stdin.read()
        running.stop(0)

    return serve


def serve_aio(model):
    answer = generated(model)

    async def handle(data, _):
        return answer(data)

    async def serve():
        running = grpc.aio.server(**grpcio_options(handle))
        private, pem, _ = identity()
        port = running.add_secure_port(f"{HOST}:0", grpc.ssl_server_credentials([(private, pem)]))
        await running.start()
        print(port, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await running.stop(0)

    uvloop.run(serve())


def serve_ours(model):
    answer = answerer(model)

    async def handle(_, data):
        return answer(data)

    async def serve():
        loop = asyncio.get_running_loop()
        methods = {FIELDS[2][1]: Method(unary=handle)}
        port = Port(methods, Limits(), ByteBudget(4 << 30), lambda: "", set())
        listening = await loop.create_server(
            lambda: Connection(port), HOST, 0, ssl=identity()[2], backlog=512
        )
        print(listening.sockets[0].getsockname()[1], flush=True)
        await loop.run_in_executor(None, sys.stdin.read)

    uvloop.run(serve())


def serve_blindai(which):
    def serve(_):
        models = {"tiny": front_end.tiny_model(), "image": front_end.image_model()}
        with start_server(models=models) as running:
            print(getattr(running, which).rpartition(":")[2], flush=True)
            sys.stdin.read()

    return serve


SERVERS = {
    "grpcio-sync": serve_sync(1),
    "grpcio-sync-4": serve_sync(4),
    "grpcio-aio": serve_aio,
    "ours": serve_ours,
    "blindai": serve_blindai("grpc_address"),
    "blindai-rest": serve_blindai("address"),
}

if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
