"""Have sound made sample by sample in the enclave, and listen while it is made.

One request, one answer that lasts: the server runs the network in a loop, keeps its memory beside
it, and sends 25 ms of sound as soon as they are there. All is compared with a loop around
onnxruntime in this process.
"""

from __future__ import annotations

import argparse
import json
import time
import wave
from pathlib import Path

import matplotlib as mpl
import numpy as np
import onnxruntime

import blindai

mpl.use("agg")
import matplotlib.pyplot as plt  # after the choice of where to draw

BUILD = Path(__file__).parent / "build"
MODEL = "wavenet"
RATE, PIECE, PIECES = 16_000, 400, 40
SILENCE, BEGIN = 128, 42  # the sample before the first, and the random number before the first
STATE = {"memory": "next_memory", "level": "next_level", "random": "next_random"}


def main() -> None:
    """Listen to one second, and keep, draw and write down what was heard."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--policy", default=BUILD / "policy.toml", type=Path)
    arguments = parser.parse_args()
    first = {"level": np.array([SILENCE]), "random": np.array([BEGIN])}
    with blindai.connect(arguments.server, policy=arguments.policy) as client:
        began = time.perf_counter()
        parts, heard_at = [], []
        for result in client.stream(MODEL, first, state=STATE, outputs=["sound"], max_steps=PIECES):
            parts.append(result["sound"])
            heard_at.append(time.perf_counter() - began)
    levels = np.concatenate(parts)
    plain = alone()

    found = {
        "pieces": len(parts),
        "same_levels": bool(np.array_equal(levels, plain)),
        "distinct": len(set(levels.tolist())),
        "first_seconds": heard_at[0],
        "seconds": heard_at[-1],
    }
    found["proved"] = (
        f"{len(levels)} samples of sound in {len(parts)} parts of one answer, each as in a loop "
        f"around plain onnxruntime; the first after {heard_at[0]:.2f} s, the last after "
        f"{heard_at[-1]:.1f} s"
    )
    sound = to_sound(levels)
    keep(sound)
    draw(sound, heard_at)
    (BUILD / "result.json").write_text(json.dumps(found))
    print(found["proved"])


def alone() -> np.ndarray:
    """Return the same from a loop around onnxruntime, uint8[samples]."""
    session = onnxruntime.InferenceSession(BUILD / "models/wavenet.onnx")
    shape = next(value.shape for value in session.get_inputs() if value.name == "memory")
    feed = {
        "memory": np.zeros(shape, np.float32),
        "level": np.array([SILENCE]),
        "random": np.array([BEGIN]),
    }
    parts = []
    for _ in range(PIECES):
        *state, piece = session.run([*STATE.values(), "sound"], feed)
        feed = dict(zip(STATE, state, strict=True))
        parts.append(piece)
    return np.concatenate(parts)


def to_sound(levels: np.ndarray) -> np.ndarray:
    """Return samples between -1 and 1; the levels are closer to each other near silence (µ-law)."""
    height = levels / 127.5 - 1
    return np.sign(height) * (256 ** np.abs(height) - 1) / 255


def keep(sound: np.ndarray) -> None:
    """Write it as a sound file of 16 bits."""
    loudest = max(0.001, float(np.abs(sound).max()))
    with wave.open(str(BUILD / "shown.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((sound / loudest * 16000).astype(np.int16).tobytes())


def draw(sound: np.ndarray, heard_at: list[float]) -> None:
    """Draw the sound's spectrum, and how much of it was there when."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8, 2.6), layout="constrained", width_ratios=(2, 1)
    )
    left.specgram(sound, NFFT=256, Fs=RATE, noverlap=192, cmap="magma")
    left.set(xlabel="seconds of sound", ylabel="hertz")
    right.step(heard_at, (np.arange(len(heard_at)) + 1) * PIECE / RATE, where="post")
    right.set(xlabel="seconds since it was asked for", ylabel="seconds of sound here")
    figure.savefig(BUILD / "shown.png", dpi=80)


if __name__ == "__main__":
    main()
