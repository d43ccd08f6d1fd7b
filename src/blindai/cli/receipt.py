"""`blindai receipt verify`: what a server signed, verified offline, as of when it signed it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np

from blindai.channel.receipt_file import ReceiptFile
from blindai.cli.options import json_option, load_policy, policy_options
from blindai.cli.verify import error_to_json, print_steps, result_to_json
from blindai.errors import AttestationError, ConfigurationError
from blindai.receipt import verify_receipt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blindai.channel.statement import Statement, TensorDigest
    from blindai.receipt import ReceiptResult

_FILE: Final = click.Path(path_type=Path)
_NOT_VERIFIED: Final = 3


@click.group()
def receipt() -> None:
    """Receipts: signed statements of what a server ran or took in."""


@receipt.command()
@click.argument("file", type=_FILE)
@policy_options
@click.option("--index", type=int, help="Which receipt of the file, from 0; by default all.")
@click.option(
    "--input",
    "inputs",
    metavar="NAME=FILE.npy|FILE",
    multiple=True,
    help="An input tensor, in the order of the receipt; or the request's body as it was sent.",
)
@click.option(
    "--output",
    "outputs",
    metavar="NAME=FILE.npy|FILE.npz|FILE",
    multiple=True,
    help="An output tensor, all of them (.npz), or the answer's body as it was sent.",
)
@click.option("--model", type=_FILE, help="The model's file.")
@click.option("--nonce", metavar="HEX", help="What the client sent along.")
@click.option("--explain", is_flag=True, help="Show what each step compared, and its manual.")
@json_option
def verify(
    file: Path,
    *,
    policy: str | None,
    policy_key: Path | None,
    simulation: bool,
    index: int | None,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    model: Path | None,
    nonce: str | None,
    explain: bool,
    as_json: bool,
) -> None:
    """Verify the receipts in FILE, offline, and compare them with what you hold.

    Evidence and endorsements are verified as of the receipt's time. That is the server's
    clock, inside the TEE. Exit code 0 where all is as stated, 3 where anything differs.
    """
    accepted = load_policy(policy, policy_key, simulation=simulation)
    if accepted is None:
        msg = "receipt verify: say what to accept with --policy FILE or --simulation"
        raise ConfigurationError(msg)
    held: dict[str, Any] = {"model": model, "nonce": _parse_nonce(nonce)}
    held["inputs"], held["request"] = _load_held("input", inputs)
    held["outputs"], held["response"] = _load_held("output", outputs)
    compares = any(value is not None for value in held.values())
    now = datetime.now(UTC)
    try:
        shown = ReceiptFile.load(file)
        # What is held belongs to one receipt: which one has to be said where there are several.
        alone = index is not None or compares
        indices = [index] if alone else list(range(len(shown.receipts)))
        results = [verify_receipt(shown, accepted, index=i, now=now, **held) for i in indices]
    except AttestationError as error:
        _show_refusal(error, explain=explain, as_json=as_json)
        raise click.exceptions.Exit(_NOT_VERIFIED) from error
    if as_json:
        click.echo(json.dumps({"receipts": [_to_json(result) for result in results]}))
        return
    for result in results:
        print_steps(result.steps, explain=explain)
        click.echo()
        _print_result(result)


def _parse_nonce(text: str | None) -> bytes | None:
    try:
        return None if text is None else bytes.fromhex(text)
    except ValueError as error:
        msg = "--nonce: expected hexadecimal digits"
        raise ConfigurationError(msg) from error


def _load_held(
    option: str, arguments: Sequence[str]
) -> tuple[dict[str, np.ndarray[Any, Any]] | None, Path | None]:
    """Return the tensors and the body that an option's arguments name; `None`: none."""
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    body: Path | None = None
    for argument in arguments:
        name, separator, path = argument.partition("=")
        found: dict[str, np.ndarray[Any, Any]] = {}
        if separator:
            found = {name: _load_array(option, name, path)}
        elif argument.endswith(".npz"):
            found = _load_archive(option, argument)
        elif body is not None:
            msg = f"--{option}: expected one body at most, came {body} and {argument}"
            raise ConfigurationError(msg)
        else:
            body = Path(argument)
        if twice := set(found) & set(tensors):
            msg = f"--{option}: {', '.join(sorted(twice))} came twice"
            raise ConfigurationError(msg)
        tensors |= found
    return tensors or None, body


def _load_array(option: str, name: str, path: str) -> np.ndarray[Any, Any]:
    try:
        # allow_pickle stays off: a pickle runs code.
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        msg = f"--{option} {name}: {path} is no .npy file that can be read: {error}"
        raise ConfigurationError(msg) from error
    if not isinstance(array, np.ndarray):
        msg = f"--{option} {name}: {path} holds several arrays; expected a .npy file with one"
        raise ConfigurationError(msg)
    return array


def _load_archive(option: str, path: str) -> dict[str, np.ndarray[Any, Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    # A file with one array is none of several.
    except (OSError, ValueError, EOFError, TypeError, AttributeError) as error:
        msg = f"--{option}: {path} is no .npz file that can be read: {error}"
        raise ConfigurationError(msg) from error


def _show_refusal(error: AttestationError, *, explain: bool, as_json: bool) -> None:
    if as_json:
        document = {"error": str(error), "type": type(error).__name__, **error_to_json(error)}
        click.echo(json.dumps(document))
        return
    print_steps(error.steps, explain=explain)
    click.secho(f"\nNOT VERIFIED  {type(error).__name__}: {error}", fg="red", err=True)


def _print_result(result: ReceiptResult) -> None:
    head, *lines = str(result).splitlines()
    click.secho(head, fg="yellow" if result.simulated else "green", bold=True)
    for line in lines:
        click.echo(line)


def _to_json(result: ReceiptResult) -> dict[str, Any]:
    return {
        "verified": not result.simulated,
        "simulated": result.simulated,
        "statement": _statement_to_json(result.statement),
        "compared": list(result.compared),
        "attestation": result_to_json(result.attestation),
        "steps": [step.to_json() for step in result.steps],
    }


def _statement_to_json(stated: Statement) -> dict[str, Any]:
    def tensors(listed: Sequence[TensorDigest]) -> list[dict[str, Any]]:
        return [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "sha256": tensor.sha256.hex(),
            }
            for tensor in listed
        ]

    return {
        "kind": str(stated.kind),
        "model": stated.model_sha256.hex(),
        "form": stated.model_form,
        "inputs": tensors(stated.inputs),
        "outputs": tensors(stated.outputs),
        "request": stated.request_sha256.hex(),
        "response": stated.response_sha256.hex(),
        "nonce": stated.nonce.hex(),
        "time": stated.time.isoformat(),
        "server_version": stated.server_version,
        "platform": str(stated.platform),
        "keyset": stated.keyset_sha256.hex(),
        "evidence": stated.evidence_sha256.hex(),
        "simulated": stated.simulated,
    }
