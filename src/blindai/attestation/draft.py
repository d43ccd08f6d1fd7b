"""Turn claims into a policy, explain a policy in words, and compare two.

A drafted policy accepts exactly what one machine showed. By itself it proves nothing: it says
that the next connection meets the same thing, not that the thing is good.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from blindai.attestation.model import Platform
from blindai.attestation.policy import Acceptance, Pattern, Policy
from blindai.attestation.vocabulary import VOCABULARY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from blindai.attestation.model import Claims

# Differ from boot to boot or from chip to chip: pinning them would refuse the next restart.
_VOLATILE: Final = frozenset({"report_id", "chip_id", "csp_id", "piid", "module_id", "ueid"})
# Registers that change while the system runs (IMA, applications), or with the instance.
_VOLATILE_PCRS: Final = {
    Platform.NITRO: frozenset({"pcr3", "pcr4"}),
    Platform.TPM: frozenset({"pcr10", *(f"pcr{index}" for index in range(16, 24))}),
    Platform.AZURE_VTPM: frozenset({"pcr10", *(f"pcr{index}" for index in range(16, 24))}),
}
BANNER: Final = (
    "# Written from what a server showed. It accepts exactly that, and proves nothing by itself:\n"
    "# compare the measurements with those you computed from the code, then remove this line.\n"
)

Level = Literal["accepts", "note", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence about a policy.

    Attributes:
        level: "accepts" says what is accepted, "note" what is left open, "warning" what a
            careful reader would change.
        where: The block it speaks of, such as "accept[0]".
        text: The sentence.
    """

    level: Level
    where: str
    text: str


def draft_policy(claims: Sequence[Claims]) -> Policy:
    """Return the policy that accepts what `claims` show, one block for each."""
    return Policy(tuple(_draft_block(each) for each in claims))


def _draft_block(claims: Claims) -> Acceptance:
    words = VOCABULARY[claims.platform]
    volatile = _VOLATILE | _VOLATILE_PCRS.get(claims.platform, frozenset())
    pinned = {
        name: (Pattern(value),)
        for name, value in claims.measurements.items()
        if any(value) and name in words.measurements - volatile
    }
    if claims.platform is Platform.SIMULATION:
        pinned = {}
    return Acceptance(
        platform=claims.platform,
        measurements=pinned,
        minimum=dict(claims.versions),
        tolerate=claims.weaknesses,
    )


def explain_policy(policy: Policy) -> list[Finding]:
    """Return, in plain words, what `policy` accepts and what it does not pin."""
    findings: list[Finding] = []
    for index, block in enumerate(policy.accept):
        findings += _explain_block(block, f"accept[{index}]")
    if policy.models:
        names = ", ".join(sorted(policy.models))
        findings.append(Finding("accepts", "models", f"data goes only to the pinned {names}"))
    else:
        text = "no weights are pinned: data goes to whatever model has the name"
        findings.append(Finding("note", "models", text))
    return findings


def _explain_block(block: Acceptance, where: str) -> list[Finding]:
    words = VOCABULARY[block.platform]
    if block.platform is Platform.SIMULATION:
        text = "accepts simulation: anybody can pretend to be such a server"
        return [Finding("warning", where, text)]
    code = " and ".join(sorted(block.measurements)) or "nothing"
    findings = [Finding("accepts", where, f"{block.platform} whose {code} match")]
    for name, minimum in sorted(block.minimum.items()):
        findings.append(Finding("accepts", where, f"{name} of at least {minimum}"))
    if words.versions and not block.minimum:
        text = "no minimum versions: firmware with known holes is accepted where it is genuine"
        findings.append(Finding("note", where, text))
    if "chip_id" in words.measurements and not block.chips:
        text = "any chip: keys stolen from one chip of this kind are accepted"
        findings.append(Finding("note", where, text))
    for weakness in sorted(block.tolerate):
        grave = weakness in {"debug", "memory-not-encrypted", "simulated", "sha1"}
        level: Level = "warning" if grave else "accepts"
        findings.append(Finding(level, where, f"tolerates {weakness}: {_meaning(weakness)}"))
    if any(pattern.mask for patterns in block.measurements.values() for pattern in patterns):
        findings.append(Finding("note", where, "some measurements are compared under a mask"))
    return findings


_MEANINGS: Final = {
    "debug": "the host can read and change everything inside",
    "memory-not-encrypted": "a TPM measures the boot, but memory is open to who owns the machine",
    "milan-vcek-extractable": "the chip's key can be extracted with physical access",
    "smt": "a sibling thread may watch through shared caches",
    "sha1": "collisions can be made for this hash",
    "no-revocation-list": "nobody looked whether the chip's authority was revoked",
    "alias-check-incomplete": "memory aliasing (BadRAM) was not ruled out at boot",
    "stale-endorsements": "the vendor could not be asked recently",
    "tcb-out-of-date": "the platform runs firmware with published holes",
}


def _meaning(weakness: str) -> str:
    return _MEANINGS.get(weakness, "see the platform's page in docs/platforms")


def diff_policies(old: Policy, new: Policy) -> list[str]:
    """Return the lines that differ, "- " for what `old` alone says, "+ " for `new` alone."""
    before, after = _lines(old.to_dict()), _lines(new.to_dict())
    return [f"- {line}" for line in before if line not in after] + [
        f"+ {line}" for line in after if line not in before
    ]


def _lines(data: object, prefix: str = "") -> list[str]:
    if isinstance(data, dict):
        return _mapping_lines(data, prefix)
    if isinstance(data, list) and data and isinstance(data[0], dict):
        return [line for i, item in enumerate(data) for line in _lines(item, f"{prefix}[{i}]")]
    if isinstance(data, list):
        return [f"{prefix}: {item}" for item in data]
    return [f"{prefix}: {data}"]


def _mapping_lines(data: Mapping[str, object], prefix: str) -> list[str]:
    dot = "." if prefix else ""
    return [line for key, value in data.items() for line in _lines(value, f"{prefix}{dot}{key}")]
