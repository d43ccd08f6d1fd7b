"""A small share of `make faults`: a real server is broken, and nothing is lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import reliability
from tests.faults import crowd, disk, times
from tests.faults.clock import Clock
from tests.faults.kill import kill_rounds
from tests.served import serving

pytestmark = pytest.mark.slow


def test_kills(tmp_path):
    """Killed at random points, a server has what it acknowledged, and nothing else."""
    tally = kill_rounds(tmp_path, 3, seed=7)
    assert tally.rounds == 3
    assert tally.losses == 0, tally


@pytest.mark.parametrize("fault", [disk.full, disk.read_only])
def test_disks(tmp_path, fault):
    """A disk that is full, or cannot be written, refuses changes and loses nothing."""
    with disk.small_disk(tmp_path / "disk") as mounted:
        if mounted is None:
            pytest.skip("may not mount a small file system")
        finding = fault(mounted)
    assert finding.faults > 0
    assert finding.losses == 0, finding


def test_few_files(tmp_path):
    """Out of file descriptors, who is connected is served, models are tried, and it passes."""
    assert crowd.no_descriptors(tmp_path).losses == 0


def test_as_many_files_as_connections():
    """A soft limit that is lower than the connections need is raised, as far as it may be."""
    command = ("prlimit", "--nofile=256:2000", sys.executable, "-I")
    with serving(prefix=command) as server:
        limits = Path(f"/proc/{server.process.pid}/limits").read_text()
    line = next(line for line in limits.splitlines() if line.startswith("Max open files"))
    assert line.split()[3:5] == ["2000", "2000"]


@pytest.mark.skipif(not Clock.is_possible(), reason="no C compiler, or another dynamic loader")
def test_the_clock_is_the_servers_alone(tmp_path):
    """What stands before the clock is in the server, though its environment is clean."""
    clock = Clock(tmp_path)
    clock.jump(times.DAY)
    with serving(prefix=clock.prefix) as server:
        assert times.dated(server, times.DAY) == ""
        assert times.dated(server, 0)
        environment = Path(f"/proc/{server.process.pid}/environ").read_bytes()
        assert b"PRELOAD" not in environment


@pytest.mark.parametrize("target", ["faults", "fuzz", "soak"])
def test_the_page_has_a_place_for_each(target, tmp_path):
    """What a target writes is between its marks, and everything else stays."""
    page = tmp_path / "page.md"
    page.write_text(reliability.PAGE.read_text())
    reliability.write(target, "figures", page=page)
    first = page.read_text()
    assert first.count("figures\n") == 1 + reliability.PAGE.read_text().count("figures\n")
    reliability.write(target, "figures", page=page)
    assert page.read_text() == first
    other = tmp_path / "other.md"
    other.write_text("no marks")
    with pytest.raises(ValueError, match="expected <!--"):
        reliability.write(target, "figures", page=other)


def test_make_targets_exist():
    """The page's targets are make's."""
    root = reliability.PAGE.parents[1]
    for target in ("faults", "fuzz", "soak"):
        done = subprocess.run(
            ["make", "-n", target, f"PYTHON={sys.executable}"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            env=os.environ,
        )
        assert f"tests.{target} --write" in done.stdout
