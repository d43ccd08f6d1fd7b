"""Run under `unshare -m`: a server on a stand-in for configfs-tsm at the kernel's own path.

    tsm_server.py sev-snp|tdx

Prints what the unmodified client found. A program of its own, because the mount covers
/sys/kernel for everything in its namespace.
"""

import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

import blindai
from blindai.attestation.model import Platform
from blindai.attestation.policy import Acceptance, Pattern, Policy
from blindai.attesters import Machine, create_attester
from blindai.endorsements import Endorser
from blindai.errors import AppraisalError
from blindai.testing.server import start_server
from tests.attesters import tsmfs
from tests.attesters.test_tsm import SnpKernel, TdxKernel, claims_of
from tests.inference.models import identity

REAL = Path("/sys/kernel/config/tsm/report")


class Stapled:
    """Adds Intel's statements to each quote, which a server fetches where it has a network."""

    def __init__(self, attester, kernel):
        self.platform = attester.platform
        self._attester, self._kernel = attester, kernel

    def attest(self, report_data):
        evidence = self._attester.attest(report_data)
        return replace(evidence, attachments={"collateral": self._kernel.collateral})

    def sealing_key(self):
        return self._attester.sealing_key()

    def rollback_counter(self):
        return None


def main(platform):
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/sys/kernel"], check=True)
    kernel = SnpKernel() if platform == "sev-snp" else TdxKernel()
    with tsmfs.mounted(kernel, REAL):
        attester = create_attester(platform, Machine())
        if platform == "tdx":
            attester = Stapled(attester, kernel)
        claims = claims_of(attester.attest(bytes(32)), kernel.vendor)
        names = (
            ["measurement"]
            if platform == "sev-snp"
            else ["mrtd", *(f"rtmr{i}" for i in range(4)), "mrseam"]
        )
        pins = {name: (Pattern(claims.measurements[name]),) for name in names}
        block = Acceptance(Platform(platform), pins, tolerate=claims.weaknesses)
        other = replace(block, measurements={**pins, names[0]: (Pattern(b"\x77" * 48),)})
        options = {
            "clock": lambda: kernel.vendor.now,
            "anchors": {Platform(platform): kernel.vendor.anchors},
            "endorser": Endorser(),
        }
        with start_server(attester=attester, models={"m": identity()}) as server:
            with blindai.connect(
                server.address, policy=Policy(accept=(block,)), **options
            ) as client:
                result = client.run_model("m", {"x": np.array([1.5, 2.5], np.float32)})
                print(client.attestation.platform, client.attestation.simulated, result[0].tolist())
            try:
                blindai.connect(server.address, policy=Policy(accept=(other,)), **options)
            except AppraisalError as error:
                print([mismatch.rule for mismatch in error.mismatches])
        print("entries left:", len(kernel.entries))


if __name__ == "__main__":
    warnings.simplefilter("ignore", blindai.SecurityWarning)
    main(sys.argv[1])
