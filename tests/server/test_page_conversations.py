"""Conversations on the page: whose words go on, two tabs at once, what leaves the browser and what comes in,
and whether everybody can use it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import Running, serving
from tests.server.test_page import (
    CHROMIUM,
    Visit,
    browser,
    desk,
    finished,
    kept,
    parrot,
    say,
    store,
    sync_api,
    visit,
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
__all__ = ["browser", "desk", "visit"]  # fixtures

ARABIC = "مرحبا 123."


@pytest.fixture(scope="module")
def served(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    own = {**folders, "parrot": parrot(tmp_path_factory.mktemp("page") / "parrot" / "model")}
    with serving(own, "parrot", "crow", "moses", "sorter", chat_template="plain") as running:
        yield running


def pick(page: Any, model: str) -> None:
    page.locator("#model").select_option(label=model)


def requests_of(page: Any, path: str) -> list[dict[str, Any]]:
    """The bodies that the page sends to a path from now on."""
    found: list[dict[str, Any]] = []
    page.on("request", lambda request: request.url.endswith(path) and found.append(request.post_data_json))
    return found


def take_another(page: Any, answer: Any, nth: int = 5) -> None:
    """Continue an answer from one of its tokens with the likeliest other one."""
    answer.locator(".t").filter(visible=True).nth(nth).click()
    page.locator("#peek .button.primary").click()
    finished(page)


# Whose words go on


def test_another_token_is_gone_on_from_by_the_model_that_wrote_it(visit: Visit):
    page = visit.page
    store(page, settings=dict(maxTokens=30))
    pick(page, "parrot")
    answer = say(page, "Hello")
    pick(page, "crow")
    bodies = requests_of(page, "/v1/chat/completions")
    take_another(page, answer)
    page.get_by_text("2 of 2", exact=True).wait_for()
    page.get_by_role("button", name="Go on").click()
    page.get_by_text("3 of 3", exact=True).wait_for()
    finished(page)
    assert [body["model"] for body in bodies] == ["parrot", "parrot"]
    assert {message["model"] for message in kept(page)["messages"] if message["role"] == "assistant"} == {
        "parrot"
    }
    page.get_by_role("button", name="Regenerate").click()  # a new answer is the chosen model's
    page.get_by_text("4 of 4", exact=True).wait_for()
    finished(page)
    assert bodies[-1]["model"] == "crow"


def test_an_answer_stays_under_the_system_text_that_it_was_asked_under(visit: Visit):
    page = visit.page
    store(page, settings=dict(maxTokens=20, system="Be brief."))
    answer = say(page, "Hello")
    assert kept(page)["system"] == "Be brief."
    page.evaluate("async () => (await import('/page/store.js')).set('system', 'Be long.')")
    page.get_by_text("System text: Be brief.").wait_for()
    bodies = requests_of(page, "/v1/chat/completions")
    take_another(page, answer)
    page.get_by_text("2 of 2", exact=True).wait_for()
    page.get_by_role("button", name="Go on").click()
    page.get_by_text("3 of 3", exact=True).wait_for()
    finished(page)
    page.get_by_text("System text: Be brief.").click()
    page.get_by_label("System text of this conversation").fill("Be kind.")  # what was asked stays what it was
    page.get_by_role("button", name="Go on").click()
    page.get_by_text("4 of 4", exact=True).wait_for()
    finished(page)
    page.get_by_role("button", name="Regenerate").click()  # a new answer is asked anew
    page.get_by_text("5 of 5", exact=True).wait_for()
    finished(page)
    said = [body["messages"][0]["content"] for body in bodies]
    assert said == ["Be brief.", "Be brief.", "Be brief.", "Be kind."]
    page.get_by_role("button", name="New conversation").click()
    page.get_by_text("System text: Be long.").wait_for()


def test_a_completion_too(visit: Visit):
    page = visit.page
    store(page, settings=dict(maxTokens=30, temperature=0))  # drawn bytes may be parts of letters
    page.get_by_role("tab", name="Complete").click()
    pick(page, "parrot")
    page.get_by_label("Beginning").fill("So: ")
    page.get_by_role("button", name="Complete", exact=True).click()
    page.locator(".result .t").nth(20).wait_for(state="attached")
    page.get_by_role("button", name="Again").wait_for()
    pick(page, "crow")
    bodies = requests_of(page, "/v1/completions")
    page.locator(".result .t").filter(visible=True).nth(5).click()
    page.locator("#peek .button.primary").click()
    page.get_by_role("button", name="Again").wait_for()
    assert [body["model"] for body in bodies] == ["parrot"]


def test_what_a_model_wrote_that_is_not_served_now_is_not_gone_on_from(visit: Visit):
    page = visit.page
    store(page, settings=dict(maxTokens=20))
    say(page, "Hello")
    page.evaluate(
        """async id => {
            const database = await import("/page/database.js"), one = await database.load(id);
            const [, answer] = one.messages;
            Object.assign(answer, { model: "elsewhere", asked: { ...answer.asked, model: "elsewhere" } });
            await database.save(one);
        }""",
        kept(page)["id"],
    )
    page.reload()
    page.wait_for_selector("html[data-ready]")
    go_on = page.get_by_role("button", name="Go on")
    assert (
        go_on.is_disabled()
        and go_on.get_attribute("title") == "Written by elsewhere, which is not served now."
    )
    page.locator(".message.assistant .t").filter(visible=True).nth(3).click()
    assert page.locator("#peek .button.primary").count() == 0


# Two tabs, and a way back


def test_two_tabs_on_one_conversation_keep_both(visit: Visit):
    page = visit.page
    store(page, settings=dict(maxTokens=8))
    say(page, "First of A")
    other = visit.context.new_page()
    other.goto(page.url)
    other.locator(".message.assistant").wait_for()
    say(page, "Second of A")
    told = page.locator(".message.assistant .written").last.inner_text()  # and so is the other
    sync_api.expect(other.locator(".message.assistant .written").nth(1)).to_have_text(told)
    say(other, "Third, of B")
    page.get_by_text("Third, of B", exact=True).first.wait_for()
    texts = [message["text"] for message in kept(page)["messages"] if message["role"] == "user"]
    assert texts == ["First of A", "Second of A", "Third, of B"]

    # Both write at once: what would have been written over becomes a conversation of its own.
    for tab, text in ((page, "Of A at once"), (other, "Of B at once")):
        tab.get_by_label("Message", exact=True).fill(text)
    for tab in (page, other):
        tab.get_by_label("Message", exact=True).press("Enter")
    for tab in (page, other):
        tab.locator(".message.user").nth(3).wait_for()
        finished(tab)
    page.locator(".conversation").nth(1).wait_for()
    said = page.evaluate(
        """async () => (await (await import("/page/database.js")).everything())
            .map(one => one.messages.filter(({ role }) => role === "user").map(({ text }) => text))"""
    )
    assert sorted(texts[-1] for texts in said) == ["Of A at once", "Of B at once"]
    assert all(len(texts) == 4 for texts in said)
    alerts = [tab.get_by_role("alert").locator("visible=true").all_inner_texts() for tab in (page, other)]
    assert any("changed in another tab" in " ".join(lines) for lines in alerts)
    titles = page.locator(".conversation").all_inner_texts()
    copied = r"Of [AB] at once \(another tab’s way on from “First of A”\)"
    assert "First of A" in titles and any(re.fullmatch(copied, title) for title in titles)
    other.close()


def test_a_frame_that_comes_late_keeps_nothing_that_another_tab_has_gone_on_from(visit: Visit):
    page = visit.page
    store(page, settings=dict(maxTokens=8))
    page.evaluate(
        """() => {
            const draw = requestAnimationFrame;
            window.held = [];
            window.requestAnimationFrame = (work) => (window.held ? window.held.push(work) : draw(work));
        }"""
    )
    say(page, "First of A")
    other = visit.context.new_page()
    other.goto(page.url)
    other.locator(".message.assistant").wait_for()
    say(other, "Second, of B")
    page.get_by_text("Second, of B", exact=True).first.wait_for()
    since = page.evaluate("performance.now()")
    page.wait_for_function("since => performance.now() > since + 1100", arg=since)  # time to keep it again
    page.evaluate(
        "() => { const works = window.held; window.held = null; works.forEach((work) => work(0)); }"
    )
    finished(page)
    whole = "async () => (await (await import('/page/database.js')).everything()).map(one => one.title)"
    assert page.evaluate(whole) == ["First of A"]
    other.close()


def test_conversations_have_addresses_and_the_way_back_leads_through_them(visit: Visit):
    page = visit.page
    store(page, settings=dict(maxTokens=8))
    say(page, "About crows")
    first = page.url
    assert re.search(r"#c=[\w-]+$", first)
    sync_api.expect(page).to_have_title("About crows · Transom")
    page.get_by_role("button", name="New conversation").click()
    page.get_by_label("Message", exact=True).fill("half a thought")
    page.get_by_role("button", name="About crows", exact=True).click()
    page.locator(".message.user").wait_for()
    assert page.get_by_label("Message", exact=True).input_value() == ""
    page.get_by_role("button", name="New conversation").click()
    say(page, "About foxes")
    page.go_back()
    page.get_by_text("About crows", exact=True).locator("visible=true").first.wait_for()
    assert page.url == first


def test_an_answer_goes_on_while_another_conversation_is_open(visit: Visit):
    page = visit.page
    store(page, settings=dict(maxTokens=600, temperature=0))
    page.evaluate(
        """() => new MutationObserver(() => {
            window.written ||= Boolean(document.querySelector("#conversations .pen:not([hidden])"));
        }).observe(document.querySelector("#conversations"),
            { subtree: true, childList: true, attributes: true })"""
    )
    page.get_by_label("Message", exact=True).fill("A long one")
    page.keyboard.press("Enter")
    page.locator(".message.assistant .t").nth(5).wait_for(state="attached")
    page.get_by_role("button", name="New conversation").click()
    assert page.locator(".message").count() == 0
    page.get_by_role("button", name="A long one", exact=True).click()
    page.locator(".message.assistant").wait_for()
    finished(page)
    answer = kept(page)["messages"][1]
    assert (len(answer["tokens"]), answer["finish"]) == (600, "length")
    assert page.evaluate("window.written")  # and the list said so
    sync_api.expect(page.get_by_role("img", name="An answer is being written")).to_have_count(0)


def test_another_tab_says_that_an_answer_is_being_written_here(visit: Visit):
    page = visit.page
    store(page, settings=dict(maxTokens=8))
    say(page, "Hello")
    id = kept(page)["id"]
    other = visit.context.new_page()
    other.goto(page.url)
    other.locator(".message.assistant").wait_for()
    for writing, n in ((True, 1), (False, 0)):
        page.evaluate("async ([id, on]) => (await import('/page/database.js')).tell(id, on)", [id, writing])
        pen = other.get_by_role("img", name="An answer is being written")
        sync_api.expect(pen).to_have_count(n)
        sync_api.expect(other.get_by_text("Being written in another tab.")).to_have_count(n)
        sync_api.expect(other.get_by_role("button", name="Regenerate")).to_have_count(1 - n)
    other.close()


def test_a_reload_while_it_writes_loses_nothing_that_came(visit: Visit):
    page = visit.page
    store(page, settings=dict(maxTokens=900))
    page.get_by_label("Message", exact=True).fill("A long one")
    page.keyboard.press("Enter")
    page.locator(".message.assistant .t").nth(40).wait_for(state="attached")
    page.reload()
    page.locator(".message.assistant .t").nth(39).wait_for(state="attached")
    assert page.locator(".conversation").count() == 1
    page.get_by_role("button", name="Go on").wait_for()


def test_whoever_opens_the_page_can_write_at_once(visit: Visit):
    page = visit.page
    store(page, settings=dict(maxTokens=8))
    field = page.get_by_label("Message", exact=True)
    sync_api.expect(field).to_be_focused()
    say(page, "Hello")
    page.get_by_role("button", name="New conversation").click()
    sync_api.expect(field).to_be_focused()


# In and out


def test_a_conversation_is_renamed_searched_exported_and_imported(visit: Visit, tmp_path: Path):
    page = visit.page
    store(page, settings=dict(maxTokens=8))
    say(page, "Tell me of crows")
    page.get_by_role("button", name="More about: Tell me of crows").click()
    page.get_by_role("menuitem", name="Rename").click()
    page.get_by_label("Name of the conversation").fill("Birds")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Birds", exact=True).wait_for()
    exported = {}
    for name, kind in (("Export as Markdown", "md"), ("Export as JSON", "json")):
        page.get_by_role("button", name="More about: Birds").click()
        with page.expect_download() as found:
            page.get_by_role("menuitem", name=name).click()
        exported[kind] = tmp_path / f"one.{kind}"
        found.value.save_as(exported[kind])
        assert found.value.suggested_filename == f"Birds.{kind}"
    shown = exported["md"].read_text()
    assert "## You\n\nTell me of crows\n\n## parrot\n\n" in shown and "*Cut at 8 tokens.*" in shown

    was = kept(page)
    page.get_by_role("button", name="More about: Birds").click()
    page.get_by_role("menuitem", name="Delete").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    sync_api.expect(page.locator(".conversation, .message")).to_have_count(0)
    page.get_by_label("A file of conversations").set_input_files(exported["json"])
    page.locator(".message.assistant").wait_for()
    back = kept(page)
    assert back["id"] != was["id"] and (back["title"], back["named"]) == ("Birds", True)
    for one, other in zip(back["messages"], was["messages"], strict=True):
        assert all(one.get(name) == other.get(name) for name in ("role", "text", "tokens", "asked", "took"))
    page.get_by_role("button", name="Look inside").wait_for()  # nothing that a file held is lost
    assert page.get_by_role("button", name="Go on").is_enabled()
    assert back["messages"][1]["tokens"] == was["messages"][1]["tokens"]

    whole = json.loads(exported["json"].read_text())
    for spoil, says in (
        (lambda file: file.update(kind="other"), "holds no conversations of Transom"),
        (
            lambda file: file["conversations"][0].update(chosen=7),
            "conversation 1 of this file cannot be read",
        ),
        (lambda file: file["conversations"][0]["messages"][1].update(parent=1), "message 2 answers nothing"),
        (
            lambda file: file["conversations"][0]["messages"][0].update(text=None),
            "message 1 has no role or text",
        ),
    ):
        broken = json.loads(json.dumps(whole))
        spoil(broken)
        (tmp_path / "broken.json").write_text(json.dumps(broken))
        page.get_by_label("A file of conversations").set_input_files(tmp_path / "broken.json")
        page.get_by_role("alert").locator("visible=true").get_by_text(says).wait_for()
    (tmp_path / "broken.json").write_text("{")
    page.get_by_label("A file of conversations").set_input_files(tmp_path / "broken.json")
    page.get_by_role("alert").get_by_text("broken.json: this file is not JSON").wait_for()
    assert page.locator(".conversation").count() == 1

    many = [
        {**back, "messages": [{**back["messages"][0], "text": f"number {i}", "chosen": None}], "named": False}
        for i in range(9)
    ]
    (tmp_path / "many.json").write_text(
        json.dumps({"kind": "transom conversations", "version": 1, "conversations": many})
    )
    page.get_by_label("A file of conversations").set_input_files(tmp_path / "many.json")
    sync_api.expect(page.locator(".conversation")).to_have_count(10)
    page.get_by_label("Search conversations").fill("NUMBER 7")
    sync_api.expect(page.locator(".conversation")).to_have_text(["number 7"])


def drop(page: Any, name: str, data: list[int]) -> None:
    page.evaluate(
        """([name, data]) => {
            const files = new DataTransfer();
            files.items.add(new File([new Uint8Array(data)], name));
            for (const type of ["dragover", "drop"]) {
                const event = new DragEvent(type, { dataTransfer: files, bubbles: true, cancelable: true });
                document.body.dispatchEvent(event);
                if (!event.defaultPrevented) throw new Error(`${type} leaves the page`);
            }
        }""",
        [name, data],
    )


def test_text_files_go_into_the_message(visit: Visit, tmp_path: Path):
    page = visit.page
    box = page.get_by_label("Message", exact=True)
    drop(page, "notes.md", list(b"one ``` two\n"))
    sync_api.expect(box).to_have_value("notes.md:\n\n````\none ``` two\n````\n\n")
    (tmp_path / "b.txt").write_text("three")
    page.get_by_label("Text files").set_input_files(tmp_path / "b.txt")
    sync_api.expect(box).to_have_value(re.compile(r"````\n\nb\.txt:\n\n```\nthree\n```\n\n$"))
    drop(page, "picture.png", [0x89, 0x50, 0, 0xFF])
    page.get_by_role("alert").get_by_text("picture.png is not a text file").wait_for()
    drop(page, "big.txt", [65] * 400_001)
    page.get_by_role("alert").get_by_text("big.txt has 401 kB; at most 400 kB").wait_for()
    assert "picture" not in box.input_value()


# What is written


MARKDOWN = """| name | size |
|---|--:|
| crow | `1` \\| 2 |
| fox |

1. first:
   ```python
   def f():
       return 1
   ```
2. ~~gone~~ and \\( a_1^2 \\)

- [x] done
- [ ] not yet

\\[ x = 1 \\]
"""


def written(page: Any, text: str, messages: str = "assistant") -> Any:
    """Show a conversation in which this was said."""
    page.evaluate(
        """async ([text, role]) => {
            const { fresh, say } = await import("/page/conversation.js");
            const database = await import("/page/database.js");
            const one = fresh();
            say(one, null, { role: "user", text: "Hi" });
            say(one, one.messages[0], { role, text, tokens: [], finish: "stop", model: "m", seed: 1 });
            await database.save(one);
            location.hash = `#c=${one.id}`;
        }""",
        [text, messages],
    )
    found = page.locator(".message.assistant")
    found.wait_for()
    return found


def test_tables_code_tasks_and_formulas_are_what_they_are(visit: Visit):
    page = visit.page
    answer = written(page, MARKDOWN)
    rows = answer.locator("tr")
    assert [row.locator("th, td").all_inner_texts() for row in rows.all()] == [
        ["name", "size"], ["crow", "1 | 2"], ["fox", ""]
    ]  # fmt: skip
    assert answer.locator(".code pre").inner_text() == "def f():\n    return 1"
    assert answer.locator(".code-head span").inner_text() == "python"
    assert answer.locator("s").inner_text() == "gone"
    assert answer.locator("code.math").all_inner_texts() == ["\\( a_1^2 \\)", "\\[ x = 1 \\]"]
    assert [mark.inner_text() for mark in answer.locator(".item-mark").all()][-2:] == ["☑", "☐"]
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    answer.get_by_role("button", name="Copy the code").dblclick()
    assert page.evaluate("navigator.clipboard.readText()") == "def f():\n    return 1"
    page.wait_for_timeout(1600)
    assert answer.get_by_role("button", name="Copy the code").inner_text() == "Copy"


def test_text_from_right_to_left_stands_on_the_right(visit: Visit):
    page = visit.page
    answer = written(page, f"{ARABIC}\n\n- {ARABIC}\n\nThen English.")
    side = "node => getComputedStyle(node).direction"
    assert [answer.locator(place).first.evaluate(side) for place in (".written p", ".item")] == ["rtl", "rtl"]
    assert answer.locator(".written p").last.evaluate(side) == "ltr"
    page.get_by_label("Message", exact=True).fill(ARABIC)
    assert page.get_by_label("Message", exact=True).evaluate(side) == "rtl"


def test_a_long_prompt_says_that_it_is_read(visit: Visit):
    page = visit.page
    page.route("**/v1/chat/completions", lambda route: (page.wait_for_timeout(2500), route.continue_()))
    store(page, settings=dict(maxTokens=8))
    page.get_by_label("Message", exact=True).fill("Hello there")
    page.keyboard.press("Enter")
    page.get_by_text(re.compile(r"Reading \d+ tokens … \d s")).wait_for()
    assert page.get_by_role("button", name="Answer", exact=True).count() == 0
    finished(page)
    assert page.locator(".waiting").count() == 0
    page.unroute("**/v1/chat/completions")


# By everybody


def test_no_barrier_is_found_by_axe(visit: Visit):
    """axe-core's rules of WCAG 2.2 A and AA on every view, light and dark, wide and narrow."""
    axe = pytest.importorskip("axe_playwright_python.base", reason="axe-playwright-python is not installed")
    page = visit.page
    source = (Path(axe.__file__).parent / "axe.min.js").read_text()
    store(page, settings=dict(maxTokens=60, tint=True))
    say(page, "Hello")
    say(page, "a" * 300)
    views: dict[str, Any] = {
        "chat": lambda: page.get_by_role("tab", name="Chat").click(),
        "settings": lambda: page.locator("#settings-open").click(),
        "peek": lambda: page.locator(".t").filter(visible=True).nth(4).click(),
        "complete": lambda: page.get_by_role("tab", name="Complete").click(),
        "translate": lambda: page.get_by_role("tab", name="Translate").click(),
        "classify": lambda: page.get_by_role("tab", name="Classify").click(),
        "compare": lambda: page.get_by_role("tab", name="Compare").click(),
        "ask": lambda: page.get_by_role("tab", name="Ask").click(),
        "look": lambda: (page.get_by_role("tab", name="Chat").click(),
                         page.get_by_role("button", name="Look inside").first.click(),
                         page.locator("#insight .pane").first.wait_for()),
    }  # fmt: skip
    found = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 800})
            for name, show in views.items():
                show()
                page.evaluate(f"if (!window.axe) {{ {source} }}")
                result = page.evaluate(
                    "axe.run({ runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa'] })"
                )
                found += [
                    f"{name}, {scheme}, {width}: {one['id']}: {node['html'][:140]} {node['failureSummary']}"
                    for one in result["violations"] for node in one["nodes"]
                ]  # fmt: skip
                page.keyboard.press("Escape")
    page.set_viewport_size({"width": 1280, "height": 800})
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    assert found == [], "\n".join(found)


def test_the_focus_stays_with_what_was_pressed(visit: Visit):
    page = visit.page
    store(page, settings=dict(maxTokens=8, temperature=0))
    say(page, "One")
    name = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"
    page.get_by_role("button", name="Regenerate").focus()
    page.keyboard.press("Enter")
    page.get_by_text("2 of 2", exact=True).wait_for()
    finished(page)
    page.get_by_role("button", name="The answer before").focus()
    page.keyboard.press("Enter")
    page.get_by_text("1 of 2", exact=True).wait_for()
    assert page.evaluate(name) == "The next answer"
    page.get_by_role("button", name="More about: One").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    assert page.evaluate(name) == "Export as Markdown"
    page.keyboard.press("Escape")
    assert page.evaluate(name) == "More about: One"
    written = page.locator(".written")
    written.focus()
    places = []
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "Enter", "Escape", "ArrowRight", "End", "Home"):
        page.keyboard.press(key)
        if key != "Enter":
            places.append(page.locator(".t.here").first.get_attribute("data-i"))
    shown = page.locator(".t").evaluate_all("all => [...new Set(all.map(span => span.dataset.i))]")
    walked = [shown.index(place) for place in places]
    assert walked == [0, 1, 2, 2, 3, len(shown) - 1, 0]


def test_a_journey_by_keyboard_alone(visit: Visit):
    """Ask, walk the tokens, take another, look inside, ablate a head, close: no pointer anywhere."""
    page = visit.page
    store(page, settings=dict(maxTokens=30))
    name = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"

    def reach(wanted: str, by: str = "Tab", most: int = 60) -> None:
        for _ in range(most):
            if re.match(wanted, page.evaluate(name) or ""):
                return
            page.keyboard.press(by)
        raise AssertionError(f"{wanted} is not reached; the focus is on {page.evaluate(name)!r}")

    page.keyboard.type("Hello")  # the composer has the focus
    page.keyboard.press("Enter")
    page.locator(".message.assistant").wait_for()
    finished(page)
    reach("Written text", "Shift+Tab")
    for key in ("ArrowRight", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    reach("Continue from here")
    page.keyboard.press("Enter")
    page.get_by_text("2 of 2", exact=True).wait_for()
    finished(page)
    reach("Look inside", "Shift+Tab")
    page.keyboard.press("Enter")
    page.locator("#insight .look-facts").wait_for()
    reach("Layer \\d+, head")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    chosen = page.locator(".pane:focus").get_attribute("data-head")
    layer, head = chosen.split(".")
    page.locator("#insight").get_by_text(f"Layer {layer}, head {head}", exact=True).wait_for()
    reach("Ablate this head", "Shift+Tab")
    page.keyboard.press("Enter")
    page.locator(".look-change").wait_for()
    page.keyboard.press("Escape")
    assert page.locator("#insight").is_hidden() and page.evaluate(name) == "Look inside"


def test_the_drawer_of_a_phone_takes_the_focus_and_gives_it_back(browser: Any, served: Running):  # noqa: F811
    visit = Visit(browser, served.url, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    page = visit.open()
    name = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"
    page.get_by_role("button", name="Conversations", exact=True).click()
    page.wait_for_timeout(50)
    assert page.evaluate(name) == "New conversation"
    for _ in range(6):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('main, .tabs, .tools')") is None
    page.keyboard.press("Escape")
    assert page.evaluate(name) == "Conversations"
    visit.check()
    visit.context.close()


def test_at_four_times_the_size_the_conversation_can_still_be_read(browser: Any, served: Running):  # noqa: F811
    visit = Visit(browser, served.url, viewport={"width": 320, "height": 256})
    page = visit.open()
    store(page, settings=dict(maxTokens=40))
    say(page, "Hello")
    for height in (256, 200):
        page.set_viewport_size({"width": 320, "height": height})
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        page.locator(".message.user").scroll_into_view_if_needed()
        box = page.locator(".message.user").bounding_box()
        composer = page.locator(".composer").bounding_box()
        assert box and composer and box["y"] >= 0 and box["y"] + 20 < composer["y"]
        assert composer["height"] <= height / 3.5  # the rest is for what is read
    visit.check()
    visit.context.close()
