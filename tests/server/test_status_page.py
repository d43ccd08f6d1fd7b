"""The page that a person reads: it says what it has to, and nothing can be smuggled into it."""

import base64
import hashlib
import re
import shlex
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.server.self_check import SelfCheck
from blindai.server.status_page import content_security_policy, render, verify_command
from tests.server.pages import claims, status

VOID = {"meta", "link", "path"}


class Reader(HTMLParser):
    """Collects what a page consists of, and complains of tags that do not close."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text, self.source = [], [], [], {"style": "", "script": ""}

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in self.source:
            self.source[self.open[-1]] += data
        else:
            self.text.append(data)


def read(shown):
    """Return the page of a status as its parts."""
    reader = Reader()
    reader.feed(render(shown).decode())
    reader.close()
    assert not reader.open
    return reader


def words(shown):
    """Return the text of the page of a status."""
    return " ".join("".join(read(shown).text).split())


def test_says_that_it_proves_nothing_and_how_to_verify():
    """Before what the server says of itself stands that it proves nothing, and what does."""
    text = words(status())
    assert text.index("This page proves nothing.") < text.index("What it says it is")
    assert "blindai verify gpu-7.hospital.example:50051 --policy policy.toml" in text
    assert "SIMULATED" not in text


def test_simulation_comes_first():
    """A simulated server is called so before all else, in the title and beside the platform."""
    shown = status(simulated=True, platform="simulation")
    text = words(shown)
    assert text.index("SIMULATED No hardware protects") < text.index("This page proves nothing.")
    assert "simulation (SIMULATED)" in text
    assert "<title>BlindAI, SIMULATED, ready</title>" in render(shown).decode()
    assert "blindai verify gpu-7.hospital.example:50051 --simulation" in text


def test_shows_each_claim():
    """Measurements, versions, weaknesses, ages and what the process gave up are all there."""
    text = words(status())
    for name, value in claims().measurements.items():
        assert f"{name}{value.hex()}" in text
    for expected in ("firmware 7", "smt", "7 minutes ago", "2026-12-01 12:00:00 UTC", "no-dumps"):
        assert expected in text


def test_names_of_private_models_are_a_count():
    """Public models are named; of the others there is a number."""
    assert "covidnet 3 more, not public." in words(status()).replace("covidnet3", "covidnet 3")
    assert "3 loaded. Their names are not public." in words(status(public_models=()))
    assert "None is loaded." in words(status(public_models=(), other_models=0))


def test_evidence_that_cannot_be_read_here_is_said():
    """Where the server cannot verify its own evidence, the reason stands there, and no values."""
    problem = "EndorsementError: expected a <list>, came none"
    text = words(status(evidence=SelfCheck(None, problem)))
    assert problem in text
    assert "Weaknesses" not in text


def test_a_young_server_has_no_load_yet():
    """Before the first interval is over, the page says so instead of drawing nothing."""
    assert "Nothing yet: the first 10 seconds are not over." in words(status(load=()))


def test_policy_allows_this_style_and_this_script_alone():
    """The content security policy names what is inline by its hash, and allows nothing else."""
    reader = read(status())
    policy = dict(
        part.strip().split(" ", 1) for part in content_security_policy().decode().split(";")
    )
    for kind in ("style", "script"):
        digest = hashlib.sha256(reader.source[kind].encode()).digest()
        assert policy[f"{kind}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    attributes = [name for _, attrs in reader.tags for name in attrs]
    assert not [name for name in attributes if name == "style" or name.startswith("on")]
    assert not [attrs for tag, attrs in reader.tags if tag in {"style", "script"} and attrs]


def test_nothing_is_loaded_from_anywhere():
    """No tag of the page makes a browser ask for anything; links stay on this port."""
    for tag, attrs in read(status()).tags:
        assert "src" not in attrs
        assert "srcset" not in attrs
        if "href" in attrs:
            assert attrs["href"] == "data:," if tag == "link" else attrs["href"].startswith("/")


def test_buttons_need_the_script_and_name_what_they_copy():
    """Without the script no button is seen; each has a name, and something to copy."""
    tags = read(status()).tags
    ids = {attrs["id"] for _, attrs in tags if "id" in attrs}
    buttons = [attrs for tag, attrs in tags if tag == "button"]
    assert len(buttons) == 1 + len(claims().measurements)
    for button in buttons:
        assert "hidden" in button
        assert button["data-copies"] in ids
        assert button["aria-label"].startswith("Copy ")
    assert len({button["aria-label"] for button in buttons}) == len(buttons)


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=40))
def test_values_stay_text(text):
    """Whatever a name or an error is, the page's tags are those of a page without it."""
    evil = status(
        state=text,
        platform=text,
        version=text,
        host=text,
        confinement=(text,),
        public_models=(text,),
        evidence=SelfCheck(claims({text: b"\x01"}, weaknesses=(text,))),
    )
    plain = status(evidence=SelfCheck(claims({"m": b"\x01"})))
    assert [tag for tag, _ in read(evil).tags] == [tag for tag, _ in read(plain).tags]
    failed = status(evidence=SelfCheck(None, text))
    assert "<script>" not in render(failed).decode().split("</main>")[0]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost:50052", "localhost"),
        ("192.0.2.7", "192.0.2.7"),
        ("[2001:db8::1]:80", "[2001:db8::1]"),
        ("", "HOST"),
        ("a.example:x", "HOST"),
        ("-oProxyCommand", "HOST"),
        ("a;reboot", "HOST"),
        ("$(reboot)", "HOST"),
        ("a b", "HOST"),
        ("a\n", "HOST"),
        ("a" * 300, "HOST"),
    ],
)
def test_command_names_the_host_that_was_asked(host, expected):
    """The command has the host of the request, or a placeholder for what is no host's name."""
    command = verify_command(status(host=host))
    assert command == f"blindai verify {expected}:50051 --policy policy.toml"


@given(st.text(max_size=60))
def test_command_is_one_word_each_in_a_shell(host):
    """No Host header makes the command something else when it is pasted into a shell."""
    command = verify_command(status(host=host))
    assert shlex.split(command) == command.split()
    assert len(command.split()) == 5
    assert re.fullmatch(r"[A-Za-z0-9 .:\[\]-]+", command)
