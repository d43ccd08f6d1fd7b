"""Put three models where the server finds them, and a photographed page where the client does."""

from __future__ import annotations

import shutil
from pathlib import Path

import rapidocr_onnxruntime
import skimage.data
from PIL import Image

BUILD = Path(__file__).parent / "build"
MODELS = {
    "find-lines": "ch_PP-OCRv4_det_infer.onnx",
    "turn-lines": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "read-lines": "ch_PP-OCRv4_rec_infer.onnx",
}


def main() -> None:
    """Write the models and the page."""
    (BUILD / "models").mkdir(parents=True, exist_ok=True)
    shipped = Path(rapidocr_onnxruntime.__file__).parent / "models"
    for name, file in MODELS.items():
        shutil.copyfile(shipped / file, BUILD / f"models/{name}.onnx")
    Image.fromarray(skimage.data.page()).convert("RGB").save(BUILD / "page.png")
    print(f"{', '.join(MODELS)}, and a page")


if __name__ == "__main__":
    main()
