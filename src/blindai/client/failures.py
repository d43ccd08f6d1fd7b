"""What a failed connection means, in words that say what to do.

Always true: an error is `BindingError` only where the peer shows the attested certificate
without holding its key. Everything else on the way to a server may be bad luck.
"""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING, Final

from blindai.client.address import UNATTESTED_PORT
from blindai.errors import BindingError, BlindAIError, ConnectionFailed

if TYPE_CHECKING:
    from blindai.client.address import Address, Proxy

# OpenSSL's names for "these bytes are no TLS record".
_NOT_TLS: Final = frozenset(
    {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"}
)
_OLD_TLS: Final = frozenset(
    {
        "UNSUPPORTED_PROTOCOL",
        "TLSV1_ALERT_PROTOCOL_VERSION",
        "VERSION_TOO_LOW",
        "NO_PROTOCOLS_AVAILABLE",
    }
)
_STOLEN: Final = frozenset({"BAD_SIGNATURE"})


def explain(
    error: OSError | UnicodeError, address: Address, proxy: Proxy | None, timeout: float
) -> BlindAIError:
    """Return the error that a user sees for one that a socket raised.

    Args:
        error: As it came.
        address: Of the server that was to be reached.
        proxy: On the way, or `None`.
        timeout: Seconds that were allowed.
    """
    tried = f"{address}" if proxy is None else f"{address} through the proxy {proxy.address}"
    if isinstance(error, ssl.SSLError) and error.reason in _STOLEN:
        msg = (
            f"{tried} shows the attested certificate but does not hold its key: somebody "
            "stands between you and the enclave"
        )
        return BindingError(msg)
    return ConnectionFailed(_reason(error, address, tried, timeout))


def _reason(error: OSError | UnicodeError, address: Address, tried: str, timeout: float) -> str:
    match error:
        case socket.gaierror() | UnicodeError():
            reason = f"cannot find the address of {tried}: is the name right?"
        case TimeoutError():
            reason = f"no answer from {tried} within {timeout:g} s"
        case ConnectionRefusedError():
            reason = f"nothing listens at {tried}: is the server running, and is the port right?"
        case ssl.SSLError(reason=why) if why in _NOT_TLS:
            advice = "expected the attested port, by default 50051"
            if address.port == UNATTESTED_PORT:
                advice = f"{UNATTESTED_PORT} is by default the unattested port; try 50051"
            reason = f"{tried} does not speak TLS; is it the unattested port? {advice}"
        case ssl.SSLError(reason=why) if why in _OLD_TLS:
            reason = f"{tried} does not speak TLS 1.3, and nothing older is used"
        case ConnectionError() | ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            reason = f"{tried} closed the connection before it answered"
        case ssl.SSLError():
            reason = f"the TLS connection to {tried} failed: {error.reason or type(error).__name__}"
        case _:
            reason = f"cannot reach {tried}: {error.strerror or type(error).__name__}"
    return reason
