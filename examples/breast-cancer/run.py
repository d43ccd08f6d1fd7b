"""A clinic asks for a second opinion on 171 biopsies, and keeps a signed receipt of it.

The company that made the model uploads it after verifying the server; the clinic verifies the same
server, sends measurements to exactly those weights, and verifies the receipt. Everything is
compared with onnxruntime in this process and with scikit-learn, where the model was trained.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import onnxruntime

import blindai

mpl.use("agg")
import matplotlib.pyplot as plt  # after the choice of where to draw

BUILD = Path(__file__).parent / "build"
MODEL = BUILD / "models/breast-cancer.onnx"


def main() -> None:
    """Upload the model, send it the patients, and draw and write down what came back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--policy", default=BUILD / "policy.toml", type=Path)
    parser.add_argument("--token-file", default=BUILD / "token", type=Path)
    arguments = parser.parse_args()
    upload(arguments.server, arguments.token_file.read_text().strip())

    with np.load(BUILD / "patients.npz") as patients:
        measurements, sick = patients["measurements"], patients["malignant"]
        trained = patients["scikit_learn"]
    with blindai.connect(arguments.server, policy=arguments.policy) as client:
        answer = client.run_model("breast-cancer", measurements, receipt=True)
    malignant = answer["malignant"]
    answer.receipt.save(BUILD / "receipt.cbor")
    receipt = blindai.verify_receipt(
        BUILD / "receipt.cbor",
        arguments.policy,
        model=MODEL,
        inputs={"measurements": measurements},
        outputs=answer.as_numpy(),
    )
    print(receipt)

    plain = onnxruntime.InferenceSession(MODEL).run(None, {"measurements": measurements})[0]
    accuracy = float(((malignant > 0.5) == sick).mean())
    result = {
        "accuracy": accuracy,
        "plain_accuracy": float(((plain > 0.5) == sick).mean()),
        "difference": float(np.abs(malignant - plain).max()),
        "difference_from_training": float(np.abs(malignant - trained).max()),
        "missed": int(((malignant <= 0.5) & (sick == 1)).sum()),
        "false_alarms": int(((malignant > 0.5) & (sick == 0)).sum()),
    }
    result["proved"] = (
        f"accuracy {accuracy:.3f} on {len(sick)} patients kept from training "
        f"({result['missed']} tumours missed, {result['false_alarms']} false alarms), "
        f"{result['plain_accuracy']:.3f} in plain onnxruntime, outputs at most "
        f"{result['difference']:.1g} apart; the receipt verifies"
    )
    draw(malignant, sick, result)
    (BUILD / "result.json").write_text(json.dumps(result))
    print(result["proved"])


def upload(server: str, token: str) -> None:
    """Send the model, as its owner, who pins no weights because they bring them."""
    with blindai.connect(server, simulation=True, token=token) as client:
        info = client.upload_model(MODEL, replace=True, progress=False)
    print(f"uploaded {info.name} sha256:{info.sha256[:12]}… to {server}")


def draw(malignant: np.ndarray, sick: np.ndarray, result: dict[str, object]) -> None:
    """Draw each patient's probability, least to greatest, coloured by what the tumour was."""
    order = np.argsort(malignant)
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    for label, colour, name in ((0, "#2980b9", "benign"), (1, "#c0392b", "malignant")):
        chosen = sick[order] == label
        axes.scatter(
            np.flatnonzero(chosen), malignant[order][chosen], s=9, color=colour, label=name
        )
    axes.axhline(0.5, color="black", linewidth=0.8)
    axes.set(xlabel="patient", ylabel="probability of malignant")
    axes.set_title(f"{result['missed']} missed, {result['false_alarms']} false alarms")
    axes.legend(frameon=False, title="pathologist says")
    figure.savefig(BUILD / "shown.png", dpi=110)


if __name__ == "__main__":
    main()
