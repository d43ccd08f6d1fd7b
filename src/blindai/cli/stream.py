"""`blindai stream`: a model in a loop on a verified server, its results as they are made."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from blindai.cli.arrays import arrays_to_json, load_input, summary
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
    from collections.abc import Iterable

    from blindai.client.results import Result


@click.command()
@click.argument("name")
@click.option(
    "--input",
    "inputs",
    metavar="NAME=FILE.npy",
    multiple=True,
    help="An input of the first step; state that is left out begins as zeros.",
)
@click.option(
    "--state",
    "states",
    metavar="INPUT=OUTPUT",
    multiple=True,
    help="An input that takes the value of an output in the next step.",
)
@click.option(
    "--greedy",
    "tokens",
    metavar="INPUT=OUTPUT",
    multiple=True,
    help="An input of tokens that takes the position of the greatest score.",
)
@click.option(
    "--grow", metavar="INPUT", multiple=True, help="An input that gets one more 1, as masks do."
)
@click.option(
    "--count", metavar="INPUT", multiple=True, help="An input that counts up, as positions do."
)
@click.option("--stop", type=int, multiple=True, help="A token that ends the loop.")
@click.option("--max-steps", type=click.IntRange(1), required=True, help="At the most.")
@click.option(
    "--show",
    metavar="NAME",
    multiple=True,
    help="What to show of each step; by default tokens, or the outputs that are no state.",
)
@server_option
@target_options
@token_option
@json_option
def stream(
    name: str,
    *,
    inputs: tuple[str, ...],
    states: tuple[str, ...],
    tokens: tuple[str, ...],
    grow: tuple[str, ...],
    count: tuple[str, ...],
    stop: tuple[int, ...],
    max_steps: int,
    show: tuple[str, ...],
    target: Target,
    token: str | None,
    as_json: bool,
) -> None:
    """Run the model NAME in a loop on a verified server, and print each step as it is made.

    With --json there is one line for each step, and a last one that says why the loop ended.
    """
    tensors = dict(load_input(argument) for argument in inputs)
    state, greedy = _pairs("--state", states), _pairs("--greedy", tokens)
    steps = 0
    with target.connect(token) as client:
        mark_simulation(client.attestation, as_json=as_json)
        results = client.stream(
            name,
            tensors,
            max_steps=max_steps,
            state=state,
            greedy=greedy,
            grow=grow,
            count=count,
            stop=stop,
            outputs=show or None,
        )
        try:
            while True:
                _print_step(next(results), steps, as_json=as_json)
                steps += 1
        except StopIteration as ended:
            reason = str(ended.value)
    if as_json:
        click.echo(json.dumps({"final": True, "reason": reason, "steps": steps}))
    else:
        click.echo(f"ended after {steps} steps: {reason}")


def _pairs(option: str, arguments: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for argument in arguments:
        name, separator, output = argument.partition("=")
        if not separator or not name or not output or name in found:
            msg = f"{option}: expected INPUT=OUTPUT, each input once, found {argument!r}"
            raise ConfigurationError(msg)
        found[name] = output
    return found


def _print_step(result: Result, step: int, *, as_json: bool) -> None:
    arrays = dict(result)
    if as_json:
        document = {
            "step": step,
            "sha256": result.model_sha256,
            "outputs": arrays_to_json(arrays),
        }
        click.echo(json.dumps(document))
        return
    for key, array in arrays.items():
        click.echo(summary(key, array))
