"""What attention looks like: one head as arcs and a map, all heads as panes, their figures in words.

Like `figures`, drawn of numbers and the texts of tokens alone. Read next: figures, svg.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import Refused
from ..units import counted
from .html import Markup, Picture, quoted, tag, visible
from .svg import arcs, heat, panes
from .text import SHADES, bars, grid

SINK = 0.5
"""A head with more of its weight than this on the first token is set apart."""
LINE = 24
"""Tokens that stand on one line under arcs; of a longer text only those that matter."""
Numbers = dict[str, Any]


def attention(view: Numbers, texts: Sequence[str], keys: Sequence[str] | None = None) -> Picture:
    """A head's map with the arcs of its most striking query, or one row as arcs; keys: the words of another
    text."""
    weights = np.asarray(view["weights"], dtype=np.float64)
    if weights.ndim == 3 or view["head"] is None:
        raise Refused("a picture shows one head; give head=, or look at heads() for all of them")
    query, key = (view["row"], int(weights.argmax())) if weights.ndim == 1 else striking(weights, bool(keys))
    row = weights if weights.ndim == 1 else weights[query]
    name = f"Layer {view['layer']}, head {view['head']}"
    said = f"{name}: {quoted(texts[query])} gives {quoted((keys or texts)[key])} {row[key]:.2f} of its weight"
    texts, keys = [visible(text) for text in texts], keys and [visible(key) for key in keys]
    note = checked(view["error"])
    note += "" if keys is None else " A row is a token that looks, a column what it looks at."
    whole = np.atleast_2d(weights)
    rows = [texts[query]] if weights.ndim == 1 else texts
    drawn = heat(whole, rows, keys or texts, label=name, top=1.0, word="of the weight")
    if keys is None:  # one text: a line to draw arcs over
        line = arcs(*_around(texts, query, row), label=f"{name}, seen from token {query}")
        more = tag("details", tag("summary", "Every token's weights"),
                   tag("p", "Each row is a token that looks, each column what it looks at.", class_="note"),
                   drawn)  # fmt: skip
        drawn = line if weights.ndim == 1 else Markup(line + more)
    return Picture(said, drawn, _keys(row, keys or texts), view["caveat"], note)


def striking(weights: np.ndarray, apart: bool = False) -> tuple[int, int]:
    """(query, key) of the largest weight of a map (L, M); within one text of those that are neither on the
    first token nor on the query or beside it, where there are such."""
    seen = weights.copy()
    if not apart and len(weights) > 3:
        near = np.abs(np.subtract.outer(np.arange(weights.shape[0]), np.arange(weights.shape[1]))) < 2
        seen[near] = 0
        seen[:, 0] = 0
    query, key = divmod(int(seen.argmax()), weights.shape[1])
    return query, key


def _around(texts: Sequence[str], query: int, row: np.ndarray) -> tuple[list[str], int, list[float]]:
    """Tokens, query and weights of a line that fits a page: of a long text what is weighed, with gaps."""
    kept = range(len(texts))
    if len(texts) > LINE:
        kept = sorted({0, query, *(int(key) for key in np.argsort(-row)[:12] if row[key] >= 0.01)})
    words: list[str] = []
    weights: list[float] = []
    at = 0
    for before, place in zip([-1, *kept], kept, strict=False):
        if place > before + 1:
            words.append("…")
            weights.append(0.0)
        at = len(words) if place == query else at
        words.append(texts[place])
        weights.append(float(row[place]) if place < len(row) else 0.0)
    return words, at, weights


def layer_of_heads(view: Numbers) -> Picture:
    """All maps of one layer, (H, L, M), or one row of each, side by side."""
    weights = np.asarray(view["weights"], dtype=np.float64)
    maps = [np.atleast_2d(one) for one in weights]
    titles = [[f"layer {view['layer']}, head {head}" for head in range(len(maps))]]
    body = panes(
        [maps], titles, [[False] * len(maps)], label=f"heads of layer {view['layer']}", first=view["layer"]
    )
    text = bars([f"head {h}" for h in range(len(maps))], [float(one.max()) for one in maps],
                [f"largest weight {one.max():.2f}" for one in maps])  # fmt: skip
    note = checked(view["error"])
    return Picture(f"Layer {view['layer']}, all heads", body, text, view["caveat"], note)


def grid_of_heads(view: Numbers) -> Picture:
    """The figures of all heads, each as a map of layers by heads."""
    rows = [f"layer {layer}" for layer in view["layers"]]
    maps = []
    for name, values in view["figures"].items():
        columns = [str(head) for head in range(len(values[0]))]
        drawn = heat(np.asarray(values)[::-1], rows[::-1], columns, label=name,
                     size=220, word=name)  # fmt: skip
        maps.append(
            tag("figure", tag("figcaption", f"{name}: {view['says'][name]}"), drawn, style="margin:0")
        )
    body = tag("div", *maps, style="display:flex;flex-wrap:wrap;gap:20px 32px;font-size:12.5px")
    return Picture("Heads", body, "\n".join([*_habits(view), *_largest(view)]), view["caveat"])


def _keys(row: np.ndarray, texts: Sequence[str]) -> str:
    order = [int(key) for key in np.argsort(-row)[:6] if row[key] >= 0.005]
    names = [texts[key] for key in order]
    return bars(names, [float(row[k]) for k in order], [f"{row[k]:.2f}  token {k}" for k in order])


def heads(view: Numbers, thumbnails: Sequence[Any]) -> Picture:
    """All heads as panes; thumbnails[layer] (H, r, c), any scale: each pane as bright as its own largest."""
    figures = view["figures"]
    n_layers, n_heads = np.asarray(figures["entropy"]).shape

    def said(at: int, head: int) -> str:
        parts = [f"{name} {values[at][head]:.2f}" for name, values in figures.items()]
        return f"layer {view['layers'][at]}, head {head}: {', '.join(parts)}"

    titles = [[said(at, head) for head in range(n_heads)] for at in range(n_layers)]
    shown = [list(np.asarray(layer, dtype=np.float64)) for layer in thumbnails]
    size = f"{counted(n_layers, 'layer')} of {counted(n_heads, 'head')}"
    body = panes(shown, titles, _resting(view), label=size)
    table = tag("details", tag("summary", "All figures"), _figures_table(view), style="margin-top:12px")
    habits = _habits(view)
    note = (
        "A row of panes is a layer, the last on top; a pane is one head's map: its rows are the tokens that "
        "look, its columns what they look at, and brighter is more. What rests on the first token is dim."
    )
    found = f"{habits[0].strip()}." if sum(map(sum, _resting(view))) else ""
    listed = tag("ul", [tag("li", line.strip()) for line in habits])
    text, brief = "\n".join([*habits, *_largest(view)]), "\n".join(habits)
    return Picture(f"All {counted(n_layers * n_heads, 'head')}", Markup(listed + body + table), text,
                   view["caveat"], note, finding=found, brief=brief)  # fmt: skip


def _resting(view: Numbers) -> list[list[bool]]:
    """Which heads have most of their weight on the first token, (n_layers, H)."""
    return [
        [view["kind"] != "cross" and value > SINK for value in layer] for layer in view["figures"]["sink"]
    ]


def _figures_table(view: Numbers) -> Markup:
    names = list(view["figures"])
    head = tag(
        "thead", tag("tr", tag("th", "head"), [tag("th", n, title=view["says"].get(n, "")) for n in names])
    )
    rows = [
        tag("tr", tag("th", f"{layer}.{head}"),
            [tag("td", f"{view['figures'][name][at][head]:.3f}", class_="number") for name in names])
        for at, layer in enumerate(view["layers"])
        for head in range(len(view["figures"]["entropy"][at]))
    ]  # fmt: skip
    return tag("table", head, tag("tbody", *rows))


def _habits(view: Numbers) -> list[str]:
    """What heads do that has a name, a line each; 3.1 is head 1 of layer 3."""
    figures, lines = view["figures"], []
    places = [(at, h) for at, layer in enumerate(figures["peak"]) for h in range(len(layer))]
    n_rest = sum(map(sum, _resting(view)))
    if n_rest:
        lines.append(f"  {n_rest} of {len(places)} heads give most of their weight to the first token")
    for name, what in (("previous", "on the token before"), ("duplicate", "on the same token elsewhere")):
        if name in figures:
            best = sorted(places, key=lambda place: -figures[name][place[0]][place[1]])[:3]
            named = [f"{view['layers'][at]}.{h} {figures[name][at][h]:.2f}" for at, h in best]
            lines.append(f"  most weight {what} (layer.head, share): " + ", ".join(named))
    return lines


def _largest(view: Numbers) -> list[str]:
    """How sharp each head is, as shades."""
    levels = len(SHADES) - 1
    shades = ", ".join(f"{shade * 2 if shade.strip() else 'blank'} {i / levels:.2g}"
                       for i, shade in enumerate(SHADES))  # fmt: skip
    lines = [
        "  the largest weight of each head: a row is a layer, the last on top, a column a head;",
        f"  {shades}; * rests on the first token",
    ]
    rows, rests = grid(np.asarray(view["figures"]["peak"])), _resting(view)
    for at in reversed(range(len(rows))):
        marks = "".join("* " if rest else "  " for rest in rests[at])
        lines.append(f"  {view['layers'][at]:>3} {rows[at]}  {marks}".rstrip())
    return lines


def checked(error: float) -> str:
    """That a map is the kernel's own, and how nearly."""
    return f"Checked: these weights give the kernel's own output to {tiny(error)}."


def tiny(value: float) -> str:
    """6e-7, as people write it."""
    return f"{value:.0e}".replace("e-0", "e-")
