"""A comparison as a page: the verdict, the table with its intervals, examples side by side, the worst first.

One file without script or network; every text of a model or of the data is escaped by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..insight.html import Markup, Picture, lines, tag, write
from .paired import BETTER, HARMED, Comparison, Example, Measure

EXAMPLES, LONGEST = 24, 1500
"""Examples on a page: the worst, and a third of so many of the best; and characters of a text."""
STYLE = Markup("""
.page{max-width:72rem}
.verdict{font-size:17px;margin:0 0 6px}.verdict b{padding:1px 8px;border-radius:4px}
.better{background:light-dark(#d9efdf,#1d3a27);color:light-dark(#14532d,#a7e0b8)}
.harmed{background:light-dark(#fbdcd3,#4a2018);color:light-dark(#8a2208,#f5b5a2)}
.none{background:var(--pane);color:var(--soft)}
.transom-look table.measures{border-spacing:0;width:100%;font-size:13.5px}
.transom-look .measures th,.transom-look .measures td{background:none;padding:7px 12px 7px 0;border-radius:0;
border-bottom:1px solid var(--line);vertical-align:top;text-align:right;color:var(--ink)}
.transom-look .measures th:first-child,.transom-look .measures td:last-child{text-align:left}
.transom-look .measures td:last-child{padding-left:12px}
.transom-look .measures thead th{color:var(--soft);border-bottom:1px solid var(--ink)}
.transom-look .measures small{color:var(--soft)}
.measures b{font-weight:600;padding:1px 7px;border-radius:4px;white-space:nowrap}
.example{margin:0 0 18px;border:1px solid var(--line);border-radius:8px;background:var(--sheet);
overflow:hidden}
.example p{margin:0;padding:8px 14px;white-space:pre-wrap;overflow-wrap:anywhere;font-size:14px}
.example h3{margin:0;padding:8px 14px 0;font-size:12px;font-weight:600;color:var(--faint)}
.example .top{display:flex;justify-content:space-between;gap:16px;padding:8px 14px;font-size:12.5px;
color:var(--soft);background:var(--pane)}
.sides{display:grid;grid-template-columns:1fr 1fr;border-top:1px solid var(--line)}
.sides>div+div{border-left:1px solid var(--line)}
@media(max-width:40rem){.sides{grid-template-columns:1fr}.sides>div+div{border-left:0;
border-top:1px solid var(--line)}}
""")
CAVEAT = (
    "each interval would hold the true difference in 95 of 100 such test sets, so of twenty measures that do "
    "not differ one is called different by chance"
)


def write_page(path: Path, found: Comparison) -> Path:
    """Write the page. Raises Refused where it cannot be written."""
    lead = f"{found.model} against {found.against}, on {found.test}"
    return write(path, "Did it help?", pictures(found), lead)


def pictures(found: Comparison) -> list[Picture]:
    """The parts of the page."""
    verdict = Picture("What changed", tag("div", tag("style", STYLE), _verdict(found)), str(found),
                      note=". ".join(found.notes))  # fmt: skip
    shown = [verdict, Picture("Every measure", _table(found), "", CAVEAT, wide=True)]
    if worst := found.examples[:EXAMPLES]:
        shown.append(_examples("Examples side by side, the worst first", found, worst))
    if best := [one for one in reversed(found.examples[EXAMPLES:]) if one.gain > 0][: EXAMPLES // 3]:
        shown.append(_examples("The best", found, best))
    return shown


def _verdict(found: Comparison) -> Markup:
    lines = [tag("p", _word(one), f" {sentence.partition(': ')[2]}", class_="verdict")
             for one, sentence in found.told]  # fmt: skip
    return tag("div", *lines)


def _word(one: Measure) -> Markup:
    kind = one.verdict if one.judged and one.verdict in (BETTER, HARMED) else "none"
    return tag("b", one.word, class_=kind)


def _table(found: Comparison) -> Markup:
    head = ["", *found.sides, "difference", "n", "won, lost", ""]
    rows = [
        tag("tr", tag("th", one.name), tag("td", one.shown(one.before)), tag("td", one.shown(one.after)),
            tag("td", one.gap(), tag("small", _between(one))), tag("td", f"{one.n:,} {one.of}"),
            tag("td", "" if one.wins is None else f"{one.wins:,}, {one.losses:,}"), tag("td", _word(one)))
        for one in found.measures
    ]  # fmt: skip
    return tag("table", tag("thead", tag("tr", [tag("th", name) for name in head])), tag("tbody", *rows),
               class_="measures")  # fmt: skip


def _between(one: Measure) -> str:
    gap = one.difference
    if not gap.known:
        return "too few for an interval"
    if gap.low == gap.high:
        return "exact"
    return f"{gap.low:+,.{one.digits}f} to {gap.high:+,.{one.digits}f}"


def _examples(title: str, found: Comparison, examples: Sequence[Example]) -> Picture:
    return Picture(title, tag("div", *(_example(found, one) for one in examples)), "")


def _example(found: Comparison, one: Example) -> Markup:
    asked = [part for name, text in (("asked", one.asked), ("wanted", one.wanted)) if text
             for part in (tag("h3", name), tag("p", _cut(text), dir="auto"))]  # fmt: skip
    sides = [tag("div", tag("h3", name), tag("p", _cut(text) or "(nothing)", dir="auto"))
             for name, text in zip(found.sides, (one.before, one.after), strict=True)]  # fmt: skip
    moved = "worse" if one.gain < 0 else "better"
    top = tag("div", tag("span", one.where), tag("span", moved), class_="top")
    return tag("div", top, *asked, tag("div", *sides, class_="sides"), class_="example")


def _cut(text: str) -> str:
    return lines(text if len(text) <= LONGEST else text[:LONGEST] + " …")
