"""`blindai policy`: write, check, import, compare and sign policies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import click

from blindai.attestation.draft import BANNER, diff_policies, explain_policy
from blindai.attestation.legacy import import_policy
from blindai.attestation.policy import Policy
from blindai.attestation.signed import SUFFIX, load_private_key, sign_policy
from blindai.cli.files import read_bounded, write_file
from blindai.cli.options import json_option
from blindai.client.inspection import draft_from_server
from blindai.errors import ConfigurationError, PolicyError

_COLOURS: Final = {"accepts": "green", "note": None, "warning": "yellow"}
_DIFFERENT: Final = 1
_output_option = click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write to this file, which must not exist yet, instead of standard output.",
)


@click.group()
def policy() -> None:
    """Write, check, import, compare and sign policies: what a client accepts."""


@policy.command("from-server")
@click.argument("server", metavar="HOST:PORT")
@click.option("--proxy", metavar="URL", help="HTTP proxy to go through (CONNECT).")
@_output_option
def from_server(server: str, *, proxy: str | None, output: Path | None) -> None:
    """Write a policy that accepts exactly what the server at HOST:PORT shows now.

    The evidence is verified, so the hardware is genuine; whether the code is what you want
    is for you to find out. It proves nothing by itself.
    """
    _write(BANNER + draft_from_server(server, proxy=proxy).to_toml(), output)


@policy.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def check(file: Path, *, as_json: bool) -> None:
    """Explain in plain words what the policy in FILE accepts, and what it leaves open."""
    loaded = Policy.load(file)
    findings = explain_policy(loaded)
    if as_json:
        listed = [{"level": f.level, "where": f.where, "text": f.text} for f in findings]
        click.echo(json.dumps({"policy": loaded.digest.hex(), "findings": listed}))
        return
    for finding in findings:
        level = click.style(f"{finding.level:>8}", fg=_COLOURS[finding.level])
        click.echo(f"{level}  {finding.where}: {finding.text}")
    click.echo(f"\npolicy {loaded.digest.hex()}")


@policy.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@_output_option
def import_(file: Path, *, output: Path | None) -> None:
    """Turn the policy.toml or manifest.toml of BlindAI 0.5 or 0.6 into a policy."""
    try:
        text = read_bounded(file).decode()
    except UnicodeDecodeError as error:
        msg = f"{file} is not UTF-8 text"
        raise PolicyError(msg) from error
    _write(import_policy(text).to_toml(), output)


@policy.command()
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
def diff(old: Path, new: Path) -> None:
    """Show what the policies OLD and NEW accept differently; exit code 1 if anything."""
    lines = diff_policies(Policy.load(old), Policy.load(new))
    for line in lines:
        click.secho(line, fg="red" if line.startswith("-") else "green")
    if lines:
        raise click.exceptions.Exit(_DIFFERENT)


@policy.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--key",
    required=True,
    type=click.Path(path_type=Path),
    help="Ed25519 private key in PEM, as `openssl genpkey -algorithm ed25519` writes it.",
)
def sign(file: Path, *, key: Path) -> None:
    """Sign the policy in FILE; writes FILE.sig, which clients check with --policy-key."""
    Policy.load(file)  # nothing that would be refused later is signed
    signature = sign_policy(read_bounded(file), load_private_key(key))
    target = file.with_name(file.name + SUFFIX)
    write_file(target, signature)
    click.echo(f"wrote {target}")


def _write(text: str, output: Path | None) -> None:
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        with output.open("x") as file:
            file.write(text)
    except OSError as error:
        msg = f"cannot write {output}: {error.strerror}"
        raise ConfigurationError(msg) from error
    click.echo(f"wrote {output}")
