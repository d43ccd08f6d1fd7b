"""`blindai doctor`: what this machine can do, what is missing, and how to get it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blindai.attesters import Finding, Machine, probe
from blindai.attesters.kernel import Survey, survey
from blindai.cli.options import json_option

if TYPE_CHECKING:
    from collections.abc import Sequence

_MARK = {True: "yes", False: "no"}


@click.command()
@click.option(
    "--tpm",
    metavar="TCTI",
    help="How the TPM is reached, such as device:/dev/tpmrm0 (the default).",
)
@click.option(
    "--root",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    default="/",
    help="Look below this folder instead of /.",
    hidden=True,
)
@json_option
def doctor(tpm: str | None, root: Path, *, as_json: bool) -> None:
    """Say which trusted hardware this machine has, and what is missing.

    Looks at devices, permissions, firmware and the kernel; changes nothing, sends nothing.
    Exits with 0 also where there is no hardware: simulation works anywhere.
    """
    machine = Machine(root=root, tpm=tpm)
    findings, shown = probe(machine), survey(root)
    if as_json:
        click.echo(json.dumps(_to_json(findings, shown)))
        return
    _print_findings(findings)
    _print_survey(shown)


def _to_json(findings: Sequence[Finding], shown: Survey) -> dict[str, Any]:
    kernel = asdict(shown)
    kernel["devices"] = [device | {"path": str(device["path"])} for device in kernel["devices"]]
    return {
        "platforms": [asdict(finding) | {"details": dict(finding.details)} for finding in findings],
        "kernel": kernel,
    }


def _print_findings(findings: Sequence[Finding]) -> None:
    for finding in findings:
        color = "green" if finding.available else None
        click.secho(f"{finding.platform:<11} {_MARK[finding.available]}", fg=color, bold=True)
        click.echo(f"  looked for  {finding.looked_for}")
        click.echo(f"  found       {finding.found}")
        for name, value in finding.details.items():
            click.echo(f"  {name}: {value}")
        if finding.advice:
            click.echo(f"  to get it   {finding.advice}")
    click.secho(f"{'simulation':<11} yes", bold=True)
    click.echo("  protects nothing; for tests: blindai serve --platform simulation")


def _print_survey(shown: Survey) -> None:
    click.secho("\nkernel", bold=True)
    click.echo(f"  release     {shown.release or 'unknown'}")
    click.echo(f"  processor   {shown.processor or 'unknown'}")
    click.echo(f"  flags       {' '.join(shown.flags) or 'none about trusted hardware'}")
    for option in shown.options:
        click.echo(f"  {option.name:<24} {option.state:<19} for {option.needed_for}")
    click.secho("\ndevices", bold=True)
    for device in shown.devices:
        use = "usable" if device.usable else "no permission"
        click.echo(f"  {device.mode} {device.owner:<7} {device.path} ({use})")
    if not shown.devices:
        click.echo("  none of trusted hardware")
