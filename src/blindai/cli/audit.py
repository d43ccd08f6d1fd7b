"""`blindai audit verify`: whether an audit log is as a server wrote it."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from blindai.audit import verify_audit_log
from blindai.cli.options import json_option, load_policy, policy_options
from blindai.cli.verify import error_to_json, print_steps, result_to_json
from blindai.errors import AttestationError, ConfigurationError

if TYPE_CHECKING:
    from blindai.audit import AuditResult

_NOT_VERIFIED: Final = 3
_DIGEST: Final = re.compile(r"(sha256:)?([0-9a-f]{64})")


@click.group()
def audit() -> None:
    """Audit logs: who changed what a server serves."""


@audit.command()
@click.argument("file", type=click.Path(path_type=Path))
@policy_options
@click.option(
    "--head",
    metavar="SHA256",
    help="A head that was printed before: the line that has it must still be there.",
)
@json_option
def verify(
    file: Path,
    *,
    policy: str | None,
    policy_key: Path | None,
    simulation: bool,
    head: str | None,
    as_json: bool,
) -> None:
    """Verify the audit log in FILE, offline, and print its head.

    Names the first line that differs and exits with 3. Lines that were taken away at the end
    leave a log that is whole: keep the head that is printed, and pass it as --head next time.
    """
    accepted = load_policy(policy, policy_key, simulation=simulation)
    match = None if head is None else _DIGEST.fullmatch(head.lower())
    if head is not None and match is None:
        msg = "--head: expected a SHA-256 in hexadecimal"
        raise ConfigurationError(msg)
    known = None if match is None else match[2]
    try:
        with file.open("rb") as lines:
            result = verify_audit_log(lines, accepted, now=datetime.now(UTC), head=known)
    except AttestationError as error:
        _show_refusal(error, as_json=as_json)
        raise click.exceptions.Exit(_NOT_VERIFIED) from error
    except OSError as error:
        msg = f"{file}: {error.strerror}"
        raise ConfigurationError(msg) from error
    if as_json:
        click.echo(json.dumps(_to_json(result, is_judged=accepted is not None)))
    else:
        _print(result, is_judged=accepted is not None, knew=known is not None)


def _show_refusal(error: AttestationError, *, as_json: bool) -> None:
    if as_json:
        document = {"error": str(error), "type": type(error).__name__, **error_to_json(error)}
        click.echo(json.dumps(document))
        return
    print_steps(error.steps)
    click.secho(f"DIFFERS  {error}", fg="red", err=True)


def _print(result: AuditResult, *, is_judged: bool, knew: bool) -> None:
    if not is_judged:
        head, color = "WHOLE  nobody vouches for who signed it: say --policy FILE", "yellow"
    elif result.simulated:
        head, color = "WHOLE  SIMULATED: no hardware protected the keys that signed it", "yellow"
    else:
        head, color = "VERIFIED  every line is as the attested server wrote it", "green"
    click.secho(head, fg=color, bold=True)
    click.echo(f"entries: {result.head.entries}")
    click.echo(f"head:    {result.head.sha256}")
    if result.open:
        numbers = ", ".join(map(str, result.open))
        click.echo(f"begun, and nobody wrote how it ended: {numbers}")
    if result.torn:
        click.echo(f"cut short: {result.torn} bytes at the end are no entry")
    if not knew:
        click.echo("Whether lines were taken away at the end shows only with --head SHA256.")


def _to_json(result: AuditResult, *, is_judged: bool) -> dict[str, Any]:
    return {
        "whole": True,
        "verified": is_judged and not result.simulated,
        "simulated": result.simulated,
        "entries": result.head.entries,
        "head": result.head.sha256,
        "open": list(result.open),
        "torn": result.torn,
        "keys": [result_to_json(each) for each in result.results],
    }
