"""Coverage-guided fuzzing with atheris, each target in a process of its own.

Takes a folder for what it finds, targets with commas between them, and options of libFuzzer. The
committed corpus and the seeds come first; a crash is written to the folder, from where it becomes
a regression.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import atheris

CORPUS = Path(__file__).parent / "corpus"

with atheris.instrument_imports(include=["blindai", "tests.fuzz.connections"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fuzz one target after the other, each in a child: importing everything is what takes long."""
    folder, names, *options = sys.argv[1:]
    for name in names.split(","):
        child = os.fork()
        if not child:
            fuzz(name, Path(folder) / name, options)
        os.waitpid(child, 0)


def fuzz(name: str, folder: Path, options: list[str]) -> None:
    """Fuzz a target until libFuzzer's options say that it is enough; never returns."""
    target = TARGETS[name]
    inputs = folder / "corpus"
    inputs.mkdir(parents=True, exist_ok=True)
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    seeds = [*target.seeds(), *(path.read_bytes() for path in (CORPUS / name).glob("*"))]
    for number, seed in enumerate(seeds):
        (inputs / f"seed-{number}").write_bytes(seed)
    longest = max(4096, *(2 * len(seed) for seed in seeds))
    # AMD's VCEKs have serial number 0, and what is fuzzed is often wrong in harmless ways.
    warnings.simplefilter("ignore")
    arguments = [f"-max_len={longest}", f"-artifact_prefix={folder}/", "-timeout=20", *options]
    atheris.Setup([sys.argv[0], *arguments, str(inputs)], lambda data: try_one(target, data))
    atheris.Fuzz()
    os._exit(0)


def try_one(target, data: bytes) -> None:
    """Give a target some bytes; what it may not raise ends the process."""
    target.try_one(data)


if __name__ == "__main__":
    main()
