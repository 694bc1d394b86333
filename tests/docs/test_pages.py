"""The pages of `make docs`: built without a warning, whole, and read from disk with nothing of a network."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import transom
from transom.settings import TrainSettings

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
WIDTHS = (390, 1280)
GIVEN = (
    "Run",
    "TunedRun",
    "Forecast",
    "Completion",
    "Stream",
    "Translation",
    "Classification",
    "Filling",
    "Seen",
)
GIVEN += ("AttentionMap", "HeadGrid", "States", "Report", "TextScore", "Comparison", "Estimate")
"""What the public names give back."""

pytestmark = pytest.mark.heavy


class Page(HTMLParser):
    """What a page loads, where it leads, and which places it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag != "a":
            self.loads += [
                given[name] for name in ("src", "href", "xlink:href", "data", "srcset") if name in given
            ]
        self.loads += addresses(given.get("style", ""))


def addresses(css: str) -> list[str]:
    """What a style sheet loads."""
    return re.findall(r"""(?:url\(|@import\s)\s*["']?([^"')\s;]+)""", css)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of pages, built by the command of the Makefile."""
    made = tmp_path_factory.mktemp("pages")
    command = re.search(r"^\t\$\(PY\) (-m sphinx .*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert command is not None
    words = [word.replace("build/", f"{made}/") for word in shlex.split(command[1])]
    assert "--fail-on-warning" in words
    built = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    return made / "docs"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    found = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    assert site / "index.html" in found and len(found) > 10
    return found


def test_every_page_of_the_repository_is_there(site: Path) -> None:
    for page in [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "docs").rglob("*.ipynb"),
    ]:
        assert (site / page.relative_to(ROOT).with_suffix(".html")).is_file(), page


def test_every_public_name_is_in_the_reference(pages: dict[Path, Page], site: Path) -> None:
    there = set().union(*(page.ids for path, page in pages.items() if path.parent == site / "docs" / "api"))
    assert {f"transom.{name}" for name in transom.__all__} <= there
    assert set(GIVEN) <= {place.rpartition(".")[2] for place in there}
    assert {f"transom.settings.{name}" for name in TrainSettings.names()} <= there


def test_everything_in_the_reference_is_described(site: Path) -> None:
    """No entry is a bare name: each has a sentence."""
    for path in (site / "docs" / "api").glob("*.html"):
        text = path.read_text(encoding="utf-8")
        bare = re.findall(r'id="([\w.]+)">(?:(?!</dt>).)*</dt>\s*<dd>\s*</dd>', text, re.S)
        assert not bare, f"{path.name}: {bare}"


@pytest.mark.parametrize(
    ("page", "names"),
    [("load", "kind weights length_penalty early_stopping reject_below cut"), ("look", "layers keep")],
)
def test_parameters_in_running_text_are_a_list(site: Path, page: str, names: str) -> None:
    text = (site / "docs" / "api" / f"{page}.html").read_text(encoding="utf-8")
    assert set(names.split()) <= set(re.findall(r"<strong>(\w+)</strong> – ", text))


def test_nothing_is_loaded_from_a_network(pages: dict[Path, Page], site: Path) -> None:
    loaded = [(path, one) for path, page in pages.items() for one in page.loads]
    for sheet in [*site.rglob("*.css"), *site.rglob("*.svg")]:
        loaded += [(sheet, one) for one in addresses(sheet.read_text(encoding="utf-8"))]
    assert loaded
    for path, one in loaded:
        assert not urlsplit(one).netloc and urlsplit(one).scheme in ("", "data"), f"{path}: {one}"


def test_every_link_and_anchor_leads_somewhere(pages: dict[Path, Page]) -> None:
    n_anchors = 0
    for path, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert there.is_file(), f"{path.name}: {link}"
            if parts.fragment and there in pages:
                n_anchors += 1
                assert unquote(parts.fragment) in pages[there].ids | {"", "top"}, f"{path.name}: {link}"
    assert n_anchors > 100


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_pages_open_from_disk(browser: Any, pages: dict[Path, Page], width: int) -> None:
    """Without a word on the console or a request that is no file, and no page is wider than the window."""
    tab = browser.new_page(viewport={"width": width, "height": 900})
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda asked: said.extend([asked.url] * (not asked.url.startswith(("file:", "data:")))))
    for path in pages:
        tab.goto(path.as_uri())
        assert not said, f"{path.name}: {said}"
        beyond = tab.evaluate("document.scrollingElement.scrollWidth - innerWidth")
        assert beyond <= 0, f"{path.name} is {beyond} pixels wider than {width}"
    tab.close()


def test_search_works_from_disk(browser: Any, site: Path) -> None:
    tab = browser.new_page()
    failed: list[str] = []
    tab.on("pageerror", lambda error: failed.append(str(error)))
    tab.on("console", lambda message: failed.extend([message.text] * (message.type == "error")))
    tab.goto(f"{(site / 'search.html').as_uri()}?q=perplexity")
    tab.wait_for_selector("#search-results li a")
    assert "glossary.html" in " ".join(
        tab.eval_on_selector_all("#search-results li a", "all => all.map(a => a.href)")
    )
    assert not failed
    tab.close()
