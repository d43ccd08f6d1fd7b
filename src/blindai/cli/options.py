"""Options that several commands share, and the client that they describe."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

import blindai
from blindai.attestation.signed import load_public_key
from blindai.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from blindai.attestation.model import AttestationResult

TOKEN_VARIABLE: Final = "BLINDAI_TOKEN"  # noqa: S105 - the name of a variable, no secret


@dataclass(frozen=True, slots=True)
class Target:
    """Which server to talk to, and what to accept of it.

    Attributes:
        server: "host:port" of the attested port.
        policy: Path of a policy file; `None`: none given.
        policy_key: Path of the public key that has to have signed it; `None`: any policy.
        simulation: Whether simulation is asked for by name.
        proxy: Address of an HTTP proxy to reach the server through.
        timeout: Seconds for each request.
    """

    server: str
    policy: str | None
    policy_key: Path | None
    simulation: bool
    proxy: str | None
    timeout: float

    def connect(self, token: str | None) -> blindai.Client:
        """Verify the server and return a client that talks to it alone."""
        return blindai.connect(
            self.server,
            policy=self.load_policy(),
            proxy=self.proxy,
            timeout=self.timeout,
            token=token,
        )

    def load_policy(self) -> blindai.Policy | None:
        """Return the policy that the options name; `None` where they name none.

        Raises:
            ConfigurationError: If they contradict each other.
            PolicyError: If the policy cannot be used, or is not signed by the key given.
        """
        return load_policy(self.policy, self.policy_key, simulation=self.simulation)


def load_policy(
    policy: str | None, policy_key: Path | None, *, simulation: bool
) -> blindai.Policy | None:
    """Return the policy that the options of `policy_options` name; `None` where they name none.

    Raises:
        ConfigurationError: Options that contradict each other.
        PolicyError: If the policy cannot be used, or is not signed by the key given.
    """
    if policy is None and policy_key is not None:
        msg = "--policy-key says who has to have signed the policy: give --policy too"
        raise ConfigurationError(msg)
    if policy is None:
        return blindai.Policy.simulation() if simulation else None
    if simulation:
        msg = "--simulation is a policy of its own: give either it or --policy"
        raise ConfigurationError(msg)
    signed_by = load_public_key(policy_key) if policy_key else None
    return blindai.Policy.load(policy, signed_by=signed_by)


def policy_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what to accept: `policy`, `policy_key` and `simulation`."""
    options = (
        click.option("--policy", type=click.Path(), help="Policy file: what to accept (TOML)."),
        click.option(
            "--policy-key",
            type=click.Path(path_type=Path),
            help="Ed25519 public key (PEM) that has to have signed the policy (FILE.sig).",
        ),
        click.option(
            "--simulation",
            is_flag=True,
            help="Accept a server that no hardware protects. For tests only.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what to accept, and pass them on as one `target`."""

    @policy_options
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
        policy_key: Path | None,
        simulation: bool,
        proxy: str | None,
        timeout: float,
        **kwargs: Any,
    ) -> Any:
        target = Target(server, policy, policy_key, simulation, proxy, timeout)
        return command(*args, target=target, **kwargs)

    return wrapped


def mark_simulation(result: AttestationResult, *, as_json: bool) -> None:
    """Tell a person at a terminal where no hardware protects anything."""
    if result.simulated and not as_json and sys.stderr.isatty():
        click.secho("SIMULATED: no hardware protects this data", fg="yellow", err=True)


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
    help=(
        f"Token, API key or JWT for what is not public; better in {TOKEN_VARIABLE}, which no "
        "process list shows."
    ),
)
