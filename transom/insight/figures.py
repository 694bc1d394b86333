"""What each view looks like: from its numbers to a picture, one function for each.

A picture is drawn of a view's `to_dict()` and the texts of its tokens alone, so a page, a notebook and a
terminal show the same numbers. `essentials` looks at one text from all sides. Read next: html, svg.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import Refused
from .html import Markup, Picture, tag, visible
from .svg import arcs, curves, heat, legend, panes
from .text import bar, bars, fitted, grid, spark

LN2 = math.log(2)
LATE = 12
"""Positions that a table of layers shows: the last ones."""
SINK = 0.5
"""A head with more of its weight than this on the first token is set apart."""
NEAR = 0.5
"""A head that gives the token before more than this is one of the previous token."""
Numbers = dict[str, Any]


def surprise(view: Numbers, texts: Sequence[str]) -> Picture:
    """Probability, rank and entropy of each token; texts: of `view["tokens"]`."""
    shares = [math.exp(value) for value in view["logprob"]]
    facts = [
        f"{_percent(p)}, rank {rank + 1}, entropy {entropy / LN2:.1f} bits"
        for p, rank, entropy in zip(shares, view["rank"], view["entropy"], strict=True)
    ]
    words = [tag("span", visible(texts[0]), tag("i", style="--p:0"), tag("small", "given"), class_="tok")]
    words += [
        tag("span", visible(text), tag("i", style=f"--p:{p:.4f}"), tag("small", _percent(p)), class_="tok",
            title=f"{visible(text)}: {fact}")
        for text, p, fact in zip(texts[1:], shares, facts, strict=True)
    ]  # fmt: skip
    mean = -sum(view["logprob"]) / len(shares)
    hardest = sorted(range(len(shares)), key=lambda i: shares[i])[:3]
    note = (f"{mean:.2f} nats a token (perplexity {math.exp(mean):,.1f}); least expected: "
            + ", ".join(f"{visible(texts[i + 1])} ({_percent(shares[i])})" for i in hardest))  # fmt: skip
    text = bars(texts[1:], shares, facts)
    return Picture(
        "How likely each token was", tag("div", *words, class_="tokens"), text, view["caveat"], note
    )


def attention(view: Numbers, texts: Sequence[str], keys: Sequence[str] | None = None) -> Picture:
    """A head's map with the arcs of its last query, or one row as arcs; keys: the words of another text."""
    weights = np.asarray(view["weights"], dtype=np.float64)
    if weights.ndim == 3 or view["head"] is None:
        raise Refused("a picture shows one head; give head=, or look at heads() for all of them")
    name = f"Layer {view['layer']}, head {view['head']}"
    note = f"Checked: these weights give the kernel's own output to {_tiny(view['error'])}."
    texts, keys = _seen(texts), None if keys is None else _seen(keys)
    query = view["row"] if weights.ndim == 1 else len(weights) - 1
    row = weights if weights.ndim == 1 else weights[-1]
    listed = _keys(row, keys or texts, query)
    if keys is not None:  # two texts: no line to draw arcs over
        body = heat(np.atleast_2d(weights), texts if weights.ndim == 2 else [texts[query]], keys, label=name,
                    top=1.0, word="of the weight")  # fmt: skip
        return Picture(f"{name}: weights on the source", body, listed, view["caveat"], note)
    drawn = arcs(texts, query, row.tolist(), label=f"{name}, seen from token {query}")
    if weights.ndim == 1:
        return Picture(f"{name}, seen from {texts[query]}", drawn, listed, view["caveat"], note)
    whole = heat(weights, texts, texts, label=name, top=1.0, word="of the weight")
    body = Markup(drawn + tag("div", whole, style="margin-top:20px"))
    return Picture(f"{name}: which tokens it weighs", body, listed, view["caveat"], note)


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
    note = f"Checked: these weights give the kernel's own output to {_tiny(view['error'])}."
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
    rests = [[value > SINK for value in layer] for layer in view["figures"]["sink"]]
    return Picture("Heads", body, _heads_text(view, rests), view["caveat"])


def _keys(row: np.ndarray, texts: Sequence[str], query: int) -> str:
    order = [int(key) for key in np.argsort(-row)[:6] if row[key] >= 0.005]
    names = [texts[key] for key in order]
    return bars(names, [float(row[k]) for k in order], [f"{row[k]:.2f}  token {k}" for k in order])


def heads(view: Numbers, thumbnails: Sequence[Any]) -> Picture:
    """All heads as panes; thumbnails[layer] (H, r, c), any scale: each pane as bright as its own largest."""
    figures = view["figures"]
    n_layers, n_heads = np.asarray(figures["entropy"]).shape
    cross = view["kind"] == "cross"

    def said(at: int, head: int) -> str:
        parts = [f"{name} {values[at][head]:.2f}" for name, values in figures.items()]
        return f"layer {view['layers'][at]}, head {head}: {', '.join(parts)}"

    rests = [[not cross and figures["sink"][at][h] > SINK for h in range(n_heads)] for at in range(n_layers)]
    titles = [[said(at, head) for head in range(n_heads)] for at in range(n_layers)]
    shown = [list(np.asarray(layer, dtype=np.float64)) for layer in thumbnails]
    body = panes(shown, titles, rests, label=f"{n_layers} layers of {n_heads} heads")
    table = tag("details", tag("summary", "All figures"), _figures_table(view), style="margin-top:12px")
    n_rest = sum(map(sum, rests))
    note = "Each pane is one head's map: rows are queries, columns what they weigh; the last layer is on top."
    if n_rest:
        note += f" {n_rest} of {n_layers * n_heads} rest mostly on the first token and are drawn dim."
    return Picture("Heads", Markup(body + table), _heads_text(view, rests), view["caveat"], note)


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


def _heads_text(view: Numbers, rests: Sequence[Sequence[bool]]) -> str:
    """Heads that do something that has a name, and a grid of how sharp each is."""
    figures, lines = view["figures"], []
    places = [(at, h) for at in range(len(rests)) for h in range(len(rests[at]))]
    for name, what in (("previous", "on the token before"), ("duplicate", "on the same token elsewhere")):
        if name in figures:
            best = sorted(places, key=lambda place: -figures[name][place[0]][place[1]])[:3]
            named = [f"{view['layers'][at]}.{h} {figures[name][at][h]:.2f}" for at, h in best]
            lines.append(f"  most weight {what}: " + ", ".join(named))
    peaks = np.asarray(figures["peak"])
    rows = grid(peaks)
    lines.append(
        "  largest weight of each head (a row is a layer, the last on top; * rests on the first token):"
    )
    for at in reversed(range(len(rows))):
        marks = "".join("* " if rest else "  " for rest in rests[at])
        lines.append(f"  {view['layers'][at]:>3} {rows[at]}  {marks.rstrip()}")
    return "\n".join(line.rstrip() for line in lines)


def lens(view: Numbers, texts: Sequence[str], words: Callable[[int], str]) -> Picture:
    """What each layer would have said at the last positions; words(id) is the text of a token."""
    at: list[int] = view["positions"]
    first = max(0, len(at) - LATE)
    places = range(first, len(at))
    n_layers = len(view["top"])
    head = tag("tr", tag("th", "after layer"), [tag("th", visible(texts[at[i]])) for i in places])
    names = ["before any", *map(str, range(n_layers - 1))]
    rows = []
    for layer in reversed(range(n_layers)):
        cells = []
        for i in places:
            p, word = math.exp(view["logprob"][layer][i][0]), visible(words(view["top"][layer][i][0]))
            far = view["divergence"][layer][i]
            title = ", ".join(f"{visible(words(t))} {_percent(math.exp(lp))}" for t, lp in
                              zip(view["top"][layer][i], view["logprob"][layer][i], strict=True))  # fmt: skip
            cells.append(tag("td", tag("code", word), tag("small", f"{_percent(p)} · {far:.1f}"),
                             style=f"--p:{p:.3f}", title=title))  # fmt: skip
        rows.append(tag("tr", tag("th", names[layer]), cells))
    body = tag("table", tag("thead", head), tag("tbody", *rows))
    last = len(at) - 1
    lines = [
        f"  {names[layer]:>10}  {fitted(words(view['top'][layer][last][0]), 14)} "
        f"{bar(math.exp(view['logprob'][layer][last][0]), 12)} {view['divergence'][layer][last]:6.2f}"
        for layer in reversed(range(n_layers))
    ]
    text = "\n".join([f"  after {visible(texts[at[last]])}: first choice, its probability, nats "
                      "from the end", *lines])  # fmt: skip
    note = (
        "Under each first choice: its probability, and how far the reading is from the final answer in nats."
    )
    return Picture("What each layer would have said", body, text, view["caveat"], note)


def gradient_flow(view: Numbers, texts: Sequence[str]) -> Picture:
    """Gradient norms by layer and position, on a logarithmic scale; the residual path and the branches."""
    total = np.asarray(view["total"], dtype=np.float64)
    n_layers = len(total) - 1
    names = [*(f"layer {i}" for i in range(n_layers)), "end"]
    seen = np.log10(np.maximum(total, total.max(initial=1e-30) * 1e-6)) - math.log10(
        total.max(initial=1e-30) * 1e-6
    )
    whole = heat(
        seen[::-1] ** 2, names[::-1], _seen(texts), label="gradient norm by layer and position", size=620
    )
    by_layer = np.sqrt((total**2).sum(1)).tolist()
    series = [("all of it", list(range(n_layers + 1)), by_layer)]
    for name in ("identity", "branch"):
        if view[name] is not None:
            part = np.sqrt((np.asarray(view[name]) ** 2).sum(1)).tolist()
            series.append(
                ({"identity": "residual path", "branch": "branches"}[name], list(range(n_layers)), part)
            )
    drawn = curves(series, label="gradient norm by layer", across="layer", up="gradient norm", log=True)
    body = Markup(whole + tag("div", drawn, legend([name for name, *_ in series]), style="margin-top:20px"))
    lines = [f"  {name:>9} {bar(value / max(by_layer), 24)} {value:.2e}" for name, value in
             reversed(list(zip(names, by_layer, strict=True)))]  # fmt: skip
    note = "Rows are layers, columns tokens; each step of light is a power of ten." + (
        f" {_sentence(view['why'])}" if view["why"] else ""
    )
    return Picture("Where the gradient goes", body, "\n".join(lines), view["caveat"], note)


def token_gradients(view: Numbers, texts: Sequence[str]) -> Picture:
    """How steeply each token's loss hangs on each earlier token, and how that falls with distance."""
    norms = np.asarray(view["norms"], dtype=np.float64)
    rows = norms / np.maximum(norms.max(1, keepdims=True), 1e-300)
    whole = heat(rows, _seen(texts[1:]), _seen(texts[:-1]), label="gradient of each token's loss", top=1.0,
                 word="of the row's largest")  # fmt: skip
    by_distance = [float(np.diagonal(norms, -d).mean()) for d in range(len(norms))]
    fall = curves([("mean", list(range(len(norms))), by_distance)], label="gradient over distance",
                  across="tokens back", up="mean gradient norm", log=True)  # fmt: skip
    body = Markup(whole + tag("div", fall, style="margin-top:20px"))
    steps = spark([math.log10(value + 1e-30) for value in by_distance])
    text = f"  by distance, 0 to {len(norms) - 1} tokens back: {steps}"
    return Picture("Which earlier tokens each token hangs on", body, text, view["caveat"],
                   "Rows are the tokens whose loss is taken, each as bright as its own largest.")  # fmt: skip


def attribution(view: Numbers, texts: Sequence[str]) -> Picture:
    """What each unit does for the answer, with the grade."""
    units = [_joined(texts, unit) for unit in view["units"]]
    scores = view["scores"]
    most = max((abs(score) for score in scores), default=0.0) or 1.0
    order = sorted(range(len(units)), key=lambda i: -abs(scores[i]))[:16]
    rows = [
        tag("div", tag("code", visible(units[i])), tag("i", style=f"--p:{abs(scores[i]) / most:.4f}"),
            tag("span", f"{scores[i]:+.3g}"), class_="row apart" if scores[i] < 0 else "row")
        for i in order
    ]  # fmt: skip
    text = bars([units[i] for i in order], [abs(scores[i]) / most for i in order],
                [f"{scores[i]:+.3g}" for i in order])  # fmt: skip
    grade = view["control"]
    note = _sentence(grade["text"] if grade else "exact: each was taken away and the model asked again")
    title = f"What it hangs on, by {view['method'].replace('_', ' ')}"
    return Picture(title, tag("div", *rows, class_="rows"),
                   text, view["caveat"], note)  # fmt: skip


def routing(view: Numbers) -> Picture:
    """How the choices of each router were shared among its experts."""
    load = np.asarray(view["load"], dtype=np.float64)
    names = [f"layer {layer}" for layer in view["layers"]]
    experts = [str(i) for i in range(load.shape[1])]
    body = heat(load, names, experts, label="share of choices by expert", word="of the choices")
    lines = [f"  {name:>9} {spark(row)}  entropy {of:.2f} of {view['even']:.2f}" for name, row, of in
             zip(names, load.tolist(), view["entropy"], strict=True)]  # fmt: skip
    return Picture("Which experts were asked", body, "\n".join(lines), view["caveat"])


def ablation(view: Numbers) -> Picture:
    """The change in log p(answer) without each part."""
    order = sorted(range(len(view["units"])), key=lambda i: view["change"][i])
    most = max((abs(change) for change in view["change"]), default=0.0) or 1.0
    names = [f"{view['what']} {a}.{b}" for a, b in view["units"]]
    if view["what"] in ("heads", "experts") and len(view["units"]) > 1:
        values = np.zeros((1 + max(a for a, _ in view["units"]), 1 + max(b for _, b in view["units"])))
        for (a, b), change in zip(view["units"], view["change"], strict=True):
            values[a, b] = max(0.0, -change)
        rows, columns = [f"layer {i}" for i in range(len(values))], [str(i) for i in range(values.shape[1])]
        body = heat(values[::-1], rows[::-1], columns, label="loss without each part", word="nats lost")
    else:
        body = Markup("")
    shown = order[:8]
    listed = [
        tag("div", tag("code", names[i]), tag("i", style=f"--p:{abs(view['change'][i]) / most:.4f}"),
            tag("span", f"{view['change'][i]:+.3f} nats"),
            class_="row" if view["change"][i] < 0 else "row apart")
        for i in shown
    ]  # fmt: skip
    text = bars([names[i] for i in shown], [abs(view["change"][i]) / most for i in shown],
                [f"{view['change'][i]:+.3f} nats" for i in shown])  # fmt: skip
    note = f"Change of the log-probability ({view['before']:.2f} nats) when each is replaced ({view['how']})."
    return Picture("What the answer needs", Markup(body + tag("div", *listed, class_="rows")), text,
                   view["caveat"], note)  # fmt: skip


def _seen(texts: Sequence[str]) -> list[str]:
    return [visible(text) for text in texts]


def _joined(texts: Sequence[str], places: Sequence[int]) -> str:
    return "".join(texts[place] for place in places)


def _percent(p: float) -> str:
    return "<0.1%" if 0 < p < 0.001 else f"{100 * p:.1f}%"


def _tiny(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
