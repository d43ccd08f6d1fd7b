"""`blindai telemetry`: what a server would tell those who make BlindAI, byte for byte."""

from __future__ import annotations

import http.client
from typing import Final

import click
import msgspec

from blindai.cli.options import json_option
from blindai.client.address import parse_address
from blindai.errors import ConnectionFailed

_SECONDS: Final = 10.0
_MAX_BYTES: Final = 1 << 16
_OK: Final = 200
PATH: Final = "/blindai/v1/telemetry"


class _Shown(msgspec.Struct):
    enabled: bool
    reason: str
    payload: msgspec.Raw


@click.group()
def telemetry() -> None:
    """See what a server reports about itself: by default nothing, to nobody."""


@telemetry.command()
@click.option(
    "--server",
    default="127.0.0.1:50052",
    show_default=True,
    metavar="HOST:PORT",
    help="Unattested port of the server.",
)
@json_option
def show(*, server: str, as_json: bool) -> None:
    """Print exactly what the server would send now; on standard error, whether it is sent at all.

    The server is asked over plain HTTP, which proves nothing about it.
    """
    content = _fetch(server)
    try:
        shown = msgspec.json.decode(content, type=_Shown)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        msg = f"{server}: expected what a server says of telemetry, came something else"
        raise ConnectionFailed(msg) from error
    if as_json:
        click.echo(content)
        return
    click.secho(shown.reason, fg="yellow" if shown.enabled else "green", err=True)
    click.echo(bytes(shown.payload))


def _fetch(server: str) -> bytes:
    address = parse_address(server)
    connection = http.client.HTTPConnection(address.host, address.port, timeout=_SECONDS)
    try:
        connection.request("GET", PATH, headers={"Accept": "application/json"})
        with connection.getresponse() as response:
            content = response.read(_MAX_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        msg = f"{server}: no answer ({type(error).__name__}); expected a server's unattested port"
        raise ConnectionFailed(msg) from error
    finally:
        connection.close()
    if response.status != _OK or len(content) > _MAX_BYTES:
        msg = (
            f"{server}: expected HTTP {_OK} and {_MAX_BYTES} bytes at most, came {response.status}"
        )
        raise ConnectionFailed(msg)
    return content
