"""The measured machine from end to end: built, measured, booted, verified, and tampered with.

Nothing here is a stand-in but the processor (emulated) and the TPM (in software): it is real
firmware, kernel, verified root, server, quote, policy and client. Run by `make vm-test`.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import blindai
from blindai.attestation import certs
from blindai.attesters.tpm import TpmAttester
from blindai.attesters.tpm.device import TpmDevice
from blindai.attesters.tpm.enrolment import create_challenge
from blindai.measure.kernel import authenticode
from blindai.platforms.tpm.keys import parse_key
from tests.attesters import swtpm
from tests.inference.models import add
from tests.vm.machines import FIRMWARE, VirtualMachine, missing

ROOT = Path(__file__).parents[2]
SOURCES = ("deploy", "requirements", "src", "pyproject.toml", "README.md", "LICENSE")
ARTIFACTS = ("cmdline", "initrd", "manifest.json", "root.img", "vmlinuz")
BLOCK = 4096

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(missing()), reason=f"this computer lacks {missing()}"),
    pytest.mark.skipif(bool(swtpm.missing()), reason=f"this computer lacks {swtpm.missing()}"),
]


def command(*arguments):
    """Run blindai as a person does; return the exit code and all that it printed."""
    program = [sys.executable, "-m", "blindai", *map(str, arguments)]
    done = subprocess.run(
        program, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=120,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """This tree as it is now: what others do to it meanwhile is not in the image."""
    snapshot = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, snapshot / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copyfile(ROOT / name, snapshot / name)
    return snapshot


@pytest.fixture(scope="module")
def build(source, tmp_path_factory):
    """Return a function that builds the image into a new folder."""
    models = tmp_path_factory.mktemp("models")
    (models / "add.onnx").write_bytes(add(2.5))

    def run(name):
        output = tmp_path_factory.mktemp(name) / "image"
        program = [sys.executable, source / "deploy/vm/build.py", "--source", source]
        program += ["--output", output, "--models", models, "--cache", ROOT / "build/vm-cache"]
        subprocess.run([*map(str, program)], check=True, timeout=600)
        return output

    return run


@pytest.fixture(scope="module")
def image(build):
    return build("first")


@pytest.fixture(scope="module")
def tpm(tmp_path_factory):
    """A TPM that was enrolled before it came into the machine: its state, and its key's digest."""
    vendor = swtpm.TpmVendor(tmp_path_factory.mktemp("vendor"))
    state = vendor.make("machine")
    running = swtpm.SoftwareTpm(state)
    running.start()
    try:
        attester = TpmAttester(device=TpmDevice(running.tcti))
        enrolment = attester.enrolment()
        endorsement = certs.parse_certificate(enrolment.ek_certificate, "EK")
        endorsement.verify_directly_issued_by(vendor._certificates()[0])
        challenge, secret = create_challenge(enrolment)
        assert attester.answer(challenge) == secret
    finally:
        running.stop()
    return state, parse_key(enrolment.ak_public).digest.hex()


@pytest.fixture(scope="module")
def policy(image, tpm, tmp_path_factory):
    """The policy that `blindai measure` writes, the firmware's golden values included."""
    out = tmp_path_factory.mktemp("policy") / "policy.toml"
    code, said = command(
        "measure", image, "--ak", tpm[1], "--firmware", FIRMWARE, "--out", out
    )  # fmt: skip
    assert code == 0, said
    return out


@pytest.fixture
def boot(tpm, tmp_path):
    """Return a function that boots an image with the enrolled TPM."""
    return lambda image: VirtualMachine(tmp_path / "machine", image, tpm[0])


@pytest.fixture
def tampered(image, tmp_path):
    """A copy of the image, to be changed."""
    copy = tmp_path / "tampered"
    shutil.copytree(image, copy)
    return copy


def test_built_twice_the_image_is_the_same_to_the_bit(build, image):
    """SHA-256 of every artifact."""
    first, second = (
        {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ARTIFACTS}
        for folder in (image, build("second"))
    )
    assert first == second
    assert sorted(path.name for path in image.iterdir()) == sorted(ARTIFACTS)


def test_the_image_has_no_shell_and_no_other_program(image):
    """Python is the only program; nothing that opens a session or installs anything is there."""
    listed = subprocess.run(
        ["unsquashfs", "-lln", "-o", "0", image / "root.img"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    files = [line.split(None, 5) for line in listed.splitlines() if line[:1] in "-cbps"]
    assert len(files) > 1000
    runnable = {f[-1] for f in files if "x" in f[0] and not re.search(r"\.so(\.\d+)*$", f[-1])}
    assert runnable == {"squashfs-root/usr/bin/python3.11"}
    assert not [f for f in files if "s" in f[0][1:] or f[0][0] in "cbps"], (
        "no set-user-id, no device"
    )


def test_the_kernels_digest_is_the_one_that_debian_signed(image):
    """Computed by us, and found in the signature that Debian put into the kernel."""
    kernel = (image / "vmlinuz").read_bytes()
    assert authenticode(kernel, "sha256") in kernel


def test_a_genuine_boot_is_verified_and_predicts(image, policy, tpm, boot, tmp_path):
    """From outside, with a policy that was computed before the machine was ever booted."""
    with boot(image) as machine:
        assert machine.wait_ready(), machine.console
        code, said = command("verify", machine.address, "--policy", policy)
        assert code == 0, said
        with blindai.connect(machine.address, policy=blindai.Policy.load(policy)) as client:
            result = client.run_model("add", np.array([1, 2], np.float32))
        np.testing.assert_array_equal(result["y"], np.array([3.5, 4.5], np.float32))
        bundle = tmp_path / "trusted.bundle"
        code, said = command("verify", machine.address, "--policy", policy, "--save", bundle)
        assert code == 0, said
        console = machine.console
    code, said = command("measure", image, "--golden", bundle, "--ak", tpm[1], "--json")
    assert code == 0, said
    predicted = json.loads(said)["predicted"]
    assert {"pcr0", "pcr1"} <= set(predicted)
    known = json.loads((image / "manifest.json").read_text())["golden"]
    if hashlib.sha256(FIRMWARE.read_bytes()).hexdigest() in {e["firmware_sha256"] for e in known}:
        _, ours = command("measure", image, "--firmware", FIRMWARE, "--ak", tpm[1], "--json")
        ours = json.loads(ours)["predicted"]
        assert {n: v["values"] for n, v in ours.items()} == {
            n: v["values"] for n, v in predicted.items()
        }
    check_console(console)


def check_console(console):
    """Nothing of a request, and no token, is on the console."""
    lines = [line for line in console.splitlines() if "blindai" in line or line.startswith("{")]
    assert any('"event": "ready"' in line for line in lines)
    assert "token" not in console
    assert "3.5" not in console.partition('"event": "ready"')[2]


def refuse(machine, policy):
    """Return the names of the measurements for which the client refuses."""
    assert machine.wait_ready(), machine.console
    code, said = command("verify", machine.address, "--policy", policy, "--json")
    assert code == 3, said
    document = json.loads(said.strip().splitlines()[-1])
    assert document["type"] == "AppraisalError"
    return set(re.findall(r"\b(pcr\d+|ak)\b", document["error"]))


def test_one_changed_byte_of_the_command_line_is_refused_by_name(tampered, policy, boot):
    """It boots, and its PCR 9 tells."""
    line = (tampered / "cmdline").read_text()
    (tampered / "cmdline").write_text(line.replace("loglevel=4", "loglevel=5"))
    with boot(tampered) as machine:
        assert refuse(machine, policy) == {"pcr9"}


def test_one_changed_byte_of_the_initrd_is_refused_by_name(tampered, policy, boot):
    """A file's time, which changes nothing of what runs: its PCR 9 tells all the same."""
    content = bytearray((tampered / "initrd").read_bytes())
    time_of_first = 6 + 5 * 8  # behind the magic, five fields of eight digits
    assert content[time_of_first + 7 : time_of_first + 8] == b"0"
    content[time_of_first + 7 : time_of_first + 8] = b"1"
    (tampered / "initrd").write_bytes(content)
    with boot(tampered) as machine:
        assert refuse(machine, policy) == {"pcr9"}


def test_one_changed_byte_of_the_root_image_stops_the_machine(tampered, boot):
    """The kernel finds it when it reads the block, and panics rather than hand it out."""
    with (tampered / "root.img").open("r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes((byte[0] ^ 1,)))
    with boot(tampered) as machine:
        assert not machine.wait_ready()
        console = machine.console
    assert re.search(r"verity: .*data block 0 is corrupted", console), console
    assert '"event": "ready"' not in console


def test_a_changed_root_image_with_a_root_hash_to_match_is_refused_by_name(tampered, policy, boot):
    """Whoever changes the hash, too, changes the command line: its PCR 9 tells."""
    line = (tampered / "cmdline").read_text()
    blocks, root, salt = re.search(r"blindai\.verity=(\d+):(\w+):(\w+)", line).groups()
    image = tampered / "root.img"
    content = image.read_bytes()[: int(blocks) * BLOCK]
    # Seconds of the superblock's time: nothing else of the system is another.
    image.write_bytes(content[:8] + bytes((content[8] ^ 1,)) + content[9:])
    said = subprocess.run(
        [
            "veritysetup", "format", "--no-superblock", "--hash", "sha256", "--salt", salt,
            "--data-blocks", blocks, "--hash-offset", str(int(blocks) * BLOCK), image, image,
        ],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    other = re.search(r"Root hash:\s*(\w+)", said)[1]
    assert other != root
    (tampered / "cmdline").write_text(line.replace(root, other))
    with boot(tampered) as machine:
        assert refuse(machine, policy) == {"pcr9"}


def test_another_machines_tpm_is_refused_by_name(image, policy, tmp_path):
    """The same image on a machine that nobody enrolled."""
    folder = tmp_path / "vendor"
    folder.mkdir()
    state = swtpm.TpmVendor(folder).make("stranger")
    with VirtualMachine(tmp_path / "machine", image, state) as machine:
        assert refuse(machine, policy) == {"ak"}
