"""`blindai telemetry show`: the payload on standard output, and whether it is sent beside it."""

import http.server
import json
import threading

import pytest

from blindai.attestation.model import Platform
from blindai.cli import main
from blindai.server.telemetry import Report
from blindai.testing import start_server
from tests.cli.conftest import tiny_model


def run(capfd, *arguments):
    """Run the command line; return exit code and both outputs."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capfd.readouterr()
    return ended.value.code, out, err


def test_prints_the_bytes_that_would_be_sent(capfd):
    """Standard output has the report and nothing else."""
    with start_server(models={"tiny": tiny_model()}) as server:
        code, out, err = run(capfd, "telemetry", "show", "--server", server.public_address)
        options = ("--json", "--server", server.public_address)
        _, document, _ = run(capfd, "telemetry", "show", *options)
    assert code == 0
    version = json.loads(out)["blindai"]
    assert out == Report(version, Platform.SIMULATION, 0, 0, 1).dump().decode() + "\n"
    assert err == "no endpoint is set: nothing is sent\n"
    assert json.loads(document)["payload"] == json.loads(out)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"not json", "came something else"),
        (200, b'{"enabled": "perhaps"}', "came something else"),
        (200, b"[" * 70_000, "65536 bytes at most"),
        (404, b"{}", "came 404"),
    ],
)
def test_what_is_no_server_is_said(capfd, status, body, words):
    """Another answer than a server's is an error of the network, and is read within a limit."""

    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.handle_request, daemon=True).start()
        address = f"127.0.0.1:{other.server_port}"
        code, out, err = run(capfd, "telemetry", "show", "--server", address)
    assert code == 5
    assert words in err
    assert not out


def test_nobody_there(capfd):
    """Where nothing listens, the error says what was expected there."""
    code, _, err = run(capfd, "telemetry", "show", "--server", "127.0.0.1:1")
    assert code == 5
    assert "expected a server's unattested port" in err
