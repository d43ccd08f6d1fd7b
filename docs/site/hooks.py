"""What mkdocs does beside reading docs/: the repository's own pages, and links into the code.

README, SECURITY and the others lie at the repository's root, where people look for them, and
are part of the site too; so are the examples, with what they drew. Links to source files cannot be
followed from the site, so there they are shown as the path that they are; whether it exists is
checked first.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, InclusionLevel

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = "examples"
PROJECT = {
    "ARCHITECTURE": "Architecture",
    "SECURITY": "Security",
    "LIMITATIONS": "Limitations",
    "CONTRIBUTING": "Contributing",
    "CHANGELOG": "Changes",
}
# Folders of pages → the title of their section. Pages are added to it by being there.
SECTIONS = {
    "how-to": "How to",
    "reference": "Reference",
    "platforms": "Platforms",
    "adr": "Decisions",
}
_LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> None:
    """Complete the navigation with what is there."""
    nav: list[Any] = list(config.nav or [])
    named = str(nav)
    for folder, title in SECTIONS.items():
        pages = sorted((ROOT / "docs" / folder).glob("*.md"), key=_reading_order)
        found = [f"{folder}/{page.name}" for page in pages if f"{folder}/{page.name}" not in named]
        section = next(
            (each[title] for each in nav if isinstance(each, dict) and title in each), None
        )
        if section is None:
            nav.append({title: found})
        else:
            section.extend(found)
    nav.append({"Project": [{title: f"project/{name}.md"} for name, title in PROJECT.items()]})
    nav.insert(nav.index({"Start": "README.md"}) + 2, {"Examples": f"{EXAMPLES}/README.md"})
    config.nav = nav


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the repository's own pages, and the examples with their pictures and sounds."""
    for name in PROJECT:
        content = (ROOT / f"{name}.md").read_text()
        files.append(File.generated(config, f"project/{name}.md", content=content))
    folder = ROOT / EXAMPLES
    for path in (folder / "README.md", *folder.glob("*/README.md"), *folder.glob("*/shown.*")):
        uri = path.relative_to(ROOT).as_posix()
        page = File.generated(config, uri, content=path.read_bytes())
        if path != folder / "README.md":
            page.inclusion = InclusionLevel.NOT_IN_NAV  # the gallery leads there
        files.append(page)
    return files


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Lead links to the repository's files where they go on the site."""
    source = page.file.src_uri
    folder = posixpath.dirname(source)
    if source.startswith("project/"):
        folder = ""
    elif not source.startswith(f"{EXAMPLES}/"):
        folder = posixpath.join("docs", folder)

    def lead(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        if not target or "://" in target or target.startswith("mailto:"):
            return found[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        if not (ROOT / path).exists():
            msg = f"{source}: {target} is not there"
            raise PluginError(msg)
        goal = _goal(path)
        if goal is None:
            return text if text.startswith("`") else f"{text} (`{path}`)"
        return f"[{text}]({posixpath.relpath(goal, posixpath.dirname(source) or '.')}{anchor})"

    return _LINK.sub(lead, markdown)


def _goal(path: str) -> str | None:
    """Return the page or picture of the site that a file of the repository is; `None`: none."""
    if path.startswith(f"{EXAMPLES}/"):
        if (ROOT / path).is_dir():
            path += "/README.md"
        return path if Path(path).stem in {"README", "shown"} else None
    name = path.removesuffix(".md")
    if name in PROJECT:
        return f"project/{name}.md"
    if path == "README.md":
        return path
    if path.startswith("docs/images/") or (path.startswith("docs/") and path.endswith(".md")):
        return path.removeprefix("docs/")
    return None


def _reading_order(page: Path) -> tuple[bool, str]:
    return page.name != "README.md", page.name
