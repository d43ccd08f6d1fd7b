"""Train a breast-cancer classifier with scikit-learn and write it as ONNX, node by node.

Thirty measurements of cell nuclei go in, the probability of a malignant tumour comes out. The
scaling of the measurements is a part of the model, so a clinic sends them as its laboratory gives
them. Training sees none of the patients that `run.py` sends.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

BUILD = Path(__file__).parent / "build"
POLICY = """\
version = 1

[[accept]]                # on real hardware: its platform and what it measured
platform = "simulation"
tolerate = ["simulated"]

[models]                  # nothing is sent to other weights
"breast-cancer" = ["sha256:{sha256}"]
"""


def main() -> None:
    """Write the model, its policy, and the patients that were kept for the test."""
    (BUILD / "models").mkdir(parents=True, exist_ok=True)
    data = load_breast_cancer()
    malignant = 1 - data.target  # in the data set 1 is benign
    train_x, test_x, train_y, test_y = train_test_split(
        data.data, malignant, test_size=0.3, random_state=0, stratify=malignant
    )
    scaler = StandardScaler().fit(train_x)
    classifier = LogisticRegression(max_iter=500).fit(scaler.transform(train_x), train_y)
    path = BUILD / "models/breast-cancer.onnx"
    onnx.save(to_onnx(scaler, classifier), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    (BUILD / "policy.toml").write_text(POLICY.format(sha256=sha256))
    np.savez(
        BUILD / "patients.npz",
        measurements=test_x.astype(np.float32),
        malignant=test_y,
        scikit_learn=classifier.predict_proba(scaler.transform(test_x))[:, 1],
    )
    print(f"{path.name} {path.stat().st_size:,} bytes, trained on {len(train_y)} patients")


def to_onnx(scaler: StandardScaler, classifier: LogisticRegression) -> onnx.ModelProto:
    """Return float32[patients, 30] → probability of malignant, float32[patients]."""
    width = len(scaler.mean_)
    constants = {
        "mean": scaler.mean_,
        "scale": scaler.scale_,
        "weights": classifier.coef_[0],
        "bias": classifier.intercept_,
    }
    nodes = [
        helper.make_node("Sub", ["measurements", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "scale"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "weights"], ["score"]),
        helper.make_node("Add", ["score", "bias"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["malignant"]),
    ]
    graph = helper.make_graph(
        nodes,
        "breast-cancer",
        [helper.make_tensor_value_info("measurements", TensorProto.FLOAT, ["patients", width])],
        [helper.make_tensor_value_info("malignant", TensorProto.FLOAT, ["patients"])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model


if __name__ == "__main__":
    main()
