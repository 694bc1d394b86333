"""HTML and SVG as strings, safe by construction: text is escaped unless it is already `Markup`.

A `Picture` is one view drawn three ways: HTML without script or network for notebooks and files, SVG where
only an image is allowed, text for a terminal. A page of pictures is one self-contained file whose own policy
forbids scripts and the network. Token text is never anything but text. Read next: svg, text, figures.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from transom.output import write_whole

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""What a browser lets a saved page do: show itself."""
SEEN = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}
"""White space as the served page shows it."""


LAID_OUT = "\n\t\u200c\u200d"
"""Characters that lay a text out, and turn nothing."""


class Markup(str):
    """Text that is HTML or SVG already."""


NOTHING = Markup("")

Child = str | float | None | Iterable[Any]


def tag(name: str, /, *children: Child, **attributes: str | float | None) -> Markup:
    """An element: children that are no Markup are escaped, `class_` is class, `stroke_width` stroke-width."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = "".join(_children(children))
    return Markup(
        f"<{name}{written}>{inside}</{name}>" if inside or name not in EMPTY else f"<{name}{written}/>"
    )


EMPTY = ("rect", "path", "line", "circle", "image", "polyline", "br", "meta")


def _children(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if isinstance(child, Markup):
            yield child
        elif isinstance(child, str | float | int):
            yield escape(_plain(child))
        elif child is not None:
            yield from _children(child)


def _plain(value: str | float) -> str:
    """Numbers with two decimals at most: a picture has no use for more."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def visible(text: str) -> str:
    """A token's text with its spaces to be seen, and nothing that could steer a terminal or turn the text."""
    shown = "".join(SEEN.get(c) or (c if c.isprintable() and not _turns(c) else _escaped(c)) for c in text)
    return shown or "∅"


def lines(text: str) -> str:
    """A text of several lines, with nothing that could steer a terminal or turn the text; joined emoji and
    letters stay whole.
    """
    return "".join(c if c in LAID_OUT or c.isprintable() or unicodedata.category(c) == "Zs" else _escaped(c)
                   for c in text)  # fmt: skip


def quoted(text: str) -> str:
    """A token inside a sentence: in quotes, without the space before it."""
    return f"“{visible(text.strip(' ') or text)}”"


def _turns(character: str) -> bool:
    return unicodedata.category(character) in ("Cf", "Zl", "Zp")


def _escaped(character: str) -> str:
    return f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}"


def readable(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """The text of each token; one that is part of a character shows its bytes (`\\xe4\\xb8`).

    tokenizer: anything with `token_bytes(id)`, or with `decode([id])`, or None for the numbers themselves.
    """
    if tokenizer is None:
        return [str(token) for token in tokens]
    if not hasattr(tokenizer, "token_bytes"):
        return [tokenizer.decode([token]) for token in tokens]
    return [_text(bytes(tokenizer.token_bytes(token))) or _name(tokenizer, token) for token in tokens]


def _name(tokenizer: Any, token: int) -> str:
    """What a control token is called; it writes nothing."""
    return tokenizer.backend.id_to_token(token) or ""


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in data)


@dataclass(frozen=True)
class Picture:
    """One view, drawn: shows itself in a notebook, prints itself in a terminal, saves itself as a file."""

    title: str
    body: Markup
    """HTML or SVG, without its frame."""
    text: str
    """The essentials for a terminal, several lines."""
    caveat: str = ""
    """One line that says what the picture does not show."""
    note: str = ""
    """One line of facts: what was checked, how long it took."""
    folded: bool = False
    """Whether a page shows it closed at first."""
    doubted: bool = False
    """Whether a check says that its numbers mean nothing; a page then shows them when asked."""
    finding: str = ""
    """One sentence: what its numbers say, and no more."""
    brief: str = ""
    """The few lines that a first screen of a terminal has room for."""
    wide: bool = False
    """Whether it may be wider than a page, which then says that it scrolls."""
    chart: Any = None
    """The same as data (`charts.Table`, `charts.Bars`), for a surface that draws by itself."""

    def __str__(self) -> str:
        caveat = f"keep in mind: {self.caveat}" if self.caveat else ""
        lines = [self.title, self.finding, self.text, self.note, caveat]
        return "\n".join(line for line in lines if line)

    def section(self) -> Markup:
        """It as a part of a page."""
        inside = (
            tag("p", self.finding, class_="finding") if self.finding else None,
            tag("p", self.note, class_="note") if self.note else None,
            tag("p", "Scroll the table sideways for the rest of it →", class_="hint") if self.wide else None,
            tag("div", self.body, class_="body wide" if self.wide else "body"),
            tag("p", tag("b", "Keep in mind: "), f"{self.caveat}.", class_="caveat") if self.caveat else None,
        )
        if self.folded:
            return tag("details", tag("summary", tag("h2", self.title)), *inside, class_="view")
        return tag("section", tag("h2", self.title), *inside, class_="view")

    def _repr_html_(self) -> str:
        return fragment([self])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": fragment([self]), "text/plain": str(self)}

    def to_dict(self) -> dict[str, Any]:
        """Give what a surface that draws by itself needs, as plain values for JSON."""
        said = {name: getattr(self, name) for name in ("title", "finding", "note", "caveat", "doubted")}
        return {**said, "text": self.text, "chart": None if self.chart is None else self.chart.to_dict()}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as one HTML file."""
        return write(path, self.title, [self])


def fragment(pictures: Sequence[Picture]) -> Markup:
    """Pictures for a notebook's cell: a card with its own colours, no script, nothing to load."""
    inside = [picture.section() for picture in pictures]
    return tag("div", tag("style", Markup(STYLE)), *inside, class_="transom-look")


def document(title: str, pictures: Sequence[Picture], lead: str = "", opening: Markup = NOTHING) -> str:
    """A whole page in one string; opens from disk with the network off. opening: what stands before all."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(PAGE_STYLE + STYLE)),
    )
    top = tag("header", MARK, tag("h1", title), tag("p", lead, class_="lead") if lead else None)
    sections = [picture.section() for picture in pictures]
    body = tag("body", tag("main", top, opening, sections, class_="transom-look page"))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def write(
    path: str | os.PathLike[str], title: str, pictures: Sequence[Picture], lead: str = "",
    opening: Markup = NOTHING,
) -> Path:  # fmt: skip
    """Write pictures as one self-contained HTML file."""
    return write_whole(path, document(title, pictures, lead, opening))


MARK = Markup(
    '<svg class="mark" viewBox="0 0 24 24" aria-hidden="true"><path class="light" d="M10 2.8h4v5.4h-4z"/>'
    '<path class="frame" d="M4 2h16v20H4zM4 9h16M9.33 2v7M14.67 2v7"/></svg>'
)

PAGE_STYLE = """
html{background:light-dark(#f4f5f5,#111315)}body{margin:0}
.transom-look.page{max-width:60rem;margin:0 auto;padding:40px 24px 96px;border:0;background:none}
.page header{display:grid;grid-template-columns:auto 1fr;gap:4px 14px;align-items:center;margin-bottom:8px}
.page .mark{width:26px;height:30px}.page h1{font-size:24px;line-height:1.25;font-weight:650;margin:0;
letter-spacing:-.02em;overflow-wrap:anywhere}.page .lead{grid-column:2;margin:0;color:var(--soft)}
.page .opening{margin:20px 0 0;padding:4px 20px 16px;background:var(--sheet);border:1px solid var(--line);
border-radius:8px}.page .opening h2{margin-top:12px}.page .opening ul{margin:4px 0 0;padding-left:1.2em}
.page .opening .how,.page .opening dl,.page .opening summary{font-size:13px;color:var(--soft)}
.page .opening details{margin-top:12px}.page .opening dt{font-weight:600;color:var(--ink)}
.page .opening dd{margin:0 0 6px}
.mark .frame{fill:none;stroke:var(--ink);stroke-width:1.5;stroke-linejoin:round}
.mark .light{fill:var(--accent)}
@media(max-width:40rem){.transom-look.page{padding:24px 16px 64px}.page h1{font-size:20px}}
"""

SVG_RULES = """SVG{display:block;max-width:100%;height:auto;overflow:visible}
SVG text{font:11px/1 ui-monospace,"SF Mono",Menlo,Consolas,"Liberation Mono",monospace;
fill:var(--soft)}
SVG text.word{font-size:12px;fill:var(--ink)}SVG text.faint{fill:var(--faint)}
SVG text.end{text-anchor:end}SVG text.mid{text-anchor:middle}
SVG .pane{fill:var(--pane)}SVG .lit{fill:var(--accent)}
SVG .arc{fill:none;stroke:var(--accent);stroke-linecap:round}
SVG .arc:hover{stroke:var(--deep)}SVG .axis{stroke:var(--line);fill:none}
SVG .curve{fill:none;stroke-width:1.6;stroke-linejoin:round}
SVG image{image-rendering:pixelated}"""
"""How a drawing is styled, `SVG` standing for what selects it."""

STYLE = """
.transom-look{color-scheme:light dark;--paper:light-dark(#f4f5f5,#111315);--sheet:light-dark(#fff,#191c1f);
--ink:light-dark(#171a1d,#e8eaeb);--soft:light-dark(#4f575d,#a9b1b6);--faint:light-dark(#666e74,#8b9499);
--line:light-dark(#dde1e3,#2a2f33);--pane:light-dark(#e6e9ea,#23282c);--accent:light-dark(#e8a020,#f0b03c);
--glow:light-dark(#e8a020,#8a6420);
--deep:light-dark(#8a5300,#f3bd5c);--cool:light-dark(#3b6ea5,#7fb0e0);
font:400 15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;color:var(--ink);
background:var(--paper);padding:4px 20px 16px;border-radius:10px;font-variant-numeric:tabular-nums}
.transom-look *{box-sizing:border-box}.transom-look .view{margin:28px 0 0;padding:0}
.transom-look .view+.view{border-top:1px solid var(--line);padding-top:24px}
.transom-look h2{font-size:17px;font-weight:650;letter-spacing:-.01em;line-height:1.3;margin:0 0 4px;
padding:0;color:inherit}
.transom-look summary{cursor:pointer}.transom-look summary h2{display:inline}
.transom-look .note{margin:0 0 12px;color:var(--soft);font-size:13px;max-width:48rem}
.transom-look .finding{margin:0 0 4px;max-width:48rem}.transom-look .hint{display:none;margin:0;
font-size:13px;color:var(--deep)}.transom-look .body details{margin-top:12px}
.transom-look .body ul{margin:0 0 12px;padding-left:1.2em;font-size:13px}
.transom-look .wide{container-type:inline-size;mask-image:linear-gradient(90deg,#000 calc(100% - 28px),#0000)}
.transom-look .wide table{margin-right:28px}.transom-look .wide th:first-child{position:sticky;left:0;
background:var(--paper)}
@media(max-width:60rem){.transom-look .hint{display:block}}
.transom-look .caveat{margin:12px 0 0;color:var(--faint);font-size:13px;max-width:48rem}
.transom-look .caveat b{font-weight:600;color:var(--soft)}
.transom-look .body{overflow-x:auto;padding-top:8px}
.transom-look code,.transom-look .tokens{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"Liberation Mono",
monospace;font-size:13px}
.transom-look .tokens{display:flex;flex-wrap:wrap;gap:10px 3px;line-height:1.3}
.transom-look .tok{display:grid;justify-items:start;min-width:2.2em;padding:2px 3px 0;border-radius:3px;
white-space:pre}.transom-look .tok:hover{background:var(--pane)}
.transom-look .tok i{width:100%;height:4px;margin:3px 0 2px;background:var(--pane);border-radius:2px;
overflow:hidden}.transom-look .tok i::before{content:"";display:block;height:100%;width:calc(100%*var(--p));
background:var(--accent)}.transom-look .tok small{font-size:10.5px;color:var(--faint)}
.transom-look table{border-collapse:separate;border-spacing:2px;font-size:12.5px;line-height:1.25;
table-layout:auto!important}.transom-look tr{background:none!important}
.transom-look th{font-weight:400;color:var(--faint);text-align:left;padding:2px 8px 2px 0;white-space:nowrap}
.transom-look thead th{color:var(--soft);padding:2px 6px}
.transom-look td{padding:4px 7px;border-radius:3px;white-space:nowrap;text-align:left;
background:color-mix(in srgb,var(--glow) calc(72%*var(--p,0)),var(--pane))}
.transom-look td small{display:block;font-size:10.5px;color:light-dark(#4f575d,#d3d8db)}
.transom-look td.number{background:none;text-align:right;color:var(--soft)}
.transom-look .rows{display:grid;gap:3px;max-width:40rem}
.transom-look .row{display:grid;grid-template-columns:clamp(5rem,24vw,11rem) 1fr 7rem;gap:12px;
align-items:center;
font-size:13px}.transom-look .row code{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.transom-look .row i{height:14px;border-radius:3px;background:var(--pane);overflow:hidden}
.transom-look .row i::before{content:"";display:block;height:100%;width:calc(100%*var(--p));
background:var(--accent)}.transom-look .row.apart i::before{background:var(--faint)}
.transom-look .row span{text-align:right;white-space:nowrap;color:var(--soft)}
""" + SVG_RULES.replace("SVG", ".transom-look svg")
