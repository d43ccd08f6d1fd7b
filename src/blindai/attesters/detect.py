"""Find out which trusted hardware this machine has.

Always true here: nothing falls back to simulation. Where no hardware is found, what was looked
for and what was there is said, so that a person can decide.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from blindai.attestation.model import DEVICE_PLATFORMS, Platform
from blindai.attesters import azure_vtpm, nitro, nvidia_gpu, sgx, tpm, tsm
from blindai.attesters.base import Finding, Machine
from blindai.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# In the order of preference: what protects memory comes first, a TPM alone does not. An Azure
# confidential VM shows a TPM, too, so it is asked for before.
PROBES: Final[dict[Platform, Callable[[Machine], Finding]]] = {
    Platform.SGX: sgx.probe,
    Platform.NITRO: nitro.probe,
    Platform.SEV_SNP: partial(tsm.probe, Platform.SEV_SNP),
    Platform.TDX: partial(tsm.probe, Platform.TDX),
    Platform.AZURE_VTPM: azure_vtpm.probe,
    Platform.TPM: tpm.probe,
    Platform.NVIDIA_GPU: nvidia_gpu.probe,
}


def probe(machine: Machine | None = None) -> list[Finding]:
    """Look for every kind of hardware, and return what was found, the best first."""
    return [look(machine or Machine()) for look in PROBES.values()]


def find_platform(machine: Machine | None = None) -> Platform:
    """Return the best platform that this machine has.

    Raises:
        ConfigurationError: If it has none; with all that was looked for and found.
    """
    findings: list[Finding] = []
    for platform, look in PROBES.items():
        if platform in DEVICE_PLATFORMS:
            continue
        finding = look(machine or Machine())
        if finding.available:
            return platform
        findings.append(finding)
    raise ConfigurationError(_explain(findings))


def _explain(findings: Sequence[Finding]) -> str:
    lines = ["this machine has no trusted hardware that can be used:"]
    lines += [f"  {f.platform}: looked for {f.looked_for}; found: {f.found}" for f in findings]
    advice = (
        "`blindai doctor` says how to get what is missing. To run without any protection, for "
        "tests only, ask for it by name: --platform simulation"
    )
    lines.append(advice)
    return "\n".join(lines)
