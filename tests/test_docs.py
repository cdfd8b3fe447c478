"""Links between pages hold, both in the repository and on the site that ``make docs`` builds of ``docs``."""

import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
NOTEBOOK = DOCS / "quickstart.ipynb"
PAGES = sorted([REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", *DOCS.glob("*.md"), NOTEBOOK])
GENERATED = DOCS / "quickstart-notebook.md"


def prose(page: Path) -> str:
    """What a page says, without its code."""
    text = page.read_text()
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page that GitHub and the site give one name."""
    found = set()
    for title in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        on_github = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        plain = unicodedata.normalize("NFKD", on_github).encode("ascii", "ignore").decode()
        if re.sub("-+", "-", plain).strip("-") == on_github:
            found.add(on_github)
    return found


def faults(page: Path, text: str) -> Iterator[str]:
    """Links of a page's text to other files and to headings that lead nowhere, in the repository or on the site."""
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        on_the_site = page.parent != DOCS or target.is_relative_to(DOCS)
        there = target.exists() and target != GENERATED and on_the_site
        if not there or (anchor and anchor not in anchors(target)):
            yield link


def test_links_lead_somewhere():
    found = {str(page.relative_to(REPOSITORY)): [*faults(page, prose(page))] for page in PAGES if page != GENERATED}
    assert {page: links for page, links in found.items() if links} == {}


def test_what_leads_nowhere_is_found():
    right = "[a](glossary.md) [b](losses.md#sweeps) [c](https://example.org) ![d](quickstart.png)"
    wrong = "[a](nothing.md) [b](losses.md#sweeeps) [c](../README.md) [d](#nothing) [e](quickstart-notebook.md)"
    assert [*faults(DOCS / "losses.md", right)] == []
    assert len([*faults(DOCS / "losses.md", wrong)]) == 5


def test_every_page_stands_once_in_the_order_of_the_site():
    chapters = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())["nav"]
    listed = [page for chapter in chapters for pages in chapter.values() for entry in pages for page in entry.values()]
    assert sorted(listed) == sorted({page.name for page in DOCS.glob("*.md")} | {GENERATED.name})
