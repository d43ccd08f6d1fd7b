"""Have confidential recordings written down, and listened to by nobody.

The sound's spectrum goes out and words come back: one request for a recording, whatever its length,
so not even the number of words can be counted in requests. Everything is compared with onnxruntime
in this process, and with what was really said.
"""

from __future__ import annotations

import argparse
import json
import re
import wave
from pathlib import Path

import matplotlib as mpl
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

import blindai

mpl.use("agg")
import matplotlib.pyplot as plt  # after the choice of where to draw

BUILD = Path(__file__).parent / "build"
RATE, SECONDS = 16_000, 30
WINDOW, HOP, BANDS = 400, 160, 80
FIRST_SPECIAL = 50256  # tokens from here on are no text


def main() -> None:
    """Send each recording, and draw and write down what was understood."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--policy", default=BUILD / "policy.toml", type=Path)
    arguments = parser.parse_args()
    said = json.loads((BUILD / "clips.json").read_text())
    spectra = {name: spectrum(load(BUILD / f"clips/{name}.wav")) for name in said}
    with blindai.connect(arguments.server, policy=arguments.policy) as client:
        found = {name: client.run_model("whisper", mel)["tokens"] for name, mel in spectra.items()}

    session = onnxruntime.InferenceSession(BUILD / "models/whisper.onnx")
    plain = {name: session.run(None, {"mel": mel})[0] for name, mel in spectra.items()}
    tokenizer = Tokenizer.from_file(str(BUILD / "tokenizer.json"))
    texts = {name: to_text(tokenizer, tokens) for name, tokens in found.items()}
    errors = {name: word_errors(words(said[name]), words(texts[name])) for name in said}
    for name, text in texts.items():
        print(f"{name}: {text} [{errors[name]} words wrong]")
    total = sum(len(words(text)) for text in said.values())
    result = {
        "texts": texts,
        "same_tokens": all(np.array_equal(found[name], plain[name]) for name in said),
        "errors": sum(errors.values()),
        "words": total,
    }
    result["proved"] = (
        f"{result['errors']} of {total} words wrong in {len(said)} recordings, "
        "token for token what plain onnxruntime gives"
    )
    draw(spectra["beckett"], texts["beckett"])
    (BUILD / "result.json").write_text(json.dumps(result))
    print(result["proved"])


def load(path: Path) -> np.ndarray:
    """Return a recording's samples, float32, filled up with silence to thirty seconds."""
    with wave.open(str(path)) as file:
        if file.getframerate() != RATE or file.getnchannels() != 1:
            raise SystemExit(f"{path}: expected one channel of {RATE} samples a second")
        sound = np.frombuffer(file.readframes(file.getnframes()), np.int16)[: RATE * SECONDS]
    padded = np.zeros(RATE * SECONDS, np.float32)
    padded[: len(sound)] = sound.astype(np.float32) / 32768
    return padded


def spectrum(sound: np.ndarray) -> np.ndarray:
    """Return the logarithm of the energy in 80 bands each hundredth of a second, [1, 80, 3000]."""
    padded = np.pad(sound, WINDOW // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[:-1:HOP]
    window = np.hanning(WINDOW + 1)[:-1]
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    energy = np.log10(np.maximum(bands() @ power.T, 1e-10))
    energy = np.maximum(energy, energy.max() - 8)
    return ((energy + 4) / 4)[None].astype(np.float32)


def bands() -> np.ndarray:
    """Return the triangles that gather frequencies as an ear does, [80, 201] (Slaney's scale)."""
    linear_end = 15.0  # mel at 1000 Hz: linear below, logarithmic above
    step = np.log(6.4) / 27
    top = linear_end + np.log(RATE / 2 / 1000) / step
    mel = np.linspace(0, top, BANDS + 2)
    edges = np.where(mel < linear_end, mel * 200 / 3, 1000 * np.exp(step * (mel - linear_end)))
    frequency = np.linspace(0, RATE / 2, WINDOW // 2 + 1)
    rising = (frequency - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - frequency) / np.diff(edges)[1:, None]
    triangles = np.maximum(0, np.minimum(rising, falling))
    return triangles * (2 / (edges[2:] - edges[:-2]))[:, None]


def to_text(tokenizer: Tokenizer, tokens: np.ndarray) -> str:
    """Return the text of int64[n, 1] tokens."""
    return tokenizer.decode([t for t in tokens[:, 0].tolist() if t < FIRST_SPECIAL]).strip()


def words(text: str) -> list[str]:
    """Return the words as they sound: no signs, no capitals."""
    spelled = text.lower().replace("mr.", "mister").replace("-", " ")
    return re.findall(r"[a-z']+", spelled)


def word_errors(said: list[str], found: list[str]) -> int:
    """Return how many words were left out, put in or put in another's place (Levenshtein)."""
    row = list(range(len(found) + 1))
    for count, word in enumerate(said, 1):
        previous, row = row, [count]
        for place, other in enumerate(found):
            row.append(
                min(previous[place] + (word != other), previous[place + 1] + 1, row[place] + 1)
            )
    return row[-1]


def draw(mel: np.ndarray, text: str) -> None:
    """Draw the spectrum that went out and the words that came back."""
    figure, axes = plt.subplots(figsize=(8, 2.6), layout="constrained")
    axes.imshow(mel[0, :, :1000], aspect="auto", origin="lower", extent=(0, 10, 0, BANDS))
    axes.set(xlabel="seconds", ylabel="band")
    axes.set_title(text, fontsize=9)
    figure.savefig(BUILD / "shown.png", dpi=80)


if __name__ == "__main__":
    main()
