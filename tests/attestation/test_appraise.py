"""Every rule refuses by itself, and every mismatch is told at once."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.attestation.appraise import MAX_CLOCK_SKEW, appraise, check_block
from blindai.attestation.model import Claims, Mismatch, Platform
from blindai.attestation.policy import Acceptance, Pattern, Policy
from blindai.errors import AppraisalError
from tests.attestation.examples import blocks

NOW = datetime(2026, 6, 1, tzinfo=UTC)
CODE = b"\x01" * 48
CLAIMS = Claims(
    platform=Platform.SEV_SNP,
    measurements={"measurement": CODE, "chip_id": b"\x02" * 64, "host_data": b"\x03" * 32},
    versions={"microcode": 72, "snp": 14},
    weaknesses=frozenset({"smt"}),
    report_data=bytes(64),
    issued_at=NOW,
)
BLOCK = Acceptance(
    platform=Platform.SEV_SNP,
    measurements={"measurement": (Pattern(b"\x09" * 48), Pattern(CODE))},
    minimum={"microcode": 72},
    chips=(b"\x02" * 64,),
    tolerate=frozenset({"smt"}),
    max_age=60,
    devices=(Platform.NVIDIA_GPU,),
)
GPU = Claims(
    platform=Platform.NVIDIA_GPU,
    measurements={"driver_version": b"550", "vbios_version": b"96"},
    versions={},
    weaknesses=frozenset(),
    report_data=bytes(32),
)
GPU_BLOCK = Acceptance(
    platform=Platform.NVIDIA_GPU,
    measurements={"driver_version": (Pattern(b"550"),), "vbios_version": (Pattern(b"96"),)},
)
POLICY = Policy((BLOCK, GPU_BLOCK))


def rules(error):
    """Return where each mismatch of an error stands."""
    return [mismatch.rule for mismatch in error.value.mismatches]


def test_accepted():
    """Claims that meet every rule are accepted, and so is each device by its own block."""
    assert appraise(CLAIMS, POLICY, now=NOW, devices=[GPU]) == (BLOCK, GPU_BLOCK)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"measurements": {**CLAIMS.measurements, "measurement": b"\x04" * 48}}, "measurement"),
        ({"measurements": {**CLAIMS.measurements, "measurement": CODE[:-1]}}, "measurement"),
        ({"measurements": {"chip_id": b"\x02" * 64}}, "measurements.measurement"),
        ({"versions": {"microcode": 71}}, "minimum.microcode"),
        ({"versions": {}}, "minimum.microcode"),
        ({"measurements": {**CLAIMS.measurements, "chip_id": b"\x05" * 64}}, "chips"),
        ({"measurements": {**CLAIMS.measurements, "chip_id": b""}}, "chips"),
        ({"measurements": {"measurement": CODE}}, "chips"),
        ({"weaknesses": frozenset({"debug", "smt"})}, "tolerate"),
        ({"weaknesses": frozenset({"AMD-SB-3015"})}, "tolerate"),
        ({"weaknesses": frozenset({"found next year"})}, "tolerate"),
        ({"issued_at": NOW - timedelta(seconds=61)}, "max_age"),
        ({"issued_at": NOW + timedelta(seconds=MAX_CLOCK_SKEW + 1)}, "max_age"),
        ({"issued_at": None}, "max_age"),
    ],
)
def test_each_rule_refuses(change, rule):
    """One rule that is not met is enough, and the mismatch says which one it is."""
    with pytest.raises(AppraisalError) as error:
        appraise(replace(CLAIMS, **change), POLICY, now=NOW, devices=[GPU])
    assert len(error.value.mismatches) == 1
    assert rules(error)[0].startswith("accept[0].")
    assert rule in rules(error)[0]
    assert rule in str(error.value)


def test_a_demanded_device_is_missing():
    """A block that demands a GPU refuses a machine that shows none."""
    with pytest.raises(AppraisalError) as error:
        appraise(CLAIMS, POLICY, now=NOW)
    assert rules(error) == ["accept[0].devices"]


def test_a_device_is_appraised():
    """A device that no block accepts is refused, although the machine itself is accepted."""
    with pytest.raises(AppraisalError, match="driver_version"):
        appraise(
            CLAIMS,
            POLICY,
            now=NOW,
            devices=[replace(GPU, measurements={"driver_version": b"1", "vbios_version": b"96"})],
        )
    with pytest.raises(AppraisalError, match="platform"):
        appraise(CLAIMS, Policy((replace(BLOCK, devices=()),)), now=NOW, devices=[replace(GPU)])


def test_every_mismatch_is_told():
    """Nothing hides behind the first thing that is wrong, in any block of the platform."""
    claims = replace(
        CLAIMS,
        measurements={"measurement": b"\x04" * 48},
        versions={},
        weaknesses=frozenset({"debug", "smt", "vmpl-not-zero"}),
        issued_at=None,
    )
    other = Acceptance(Platform.SEV_SNP, {"measurement": (Pattern(b"\x07" * 48),)})
    with pytest.raises(AppraisalError) as error:
        appraise(claims, Policy((BLOCK, GPU_BLOCK, other)), now=NOW)
    assert rules(error) == [
        "accept[0].measurements.measurement",
        "accept[0].minimum.microcode",
        "accept[0].chips",
        "accept[0].tolerate",
        "accept[0].tolerate",
        "accept[0].devices",
        "accept[0].max_age",
        "accept[2].measurements.measurement",
        "accept[2].tolerate",
        "accept[2].tolerate",
        "accept[2].tolerate",
    ]
    assert all(str(mismatch) in str(error.value) for mismatch in error.value.mismatches)


def test_any_block_may_match():
    """A block that refuses does not stand in the way of one that accepts."""
    strict = replace(BLOCK, minimum={"microcode": 100})
    assert appraise(CLAIMS, Policy((strict, BLOCK, GPU_BLOCK)), now=NOW, devices=[GPU])[0] is BLOCK


def test_rules_of_two_blocks_do_not_add_up():
    """A machine is accepted by one whole block, never by halves of two."""
    code_only = Acceptance(Platform.SEV_SNP, {"measurement": (Pattern(CODE),)})
    tolerant = Acceptance(
        Platform.SEV_SNP, {"measurement": (Pattern(b"\x08" * 48),)}, tolerate=frozenset({"smt"})
    )
    with pytest.raises(AppraisalError):
        appraise(CLAIMS, Policy((code_only, tolerant)), now=NOW)


def test_another_platform():
    """Genuine hardware of a kind that the policy does not name is refused."""
    with pytest.raises(AppraisalError) as error:
        appraise(replace(CLAIMS, platform=Platform.TDX), POLICY, now=NOW)
    assert error.value.mismatches == (Mismatch("platform", "nvidia-gpu, sev-snp", "tdx"),)


SIMULATED = Claims(
    platform=Platform.SIMULATION,
    measurements={"measurement": b"\x01" * 32},
    versions={},
    weaknesses=frozenset({"simulated"}),
    report_data=bytes(64),
)


@pytest.mark.parametrize("policy", [POLICY, Policy((Acceptance(Platform.SIMULATION),))])
def test_simulation_has_to_be_named(policy):
    """Who meets simulation unasked is told what it is and how to ask for it."""
    with pytest.raises(AppraisalError, match="simulation=True"):
        appraise(SIMULATED, policy, now=NOW)


def test_simulation_refused_for_another_reason():
    """Who asked for simulation is told the real reason, and not to ask for it."""
    policy = Policy(
        (
            Acceptance(
                Platform.SIMULATION,
                {"measurement": (Pattern(b"\x02" * 32),)},
                tolerate=frozenset({"simulated"}),
            ),
        )
    )
    with pytest.raises(AppraisalError, match=r"accept\[0\]\.measurements"):
        appraise(SIMULATED, policy, now=NOW)


@given(blocks(), st.sets(st.text(max_size=8), max_size=3))
def test_a_weakness_is_never_overlooked(block, weaknesses):
    """Whatever a block says, each weakness that it does not name is a mismatch."""
    claims = replace(CLAIMS, platform=block.platform, weaknesses=frozenset(weaknesses))
    found = [m.found for m in check_block(block, claims, now=NOW) if m.rule == "accept.tolerate"]
    assert found == sorted(weaknesses - block.tolerate)


@given(blocks())
def test_a_block_accepts_what_it_lists(block):
    """Claims made of a block's own values meet it."""
    claims = Claims(
        platform=block.platform,
        measurements={name: patterns[-1].value for name, patterns in block.measurements.items()},
        versions=dict(block.minimum),
        weaknesses=block.tolerate,
        report_data=b"",
        issued_at=NOW,
    )
    if block.chips and "chip_id" not in block.measurements:
        claims = replace(claims, measurements={**claims.measurements, "chip_id": block.chips[-1]})
        assert not check_block(block, claims, now=NOW, devices=block.devices)
    elif not block.chips:
        assert not check_block(block, claims, now=NOW, devices=block.devices)
