"""Appraise authentic claims against a policy (RFC 9334 §8.5), and report every mismatch.

No rule is left out because another one failed: a person who has to change a policy, or a
machine, wants the whole list at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blindai.attestation.model import Claims, Mismatch, Platform
from blindai.errors import AppraisalError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from blindai.attestation.policy import Acceptance, Policy

# Seconds by which the clocks of two honest machines may differ.
MAX_CLOCK_SKEW: Final = 300
_SIMULATION_ADVICE: Final = (
    "this server runs in simulation: no hardware protects what is sent to it, and anybody can "
    "make its evidence. The policy does not tolerate that. To test without hardware, ask for "
    "it by name: simulation=True in Python, --simulation on the command line"
)


def appraise(
    claims: Claims, policy: Policy, *, now: datetime, devices: Sequence[Claims] = ()
) -> tuple[Acceptance, ...]:
    """Return the blocks of `policy` that accept `claims`, then each of `devices`.

    Args:
        claims: What the hardware said.
        policy: What is accepted.
        now: The moment to appraise at.
        devices: What the hardware of attached devices said.

    Raises:
        AppraisalError: If a policy block accepts none; with every rule that is not met.
    """
    accepted = [_appraise_one(claims, policy, now, tuple(d.platform for d in devices))]
    accepted += [_appraise_one(device, policy, now, ()) for device in devices]
    return tuple(accepted)


def _appraise_one(
    claims: Claims, policy: Policy, now: datetime, devices: tuple[Platform, ...]
) -> Acceptance:
    mismatches: list[Mismatch] = []
    for index, block in enumerate(policy.accept):
        if block.platform is not claims.platform:
            continue
        found = check_block(block, claims, now=now, devices=devices, where=f"accept[{index}]")
        if not found:
            return block
        mismatches += found
    if not mismatches:
        accepted = ", ".join(sorted({str(block.platform) for block in policy.accept}))
        mismatches = [Mismatch("platform", accepted, str(claims.platform))]
    if not _tolerates_simulation(policy) and claims.platform is Platform.SIMULATION:
        raise AppraisalError(_SIMULATION_ADVICE, mismatches)
    listed = "; ".join(map(str, mismatches))
    msg = f"genuine {claims.platform} hardware, but the policy does not accept it: {listed}"
    raise AppraisalError(msg, mismatches)


def check_block(
    block: Acceptance,
    claims: Claims,
    *,
    now: datetime,
    devices: tuple[Platform, ...] = (),
    where: str = "accept",
) -> list[Mismatch]:
    """Return every rule of `block` that `claims` do not meet."""
    mismatches = _check_measurements(block, claims, where)
    for name, minimum in block.minimum.items():
        version = claims.versions.get(name)
        if version is None or version < minimum:
            found = "nothing" if version is None else str(version)
            mismatches.append(Mismatch(f"{where}.minimum.{name}", f"at least {minimum}", found))
    chip = claims.measurements.get("chip_id", b"")
    if block.chips and (not chip or chip not in block.chips):
        expected = f"one of {len(block.chips)} allowed chips"
        mismatches.append(Mismatch(f"{where}.chips", expected, chip.hex() or "no chip id"))
    mismatches += [
        Mismatch(f"{where}.tolerate", f"no {name!r}, or its name in tolerate", name)
        for name in sorted(claims.weaknesses - block.tolerate)
    ]
    mismatches += [
        Mismatch(f"{where}.devices", f"evidence of a {device}", "none")
        for device in block.devices
        if device not in devices
    ]
    return mismatches + _check_age(block, claims, now, where)


def _check_measurements(block: Acceptance, claims: Claims, where: str) -> list[Mismatch]:
    mismatches = []
    for name, patterns in block.measurements.items():
        found = claims.measurements.get(name)
        if found is None or not any(pattern.matches(found) for pattern in patterns):
            mismatches.append(
                Mismatch(
                    f"{where}.measurements.{name}",
                    " or ".join(map(str, patterns)),
                    "nothing" if found is None else found.hex(),
                )
            )
    return mismatches


def _check_age(block: Acceptance, claims: Claims, now: datetime, where: str) -> list[Mismatch]:
    if block.max_age is None:
        return []
    expected = f"signed within the last {block.max_age} s"
    if claims.issued_at is None:
        return [Mismatch(f"{where}.max_age", expected, "no time in the evidence")]
    age = (now - claims.issued_at).total_seconds()
    if age > block.max_age:
        return [Mismatch(f"{where}.max_age", expected, f"{age:.0f} s old")]
    if age < -MAX_CLOCK_SKEW:
        # Where the host sets that clock, evidence from the future would never grow old.
        return [Mismatch(f"{where}.max_age", expected, f"{-age:.0f} s in the future")]
    return []


def _tolerates_simulation(policy: Policy) -> bool:
    return any(
        block.platform is Platform.SIMULATION and "simulated" in block.tolerate
        for block in policy.accept
    )
