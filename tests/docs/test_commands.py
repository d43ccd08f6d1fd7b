"""Every command line in the documentation exists; those that can be run here are run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

import blindai
from blindai.cli import cli
from blindai.testing import start_server
from blindai.testing.fake_tpm import FakeTPM
from tests.docs.pages import DOCS, PAGES, blocks, names, prose
from tests.platforms.vectors import VECTORS, requires_vectors

HOW_TO = DOCS / "how-to"
SHELL = blocks("sh")
AGAINST_A_SERVER = ["write-a-policy.md", "sign-a-policy.md", "offline-verification.md"]


def lines(text):
    """Return the commands of a shell block, continued lines joined, comments left out."""
    joined = text.replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip() and line[0] != "#"]


def words_of(line):
    """Return the words of a command line, variables and substitutions as any word."""
    line = re.sub(r"\$\([^)]*\)", "2026-01-01T00:00:00Z", line)
    return shlex.split(line.replace("$", ""), comments=True)


IN_BLOCKS = [
    (block.label, line)
    for block in SHELL
    for line in lines(block.text)
    if line.startswith("blindai ")
]
IN_PROSE = [
    (page.relative_to(DOCS).as_posix(), name)
    for page in PAGES
    for name in names(prose(page))
    if name.startswith("blindai ") and "\n" not in name and "{" not in name
]


def find(arguments):
    """Return the command that a line names, and what is left of the line."""
    command, rest = cli, list(arguments)
    while isinstance(command, click.Group):
        assert rest, f"{command.name} needs a subcommand"
        name = rest.pop(0)
        assert name in command.commands, f"there is no command {name!r}"
        command = command.commands[name]
    return command, rest


def test_there_are_commands():
    """The pages do show commands, and this file does find them."""
    assert len(IN_BLOCKS) > 15
    assert len(IN_PROSE) > 5


@pytest.mark.parametrize(("page", "line"), IN_BLOCKS, ids=[f"{p}: {c}" for p, c in IN_BLOCKS])
def test_every_command_line_exists(page, line, tmp_path, monkeypatch):
    """Command, options, their values and the number of arguments are what click accepts."""
    monkeypatch.chdir(tmp_path)
    command, rest = find(words_of(line)[1:])
    for word in rest:
        if re.fullmatch(r"[\w-]+\.\w+", word):
            Path(word).touch()  # a file that the command line says is there
    with command.make_context("blindai", list(rest)) as context:
        assert context.params


@pytest.mark.parametrize(("page", "line"), IN_PROSE, ids=[f"{p}: {c}" for p, c in IN_PROSE])
def test_every_command_in_the_text_exists(page, line):
    """Commands and options that a sentence names exist; arguments may be left out."""
    command, rest = find([word for word in line.split()[1:] if "…" not in word])
    known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
    assert {word for word in rest if word.startswith("--")} <= known


def run(script, folder, **variables):
    """Run a shell script with the package's own command line; return what it printed."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", script],
        cwd=folder,
        env=os.environ | {"PATH": path, **variables},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr or done.stdout
    return done.stdout


ON_VECTORS = [block for block in SHELL if "BLINDAI_VECTORS" in block.text]


@requires_vectors
@pytest.mark.parametrize("block", ON_VECTORS, ids=[block.label for block in ON_VECTORS])
def test_commands_on_real_evidence(block, tmp_path):
    """What is shown on real evidence ends as authentic, each line of it."""
    shown = run(block.text, tmp_path, BLINDAI_VECTORS=str(VECTORS))
    count = shown.count("AUTHENTIC: ") + shown.count('"authentic": true')
    assert count == len(lines(block.text))


def test_command_on_a_tpms_files(tmp_path):
    """The command for a TPM's files runs on files as tpm2-tools write them."""
    (block,) = blocks("sh", DOCS / "platforms" / "tpm.md")
    evidence = FakeTPM().attest(bytes.fromhex("00112233"))
    files = {
        "quote.msg": evidence.body,
        "quote.sig": evidence.attachments["signature"],
        "pcrs.txt": evidence.attachments["pcrs"],
        "ak.pub": evidence.attachments["ak_public"],
        "eventlog.bin": evidence.attachments["event_log"],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    shown = run(block.text, tmp_path)
    assert "AUTHENTIC: tpm evidence" in shown
    assert "not needed" not in shown
    assert "ak-not-certified, memory-not-encrypted" in shown


@pytest.mark.slow
@pytest.mark.parametrize("name", AGAINST_A_SERVER)
@pytest.mark.filterwarnings("ignore::blindai.SimulationWarning")
def test_how_to(name, tmp_path, monkeypatch):
    """The commands of a how-to run from top to bottom, and so does its Python."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which this how-to calls, is not installed")
    with start_server() as server:
        draft = f"blindai policy from-server {server.address} --output policy.toml\n"
        script = draft if name != "write-a-policy.md" else ""
        script += "".join(block.text for block in blocks("sh", HOW_TO / name))
        shown = run(script.replace("localhost:50051", server.address), tmp_path)
        assert "wrote policy.toml" in shown
        monkeypatch.chdir(tmp_path)
        for block in blocks("python", HOW_TO / name):
            code = block.text.replace("localhost:50051", server.address)
            scope = {"blindai": blindai}
            exec(compile(code, name, "exec"), scope)
            if "client" in scope:
                scope["client"].close()


@pytest.mark.filterwarnings("ignore::blindai.SimulationWarning")
def test_simulation_page(tmp_path):
    """The command of the page about simulation says SIMULATED."""
    (block,) = blocks("sh", DOCS / "platforms" / "simulation.md")
    with start_server() as server:
        shown = run(block.text.replace("localhost:50051", server.address), tmp_path)
    assert "SIMULATED" in shown
