"""Find where somebody speaks, live: every 32 ms a piece of sound goes to the enclave.

The network is recurrent. Its state comes back with each answer and goes out with the next piece, so
the server remembers nothing of a conversation. Everything is compared with onnxruntime in this
process, and with what people wrote down of who spoke when.
"""

from __future__ import annotations

import argparse
import json
import time
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

HERE = Path(__file__).parent
BUILD = HERE / "build"
RATE = 16_000
PIECE, CONTEXT = 512, 64  # samples: what is new, and what the network wants to see again
SPEECH = 0.5


def main() -> None:
    """Stream the conversation, and draw and write down where speech was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--policy", default=HERE / "policy.toml", type=Path)
    arguments = parser.parse_args()
    with wave.open(str(BUILD / "conversation.wav")) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32)
    sound /= 32768
    with blindai.connect(arguments.server, policy=arguments.policy) as client:
        began = time.perf_counter()
        speech = stream(sound, lambda inputs: list(client.run_model("silero-vad", inputs).values()))
        seconds = time.perf_counter() - began
    session = onnxruntime.InferenceSession(BUILD / "models/silero-vad.onnx")
    plain = stream(sound, lambda inputs: session.run(None, inputs))

    truth = spoken(len(speech))
    result = {
        "accuracy": float(((speech > SPEECH) == truth).mean()),
        "plain_accuracy": float(((plain > SPEECH) == truth).mean()),
        "difference": float(np.abs(speech - plain).max()),
        "seconds": seconds,
        "sound_seconds": len(sound) / RATE,
    }
    result["proved"] = (
        f"{result['accuracy']:.3f} of {len(speech)} pieces of 32 ms judged as people did, "
        f"{result['plain_accuracy']:.3f} in plain onnxruntime, outputs at most "
        f"{result['difference']:.1g} apart; {len(sound) / RATE:.0f} s of sound in {seconds:.1f} s"
    )
    draw(sound, speech, truth)
    (BUILD / "result.json").write_text(json.dumps(result))
    print(result["proved"])


def stream(
    sound: np.ndarray, run: Callable[[dict[str, np.ndarray]], list[np.ndarray]]
) -> np.ndarray:
    """Return the probability of speech in each piece, float32[pieces], one run after the other."""
    state = np.zeros((2, 1, 128), np.float32)
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), sound])
    found = []
    for start in range(0, len(sound) - PIECE + 1, PIECE):
        piece = padded[None, start : start + CONTEXT + PIECE]
        inputs = {"input": piece, "state": state, "sr": np.array(RATE, np.int64)}
        probability, state = run(inputs)
        found.append(probability[0, 0])
    return np.array(found, np.float32)


def spoken(pieces: int) -> np.ndarray:
    """Return whether anybody spoke in the middle of each piece, as people wrote it down."""
    middle = (np.arange(pieces) + 0.5) * PIECE / RATE
    truth = np.zeros(pieces, bool)
    for line in (BUILD / "conversation.rttm").read_text().splitlines():
        begin, length = map(float, line.split()[3:5])
        truth |= (middle >= begin) & (middle < begin + length)
    return truth


def draw(sound: np.ndarray, speech: np.ndarray, truth: np.ndarray) -> None:
    """Draw the sound, the probability of speech, and where people heard it."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 3.4), sharex=True, layout="constrained")
    top.plot(np.arange(0, len(sound), 16) / RATE, sound[::16], linewidth=0.3, color="#555555")
    top.set(ylabel="sound", yticks=[])
    middle = (np.arange(len(speech)) + 0.5) * PIECE / RATE
    bottom.fill_between(middle, truth, step="mid", color="#f1c40f", alpha=0.5, label="people heard")
    bottom.plot(middle, speech, linewidth=0.9, color="#2980b9", label="from the enclave")
    bottom.set(xlabel="seconds", ylabel="speech")
    bottom.legend(frameon=False, loc="center left")
    figure.savefig(BUILD / "shown.png", dpi=100)


if __name__ == "__main__":
    main()
