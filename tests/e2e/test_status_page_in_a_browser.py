"""The status page in a real browser: light, dark, on a phone, with and without scripts."""

import pytest

from blindai.server.status_page import render
from blindai.testing import start_server
from tests.browser import CHROMIUM, open_browser
from tests.inference.models import identity
from tests.server.pages import status

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

# Of each text: its contrast with what is behind it, as WCAG 2.2 §1.4.3 computes it.
CONTRASTS = """(() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const found = channels(getComputedStyle(element).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("body *")]
    .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
    .filter((e) => !["SCRIPT", "STYLE"].includes(e.tagName))
    .map((e) => {
      const pair = [luminance(channels(getComputedStyle(e).color)), luminance(behind(e))].sort();
      return [(Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05), e.tagName, e.textContent];
    });
})()"""
OVERFLOWING = """[...document.querySelectorAll("body *")]
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 0.5 && !e.closest(".aside"))
  .map((e) => e.outerHTML.slice(0, 80))"""
SHOWN_BUTTONS = """[...document.querySelectorAll("button")]
  .filter((e) => e.getClientRects().length > 0).length"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One browser for all tests of this file."""
    with open_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(scope="module")
def server():
    """A server with one model."""
    with start_server(models={"private-name": identity()}) as running:
        yield running


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The address of a page with much on it: long values, load, models."""
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_bytes(render(status(public_models=("n" * 128, "covidnet"))))
    return file.as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1400])
def test_fits_and_can_be_read(browser, page, width, scheme):
    """Nothing runs out of the window, and every text stands out from what is behind it."""
    browser.open(page, width=width, scheme=scheme)
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.run(OVERFLOWING) == []
    contrasts = browser.run(CONTRASTS)
    assert len(contrasts) > 30
    assert [each for each in contrasts if each[0] < 4.5] == []
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(17, 20, 24)") == (scheme == "dark")


def test_served_page_is_whole(browser, server):
    """Over the network the browser has no complaint, asks for nothing else, and shows the alarm."""
    browser.open(f"http://{server.public_address}/")
    assert browser.complaints() == []
    assert browser.requests() == [f"http://{server.public_address}/"]
    text = browser.run("document.body.innerText")
    assert "SIMULATED" in text
    assert f"blindai verify {server.address} --simulation" in text
    assert browser.run("getComputedStyle(document.querySelector('.alarm')).borderTopWidth") == "2px"


def test_copies(browser, server):
    """A button copies what stands beside it, and says so to whoever cannot see it."""
    browser.open(f"http://{server.public_address}/")
    browser.run("document.addEventListener('copy', () => { window.copied = `${getSelection()}`; })")
    browser.run("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    browser.run("document.querySelector('button').click()")
    assert browser.run("window.copied") == f"blindai verify {server.address} --simulation"
    assert browser.run("document.querySelector('button').textContent") == "Copied"
    assert "clipboard" in browser.run("document.getElementById('said').textContent")


def test_copies_where_the_browser_gives_no_clipboard(browser, server):
    """Over plain HTTP there is no clipboard to write to: the text is selected and copied."""
    browser.open(f"http://{server.public_address}/")
    browser.run("navigator.clipboard.writeText = async () => { throw new Error('no'); }")
    browser.run("document.querySelector('button').click()")
    selected = browser.run("`${getSelection()}`")
    assert selected == f"blindai verify {server.address} --simulation"
    assert browser.run("document.querySelector('button').textContent") in {"Copied", "Selected"}


def test_works_without_scripts(browser, server):
    """Without scripts all text is there, and no button that would do nothing."""
    browser.open(f"http://{server.public_address}/", script=False)
    assert browser.run(SHOWN_BUTTONS) == 0
    assert "This page proves nothing." in browser.run("document.body.innerText")
    browser.open(f"http://{server.public_address}/")
    assert browser.run(SHOWN_BUTTONS) >= 1


def test_structure(browser, page):
    """One first heading, sections with names, a language, and every chart described."""
    browser.open(page)
    headings = "[...document.querySelectorAll('h1,h2,h3')].map((e) => e.tagName).join(' ')"
    assert browser.run(headings) == "H1 H2 H2 H2 H2 H2"
    names = """[...document.querySelectorAll('section')].every((e) =>
      document.getElementById(e.getAttribute('aria-labelledby')).textContent)"""
    assert browser.run(names)
    assert browser.run("document.documentElement.lang") == "en"
    assert browser.run("document.querySelectorAll('svg[role=img][aria-label]').length") == 4
