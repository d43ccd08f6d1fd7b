"""Write a bill of materials for each lock file that is shipped: `make sbom`.

CycloneDX 1.6, made by cyclonedx-py from the hashed locks. The same lock gives the same file. What
was written is compared with the lock: a package or a hash that is missing is an error.

    sbom.py --cyclonedx PROGRAM [--output FOLDER] [LOCK …]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("client.txt", "server.txt", "vm.txt")
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def main() -> None:
    """Write the bills that the command line names, or all."""
    parser = argparse.ArgumentParser(description="Write bills of materials.")
    parser.add_argument("locks", nargs="*", default=list(LOCKS))
    parser.add_argument("--cyclonedx", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "sbom")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.locks:
        lock = ROOT / "requirements" / name
        bill = describe(options.cyclonedx, lock)
        locked = load_lock(lock.read_text())
        if problems := compare(bill, locked):
            sys.exit("\n".join(f"{name}: {problem}" for problem in problems))
        target = options.output / f"blindai-{lock.stem}.cdx.json"
        target.write_text(json.dumps(bill, indent=1, sort_keys=True) + "\n")
        print(f"{target}: {len(locked)} packages")


def describe(program: Path, lock: Path) -> dict:
    """Return the bill of one lock file."""
    done = subprocess.run(
        [program, "requirements", "--pyproject", ROOT / "pyproject.toml", "--output-reproducible",
         "--sv", "1.6", "--of", "JSON", lock],
        capture_output=True, text=True, check=False, env={"PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"cyclonedx-py failed: {done.stderr.strip()}")
    bill = json.loads(done.stdout)
    for component in bill["components"]:
        # The line of the lock, hashes and all, which stand beside it already.
        del component["description"]
    everything = sorted(component["bom-ref"] for component in bill["components"])
    for entry in bill["dependencies"]:
        if entry["ref"] == "root-component":
            # A lock does not say who asked for what; the product has all of it.
            entry["dependsOn"] = everything
    return bill


def load_lock(text: str) -> dict[tuple[str, str], frozenset[str]]:
    """Return what a lock file pins: (name, version) → SHA-256 digests that are accepted."""
    found: dict[tuple[str, str], frozenset[str]] = {}
    for entry in text.replace("\\\n", " ").splitlines():
        if not entry.strip() or entry.lstrip().startswith("#"):
            continue
        pin = _PIN.match(entry)
        hashes = frozenset(_HASH.findall(entry))
        if pin is None or not hashes:
            sys.exit(f"expected NAME==VERSION with hashes, came {entry[:80]!r}")
        found[pin[1].lower(), pin[2]] = hashes
    return found


def compare(bill: dict, locked: dict[tuple[str, str], frozenset[str]]) -> list[str]:
    """Return how a bill differs from what is locked, each as a sentence."""
    listed = {
        (component["name"].lower(), component["version"]): frozenset(
            digest["content"]
            for reference in component.get("externalReferences", ())
            for digest in reference.get("hashes", ())
        )
        for component in bill["components"]
    }
    problems = [f"{n} {v} is locked and not listed" for n, v in sorted(locked.keys() - listed)]
    problems += [f"{n} {v} is listed and not locked" for n, v in sorted(listed.keys() - locked)]
    problems += [
        f"{n} {v} is listed with other hashes"
        for n, v in sorted(locked.keys() & listed)
        if locked[n, v] != listed[n, v]
    ]
    return problems


if __name__ == "__main__":
    warnings.simplefilter("error")
    main()
