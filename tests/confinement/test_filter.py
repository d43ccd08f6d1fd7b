"""Filters and rules hold for what they name, and say so where they cannot be had."""

import subprocess
import sys
import textwrap

import pytest

from blindai.confinement.environment import clean_environment
from blindai.confinement.seccomp import Rule, filter_program
from blindai.confinement.syscalls import Architecture

HOSTILE = {
    "LD_PRELOAD": "/tmp/evil.so",
    "LD_LIBRARY_PATH": "/tmp",
    "PYTHONPATH": "/tmp/evil",
    "PYTHONSTARTUP": "/tmp/evil.py",
    "HTTPS_PROXY": "http://evil",
    "SSLKEYLOGFILE": "/tmp/keys",
    "SSL_CERT_FILE": "/tmp/ca",
    "OPENSSL_CONF": "/tmp/conf",
    "GCONV_PATH": "/tmp",
    "MALLOC_PERTURB_": "1",
}

WITHOUT_CODE = """
    import ctypes, mmap
    from blindai.confinement.kernel import forbid_new_privileges
    from blindai.confinement.seccomp import *
    forbid_new_privileges()
    restrict_system_calls((*FILES, *MEMORY, *WAITING, *PROCESS), server_rules(jit={jit}), jit={jit})
    for name, attack in {{
        "anonymous": lambda: mmap.mmap(-1, 4096, prot=7),
        "library": lambda: ctypes.CDLL("libanl.so.1"),
    }}.items():
        try:
            attack()
        except OSError as error:
            print(name, "refused")
        else:
            print(name, "worked")
"""


def run(code):
    command = [sys.executable, "-I", "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")


@pytest.mark.parametrize(("jit", "outcome"), [(False, "refused"), (True, "worked")])
def test_no_new_code(jit, outcome):
    """Memory that is both written and run, and libraries, are refused unless an engine needs it."""
    found = run(WITHOUT_CODE.format(jit=jit))
    assert found == [f"anonymous {outcome}", f"library {outcome}", ""]


def test_a_filter_is_whole_instructions():
    """Names that an architecture does not have are left out, and rules come before names."""
    architecture = Architecture(1, {"read": 0, "socket": 41})
    rules = (Rule("socket", 0, (1, 2)), Rule("open", 0, (1,)))
    program = filter_program(("read", "socket", "open"), rules, architecture)
    assert len(program) % 8 == 0
    assert len(program) // 8 == 6 + (1 + 2 + 2 * 2 + 1) + 2 + 1


def test_environment_is_an_allow_list():
    """Nothing that loads code, or sends anything elsewhere, is left; what is harmless is."""
    harmless = {"PATH": "/bin", "LANG": "C", "BLINDAI_TOKEN": "x"}
    assert clean_environment(HOSTILE | harmless) == harmless | {"OPENBLAS_NUM_THREADS": "1"}


def test_a_server_starts_again(tmp_path):
    """A process in a hostile environment becomes one that is isolated, in a clean one."""
    (tmp_path / "sitecustomize.py").write_text("print('code of a stranger', flush=True)")
    code = "import os, sys; print(sys.flags.isolated, sorted(os.environ))"
    start = "from blindai.confinement.environment import start_again; "
    start += f"start_again('timeit', ['-n1', '-r1', {code!r}])"
    done = subprocess.run(
        [sys.executable, "-c", start],
        env={**HOSTILE, "PYTHONPATH": str(tmp_path), "LD_PRELOAD": "", "PATH": "/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    first, second, *_ = done.stdout.splitlines()
    assert first == "code of a stranger"  # in the process that was replaced
    assert second.startswith("1 [")
    assert not [name for name in HOSTILE if name in second]
    assert done.stdout.count("stranger") == 1


LIMITED = """
    from blindai.confinement.kernel import limit_memory, machine_memory
    limit_memory(200 << 20)
    limit_memory(machine_memory())  # more than that is not to be had any more
    kept = bytes(50 << 20)
    try:
        bytes(400 << 20)
    except MemoryError:
        print("refused", len(kept) >> 20)
"""


def test_memory_ends_for_one_request():
    """Beyond the limit an allocation fails, what was there before stays, and the process lives."""
    assert run(LIMITED) == ["refused 50", ""]
