"""`blindai upload`, `run`, `models`, `delete`: what a client does with a verified server."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from blindai.attestation.policy import Policy
from blindai.cli.arrays import arrays_to_json, load_input, summary
from blindai.cli.files import write_file
from blindai.cli.options import (
    Target,
    json_option,
    mark_simulation,
    server_option,
    target_options,
    token_option,
)
from blindai.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from blindai.client.results import ModelInfo
    from blindai.inference.tensors import TensorSpec

# Of a TPM, and of a simulation; not "ak" and the like, which are the machine's.
_OF_CODE = ("pcr", "measurement")


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", help="Name of the model; by default that of the file.")
@click.option("--replace", is_flag=True, help="Replace other weights of the same name.")
@click.option("--engine", type=click.Choice(["onnx", "openvino"]), help="What is to run it.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "int8", "auto"]),
    help="Of its arithmetic; fp32: as the file says. auto: the fastest within --tolerance.",
)
@click.option(
    "--tolerance", type=float, help="Of auto: largest error as a fraction of the largest output."
)
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    help="Rows of different requests that may run together.",
)
@server_option
@target_options
@token_option
@json_option
def upload(
    file: Path,
    *,
    name: str | None,
    replace: bool,
    engine: str | None,
    precision: str | None,
    tolerance: float | None,
    max_batch: int | None,
    target: Target,
    token: str | None,
    as_json: bool,
) -> None:
    """Upload the ONNX model FILE to a verified server."""
    with target.connect(token) as client:
        info = client.upload_model(
            file,
            name=name or file.stem,
            replace=replace,
            progress=False if as_json else None,
            engine=engine,
            precision=precision,
            tolerance=tolerance,
            max_batch=max_batch,
        )
        mark_simulation(client.attestation, as_json=as_json)
    if as_json:
        click.echo(json.dumps(_info_to_json(info)))
    else:
        click.echo(f"uploaded {info.name}  sha256:{info.sha256}  {info.size:,} bytes")
        if info.deviation is not None:
            click.echo(
                f"runs on {info.engine} in {info.precision}; on random inputs its outputs are off "
                f"by {info.deviation:.2g} of the largest element"
            )


@click.command()
@click.argument("name")
@click.option(
    "--input",
    "inputs",
    metavar="NAME=FILE.npy",
    multiple=True,
    required=True,
    help="An input tensor; once for each input of the model.",
)
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write outputs to FILE.npz."
)
@server_option
@target_options
@token_option
@json_option
def run(
    name: str,
    *,
    inputs: tuple[str, ...],
    output: Path | None,
    target: Target,
    token: str | None,
    as_json: bool,
) -> None:
    """Run the model NAME on a verified server."""
    tensors = dict(load_input(argument) for argument in inputs)
    with target.connect(token) as client:
        result = client.run_model(name, tensors)
        arrays = dict(result)
        mark_simulation(client.attestation, as_json=as_json)
    if output is not None:
        write_file(output, _to_npz(arrays))
    if as_json:
        outputs = arrays_to_json(arrays)
        click.echo(json.dumps({"model": name, "sha256": result.model_sha256, "outputs": outputs}))
        return
    for key, array in arrays.items():
        click.echo(summary(key, array))
    if output is not None:
        click.echo(f"wrote {output}")


@click.command()
@server_option
@target_options
@token_option
@json_option
def models(target: Target, *, token: str | None, as_json: bool) -> None:
    """List the models of a verified server that the token lets one see."""
    with target.connect(token) as client:
        infos = client.models()
        mark_simulation(client.attestation, as_json=as_json)
    if as_json:
        click.echo(json.dumps([_info_to_json(info) for info in infos]))
        return
    if not infos:
        click.echo("no models; upload one with: blindai upload FILE --name NAME")
    for info in infos:
        click.echo(str(info))


@click.command()
@click.argument("name")
@server_option
@target_options
@token_option
@json_option
def delete(name: str, *, target: Target, token: str | None, as_json: bool) -> None:
    """Delete the model NAME from a verified server."""
    with target.connect(token) as client:
        client.delete_model(name)
    click.echo(json.dumps({"deleted": name}) if as_json else f"deleted {name}")


@click.command()
@click.option(
    "--next",
    "next_policy",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Policy file of the next code, as `blindai measure` writes it.",
)
@click.option("--withdraw", is_flag=True, help="Take back what was left for any other code.")
@server_option
@target_options
@token_option
@json_option
def reseal(
    next_policy: Path | None, *, withdraw: bool, target: Target, token: str | None, as_json: bool
) -> None:
    """Let the server's next version open the models that this version sealed.

    The server that runs now leaves the models' key for code with the measurements of the policy
    file, and for no other; it goes on as before. The next version, started with --take-over, seals
    the models anew under keys of its own. With --withdraw the server that runs now does that, so
    that what it left opens nothing any more.
    """
    if withdraw == (next_policy is not None):
        msg = "expected either --next or --withdraw"
        raise click.UsageError(msg)
    if next_policy is None:
        with target.connect(token) as client:
            client.withdraw_handover()
            mark_simulation(client.attestation, as_json=as_json)
        text = "sealed anew: no other code can open the models"
        click.echo(json.dumps({"withdrawn": True}) if as_json else text)
        return
    measurements = _measurements_of(next_policy)
    with target.connect(token) as client:
        client.hand_over(measurements)
        mark_simulation(client.attestation, as_json=as_json)
    listed = sorted(measurements)
    text = json.dumps({"handed_over_to": {n: measurements[n].hex() for n in listed}})
    click.echo(text if as_json else f"handed over to code with this {', '.join(listed)}")


def _measurements_of(path: Path) -> dict[str, bytes]:
    """Return the measurements of code that a policy pins to one value each."""
    policy = Policy.load(path)
    if len(policy.accept) != 1:
        count = len(policy.accept)
        msg = f"{path}: expected one [[accept]] block, which is the next code, came {count}"
        raise ConfigurationError(msg)
    found = policy.accept[0].measurements
    exact = {
        name: patterns[0].value
        for name, patterns in found.items()
        if name.startswith(_OF_CODE) and len(patterns) == 1 and patterns[0].pins
    }
    if not exact:
        came = ", ".join(found) or "none"
        msg = f"{path}: expected PCRs or a measurement, each pinned to one value, came {came}"
        raise ConfigurationError(msg)
    return exact


def _info_to_json(info: ModelInfo) -> dict[str, Any]:
    def specs(listed: Sequence[TensorSpec]) -> list[dict[str, Any]]:
        return [
            {"name": s.name, "datatype": str(s.datatype), "shape": list(s.oip_shape)}
            for s in listed
        ]

    return {
        "name": info.name,
        "sha256": info.sha256,
        "size": info.size,
        "inputs": specs(info.inputs),
        "outputs": specs(info.outputs),
        "engine": info.engine,
        "precision": info.precision,
        "deviation": info.deviation,
        "loaded_at": info.loaded_at.isoformat() if info.loaded_at else None,
    }


def _to_npz(arrays: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **dict(arrays))  # type: ignore[arg-type]
    return buffer.getvalue()
