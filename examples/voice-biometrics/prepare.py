"""Write the network of voices as ONNX, and put recordings where the client finds them.

Five sentences of one reader of LibriVox are in Debian's package `pocketsphinx-testdata`; it is
fetched and unpacked into `build/`, never installed. Where there is no apt that reader is missing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import wave
from pathlib import Path

import network
import onnx

BUILD = Path(__file__).parent / "build"
POLICY = """\
version = 1

[[accept]]                # on real hardware: its platform and what it measured
platform = "simulation"
tolerate = ["simulated"]

[models]                  # nothing is sent to other weights
"voice" = ["sha256:{sha256}"]
"""


def main() -> None:
    """Write the model, its policy, and recordings as PERSON-NUMBER.wav."""
    for folder in ("models", "clips"):
        (BUILD / folder).mkdir(parents=True, exist_ok=True)
    path = BUILD / "models/voice.onnx"
    weights = network.read_weights(package("resemblyzer") / "pretrained.pt")
    onnx.save(network.to_onnx(weights), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    (BUILD / "policy.toml").write_text(POLICY.format(sha256=sha256))
    cut_beckett(package("moonshine_onnx") / "assets/beckett.wav")
    cut_callers(package("pyannote") / "audio/sample")
    fetch_reader()
    clips = len(list((BUILD / "clips").iterdir()))
    print(f"{path.name} {path.stat().st_size:,} bytes, {clips} recordings")


def cut_beckett(path: Path) -> None:
    """Write one reading as two recordings, of five seconds each."""
    with wave.open(str(path)) as file:
        half = file.getnframes() // 2
        for number in (1, 2):
            write(f"beckett-{number}", file.readframes(half), file)


def cut_callers(sample: Path) -> None:
    """Write what each of two people says in a call, where people wrote down that they spoke."""
    said: dict[str, bytes] = {}
    with wave.open(str(sample / "sample.wav")) as file:
        rate, frames = file.getframerate(), file.readframes(file.getnframes())
        for line in (sample / "sample.rttm").read_text().splitlines():
            fields = line.split()
            begin, length = (int(float(field) * rate) for field in fields[3:5])
            piece = frames[2 * begin : 2 * (begin + length)]
            said[fields[7]] = said.get(fields[7], b"") + piece
        for number, person in enumerate(sorted(said), 1):
            write(f"caller{number}-1", said[person], file)


def fetch_reader() -> None:
    """Write five sentences that one reader of LibriVox read, if they are to be had."""
    target = BUILD / "debian"
    target.mkdir(exist_ok=True)
    try:
        command = ["apt-get", "download", "--quiet", "pocketsphinx-testdata"]
        subprocess.run(command, cwd=target, check=True, capture_output=True)
        subprocess.run(["dpkg", "-x", *target.glob("*.deb"), target], check=True)
    except (OSError, subprocess.CalledProcessError):
        print("no pocketsphinx-testdata here: one enrolled voice instead of two")
        return
    clips = sorted((target / "usr/share/pocketsphinx/test/data/librivox").glob("*.wav"))
    for number, clip in enumerate(clips, 1):
        shutil.copyfile(clip, BUILD / f"clips/reader-{number}.wav")


def write(name: str, frames: bytes, like: wave.Wave_read) -> None:
    """Write a recording with the settings of another."""
    with wave.open(str(BUILD / f"clips/{name}.wav"), "wb") as file:
        file.setnchannels(like.getnchannels())
        file.setsampwidth(like.getsampwidth())
        file.setframerate(like.getframerate())
        file.writeframes(frames)


def package(name: str) -> Path:
    """Return an installed package's folder without importing it: all would import PyTorch."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{name} is not installed: make examples NAMES=voice-biometrics")
    return Path(next(iter(spec.submodule_search_locations)))


if __name__ == "__main__":
    main()
