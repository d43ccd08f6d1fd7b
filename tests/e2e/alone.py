"""Run under `unshare -n`: a server and its client in a network of their own, all packets seen.

Prints what was seen, as JSON. The argument says what the server is: "default" (`blindai serve` as
it comes), "refused" (with an endpoint, and DO_NOT_TRACK), "reports" (`telemetry_server`), or
"leaks" (none; a name is looked up and somebody called, to see that it would be seen).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

import blindai
from blindai.channel.tls import create_certificate, server_context
from tests.e2e.packets import Sniffer, open_network
from tests.inference.models import identity

HERE = Path(__file__).parent
RUNS = 12


class Receiver:
    """Takes reports over TLS, one a connection, and answers 200."""

    def __init__(self):
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        self.certificate = create_certificate(
            key,
            names=["localhost"],
            not_before=now - timedelta(hours=1),
            not_after=now + timedelta(days=1),
        )
        self.reports = []
        self._context = server_context(key, self.certificate)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            connection, _ = self._socket.accept()
            with contextlib.suppress(OSError, ssl.SSLError):
                connection.settimeout(5)
                with self._context.wrap_socket(connection, server_side=True) as tls:
                    content = b""
                    while b"\r\n\r\n" not in content or not content.endswith(b"}"):
                        content += tls.recv(65536)
                    tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                self.reports.append(content.decode())


def serve(kind, folder, receiver):
    """Return the command and the environment of the server."""
    environment = {**os.environ, "HOME": str(folder)}
    for name in ("BLINDAI_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        environment.pop(name, None)
    endpoint = f"https://localhost:{receiver.port}/reports"
    models = folder / "models"
    if kind == "reports":
        certificate = folder / "receiver.der"
        certificate.write_bytes(receiver.certificate)
        program = HERE / "telemetry_server.py"
        return [sys.executable, "-I", program, endpoint, certificate, models], environment
    command = [sys.executable, "-m", "blindai", "serve", "--platform", "simulation", "--json"]
    command += ["--port", "0", "--public-port", "0", "--grpc-port", "0", "--models", models]
    if kind == "refused":
        environment["DO_NOT_TRACK"] = "1"
        command += ["--telemetry-endpoint", endpoint]
    return command, environment


def use(line):
    """Run predictions, and look at what the unattested port shows."""
    warnings.simplefilter("ignore")
    with blindai.connect(line["attested"], simulation=True) as client:
        for _ in range(RUNS):
            client.run_model("m", np.ones(4, np.float32))
    for path in ("/", "/metrics", "/openapi.json", "/blindai/v1/evidence"):
        urllib.request.urlopen(f"http://{line['public']}{path}", timeout=10).read()


def show(line, *options):
    """Return what `blindai telemetry show` prints."""
    command = [sys.executable, "-m", "blindai", "telemetry", "show", "--server", line["public"]]
    done = subprocess.run([*command, *options], capture_output=True, check=True, text=True)
    return done.stdout, done.stderr


def observe(kind, folder):
    """Return what was seen while a server served."""
    receiver = Receiver()
    (folder / "models").mkdir()
    (folder / "models" / "m.onnx").write_bytes(identity())
    command, environment = serve(kind, folder, receiver)
    with Sniffer() as sniffer:
        with subprocess.Popen(
            [str(each) for each in command], stdout=subprocess.PIPE, env=environment, text=True
        ) as process:
            try:
                line = json.loads(process.stdout.readline())
                use(line)
                shown, reason = show(line)
                if kind == "reports":
                    # The next but one was made after all runs had ended.
                    wait_for(receiver, len(receiver.reports) + 2)
                time.sleep(1)
                counted = json.loads(show(line, "--json")[0])
            finally:
                process.terminate()
        time.sleep(0.5)
    return {
        "code": process.returncode,
        "ports": [int(line[name].rpartition(":")[2]) for name in ("attested", "public", "grpc")
                  if line[name]],
        "caveats": line["caveats"],
        "receiver": receiver.port,
        "reports": receiver.reports,
        "shown": shown,
        "reason": reason,
        "counted": counted,
        "packets": sniffer.seen,
    }  # fmt: skip


def wait_for(receiver, count):
    """Wait until so many reports came."""
    ends = time.monotonic() + 30
    while len(receiver.reports) < count and time.monotonic() < ends:
        time.sleep(0.1)


def leak():
    """Look a name up and call somebody; return what was seen of it."""
    with Sniffer() as sniffer:
        with contextlib.suppress(OSError), socket.create_connection(("192.0.2.1", 443), 0.3):
            pass
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
            query.sendto(b"\0" * 20, ("192.0.2.53", 53))
        time.sleep(0.5)
    return {"packets": sniffer.seen}


if __name__ == "__main__":
    open_network()
    if sys.argv[1] == "leaks":
        found = leak()
    else:
        with tempfile.TemporaryDirectory() as name:
            found = observe(sys.argv[1], Path(name))
    print(json.dumps(found))
