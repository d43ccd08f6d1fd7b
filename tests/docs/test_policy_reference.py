"""The policy reference names every word that a policy may use, and every policy shown loads."""

from __future__ import annotations

import pytest

from blindai.attestation.model import Platform
from blindai.attestation.policy import _ACCEPT_KEYS, Policy
from blindai.attestation.vocabulary import VOCABULARY
from tests.docs.pages import DOCS, blocks, names, rows, section

PAGE = DOCS / "policy.md"
# Of a server, and tested as such in tests/server/test_settings.py.
SETTINGS = {"access.md", "configuration.md"}
POLICIES = [block for block in blocks("toml") if block.page.name not in SETTINGS]
every_platform = pytest.mark.parametrize("platform", sorted(VOCABULARY))


@every_platform
@pytest.mark.parametrize("kind", ["measurement", "version"])
def test_names_of_claims(platform, kind):
    """The table of a platform has exactly its measurements and versions, each with a meaning."""
    table = [row for row in rows(section(PAGE, f"### {platform}")) if row[1] == kind]
    listed = [names(row[0])[0] for row in table]
    assert sorted(listed) == sorted(getattr(VOCABULARY[platform], f"{kind}s"))
    assert all(row[2] for row in table)


@every_platform
def test_names_of_weaknesses(platform):
    """The line of weaknesses has exactly those of the platform."""
    text = section(PAGE, f"### {platform}")
    (line,) = [line for line in text.splitlines() if line.startswith("Weaknesses: ")]
    assert names(line) == sorted(VOCABULARY[platform].weaknesses)


@every_platform
def test_identity(platform):
    """Each way to pin code is said."""
    text = section(PAGE, f"### {platform}")
    (line,) = [line for line in text.splitlines() if line.startswith("Identity: ")]
    said = set(names(line.replace("`measurement` stands for", "")))
    sets = VOCABULARY[platform].identity
    assert set().union(*sets) <= said | {"measurement"}
    if platform is not Platform.AZURE_VTPM:  # said there as a product of two lists
        for ways in sets:
            assert " + ".join(f"`{name}`" for name in sorted(ways)) in line


def test_keys_of_a_block():
    """Every key of a block is explained, and no other."""
    text = PAGE.read_text().partition("Keys of a block:")[2].partition("A value of")[0]
    assert {names(row[0])[0] for row in rows(text)} == set(_ACCEPT_KEYS)


@pytest.mark.parametrize("block", POLICIES, ids=[block.label for block in POLICIES])
def test_every_policy_loads(block):
    """What is shown as a policy is one."""
    policy = Policy.from_toml(block.text)
    assert Policy.from_toml(policy.to_toml()) == policy


def test_the_first_example_uses_every_key():
    """The example at the top leaves no key out."""
    text = blocks("toml", PAGE)[0].text
    assert [key for key in sorted(_ACCEPT_KEYS | {"version", "models"}) if key not in text] == []
