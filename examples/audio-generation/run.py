"""Have sound made sample by sample in the enclave, and listen while it is made.

One request, one answer that lasts: the server runs the network in a loop, keeps its memory beside
it, and sends 25 ms of sound as soon as they are there. The SDK verifies the server and the weights;
the answer is read with Python's own HTTP, over connections that only the attested key can open.
All is compared with a loop around onnxruntime in this process.
"""

from __future__ import annotations

import argparse
import http.client
import json
import struct
import time
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import onnxruntime

import blindai

if TYPE_CHECKING:
    from collections.abc import Iterator

mpl.use("agg")
import matplotlib.pyplot as plt  # after the choice of where to draw

BUILD = Path(__file__).parent / "build"
MODEL = "wavenet"
RATE, PIECE, PIECES = 16_000, 400, 40
SILENCE, BEGIN = 128, 42  # the sample before the first, and the random number before the first
STATE = {"memory": "next_memory", "level": "next_level", "random": "next_random"}
LONGEST = 1 << 20  # bytes of a part: anything longer is no part of this answer


def main() -> None:
    """Listen to one second, and keep, draw and write down what was heard."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--policy", default=BUILD / "policy.toml", type=Path)
    arguments = parser.parse_args()
    with blindai.connect(arguments.server, policy=arguments.policy) as client:
        weights = pinned(client, arguments.policy)
        began = time.perf_counter()
        parts, heard_at = [], []
        for piece in listen(client, weights):
            parts.append(piece)
            heard_at.append(time.perf_counter() - began)
    levels = np.concatenate(parts)
    plain = alone()

    result = {
        "pieces": len(parts),
        "same_levels": bool(np.array_equal(levels, plain)),
        "distinct": len(set(levels.tolist())),
        "first_seconds": heard_at[0],
        "seconds": heard_at[-1],
    }
    result["proved"] = (
        f"{len(levels)} samples of sound in {len(parts)} parts of one answer, each as in a loop "
        f"around plain onnxruntime; the first after {heard_at[0]:.2f} s, the last after "
        f"{heard_at[-1]:.1f} s"
    )
    sound = to_sound(levels)
    keep(sound)
    draw(sound, heard_at)
    (BUILD / "result.json").write_text(json.dumps(result))
    print(result["proved"])


def pinned(client: blindai.Client, policy: Path) -> str:
    """Return the SHA-256 of the weights that the policy names, if the server has them.

    Every request then asks for it and not for a name, which could be moved to other weights.
    """
    accepted = {digest.hex() for digest in blindai.Policy.load(policy).models[MODEL]}
    found = client.model(MODEL).sha256
    if found not in accepted:
        raise blindai.AppraisalError(f"the policy does not accept this model: sha256:{found}")
    return found


def listen(client: blindai.Client, weights: str) -> Iterator[np.ndarray]:
    """Yield pieces of sound, uint8[400], as they come; end only where the server says so."""
    document = {
        "inputs": [
            {"name": name, "datatype": "INT64", "shape": [1], "data": [value]}
            for name, value in (("level", SILENCE), ("random", BEGIN))
        ],
        "outputs": [{"name": "sound"}],
        "parameters": {
            "binary_data_output": True,
            "loop": {"state": STATE, "max_steps": PIECES},
        },
    }
    host = client.url.removeprefix("https://")
    connection = http.client.HTTPSConnection(host, context=client.ssl_context, timeout=60)
    try:
        connection.request("POST", f"/blindai/v1/models/{weights}/stream", json.dumps(document))
        answer = connection.getresponse()
        if answer.status != http.client.OK:
            raise SystemExit(f"expected 200, came {answer.status}: {answer.read(1000)!r}")
        while True:
            part, tensors = read_part(answer)
            if part.get("final"):
                return
            if "error" in part:
                raise SystemExit(f"the server stopped: {part['error']}")
            yield np.frombuffer(tensors, np.uint8)
    finally:
        connection.close()


def read_part(answer: http.client.HTTPResponse) -> tuple[dict[str, Any], bytes]:
    """Return one part: what it says, and the bytes of its tensors."""
    lengths = struct.unpack("<IQ", read(answer, 12))
    if sum(lengths) > LONGEST:
        raise SystemExit(f"expected parts of at most {LONGEST} bytes, came {sum(lengths)}")
    document, tensors = (read(answer, length) for length in lengths)
    return json.loads(document), tensors


def read(answer: http.client.HTTPResponse, size: int) -> bytes:
    """Return exactly as many bytes: an answer that ends early is not an answer."""
    content = answer.read(size)
    if len(content) != size:
        raise SystemExit("the answer ended before its last part")
    return content


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
