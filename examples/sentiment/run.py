"""Two people who do not trust the operator: one owns the model, the other the tweets.

Both verify the server first. The first uploads the model; the second sends tweets to exactly those
weights and gets their sentiment. Everything is compared with onnxruntime in this process.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

import blindai

mpl.use("agg")
import matplotlib.pyplot as plt  # after the choice of where to draw

BUILD = Path(__file__).parent / "build"
BATCH = 20
OWN = (
    "I love how quiet this car is!",
    "They cancelled my flight again and nobody answers the phone.",
    "The nurse was so kind, thank you all.",
    "I am never coming back to this place.",
)


def main() -> None:
    """Upload the model, send it the tweets, and draw and write down what came back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--policy", default=BUILD / "policy.toml", type=Path)
    parser.add_argument("--token-file", default=BUILD / "token", type=Path)
    arguments = parser.parse_args()
    upload(arguments.server, arguments.token_file.read_text().strip())

    kept = json.loads((BUILD / "tweets.json").read_text())
    texts = [tweet["text"] for tweet in kept] + list(OWN)
    labels = np.array([tweet["label"] for tweet in kept])
    inputs = tokenize(texts)
    with blindai.connect(arguments.server, policy=arguments.policy) as client:
        answers = client.run_many("sentiment", inputs)
        positive = np.concatenate([answer["positive"][:, 0] for answer in answers])

    session = onnxruntime.InferenceSession(BUILD / "models/sentiment.onnx")
    plain = np.concatenate([session.run(None, batch)[0][:, 0] for batch in inputs])
    accuracy = float(((positive[: len(labels)] > 0.5) == labels).mean())
    plain_accuracy = float(((plain[: len(labels)] > 0.5) == labels).mean())
    for text, probability in zip(OWN, positive[len(labels) :], strict=True):
        print(f"{probability:5.2f} positive: {text}")
    draw(positive[: len(labels)], labels, accuracy)
    difference = float(np.abs(positive - plain).max())
    proved = (
        f"accuracy {accuracy:.3f} on {len(labels)} tweets kept from training, "
        f"{plain_accuracy:.3f} in plain onnxruntime, outputs at most {difference:.1g} apart"
    )
    result = {
        "proved": proved,
        "accuracy": accuracy,
        "plain_accuracy": plain_accuracy,
        "difference": difference,
    }
    (BUILD / "result.json").write_text(json.dumps(result))
    print(proved)


def upload(server: str, token: str) -> None:
    """Send the model, as its owner, who pins no weights because they bring them."""
    with blindai.connect(server, simulation=True, token=token) as client:
        info = client.upload_model(BUILD / "models/sentiment.onnx", replace=True, progress=False)
    print(f"uploaded {info.name} sha256:{info.sha256[:12]}… to {server}")


def tokenize(texts: list[str]) -> list[dict[str, np.ndarray]]:
    """Return the model's inputs, int64[batch, words], for each BATCH of texts."""
    tokenizer = Tokenizer.from_file(str(BUILD / "tokenizer.json"))
    inputs = []
    for start in range(0, len(texts), BATCH):
        encoded = tokenizer.encode_batch(texts[start : start + BATCH])
        mask = np.array([e.attention_mask for e in encoded], np.int64)
        ids = np.array([e.ids for e in encoded], np.int64)
        inputs.append(
            {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}
        )
    return inputs


def draw(positive: np.ndarray, labels: np.ndarray, accuracy: float) -> None:
    """Draw how sure the model was of the tweets of each label."""
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    bins = np.linspace(0, 1, 21)
    axes.hist(positive[labels == 0], bins, alpha=0.65, color="#c0392b", label="negative tweets")
    axes.hist(positive[labels == 1], bins, alpha=0.65, color="#27ae60", label="positive tweets")
    axes.axvline(0.5, color="black", linewidth=0.8)
    axes.set(xlabel="probability of positive, from the enclave", ylabel="tweets")
    axes.set_title(f"{len(labels)} tweets, accuracy {accuracy:.3f}")
    axes.legend(frameon=False)
    figure.savefig(BUILD / "shown.png", dpi=110)


if __name__ == "__main__":
    main()
