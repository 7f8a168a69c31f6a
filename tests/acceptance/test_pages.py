"""README is short, every page is found from it, and every link leads somewhere: on GitHub and in the site."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest

from tests.acceptance.readme_text import PAGES, ROOT, Page, code_words
from tests.engine_values import ENGINE_VALUES

README_LINES = 170
OTHERS = [Page(ROOT / "CHANGELOG.md"), Page(ROOT / "CONTRIBUTING.md")]
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def github_anchor(title: str) -> str:
    """The anchor GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def site_anchor(title: str) -> str:
    """The anchor MkDocs (Python-Markdown) gives a heading."""
    ascii_title = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_title).strip().lower())


def anchors(page: Page) -> list[str]:
    return [github_anchor(title) for _, title, _, _ in page.headings]


@pytest.fixture(params=PAGES, ids=str)
def page(request):
    return PAGES[request.param]


def test_readme_is_short():
    assert len(PAGES["README"].text.splitlines()) <= README_LINES


def test_every_page_is_found_from_readme_and_from_the_index():
    pages = {f"{name}.md" for name in PAGES} - {"README.md", "index.md"}
    assert pages <= set(_LINK.findall(PAGES["index"].text))
    assert {f"docs/{name}" for name in pages} <= set(_LINK.findall(PAGES["README"].text))


def test_headings_have_one_anchor_each_the_same_in_both_places(page):
    titles = [title for _, title, _, _ in page.headings]
    assert [github_anchor(title) for title in titles] == [site_anchor(title) for title in titles]
    assert len(set(anchors(page))) == len(titles)


@pytest.mark.parametrize("page", [*PAGES.values(), *OTHERS], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in _LINK.findall(page.prose):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        path = (page.path.parent / file).resolve() if file else page.path
        assert path.is_file(), target
        assert path.is_relative_to(ROOT), target
        if anchor:
            assert path in {other.path for other in PAGES.values()}, f"{target}: anchors are known of pages only"
            assert anchor in anchors(Page(path)), target


@pytest.mark.parametrize("page", [*PAGES.values(), *OTHERS], ids=lambda page: page.name)
def test_files_that_a_text_names_are_there(page):
    for name in re.findall(r"(?<![\w/.])(?:tests|docs|examples|helix_jobs)/[\w/.-]*\w", page.text):
        assert (ROOT / name).exists(), name


def test_lists_and_tables_begin_after_an_empty_line(page):
    """GitHub takes them without one; MkDocs would make one paragraph of it all."""
    begins = re.compile(r" *(?:- |\d+\. |\|)")
    lines = page.prose.splitlines()
    for before, line in pairwise(lines):
        assert not begins.match(line) or not before.strip() or begins.match(before) or before.startswith("  "), line


def test_lists_inside_lists_are_indented_by_four(page):
    """GitHub takes two; MkDocs would end the outer list."""
    assert not re.search(r"^(?: {1,3}| {5,7})(?:- |\d+\. )", page.prose, re.MULTILINE)


def test_the_drawing_is_well_formed():
    ET.parse(ROOT / "docs" / "flow.svg")  # noqa: S314  (our own file)


# What the map of the code says of the code

_CODE_LINK = re.compile(r"\[`([^`]+)`\]\((\.\./[^)#]+)\)")
_ARCHITECTURE = PAGES["architecture"]


def test_every_room_is_on_the_map():
    package = ROOT / "helix_jobs"
    inner = {"bench/peers", "bench/queue", "cli/bench", "engine/kernels/cpu"}  # told with the room they stand in
    rooms = {path.parent.relative_to(package).as_posix() for path in package.rglob("__init__.py")} - {"."} - inner
    assert {name for row in _ARCHITECTURE.rows("Rooms") for name, _ in _CODE_LINK.findall(row[0])} == rooms
    assert inner <= set(code_words(_ARCHITECTURE.sections["Rooms"]))


def test_the_engines_values_on_the_map_are_those_of_the_rooms():
    (item,) = re.findall(r"^- The engine's values .+$", _ARCHITECTURE.text, re.MULTILINE)
    named = [target.removeprefix("../helix_jobs/engine/") for _, target in _CODE_LINK.findall(item)]
    assert sorted(named) == sorted(f"{name}.py" for name in ENGINE_VALUES)


def test_every_file_and_name_on_the_map_is_there():
    """A path leads to that file, a room to its ``__init__``, any other name to the file that defines it."""
    for name, target in _CODE_LINK.findall(_ARCHITECTURE.text):
        if name.endswith(".py"):
            assert target.endswith(f"/{name}"), target
        elif target.endswith("__init__.py"):
            assert target == f"../helix_jobs/{name}/__init__.py"
        else:
            text = (_ARCHITECTURE.path.parent / target).read_text(encoding="utf-8")
            assert re.search(rf"\b(?:class|def) {name.rsplit('.', 1)[-1]}\b", text), f"{name}: {target}"
