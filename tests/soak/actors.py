"""Who uses the server during a soak: well-behaved callers, careless ones, and hostile ones.

Always true: an actor knows what each of its calls has to come to, and says what it came to. It
never waits for ever, and it pauses between calls, so that the machine is loaded and not jammed.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import ssl
import struct
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPException

import grpc
import numpy as np

import blindai
from blindai.channel.tls import unverified_context
from blindai.errors import BlindAIError
from blindai.server.grpc.messages import message_class
from tests.inference.loop_models import decoder
from tests.inference.models import add, identity, slow
from tests.server.grpc.talk import INFER, LIVE, STREAM, floats, request_for, root_of
from tests.server.talk import (
    Reply,
    ask,
    authorized,
    connect,
    infer_body,
    public_request,
    read_all,
    request,
    tcp,
    tls,
)
from tests.server.test_streaming import decoder_body, events

MODELS = {
    "soak-identity": identity(),
    "soak-decoder": decoder(),
    "soak-slow": slow(layers=8, width=256),
}
# Outcome → why it is what has to happen. An outcome that is not here fails the soak.
EXPLAINED = {
    "400 InvalidInput": "asked for: a request that cannot be read, or inputs that do not fit",
    "401 AccessDenied": "asked for: an upload or a deletion without the token, or with a wrong one",
    "404 ModelNotFound": "asked for: a model, or a path, that there is not",
    "405": "asked for: a method that the path has not",
    "409 ModelConflict": "asked for: a name that belongs to other weights, without `replace`",
    "422 InvalidModel": "asked for: an upload that is no ONNX model",
    "429 RateLimited": "asked for: an address that guesses tokens is shut out for a while",
    "501": "asked for: an extension that is not served",
    "503 Overloaded": "more uploads at once than the limit, four: accepted when asked again",
    "504 DeadlineExceeded": "asked for: a run with a millisecond of time",
    "cut off": "asked for: bytes that are no HTTP, or no TLS, end their connection",
    "grpc INVALID_ARGUMENT": "asked for: a message whose inputs do not fit",
    "grpc NOT_FOUND": "asked for: a model that there is not",
    "grpc UNAUTHENTICATED": "asked for: a deletion without the token",
    "grpc UNIMPLEMENTED": "asked for: a method that there is not",
    "grpc CANCELLED": "asked for: a caller that goes away",
    "left": "asked for: a client that goes away in the middle",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one call came to.

    Attributes:
        actor: Who called.
        kind: "ok", or what stands in `EXPLAINED`.
        seconds: From the first byte to the last.
        unexpected: What came instead of what had to; empty if that came.
    """

    actor: str
    kind: str
    seconds: float
    unexpected: str = ""


class Wrong(Exception):
    """Something came that must not."""


def check(what: object, *, is_so: bool) -> None:
    """Raise unless something is so."""
    if not is_so:
        raise Wrong(repr(what)[:300])


def said(reply: Reply, expected: str) -> str:
    """Return what a reply came to, which has to be what was expected."""
    kind = f"{reply.status}"
    if reply.status >= 400 and reply.status not in {405, 501}:
        kind += f" {reply.error}"
    check((kind, reply.body[:200]), is_so=kind == expected)
    return "ok" if reply.status < 400 else kind


def from_elsewhere(server, *what: object) -> Reply:
    """Ask from another address: who guesses tokens shuts their own address out for a while."""
    with closing(connect(server)) as connection:
        connection.source_address = ("127.0.0.2", 0)
        return ask(connection, *what)


def patiently(server, *what: object) -> tuple[Reply, str]:
    """Ask until there is room for one more upload; return the reply, and what to say of success."""
    kind = "ok"
    for _ in range(100):
        reply = request(server, *what)
        if reply.status != 503:
            break
        check(reply, is_so="uploads are under way" in reply.json()["error"])
        kind = "503 Overloaded"
        time.sleep(0.2)
    return reply, kind


Step = Callable[[], str]
_FAILURES = (
    Wrong, BlindAIError, grpc.RpcError, HTTPException, OSError, LookupError, TypeError, ValueError,
)  # fmt: skip


def sdk(server) -> Iterator[Step]:
    """Verify the server once a while, and predict with the SDK; answers are compared."""
    x = np.arange(64, dtype=np.float32)
    while True:
        with blindai.connect(server.address, simulation=True) as client:

            def step(client=client) -> str:
                check("y", is_so=np.array_equal(client.run_model("soak-identity", {"x": x})[0], x))
                return "ok"

            for _ in range(100):
                yield step


def keep_alive(server) -> Iterator[Step]:
    """Predict in JSON, on a connection that stays."""
    body = infer_body([1.0, 2.0])
    while True:
        with closing(connect(server)) as connection:

            def step(connection=connection) -> str:
                reply = ask(connection, "POST", "/v2/models/soak-identity/infer", body)
                check(reply, is_so=reply.json()["outputs"][0]["data"] == [1.0, 2.0])
                return said(reply, "200")

            for _ in range(200):
                yield step


def large(server) -> Iterator[Step]:
    """Send and fetch megabytes, now and then."""
    with blindai.connect(server.address, simulation=True) as client:
        while True:
            x = np.random.default_rng().standard_normal(random.randrange(10, 1_500_000))
            x = x.astype(np.float32)

            def step(x=x) -> str:
                check("y", is_so=np.array_equal(client.run_model("soak-identity", {"x": x})[0], x))
                return "ok"

            yield step


def heavy(server) -> Iterator[Step]:
    """Run what takes some milliseconds, so that runs meet in the queue."""
    with blindai.connect(server.address, simulation=True) as client:
        while True:
            x = np.ones((random.randrange(1, 9), 256), np.float32)

            def step(x=x) -> str:
                check("y", is_so=np.array_equal(client.run_model("soak-slow", {"x": x})[0], x))
                return "ok"

            yield step


def churn(server) -> Iterator[Step]:
    """Upload, replace, run, and delete models that are sealed."""
    headers = authorized(server)
    mine, number = random.randbytes(4).hex(), 0
    while True:
        number += 1
        name, constant = f"churn-{mine}-{random.randrange(3)}", float(number)
        path = f"/blindai/v1/models/{name}?replace=true"

        def put(path=path, constant=constant) -> str:
            reply, kind = patiently(server, "PUT", path, add(constant), headers)
            check(reply, is_so=reply.status in {200, 201})
            return kind

        def run(name=name, constant=constant) -> str:
            reply = request(server, "POST", f"/v2/models/{name}/infer", infer_body([0.5]))
            check(reply, is_so=reply.json()["outputs"][0]["data"] == [0.5 + constant])
            return said(reply, "200")

        def delete(name=name) -> str:
            path = f"/blindai/v1/models/{name}"
            return said(request(server, "DELETE", path, headers=headers), "204")

        yield put
        yield run
        if random.random() < 0.7:
            yield delete


def streams(server) -> Iterator[Step]:
    """Ask for answers that are made while they are sent."""
    path = "/blindai/v1/models/soak-decoder/stream"
    while True:
        steps = random.randrange(1, 60)

        def step(steps=steps) -> str:
            reply = request(server, "POST", path, decoder_body(steps))
            check(reply, is_so=len(events(reply)) == steps + 1)
            return "ok"

        yield step


def grpc_calls(server) -> Iterator[Step]:
    """Predict over gRPC: alone, and in streams."""
    answer_of = message_class("inference.ModelInferResponse").FromString
    part_of = message_class("inference.ModelStreamInferResponse").FromString
    credentials = grpc.ssl_channel_credentials(root_of(server))
    while True:
        with grpc.secure_channel(server.grpc_address, credentials) as channel:
            call = channel.unary_unary(INFER, None, answer_of)
            stream = channel.stream_stream(STREAM, None, part_of)

            def step(call=call) -> str:
                x = floats(random.randrange(1, 20_000))
                data = request_for(x, model="soak-identity").SerializeToString()
                got = call(data, timeout=30).raw_output_contents[0]
                check("y", is_so=got == x.tobytes())
                return "ok"

            def streamed(stream=stream) -> str:
                x = floats(100)
                data = request_for(x, model="soak-identity").SerializeToString()
                parts = list(stream(iter([data] * 5), timeout=30))
                right = [p.infer_response.raw_output_contents[0] == x.tobytes() for p in parts]
                check(parts, is_so=right == [True] * 5)
                return "ok"

            for _ in range(50):
                yield step
                yield streamed


def bad_grpc(server) -> Iterator[Step]:
    """Call what there is not, with what does not fit, and go away."""
    delete = "/inference.GRPCInferenceService/RepositoryModelUnload"
    good = request_for(floats(4), model="soak-identity").SerializeToString()
    wrong = request_for(floats(4), model="soak-identity", name="nope").SerializeToString()
    unload = message_class("inference.RepositoryModelUnloadRequest")
    unload = unload(model_name="soak-identity").SerializeToString()
    tries = {
        "grpc NOT_FOUND": (INFER, request_for(floats(4), model="none").SerializeToString()),
        "grpc INVALID_ARGUMENT": (INFER, wrong),
        "grpc UNIMPLEMENTED": ("/inference.GRPCInferenceService/Nothing", good),
        "grpc UNAUTHENTICATED": (delete, unload),
        "grpc CANCELLED": (INFER, good),
        "ok": (LIVE, b""),
    }
    credentials = grpc.ssl_channel_credentials(root_of(server))
    while True:
        with grpc.secure_channel(server.grpc_address, credentials) as channel:
            for expected, (method, data) in tries.items():

                def step(method=method, data=data, expected=expected, channel=channel) -> str:
                    future = channel.unary_unary(method).future(data, timeout=30)
                    if expected == "grpc CANCELLED":
                        future.cancel()
                        return expected
                    error = future.exception()
                    kind = "ok" if error is None else f"grpc {error.code().name}"
                    check((kind, error), is_so=kind == expected)
                    return kind

                yield step


def bad_requests(server) -> Iterator[Step]:
    """Ask for what cannot be answered, in every way that has a status of its own."""
    token = authorized(server)
    infer, model = "/v2/models/soak-identity/infer", "/blindai/v1/models/soak-identity"
    huge = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1 << 40]}]})
    tries = [
        ("400 InvalidInput", "POST", infer, b"{", {}),
        ("400 InvalidInput", "POST", infer, huge.encode(), {}),
        ("400 InvalidInput", "POST", infer, infer_body([1.0], datatype="FP64"), {}),
        ("400 InvalidInput", "POST", infer, b"{}", {"Inference-Header-Content-Length": "9"}),
        ("400 InvalidInput", "GET", "/blindai/v1/evidence?nonce=00", None, {}),
        ("401 AccessDenied", "PUT", model, add(), {}),
        ("404 ModelNotFound", "POST", "/v2/models/none/infer", infer_body([1.0]), {}),
        ("404 ModelNotFound", "DELETE", "/blindai/v1/models/none", None, token),
        ("405", "PATCH", infer, b"{}", {}),
        ("409 ModelConflict", "PUT", model, add(), token),
        ("422 InvalidModel", "PUT", "/blindai/v1/models/bad", b"no model", token),
        ("422 InvalidModel", "PUT", "/blindai/v1/models/bad", add()[:-9], token),
    ]
    slow_body = infer_body([0.0] * 256 * 256, shape=[256, 256], parameters={"timeout": 1000})
    tries.append(("504 DeadlineExceeded", "POST", "/v2/models/soak-slow/infer", slow_body, {}))
    while True:
        for expected, *what in tries:

            def step(expected=expected, what=what) -> str:
                return said(patiently(server, *what)[0], expected)

            yield step

        def guess() -> str:
            wrong = {"Authorization": f"Bearer {random.randbytes(16).hex()}"}
            reply = from_elsewhere(server, "DELETE", model, None, wrong)
            limited = reply.status == 429
            return said(reply, "429 RateLimited" if limited else "401 AccessDenied")

        yield guess


def leave(server, data: bytes, *, read: int = 0, reset: bool = False) -> str:
    """Send something, perhaps read a little, and be gone: in order, or by a reset."""
    with tls(server) as connection:
        connection.sendall(data)
        if read:
            connection.recv(read)
        if reset:
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    return "left"


def garbage(server) -> str:
    """Send bytes that are nothing."""
    with tls(server) as connection:
        connection.sendall(random.randbytes(200) + b"\r\n\r\n")
        answer = read_all(connection)
    check(answer, is_so=answer[:12] in {b"", b"HTTP/1.1 400", b"HTTP/1.1 505"})
    return "cut off"


def no_tls(server) -> str:
    """Speak HTTP where TLS is spoken."""
    with tcp(server) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        answer = read_all(connection)
    check(answer, is_so=not answer.startswith(b"HTTP"))
    return "cut off"


def half_a_handshake(server) -> str:
    """Begin TLS, and go."""
    with tcp(server) as connection:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        hello = unverified_context().wrap_bio(incoming, outgoing)
        with contextlib.suppress(ssl.SSLWantReadError):
            hello.do_handshake()
        connection.sendall(outgoing.read()[:100])
    return "left"


def rude(server) -> Iterator[Step]:
    """Send garbage, and leave: before TLS, in a body, in an upload, in an answer."""
    big = infer_body([1.0] * 20_000)
    put = b"PUT /blindai/v1/models/half HTTP/1.1\r\nHost: a\r\nContent-Length: 90000\r\n"
    put += f"Authorization: Bearer {server.token}\r\n\r\n".encode()
    post = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
    infer = post % (b"/v2/models/soak-identity/infer", len(big))
    endless = decoder_body(50_000)
    stream = post % (b"/blindai/v1/models/soak-decoder/stream", len(endless)) + endless
    while True:
        yield lambda: leave(server, infer + big[:1000])
        yield lambda: leave(server, infer + big[:1000], reset=True)
        yield lambda: leave(server, infer + big, reset=True)
        yield lambda: leave(server, put + add()[:50])
        yield lambda: leave(server, put, reset=True)
        yield lambda: leave(server, stream, read=500)
        yield lambda: leave(server, stream, read=500, reset=True)
        yield lambda: garbage(server)
        yield lambda: no_tls(server)
        yield lambda: half_a_handshake(server)


def operator(server) -> Iterator[Step]:
    """Look at health, metrics, evidence and the list, as a monitor does."""
    while True:
        for path in ("/v2/health/ready", "/metrics", "/", "/blindai/v1/evidence", "/openapi.json"):

            def step(path=path) -> str:
                return said(public_request(server, "GET", path), "200")

            yield step

        def listed() -> str:
            names = {
                m["name"] for m in request(server, "GET", "/blindai/v1/models").json()["models"]
            }
            check(names, is_so=names >= MODELS.keys())
            return "ok"

        yield listed


# Actor → how many of it, and the longest pause between two calls, in seconds.
ACTORS = {
    sdk: (2, 0.05),
    keep_alive: (2, 0.05),
    large: (1, 0.5),
    heavy: (3, 0.1),
    churn: (2, 0.5),
    streams: (1, 0.5),
    grpc_calls: (2, 0.1),
    bad_grpc: (1, 0.3),
    bad_requests: (1, 0.2),
    rude: (2, 0.2),
    operator: (1, 1.0),
}


def act(actor: Callable, pause: float, server, stop: threading.Event, record: Callable) -> None:
    """Let an actor act until it is told to stop; what it comes to is recorded.

    Args:
        actor: Yields calls.
        pause: Between two calls, at most, in seconds.
        server: To call.
        stop: Ends it.
        record: Takes outcomes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", blindai.SimulationWarning)
        while not stop.is_set():
            began = time.monotonic()
            try:
                for step in actor(server):
                    if stop.wait(random.uniform(0, pause)):
                        return
                    began = time.monotonic()
                    kind = step()
                    record(Outcome(actor.__name__, kind, time.monotonic() - began))
            except _FAILURES as error:
                # It begins again: what it was in the middle of is over.
                text = f"{type(error).__name__}: {error}"
                record(Outcome(actor.__name__, "unexpected", time.monotonic() - began, text))
                stop.wait(1.0)
