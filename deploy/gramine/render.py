"""Render the manifest: the template, the list of files, and the sizes that an operator chooses.

    render.py trusted.json --enclave-size 8G > blindai.manifest

Needs Gramine's own Python package, whose template language and whose paths it uses.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

TEMPLATE = Path(__file__).with_name("blindai.manifest.template")
ARCH_LIBDIR = "/lib/x86_64-linux-gnu"


def variables(trusted: dict[str, object], options: argparse.Namespace) -> dict[str, object]:
    """Return what the template is rendered with."""
    return {
        **trusted,
        "arch_libdir": ARCH_LIBDIR,
        "enclave_size": options.enclave_size,
        "max_threads": options.max_threads,
        "isvprodid": options.isvprodid,
        "isvsvn": options.isvsvn,
    }


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Render the Gramine manifest.")
    parser.add_argument("trusted", type=Path, help="as trusted_files.py prints it")
    parser.add_argument("--enclave-size", default="8G", help="a power of two")
    parser.add_argument("--max-threads", type=int, default=64)
    parser.add_argument("--isvprodid", type=int, default=1, help="in the evidence; yours to choose")
    parser.add_argument("--isvsvn", type=int, default=1, help="raise it when an old one is unsafe")
    return parser.parse_args(arguments)


def main() -> None:
    """Print the manifest."""
    from graminelibos import Manifest  # noqa: PLC0415 - on a machine with Gramine only

    options = parse_arguments()
    trusted = json.loads(options.trusted.read_text())
    manifest = Manifest.from_template(TEMPLATE.read_text(), variables(trusted, options))
    print(manifest.dumps())


if __name__ == "__main__":
    main()
