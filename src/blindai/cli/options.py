"""Options that several commands share, and the client that they describe."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

import blindai

if TYPE_CHECKING:
    from collections.abc import Callable

TOKEN_VARIABLE: Final = "BLINDAI_TOKEN"  # noqa: S105 - the name of a variable, no secret


@dataclass(frozen=True, slots=True)
class Target:
    """Which server to talk to, and what to accept of it.

    Attributes:
        server: "host:port" of the attested port.
        policy: Path of a policy file; `None`: none given.
        simulation: Whether simulation is asked for by name.
        proxy: Address of an HTTP proxy to reach the server through.
        timeout: Seconds for each request.
    """

    server: str
    policy: str | None
    simulation: bool
    proxy: str | None
    timeout: float

    def connect(self, token: str | None = None) -> blindai.Client:
        """Verify the server and return a client that talks to it alone."""
        return blindai.connect(
            self.server,
            policy=self.policy,
            simulation=self.simulation,
            proxy=self.proxy,
            timeout=self.timeout,
            token=token,
        )


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what to accept, and pass them on as one `target`."""

    @click.option("--policy", type=click.Path(), help="Policy file: what to accept (TOML).")
    @click.option(
        "--simulation",
        is_flag=True,
        help="Accept a server that no hardware protects. For tests only.",
    )
    @click.option("--proxy", metavar="URL", help="HTTP proxy to go through (CONNECT).")
    @click.option(
        "--timeout",
        type=click.FloatRange(min=0.001),
        default=60.0,
        help="Seconds a request may take.",
    )
    @functools.wraps(command)
    def wrapped(
        *args: Any,
        server: str,
        policy: str | None,
        simulation: bool,
        proxy: str | None,
        timeout: float,
        **kwargs: Any,
    ) -> Any:
        target = Target(server, policy, simulation, proxy, timeout)
        return command(*args, target=target, **kwargs)

    return wrapped


server_option = click.option(
    "--server",
    metavar="HOST:PORT",
    default="localhost:50051",
    show_default=True,
    help="Attested port of the server.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
token_option = click.option(
    "--token",
    envvar=TOKEN_VARIABLE,
    help=f"Token that allows uploads; better in {TOKEN_VARIABLE}, which no process list shows.",
)
