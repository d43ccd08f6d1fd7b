"""Put the model where the server finds it, and the conversation where the client finds it."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

BUILD = Path(__file__).parent / "build"


def main() -> None:
    """Write the model, half a minute of two people talking, and when each of them spoke."""
    (BUILD / "models").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(
        package("silero_vad") / "data/silero_vad_16k_op15.onnx", BUILD / "models/silero-vad.onnx"
    )
    sample = package("pyannote") / "audio/sample"
    shutil.copyfile(sample / "sample.wav", BUILD / "conversation.wav")
    shutil.copyfile(sample / "sample.rttm", BUILD / "conversation.rttm")
    print("silero-vad.onnx and a conversation of 30 s")


def package(name: str) -> Path:
    """Return an installed package's folder without importing it: both would import PyTorch."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{name} is not installed: make examples NAMES=voice-activity")
    return Path(next(iter(spec.submodule_search_locations)))


if __name__ == "__main__":
    main()
