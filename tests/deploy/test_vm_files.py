"""The parts of deploy/vm that need neither root nor a virtual machine."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
VM = ROOT / "deploy" / "vm"


def load(name):
    """Import a script of deploy/vm, which is no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, VM / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    return sys.modules[name]


cpio, debian, machine = (load(name) for name in ("cpio", "debian", "machine"))
build = load("build")


def answer(*options, kind=5, address=b"\x0a\0\x02\x0f"):
    """Return a DHCP answer with the options given, as (number, value)."""
    head = b"\x02" + bytes(15) + address + bytes(216) + machine.MAGIC
    body = b"".join(bytes((n, len(v))) + v for n, v in ((53, bytes((kind,))), *options))
    return head + body + b"\xff"


MASK, SERVER, ROUTER = (1, b"\xff\xff\xff\0"), (54, b"\x0a\0\x02\x02"), (3, b"\x0a\0\x02\x02")


def test_a_lease_is_what_the_answer_says():
    """Address, mask, router and time."""
    lease = machine.parse_answer(answer(MASK, SERVER, ROUTER, (51, b"\0\0\x0e\x10")), 5)
    assert lease == machine.Lease(
        b"\x0a\0\x02\x0f", b"\xff\xff\xff\0", b"\x0a\0\x02\x02", b"\x0a\0\x02\x02", 3600
    )


def test_an_answer_without_a_router_is_a_lease_without_a_route():
    """A network that leads nowhere else is a network."""
    assert machine.parse_answer(answer(MASK, SERVER), 5).router is None


@pytest.mark.parametrize(
    "given_answer",
    [
        answer(MASK, SERVER, kind=6),
        answer(SERVER),
        answer(MASK),
        answer((1, b"\xff"), SERVER),
        answer(MASK, SERVER)[:-3],
        answer(MASK, SERVER).replace(machine.MAGIC, b"none"),
    ],
    ids=["refusal", "no mask", "no server", "short mask", "cut off", "no magic"],
)
def test_what_is_no_lease_is_passed_over(given_answer):
    """The next answer may be one."""
    assert machine.parse_answer(given_answer, 5) is None


@given(st.binary(max_size=64).map(lambda rest: answer(MASK, SERVER)[:240] + rest))
def test_any_options_are_a_lease_or_none(garbage):
    """Whatever the host's network sends ends in no error."""
    lease = machine.parse_answer(garbage, 5)
    assert lease is None or len(lease.address) == len(lease.mask) == 4


ENTRIES = (
    cpio.directory("dev"),
    cpio.file("init", b"\x7fELF", 0o500),
    cpio.file("modules-order", b"a.ko\nb.ko\n"),
)


def test_an_archive_is_the_same_each_time():
    """Nothing of when and where it was written is in it."""
    assert cpio.archive(ENTRIES) == cpio.archive(ENTRIES)


@pytest.mark.skipif(shutil.which("cpio") is None, reason="the program cpio is not installed")
def test_an_archive_is_what_cpio_reads(tmp_path):
    """Checked by another implementation of the format."""
    subprocess.run(
        ["cpio", "--extract", "--quiet"], input=cpio.archive(ENTRIES), cwd=tmp_path, check=True
    )
    assert (tmp_path / "init").read_bytes() == b"\x7fELF"
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o500
    assert (tmp_path / "dev").is_dir()
    assert (tmp_path / "modules-order").read_text() == "a.ko\nb.ko\n"


def test_every_package_of_the_image_is_locked():
    """By name, version and SHA-256; and nothing else is."""
    lines = (VM / "packages.txt").read_text().splitlines()
    wanted = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    locked = debian.read_lock(VM / "packages.lock")
    assert [package.name for package in locked] == wanted
    assert all(re.fullmatch(r"[0-9a-f]{64}", package.sha256) for package in locked)


def test_no_address_is_in_a_file_of_the_image():
    """Where packages come from is for apt and pip to know."""
    files = [*VM.iterdir(), *(ROOT / "requirements").glob("vm*")]
    named = [file.name for file in files if file.is_file() and "://" in file.read_text()]
    assert not named


def test_the_lock_of_python_packages_is_split_without_loss():
    """What is compiled and what is installed are the whole lock, each with its hashes."""
    lock = ROOT / "requirements" / "vm.txt"
    compiled, installed = build.only(lock, "tpm2-pytss"), build.without(lock, "tpm2-pytss")
    assert compiled.startswith("tpm2-pytss==")
    assert "--hash=sha256:" in compiled
    assert "tpm2-pytss" not in installed
    pinned = re.findall(r"^[\w.-]+==", lock.read_text(), re.MULTILINE)
    assert len(re.findall(r"^[\w.-]+==", installed, re.MULTILINE)) == len(pinned) - 1


def test_the_init_names_no_shell():
    """Neither program of the machine starts one, and none is in the image to start."""
    for name in ("init.c", "machine.py"):
        text = (VM / name).read_text()
        assert not re.search(r"/bin/(ba|da)?sh|system\(|popen|subprocess", text)


def test_a_package_that_is_another_one_is_refused(tmp_path):
    """By SHA-256, whatever its name says."""
    (tmp_path / "a_1_amd64.deb").write_bytes(b"something else")
    with pytest.raises(SystemExit, match="expected SHA-256"):
        debian.fetch(debian.Package("a", "1", "00" * 32), tmp_path)
