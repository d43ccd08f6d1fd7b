"""Addresses of servers and proxies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.client.address import (
    Address,
    parse_address,
    parse_proxy,
    proxy_from_environment,
)
from blindai.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost", "localhost", 50051),
        ("example.org:443", "example.org", 443),
        ("https://example.org:443/", "example.org", 443),
        ("https://example.org", "example.org", 50051),
        ("HTTPS://10.0.0.1:1", "10.0.0.1", 1),
        ("[::1]:65535", "::1", 65535),
        ("[::1]", "::1", 50051),
        ("::1", "::1", 50051),
        ("https://[2001:db8::7]:8443", "2001:db8::7", 8443),
        ("bücher.example:1", "xn--bcher-kva.example", 1),
    ],
)
def test_reads_what_people_write(text, host, port):
    """Each usual spelling of a server's address is understood."""
    assert parse_address(text) == Address(host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":50051",
        "host:",
        "host:0",
        "host:65536",
        "host:x",
        "host:\u0661",
        "host:1:2",
        "http://host:50051",
        "ftp://host",
        "user@host:1",
        "host/path",
        "host:1/path",
        "host:1?x",
        "[::1",
        "[::1]1",
        "[host]:1",
        "[fe80::1%eth0]:1",
        "ho st:1",
        "host\r\nX: y:1",
        "-host:1",
        "a" * 300,
    ],
)
def test_refuses_everything_else(text):
    """What could not stand in a Host header, or would not be TLS, is a ConfigurationError."""
    with pytest.raises(ConfigurationError):
        parse_address(text)


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_refused(text):
    """Any text gives an address that survives a round trip, or a ConfigurationError."""
    try:
        address = parse_address(text)
    except ConfigurationError:
        return
    assert parse_address(address.authority) == address


@given(st.text(max_size=60).map(lambda text: f"http://{text}"))
def test_any_text_is_a_proxy_or_refused(text):
    """Any text gives a proxy or a ConfigurationError."""
    try:
        proxy = parse_proxy(text)
    except ConfigurationError:
        return
    assert proxy.address.authority.isascii()


def test_proxy_credentials_become_a_header_and_are_not_shown():
    """User and password are decoded, sent as Basic, and kept out of the repr."""
    proxy = parse_proxy("http://user:p%40ss@proxy.example:3128")
    assert proxy.address == Address("proxy.example", 3128)
    assert proxy.authorization == "Basic dXNlcjpwQHNz"
    assert "dXNl" not in repr(proxy)


@pytest.mark.parametrize(
    "text", ["proxy:3128", "https://proxy:3128", "socks5://proxy:1", "http://"]
)
def test_only_http_proxies_are_known(text):
    """Other kinds of proxy are refused instead of being spoken to in the wrong protocol."""
    with pytest.raises(ConfigurationError):
        parse_proxy(text)


def test_environment_proxy_is_read_only_where_it_applies(monkeypatch):
    """HTTPS_PROXY counts unless NO_PROXY names the host."""
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:8080")
    monkeypatch.setenv("NO_PROXY", "inside.example")
    outside = proxy_from_environment(Address("outside.example", 50051))
    assert outside is not None
    assert outside.address == Address("proxy.example", 8080)
    assert proxy_from_environment(Address("inside.example", 50051)) is None
