"""`blindai evidence`: verify raw evidence of one platform, for auditors. No policy is applied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from blindai.attestation.model import Platform
from blindai.attestation.steps import StepName, Steps
from blindai.attestation.trust import VENDOR_ROOTS
from blindai.cli.files import parse_time, read_bounded
from blindai.cli.options import json_option
from blindai.cli.verify import claims_to_json, print_steps
from blindai.errors import AttestationError, BindingError, ConfigurationError
from blindai.platforms import ASSEMBLERS, VERIFIERS

if TYPE_CHECKING:
    from blindai.attestation.model import Claims

_FILES_STEP: Final = StepName("files", "The files have the form of the platform's evidence")
_NONCE_STEP: Final = StepName("nonce", "The hardware signed the nonce that was given")
_NO_POLICY: Final = (
    "No policy was applied: this says that the hardware is genuine, not what it runs is good."
)


@click.command()
@click.argument("platform", type=click.Choice([str(p) for p in ASSEMBLERS]))
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--with",
    "extras",
    metavar="FILE",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Collateral, certificates, revocation lists or event logs, in any order.",
)
@click.option("--at", metavar="RFC3339", help="The moment to verify at; by default now.")
@click.option("--nonce", metavar="TEXT|hex:…", help="What the hardware has to have signed along.")
@click.option("--explain", is_flag=True, help="Show what each step compared, and its manual.")
@json_option
def evidence(
    platform: str,
    file: Path,
    *,
    extras: tuple[Path, ...],
    at: str | None,
    nonce: str | None,
    explain: bool,
    as_json: bool,
) -> None:
    """Verify the evidence in FILE as it came from hardware of PLATFORM.

    A vendor's root counts only by its pinned fingerprint. Exit code 0 and the claims where
    the evidence is authentic, 3 and the failed step where it is not.
    """
    now = parse_time(at)
    expected = _parse_nonce(nonce)
    contents = [read_bounded(path) for path in (file, *extras)]
    kind = Platform(platform)
    nonce_steps = [] if expected is None else [_NONCE_STEP]
    steps = Steps([_FILES_STEP, *VERIFIERS[kind].STEPS, *nonce_steps])
    try:
        with steps.take("files"):
            shown, ignored = ASSEMBLERS[kind](contents[0], contents[1:])
        claims = VERIFIERS[kind].verify(shown, anchors=VENDOR_ROOTS[kind], now=now, steps=steps)
        if expected is not None:
            _check_nonce(claims, expected, steps)
    except AttestationError as error:
        _show_refusal(error, steps, platform, explain=explain, as_json=as_json)
        raise click.exceptions.Exit(3) from error
    names = [str(extras[index]) for index in ignored]
    if as_json:
        document = {
            "authentic": True,
            "platform": platform,
            **claims_to_json(claims),
            "not_after": claims.not_after.isoformat() if claims.not_after else None,
            "steps": [step.to_json() for step in steps.taken],
            "ignored": names,
            "policy": None,
        }
        click.echo(json.dumps(document))
        return
    print_steps(steps.taken, explain=explain)
    _print_claims(claims)
    for name in names:
        click.echo(f"not needed, ignored: {name}")
    click.secho(f"\nAUTHENTIC: {platform} evidence, verified as of {now.isoformat()}.", fg="green")
    click.echo(_NO_POLICY)


def _parse_nonce(text: str | None) -> bytes | None:
    if text is None or not text.startswith("hex:"):
        return None if text is None else text.encode()
    try:
        return bytes.fromhex(text.removeprefix("hex:"))
    except ValueError as error:
        msg = f"--nonce: expected hexadecimal digits after hex:, found {text!r}"
        raise ConfigurationError(msg) from error


def _check_nonce(claims: Claims, expected: bytes, steps: Steps) -> None:
    with steps.take("nonce") as step:
        found = claims.report_data
        step.compare("signed data", expected=expected, found=found)
        # Platforms with a field of fixed size fill it with zeros.
        if found[: len(expected)] != expected or any(found[len(expected) :]):
            msg = f"the hardware signed {found.hex()}, not the nonce {expected.hex()}"
            raise BindingError(msg)


def _show_refusal(
    error: AttestationError, steps: Steps, platform: str, *, explain: bool, as_json: bool
) -> None:
    if as_json:
        document = {
            "authentic": False,
            "platform": platform,
            "error": str(error),
            "type": type(error).__name__,
            "steps": [step.to_json() for step in steps.taken],
        }
        click.echo(json.dumps(document))
        return
    print_steps(steps.taken, explain=explain)
    click.secho(f"\nNOT AUTHENTIC  {type(error).__name__}: {error}", fg="red", err=True)


def _print_claims(claims: Claims) -> None:
    click.echo()
    for name, value in claims.measurements.items():
        text = f"  ({value.decode()})" if value.isascii() and value.decode().isprintable() else ""
        click.echo(f"{name:<20} {value.hex()}{text}")
    for name, version in claims.versions.items():
        click.echo(f"{name:<20} {version}")
    click.echo(f"{'report_data':<20} {claims.report_data.hex()}")
    weaknesses = ", ".join(sorted(claims.weaknesses)) or "none"
    click.secho(f"{'weaknesses':<20} {weaknesses}", fg="yellow" if claims.weaknesses else None)
