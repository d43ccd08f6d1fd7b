"""`blindai measure`: what a genuine boot of an image shows, and the policy that demands it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from blindai.attestation.model import Platform
from blindai.attestation.stored import StoredEvidence
from blindai.cli.files import read_bounded, write_file
from blindai.cli.options import json_option
from blindai.errors import ConfigurationError
from blindai.measure.image import load_image, read_file
from blindai.measure.nitro import MAX_EIF_BYTES, measure_nitro
from blindai.measure.sev_snp import SNP_ACTIVE, measure_sev_snp
from blindai.measure.sgx import SIGSTRUCT_SIZE, measure_sgx
from blindai.measure.tdx import MAX_FIRMWARE_BYTES, measure_tdx
from blindai.measure.tpm import Golden, golden_from_log, golden_of_firmware, measure_tpm

if TYPE_CHECKING:
    from blindai.measure.image import MachineImage
    from blindai.measure.prediction import Measured

MACHINE_PLATFORMS: Final = (Platform.TPM, Platform.SEV_SNP, Platform.TDX)
PLATFORMS: Final = (*MACHINE_PLATFORMS, Platform.NITRO, Platform.SGX)
_AK_SIZE: Final = 32
_file = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.option(
    "--platform",
    type=click.Choice([str(platform) for platform in PLATFORMS]),
    help="By default what the image is of: nitro (.eif), sgx (.sig), else tpm.",
)
@click.option("--out", type=_file, help="Write the policy for `blindai verify --policy`.")
@click.option("--ak", metavar="HEX", help="tpm: digest of the attestation key that was enrolled.")
@click.option("--golden", type=_file, help="tpm: evidence (verify --save) of a trusted boot.")
@click.option("--firmware", type=_file, help="The machine's firmware, such as OVMF.fd.")
@click.option(
    "--memory",
    type=click.IntRange(256, 1 << 24),
    default=2048,
    show_default=True,
    help="MiB of the machine: QEMU writes into the kernel where the initrd goes.",
)
@click.option(
    "--processors",
    type=click.IntRange(1, 4096),
    default=1,
    show_default=True,
    help="sev-snp: number of virtual processors.",
)
@click.option("--cpu-model", default="EPYC-v4", show_default=True, help="sev-snp: as QEMU has it.")
@json_option
def measure(
    image: Path,
    *,
    platform: str | None,
    out: Path | None,
    ak: str | None,
    golden: Path | None,
    firmware: Path | None,
    memory: int,
    processors: int,
    cpu_model: str,
    as_json: bool,
) -> None:
    """Compute offline what a genuine boot of IMAGE has to show, and write the policy.

    IMAGE is the folder that `make vm` writes, an enclave image file of Nitro (.eif), or the
    SIGSTRUCT of an SGX enclave (.sig). What cannot be predicted is named.
    """
    chosen = Platform(platform) if platform else _platform_of(image)
    if ak is not None and chosen is not Platform.TPM:
        msg = f"--ak: a {chosen} has no attestation key to enrol"
        raise ConfigurationError(msg)
    if chosen is Platform.NITRO:
        found = measure_nitro(read_file(image, MAX_EIF_BYTES))
    elif chosen is Platform.SGX:
        found = measure_sgx(read_file(image, SIGSTRUCT_SIZE))
    else:
        machine = load_image(image)
        if chosen is Platform.SEV_SNP:
            path = _required(firmware, chosen)
            found = measure_sev_snp(
                machine, path, processors=processors, model=cpu_model, features=SNP_ACTIVE
            )
        elif chosen is Platform.TDX:
            content = read_file(_required(firmware, chosen), MAX_FIRMWARE_BYTES)
            found = measure_tdx(machine, content, memory=memory << 20)
        else:
            seen = _golden(machine, golden, firmware)
            found = measure_tpm(machine, memory=memory << 20, golden=seen)
    _show(found, ak, out, as_json=as_json)


def _platform_of(image: Path) -> Platform:
    if image.is_dir():
        return Platform.TPM
    kinds = {".eif": Platform.NITRO, ".sig": Platform.SGX}
    if image.suffix not in kinds:
        msg = f"{image}: expected a folder, an .eif or a .sig file; else name it with --platform"
        raise ConfigurationError(msg)
    return kinds[image.suffix]


def _required(firmware: Path | None, platform: Platform) -> Path:
    if firmware is None:
        msg = f"{platform}: the firmware is measured, too: give it with --firmware"
        raise ConfigurationError(msg)
    return firmware


def _golden(image: MachineImage, evidence: Path | None, firmware: Path | None) -> Golden | None:
    if evidence is not None:
        data = read_bounded(evidence)
        attached = StoredEvidence.parse(data).bundle.evidence.attachments
        if "event_log" not in attached:
            msg = f"--golden: {evidence} holds no event log"
            raise ConfigurationError(msg)
        how = f"evidence with SHA-256 {hashlib.sha256(data).hexdigest()}"
        return golden_from_log(image, attached["event_log"], how)
    if firmware is not None:
        return golden_of_firmware(image, read_file(firmware, MAX_FIRMWARE_BYTES))
    return None


def _show(found: Measured, ak: str | None, out: Path | None, *, as_json: bool) -> None:
    if ak is None:
        policy = found.policy()
    else:
        key = _parse_key(ak)
        policy = found.policy(pinned={"ak": (key,)}, tolerate=frozenset({"ak-not-certified"}))
    if out is not None:
        write_file(out, policy.to_toml().encode())
    if as_json:
        click.echo(json.dumps(_to_json(found) | {"policy": policy.to_dict()}))
        return
    for line in found.predictions:
        kind = "golden" if line.golden else "computed"
        for value in line.values:
            click.echo(f"{kind:>13}  {line.name:<12} {value.hex()}")
        click.echo(f"{'':>13}  {'':<12} {line.how}")
    for left in found.unpredicted:
        click.secho(f"{'not predicted':>13}  {left.name:<12} {left.why}", fg="yellow")
    if found.platform is Platform.TPM and ak is None:
        note = "no --ak: the policy wants a certified attestation key"
        click.secho(f"{'note':>13}  {'ak':<12} {note}", fg="yellow")
    click.echo(f"wrote {out}" if out else "\n" + policy.to_toml(), nl=out is not None)


def _to_json(found: Measured) -> dict[str, object]:
    return {
        "platform": str(found.platform),
        "predicted": {
            line.name: {
                "values": [value.hex() for value in line.values],
                "how": line.how,
                "golden": line.golden,
            }
            for line in found.predictions
        },
        "not_predicted": {left.name: left.why for left in found.unpredicted},
    }


def _parse_key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != _AK_SIZE:
        msg = f"--ak: expected {2 * _AK_SIZE} hexadecimal digits, found {len(text)} characters"
        raise ConfigurationError(msg)
    return key
