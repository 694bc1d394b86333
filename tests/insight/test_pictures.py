"""Pictures as strings: what they show, what they never contain, and that hostile tokens stay text."""

from __future__ import annotations

import base64
import json
import math
import re
import struct
import zlib
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transom.data.tokenizer import train_tokenizer
from transom.errors import Refused
from transom.insight import attention_figures, figures
from transom.insight.ablation import ablate, ablate_head
from transom.insight.attribution import attribute
from transom.insight.charts import Table
from transom.insight.gradients import gradient_flow, token_gradients
from transom.insight.html import Markup, Picture, document, readable, tag, visible
from transom.insight.lens import logit_lens
from transom.insight.look import look
from transom.insight.overview import SIDES, Text, overview
from transom.insight.reading import WORDS
from transom.insight.routing import routing
from transom.insight.svg import arcs, curves, heat, panes, png, shrunk
from transom.insight.text import bar, bars, spark
from transom.insight.token_probabilities import token_probabilities
from transom.model.build import build
from transom.model.config import Experts, ModelConfig

HOSTILE = [
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>",
    "</style><script>alert(1)</script>",
    "</title><svg onload=alert(1)>",
    "]]>", "&lt;b&gt;", "\x00\x1b[2J", "\u202egnirts", "a\u2028b", "'><x y='",
]  # fmt: skip


class Parts(HTMLParser):
    """The elements and attributes of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    handle_startendtag = handle_starttag

    def handle_data(self, data: str) -> None:
        self.text += data


def is_harmless(text: str) -> Parts:
    """No script, no handler, nothing to load, nothing on the network."""
    parts = Parts(text)
    assert not set(parts.tags) & {"script", "iframe", "object", "embed", "link", "img", "base", "form", "a"}
    for name, value in parts.attributes:
        assert not name.startswith("on"), name
        if name in ("href", "src"):
            assert value.startswith("data:image/png;base64,")
        if name == "style":
            assert "url" not in value
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "@import" not in text
    return parts


@given(st.text())
def test_text_stays_text_in_children_and_attributes(text: str):
    drawn = tag("p", text, title=text)
    parts = Parts(drawn)
    assert parts.tags == ["p"] and [name for name, _ in parts.attributes] == ["title"]
    plain = text.replace("\r\n", "\n").replace("\r", "\n")  # as parsers read line ends
    assert parts.text.replace("\r\n", "\n").replace("\r", "\n") == plain


@given(st.text())
def test_what_is_shown_of_a_token_cannot_steer_anything(text: str):
    shown = visible(text)
    assert shown and all(c.isprintable() for c in shown)
    assert not any(c in shown for c in "\u202e\u2066\u200f\x1b\n")
    assert (
        visible(shown.replace("␣", " ").replace("↵", "\n").replace("⇥", "\t")) == shown
        or "\\" in shown
        or "∅" in shown
    )


@given(st.integers(1, 9), st.integers(1, 9), st.randoms())
def test_a_png_holds_its_values(rows: int, columns: int, random: Any):
    values = np.array([[random.random() for _ in range(columns)] for _ in range(rows)])
    data = base64.b64decode(png(values).partition(",")[2])
    at, pixels = 8, b""
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        if kind == b"IHDR":
            assert struct.unpack(">II", body[:8]) == (columns, rows)
        pixels += zlib.decompress(body) if kind == b"IDAT" else b""
        at += 12 + length
    found = np.frombuffer(pixels, np.uint8).reshape(rows, columns + 1)[:, 1:]
    assert np.abs((found / 255.0) ** 2 - values).max() < 0.005


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12))
def test_shrinking_keeps_the_mean_of_equal_blocks_and_never_grows(rows: int, columns: int, most: int):
    values = np.ones((rows, columns))
    small = shrunk(values, most)
    assert small.shape == (min(rows, most), min(columns, most)) and np.allclose(small, 1)
    one = np.zeros((rows, columns))
    one[rows // 2, columns // 2] = 1
    assert shrunk(one, most).max() > 0  # nothing is lost


def test_every_drawing_is_well_formed_and_hostile_labels_stay_text():
    tokens = [visible(text) for text in HOSTILE]
    n = len(tokens)
    weights = np.tril(np.random.default_rng(0).random((n, n)))
    weights /= weights.sum(1, keepdims=True)
    drawings = [
        heat(weights, tokens, tokens, label=HOSTILE[0], word="of it"),
        heat(np.ones((50, 60)), ["r"] * 50, ["c"] * 60, label="large"),
        arcs(tokens, n - 1, weights[-1].tolist(), label=HOSTILE[1]),
        panes([[weights, weights]], [[HOSTILE[0], HOSTILE[2]]], [[False, True]], label="heads"),
        curves([(HOSTILE[0], [0, 1, 2], [1.0, float("nan"), 3.0])], label="l", across=HOSTILE[1], up="y"),
        curves([("a", [0, 1], [1e-9, 0.0])], label="l", across="x", up="y", log=True),
    ]
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        assert root.tag.endswith("svg") and "viewBox" in root.attrib
        is_harmless(drawing)
    assert curves([], label="l", across="x", up="y") == ""


def test_arcs_go_to_the_heaviest_keys_and_the_first_token_is_set_apart():
    drawn = ElementTree.fromstring(arcs(["The", "cat", "it"], 2, [0.5, 0.4, 0.1], label="l"))
    paths = [node for node in drawn.iter() if node.tag.endswith("path")]
    titles = [next(iter(node)).text or "" for node in paths]
    assert titles == ["it → it: 0.100", "it → cat: 0.400", "it → The: 0.500"]  # the heaviest on top
    assert [("faint" in node.attrib.get("style", "")) for node in paths] == [False, False, True]


@given(st.floats(0, 1), st.integers(1, 30))
def test_a_bar_is_as_long_as_its_share(share: float, width: int):
    drawn = bar(share, width)
    assert len(drawn) == width
    full = drawn.count("█")
    assert abs(full - share * width) <= 1
    assert bar(float("nan"), width) == " " * width


def test_bars_and_sparks_read_in_a_terminal():
    assert bars(["a\n", "b"], [1.0, 0.5], ["1", "0.5"], 4) == "  a↵ ████ 1\n  b  ██   0.5"
    assert spark([0, 1, float("nan"), 2]) == "▁▅·█"


def test_a_saved_page_forbids_itself_everything():
    pictures = [Picture(text, tag("p", text), text, text, text) for text in HOSTILE]
    page = document(HOSTILE[2], pictures, HOSTILE[0])
    parts = is_harmless(page)
    policy = next(v for n, v in parts.attributes if n == "content" and "default-src" in v)
    assert "default-src 'none'" in policy and "script-src" not in policy
    assert "<script>alert(1)</script>" in parts.text
    assert page.count("<style>") == 1 and page.index("</style>") < page.index("<body>")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer("bytes", iter(["any text"]), 258)


def small(tokenizer: Any, **more: Any) -> Any:
    given = {"n_layers": 2, "n_heads": 4, "n_kv_heads": 2, **more}
    layers, heads, groups = (given.pop(name) for name in ("n_layers", "n_heads", "n_kv_heads"))
    config = ModelConfig(tokenizer.vocab_size, 32, layers, heads, groups, head_dim=8, ffn_dim=48, max_len=128,
                         tie_embeddings=False, **given)  # fmt: skip
    return build(config, 0).eval()


KINDS = {
    "decoder": ({}, ["How likely", "All 8 heads", "head 3", "each layer", "What “", "gradient", "hangs on"]),
    "experts": ({"experts": Experts(4, 2, 24)}, ["How likely", "All 8 heads", "Which experts"]),
    "lstm": ({"cell": "lstm"}, ["How likely", "each layer", "What “"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_seen_from_every_side_that_its_model_has(kind: str, tokenizer: Any, tmp_path: Path):
    more, titles = KINDS[kind]
    model = small(tokenizer, **more)
    tokens = tokenizer.encode("So <script>alert(1)</script> & naïve")
    found = overview(model, tokens, tokenizer, title="Inside <b>x</b>").save(tmp_path / "look.html")
    page = (tmp_path / "look.html").read_text(encoding="utf-8")
    parts = is_harmless(page)
    for title in titles:
        assert any(title in picture.title for picture in found.pictures), title
    assert not any(picture.note == "Not shown." for picture in found.pictures)
    assert all(picture.caveat for picture in found.pictures)
    assert "<script>" in parts.text.replace("\n", "") or "<" in parts.text
    assert len(page.encode()) < 400_000
    assert "keep in mind" in found.whole() and "\x1b" not in found.whole() + str(found)
    assert len(found.to_dict()["views"]) == len(found.pictures)
    for sentence in [picture.finding for picture in found.pictures if picture.finding][:3]:
        assert sentence in parts.text and parts.text.index(sentence) < parts.text.index("How to read it")


def test_a_screen_of_a_large_model_fits_a_screen_and_the_rest_is_asked_for(tokenizer: Any):
    model = small(tokenizer, n_layers=30, n_heads=9, n_kv_heads=3)
    found = overview(model, tokenizer.encode("A cat ate"), tokenizer)
    screen, whole = str(found).splitlines(), found.whole()
    assert len(screen) <= 45 and max(map(len, screen)) <= 110
    assert "█" not in "".join(line for line in screen if "░" in line)  # no boxes without words
    assert "░░ 0.25" in whole and len(whole.splitlines()) > 100


def test_a_text_patched_into_another_says_what_carries_their_difference(tokenizer: Any, tmp_path: Path):
    model = small(tokenizer)
    tokens, other = tokenizer.encode("a cat sat"), tokenizer.encode("a rat sat")
    found = overview(model, tokens, tokenizer, other=other).save(tmp_path / "look.html")
    picture, view = found.pictures[0], found.to_dict()["views"][0]
    assert view["view"] == "Patching" and view["clean"] == tokens and view["corrupt"] == other
    at = next(i for i, (a, b) in enumerate(zip(tokens, other, strict=True)) if a != b)
    restored = np.array(view["restored"]).reshape(2, len(tokens))
    assert restored[0, at] == pytest.approx(1, abs=1e-4) and abs(restored[0, at - 1]) < 1e-6
    assert "“c”" in picture.finding and "r→c" in picture.text
    assert picture.finding in " ".join(str(found).split())
    is_harmless((tmp_path / "look.html").read_text(encoding="utf-8"))
    assert "Patched: " in found.whole() and picture.caveat in found.whole()
    with pytest.raises(Refused, match="equally long"):
        overview(model, tokens, tokenizer, other=other[:-1])
    with pytest.raises(Refused, match="the limit is 200,000"):
        overview(model, tokens * 40, tokenizer, other=other * 40)


def test_what_a_page_draws_by_itself_is_what_the_file_shows(tokenizer: Any):
    model, tokens = small(tokenizer), tokenizer.encode("So <b> & naïve")
    text = Text(model, tokens[:-1], tokenizer, target=tokens[-1])
    shown = [pair for side in SIDES if side.served and side.applies(text) for pair in side.look(text)]
    assert [type(view).__name__ for _, view in shown] == ["Attribution", "GradientFlow", "LogitLens"]
    without = ablate_head(model, tokens, 1, 2, first=4)
    shown.append((without.picture(tokenizer), without))
    for picture, view in shown:
        sent = json.loads(json.dumps(picture.to_dict(), allow_nan=False))
        assert sent["caveat"] == view.caveat and sent["chart"]["rows"]
        body = unescape(picture.body)
        for row in sent["chart"]["rows"]:
            if sent["chart"]["kind"] == "bars":
                assert row["number"] in picture.text and 0 <= row["share"] <= 1
            else:
                assert all(cell["text"] in body and 0 <= cell["share"] <= 1 for cell in row[1])


def test_the_token_that_the_text_helped_most_is_explained_exactly(tokenizer: Any):
    model = small(tokenizer)
    tokens = tokenizer.encode("So <b> & naïve")
    found = overview(model, tokens, tokenizer)
    view = next(view for view in found.to_dict()["views"] if view["view"] == "Attribution")

    def p(read: list[int], said: int) -> float:
        with torch.no_grad():
            return float(model.logits(model(torch.tensor([read])))[0, -1].double().log_softmax(-1)[said])

    raised = [
        math.exp(p(tokens[:at], tokens[at])) - math.exp(p([tokens[0], tokens[at - 1]], tokens[at]))
        for at in range(2, len(tokens))
    ]
    at = 2 + int(np.argmax(raised))
    assert view["tokens"] == tokens[:at] and view["method"] == "leave_one_out"
    without = [p(tokens[:gone] + tokens[gone + 1 : at], tokens[at]) for gone in range(at)]
    np.testing.assert_allclose(view["scores"], p(tokens[:at], tokens[at]) - np.array(without), atol=1e-5)


def test_a_translation_is_put_down_to_its_source_and_says_which_attention_is_meant(tokenizer: Any):
    model = small(tokenizer, kind="encoder-decoder", n_encoder_layers=2, n_kv_heads=4)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2.0)  # far from uniform, so that the source matters
    source, written = tokenizer.encode("le chat"), tokenizer.encode("the cat")
    found = overview(model, written, tokenizer, source=source)
    titles = [picture.title for picture in found.pictures]
    for where in ("from what is written to the source", "within what is written", "within the source"):
        assert f"All 8 heads, {where}" in titles
    view = next(view for view in found.to_dict()["views"] if view["view"] == "Attribution")
    assert view["tokens"] == source and "The source helped" in str(found)


def test_scores_that_are_no_better_than_chance_are_said_first_and_drawn_grey():
    view = {"method": "gradient_x_input", "units": [[0], [1]], "scores": [2.0, -1.0], "caveat": "c",
            "control": {"beats_random": False, "text": "does NOT agree better than chance"}}  # fmt: skip
    doubted = figures.attribution(view, ["a", "b"])
    page = doubted.section()
    assert page.count("row apart") == 2 and 'class="row"' not in page
    assert 0 < page.index("is not known") < page.index("NOT agree") < page.index("row apart")
    trusted = figures.attribution({**view, "control": {"beats_random": True, "text": "agrees"}}, ["a", "b"])
    assert trusted.section().count("row apart") == 1 and "“a”" in trusted.finding


def test_arcs_of_a_long_text_name_what_is_weighed_and_leave_out_the_rest():
    n = 200
    weights = np.full((n, n), 1e-4)
    weights[150, 20], weights[150, 0] = 0.6, 0.3
    view = {"weights": weights.tolist(), "layer": 0, "head": 0, "row": None, "kind": "self", "error": 0.0,
            "caveat": "c"}  # fmt: skip
    drawn = attention_figures.attention(view, [f"t{i}" for i in range(n)])
    assert drawn.title == "Layer 0, head 0: “t150” gives “t20” 0.60 of its weight"
    line = Parts(drawn.body.partition("<details")[0]).text
    assert "t150 → t20: 0.600" in line and "t150 → t0: 0.300" in line and "t99" not in line


def test_every_word_of_a_page_is_in_the_glossary():
    glossary = (Path(__file__).parents[2] / "docs" / "glossary.md").read_text(encoding="utf-8")
    known = {word for line in re.findall("^### (.*)$", glossary, re.M) for word in line.split(", ")}
    assert not set(WORDS) - known


def test_what_cannot_be_had_stands_there_with_the_reason(tokenizer: Any):
    model = small(tokenizer)
    found = overview(model, [5], tokenizer)  # one token: there is nothing before it to take away
    titles = [picture.title for picture in found.pictures]
    assert "All 8 heads" in titles and not any("likely" in title or "hangs" in title for title in titles)
    wrong = overview(model, [5] * 200, tokenizer)  # more than it reads
    reasons = [picture.text for picture in wrong.pictures if picture.note == "Not shown."]
    assert reasons and all("not shown: " in reason and "128" in reason for reason in reasons)
    with pytest.raises(Refused, match="no tokens"):
        overview(model, [], tokenizer)


def test_bytes_of_a_character_and_control_tokens_are_named(tokenizer: Any):
    ids = tokenizer.encode("é")
    assert readable(tokenizer, ids) == ["\\xc3", "\\xa9"]
    assert readable(tokenizer, [tokenizer.eos_id]) == [tokenizer.backend.id_to_token(tokenizer.eos_id)]
    assert readable(None, [3, 4]) == ["3", "4"]


def test_a_picture_shows_itself_in_a_notebook_without_script():
    view = {"tokens": [0, 1], "logprob": [-0.5], "rank": [0], "entropy": [1.0], "caveat": "c"}
    picture = figures.token_probabilities(view, ["<b>", "<script>x</script>"])
    bundle = picture._repr_mimebundle_()
    parts = is_harmless(bundle["text/html"])
    assert "<script>x</script>" in parts.text and "60.7%" in parts.text
    assert "60.7%" in bundle["text/plain"]
    assert len(bundle["text/html"]) < 200_000
    # a notebook lays tables out by columns of one width, and paints every second row: theirs, not ours
    assert "table-layout:auto!important}" in bundle["text/html"]


def test_a_head_is_drawn_with_its_check_and_all_heads_at_once_are_refused():
    view = {"weights": torch.eye(3).tolist(), "layer": 1, "head": 2, "row": None, "kind": "self",
            "error": 3e-7, "caveat": "c"}  # fmt: skip
    picture = attention_figures.attention(view, ["a", "b", "c"])
    assert "3e-7" in picture.note and isinstance(picture.body, Markup)
    with pytest.raises(Refused, match="one head"):
        attention_figures.attention({**view, "head": None}, ["a", "b", "c"])


def test_every_view_shows_itself_in_a_notebook_without_script(tokenizer: Any):
    model = small(tokenizer)
    tokens = tokenizer.encode("<script>x</script>")
    with look(model) as seen:
        model(torch.tensor([tokens]))
    routed = small(tokenizer, **KINDS["experts"][0])
    views = [
        seen.attention(1), seen.attention(1, 2), seen.attention(1, 2, 5), seen.attention(1, row=5),
        seen.heads(), token_probabilities(model, tokens), logit_lens(model, tokens), attribute(model, tokens),
        token_gradients(model, tokens), gradient_flow(model, tokens), ablate(model, tokens),
        routing(routed, tokens),
    ]  # fmt: skip
    for view in views:
        bundle = view._repr_mimebundle_()
        is_harmless(bundle["text/html"])
        assert len(bundle["text/html"]) < 200_000 and "keep in mind" in bundle["text/plain"]
    named = token_probabilities(model, tokens).picture(tokenizer)
    assert "p" in Parts(named.body).text and named.save


def test_what_comes_before_any_layer_flattens_no_layer_of_the_lens():
    one = [[[7]]] * 3
    view = {"positions": [0], "top": one, "logprob": [[[-1.0]]] * 3, "caveat": "",
            "divergence": [[132.0], [4.0], [1.0]]}  # fmt: skip
    chart = figures.lens(view, ["a"], str).chart
    assert isinstance(chart, Table)
    assert [cells[-1].share for _, cells in chart.rows] == [0.25, 1.0, 1.0]


def test_a_drawing_alone_has_its_own_paper_and_needs_no_page():
    series = [("one", [0, 1], [1.0, 2.0]), ("two", [0, 1], [2.0, 1.0])]
    drawn = curves(series, label="Two", across="x", up="y")
    picture = drawn._repr_svg_()
    root = ElementTree.fromstring(picture)
    is_harmless(picture)
    style = next(node.text or "" for node in root.iter() if node.tag.endswith("style"))
    named = set(re.findall(r"var\((--\w+)\)", picture))
    assert named and all(f"{name}:#" in style for name in named)  # no colour is left to a page
    left, top, wide, high = map(float, root.attrib["viewBox"].split())
    paper = next(node for node in root.iter() if node.tag.endswith("rect"))
    assert [float(paper.attrib[name]) for name in ("x", "y", "width", "height")] == [left, top, wide, high]
    words = [node.text for node in root.iter() if node.tag.endswith("text")]
    assert {"one", "two"} <= set(words)
    assert "<style>" not in drawn and drawn.label == "Two"  # in a page it is styled by the page


def test_a_map_has_its_values_written_where_it_is_asked_to():
    drawn = heat(np.array([[0.25, 0.75]]), ["r"], ["a", "b"], label="l", written=True)
    assert ">0.25<" in drawn and ">0.75<" in drawn
    assert ">0.25<" not in heat(np.array([[0.25, 0.75]]), ["r"], ["a", "b"], label="l")
