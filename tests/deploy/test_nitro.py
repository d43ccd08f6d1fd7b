"""What can be known of the Nitro packaging without an enclave."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
import sys

import pytest
from click.testing import CliRunner

from blindai.cli.serve import serve
from tests.deploy.programs import DEPLOY, load
from tests.docs.pages import ROOT

start = load("nitro/start.py")
vsock_proxy = load("nitro/vsock_proxy.py")


def test_containerfile_copies_what_is_there():
    """Every file that the image is made of is in the repository, and no package lacks a hash."""
    text = (DEPLOY / "nitro" / "Containerfile").read_text()
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    sources = [source for line in copies for source in line.split()]
    assert len(sources) >= 6
    assert all((ROOT / source).exists() for source in sources)
    for command in re.findall(r"pip install[^\\\n]*", text):
        assert "--require-hashes" in command or "--no-deps" in command


def test_unit():
    """The unit carries its port to the same port of the enclave, with no right it does not need."""
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str
    unit.read(DEPLOY / "nitro" / "blindai-vsock@.service")
    service = unit["Service"]
    _, _, script, source, target = shlex.split(
        service["ExecStart"].replace("%i", "50051").replace("${ENCLAVE_CID}", "16")
    )
    assert script.endswith("/vsock_proxy.py")
    assert vsock_proxy.parse_address(source).value == ("0.0.0.0", 50051)
    assert vsock_proxy.parse_address(target).value == (16, 50051)
    assert service["DynamicUser"] == service["NoNewPrivileges"] == "yes"
    assert service["CapabilityBoundingSet"] == ""


def test_commands_of_the_enclave():
    """Each port is carried to loopback, and the server's options are ones that it knows."""
    proxies, server = start.commands("python")
    for command, port in zip(proxies, start.PORTS, strict=True):
        assert vsock_proxy.parse_address(command[-2]).value == (vsock_proxy.CID_ANY, port)
        assert vsock_proxy.parse_address(command[-1]).value == ("127.0.0.1", port)
    assert server[:4] == ["python", "-I", "-m", "blindai"]
    shown = CliRunner().invoke(serve, ["--help"]).output
    options = [part for part in server[5:] if part.startswith("--")]
    assert options
    assert all(option.replace("--no-", "--") in shown for option in options)


def test_loopback_of_a_new_network():
    """An interface that is down is up afterwards, for real in a network namespace."""
    program = (
        "import socket, sys; sys.path.insert(0, sys.argv[1]); import start\n"
        "s = socket.socket(); s.bind(('0.0.0.0', 0)); s.listen(); port = s.getsockname()[1]\n"
        "try: socket.create_connection(('127.0.0.1', port), 1)\n"
        "except OSError: print('down')\n"
        "start.raise_loopback()\n"
        "socket.create_connection(('127.0.0.1', port), 1); print('up')\n"
    )
    command = ["unshare", "-rn", sys.executable, "-c", program, str(DEPLOY / "nitro")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    if "unshare failed" in done.stderr:
        pytest.skip(f"no network namespace here: {done.stderr.strip()}")
    assert done.stdout.split() == ["down", "up"], done.stderr
