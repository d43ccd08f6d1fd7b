"""The page of each platform says what its verifier does: steps, weaknesses, attachments."""

from __future__ import annotations

import pytest

from blindai.attestation.model import Platform
from blindai.attestation.policy import Policy
from blindai.attestation.vocabulary import VOCABULARY
from blindai.platforms import VERIFIERS, azure
from blindai.testing import FAKES
from blindai.testing.fake_azure import FakeAzure
from tests.docs.pages import DOCS, ROOT, blocks, names, prose, rows, section

every_platform = pytest.mark.parametrize("platform", sorted(VERIFIERS))
SECTIONS = (
    "## What is checked",
    "## What is not checked",
    "## What it claims",
    "## Attachments",
    "## A policy",
    "## Verify raw evidence",
    "## Limits",
)


def page_of(platform):
    """Return where a platform is described."""
    return DOCS / "platforms" / f"{platform}.md"


def test_every_platform_has_a_page_in_the_index():
    """The index links to a page for each platform, and there is no other page."""
    pages = {path.stem for path in (DOCS / "platforms").glob("*.md")}
    assert pages == {str(platform) for platform in VERIFIERS} | {"README"}
    index = (DOCS / "platforms" / "README.md").read_text()
    assert all(f"({platform}.md)" in index for platform in VERIFIERS)


@every_platform
def test_sections(platform):
    """Each page has the same sections, in one order."""
    lines = page_of(platform).read_text().splitlines()
    assert [line for line in lines if line.startswith("## ")] == list(SECTIONS)


@every_platform
def test_steps(platform):
    """The table of checks is that of the verifier: names, titles, specifications, order."""
    parts = (azure.SNP_PREFIX, azure.TDX_PREFIX) if platform is Platform.AZURE_VTPM else ()
    expected = [
        [f"`{step.name}`", step.title, step.reference]
        for step in VERIFIERS[platform].STEPS
        if not step.name.startswith(tuple(parts) or ("\0",))
    ]
    assert rows(section(page_of(platform), "## What is checked")) == expected


@every_platform
def test_weaknesses(platform):
    """Each weakness has a meaning and something to do about it, unless it is reserved."""
    table = rows(section(page_of(platform), "## What it claims"))
    assert sorted(names(row[0])[0] for row in table) == sorted(VOCABULARY[platform].weaknesses)
    for name, meaning, advice in table:
        assert meaning, name
        assert advice or meaning.startswith("reserved"), name


@every_platform
def test_attachments(platform):
    """Every attachment that good evidence carries is described."""
    vendors = [FAKES[platform]()]
    if platform is Platform.AZURE_VTPM:
        vendors.append(FakeAzure("tdx"))
    table = rows(section(page_of(platform), "## Attachments"))
    described = {name for row in table for name in names(row[0])}
    for vendor in vendors:
        assert set(vendor.attest(bytes(32)).attachments) <= described


@every_platform
def test_policies_are_for_the_platform(platform):
    """The example accepts the platform that the page is about."""
    shown = blocks("toml", page_of(platform))
    assert shown
    for block in shown:
        assert platform in {accept.platform for accept in Policy.from_toml(block.text).accept}


@every_platform
def test_files_that_are_named_exist(platform):
    """A file of the source or of the tests that a page names is there."""
    named = [name for name in names(prose(page_of(platform))) if name.endswith((".py", "/"))]
    assert named
    for name in named:
        places = [ROOT / name, ROOT / "src" / "blindai" / name]
        places += [
            path.parent / name
            for path in (ROOT / "src" / "blindai" / "platforms").rglob("__init__.py")
        ]
        assert any(place.exists() for place in places), name
