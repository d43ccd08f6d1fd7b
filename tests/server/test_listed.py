"""Models that the configuration names: what has another SHA-256 is not served."""

import contextlib
import hashlib
import http.server
import ssl
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from blindai.channel.tls import create_certificate, pinned_context, server_context
from blindai.errors import ConnectionFailed, InvalidInput, InvalidModel, LimitExceeded
from blindai.inference.engines import load_engine
from blindai.inference.store import ModelStore
from blindai.server.config import ModelToLoad
from blindai.server.listed import load_listed
from tests.inference.models import add

MODEL = add(2.0)
SHA = hashlib.sha256(MODEL).hexdigest()


@pytest.fixture
def store(tmp_path):
    """An empty store for small models."""
    with ModelStore(tmp_path / "store", engine=load_engine("onnx"), max_model_size=5000) as made:
        yield made


@pytest.fixture(scope="module")
def host():
    """A host on https, the port and who trusts it; it has a model, a large file and a redirect."""
    now, key = datetime.now(UTC), ec.generate_private_key(ec.SECP256R1())
    certificate = create_certificate(
        key, names=["localhost"], not_before=now - timedelta(days=1), not_after=now + timedelta(1)
    )

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status = {"/moved": 302, "/gone": 404}.get(self.path, 200)
            body = b"\0" * 100_000 if self.path == "/large" else MODEL
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/model")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):  # the large file is not read to its end
                self.wfile.write(body[: len(body) // 2] if self.path == "/short" else body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("localhost", 0), Handler) as server:
        server.socket = server_context(key, certificate).wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"https://localhost:{server.server_port}", pinned_context(certificate)
        server.shutdown()
        thread.join()


def test_from_a_file(tmp_path, store):
    """A file is served under its name, with or without a SHA-256, if that is right.

    What was not loaded is told by its setting, and not by its name, which is for no log.
    """
    path = tmp_path / "m.onnx"
    path.write_bytes(MODEL)
    models = [
        ModelToLoad(name="a", path=path, sha256=SHA),
        ModelToLoad(name="b", path=path, sha256="00" * 32),
        ModelToLoad(name="c", path=tmp_path / "none"),
        ModelToLoad(name="d", path=path),
    ]
    failed = {str(name): type(error) for name, error in load_listed(models, store)}
    assert failed == {"load.1": InvalidInput, "load.2": InvalidModel}
    assert store.get("a").record.names == ("a", "d")


@pytest.mark.parametrize(
    ("path", "sha256", "error"),
    [
        ("/model", SHA, None),
        ("/model", "00" * 32, InvalidInput),
        ("/large", SHA, LimitExceeded),
        ("/moved", SHA, ConnectionFailed),
        ("/gone", SHA, ConnectionFailed),
        ("/short", SHA, (ConnectionFailed, InvalidInput)),
    ],
)
def test_from_an_address(host, store, path, sha256, error):
    """What comes is bounded, has its SHA-256, and came from where it was asked for."""
    base, context = host
    failed = load_listed(
        [ModelToLoad(name="m", url=base + path, sha256=sha256)], store, context=context
    )
    if error is None:
        assert failed == []
        assert store.get("m").record.sha256 == SHA
    else:
        assert isinstance(failed[0][1], error)
        assert store.records() == []
        assert store.bytes_in_use() == 0


def test_an_untrusted_host(host, store):
    """A host that cannot prove its name gives nothing."""
    base, _ = host
    made = ModelToLoad(name="m", url=f"{base}/model", sha256=SHA)
    ((_, error),) = load_listed([made], store, context=ssl.create_default_context())
    assert isinstance(error, ConnectionFailed)
