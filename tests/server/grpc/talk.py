"""Ways to talk to the gRPC port: with real clients, and frame by frame."""

from __future__ import annotations

import contextlib
import socket
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime

import hpack
import numpy as np

from blindai.channel.tls import unverified_context
from blindai.inference.records import ModelRecord
from blindai.server.grpc import frames
from blindai.server.grpc.inference import REQUEST
from blindai.server.grpc.reader import FRAME_SIZE
from blindai.server.grpc.request import PREFIX

TIMEOUT = 20.0
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
LIVE = "/inference.GRPCInferenceService/ServerLive"


def record() -> ModelRecord:
    """Return a model's record."""
    return ModelRecord(
        names=("m",),
        sha256="ab" * 32,
        size=1,
        inputs=(),
        outputs=(),
        engine="onnxruntime 1",
        loaded_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def request_for(values, *, model: str = "m", name: str = "x", datatype: str = "FP32", **more):
    """Return a request with one raw input."""
    request = REQUEST(model_name=model, **more)
    request.inputs.add(name=name, datatype=datatype, shape=values.shape)
    request.raw_input_contents.append(values.tobytes())
    return request


def message(request) -> bytes:
    """Return a request with its prefix, as a stream carries it."""
    data = request if isinstance(request, bytes) else request.SerializeToString()
    return PREFIX.pack(0, len(data)) + data


def headers(path: str = INFER, **more: str) -> list[tuple[str, str]]:
    """Return the header fields of an RPC; underscores in names stand for hyphens."""
    return [
        (":method", "POST"),
        (":scheme", "https"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *((name.replace("_", "-"), value) for name, value in more.items()),
    ]


@dataclass
class Frame:
    """What the server sent."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> int:
        """Of a RST_STREAM or GOAWAY frame."""
        return int.from_bytes(self.payload[-4:] if self.kind == 3 else self.payload[4:8])


@dataclass
class Peer:
    """A client of HTTP/2 that does only what it is told to, right or wrong."""

    connection: ssl.SSLSocket
    encoder: hpack.Encoder = field(default_factory=hpack.Encoder)
    decoder: hpack.Decoder = field(default_factory=hpack.Decoder)
    held: bytes = b""

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self.connection.sendall(data)

    def open(self) -> Peer:
        """Send the preface, and give room for any answer."""
        settings = frames.settings_frame({frames.SETTING_WINDOW: frames.MAX_WINDOW})
        self.send(frames.PREFACE + settings + frames.window_frame(0, 1 << 30))
        return self

    def call(self, stream: int, data: bytes = b"", *, ends: bool = True, fields=None) -> None:
        """Send the header fields of an RPC, and bytes."""
        block = self.encoder.encode(fields or headers())
        flags = frames.END_HEADERS | (0 if data or not ends else frames.END_STREAM)
        self.send(frames.frame(frames.HEADERS, flags, stream, block))
        if data:
            self.data(stream, data, ends=ends)

    def data(self, stream: int, data: bytes, *, ends: bool = True) -> None:
        """Send bytes, in as few DATA frames as the server takes."""
        last = max(0, len(data) - 1) // FRAME_SIZE
        for number in range(last + 1):
            piece = data[number * FRAME_SIZE : (number + 1) * FRAME_SIZE]
            flags = frames.END_STREAM if ends and number == last else 0
            self.send(frames.frame(frames.DATA, flags, stream, piece))

    def next(self) -> Frame | None:
        """Return what the server sends next; `None`: the end of the connection."""
        with contextlib.suppress(ConnectionResetError, ssl.SSLEOFError):
            while len(self.held) < 9 or len(self.held) < 9 + int.from_bytes(self.held[:3]):
                received = self.connection.recv(65536)
                if not received:
                    return None
                self.held += received
            end = 9 + int.from_bytes(self.held[:3])
            head, payload, self.held = self.held[:9], self.held[9:end], self.held[end:]
            return Frame(head[3], head[4], int.from_bytes(head[5:]), payload)
        return None

    def until(self, kind: int, *, ack: bool | None = None) -> Frame | None:
        """Return the next frame of a kind, with or without ACK; `None`: it never came."""
        while (found := self.next()) is not None:
            if found.kind == kind and ack in {None, bool(found.flags & frames.ACK)}:
                return found
        return None

    def answer(self, stream: int) -> tuple[bytes, dict[str, str]]:
        """Return the bytes and the fields of a stream's answer, to its end."""
        data, fields = b"", {}
        while (found := self.next()) is not None:
            if found.stream != stream:
                continue
            if found.kind == frames.DATA:
                data += found.payload
            elif found.kind == frames.HEADERS:
                fields |= dict(self.decoder.decode(found.payload))
            elif found.kind == frames.RST_STREAM:
                fields["reset"] = str(found.code)
            if found.kind == frames.RST_STREAM or (
                found.kind in {0, 1} and found.flags & frames.END_STREAM
            ):
                break
        return data, fields


@contextlib.contextmanager
def peer(server):
    """Connect to the gRPC port of a server; nothing is sent but TLS."""
    host, port = server.grpc_address.rsplit(":", 1)
    context = unverified_context()
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), timeout=TIMEOUT) as plain,
        context.wrap_socket(plain) as connection,
    ):
        yield Peer(connection)


def root_of(server) -> bytes:
    """Return the certificate that evidence attests, as PEM; fetched as a client fetches it."""
    host, port = server.address.rsplit(":", 1)
    with (
        socket.create_connection((host, int(port)), timeout=TIMEOUT) as plain,
        unverified_context().wrap_socket(plain) as connection,
    ):
        return ssl.DER_cert_to_PEM_cert(connection.getpeercert(binary_form=True)).encode()


def floats(count: int) -> np.ndarray:
    """Return numbers that differ."""
    return np.arange(count, dtype=np.float32)
