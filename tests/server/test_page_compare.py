"""Compare on the page: two models on one prompt, and the first token where they part, in Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import Running, serving
from tests.server.test_adapters import places as places
from tests.server.test_page import CHROMIUM, Visit
from tests.server.test_page import browser as browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
PROMPT = "The crow <b>flew</b>"


@pytest.fixture(scope="module")
def served(folders: dict[str, Path], places: dict[str, Path]) -> Iterator[Running]:
    given = [f"{name}={places[name]}" for name in ("loud", "quiet")]
    adapters = [f"crow:{one}" for one in given]
    with serving(folders, "crow", "lstm", adapter=adapters) as running:
        yield running


@pytest.fixture(scope="module")
def visit(browser: Any, served: Running) -> Iterator[Visit]:
    visit = Visit(browser, served.url, viewport={"width": 1280, "height": 800})
    visit.open()
    visit.page.get_by_role("tab", name="Compare").click()
    yield visit
    visit.check()
    visit.context.close()


def ask(page: Any, *models: str) -> str:
    """Ask both, and what is said of where they part."""
    for label, model in zip(("One model", "Another"), models, strict=True):
        page.get_by_label(label, exact=True).last.select_option(model)
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Ask both").click()
    page.locator("#panel-compare .parting:not(:empty)").wait_for()
    return page.locator("#panel-compare .parting").inner_text()


def completed(served: Running, model: str) -> tuple[list[str], str]:
    """The tokens and the text that the API writes when it is asked the same."""
    body = {"model": model, "temperature": 0, "max_tokens": 256, "prompt": PROMPT, "logprobs": 1}
    with served.client() as http:
        limit = http.get(f"/v1/models/{model}").json()["max_len"] // 4
        choice = http.post("/v1/completions", json={**body, "max_tokens": limit}).json()["choices"][0]
    return choice["logprobs"]["tokens"], choice["text"]


def test_adapters_stand_below_their_base(visit: Visit) -> None:
    groups = visit.page.locator("#panel-compare select").first.locator("optgroup")
    assert groups.count() == 1 and groups.get_attribute("label") == "crow and its adapters"
    assert groups.locator("option").all_inner_texts() == ["crow", "crow:loud", "crow:quiet"]
    picked = [one.input_value() for one in visit.page.locator("#panel-compare select").all()]
    assert picked == ["crow", "crow:loud"]
    visit.page.get_by_role("tab", name="Chat").click()
    assert visit.page.locator("#model optgroup option").all_inner_texts() == [
        "crow",
        "crow:loud",
        "crow:quiet",
    ]
    visit.page.get_by_role("tab", name="Compare").click()
    assert not visit.page.locator("#model").is_visible()


def test_the_first_token_where_two_part_is_marked(visit: Visit, served: Running) -> None:
    page = visit.page
    said = ask(page, "crow:loud", "lstm")  # one of them does not chat, so both go on with the text
    (one, text), (other, other_text) = completed(served, "crow:loud"), completed(served, "lstm")
    shown = page.locator("#panel-compare .written").all()
    assert [node.text_content() for node in shown] == [text, other_text]
    first = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    assert said.startswith(f"They part at token {first + 1:,}: crow:loud writes ") and "lstm writes " in said
    marked = page.locator("#panel-compare .t.parts")
    assert marked.count() == 2
    assert {int(span.get_attribute("data-i")) for span in marked.all()} == {first}
    assert "tokens" in page.locator("#panel-compare .side .quiet").first.inner_text()


def test_a_model_is_the_same_as_itself(visit: Visit) -> None:
    said = ask(visit.page, "crow", "crow")
    assert said.startswith("The same, to the last of ") and visit.page.locator(".t.parts").count() == 0


@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_screen(visit: Visit, width: int) -> None:
    page = visit.page
    page.set_viewport_size({"width": width, "height": 800})
    ask(page, "crow", "crow:quiet")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    panel = page.locator("#panel-compare").evaluate("node => [node.scrollWidth, node.clientWidth]")
    assert panel[0] <= panel[1]
    boxes = [one.bounding_box() for one in page.locator("#panel-compare .side").all()]
    assert (boxes[0]["x"] == boxes[1]["x"]) == (width < 720)
    labels = page.locator("[role=tab]").all()
    assert all(one.evaluate("node => node.scrollWidth <= node.clientWidth") for one in labels)
    page.set_viewport_size({"width": 1280, "height": 800})


def test_one_model_alone_says_what_to_serve(browser: Any, folders: dict[str, Path]) -> None:
    with serving(folders, "crow") as running:
        visit = Visit(browser, running.url)
        page = visit.open()
        page.get_by_role("tab", name="Compare").click()
        assert "Nothing here to compare." in page.locator("#panel-compare").inner_text()
        visit.check()
        visit.context.close()
