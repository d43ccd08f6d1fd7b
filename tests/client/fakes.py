"""A small TLS server with real keys and simulated evidence, that can be made to misbehave."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta

import numpy as np

from blindai.attestation import wire
from blindai.attestation.binding import binding
from blindai.attestation.model import EvidenceBundle
from blindai.attesters.simulation import SimulationAttester
from blindai.channel.keyset import PrivateKeyset
from blindai.channel.tls import create_certificate, server_context

WEIGHTS = hashlib.sha256(b"weights").hexdigest()
OTHER_WEIGHTS = hashlib.sha256(b"other weights").hexdigest()
SPEC = {"name": "x", "datatype": "FP32", "shape": [-1, 2]}


class Identity:
    """Keys and certificate of one start of a server."""

    def __init__(self, *, now=None, lifetime=timedelta(hours=1), names=("localhost", "127.0.0.1")):
        now = now or datetime.now(UTC)
        self.keys = PrivateKeyset.generate(
            now=now, lifetime=lifetime, configuration=hashlib.sha256(b"test").digest()
        )
        self.certificate = create_certificate(
            self.keys.tls,
            names=names,
            not_before=now - timedelta(minutes=5),
            not_after=now + timedelta(days=1),
        )
        self.context = server_context(self.keys.tls, self.certificate)

    def bundle(self, nonce):
        keyset = self.keys.public.dump()
        evidence = SimulationAttester().attest(binding(nonce, keyset))
        return EvidenceBundle(evidence=evidence, keyset=keyset, certificate=self.certificate)


class FakeServer:
    """Serves one model, "double", that doubles; every part can be replaced by a test.

    Attributes:
        requests: (method, target, headers, body) of all that came after TLS, evidence too.
        fallen: How many handshakes failed.
    """

    def __init__(self, identity=None, **identity_options):
        self.identity = identity or Identity(**identity_options)
        self.evidence = lambda nonce: wire.dump_bundle(self.identity.bundle(nonce))
        self.answer = self.serve_model
        self.sha256 = WEIGHTS
        self.spec = dict(SPEC)
        self.requests = []
        self.connections = 0
        self.fallen = 0
        self.context = None
        self._open = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()
        for thread in self._threads:
            thread.join(timeout=5)

    def drop(self):
        """Close every connection, as a restart does."""
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def rotate(self, identity=None):
        """Restart with new keys."""
        self.identity = identity or Identity()
        self.drop()

    @property
    def verbs(self):
        """What came, evidence left out."""
        return [(m, t) for m, t, _, _ in self.requests if "/evidence" not in t]

    def serve_model(self, method, target, headers, body):
        """Answer as a real server would."""
        if method == "PUT":
            return as_json(201, self.record(hashlib.sha256(body).hexdigest(), len(body)))
        if method == "DELETE":
            return 204, {}, b""
        if target == "/blindai/v1/models":
            return as_json(200, {"models": [self.record()]})
        if target.split("/")[3] not in {"double", self.sha256}:
            return error(404, "ModelNotFound", "no such model")
        if method == "POST":
            return self.infer(headers, body)
        return as_json(200, self.metadata())

    def metadata(self):
        return {
            "name": "double",
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [self.spec],
            "outputs": [{**self.spec, "name": "y"}],
            "parameters": {"sha256": self.sha256, "size": 7},
        }

    def record(self, sha256=None, size=7):
        return {
            "name": "double",
            "sha256": sha256 or self.sha256,
            "size": size,
            "inputs": [self.spec],
            "outputs": [{**self.spec, "name": "y"}],
            "engine": "onnxruntime",
            "loaded_at": "2026-11-22T12:00:00Z",
        }

    def infer(self, headers, body):
        length = int(headers["inference-header-content-length"])
        said = json.loads(body[:length])
        [tensor] = said["inputs"]
        if tensor["datatype"] != self.spec["datatype"]:
            return error(400, "InvalidInput", "another datatype")
        dtype = {"FP32": "<f4", "INT64": "<i8"}[tensor["datatype"]]
        data = (np.frombuffer(body[length:], dtype) * 2).tobytes()
        output = {**tensor, "name": "y", "parameters": {"binary_data_size": len(data)}}
        answer = {
            "model_name": "double",
            "model_version": "1",
            "parameters": {"sha256": self.sha256},
            "outputs": [output],
        }
        encoded = json.dumps(answer).encode()
        framing = {"Inference-Header-Content-Length": str(len(encoded))}
        return 200, framing, encoded + data

    def _accept(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, plain):
        plain.settimeout(20)
        context = self.context or self.identity.context
        try:
            sock = context.wrap_socket(plain, server_side=True)
        except OSError:
            self.fallen += 1
            plain.close()
            return
        self._open.add(sock)
        try:
            with sock, sock.makefile("rb") as file:
                while self._one(sock, file):
                    pass
        except (OSError, ValueError):
            pass
        finally:
            self._open.discard(sock)

    def _one(self, sock, file):
        line = file.readline()
        if not line:
            return False
        method, target, _ = line.decode().split()
        headers = {}
        while (line := file.readline().strip()) != b"":
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        if headers.get("expect") == "100-continue":
            sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = read_body(file, headers)
        self.requests.append((method, target, headers, body))
        if "/evidence" in target:
            nonce = bytes.fromhex(target.partition("nonce=")[2])
            answer = 200, {"Content-Type": wire.MEDIA_TYPE}, self.evidence(nonce)
        else:
            answer = self.answer(method, target, headers, body)
        if answer is None:
            return False
        if callable(answer):
            answer(sock)
            return False
        sock.sendall(encode(*answer))
        return True


def read_body(file, headers):
    if headers.get("transfer-encoding") != "chunked":
        length = int(headers.get("content-length", 0))
        body = file.read(length)
        if len(body) < length:
            raise ConnectionResetError
        return body
    body = b""
    while size := int(file.readline(), 16):
        body += file.read(size)
        file.readline()
    file.readline()
    return body


def encode(status, headers, body):
    lines = {"Content-Length": str(len(body)), **headers} if status != 204 else headers
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + body


def as_json(status, value):
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


def error(status, kind, message):
    return as_json(status, {"error": message, "type": kind})


class ConnectProxy:
    """An HTTP proxy that tunnels by CONNECT and keeps all that it sees.

    Args:
        authorization: The Proxy-Authorization that it wants; `None`: none.
    """

    def __init__(self, authorization=None):
        self.seen = bytearray()
        self.targets = []
        self._wanted = authorization
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=5)

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(near)
            threading.Thread(target=self._tunnel, args=(near,), daemon=True).start()

    def _tunnel(self, near):
        with near:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                byte = near.recv(1)
                if not byte:
                    return
                head += byte
            lines = head.decode().split("\r\n")
            if self._wanted and f"Proxy-Authorization: {self._wanted}" not in lines:
                near.sendall(b"HTTP/1.1 407 X\r\nContent-Length: 0\r\n\r\n")
                return
            target = lines[0].split()[1]
            self.targets.append(target)
            host, _, port = target.rpartition(":")
            with socket.create_connection((host, int(port)), 10) as far:
                self._sockets.append(far)
                near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=self._pump, args=(far, near), daemon=True)
                back.start()
                self._pump(near, far)
                back.join(timeout=5)

    def _pump(self, source, sink):
        try:
            while data := source.recv(65536):
                self.seen += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def plain_context(certificate_of):
    """Return a server context that also takes TLS 1.2, with another server's key."""
    context = server_context(certificate_of.keys.tls, certificate_of.certificate)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
