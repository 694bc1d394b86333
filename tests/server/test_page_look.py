"""The panel that looks inside an answer, in Debian's Chromium, against a real server with tiny models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import Running, serving
from tests.server.test_page import CHROMIUM, Visit, browser, say, store, stored, sync_api

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
__all__ = ["browser"]
HOSTILE = "<script>pwned=1</script>"


@pytest.fixture(scope="module")
def served(folders: dict[str, Path]) -> Iterator[Running]:
    with serving(folders, "crow", "lstm", "moses") as running:
        yield running


@pytest.fixture(scope="module")
def desk(browser: Any, served: Running) -> Iterator[Visit]:  # noqa: F811
    visit = Visit(browser, served.url, viewport={"width": 1366, "height": 900})
    visit.open()
    yield visit
    visit.context.close()


@pytest.fixture
def visit(desk: Visit) -> Iterator[Visit]:
    desk.page.evaluate("localStorage.clear()")
    desk.asked.clear()
    desk.open()
    store(desk.page, settings=dict(maxTokens=16, temperature=0))
    yield desk
    desk.check()
    assert desk.page.locator("aside script, aside img, aside iframe, aside style, aside [src]").count() == 0


def opened(page: Any) -> Any:
    """The panel of the last answer, once its first head is there."""
    page.get_by_role("button", name="Look inside").last.click()
    panel = page.locator("#insight")
    panel.locator(".look-facts").wait_for()
    return panel


def test_an_answer_is_looked_into_a_head_ablated_and_the_lens_opened(visit: Visit):
    page = visit.page
    assert not any("look" in url for url in visit.asked)  # nothing of it is loaded before it is opened
    say(page, f"Hello {HOSTILE}")
    visit.asked.clear()
    sizes: list[int] = []
    weigh = lambda answer: sizes.append(int(answer.headers["content-length"]))  # noqa: E731
    page.on("response", weigh)
    panel = opened(page)
    page.remove_listener("response", weigh)
    assert sum(sizes) < 300_000
    assert sum(url.endswith("/look") for url in visit.asked) == 1  # of all that is shown first
    assert re.search(r"once more, \d+ tokens in .* It agrees", panel.inner_text())
    assert HOSTILE in (panel.locator(".look-tokens").text_content() or "")

    tokens = panel.locator(".look-t:not(.told)")
    assert tokens.count() > 4
    before = panel.locator(".look-readout").inner_text()
    tokens.nth(1).hover()
    hovered = panel.locator(".look-readout").inner_text()
    assert hovered != before and re.search(r"rank \d+ · entropy [\d.]+ bits", hovered)
    assert panel.locator(".look-t[data-lit]").count() > 0 and "took, when it was to be written," in hovered
    panel.locator("h2").hover()
    assert panel.locator(".look-readout").inner_text() == before

    panel.locator(".look-caveat").last.scroll_into_view_if_needed()
    sync_api.expect(panel.locator(".look-held")).to_be_in_viewport(ratio=0.9)  # however far one goes down
    order = [pane.get_attribute("data-head") for pane in panel.locator(".pane").all()]
    assert sorted(order) == [f"{layer}.{head}" for layer in range(2) for head in range(4)]
    panel.get_by_label("Order of the heads").select_option("sharp")
    assert [pane.get_attribute("data-head") for pane in panel.locator(".pane").all()] != order
    panel.locator("[data-head='1.2']").click()
    panel.get_by_text("Layer 1, head 2", exact=True).wait_for()
    assert "these weights give the kernel's own output" in panel.inner_text()

    panel.get_by_role("button", name="Ablate this head").click()
    change = panel.locator(".look-change")
    change.wait_for()
    assert re.search(r"[+−]\d+\.\d\d nats", change.inner_text())
    moves = panel.locator(".look-result tbody tr")
    assert moves.count() >= 2
    assert re.search(r"%\s+.*%", moves.first.inner_text())

    panel.get_by_text("What each layer would have said").click()
    lens = panel.locator("[data-view=lens] .look-table tbody tr")
    lens.first.wait_for()
    assert lens.count() == 3 and "0.00" in lens.first.inner_text()
    panel.get_by_text("What a token hangs on").click()
    panel.get_by_text("rank correlation with exact removal").wait_for()
    assert all(text.startswith("Keep in mind") for text in panel.locator(".look-caveat").all_inner_texts())
    assert panel.locator(".look-caveat").count() >= 5


def test_every_word_of_it_is_said_plainly_where_it_stands(visit: Visit):
    page = visit.page
    say(page, "Hello")
    panel = opened(page)
    panel.locator("summary").filter(has_text="What each layer would have said").click()
    panel.locator("[data-view=lens] .look-table").wait_for()
    for word, meaning in (
        ("tokens", "A piece of text that the model reads and writes"),
        ("head", "takes something from other tokens"),
        (re.compile(r"rank \d+"), "1 was the model's first choice"),
        (re.compile(r"entropy .* bits"), "as open as among"),
        ("What is that?", "is replaced by its average"),
    ):
        panel.get_by_role("button", name=word, exact=True).first.click()
        note = page.get_by_role("note").filter(visible=True)
        sync_api.expect(note).to_contain_text(meaning)
        assert note.evaluate("node => node.getBoundingClientRect().right <= innerWidth")
        page.keyboard.press("Escape")
        sync_api.expect(note).to_have_count(0)
        assert panel.is_visible()  # only the meaning has closed
    assert "reads one layer as if it were the last" in panel.locator("[data-view=lens]").inner_text()


def test_the_panel_is_walked_by_keyboard_and_escape_gives_the_focus_back(visit: Visit):
    page = visit.page
    say(page, "Hello")
    button = page.get_by_role("button", name="Look inside").last
    button.focus()
    page.keyboard.press("Enter")
    panel = page.locator("#insight")
    panel.locator(".look-facts").wait_for()
    panel.locator(".look-tokens").focus()
    page.keyboard.press("Home")
    assert "nothing was expected of it" in panel.locator(".look-readout").inner_text()
    page.keyboard.press("ArrowRight")
    assert panel.locator(".look-t.marked").get_attribute("data-i") == "1"
    panel.locator(".pane[tabindex='0']").focus()
    here = page.evaluate("document.activeElement.dataset.head")
    page.keyboard.press("ArrowUp" if here.startswith("0") else "ArrowDown")
    there = page.evaluate("document.activeElement.dataset.head")
    assert there != here and panel.locator(".pane[tabindex='0']").count() == 1
    page.keyboard.press("Escape")
    assert not panel.is_visible()
    assert page.evaluate("document.activeElement.textContent") == "Look inside"


def test_an_answer_that_is_no_longer_what_it_was_is_not_passed_off_as_it(visit: Visit):
    page = visit.page
    say(page, "Hello")
    page.evaluate(
        """async id => {
            const database = await import("/page/database.js"), kept = await database.load(id);
            kept.messages[0].text = "Something else";
            await database.save(kept);
        }""",
        stored(page, "open"),
    )
    page.reload()
    page.wait_for_selector("html[data-ready]")
    panel = opened(page)
    assert panel.locator(".look-note[data-differs]").is_visible()
    assert "differs from what was served" in panel.locator(".look-note").inner_text()


def test_a_completion_a_recurrence_and_a_translation_can_be_looked_into(visit: Visit):
    page = visit.page
    page.get_by_role("tab", name="Complete").click()
    page.locator("#prompt").fill("The crow ")
    page.get_by_role("button", name="Complete", exact=True).click()
    panel = opened(page)
    assert "It agrees" in panel.inner_text()
    panel.get_by_role("button", name="Close").click()

    page.locator("#model").select_option("lstm")
    page.get_by_role("button", name="Complete", exact=True).click()
    page.get_by_role("button", name="Again").wait_for()
    page.get_by_role("button", name="Look inside").last.click()
    panel.locator(".look-readout code").first.wait_for()
    assert panel.locator("[data-view=heads]").count() == 0 and "It agrees" in panel.inner_text()
    panel.get_by_text("What each layer would have said").click()
    panel.locator("[data-view=lens] .look-table").wait_for()

    page.get_by_role("tab", name="Translate").click()
    page.locator("#source").fill("abc <s>")
    page.get_by_role("button", name="Translate", exact=True).click()
    panel = opened(page)
    assert "It agrees" in panel.inner_text()
    panel.get_by_label("Attention").select_option("encoder")
    panel.locator(".pane").first.wait_for()


def test_what_the_server_refuses_stands_in_the_panel(visit: Visit):
    page = visit.page
    say(page, "Hello")
    refusal = '{"error": {"message": "too <b>long</b>"}}'
    page.route(
        "**/look", lambda route: route.fulfill(status=400, content_type="application/json", body=refusal)
    )
    page.get_by_role("button", name="Look inside").last.click()
    page.locator("#insight .look-refused").wait_for()
    assert page.locator("#insight .look-refused").inner_text() == "Too <b>long</b>"
    page.unroute("**/look")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone(browser: Any, served: Running, theme: Any):  # noqa: F811
    phone = {"width": 390, "height": 844}
    visit = Visit(browser, served.url, viewport=phone, color_scheme=theme, is_mobile=True,
                  has_touch=True)  # fmt: skip
    page = visit.open()
    store(page, settings=dict(maxTokens=16, temperature=0))
    say(page, "Hello " + "x" * 60)
    panel = opened(page)
    box = panel.bounding_box()
    assert box["x"] == 0 and box["width"] == 390 and round(box["y"] + box["height"]) == 844
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert panel.evaluate("node => node.scrollWidth <= node.clientWidth")
    visit.check()
    visit.context.close()


def test_a_saved_look_opens_from_disk_with_the_network_off(
    browser: Any, folders: dict[str, Path], tmp_path: Path
):  # noqa: F811
    from transom.inference.load import load
    from transom.inference.look import look_into

    path = tmp_path / "look.html"
    look_into(load(folders["crow"]), f"The crow {HOSTILE}", HOSTILE).save(path)
    context = browser.new_context(offline=True, viewport={"width": 390, "height": 844})
    page = context.new_page()
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(path.as_uri())
    assert HOSTILE in page.locator("h1").inner_text()
    assert page.evaluate("window.pwned") is None and complaints == []
    assert {url for url in asked if not url.startswith("data:image/png")} == {path.as_uri()}
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for opening in ("What it found", "How to read it"):
        assert page.get_by_role("heading", name=opening).is_visible()
    assert page.locator(".view svg image").count() >= 8
    context.close()


sync_api.expect.set_options(timeout=15_000)
