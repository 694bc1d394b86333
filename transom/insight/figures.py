"""What each view looks like: from its numbers to a picture, one function for each.

A picture is drawn of a view's `to_dict()` and the texts of its tokens alone, so a page, a notebook and a
terminal show the same numbers. `overview` looks at one text from all sides; how attention looks is in
`attention_figures`. Read next: html, svg.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .charts import Bar, Bars, Cell, Table
from .html import Markup, Picture, quoted, tag, visible
from .svg import curves, heat
from .text import bar, bars, fitted, spark

LN2 = math.log(2)
LATE = 8
"""Positions that a table of layers shows: the last ones."""
SLIGHT = 0.1
"""Nats: where taking a token away costs less, the answer does not hang on it."""
LAYERS = 12
"""Layers that such a table shows at first, evenly spread."""
DECADES = 4
"""Powers of ten that the bars of a gradient span."""
FEW = 6
"""Lines of one view that a terminal shows at first."""
Numbers = dict[str, Any]


def token_probabilities(view: Numbers, texts: Sequence[str]) -> Picture:
    """Probability, rank and entropy of each token; texts: of `view["tokens"]`."""
    shares = [math.exp(value) for value in view["logprob"]]
    facts = [
        f"{percent(p)}, rank {rank + 1}, entropy {entropy / LN2:.1f} bits"
        for p, rank, entropy in zip(shares, view["rank"], view["entropy"], strict=True)
    ]
    words = [tag("span", visible(texts[0]), tag("i", style="--p:0"), tag("small", "given"), class_="tok")]
    words += [
        tag("span", visible(text), tag("i", style=f"--p:{p:.4f}"), tag("small", percent(p)), class_="tok",
            title=f"{visible(text)}: {fact}")
        for text, p, fact in zip(texts[1:], shares, facts, strict=True)
    ]  # fmt: skip
    mean = -sum(view["logprob"]) / len(shares)
    hardest = sorted(range(len(shares)), key=lambda i: shares[i])[:FEW]
    least = hardest[0]
    note = (f"{mean:.2f} nats a token, a perplexity of {math.exp(mean):,.1f}: as unsure as among so many "
            "equally likely tokens. Under each token: what the model gave it, before it saw it.")  # fmt: skip
    found = (
        f"Of {len(shares)} tokens {sum(not rank for rank in view['rank'])} were its first choice; the least "
        f"expected was {quoted(texts[least + 1])}, its choice number {view['rank'][least] + 1:,} "
        f"({percent(shares[least])})."
    )
    brief = bars([texts[i + 1] for i in hardest], [shares[i] for i in hardest], [facts[i] for i in hardest])
    brief = f"  {mean:.2f} nats a token (perplexity {math.exp(mean):,.1f}); the least expected:\n{brief}"
    text = bars(texts[1:], shares, facts)
    return Picture("How likely each token was", tag("div", *words, class_="tokens"), text, view["caveat"],
                   note, finding=found, brief=brief)  # fmt: skip


def lens(view: Numbers, texts: Sequence[str], words: Callable[[int], str]) -> Picture:
    """What each layer would have said at the last positions; words(id) is the text of a token."""
    at: list[int] = view["positions"]
    first = max(0, len(at) - LATE)
    places = range(first, len(at))
    n_layers = len(view["top"])
    few = {round(i * (n_layers - 1) / (LAYERS - 1)) for i in range(LAYERS)}
    if len(at) == 1:
        return _lens_at(view, texts[at[0]], words)
    head = ["after layer", *(visible(texts[at[i]]) for i in places)]
    names = ["before any", *map(str, range(n_layers - 1))]
    # A row for each layer, the last on top as in a drawing of a network; a cell for each position.
    rows = []
    for layer in reversed(range(n_layers)):
        cells = []
        for i in places:
            p, word = math.exp(view["logprob"][layer][i][0]), visible(words(view["top"][layer][i][0]))
            far = view["divergence"][layer][i]
            title = ", ".join(f"{visible(words(t))} {percent(math.exp(lp))}" for t, lp in
                              zip(view["top"][layer][i], view["logprob"][layer][i], strict=True))  # fmt: skip
            cells.append(Cell(word, f"{percent(p)} · {far:.1f}", p, title))
        rows.append((names[layer], cells))
    # Of many layers some stand there at first, evenly spread, and all behind a fold.
    every = Table(head, rows)
    shown = [row for layer, row in zip(reversed(range(n_layers)), rows, strict=True) if layer in few]
    body = Table(head, shown).markup()
    if len(shown) < n_layers:
        body = Markup(body + tag("details", tag("summary", f"All {n_layers - 1} layers"), every.markup()))
    # A terminal has room for one position, the last.
    last = len(at) - 1
    firsts = [words(view["top"][layer][last][0]) for layer in range(n_layers)]
    lines = [
        f"  {names[layer]:>10}  {fitted(words(view['top'][layer][last][0]), 14)} "
        f"{bar(math.exp(view['logprob'][layer][last][0]), 12)} {view['divergence'][layer][last]:6.2f}"
        for layer in reversed(range(n_layers))
    ]
    text = "\n".join([f"  after {visible(texts[at[last]])}: first choice, its probability, nats "
                      "from the end", *lines])  # fmt: skip
    note = (
        "A row is a layer, the last on top; under each token of the text stands what would come after it. "
        "Below each first choice: its probability, and how far the reading is from the final answer in nats."
    )
    return Picture("What each layer would have said", body, text, view["caveat"], note, wide=True,
                   finding=_settled(firsts, names), brief=f"  after {visible(texts[at[last]])}:\n"
                   + _runs(firsts, names), chart=every)  # fmt: skip


def _lens_at(view: Numbers, after: str, words: Callable[[int], str]) -> Picture:
    """The same after one token: the likeliest of each layer, and how far it is from the end."""
    n_layers, top = len(view["top"]), len(view["top"][0][0])
    names = ["before any", *map(str, range(n_layers - 1))]
    far = [row[0] for row in view["divergence"]]
    farthest = max(far[1:], default=0.0) or 1.0  # what comes before any layer would dwarf all that they do
    rows, lines = [], []
    for layer in reversed(range(n_layers)):
        likeliest = zip(view["top"][layer][0], view["logprob"][layer][0], strict=True)
        cells = [Cell(visible(words(one)), percent(p := math.exp(value)), p) for one, value in likeliest]
        rows.append((names[layer], [*cells, Cell(f"{far[layer]:.2f}", "", min(1.0, far[layer] / farthest))]))
        said = "  ".join(f"{fitted(cell.text, 12)} {cell.note:>6}" for cell in cells)
        lines.append(f"  {names[layer]:>10}  {said}  {far[layer]:6.2f}")
    chart = Table(["after layer", "would say", *[""] * (top - 1), "nats from the end"], rows)
    firsts = [words(view["top"][layer][0][0]) for layer in range(n_layers)]
    note = f"Each layer's state after {quoted(after)}, read by the output layer; the last on top."
    return Picture("What each layer would have said", chart.markup(), "\n".join(lines), view["caveat"], note,
                   wide=True, finding=_settled(firsts, names), brief=_runs(firsts, names),
                   chart=chart)  # fmt: skip


def _settled(firsts: Sequence[str], names: Sequence[str]) -> str:
    """From which layer on the first choice is the final one; firsts: of each layer, from below."""
    since = next(i for i in range(len(firsts)) if len(set(firsts[i:])) == 1)
    where = f"from layer {names[since]} on (of 0 to {names[-1]})" if since else "before any layer has worked"
    return f"What it would say next, {quoted(firsts[-1])}, is the first choice {where}."


def _runs(firsts: Sequence[str], names: Sequence[str]) -> str:
    """Layers whose first choice is the same, as one line; the last on top."""
    lines, end = [], len(firsts) - 1
    while end >= 0 and len(lines) < FEW:
        start = next(i for i in range(end + 1) if len(set(firsts[i : end + 1])) == 1)
        layers = f"layer {names[end]}" if start == end else f"layer {names[start]} to {names[end]}"
        layers = layers if start else names[0] if not end else f"up to layer {names[end]}"
        lines.append(f"  {layers:<16} {visible(firsts[end])}")
        end = start - 1
    return "\n".join(lines + ([f"  below: {end + 1} more"] if end >= 0 else []))


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
    key = tag("p", "Rows are layers, columns tokens; each step of light is a power of ten.", class_="note")
    below = tag("div", drawn, style="margin-top:20px")
    body = Markup(key + whole + below)
    layers = list(zip(names, by_layer, strict=True))[::-1]
    # By powers of ten: one layer of a real model has a thousand times the gradient of the others.
    top = max(by_layer) or 1.0
    long = [max(0.0, 1 + math.log10(max(value, 1e-300) / top) / DECADES) for _, value in layers]
    chart = Bars([Bar(name, part, f"{value:.2e}") for (name, value), part in zip(layers, long, strict=True)])
    lines = [f"  {name:>9} {bar(p, 24)} {value:.2e}" for (name, value), p in zip(layers, long, strict=True)]
    scale = "A quarter of a bar less is a tenth of the gradient."
    note = f"{scale} {_sentence(view['why'])}" if view["why"] else scale
    return Picture("Where the gradient goes", body, "\n".join(lines), view["caveat"], note, chart=chart)


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
    """What each unit does for the answer, its grade first; scores that earned none are drawn in grey."""
    units = [_joined(texts, unit) for unit in view["units"]]
    scores, grade, method = view["scores"], view["control"], view["method"].replace("_", " ")
    trusted = grade is None or grade["beats_random"]
    most = max((abs(score) for score in scores), default=0.0) or 1.0
    order = sorted(range(len(units)), key=lambda i: -abs(scores[i]))[:16]
    chart = Bars([
        Bar(visible(units[i]), abs(scores[i]) / most, f"{scores[i]:+.3g} nats", not trusted or scores[i] < 0)
        for i in order
    ])  # fmt: skip
    text = chart.text()
    note = _sentence(grade["text"]) if grade else (
        "Exact: each was taken away and the model asked again. The number is what its "
        "log-probability loses without it, in nats (0.69 is a factor of 2); grey is a gain."
    )  # fmt: skip
    found = _hangs_on(units, scores, grade, method)
    brief = "\n".join(text.split("\n")[:FEW]) if trusted else f"  {found}"
    return Picture(f"What it hangs on, by {method}", chart.markup(), text, view["caveat"], note,
                   finding=found, brief=brief, chart=chart, doubted=not trusted)  # fmt: skip


def _hangs_on(units: Sequence[str], scores: Sequence[float], grade: Numbers | None, method: str) -> str:
    best = max(range(len(units)), key=lambda i: scores[i])
    name, loss = quoted(units[best]), scores[best]
    if grade is not None:
        trusted = f"By {method} it hangs most on {name}."
        doubted = f"What it hangs on is not known: {method} is no better than chance here."
        return trusted if grade["beats_random"] else doubted
    if loss < SLIGHT:
        return (
            f"It hangs on no single one of these: to take one away costs {max(0.0, loss):.2f} nats at most."
        )
    factor = f", a factor of {math.exp(loss):,.3g}" if loss < math.log(1000) else ""
    return f"Most of it hangs on {name}: without that it loses {loss:.2f} nats{factor}."


def routing(view: Numbers) -> Picture:
    """How the choices of each router were shared among its experts."""
    load = np.asarray(view["load"], dtype=np.float64)
    names = [f"layer {layer}" for layer in view["layers"]]
    experts = [str(i) for i in range(load.shape[1])]
    body = heat(load, names, experts, label="share of choices by expert", word="of the choices")
    lines = [f"  {name:>9} {spark(row)}  entropy {of:.2f} of {view['even']:.2f}" for name, row, of in
             zip(names, load.tolist(), view["entropy"], strict=True)]  # fmt: skip
    most = load.max(initial=0.0) or 1.0
    rows = [
        (name, [Cell(f"{100 * p:.0f}", "", p / most, f"expert {i}: {percent(p)}") for i, p in enumerate(row)])
        for name, row in zip(names, load.tolist(), strict=True)
    ]
    return Picture("Which experts were asked", body, "\n".join(lines), view["caveat"],
                   "Percent of the choices of each layer that went to each expert.",
                   chart=Table(["", *experts], rows))  # fmt: skip


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
    change = view["change"]
    chart = Bars([
        Bar(names[i], abs(change[i]) / most, f"{change[i]:+.3f} nats", apart=change[i] >= 0) for i in shown
    ])  # fmt: skip
    note = f"Change of the log-probability ({view['before']:.2f} nats) when each is replaced ({view['how']})."
    return Picture("What the answer needs", Markup(body + chart.markup()), chart.text(), view["caveat"], note,
                   chart=chart)  # fmt: skip


def head_ablation(view: Numbers, texts: Sequence[str]) -> Picture:
    """How the tokens of an answer fare without one head: all of it, and those that move most."""
    before, after = view["before"], view["after"]
    change = sum(after) - sum(before)
    moved = sorted(range(len(before)), key=lambda i: -abs(after[i] - before[i]))[:FEW]
    shares = [(math.exp(before[i]), math.exp(after[i])) for i in moved]
    rows = [
        (visible(texts[int(view["first"]) + i]), [Cell(percent(p), "", p), Cell(percent(q), "", q)])
        for i, (p, q) in zip(moved, shares, strict=True)
    ]
    chart = Table(["token", "with it", "without it"], rows)
    head = f"layer {view['layer']}, head {view['head']}"
    whole, each = (f"{value:+.2f}".replace("-", "−") for value in (change, change / len(before)))
    costs = f"{whole} nats, {each} a token ({view['how']})"
    found = f"Without {head} the whole answer is {_times(change)}: {costs}."
    text = "\n".join(f"  {fitted(name)} {cells[0].text:>6} → {cells[1].text:>6}" for name, cells in rows)
    note = "The tokens of the answer whose probability moves most."
    title = f"Without {head}"
    return Picture(title, chart.markup(), text, view["caveat"], note, finding=found, chart=chart)


def _times(change: float) -> str:
    """What a change of log-probability is, in words."""
    if abs(change) < 0.005:
        return "as likely as with it"
    word = "less likely" if change < 0 else "likelier"
    if abs(change) > math.log(1e6):
        return f"more than a million times {word}"
    ratio = math.exp(abs(change))
    return f"{ratio:.2f} times {word}" if ratio < 10 else f"{ratio:,.0f} times {word}"


def patching(view: Numbers, texts: Sequence[str], others: Sequence[str], answer: str) -> Picture:
    """How much of the answer each piece of the text's run brings back in the run over the other text."""
    n_layers = 1 + max(layer for layer, _ in view["units"])
    restored = np.asarray(view["restored"], dtype=np.float64).reshape(n_layers, -1)
    places = [_seen(pair) for pair in zip(texts, others, strict=True)]
    columns = [a if a == b else f"{b}→{a}" for a, b in places]
    if view["points"] != "resid":
        columns = [str(i) for i in range(restored.shape[1])]
    names = [f"layer {layer}" for layer in range(n_layers)]
    body = heat(np.clip(restored, 0, 1)[::-1], names[::-1], columns, top=1.0, word="of the difference",
                label="share of the difference that comes back")  # fmt: skip
    best = [int(row.argmax()) for row in restored]
    lines = [
        f"  {names[layer]:>9} {fitted(columns[best[layer]])} {bar(restored[layer, best[layer]], 20)} "
        f"{restored[layer, best[layer]]:5.2f}"
        for layer in reversed(range(n_layers))
    ]
    few = sorted({round(i * (n_layers - 1) / (FEW - 1)) for i in range(FEW)})
    brief = "\n".join(line for at, line in enumerate(reversed(lines)) if at in few)
    brief = "\n".join(reversed(brief.split("\n")))
    p_text, p_other = (percent(math.exp(min(0.0, view[f"{name}_score"]))) for name in ("clean", "corrupt"))
    changed = [i for i, (a, b) in enumerate(places) if a != b]
    found = (
        f"{quoted(answer)} follows the text at {p_text} and the other text at {p_other}. "
        + (_carried(restored, texts, changed) if view["points"] == "resid" else "")
    ).strip()
    note = (
        "Patched: what the text's run holds before a layer at one token, put into the run over the other "
        "text. A row is a layer, the last on top, a column a token (other→text where they differ); "
        "brighter: more of the difference comes back, 0 nothing and 1 all of it."
    )
    return Picture("Where the difference of the two texts is carried", body, "\n".join(lines), view["caveat"],
                   note, finding=found, brief=brief)  # fmt: skip


def _carried(restored: np.ndarray, texts: Sequence[str], changed: Sequence[int]) -> str:
    """Where the difference stands at the bottom, and from which layer on the last token carries it."""
    last = len(texts) - 1
    if last in changed:
        return "The last token itself differs, so it carries the difference from the start."
    since = next((i for i in range(len(restored)) if (restored[i:, last] >= 0.5).all()), None)
    start = ", ".join(quoted(texts[i]) for i in changed)
    if since is None:
        return f"It stands at {start}, and no layer's input at the last token brings half of it back."
    return f"It stands at {start}; from layer {since} on the last token, {quoted(texts[last])}, carries most."


def _seen(texts: Sequence[str]) -> list[str]:
    return [visible(text) for text in texts]


def _joined(texts: Sequence[str], places: Sequence[int]) -> str:
    return "".join(texts[place] for place in places)


def percent(p: float) -> str:
    """A probability as a person writes it."""
    return "<0.1%" if 0 < p < 0.001 else f"{100 * p:.1f}%"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
