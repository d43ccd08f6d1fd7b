"""Read a photographed page: three networks in the enclave, the rest of an OCR library here.

rapidocr runs onnxruntime on the machine it is on. Here its three sessions are replaced by calls of
the verified server, and nothing else of it is touched. The same page is then read by rapidocr as it
is, and the two texts have to be one.
"""

from __future__ import annotations

import argparse
import difflib
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from PIL import Image
from rapidocr_onnxruntime import RapidOCR

import blindai

mpl.use("agg")
import matplotlib.pyplot as plt  # after the choice of where to draw

HERE = Path(__file__).parent
BUILD = HERE / "build"
# The page was photographed small, and its lines are bent: take what the networks are half sure of.
UNSURE = {"box_thresh": 0.3, "text_score": 0.3}
# What the page says down to where it is cut off. The network was trained on Chinese mostly and
# leaves spaces out, so texts are compared without them.
TRUTH = (
    "Region-based segmentation Let us first determine markers of the coins and the background. "
    "These markers are pixels that we can label unambiguously as either object or background. "
    "Here, the markers are found at the two extreme parts of the histogram of grey values: "
    ">>> markers = np.zeros_like(coins)"
)


class InEnclave:
    """Stands where rapidocr keeps a session: what it gives to the model goes to the server."""

    def __init__(self, client: blindai.Client, model: str) -> None:
        self._client = client
        self._model = model
        self.outputs: list[np.ndarray] = []

    def __call__(self, value: np.ndarray) -> list[np.ndarray]:
        """Run the model on float32[batch, 3, height, width]."""
        found = list(self._client.run_model(self._model, value).values())
        self.outputs += found
        return found


class Recorded:
    """Keeps what rapidocr's own session gives, to compare."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.outputs: list[np.ndarray] = []

    def __call__(self, value: np.ndarray) -> list[np.ndarray]:
        """Run the model in this process."""
        found = list(self._session(value))
        self.outputs += found
        return found


def main() -> None:
    """Read the page twice, and draw and write down what it says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--policy", default=HERE / "policy.toml", type=Path)
    arguments = parser.parse_args()
    page = np.array(Image.open(BUILD / "page.png"))

    plain = RapidOCR()
    sessions = [Recorded(plain.text_det.infer), Recorded(plain.text_cls.infer)]
    sessions.append(Recorded(plain.text_rec.session))
    plain.text_det.infer, plain.text_cls.infer, plain.text_rec.session = sessions
    plain_lines = plain(page, **UNSURE)[0]

    private = RapidOCR()
    with blindai.connect(arguments.server, policy=arguments.policy) as client:
        calls = [InEnclave(client, name) for name in ("find-lines", "turn-lines", "read-lines")]
        private.text_det.infer, private.text_cls.infer, private.text_rec.session = calls
        lines = private(page, **UNSURE)[0]

    text = "\n".join(line[1] for line in lines)
    outputs = [output for call in calls for output in call.outputs]
    expected = [output for session in sessions for output in session.outputs]
    result = {
        "text": text,
        "same_text": [line[1] for line in lines] == [line[1] for line in plain_lines],
        "difference": max(
            float(np.abs(ours - theirs).max())
            for ours, theirs in zip(outputs, expected, strict=True)
        ),
        "character_errors": character_errors(text),
    }
    result["proved"] = (
        f"{len(lines)} lines read, the same text as rapidocr on its own, outputs at most "
        f"{result['difference']:.1g} apart; {result['character_errors']} of "
        f"{len(TRUTH.replace(' ', ''))} characters wrong, with thresholds chosen on this page"
    )
    print(text)
    draw(page, lines)
    (BUILD / "result.json").write_text(json.dumps(result))
    print(result["proved"])


def character_errors(text: str) -> int:
    """Return how many characters of the truth are missing in the text, spaces left aside."""
    truth, read = "".join(TRUTH.split()), "".join(text.split())
    blocks = difflib.SequenceMatcher(None, truth, read, autojunk=False).get_matching_blocks()
    return len(truth) - sum(block.size for block in blocks)


def draw(page: np.ndarray, lines: list[Any]) -> None:
    """Draw the page with a box for each line, and the text beside it."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 2.8), layout="constrained")
    left.imshow(page)
    for corners, text, _ in lines:
        box = np.array([*corners, corners[0]])
        left.plot(box[:, 0], box[:, 1], color="#c0392b", linewidth=0.8)
        shown = text if len(text) < 62 else f"{text[:60]}…"
        right.text(0, box[:4, 1].mean() / page.shape[0], shown, fontsize=7, va="center")
    right.set(ylim=(1, 0))
    for place in (left, right):
        place.set_axis_off()
    figure.savefig(BUILD / "shown.png", dpi=90)


if __name__ == "__main__":
    main()
