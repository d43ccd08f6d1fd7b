"""Ask whether a locked package has a known vulnerability: `make audit`.

pip-audit asks, and says that nothing is known also where it could ask nobody: a mirror of the
index without the vulnerability service answers "not found" for every package. So what counts here
is that each locked package was looked up. Exit code 0: each was, and nothing is known; 1:
something is known; 2: not audited, which is no pass.

    audit.py --pip-audit PROGRAM [--service pypi|osv] [LOCK …]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from sbom import LOCKS, ROOT, load_lock

KNOWN = 1
NOT_AUDITED = 2
_SECONDS = 15


def main() -> int:
    """Audit the locks that the command line names, or all that are shipped."""
    parser = argparse.ArgumentParser(description="Look for known vulnerabilities.")
    parser.add_argument("locks", nargs="*", default=list(LOCKS))
    parser.add_argument("--pip-audit", type=Path, required=True)
    parser.add_argument("--service", choices=("pypi", "osv"), default="pypi")
    options = parser.parse_args()
    worst = 0
    for name in options.locks:
        lock = ROOT / "requirements" / name
        output, complaint = ask(options.pip_audit, options.service, lock)
        code, lines = judge(output, complaint, load_lock(lock.read_text()))
        print(*(f"{name}: {line}" for line in lines), sep="\n", flush=True)
        worst = max(worst, code)
        if code == NOT_AUDITED:
            break  # the next one could not be audited either
    return worst


def ask(program: Path, service: str, lock: Path) -> tuple[str, str]:
    """Return what pip-audit says of a lock file: its report, and its complaint."""
    done = subprocess.run(
        [program, "--disable-pip", "--require-hashes", "--requirement", lock, "--format", "json",
         "--vulnerability-service", service, "--timeout", str(_SECONDS),
         "--progress-spinner", "off"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout, done.stderr


def judge(
    output: str, complaint: str, locked: dict[tuple[str, str], frozenset[str]]
) -> tuple[int, list[str]]:
    """Return the exit code and what to say.

    Args:
        output: Of pip-audit; JSON, where it got so far.
        complaint: Of pip-audit.
        locked: What had to be looked up.
    """
    try:
        entries = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = next(iter(reversed(complaint.strip().splitlines())), "it said nothing")
        return NOT_AUDITED, [f"NOT AUDITED, which is no pass: pip-audit failed: {last[:300]}"]
    looked_up = {
        (entry["name"].lower(), entry.get("version")): entry.get("vulns", ())
        for entry in entries
        if "skip_reason" not in entry
    }
    lines = [
        f"{name} {version}: {each['id']}, fixed in {', '.join(each['fix_versions']) or 'none yet'}"
        for (name, version), known in sorted(looked_up.items())
        for each in known
    ]
    missing = sorted(name for name, version in locked if (name, version) not in looked_up)
    if missing:
        lines.append(
            f"NOT AUDITED, which is no pass: {len(missing)} of {len(locked)} packages were not "
            f"looked up ({', '.join(missing[:5])} …). The vulnerability service cannot be reached "
            "from here; run this where it can."
        )
        return NOT_AUDITED, lines
    if lines:
        return KNOWN, lines
    return 0, [f"{len(locked)} packages were looked up, and no vulnerability is known"]


if __name__ == "__main__":
    sys.exit(main())
