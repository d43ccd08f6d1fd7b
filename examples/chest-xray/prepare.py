"""Put the model where the server finds it, and pictures where the client finds them.

Without an option the model is COVID-Net's architecture with random weights. With `--model FILE` it
is the one in the file, such as a checkpoint of COVID-Net's authors that was converted to ONNX: it
has to take and give what they do. No X-ray is in any package index: the pictures are drawn here.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import network
import numpy as np
import onnx
from PIL import Image, ImageDraw, ImageFilter

BUILD = Path(__file__).parent / "build"
PICTURES, SIZE = 4, 600
POLICY = """\
version = 1

[[accept]]                # on real hardware: its platform and what it measured
platform = "simulation"
tolerate = ["simulated"]

[models]                  # nothing is sent to other weights
"covidnet" = ["sha256:{sha256}"]
"""


def main() -> None:
    """Write the model, its policy, and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="an ONNX file with weights that were trained")
    parser.add_argument("--into", type=Path, default=BUILD, help="the folder to write to")
    arguments = parser.parse_args()
    for folder in ("models", "pictures"):
        (arguments.into / folder).mkdir(parents=True, exist_ok=True)
    model = network.to_onnx() if arguments.model is None else load(arguments.model)
    path = arguments.into / "models/covidnet.onnx"
    onnx.save(model, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    (arguments.into / "policy.toml").write_text(POLICY.format(sha256=sha256))
    for number in range(1, PICTURES + 1):
        draw(np.random.default_rng(number)).save(arguments.into / f"pictures/drawn-{number}.png")
    weights = "random weights" if arguments.model is None else f"the weights of {arguments.model}"
    print(f"{path.name} {path.stat().st_size:,} bytes, {weights}; {PICTURES} drawn pictures")


def load(path: Path) -> onnx.ModelProto:
    """Return the model in a file, which has to take an X-ray and give three probabilities."""
    model = onnx.load(path)
    onnx.checker.check_model(model)
    given = {tensor.name for tensor in model.graph.initializer}
    takes = [shape(value) for value in model.graph.input if value.name not in given]
    gives = [shape(value) for value in model.graph.output]
    expected = ["float32[n, 480, 480, 3]"], ["float32[n, 3]"]
    if (takes, gives) != expected:
        raise SystemExit(f"{path}: expected {expected[0]} → {expected[1]}, came {takes} → {gives}")
    return model


def shape(value: onnx.ValueInfoProto) -> str:
    """Return an input or output as `float32[n, 3]`, whatever the first axis is called."""
    tensor = value.type.tensor_type
    kind = "float32" if tensor.elem_type == onnx.TensorProto.FLOAT else f"type {tensor.elem_type}"
    sides = [str(axis.dim_value or axis.dim_param or "?") for axis in tensor.shape.dim[1:]]
    return f"{kind}[{', '.join(['n', *sides])}]"


def draw(rng: np.random.Generator) -> Image.Image:
    """Return a drawing of a chest in shades of grey: two lungs, ribs, a heart."""
    image = Image.new("L", (SIZE, SIZE), 20)
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle((40, 60, 560, 640), radius=150, fill=150)
    wide, high = rng.integers(85, 110), rng.integers(160, 190)
    for middle in (185, 415):
        pen.ellipse((middle - wide, 310 - high, middle + wide, 310 + high), fill=55)
    pen.rectangle((285, 60, 315, SIZE), fill=190)
    heart = rng.integers(60, 85)
    pen.ellipse((270, 420 - heart, 270 + 2 * heart, 420 + heart), fill=175)
    for rib in range(8):
        top = 110 + 50 * rib
        for left, start, end in ((70, 185, 290), (290, 250, 355)):
            pen.arc((left, top, left + 240, top + 190), start, end, fill=120, width=9)
    for _ in range(rng.integers(0, 7)):
        x, y, size = rng.integers(130, 460), rng.integers(240, 420), rng.integers(15, 40)
        pen.ellipse((x - size, y - size, x + size, y + size), fill=int(rng.integers(80, 130)))
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(7)), np.float32)
    grainy = blurred + rng.normal(0, 5, blurred.shape)
    return Image.fromarray(np.clip(grainy, 0, 255).astype(np.uint8))


if __name__ == "__main__":
    main()
