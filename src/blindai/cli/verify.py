"""`blindai verify`: is this server what it should be? Says so step by step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import blindai
from blindai.attestation.interop import to_cmw, to_ear
from blindai.attestation.signed import load_private_key
from blindai.attestation.stored import StoredEvidence
from blindai.cli.files import parse_time, read_bounded, write_file
from blindai.cli.options import Target, json_option, target_options
from blindai.errors import AppraisalError, AttestationError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from blindai.attestation.model import AttestationResult, Claims

_COLOURS = {"passed": "green", "failed": "red", "skipped": "yellow"}


_file = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("server", metavar="HOST:PORT", default="localhost:50051")
@target_options
@click.option("--explain", is_flag=True, help="Show what each step compared, and its manual.")
@click.option("--save", type=_file, help="Keep what the server showed, to verify it again.")
@click.option("--bundle", type=_file, help="Verify what --save kept, without a network.")
@click.option("--at", metavar="RFC3339", help="With --bundle: the moment to verify at.")
@click.option("--ear", type=_file, help="Write the result as an EAT Attestation Result (JWT).")
@click.option("--ear-key", type=_file, help="With --ear: Ed25519 key (PEM) of whoever vouches.")
@click.option("--cmw", type=_file, help="Write the evidence as a CMW record (RFC 9999, CBOR).")
@json_option
def verify(
    target: Target,
    *,
    explain: bool,
    save: Path | None,
    bundle: Path | None,
    at: str | None,
    ear: Path | None,
    ear_key: Path | None,
    cmw: Path | None,
    as_json: bool,
) -> None:
    """Verify the server at HOST:PORT against a policy, and send it nothing else."""
    if (ear is None) != (ear_key is None):
        msg = "--ear and --ear-key belong together: somebody has to vouch for the result"
        raise ConfigurationError(msg)
    if bundle is not None:
        result, shown = _verify_stored(target, bundle, parse_time(at))
    elif at is not None:
        msg = "--at belongs to --bundle: a server that answers now is verified now"
        raise ConfigurationError(msg)
    else:
        with target.connect(token=None) as client:
            result, shown = client.attestation, client.evidence
    if save is not None:
        write_file(save, shown.dump())
    if cmw is not None:
        write_file(cmw, to_cmw(shown.bundle))
    if ear is not None and ear_key is not None:
        version = blindai.__version__
        token = to_ear(result, load_private_key(ear_key), developer="BlindAI", build=version)
        write_file(ear, token.encode())
    if as_json:
        click.echo(json.dumps(result_to_json(result)))
        return
    print_steps(result.steps, explain=explain)
    click.echo()
    click.secho(verdict(result), fg="yellow" if result.simulated else "green", bold=True)
    for line in str(result).splitlines()[1:]:
        click.echo(line)


def _verify_stored(
    target: Target, path: Path, now: datetime
) -> tuple[AttestationResult, StoredEvidence]:
    policy = target.load_policy()
    if policy is None:
        msg = "--bundle: say what to accept with --policy FILE or --simulation"
        raise ConfigurationError(msg)
    shown = StoredEvidence.parse(read_bounded(path))
    result = blindai.verify(
        shown.bundle,
        policy,
        nonce=shown.nonce,
        now=now,
        peer_certificate=shown.peer_certificate,
    )
    return result, shown


def verdict(result: AttestationResult) -> str:
    """Return the one line that says what the verification came to."""
    if result.simulated:
        return "SIMULATED: every step passed, but no hardware protects this server. For tests only."
    return f"VERIFIED: genuine {result.platform} hardware, accepted by your policy."


def print_steps(steps: Sequence[Any], *, explain: bool = False, err: bool = False) -> None:
    """Print one line for each step, and with `explain` what it compared."""
    for step in steps:
        status = click.style(f"{step.status:>7}", fg=_COLOURS[step.status])
        detail = f"  ({step.detail})" if step.detail and step.status != "failed" else ""
        click.echo(f"{status}  {step.name:<12} {step.title}{detail}", err=err)
        if step.status == "failed":
            click.echo(f"{'':>9}{step.detail}", err=err)
        if not explain:
            continue
        if step.reference:
            click.echo(f"{'':>9}see {step.reference}", err=err)
        for what, expected, found in step.compared:
            click.echo(f"{'':>9}{what}: expected {expected}", err=err)
            click.echo(f"{'':>9}{'':>{len(what)}}     found {found}", err=err)


def result_to_json(result: AttestationResult) -> dict[str, Any]:
    """Return what `--json` prints for a server that was accepted."""
    return {
        "verified": not result.simulated,
        "simulated": result.simulated,
        "platform": str(result.platform),
        **claims_to_json(result.claims),
        "devices": [
            {"platform": str(device.platform), **claims_to_json(device)}
            for device in result.devices
        ],
        "tolerated": sorted(result.tolerated),
        "endorsements": dict(result.endorsements),
        "policy": result.policy_digest.hex(),
        "keyset": result.keyset_digest.hex(),
        "evidence": result.evidence_digest.hex(),
        "verified_at": result.verified_at.isoformat(),
        "not_after": result.not_after.isoformat(),
        "steps": [step.to_json() for step in result.steps],
    }


def claims_to_json(claims: Claims) -> dict[str, Any]:
    """Return the claims as they appear in `--json` output; bytes in hexadecimal."""
    return {
        "measurements": {name: value.hex() for name, value in claims.measurements.items()},
        "versions": dict(claims.versions),
        "weaknesses": sorted(claims.weaknesses),
        "report_data": claims.report_data.hex(),
        "issued_at": claims.issued_at.isoformat() if claims.issued_at else None,
    }


def error_to_json(error: AttestationError) -> dict[str, Any]:
    """Return what `--json` prints for a server that was refused."""
    document: dict[str, Any] = {"verified": False, "steps": []}
    document["steps"] = [step.to_json() for step in error.steps]  # type: ignore[attr-defined]
    if isinstance(error, AppraisalError):
        document["mismatches"] = [str(mismatch) for mismatch in error.mismatches]
    return document
