"""What goes in by any way comes out nowhere that it should not: it is looked for everywhere.

A real, confined `blindai serve` at its most talkative gets canaries as tensors, names, tokens,
keys, headers and addresses, over REST and gRPC, in requests that are right and in ones that fail in
each way. Then all that it said and left behind is searched, in clear and in the usual encodings.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import resource
import secrets
import shutil
import signal
import ssl
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from onnx import TensorProto

from blindai.inference.datatype import DataType
from blindai.server.grpc.inference import REQUEST
from tests.inference.models import identity, model, one_node, value
from tests.server.talk import public_request, request

INFER = "/inference.GRPCInferenceService/ModelInfer"
SERVICE = "/inference.GRPCInferenceService/"


def word():
    """Return letters and digits that are nowhere else."""
    return f"canary{secrets.token_hex(10)}"


# Each way in has one of its own, so that a find says where it came from.
WAYS = (
    "text", "raw", "request id", "input name", "output name", "datatype", "parameter", "json",
    "model name", "uploaded name", "weights", "token", "operator token", "api key", "path",
    "query", "nonce", "header", "cookie", "traceparent", "agent", "host", "metadata", "method",
)  # fmt: skip
CANARIES = {way: word() for way in WAYS}
# As a number in JSON, and as its bytes.
NUMBER = 700_000_000_000_000 + secrets.randbelow(10**14)


def spellings(text):
    """Return how a text may stand somewhere: as it is, in hexadecimal, base64, UTF-16."""
    content = text.encode()
    found = {content, content.hex().encode(), content.hex().upper().encode()}
    found.add(text.encode("utf-16-le"))
    for shift in range(3):
        # The characters that do not depend on what stands before and behind.
        coded = base64.b64encode(b"\0" * shift + content)
        found.add(coded[4 if shift else 0 : len(coded) // 4 * 4 - 4])
    return found


NEEDLES = {way: spellings(text) for way, text in CANARIES.items()} | {
    "number": {str(NUMBER).encode(), struct.pack("<q", NUMBER), struct.pack("<d", NUMBER)}
}


def found_in(content):
    """Return the ways whose canary stands in some bytes."""
    return sorted(way for way, all_of_it in NEEDLES.items() if any(n in content for n in all_of_it))


def finds(contents):
    """Return where a canary stands, and which."""
    found = {name: found_in(content) for name, content in contents.items()}
    return {name: ways for name, ways in found.items() if ways}


@pytest.fixture(scope="module")
def served():
    """A server that everything was sent to, and what it said and left, until after its end."""
    # Not pytest's own, which stays: what models are made of lies there, too.
    folder = Path(tempfile.mkdtemp(prefix="blindai-canary-"))
    try:
        yield Scene(folder).play()
    finally:
        shutil.rmtree(folder)


class Scene:
    """One run of a server."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("models", "home", "sealed", "store"):
            (folder / name).mkdir()
        (folder / "models" / "open.onnx").write_bytes(identity())
        (folder / "models" / "words.onnx").write_bytes(identity(DataType.BYTES))
        gather = one_node(
            "Gather",
            {"x": (TensorProto.FLOAT, ["n"]), "i": (TensorProto.INT64, ["m"])},
            (TensorProto.FLOAT, ["m"]),
        )
        (folder / "models" / "gather.onnx").write_bytes(gather)
        (folder / "settings.toml").write_text(
            f'store = "{folder}/store"\n[access]\nlisted = true\n'
            f'public = ["open", "words", "gather"]\n'
            f'api_keys = "{folder}/keys.json"\n'
        )
        self.replies = []

    def play(self):
        """Serve, send everything, search while it runs, and end it by a crash."""
        key = self.create_key()
        output = (self.folder / "stdout").open("wb"), (self.folder / "stderr").open("wb")
        with output[0] as out, output[1] as err:
            process = subprocess.Popen(
                self.command(), stdout=out, stderr=err, cwd=self.folder, env=self.environment(),
                preexec_fn=allow_cores,  # noqa: PLW1509 - before any thread of ours is in the way
            )  # fmt: skip
        try:
            self.wait(process)
            self.send_rest(key)
            self.send_grpc(key)
            self.send_halves()
            shown = self.shown_to_others()
            files = self.files()
            process.send_signal(signal.SIGABRT)
            _, status = os.waitpid(process.pid, 0)
            process.returncode = status
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
        return SimpleNamespace(
            scene=self, key=key, status=status, shown=shown, files=files, files_after=self.files()
        )

    def environment(self):
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder / "home"),
            "BLINDAI_TOKEN": CANARIES["operator token"],
        }

    def command(self):
        return [
            sys.executable, "-m", "blindai", "serve", "--platform", "simulation", "--json",
            "--port", "0", "--public-port", "0", "--grpc-port", "0", "--models", "models",
            "--sealed-models", "sealed/vault", "--audit-log", "audit.jsonl",
            "--config", "settings.toml", "--log-level", "info",
        ]  # fmt: skip

    def create_key(self):
        command = [sys.executable, "-m", "blindai", "keys", "api", "create", "--name", "ward"]
        command += ["--file", str(self.folder / "keys.json"), "--scope", "run", "--json"]
        done = subprocess.run(command, capture_output=True, check=True, text=True)
        document = json.loads(done.stdout)
        return next(each for each in document.values() if str(each).startswith("bk_"))

    def wait(self, process):
        """Wait for the server's line, and take its addresses from it."""
        ends = time.monotonic() + 60
        while b"\n" not in (self.folder / "stdout").read_bytes():
            said = (self.folder / "stderr").read_text()
            assert process.poll() is None, said
            assert time.monotonic() < ends, said
            time.sleep(0.1)
        line = json.loads((self.folder / "stdout").read_text())
        self.caveats = line["caveats"]
        self.address, self.public_address = line["attested"], line["public"]
        self.grpc_address = line["grpc"]

    def ask(self, method, path, body=None, **headers):
        """Send one request to the attested port, and keep the status."""
        headers = {name.replace("_", "-"): text for name, text in headers.items()}
        reply = request(self, method, path, body, headers)
        self.replies.append(reply.status)
        return reply

    def infer(self, name, document, **headers):
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return self.ask("POST", f"/v2/models/{name}/infer", body, **headers)

    def send_rest(self, key):
        """Send canaries over REST, in what succeeds and in what does not."""
        c = CANARIES
        operator = {"Authorization": f"Bearer {c['operator token']}"}
        good = tensor("x", "INT64", [2], [NUMBER, 1])
        floats = tensor("x", "FP32", [1], [1.5])
        extra = {
            "X_Canary": c["header"], "Cookie": c["cookie"], "User_Agent": c["agent"],
            "Traceparent": f"00-{c['traceparent'][6:].ljust(32, '0')}-{'1' * 16}-01",
            "Tracestate": f"vendor={c['traceparent']}",
        }  # fmt: skip
        words = tensor("x", "BYTES", [1], [c["text"]])
        reply = self.infer("words", {"inputs": [words], "id": c["request id"]}, **extra)
        assert c["text"] in reply.body.decode()  # whoever sent it gets it back
        self.infer("open", {"inputs": [floats], "parameters": {"p": c["parameter"]}}, **extra)
        for wrong in (
            [good],
            [tensor(c["input name"], "FP32", [1], [1.0])],
            [tensor("x", c["datatype"], [1], [1.0])],
            [tensor("x", "FP32", [1], [c["text"]])],
            [tensor("x", "FP32", [NUMBER], [1.0])],
            [c["json"]],
        ):
            assert self.infer("open", {"inputs": wrong}).status == 400
        outputs = [{"name": c["output name"]}]
        assert self.infer("open", {"inputs": [floats], "outputs": outputs}).status == 400
        self.infer("open", b'{"inputs": [' + c["json"].encode())
        raw = c["raw"].encode()
        sized = {"binary_data_size": len(raw)}
        sized = {"name": "x", "datatype": "FP32", "shape": [len(raw)], "parameters": sized}
        head = json.dumps({"inputs": [sized]}).encode()
        self.infer("open", head + raw, Inference_Header_Content_Length=str(len(head)))
        # It fits, and fails in the engine, whose message has the number in it.
        index = tensor("i", "INT64", [1], [NUMBER])
        reply = self.infer("gather", {"inputs": [floats, index]})
        assert (reply.status, reply.error) == (400, "InvalidInput")
        assert "out of bounds" in reply.json()["error"]
        assert self.infer(c["model name"], {"inputs": [good]}).status == 404
        for token in (c["token"], f"bk_{c['api key']}_{c['api key']}", f"{c['token']}.e30.e30"):
            reply = self.infer("open", {"inputs": [floats]}, Authorization=f"Bearer {token}")
            assert reply.status == 401
        self.infer("open", {"inputs": [floats]}, Authorization=f"Basic {c['token']}")
        assert self.infer("open", {"inputs": [floats]}, Authorization=f"Bearer {key}").status == 200
        self.ask("PUT", f"/blindai/v1/models/{c['uploaded name']}", b"x", Authorization="Bearer no")
        content = model(
            [helper_identity()], [value("x")], [value("y")], doc_string=c["weights"]
        ).SerializeToString()
        path = f"/blindai/v1/models/{c['uploaded name']}"
        assert self.ask("PUT", path, content, **operator).status in {200, 201}
        reply = self.infer(c["uploaded name"], {"inputs": [floats]}, **operator)
        assert reply.status == 200
        self.ask("PUT", path + "-2", c["weights"].encode() * 50, **operator)
        self.ask("GET", f"/{c['path']}")
        self.ask("GET", f"/v2/models/{c['path']}%2e?x={c['query']}")
        self.ask("GET", f"/v2?{c['query']}={c['query']}")
        self.ask("GET", f"/blindai/v1/evidence?nonce={c['nonce']}")
        self.ask("DELETE", f"/v2/health/live?{c['query']}")
        self.ask("GET", "/v2", Host=f"{c['host']}.example")
        self.ask("POST", "/v2/repository/index", c["json"].encode())
        for where in (f"/{c['path']}?{c['query']}", f"/?{c['query']}"):
            public_request(self, "GET", where, {"X-Canary": c["header"], "Cookie": c["cookie"]})
        assert {200, 400, 401, 404, 405} <= set(self.replies)

    def send_grpc(self, key):
        """Send canaries over gRPC, in what succeeds and in what does not."""
        c = CANARIES
        host, port = self.address.rsplit(":", 1)
        root = ssl.get_server_certificate((host, int(port))).encode()
        numbers = struct.pack("<q", NUMBER)
        codes = set()
        metadata = [("x-canary", c["metadata"]), ("traceparent", c["traceparent"])]
        credentials = grpc.ssl_channel_credentials(root)
        with grpc.secure_channel(self.grpc_address, credentials) as channel:
            for name, tensor_name, datatype, raw, more in (
                ("words", "x", "BYTES", struct.pack("<I", 36) + c["text"].ljust(36).encode(), []),
                ("open", "x", "INT64", numbers, []),
                ("open", c["input name"], "FP32", b"\0\0\0\0", []),
                ("open", "x", c["datatype"], numbers, []),
                ("open", "x", "FP32", c["raw"].encode(), []),
                (c["model name"], "x", "FP32", b"\0\0\0\0", []),
                ("open", "x", "FP32", b"\0\0\0\0", [("authorization", f"Bearer {c['token']}")]),
                ("open", "x", "FP32", b"\0\0\0\0", [("authorization", f"Bearer {key}")]),
                (c["uploaded name"], "x", "FP32", b"\0\0\0\0", []),
            ):
                call = REQUEST(model_name=name, id=c["request id"])
                call.inputs.add(name=tensor_name, datatype=datatype, shape=[1])
                call.raw_input_contents.append(raw)
                content = call.SerializeToString()
                codes.add(invoke(channel, INFER, content, [*metadata, *more]))
            codes.add(invoke(channel, f"/{c['method']}/Infer", b"", metadata))
            codes.add(invoke(channel, f"{SERVICE}{c['method']}", b"", metadata))
            codes.add(invoke(channel, INFER, c["raw"].encode(), metadata))
        expected = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNAUTHENTICATED", "UNIMPLEMENTED"}
        assert expected <= codes

    def send_halves(self):
        """Begin requests with canaries, and go away."""
        import socket  # noqa: PLC0415 - for these lines only

        from blindai.channel.tls import unverified_context  # noqa: PLC0415

        host, port = self.address.rsplit(":", 1)
        for half in (
            "POST /v2/models/open/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 999\r\n\r\n"
            + CANARIES["text"],
            f"GET /{CANARIES['path']} HTTP/9.9\r\nX: {CANARIES['header']}\r\n\r\n",
            f"{CANARIES['raw']}\r\n\r\n",
        ):
            with socket.create_connection((host, int(port)), 10) as plain:
                context = unverified_context()
                with context.wrap_socket(plain) as tls, contextlib.suppress(OSError):
                    tls.sendall(half.encode())

    def shown_to_others(self):
        """Return what somebody without any right is shown, on each port, errors included."""
        shown = {}
        for path in ("/", "/metrics", "/openapi.json", "/blindai/v1/telemetry", "/v2", "/nothing"):
            shown[f"public {path}"] = public_request(self, "GET", path).body
        for method, path in (
            ("GET", "/blindai/v1/models"), ("GET", "/v2/models/stats"), ("GET", "/v2/models/open"),
            ("POST", "/v2/repository/index"), ("GET", "/v2/models/nothing"), ("GET", "/nothing"),
            ("POST", "/v2/models/open/infer"), ("GET", "/v2/models/open/stats"),
            ("PUT", "/blindai/v1/models/new"), ("GET", "/openapi.json"), ("GET", "/v2"),
        ):  # fmt: skip
            reply = request(self, method, path, b"" if method != "GET" else None)
            shown[f"{method} {path}"] = reply.body + repr(reply.headers).encode()
        floats = {"inputs": [tensor("x", "FP32", [1], [2.5])]}
        shown["a run"] = self.infer("open", floats).body
        return shown

    def files(self):
        """Return the content of all files, by their names; the store stands for memory: names."""
        found = {}
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder)
            if path.is_file() and name.parts[0] != "models":
                found[str(name)] = b"" if name.parts[0] == "store" else path.read_bytes()
        return found


def allow_cores():
    """Let the system write a core file, where it may: that none comes is the server's doing."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))


def helper_identity():
    from onnx import helper  # noqa: PLC0415 - for this line only

    return helper.make_node("Identity", ["x"], ["y"])


def tensor(name, datatype, shape, data):
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def invoke(channel, method, content, metadata):
    """Call a method; return the name of the code that came."""
    call = channel.unary_unary(method, request_serializer=None, response_deserializer=None)
    try:
        call(content, timeout=20, metadata=metadata)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


def test_the_search_finds():
    """What is searched for is found in clear and in each encoding, wherever it begins."""
    for way, text in CANARIES.items():
        content = text.encode()
        for shift in range(3):
            assert found_in(b"." * shift + content + b"..") == [way]
            assert found_in(base64.b64encode(b"." * shift + content + b"..")) == [way]
        assert found_in(content.hex().encode()) == [way]
    assert found_in(f'{{"i": {NUMBER}}}'.encode()) == ["number"]
    assert found_in(np.array([NUMBER, 0]).tobytes()) == ["number"]
    assert found_in(b"nothing of it") == []


def test_the_server_was_confined(served):
    """It was the server as it is run: confined, with logs, an audit log and sealed models."""
    assert not [each for each in served.scene.caveats if "not confined" in each]
    log = served.files["stderr"].decode()
    assert '"model_loaded"' in log
    assert served.files["audit.jsonl"]
    assert [name for name in served.files if name.startswith("sealed/vault")]


def test_in_no_log(served):
    """Neither standard output nor standard error has any of it."""
    for name in ("stdout", "stderr"):
        assert found_in(served.files_after[name]) == []


def test_shown_to_nobody_else(served):
    """No page, metric, list, statistic, document or error that others get has any of it."""
    assert finds(served.shown) == {}
    assert len(served.shown) > 15


def test_in_no_file(served):
    """No file has any of it, nor its name: sealed models and the audit log included."""
    for files in (served.files, served.files_after):
        assert finds(files) == {}
        assert [name for name in files if found_in(name.encode())] == []


def test_the_api_key_is_kept_hashed(served):
    """The key that was made and used stands in no file and no log."""
    secret = served.key.rpartition("_")[2].encode()
    assert [name for name, content in served.files_after.items() if secret in content] == []


def test_no_core(served):
    """The crash at the end left no core, though the system would have written one."""
    assert os.WTERMSIG(served.status) == signal.SIGABRT
    assert not os.WCOREDUMP(served.status)
    assert [name for name in served.files_after if "core" in Path(name).name] == []
