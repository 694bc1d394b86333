"""A trust report as a page: every question with its interval on its scale, and the rows behind every number.

One file without script or network; every text of a model or of the data is escaped by construction. A word
says what a colour says. Read next: trust_report.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..insight.html import NOTHING, Markup, Picture, tag, write
from .page import STYLE as TABLES
from .trust_line import Line

if TYPE_CHECKING:
    from .trust_report import TrustReport

SHOWN, LONGEST = 40, 400
"""Rows of a question on the page (all are in trust.jsonl), and characters of a text."""
WORDS = {"ACT": "harmed", "OK": "better", "WATCH": "watch"}
STYLE = Markup("""
.watch{background:light-dark(#f8e6bd,#4a3a12);color:light-dark(#6b4a00,#f3d491)}
.line dl{display:grid;grid-template-columns:9rem 1fr;gap:2px 14px;margin:10px 0;font-size:13.5px}
.line dt{color:var(--faint)}.line dd{margin:0;overflow-wrap:anywhere}
.line .answer{font-size:19px;font-weight:650;margin:6px 0 0}
.line svg{max-width:34rem;margin:6px 0 2px}.line table{width:100%;table-layout:fixed}
.line .rows td,.line .rows th{white-space:pre-wrap;overflow-wrap:anywhere;vertical-align:top;background:none;
border-bottom:1px solid var(--line);border-radius:0;padding:6px 10px 6px 0}
.line .rows{display:table}.line code{overflow-wrap:anywhere}
.line .parts{margin:6px 0;padding-left:1.2em;font-size:13px}
.summary{list-style:none;margin:0;padding:0}.summary li{margin:3px 0}
.summary b,.line b.word{display:inline-block;min-width:7.4rem;padding:1px 8px;border-radius:4px;
font-weight:600}
.summary a{color:inherit}.summary span{color:var(--soft);font-size:13px}
@media(max-width:40rem){.line dl{grid-template-columns:1fr}.line dt{margin-top:6px}}
""")


def write_page(path: Path, report: TrustReport) -> Path:
    """Write the page. Raises Refused where it cannot be written."""
    lines = report.sorted()
    made = "; ".join(f"{name} {value}" for name, value in report.header.items())
    summary = tag(
        "ul",
        [
            tag(
                "li", _word(one), " ", tag("a", one.question, href=f"#{one.id}"), " ", tag("span", one.answer)
            )
            for one in lines
        ],
        class_="summary",
    )
    missing = tag("p", tag("b", "Not measured: "), "; ".join(report.not_measured), ".")
    first = Picture(
        report.headline,
        tag("div", tag("style", Markup(TABLES + STYLE)), summary, missing),
        str(report),
        note=made,
    )
    return write(path, "Can it be trusted?", [first, *map(_picture, lines)], report.model)


def _picture(one: Line) -> Picture:
    facts = {
        "of": one.population,
        "counted": one.counts_in_words,
        "method": one.method,
        "beside": one.baseline,
        "gate": one.gate_in_words,
        "rule": str(one.rule),
        "found 4 times of 5": f"effects from {one.smallest_in_words} on",
        "cost": f"{one.seconds:.1f} s",
    }
    listed = [part for name, value in facts.items() for part in (tag("dt", name), tag("dd", value))]
    parts = tag("ul", [tag("li", part) for part in one.parts], class_="parts") if one.parts else None
    body = tag(
        "div",
        tag("p", _word(one), " ", one.answer, class_="answer"),
        _scale(one),
        tag("dl", *listed),
        parts,
        tag("p", "Next: ", tag("code", one.next_action)),
        _rows(one),
        class_="line",
        id=one.id,
    )
    return Picture(one.question, body, "", caveat=one.rule.critique)


def _word(one: Line) -> Markup:
    return tag("b", one.decision, class_=f"word {WORDS.get(one.decision, 'none')}")


def _scale(one: Line) -> Markup:
    """The interval on its scale, with what is tolerated."""
    found, most = one.estimate, one.rule.tolerance
    if not one.is_read:
        return NOTHING
    ends = [found.low, found.high, 0.0, *([most] if most is not None else [])]
    ends += [-most] if most is not None and one.rule.side == "both" else []
    low, high = min(ends), max(ends)
    room = (high - low) * 0.08 or 1.0
    low, high = low - room, high + room

    def at(value: float) -> float:
        return 20 + 400 * (value - low) / (high - low)

    drawn = [tag("line", x1=20, x2=420, y1=24, y2=24, class_="axis")]
    if most is not None and one.rule.side != "below":
        left = at(-most) if one.rule.side == "both" else at(max(low, 0.0))
        drawn.append(tag("rect", x=left, y=16, width=at(most) - left, height=16, class_="pane"))
    drawn += [
        tag("line", x1=at(found.low), x2=at(found.high), y1=24, y2=24, stroke="currentColor", stroke_width=3),
        tag("circle", cx=at(found.value), cy=24, r=5, class_="lit"),
    ]
    marks: list[float] = [0.0] if not most else [0.0, most]
    drawn += [tag("text", f"{mark:g}", x=at(mark), y=50, class_="mid") for mark in marks]
    label = f"{one.answer}, {one.rule}"
    return tag("svg", *drawn, viewBox="0 0 440 56", role="img", aria_label=label)


def _rows(one: Line) -> Markup:
    """The rows that speak loudest, folded."""
    if not one.rows:
        return NOTHING
    worst = sorted(one.rows, key=lambda row: -abs(row["value"]))[:SHOWN]
    hidden = ("id", "cluster", "value", "shift", "kind", "n_tokens", "mean_logprob")
    names = [name for name in worst[0] if name not in hidden]
    head = tag("thead", tag("tr", tag("th", "value"), *(tag("th", name.replace("_", " ")) for name in names)))
    body = [
        tag("tr", tag("td", _number(row["value"])), *(tag("td", _cut(row.get(name))) for name in names))
        for row in worst
    ]
    told = f"{min(SHOWN, len(one.rows)):,} of {len(one.rows):,} rows, the largest values first"
    return tag("details", tag("summary", told), tag("table", head, tag("tbody", *body), class_="rows"))


def _number(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:g}" if value == round(value, 1) else f"{value:.2f}"


def _cut(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"
