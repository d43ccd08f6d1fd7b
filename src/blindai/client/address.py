"""Where a server, or a proxy on the way to it, is.

Always true: whatever is parsed here can stand in an HTTP header as it is, and nothing comes
from the environment unless the caller asks for it.

Specification: RFC 3986 §3.2 (host and port); RFC 9110 §9.3.6 (CONNECT).
"""

from __future__ import annotations

import base64
import ipaddress
import re
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from blindai.errors import ConfigurationError

DEFAULT_PORT: Final = 50051
UNATTESTED_PORT: Final = 50052
_MAX_PORT: Final = 65535
_HOST: Final = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}\.?)*")
_DIGITS: Final = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port.

    Attributes:
        host: A name in ASCII, an IPv4 address, or an IPv6 address without brackets.
        port: 1 to 65535.
    """

    host: str
    port: int

    @property
    def authority(self) -> str:
        """Host and port as they stand in a URL and in the Host header."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return self.authority


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy that tunnels by CONNECT; it sees ciphertext only.

    Attributes:
        address: Where it is.
        authorization: The Proxy-Authorization header's value, or `None`.
    """

    address: Address
    authorization: str | None = field(default=None, repr=False)


def parse_address(text: str) -> Address:
    """Read "host", "host:port", "https://host:port" or "[::1]:port".

    Args:
        text: The port is 50051 where none is given.

    Raises:
        ConfigurationError: If it is anything else.
    """
    scheme, separator, rest = text.strip().rpartition("://")
    if separator and scheme.lower() != "https":
        msg = f"expected https://host:port or host:port, found {scheme}://: BlindAI speaks TLS only"
        raise ConfigurationError(msg)
    return _parse_authority(rest.removesuffix("/"), f"server address {text!r}", DEFAULT_PORT)


def parse_proxy(text: str) -> Proxy:
    """Read "http://host:port", with "user:password@" before the host where it is needed.

    Raises:
        ConfigurationError: If it is anything else; proxies are spoken to in plain HTTP,
            which hides nothing from them and shows them nothing but ciphertext.
    """
    try:
        parts = urlsplit(text.strip())
    except ValueError as error:
        msg = "the proxy is no URL: expected http://host:port"
        raise ConfigurationError(msg) from error
    if parts.scheme != "http" or parts.path not in {"", "/"} or parts.query or parts.fragment:
        msg = f"expected the proxy as http://host:port, found another form ({parts.scheme!r})"
        raise ConfigurationError(msg)
    credentials, at, authority = parts.netloc.rpartition("@")
    basic = base64.b64encode(unquote(credentials).encode()).decode()
    return Proxy(_parse_authority(authority, "proxy", 80), f"Basic {basic}" if at else None)


def proxy_from_environment(address: Address) -> Proxy | None:
    """Return the proxy that HTTPS_PROXY, ALL_PROXY and NO_PROXY name for `address`."""
    # Only who asks for it pays for importing it.
    from urllib import request  # noqa: PLC0415

    named = request.getproxies_environment()
    found = named.get("https") or named.get("all")
    # Documented, but unknown to typeshed.
    bypass: Any = vars(request)["proxy_bypass_environment"]
    if not found or bypass(address.authority, named):
        return None
    return parse_proxy(found if "://" in found else f"http://{found}")


def _parse_authority(text: str, what: str, default_port: int) -> Address:
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        wrong = not bracket or (port and not port.startswith(":")) or not _is_ipv6(host)
        port = port[1:]
    elif _is_ipv6(text):
        host, port, wrong = text, "", False
    else:
        host, colon, port = text.partition(":")
        host = _to_ascii(host)
        wrong = not _HOST.fullmatch(host) or (bool(colon) and not port)
    if wrong or (port and not _DIGITS.fullmatch(port)):
        msg = f"{what}: expected host:port, such as localhost:50051 or [::1]:50051"
        raise ConfigurationError(msg)
    number = int(port) if port else default_port
    if not 0 < number <= _MAX_PORT:
        msg = f"{what}: expected a port from 1 to {_MAX_PORT}, found {number}"
        raise ConfigurationError(msg)
    return Address(host, number)


def _to_ascii(host: str) -> str:
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        return ""


def _is_ipv6(host: str) -> bool:
    try:
        # A zone ("%eth0") has no place in a Host header.
        return "%" not in host and ipaddress.ip_address(host).version == 6  # noqa: PLR2004
    except ValueError:
        return False
