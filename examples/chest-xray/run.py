"""Have chest X-rays read by a model that its owner keeps, on a machine that belongs to neither.

Pictures are cut and scaled here, as the authors of COVID-Net do it, and go out as 480 by 480
pixels; three probabilities come back. Everything is compared with onnxruntime in this process.
With the random weights of `prepare.py` the probabilities mean nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import onnxruntime
from PIL import Image

import blindai

mpl.use("agg")
import matplotlib.pyplot as plt  # after the choice of where to draw

BUILD = Path(__file__).parent / "build"
SIDE = 480
TOP = 0.08  # of a picture: letters are there, and what they say must not count
FINDINGS = ("normal", "pneumonia", "COVID-19")


def main() -> None:
    """Send each picture, and draw and write down what came back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--policy", default=BUILD / "policy.toml", type=Path)
    arguments = parser.parse_args()
    images = {p.stem: cut(Image.open(p)) for p in sorted((BUILD / "pictures").glob("*.png"))}
    with blindai.connect(arguments.server, policy=arguments.policy) as client:
        found = np.concatenate([client.run_model("covidnet", x)[0] for x in images.values()])
    session = onnxruntime.InferenceSession(BUILD / "models/covidnet.onnx")
    name = session.get_inputs()[0].name
    plain = np.concatenate([session.run(None, {name: x})[0] for x in images.values()])

    is_random = session.get_modelmeta().producer_name == "random weights"
    remark = (
        "random weights, so no claim about what they say" if is_random else "weights of your own"
    )
    result = {
        "findings": found.tolist(),
        "same_findings": bool((found.argmax(1) == plain.argmax(1)).all()),
        "difference": float(np.abs(found - plain).max()),
        "apart": float(np.ptp(found, axis=0).max()),
    }
    result["proved"] = (
        f"{len(found)} pictures of {SIDE} by {SIDE} pixels, each with the three probabilities of "
        f"plain onnxruntime, at most {result['difference']:.1g} apart; {remark}"
    )
    draw(images, found, remark)
    (BUILD / "result.json").write_text(json.dumps(result))
    print(result["proved"])


def cut(image: Image.Image) -> np.ndarray:
    """Return the square in the middle of a picture without its top, float32[1, 480, 480, 3]."""
    image = image.convert("RGB").crop((0, int(TOP * image.height), image.width, image.height))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE))
    return np.asarray(image, np.float32)[None] / 255


def draw(images: dict[str, np.ndarray], found: np.ndarray, remark: str) -> None:
    """Draw the pictures, with the probabilities that came back."""
    figure, axes = plt.subplots(1, len(images), figsize=(8, 2.9), layout="constrained")
    for place, (name, image), probabilities in zip(axes, images.items(), found, strict=True):
        place.imshow(image[0])
        lines = [f"{f} {p:.3f}" for f, p in zip(FINDINGS, probabilities, strict=True)]
        place.set_title(name, fontsize=9)
        place.set_xlabel("\n".join(lines), fontsize=8)
        place.set(xticks=[], yticks=[])
    figure.suptitle(remark, fontsize=9)
    figure.savefig(BUILD / "shown.png", dpi=70)


if __name__ == "__main__":
    main()
