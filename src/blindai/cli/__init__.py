"""The command line. Each command is one function in the module of its subject.

Every command takes `--json`; without it, output is for a person. Errors go to standard
error, and the exit code says whose turn it is (`EXIT_CODES`).
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import TYPE_CHECKING, Final

import click

from blindai.cli import (
    audit,
    config,
    demo,
    doctor,
    evidence,
    keys,
    measure,
    models,
    policy,
    receipt,
    serve,
    stream,
    telemetry,
    verify,
)
from blindai.confinement.environment import start_again
from blindai.errors import (
    AccessDenied,
    AttestationError,
    BlindAIError,
    ConfigurationError,
    ConnectionFailed,
    InferenceError,
    SecurityWarning,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["EXIT_CODES", "main"]

EXIT_CODES: Final[dict[type[BlindAIError], int]] = {
    ConfigurationError: 2,
    AttestationError: 3,
    InferenceError: 4,
    AccessDenied: 4,
    ConnectionFailed: 5,
}
INTERRUPTED: Final = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="blindai")
def cli() -> None:
    """Confidential inference: private data in, prediction out, through a verified enclave.

    Exit codes: 0 done, 2 your settings, 3 do not trust this server, 4 the request was
    refused, 5 the network (may be retried).
    """


for _command in (
    serve.serve,
    config.config,
    telemetry.telemetry,
    keys.keys,
    verify.verify,
    evidence.evidence,
    policy.policy,
    measure.measure,
    models.upload,
    models.run,
    stream.stream,
    models.models,
    models.delete,
    models.reseal,
    receipt.receipt,
    audit.audit,
    doctor.doctor,
    demo.demo,
):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the code of what happened."""
    if arguments is None:
        arguments = sys.argv[1:]
        if arguments[:1] == ["serve"]:
            start_again("blindai", arguments)
    arguments = list(arguments)
    # A person sees what was asked for in the output itself; the SDK's warnings are for code.
    warnings.simplefilter("ignore", SecurityWarning)
    try:
        code = cli.main(args=arguments, prog_name="blindai", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.exit(1)
    except BlindAIError as error:
        _show_error(error, as_json="--json" in arguments)
        sys.exit(exit_code(error))
    sys.exit(code or 0)  # what a command gave to click's Exit


def exit_code(error: BlindAIError) -> int:
    """Return the exit code for an error: that of its nearest class in `EXIT_CODES`."""
    for kind in type(error).__mro__:
        if kind in EXIT_CODES:
            return EXIT_CODES[kind]
    return 1


def _show_error(error: BlindAIError, *, as_json: bool) -> None:
    if as_json:
        document = {"error": str(error), "type": type(error).__name__}
        if isinstance(error, AttestationError):
            document |= verify.error_to_json(error)
        click.echo(json.dumps(document))
    elif isinstance(error, AttestationError) and error.steps:
        verify.print_steps(error.steps, err=True)
        click.secho(f"\nNOT VERIFIED  {type(error).__name__}: {error}", fg="red", err=True)
        click.echo("Nothing but the request for evidence was sent.", err=True)
    else:
        click.secho(f"{type(error).__name__}: {error}", fg="red", err=True)
