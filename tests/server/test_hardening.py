"""Who runs code in the server, or beside it, gets at nothing; each attack fails."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from blindai.attestation.model import Platform
from blindai.confinement.landlock import landlock_version
from blindai.server.config import ServerConfig
from blindai.server.hardening import UNCONFINED, confined
from tests.inference.models import identity
from tests.ports import free_ports

ATTACKS = Path(__file__).parents[1] / "confinement" / "attacks.py"
FILES = (
    "read a secret", "read a secret in a thread", "read passwords", "list the machine",
    "write a file", "change a model", "call out", "listen",
)  # fmt: skip
CALLS = (
    "start a program", "fork", "make a link", "sniff", "kernel crypto", "be dumpable again",
    "trace", "signal the parent", "load eBPF", "user namespace", "mount",
    "type into the terminal", "new keys for the kernel",
)  # fmt: skip
# Root reads everything by its capabilities: without them it is a user like others.
PLAIN = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
BESIDE = PLAIN if os.geteuid() == 0 and shutil.which("setpriv") else []

pytestmark = pytest.mark.skipif(not landlock_version(), reason="this kernel has no Landlock")


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """Confine a process, let it attack from inside, and keep it."""
    folder = tmp_path_factory.mktemp("machine")
    for name in ("models", "store"):
        (folder / name).mkdir()
    (folder / "models" / "m.onnx").write_bytes(identity())
    (folder / "secret").write_bytes(b"of somebody else")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        command = [*BESIDE, sys.executable, "-I", ATTACKS, folder, port, *free_ports(3)]
        with subprocess.Popen(
            [str(each) for each in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={"OPENBLAS_NUM_THREADS": "1"},
        ) as process:
            line = process.stdout.readline()
            if not line:
                pytest.fail(process.communicate()[1])
            yield json.loads(line), process, folder
            process.kill()


@pytest.mark.parametrize("attack", [*FILES, *CALLS])
def test_attacks_from_inside_fail(attacked, attack):
    """Code in the server starts no program, reads no file and calls nobody: the kernel refuses."""
    found, _, folder = attacked
    expected = "Permission denied" if attack in FILES else "Operation not permitted"
    assert found["attacks"][attack].startswith(expected)
    assert not (folder / "planted").exists()
    assert (folder / "models" / "m.onnx").read_bytes() == identity()


def test_every_attack_is_judged(attacked):
    """No attack that was tried is left out of the test above, and none worked."""
    found = dict(attacked[0]["attacks"])
    assert found.pop("serving") > 0
    # Landlock or not being dumpable, whichever comes first.
    assert found.pop("read another process") in {"Permission denied", "Operation not permitted"}
    assert set(found) == {*FILES, *CALLS}
    assert "it worked" not in found.values()


def test_what_is_needed_works(attacked):
    """Models are read, the store is written, the ports of the configuration are bound."""
    _, _, folder = attacked
    assert (folder / "store" / "kept").read_bytes() == identity()


def test_what_is_in_force_is_said(attacked):
    """The names of what is in force are the configuration's; what is not is a caveat."""
    found = attacked[0]
    in_force = set(found["in force"])
    always = {
        "files",
        "memory",
        "models-tried-apart",
        "no-dumps",
        "no-new-privileges",
        "system-calls",
    }
    assert always <= in_force
    assert found["status"]["NoNewPrivs"] == "1"
    assert found["status"]["Seccomp"] == "2"
    assert found["coredump_filter"] == "00000000"
    locked = int(found["status"]["VmLck"].split()[0])
    assert (locked > 0) == ("locked-memory" in in_force)
    said = " ".join(found["caveats"])
    assert ("swapped" in said) == ("locked-memory" not in in_force)
    assert ("become code" in said) == ("no-new-code" not in in_force)


@pytest.mark.skipif(not BESIDE and os.geteuid() == 0, reason="root, and no setpriv (util-linux)")
@pytest.mark.parametrize("file", ["mem", "environ", "maps"])
def test_attacks_from_beside_fail(attacked, file):
    """Another process of the same user reads neither memory nor environment, as it else could."""
    _, process, _ = attacked
    read = [*BESIDE, "head", "-c", "1", f"/proc/{process.pid}/{file}"]
    refused = subprocess.run(read, capture_output=True, text=True, check=False)
    assert "Permission denied" in refused.stderr
    script = "echo started; exec sleep 60"
    with subprocess.Popen([*BESIDE, "sh", "-c", script], stdout=subprocess.PIPE) as other:
        # Before that it is still setpriv, which is root's.
        assert other.stdout is not None
        other.stdout.readline()
        allowed = [*BESIDE, "cat", f"/proc/{other.pid}/environ"]
        done = subprocess.run(allowed, capture_output=True, check=False)
        other.kill()
    assert done.returncode == 0


def test_no_core(attacked):
    """A server that crashes leaves no core file; the last test of the process, which it ends."""
    _, process, folder = attacked
    process.stdin.write("\n")
    process.stdin.close()
    _, status = os.waitpid(process.pid, 0)
    assert os.WTERMSIG(status) == signal.SIGABRT
    assert not os.WCOREDUMP(status)
    assert not list(folder.glob("core*"))


def test_confinement_is_attested():
    """A client can pin what is in force: the digest of the configuration depends on it."""
    config = ServerConfig(platform=Platform.SIMULATION)
    assert replace(config, confinement=("files",)).digest() != config.digest()


def test_a_process_that_does_other_things_is_left_alone():
    """Within another program nothing is given up, and that is said."""
    config = ServerConfig(platform=Platform.SIMULATION)
    with confined(config) as confinement:
        assert confinement.caveats == (UNCONFINED,)
        assert confinement.config.confinement == ()
        assert confinement.sandbox is None
