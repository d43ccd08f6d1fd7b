"""Install the servers that BlindAI is measured against, each in an environment of its own.

    python benchmarks/peers/install.py [NAME …]

They go to `.peers/` beside the checkout's other generated files. A peer that does not install
here is reported and left out of the comparison.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / ".peers"
ORT = "onnxruntime==1.32.0"
# MLServer 1.7.1 needs asyncio's loop as it was before uvloop 0.22. Triton's Python backend is
# linked with the system's Python, and takes no other build of the same version.
PEERS = {
    "mlserver": (sys.executable, ["mlserver==1.7.1", "uvloop==0.21.0", ORT]),
    "kserve": (sys.executable, ["kserve==0.21.0", ORT]),
    "litserve": (sys.executable, ["litserve==0.2.19", ORT]),
    "pytriton": ("/usr/bin/python3", ["nvidia-pytriton==0.7.0", "onnxruntime==1.23.2"]),
    "bentoml": (sys.executable, ["bentoml==1.4.39", ORT]),
    "ray": (sys.executable, ["ray[serve]==2.60.0", ORT]),
}


def python_of(name):
    """Return the interpreter of a peer; it may not be there."""
    return FOLDER / name / "bin" / "python"


def main(names):
    failed = []
    for name in names or PEERS:
        interpreter, packages = PEERS[name]
        done = FOLDER / name / ".installed"
        if done.exists() and done.read_text() == repr(packages):
            continue
        print(f"{name}: {', '.join(packages)}", flush=True)
        try:
            install(FOLDER / name, interpreter, packages)
            done.write_text(repr(packages))
        except (OSError, subprocess.CalledProcessError) as error:
            shutil.rmtree(FOLDER / name, ignore_errors=True)
            failed.append(name)
            print(f"{name}: not installed: {error}")
    if failed:
        print(f"left out: {', '.join(failed)}")


def install(folder, interpreter, packages):
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:/usr/bin:/usr/local/bin")
    if uv:
        run(uv, "venv", "--quiet", "--clear", "--python", interpreter, folder)
        run(uv, "pip", "install", "--quiet", "--python", folder / "bin" / "python", *packages)
    else:
        run(interpreter, "-m", "venv", "--clear", folder)
        run(folder / "bin" / "pip", "install", "--quiet", *packages)


def run(*command):
    subprocess.run([str(part) for part in command], check=True, timeout=900)


if __name__ == "__main__":
    main(sys.argv[1:])
