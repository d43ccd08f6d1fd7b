"""Search private notes by meaning, on a machine that may know neither notes nor questions.

The enclave turns texts into vectors; vectors and notes stay here, and so does the search. All is
compared with onnxruntime in this process.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

import blindai

if TYPE_CHECKING:
    from collections.abc import Callable

mpl.use("agg")
import matplotlib.pyplot as plt  # after the choice of where to draw

HERE = Path(__file__).parent
BUILD = HERE / "build"


def main() -> None:
    """Embed notes and questions, search, and draw and write down what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--policy", default=HERE / "policy.toml", type=Path)
    arguments = parser.parse_args()
    content = tomllib.loads((HERE / "notes.toml").read_text())
    notes, questions = content["notes"], content["questions"]
    asked = [question["text"] for question in questions]
    with blindai.connect(arguments.server, policy=arguments.policy) as client:
        found = search(notes, asked, lambda inputs: client.run_model("minilm", inputs)[0])
    session = onnxruntime.InferenceSession(BUILD / "models/minilm.onnx")
    plain = search(notes, asked, lambda inputs: session.run(None, inputs)[0])

    best = found.argmax(1)
    for question, note in zip(asked, best, strict=True):
        print(f"{question}\n    {notes[note]}")
    result = {
        "right": int(sum(best == [question["note"] for question in questions])),
        "questions": len(asked),
        "same_order": bool((found.argsort(1) == plain.argsort(1)).all()),
        "difference": float(np.abs(found - plain).max()),
    }
    result["proved"] = (
        f"{result['right']} of {len(asked)} questions find their note first, all notes in plain "
        f"onnxruntime's order, similarities at most {result['difference']:.1g} apart"
    )
    draw(notes, asked, found)
    (BUILD / "result.json").write_text(json.dumps(result))
    print(result["proved"])


def search(
    notes: list[str], questions: list[str], run: Callable[[dict[str, np.ndarray]], np.ndarray]
) -> np.ndarray:
    """Return how alike each question and each note are, float32[questions, notes]."""
    return embed(questions, run) @ embed(notes, run).T


def embed(texts: list[str], run: Callable[[dict[str, np.ndarray]], np.ndarray]) -> np.ndarray:
    """Return a vector of length 1 for each text, float32[texts, 384]."""
    tokenizer = Tokenizer.from_file(str(BUILD / "tokenizer.json"))
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(texts)
    mask = np.array([e.attention_mask for e in encoded], np.int64)
    ids = np.array([e.ids for e in encoded], np.int64)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}
    weights = mask[:, :, None].astype(np.float32)
    mean = (run(inputs) * weights).sum(1) / weights.sum(1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def draw(notes: list[str], questions: list[str], found: np.ndarray) -> None:
    """Draw how alike each question and each note are."""
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    image = axes.imshow(found, cmap="viridis", vmin=0)
    axes.set_xticks(range(len(notes)), [note[:22] + "…" for note in notes], rotation=40, ha="right")
    axes.set_yticks(range(len(questions)), questions)
    axes.tick_params(labelsize=7)
    for row, column in enumerate(found.argmax(1)):
        axes.text(column, row, "x", ha="center", va="center", color="white")
    figure.colorbar(image, label="similarity", shrink=0.7)
    figure.savefig(BUILD / "shown.png", dpi=90)


if __name__ == "__main__":
    main()
