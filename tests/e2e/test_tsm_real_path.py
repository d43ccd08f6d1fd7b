"""SEV-SNP and TDX through configfs-tsm where the kernel has it, to the unmodified client."""

import subprocess
import sys

import pytest

from tests.attesters import tsmfs
from tests.docs.pages import ROOT


@pytest.mark.skipif(bool(tsmfs.missing()), reason=f"no FUSE: {tsmfs.missing()} is missing")
@pytest.mark.parametrize(
    ("platform", "rule"),
    [
        ("sev-snp", "accept[0].measurements.measurement"),
        ("tdx", "accept[0].measurements.mrtd"),
    ],
)
def test_verified_end_to_end(platform, rule):
    """Evidence made at the real path is accepted over TLS, and refused by name under another."""
    program = ["-m", "tests.e2e.tsm_server", platform]
    command = ["unshare", "-m", sys.executable, *program]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    if "unshare failed" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{platform} False [1.5, 2.5]",
        f"['{rule}']",
        "entries left: 0",
    ]
