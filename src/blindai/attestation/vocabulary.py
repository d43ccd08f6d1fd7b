"""Which claims each platform can make: the words that a policy may use.

A policy that names anything else is refused at load, so a misspelt rule cannot pass for a
rule. A verifier that emits anything else fails the contract tests.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from blindai.attestation.model import Platform

_ADVISORY: Final = re.compile(r"(INTEL-(SA|DOC|TA)|AMD-SB|AMD-SN)-[0-9]{1,8}")
_PCRS: Final = frozenset(f"pcr{index}" for index in range(24))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The claims of one platform.

    Attributes:
        identity: Sets of measurements, each of which pins what code runs. A policy has to
            name all of at least one set. Empty where the platform measures no code.
        measurements: Every measurement, those of `identity` included.
        versions: Every security version number.
        weaknesses: Every weakness but advisories, which follow the vendor's numbering.
    """

    identity: tuple[frozenset[str], ...]
    measurements: frozenset[str]
    versions: frozenset[str]
    weaknesses: frozenset[str]

    def knows_weakness(self, name: str) -> bool:
        """Return whether `name` is a weakness of this platform, or an advisory."""
        return name in self.weaknesses or _ADVISORY.fullmatch(name) is not None

    def shorthand(self) -> str | None:
        """Return what `measurement = …` in a policy stands for, where that is clear."""
        single = [next(iter(names)) for names in self.identity if len(names) == 1]
        return single[0] if single else None


_DCAP_WEAKNESSES: Final = frozenset(
    {
        "debug",
        "tcb-out-of-date",
        "tcb-out-of-date-configuration-needed",
        "sw-hardening-needed",
        "configuration-needed",
        "configuration-and-sw-hardening-needed",
        "td-relaunch-advised",
        "td-relaunch-advised-configuration-needed",
        "smt",
        "cached-keys",
        "dynamic-platform",
        "stale-endorsements",
    }
)
_SNP_WEAKNESSES: Final = frozenset(
    {
        "debug",
        "smt",
        "migration-agent",
        "milan-vcek-extractable",
        "alias-check-incomplete",
        "no-revocation-list",
        "stale-endorsements",
        "tcb-not-committed",
        "launched-on-older-tcb",
        "vmpl-not-zero",
    }
)
_TPM_WEAKNESSES: Final = frozenset(
    {
        "memory-not-encrypted",
        "sha1",
        "event-log-mismatch",
        "ak-not-certified",
        "no-revocation-list",
        "stale-endorsements",
    }
)
_TPM_EVENTS: Final = frozenset(
    {"kernel", "initrd", "command_line", "boot_authority", "secure_boot", "ak"}
)

_SNP_MEASUREMENTS: Final = frozenset(
    {
        "measurement",
        "host_data",
        "family_id",
        "image_id",
        "id_key_digest",
        "author_key_digest",
        "report_id",
        "policy",
        "product",
        "chip_id",
        "csp_id",
    }
)
_SNP_VERSIONS: Final = frozenset(
    {"fmc", "bootloader", "tee", "snp", "microcode", "guest_svn", "abi_major", "abi_minor"}
)
_TDX_MEASUREMENTS: Final = frozenset(
    {
        "mrtd",
        "rtmr0",
        "rtmr1",
        "rtmr2",
        "rtmr3",
        "mrconfigid",
        "mrowner",
        "mrownerconfig",
        "mrseam",
        "mrsignerseam",
        "mrservicetd",
        "td_attributes",
        "xfam",
        "fmspc",
        "piid",
        "chip_id",
    }
)

VOCABULARY: Final[dict[Platform, Vocabulary]] = {
    Platform.SIMULATION: Vocabulary(
        identity=(),
        measurements=frozenset({"measurement"}),
        versions=frozenset(),
        weaknesses=frozenset({"simulated"}),
    ),
    Platform.SGX: Vocabulary(
        identity=(frozenset({"mrenclave"}), frozenset({"mrsigner", "isv_prod_id"})),
        measurements=frozenset(
            {
                "mrenclave",
                "mrsigner",
                "isv_prod_id",
                "isv_family_id",
                "isv_ext_prod_id",
                "attributes",
                "xfrm",
                "miscselect",
                "config_id",
                "fmspc",
                "piid",
                "chip_id",
            }
        ),
        versions=frozenset({"isv_svn", "config_svn", "tcb_evaluation_data_number"}),
        weaknesses=_DCAP_WEAKNESSES,
    ),
    Platform.TDX: Vocabulary(
        identity=(
            frozenset({"mrtd", "rtmr1", "rtmr2"}),
            frozenset({"mrtd", "rtmr0", "rtmr1", "rtmr2"}),
            frozenset({"mrtd", "mrconfigid"}),
            frozenset({"mrtd", "mrownerconfig"}),
        ),
        measurements=_TDX_MEASUREMENTS | _TPM_EVENTS - {"ak"},
        versions=frozenset({"tee_tcb_svn_0", "tee_tcb_svn_1", "tcb_evaluation_data_number"}),
        weaknesses=_DCAP_WEAKNESSES | {"sept-ve-enabled", "service-td-bound"},
    ),
    Platform.SEV_SNP: Vocabulary(
        identity=(
            frozenset({"measurement"}),
            frozenset({"id_key_digest"}),
            frozenset({"author_key_digest"}),
        ),
        measurements=_SNP_MEASUREMENTS,
        versions=_SNP_VERSIONS,
        weaknesses=_SNP_WEAKNESSES,
    ),
    Platform.NITRO: Vocabulary(
        identity=(
            frozenset({"pcr0"}),
            frozenset({"pcr8"}),
            frozenset({"pcr1", "pcr2"}),
        ),
        measurements=frozenset(f"pcr{index}" for index in range(32)) | {"module_id"},
        versions=frozenset(),
        weaknesses=frozenset({"debug"}),
    ),
    Platform.TPM: Vocabulary(
        identity=tuple(frozenset({name}) for name in ("pcr9", "pcr4", "pcr8", "pcr11", "pcr12")),
        measurements=_PCRS | _TPM_EVENTS | {"chip_id"},
        versions=frozenset({"firmware"}),
        weaknesses=_TPM_WEAKNESSES,
    ),
    Platform.AZURE_VTPM: Vocabulary(
        # Both halves: whoever owns any SNP or TDX machine can run a paravisor of his own in it,
        # which quotes whatever PCRs he likes; and the paravisor alone does not pin the system.
        identity=tuple(
            frozenset({paravisor, register})
            for paravisor in ("measurement", "id_key_digest", "author_key_digest", "mrtd")
            for register in ("pcr9", "pcr4", "pcr8", "pcr11", "pcr12")
        ),
        measurements=_PCRS | _TPM_EVENTS | _SNP_MEASUREMENTS | _TDX_MEASUREMENTS,
        versions=_SNP_VERSIONS
        | {"firmware", "tee_tcb_svn_0", "tee_tcb_svn_1", "tcb_evaluation_data_number"},
        weaknesses=(_SNP_WEAKNESSES | _DCAP_WEAKNESSES | _TPM_WEAKNESSES) - {"memory-not-encrypted"}
        | {"sept-ve-enabled", "service-td-bound"},
    ),
    Platform.NVIDIA_GPU: Vocabulary(
        # An NVSwitch has no driver of its own.
        identity=(
            frozenset({"driver_version", "vbios_version"}),
            frozenset({"fwid", "vbios_version"}),
        ),
        measurements=frozenset(
            {"driver_version", "vbios_version", "fwid", "chip_id", "ueid", "model"}
        ),
        versions=frozenset(),
        weaknesses=frozenset(
            {
                "debug",
                "recovery",
                "not-secure",
                "no-reference-measurements",
                "measurements-differ-from-reference",
                "no-revocation-check",
                "stale-endorsements",
            }
        ),
    ),
}
