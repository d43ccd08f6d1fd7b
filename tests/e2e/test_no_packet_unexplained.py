"""Every packet of a serving process, in a network of its own: none that cannot be explained."""

import json
import os
import subprocess
import sys
from functools import cache

import pytest

from tests.docs.pages import ROOT
from tests.e2e.packets import unexplained
from tests.inference.test_no_phone_home import usable

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root sees all packets"),
    pytest.mark.skipif(not usable("unshare", "-n"), reason="unshare -n is missing or forbidden"),
    pytest.mark.skipif(not usable("ip", "-V"), reason="ip (iproute2) is missing"),
]


@cache
def alone(kind):
    """Return what `tests/e2e/alone.py` saw."""
    command = ["unshare", "-n", sys.executable, "-m", "tests.e2e.alone", kind]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_leak_would_be_seen():
    """A name that is looked up and a host that is called leave packets, which count."""
    packets = unexplained(alone("leaks")["packets"], [443])
    assert any("> 192.0.2.1:443" in each and each.startswith("tcp") for each in packets)
    assert any("> 192.0.2.53:53" in each and each.startswith("udp") for each in packets)


def test_by_default_nothing_is_sent():
    """While it serves, the only packets are those between clients and the server's three ports."""
    found = alone("default")
    assert found["code"] == 0
    assert len(found["ports"]) == 3
    assert unexplained(found["packets"], found["ports"]) == []
    assert sum(found["packets"].values()) > 50
    assert found["reports"] == []
    assert found["reason"].strip() == "no endpoint is set: nothing is sent"
    assert json.loads(found["shown"])["requests"] == "10-99"


def test_do_not_track_wins():
    """With an endpoint and DO_NOT_TRACK=1 there is no packet more, and the reason is said."""
    found = alone("refused")
    assert unexplained(found["packets"], found["ports"]) == []
    assert found["reports"] == []
    assert found["reason"].strip() == "DO_NOT_TRACK is set: nothing is sent"
    assert found["counted"]["enabled"] is False


def test_what_is_sent_is_what_is_shown():
    """With an endpoint, a confined server sends what `show` prints, byte for byte, and no more."""
    found = alone("reports")
    assert found["code"] == 0
    assert unexplained(found["packets"], [*found["ports"], found["receiver"]]) == []
    assert not [each for each in found["caveats"] if "not confined" in each]
    assert len(found["reports"]) >= 2
    head, _, body = found["reports"][-1].partition("\r\n\r\n")
    assert body == found["shown"].rstrip("\n")
    assert json.loads(body) == {
        "format": 1,
        "blindai": json.loads(found["shown"])["blindai"],
        "mode": "simulation",
        "platform": "simulation",
        "requests": "10-99",
        "failures": "0",
        "models": "1-9",
    }
    lines = head.split("\r\n")
    assert lines[0] == "POST /reports HTTP/1.1"
    names = [line.split(":")[0] for line in lines[1:]]
    assert names == ["Host", "User-Agent", "Accept", "Accept-Encoding", "Connection",
                     "Content-Type", "Content-Length"]  # fmt: skip
    assert found["counted"]["sent"] >= 2
    assert found["counted"]["failed"] == 0
