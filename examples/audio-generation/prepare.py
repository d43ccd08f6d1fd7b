"""Write the WaveNet as ONNX, and a policy with its SHA-256."""

from __future__ import annotations

import hashlib
from pathlib import Path

import network
import onnx

BUILD = Path(__file__).parent / "build"
POLICY = """\
version = 1

[[accept]]                # on real hardware: its platform and what it measured
platform = "simulation"
tolerate = ["simulated"]

[models]                  # nothing is asked of other weights
"wavenet" = ["sha256:{sha256}"]
"""


def main() -> None:
    """Write both."""
    path = BUILD / "models/wavenet.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(network.to_onnx(), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    (BUILD / "policy.toml").write_text(POLICY.format(sha256=sha256))
    print(f"{path.name} {path.stat().st_size:,} bytes, of random weights")


if __name__ == "__main__":
    main()
