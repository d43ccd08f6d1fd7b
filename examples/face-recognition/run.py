"""Recognise a face without showing it to whoever owns the machine.

A face is found and cut out here, and goes to the enclave as 150 by 150 pixels; 128 numbers come
back, near each other for faces of one person. One photograph is enrolled, the others are compared
with it. All is compared with onnxruntime in this process.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import onnxruntime
import skimage.data
import skimage.feature
from PIL import Image

import blindai

mpl.use("agg")
import matplotlib.pyplot as plt  # after the choice of where to draw

BUILD = Path(__file__).parent / "build"
SIDE = 150
SAME = 0.6  # as dlib, whose network it is, advises
ENROLLED = "obama"


def main() -> None:
    """Enrol one face, send the others, and draw and write down who was recognised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--policy", default=BUILD / "policy.toml", type=Path)
    arguments = parser.parse_args()
    images = {p.stem: Image.open(p) for p in sorted((BUILD / "photographs").glob("*.png"))}
    faces = {name: cut(image) for name, image in images.items()}
    with blindai.connect(arguments.server, policy=arguments.policy) as client:
        found = [client.run_model("face", face[None])[0][0] for face in faces.values()]
    session = onnxruntime.InferenceSession(BUILD / "models/face.onnx")
    plain = [session.run(None, {"faces": face[None]})[0][0] for face in faces.values()]

    names = list(faces)
    distances = dict(zip(names, distances_from(names.index(ENROLLED), found), strict=True))
    plain_distances = distances_from(names.index(ENROLLED), plain)
    for name, distance in distances.items():
        print(f"{name:<8} {distance:.2f} {'recognised' if distance < SAME else 'somebody else'}")
    result = {
        "distances": distances,
        "same_verdicts": [d < SAME for d in distances.values()]
        == [d < SAME for d in plain_distances],
        "difference": float(np.abs(np.array(found) - np.array(plain)).max()),
    }
    others = [d for name, d in distances.items() if not name.startswith(ENROLLED)]
    own = [d for name, d in distances.items() if name.startswith(ENROLLED) and name != ENROLLED]
    result["proved"] = (
        f"{sum(d < SAME for d in own)} of {len(own)} other photographs of the enrolled face "
        f"recognised, {sum(d < SAME for d in others)} of {len(others)} of other people, as plain "
        f"onnxruntime does, outputs at most {result['difference']:.1g} apart"
    )
    draw(faces, distances)
    (BUILD / "result.json").write_text(json.dumps(result))
    print(result["proved"])


def cut(image: Image.Image) -> np.ndarray:
    """Return the largest face in a photograph, uint8[150, 150, 3], red first."""
    cascade = skimage.feature.Cascade(skimage.data.lbp_frontal_face_cascade_filename())
    boxes = cascade.detect_multi_scale(
        np.asarray(image), scale_factor=1.1, step_ratio=1, min_size=(50, 50), max_size=(400, 400)
    )
    if not boxes:
        raise SystemExit("expected a face in each photograph, found none in one of them")
    box = max(boxes, key=lambda box: box["width"])
    left, top = box["c"], box["r"]
    cropped = image.crop((left, top, left + box["width"], top + box["height"]))
    return np.asarray(cropped.resize((SIDE, SIDE)))


def distances_from(enrolled: int, descriptors: list[np.ndarray]) -> list[float]:
    """Return how far each descriptor is from the enrolled one."""
    return [float(np.linalg.norm(descriptors[enrolled] - other)) for other in descriptors]


def draw(faces: dict[str, np.ndarray], distances: dict[str, float]) -> None:
    """Draw what went out, with how far each face is from the enrolled one."""
    figure, axes = plt.subplots(1, len(faces), figsize=(8, 1.9), layout="constrained")
    for place, name in zip(axes, sorted(faces, key=distances.__getitem__), strict=True):
        place.imshow(faces[name])
        verdict = "recognised" if distances[name] < SAME else "somebody else"
        title = "enrolled" if name == ENROLLED else f"{distances[name]:.2f}: {verdict}"
        place.set_title(title, fontsize=9)
        place.set_axis_off()
    figure.savefig(BUILD / "shown.png", dpi=90)


if __name__ == "__main__":
    main()
