"""The pinned context in other libraries, and everything through a proxy."""

from __future__ import annotations

import aiohttp
import httpx
import numpy as np
import pytest
import requests
import urllib3

import blindai
from tests.client.fakes import ConnectProxy, FakeServer

LIST = "/blindai/v1/models"
CANARY = "canary-5f1e"
ROW = np.array([[1, 2]], np.float32)


@pytest.fixture
def client(connect, server):
    """Return a client of `server`."""
    return connect(server.address)


def by_httpx(client, url):
    with httpx.Client(verify=client.ssl_context, trust_env=False) as http:
        return http.get(url + LIST).json()


def by_urllib3(client, url):
    with urllib3.PoolManager(ssl_context=client.ssl_context, retries=False) as pool:
        return pool.request("GET", url + LIST).json()


class Pinned(requests.adapters.HTTPAdapter):
    """The few lines that a user of requests writes."""

    def __init__(self, context):
        self.context = context
        super().__init__(max_retries=0)

    def init_poolmanager(self, *args, **options):
        super().init_poolmanager(*args, ssl_context=self.context, **options)

    def cert_verify(self, *_):
        """Keep requests from adding public authorities to the pinned certificate."""


def by_requests(client, url):
    with requests.Session() as session:
        session.trust_env = False
        session.mount("https://", Pinned(client.ssl_context))
        return session.get(url + LIST).json()


@pytest.mark.parametrize("fetch", [by_httpx, by_urllib3, by_requests])
def test_other_libraries_reach_the_verified_server_and_no_other(client, server, fetch):
    """The context talks to the attested key, and fails at the handshake with any other."""
    assert fetch(client, client.url)["models"][0]["name"] == "double"
    with FakeServer() as other:
        with pytest.raises((httpx.ConnectError, urllib3.exceptions.HTTPError, OSError)) as caught:
            fetch(client, f"https://{other.address}")
        assert "CERTIFICATE_VERIFY_FAILED" in str(caught.value)
        assert other.requests == []


def test_urllib3_without_names_takes_any_host_with_the_key(client, server):
    """With assert_hostname=False the name plays no part; the key alone decides."""
    with urllib3.PoolManager(
        ssl_context=client.ssl_context, retries=False, assert_hostname=False
    ) as pool:
        answer = pool.request("GET", f"https://localhost:{server.port}{LIST}")
    assert answer.json()["models"][0]["name"] == "double"


async def test_aiohttp_reaches_the_verified_server_and_no_other(server):
    """The same holds for aiohttp."""
    with pytest.warns(blindai.SimulationWarning):
        async with blindai.AsyncClient(server.address, simulation=True) as client:
            context, url = client.ssl_context, client.url
    async with aiohttp.ClientSession() as session:
        async with session.get(url + LIST, ssl=context) as answer:
            assert (await answer.json())["models"][0]["name"] == "double"
        with FakeServer() as other:
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await session.get(f"https://{other.address}{LIST}", ssl=context)
            assert other.requests == []


def test_everything_goes_through_a_proxy_that_sees_ciphertext(connect, server):
    """Evidence, runs and uploads go through CONNECT; names and data never in the clear."""
    server.sha256 = "55" * 32
    with ConnectProxy() as proxy:
        client = connect(server.address, proxy=proxy.url)
        client.upload_model(CANARY.encode() * 1000, CANARY)
        result = client.run_model("double", ROW)
        np.testing.assert_array_equal(result["y"], ROW * 2)
        client.close()
        assert set(proxy.targets) == {server.address}
        assert len(proxy.seen) > 10_000
        assert CANARY.encode() not in proxy.seen
        assert b"infer" not in proxy.seen
    assert any(CANARY.encode() in body for _, _, _, body in server.requests)


def test_a_proxy_that_wants_a_password(connect, server):
    """Credentials in the proxy's URL reach the proxy, and are not in the error without them."""
    with ConnectProxy("Basic dXNlcjpzZWNyZXQ=") as proxy:
        with pytest.raises(blindai.ConnectionFailed, match="407"):
            connect(server.address, proxy=proxy.url)
        client = connect(server.address, proxy=proxy.url.replace("http://", "http://user:secret@"))
        assert client.run_model("double", ROW).model == "double"


def test_other_libraries_through_the_proxy(client, server):
    """Httpx and requests tunnel through the same proxy with the same context."""
    with ConnectProxy() as proxy:
        with httpx.Client(verify=client.ssl_context, proxy=proxy.url, trust_env=False) as http:
            assert http.get(client.url + LIST).status_code == 200
        with urllib3.ProxyManager(proxy.url, ssl_context=client.ssl_context) as pool:
            assert pool.request("GET", client.url + LIST).status == 200
        with requests.Session() as session:
            session.trust_env = False
            session.mount("https://", ThroughProxy(client.ssl_context))
            answer = session.get(client.url + LIST, proxies={"https": proxy.url})
            assert answer.status_code == 200
        assert b"double" not in proxy.seen


class ThroughProxy(Pinned):
    """As `Pinned`, for the pool that requests makes for a proxy."""

    def proxy_manager_for(self, *args, **options):
        return super().proxy_manager_for(*args, ssl_context=self.context, **options)


def test_the_environment_is_not_asked_unless_told_to(connect, server, monkeypatch):
    """HTTPS_PROXY counts with `trust_env=True` only."""
    with ConnectProxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        connect(server.address).models()
        assert proxy.targets == []
        connect(server.address, trust_env=True).models()
        assert proxy.targets


def test_a_proxy_that_is_not_there(connect, server):
    """The error names the proxy, which is what could not be reached."""
    with pytest.raises(blindai.ConnectionFailed, match=r"through the proxy 127\.0\.0\.1:1"):
        connect(server.address, proxy="http://127.0.0.1:1")
