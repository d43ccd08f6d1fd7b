"""Through a real HTTP proxy (tinyproxy) by CONNECT: it carries bytes and learns nothing.

The SDK and each common HTTP library reach the attested port through the proxy with the same
pinned SSLContext.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time

import aiohttp
import httpx
import numpy as np
import pytest
import requests
import urllib3
from requests.adapters import HTTPAdapter

import blindai
from blindai.testing import start_server
from tests.cli.conftest import tiny_model

pytestmark = [
    pytest.mark.skipif(shutil.which("tinyproxy") is None, reason="needs tinyproxy-bin (apt)"),
    pytest.mark.filterwarnings("ignore::blindai.SimulationWarning"),
]


@pytest.fixture(scope="module")
def server():
    with start_server(models={"tiny": tiny_model()}) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    """Run tinyproxy on a free port and return its address."""
    folder = tmp_path_factory.mktemp("proxy")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "log"
    (folder / "conf").write_text(
        f'Port {port}\nListen 127.0.0.1\nTimeout 20\nAllow 127.0.0.1\nLogFile "{log}"\n'
        "LogLevel Connect\n"
    )
    process = subprocess.Popen(["tinyproxy", "-d", "-c", folder / "conf"])
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "tinyproxy does not start"
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}", log
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def client(server, proxy):
    address, _ = proxy
    with blindai.connect(server.address, simulation=True, proxy=address) as connected:
        yield connected


def test_sdk(client, proxy):
    """The SDK verifies and runs through the proxy, which sees CONNECT only."""
    result = client.run_model("tiny", {"x": np.ones((1, 4), np.float32)})
    np.testing.assert_array_equal(result["y"], [[2, 2, 2, 2]])
    text = proxy[1].read_text()
    assert "CONNECT" in text
    assert "tiny" not in text.replace("tinyproxy", "")
    assert "evidence" not in text


def test_httpx(client, proxy):
    """Httpx with the pinned context."""
    with httpx.Client(verify=client.ssl_context, proxy=proxy[0]) as http:
        assert http.get(f"{client.url}/v2").json()["name"] == "blindai"


async def test_aiohttp(client, proxy):
    """Aiohttp with the pinned context."""
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{client.url}/v2", ssl=client.ssl_context, proxy=proxy[0]) as answer,
    ):
        assert (await answer.json())["name"] == "blindai"


def test_urllib3(client, proxy):
    """urllib3 with the pinned context: the certificate names the host."""
    with urllib3.ProxyManager(
        proxy[0], ssl_context=client.ssl_context, assert_hostname=False
    ) as http:
        assert http.request("GET", f"{client.url}/v2").json()["name"] == "blindai"


def test_requests(client, proxy):
    """requests, through an adapter that passes the pinned context on."""

    class Pinned(HTTPAdapter):
        def proxy_manager_for(self, *arguments, **options):
            options |= {"ssl_context": client.ssl_context, "assert_hostname": False}
            return super().proxy_manager_for(*arguments, **options)

        def cert_verify(self, connection, *_):
            connection.cert_reqs = "CERT_REQUIRED"

    with requests.Session() as http:
        http.mount("https://", Pinned())
        answer = http.get(f"{client.url}/v2", proxies={"https": proxy[0]})
        assert answer.json()["name"] == "blindai"


def test_another_server_behind_the_proxy_is_refused(client, proxy):
    """A proxy that leads to another server: the pinned handshake fails."""
    with (
        start_server() as other,
        httpx.Client(verify=client.ssl_context, proxy=proxy[0]) as http,
        pytest.raises(httpx.ConnectError, match=r"(?i)certificate"),
    ):
        http.get(f"https://{other.address}/v2")
