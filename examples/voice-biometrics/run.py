"""Know a person by their voice, on a machine that may not listen.

Spectra of 1.6 seconds go to the enclave, 256 numbers come back for each; their mean is a voice. The
first recording of a person is enrolled, and every other recording is compared with it. All is
compared with onnxruntime in this process.
"""

from __future__ import annotations

import argparse
import json
import wave
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import onnxruntime

import blindai

if TYPE_CHECKING:
    from collections.abc import Callable

mpl.use("agg")
import matplotlib.pyplot as plt  # after the choice of where to draw

BUILD = Path(__file__).parent / "build"
RATE = 16_000
WINDOW, HOP, BANDS = 400, 160, 40
FRAMES, STEP = 160, 80  # of a piece, and from one piece to the next: 1.6 s and 0.8 s
QUIET = 10 ** (-30 / 20)  # what is less loud is made as loud
SAME = 0.77  # between what the two kinds of pairs gave here: another microphone may need another
ENROLLED = ("beckett", "reader")


def main() -> None:
    """Enrol, compare, and draw and write down who was taken for whom."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--policy", default=BUILD / "policy.toml", type=Path)
    arguments = parser.parse_args()
    clips = {p.stem: pieces(load(p)) for p in sorted((BUILD / "clips").glob("*.wav"))}
    with blindai.connect(arguments.server, policy=arguments.policy) as client:
        voices = listen(clips, lambda spectra: client.run_model("voice", spectra)[0])
    session = onnxruntime.InferenceSession(BUILD / "models/voice.onnx")
    plain = listen(clips, lambda spectra: session.run(None, {"spectra": spectra})[0])

    names = list(clips)
    trials = compare(names, voices)
    plain_trials = compare(names, plain)
    for enrolled, name, alike in trials:
        print(f"{enrolled:<8} {name:<10} {alike:.2f} {'accepted' if alike > SAME else 'refused'}")
    own = [alike for enrolled, name, alike in trials if name.startswith(enrolled)]
    other = [alike for enrolled, name, alike in trials if not name.startswith(enrolled)]
    result = {
        "own": own,
        "other": other,
        "same_verdicts": [a > SAME for *_, a in trials] == [a > SAME for *_, a in plain_trials],
        "difference": float(np.abs(voices - plain).max()),
    }
    result["proved"] = (
        f"{sum(a > SAME for a in own)} of {len(own)} recordings of an enrolled voice accepted, "
        f"{sum(a > SAME for a in other)} of {len(other)} of another voice, as in plain "
        f"onnxruntime, outputs at most {result['difference']:.1g} apart"
    )
    draw(names, voices)
    (BUILD / "result.json").write_text(json.dumps(result))
    print(result["proved"])


def load(path: Path) -> np.ndarray:
    """Return a recording's samples, float32, as loud as the network has to hear them."""
    with wave.open(str(path)) as file:
        if file.getframerate() != RATE or file.getnchannels() != 1:
            raise SystemExit(f"{path}: expected one channel of {RATE} samples a second")
        sound = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32)
    sound /= 32768
    return sound * max(1, QUIET / float(np.sqrt((sound**2).mean())))


def pieces(sound: np.ndarray) -> np.ndarray:
    """Return the energy in 40 bands each hundredth of a second, float32[pieces, 160, 40]."""
    padded = np.pad(sound, WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW + 1)[:-1])) ** 2
    spectrum = (power @ bands().T).astype(np.float32)
    starts = range(0, max(1, len(spectrum) - FRAMES + 1), STEP)
    missing = max(0, FRAMES - len(spectrum))
    spectrum = np.pad(spectrum, ((0, missing), (0, 0)))
    return np.stack([spectrum[start : start + FRAMES] for start in starts])


def bands() -> np.ndarray:
    """Return the triangles that gather frequencies as an ear does, [40, 201] (Slaney's scale)."""
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


def listen(clips: dict[str, np.ndarray], run: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return the voice in each recording, float32[recordings, 256], each of length 1."""
    voices = np.stack([run(spectra).mean(0) for spectra in clips.values()])
    return voices / np.linalg.norm(voices, axis=1, keepdims=True)


def compare(names: list[str], voices: np.ndarray) -> list[tuple[str, str, float]]:
    """Return an enrolled person, another recording, and how alike the voices are, for each pair."""
    found = []
    for person in ENROLLED:
        if (first := f"{person}-1") in names:
            alike = voices @ voices[names.index(first)]
            found += [
                (person, name, float(value))
                for name, value in zip(names, alike, strict=True)
                if name != first
            ]
    return found


def draw(names: list[str], voices: np.ndarray) -> None:
    """Draw how alike each two recordings are."""
    figure, axes = plt.subplots(figsize=(5.4, 4.2), layout="constrained")
    image = axes.imshow(voices @ voices.T, cmap="viridis", vmin=0.3, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(labelsize=8)
    for row, column in np.ndindex(len(names), len(names)):
        alike = float(voices[row] @ voices[column])
        colour = "black" if alike > SAME else "white"
        axes.text(column, row, f"{alike:.2f}", ha="center", va="center", color=colour, fontsize=7)
    figure.colorbar(image, label="similarity of voices", shrink=0.8)
    figure.savefig(BUILD / "shown.png", dpi=100)


if __name__ == "__main__":
    main()
