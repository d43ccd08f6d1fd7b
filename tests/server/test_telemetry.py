"""Reports: only where the operator wants them, with nobody in them, and in nobody's way."""

import asyncio
import json
import re
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.attestation.model import Platform
from blindai.errors import ConfigurationError, ConnectionFailed
from blindai.server.telemetry import Choice, Report, Telemetry, bucket, choose
from tests.docs.pages import ROOT
from tests.server.talk import public_request

URL = "https://reports.example/v1"
REPORT = Report("1.0.0", Platform.TPM, 12_345, 3, 2)


@pytest.mark.parametrize(
    ("endpoint", "environment", "goes"),
    [
        (None, {}, None),
        (URL, {}, URL),
        (URL, {"DO_NOT_TRACK": "1"}, None),
        (URL, {"BLINDAI_DISABLE_TELEMETRY": "1"}, None),
        (URL, {"BLINDAI_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "0"}, None),
        (URL, {"DO_NOT_TRACK": "what is this"}, None),
        (URL, {"DO_NOT_TRACK": "0", "BLINDAI_DISABLE_TELEMETRY": ""}, URL),
        (URL, {"DO_NOT_TRACK": " "}, URL),
        (None, {"BLINDAI_TELEMETRY_ENDPOINT": URL}, None),
    ],
)
def test_refusals_win_over_everything(endpoint, environment, goes):
    """Either variable keeps reports back whatever else is set; without an endpoint none go."""
    choice = choose(endpoint, environment)
    assert choice.endpoint == goes
    assert ("nothing is sent" in choice.reason) == (goes is None)
    assert choice.port == (None if goes is None else 443)


@pytest.mark.parametrize(
    "endpoint",
    ["", "reports.example", "http://reports.example", "https://", "https://u:p@reports.example",
     "https://reports.example:x", "https://reports.example:0", "https://a b", "https://é.example",
     "ftp://reports.example"],
)  # fmt: skip
def test_endpoints_that_cannot_be_used(endpoint):
    """Only https to a host, and no password in it; what came is not repeated."""
    with pytest.raises(ConfigurationError, match="expected an https address") as caught:
        choose(endpoint, {})
    assert not endpoint or endpoint not in str(caught.value)


def test_a_report_is_this_and_nothing_else():
    """The bytes are these: how it runs, which version, powers of ten."""
    assert REPORT.dump() == (
        b'{"format":1,"blindai":"1.0.0","mode":"hardware","platform":"tpm",'
        b'"requests":"10000-99999","failures":"1-9","models":"1-9"}'
    )
    assert REPORT.dump().decode() in (ROOT / "docs/telemetry.md").read_text()
    simulated = Report("1", Platform.SIMULATION, 0, 0, 0)
    assert json.loads(simulated.dump())["mode"] == "simulation"


@given(st.integers(0, 10**12))
def test_buckets_are_powers_of_ten(count):
    """A count lies in its bucket, and all that its bucket tells is how many digits it has."""
    text = bucket(count)
    assert re.fullmatch(r"0|10{0,8}-9{1,9}|10{9}\+", text)
    if text.endswith("+"):
        assert count >= 10**9
    elif text != "0":
        low, high = map(int, text.split("-"))
        assert low <= count <= high
    else:
        assert count == 0


async def run_until(telemetry, done):
    """Let reports be sent until something holds."""
    task = asyncio.create_task(telemetry.send_for_ever(lambda: REPORT))
    try:
        async with asyncio.timeout(10):
            while not done():  # noqa: ASYNC110 - threads set it
                await asyncio.sleep(0.005)
    finally:
        task.cancel()


async def test_sends_and_counts():
    """Each interval one report goes to the endpoint, and is counted when it was taken."""
    sent = []
    telemetry = Telemetry(
        choose(URL, {}), lambda url, content: sent.append((url, content)), interval=0.01
    )
    await run_until(telemetry, lambda: telemetry.sent >= 2)
    assert set(sent) == {(URL, REPORT.dump())}
    assert telemetry.failed == 0


@pytest.mark.parametrize("error", [ConnectionFailed("no"), OSError(), RuntimeError()])
async def test_failures_are_counted_and_change_nothing(error):
    """Whatever goes wrong is counted, and the next report is tried."""

    def post(_url, _content):
        raise error

    telemetry = Telemetry(choose(URL, {}), post, interval=0.01)
    await run_until(telemetry, lambda: telemetry.failed >= 2)
    assert telemetry.sent == 0


async def test_a_report_that_hangs_is_in_nobodys_way():
    """While an endpoint does not answer, the loop goes on; the end of the server does not wait."""
    called, release = threading.Event(), threading.Event()

    def post(_url, _content):
        called.set()
        release.wait(10)

    telemetry = Telemetry(choose(URL, {}), post, interval=0.01)
    await run_until(telemetry, called.is_set)
    assert (telemetry.sent, telemetry.failed) == (0, 0)
    (thread,) = [each for each in threading.enumerate() if each.name == "blindai-telemetry"]
    assert thread.daemon
    release.set()
    await asyncio.to_thread(thread.join, 10)


async def test_off_means_nothing_is_made():
    """Without an endpoint no report is even made."""

    def report():
        pytest.fail("a report was made")

    await asyncio.wait_for(Telemetry.off().send_for_ever(report), 1)
    await asyncio.wait_for(Telemetry(Choice(None, ""), report).send_for_ever(report), 1)


def test_the_unattested_port_shows_it(server):
    """The port says that nothing is sent, why, and what would be."""
    reply = public_request(server, "GET", "/blindai/v1/telemetry")
    shown = json.loads(reply.body)
    assert shown["enabled"] is False
    assert shown["reason"] == "no endpoint is set: nothing is sent"
    assert shown["payload"]["platform"] == "simulation"
    assert shown["payload"]["models"] == "10-99"
    assert "no endpoint is set" in public_request(server, "GET", "/").body.decode()
