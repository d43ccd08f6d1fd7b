"""`blindai serve`: run the server until it is told to stop."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from blindai.attestation.model import Platform
from blindai.attesters import Machine, create_attester
from blindai.cli.config import config_option, fetch_keys, load
from blindai.cli.options import json_option
from blindai.endorsements import Endorser, HttpsGet, Stapler
from blindai.errors import ConfigurationError

if TYPE_CHECKING:
    from blindai.server.run import Ready

_TOKEN_FILE_MODE = 0o600


@click.command()
@click.option(
    "--platform",
    help="What makes the evidence; by default the trusted hardware that is found. "
    "simulation protects nothing and has to be named.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=50051,
    show_default=True,
    help="Attested port (TLS that ends in the enclave); 0 picks a free one.",
)
@click.option(
    "--public-port",
    type=click.IntRange(0, 65535),
    default=50052,
    show_default=True,
    help="Unattested port (evidence, health); 0 picks a free one.",
)
@click.option(
    "--grpc-port",
    type=click.IntRange(0, 65535),
    default=50053,
    show_default=True,
    help="Attested port for gRPC, with the same key; 0 picks a free one.",
)
@click.option("--no-grpc", is_flag=True, help="Serve no gRPC.")
@click.option(
    "--models",
    "models",
    type=click.Path(path_type=Path),
    help="Folder of .onnx files to load at start, each under its file name.",
)
@click.option(
    "--sealed-models",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to keep uploaded models in over restarts, sealed so that only this code on this "
    "machine opens them.",
)
@click.option(
    "--gpus", is_flag=True, help="Show evidence of the machine's NVIDIA GPUs beside its own."
)
@click.option(
    "--take-over",
    is_flag=True,
    help="Open --sealed-models with the key that the version before left by `blindai reseal`.",
)
@click.option(
    "--audit-log",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write down in who changes what is served, before they do; "
    "see `blindai audit verify`.",
)
@click.option(
    "--otlp-endpoint",
    metavar="URL",
    help="OpenTelemetry collector to send traces of requests to: http://HOST:PORT. "
    "Needs blindai[otel].",
)
@click.option(
    "--log-level",
    type=click.Choice(["info", "warning", "error"]),
    default="info",
    show_default=True,
    help="The least that is logged, to standard error, as lines of JSON.",
)
@click.option(
    "--prune-after",
    type=click.IntRange(1),
    metavar="DAYS",
    help="Delete uploaded models that nobody ran for so many days.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Rows of different requests that may run together. More than 1 is for callers who "
    "trust whoever made the models; clients see it.",
)
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the upload token to this file (mode 0600) instead of printing it.",
)
@click.option(
    "--tpm",
    metavar="TCTI",
    help="How the TPM is reached; by default the kernel's resource manager, /dev/tpmrm0.",
)
@click.option(
    "--ak-certificates",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Certificate chain (PEM) of the TPM's attestation key, from whoever enrolled it.",
)
@click.option(
    "--fetch-endorsements/--no-fetch-endorsements",
    default=True,
    show_default=True,
    help="Ask the hardware's vendors for what verifies this machine, and show it along.",
)
@click.option(
    "--telemetry-endpoint",
    metavar="URL",
    help="Report version, platform and rough counts there, once a day; by default nowhere. "
    "`blindai telemetry show` prints the report.",
)
@config_option
@json_option
@click.pass_context
def serve(
    context: click.Context, /, *, config_file: Path | None, as_json: bool, **_: object
) -> None:
    """Serve models to clients that verify this machine first.

    Settings come from --config, variables BLINDAI_* and the options here; the later count more.
    Prints one line beginning with `ready` once all ports answer. SIGTERM finishes what
    runs, refuses what comes, and exits with 0. SIGHUP reads API keys, keys of JWTs and
    authorities of client certificates again.
    """
    effective = load(config_file, _flags(context))
    settings = effective.settings
    from blindai.server.access import Access, generate_token  # noqa: PLC0415 - an extra
    from blindai.server.events import log_to  # noqa: PLC0415
    from blindai.server.hardening import confined  # noqa: PLC0415
    from blindai.server.run import run  # noqa: PLC0415
    from blindai.server.settings import access_rules, server_config  # noqa: PLC0415
    from blindai.server.telemetry import Telemetry, choose, post_report  # noqa: PLC0415

    log_to(sys.stderr, settings.log_level)
    attester = create_attester(
        settings.platform, Machine(tpm=settings.tpm, ak_certificates=settings.ak_certificates)
    )
    config = server_config(settings, attester.platform)
    token = settings.token.get_secret_value() if settings.token else generate_token()
    is_told = settings.token is not None or settings.token_file is not None
    access = Access(
        token,
        config.access,
        fetch=fetch_keys,
        reread=lambda: access_rules(settings.access),
    )
    if settings.token_file is not None:
        _write_secret(settings.token_file, token)
    ignored = tuple(f"{name} is set and is no setting" for name in effective.unknown)

    def announce(ready: Ready) -> None:
        ready = replace(ready, caveats=(*ready.caveats, *confinement.caveats, *ignored))
        _announce(ready, attester.platform, None if is_told else token, as_json=as_json)

    telemetry = Telemetry(choose(settings.telemetry_endpoint, os.environ), post_report)
    fetches = settings.fetch_endorsements
    endorser = Endorser(get=HttpsGet() if fetches else None)
    with (
        confined(
            config,
            fetches=fetches or config.fetches,
            tcti=settings.tpm,
            telemetry_port=telemetry.choice.port,
        ) as confinement,
        Stapler(attester, endorser) as stapling,
        access,
    ):
        run(
            confinement.config,
            stapling,
            access=access,
            on_ready=announce,
            sandbox=confinement.sandbox,
            telemetry=telemetry,
        )


def _flags(context: click.Context) -> dict[str, object]:
    """Return what was said on the command line, by the names of settings."""
    said = {
        name: value
        for name, value in context.params.items()
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        and name not in {"config_file", "as_json"}
    }
    if "no_grpc" in said:
        said["grpc"] = not said.pop("no_grpc")
    return said


def _announce(ready: Ready, platform: Platform, token: str | None, *, as_json: bool) -> None:
    attested, public = (_address(*each) for each in (ready.address, ready.public_address))
    grpc = None if ready.grpc_address is None else _address(*ready.grpc_address)
    failed = [{"file": str(file), "error": str(error)} for file, error in ready.failed]
    if as_json:
        line: dict[str, object] = {"event": "ready", "attested": attested, "public": public}
        line |= {"grpc": grpc}
        line |= {"platform": str(platform), "simulated": platform is Platform.SIMULATION}
        line |= {"failed": failed, "caveats": list(ready.caveats)}
        click.echo(json.dumps(line | ({"token": token} if token else {})))
        return
    for each in failed:
        click.secho(f"not loaded: {each['file']}: {each['error']}", fg="red", err=True)
    if platform is Platform.SIMULATION:
        click.secho("SIMULATION: no hardware protects the data. For tests only.", fg="yellow")
    for caveat in ready.caveats:
        click.secho(caveat, fg="yellow", err=True)
    if token:
        click.echo(f"token for uploads and deletions (shown once): {token}")
    click.echo(f"ready attested={attested} public={public}" + (f" grpc={grpc}" if grpc else ""))


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _write_secret(path: Path, secret: str) -> None:
    try:
        # Never through a link, and never readable by others, not even for a moment.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, _TOKEN_FILE_MODE)
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(descriptor, _TOKEN_FILE_MODE)
            file.write(secret + "\n")
    except OSError as error:
        msg = f"--token-file: cannot write {path}: {error.strerror}"
        raise ConfigurationError(msg) from error
