"""Speak for somebody who cannot, and hear nothing of what they say.

Sounds of speech, in the phonetic alphabet, go to the enclave; a voice comes back. The voice draws
random numbers for its melody; here it is told to use none, so that what came back can be compared,
sample for sample, with onnxruntime in this process.
"""

from __future__ import annotations

import argparse
import json
import wave
from pathlib import Path

import matplotlib as mpl
import numpy as np
import onnxruntime

import blindai

mpl.use("agg")
import matplotlib.pyplot as plt  # after the choice of where to draw

HERE = Path(__file__).parent
BUILD = HERE / "build"
RATE = 22_050
BEGIN, END, PAD = "^", "$", "_"
# Randomness of the sound, slowness, randomness of the lengths.
SCALES = np.array([0.0, 1.0, 0.0], np.float32)
TEXT = "I have not told anybody yet, but the test came back, and I am well."
# The same as sounds. A program such as espeak-ng writes this from a text; it runs on this side.
SAID = "aɪ hæv nˌɑːt tˈoʊld ˈɛnɪbˌɑːdi jˈɛt, bˌʌt ðə tˈɛst kˈeɪm bˈæk, ænd aɪ æm wˈɛl."  # noqa: RUF001


def main() -> None:
    """Send the sounds, and keep, draw and write down the voice that came back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--policy", default=HERE / "policy.toml", type=Path)
    arguments = parser.parse_args()
    sounds = to_numbers(SAID)
    inputs = {
        "input": sounds,
        "input_lengths": np.array([sounds.shape[1]], np.int64),
        "scales": SCALES,
    }
    with blindai.connect(arguments.server, policy=arguments.policy) as client:
        voice = client.run_model("joe", inputs)[0].ravel()
    session = onnxruntime.InferenceSession(BUILD / "models/joe.onnx")
    plain = session.run(None, inputs)[0].ravel()

    result = {
        "seconds": len(voice) / RATE,
        "same_length": len(voice) == len(plain),
        "difference": float(np.abs(voice[: len(plain)] - plain[: len(voice)]).max()),
        "loudness": float(np.sqrt((voice**2).mean())),
    }
    result["proved"] = (
        f"{result['seconds']:.1f} s of speech from {sounds.shape[1]} numbers, sample for sample "
        f"what plain onnxruntime gives, at most {result['difference']:.1g} apart"
    )
    keep(voice)
    draw(voice)
    (BUILD / "result.json").write_text(json.dumps(result))
    print(result["proved"])


def to_numbers(said: str) -> np.ndarray:
    """Return the voice's numbers of the sounds with a pause after each, int64[1, n]."""
    table = json.loads((BUILD / "sounds.json").read_text())
    numbers = list(table[BEGIN])
    for sound in said:
        numbers += table[PAD] + table[sound]
    return np.array([numbers + table[PAD] + table[END]], np.int64)


def keep(voice: np.ndarray) -> None:
    """Write the voice as a sound file of 16 bits."""
    loudest = max(0.01, float(np.abs(voice).max()))
    with wave.open(str(BUILD / "shown.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((voice / loudest * 32000).astype(np.int16).tobytes())


def draw(voice: np.ndarray) -> None:
    """Draw the spectrum of the voice."""
    figure, axes = plt.subplots(figsize=(8, 2.6), layout="constrained")
    axes.specgram(voice, NFFT=512, Fs=RATE, noverlap=384, cmap="magma", vmin=-140)
    axes.set(xlabel="seconds", ylabel="hertz", ylim=(0, 8000))
    axes.set_title(
        "I have not told anybody yet, but the test came back, and I am well.", fontsize=9
    )
    figure.savefig(BUILD / "shown.png", dpi=70)


if __name__ == "__main__":
    main()
