"""The gradient through a small net as a static SVG: no script, no font and nothing else from outside.

Units are circles with their output inside. A line is a weight: its colour says which way it pushes the loss,
its width how hard. The paths that the chosen weight takes to the loss are marked as with a felt pen, and
carry the slopes that the chain rule multiplies.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .backprop import BackpropStory

INK, SOFT, FAINT, PAPER = "#1f2430", "#667080", "#d5dae1", "#fcfcfa"
RAISES, LOWERS, PEN = "#c8501e", "#2364aa", "#ffe58a"
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif"
RADIUS, COLUMN, ROW, LEFT, TOP = 28, 214, 110, 80, 92
THIN, THICK = 1.2, 8.0
SHOWN_PATHS, LABELLED = 3, 9
"""Equations under the picture; marked weights between two layers that still get a label each."""
PLACES = (0.5, 0.4, 0.6, 0.32, 0.68, 0.26, 0.74)
"""Where on a line its label may stand, the best place first."""


@dataclass
class Drawing:
    """The marks made so far, and the boxes (left, top, right, bottom) that a label must leave free."""

    marks: list[str] = field(default_factory=list)
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def text(
        self, x: float, y: float, words: str, size: float = 12, color: str = INK, anchor: str = "middle",
        weight: int = 400, halo: bool = False,
    ) -> None:  # fmt: skip
        """Write words with their baseline at y; a halo of paper keeps them readable over lines."""
        ring = f' paint-order="stroke" stroke="{PAPER}" stroke-width="4"' if halo else ""
        self.marks.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{color}" text-anchor="{anchor}" '
            f'font-weight="{weight}"{ring}>{escape(words)}</text>'
        )

    def line(self, start: Point, end: Point, color: str, width: float, hint: str = "") -> None:
        """Draw a line; `hint` is what a browser shows under the mouse."""
        title = f"<title>{escape(hint)}</title>" if hint else ""
        self.marks.append(
            f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" '
            f'stroke="{color}" stroke-width="{width:.2f}" stroke-linecap="round">{title}</line>'
        )

    def label(self, start: Point, end: Point, lines: list[str], color: str) -> None:
        """A label on a line, where it hides nothing; left out when there is no such place."""
        wide, high = 6.4 * max(map(len, lines)) + 12, 14 * len(lines) + 6
        for share in PLACES:
            x, y = (a + share * (b - a) for a, b in zip(start, end, strict=True))
            box = (x - wide / 2, y - high / 2, x + wide / 2, y + high / 2)
            if not any(overlaps(box, other) for other in self.taken):
                break
        else:
            return
        self.taken.append(box)
        self.marks.append(
            f'<rect x="{box[0]:.1f}" y="{box[1]:.1f}" width="{wide:.1f}" height="{high:.1f}" rx="6" '
            f'fill="{PAPER}" fill-opacity="0.94" stroke="{color}" stroke-width="1"/>'
        )
        for i, words in enumerate(lines):
            self.text(x, box[1] + 14.5 + 14 * i, words, 11, INK if i else color, weight=400 if i else 600)


Point = tuple[float, float]


def draw_gradient(story: BackpropStory) -> str:
    """The SVG of a story."""
    sizes = story.network.sizes
    height = ROW * max(sizes)
    where: dict[tuple[int, int], Point] = {
        (level, unit): (LEFT + COLUMN * level, TOP + height / 2 + ROW * (unit - (n - 1) / 2))
        for level, n in enumerate(sizes)
        for unit in range(n)
    }
    loss_at = (LEFT + COLUMN * len(sizes) - 44, TOP + height / 2)
    equations = _equations(story)
    width = max(loss_at[0] + 108, 800, 60 + 7.0 * max(map(len, equations)))
    bottom = TOP + height + 16
    drawing = Drawing()
    drawing.taken += [(x - 36, y - 48, x + 36, y + 48) for x, y in where.values()]
    _heading(drawing, story)
    _edges(drawing, story, where, loss_at)
    _units(drawing, story, where, loss_at)
    _footer(drawing, equations, bottom, width)
    tall = bottom + 66 + 21 * len(equations)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {tall:.0f}" width="{width:.0f}" '
        f'height="{tall:.0f}" font-family="{FONT}" role="img" aria-label="{escape(_title(story))}">\n'
        f'<rect width="100%" height="100%" fill="{PAPER}"/>\n' + "\n".join(drawing.marks) + "\n</svg>\n"
    )


def _title(story: BackpropStory) -> str:
    return f"How the weight from {story.ends[0]} to {story.ends[1]} reaches the loss"


def _heading(drawing: Drawing, story: BackpropStory) -> None:
    network = story.network
    last = network.activation_of(network.n_layers - 1)
    kind = network.activation if last == network.activation else f"{network.activation}, then {last}"
    drawing.text(32, 42, _title(story), 20, anchor="start", weight=650)
    drawing.text(
        32, 66, f"A net of {'-'.join(map(str, network.sizes))} units ({kind}). Read from the right: each "
        "slope on a marked path multiplies the next.", 12.5, SOFT, "start",
    )  # fmt: skip


def _edges(drawing: Drawing, story: BackpropStory, where: dict[tuple[int, int], Point], loss: Point) -> None:
    """First the felt pen, then every weight, thin ones first; then the labels of what is marked."""
    network, chosen = story.network, story.weight
    marked = {(chosen.layer, chosen.source, chosen.target)}
    for path in story.paths:
        steps = zip(path.units, path.units[1:], strict=False)
        marked |= {(chosen.layer + 1 + i, a, b) for i, (a, b) in enumerate(steps)}
    ends = {path.units[-1] for path in story.paths}
    for layer, source, unit in marked:
        drawing.line(where[layer, source], where[layer + 1, unit], PEN, 19)
    for unit in range(network.sizes[-1]):
        start = where[network.n_layers, unit]
        if unit in ends:
            drawing.line(start, loss, PEN, 19)
        drawing.line(start, loss, SOFT, 1.4)
    most = max(float(abs(grads).max()) for grads in story.gradient.weights) or 1.0
    edges = [
        (float(grads[unit, source]), layer, source, unit)
        for layer, grads in enumerate(story.gradient.weights)
        for unit in range(grads.shape[0])
        for source in range(grads.shape[1])
    ]
    for value, layer, source, unit in sorted(edges, key=lambda edge: (edge[1:] in marked, abs(edge[0]))):
        ends_of = f"{story.unit(layer, source)}>{story.unit(layer + 1, unit)}"
        hint = f"{ends_of}: weight {network.weights[layer][unit, source]:.4g}, gradient {value:.4g}"
        thickness = THIN + (THICK - THIN) * abs(value) / most
        strong = (layer, source, unit) in marked
        drawing.line(where[layer, source], where[layer + 1, unit], shade(value, strong), thickness, hint)

    value = float(network.weights[chosen.layer][chosen.target, chosen.source])
    start, end = where[chosen.layer, chosen.source], where[chosen.layer + 1, chosen.target]
    drawing.label(start, end, [f"gradient {story.by_hand:+.4g}", f"weight {value:.4g}"],
                  shade(story.by_hand, True))  # fmt: skip
    for unit in sorted(ends):
        miss = next(path for path in story.paths if path.units[-1] == unit).factors[0].value
        drawing.label(where[network.n_layers, unit], loss, [f"slope {miss:.3g}"], SOFT)
    crowd = Counter(layer for layer, _, _ in marked)
    for layer, source, unit in sorted(marked):
        if layer > chosen.layer and crowd[layer] <= LABELLED:
            words = [f"× {network.weights[layer][unit, source]:.3g}"]
            drawing.label(where[layer, source], where[layer + 1, unit], words, SOFT)


def _units(drawing: Drawing, story: BackpropStory, where: dict[tuple[int, int], Point], loss: Point) -> None:
    """Every unit: its name above, its output inside, and its slope below where a marked path goes through."""
    network, chosen = story.network, story.weight
    touched = {(chosen.layer, chosen.source)}
    touched |= {(chosen.layer + 1 + i, u) for path in story.paths for i, u in enumerate(path.units)}
    for (level, unit), (x, y) in where.items():
        on_path = (level, unit) in touched
        drawing.marks.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}" fill="#ffffff" '
            f'stroke="{INK if on_path else SOFT}" stroke-width="{2.2 if on_path else 1.2}"/>'
        )
        drawing.text(x, y + 4.5, short(story.trace.outputs[level][0, unit]), 13, weight=600)
        drawing.text(x, y - RADIUS - 8, story.unit(level, unit), 12, SOFT, weight=600, halo=True)
        softmax = level and network.activation_of(level - 1) == "softmax"
        if on_path and level > chosen.layer and not softmax:
            slope = network.slopes(story.trace, level - 1)[0, unit]
            drawing.text(x, y + RADIUS + 17, f"slope {slope:.3g}", 11.5, halo=True)
        elif (level, unit) == (chosen.layer, chosen.source):
            drawing.text(x, y + RADIUS + 17, "× its output", 11.5, halo=True)
    drawing.marks.append(
        f'<rect x="{loss[0] - 8:.1f}" y="{loss[1] - 27:.1f}" width="84" height="54" rx="10" fill="{INK}"/>'
    )
    drawing.text(loss[0] + 34, loss[1] - 5, "loss", 12, FAINT)
    drawing.text(loss[0] + 34, loss[1] + 14, f"{story.loss:.4g}", 14, "#ffffff", weight=650)


def _equations(story: BackpropStory) -> list[str]:
    """The chain rule in numbers, one line for each of the largest paths."""
    shown = sorted(story.paths, key=lambda path: -abs(path.product))[:SHOWN_PATHS]
    lines = [
        " × ".join(f"{factor.value:.4g}" for factor in path.factors) + f" = {path.product:.4g}"
        for path in shown
    ]
    if len(story.paths) == 1:
        lines = [f"dLoss/dw = {lines[0]}"]
    else:
        more = len(story.paths) - len(shown)
        rest = f", with {more} smaller path{'s' * (more > 1)}" if more else ""
        lines.append(f"dLoss/dw = the sum{rest} = {story.by_paths:.4g}")
    apart = abs(story.by_hand - story.autograd)
    same = f"apart by {apart:.0e}" if apart else "the same bits"
    return [
        *lines,
        f"autograd says {story.autograd:.4g} ({same}), finite differences {story.differences:.4g}",
    ]


def _footer(drawing: Drawing, equations: list[str], y: float, width: float) -> None:
    """What the colours mean, and the chain rule with its numbers."""
    drawing.line((32, y), (width - 32, y), FAINT, 1)
    x = 32.0
    keys = ((RAISES, "weight up, loss up"), (LOWERS, "weight up, loss down"),
            (PEN, "on a path of the weight"))  # fmt: skip
    for color, words in keys:
        drawing.line((x + 4, y + 23), (x + 24, y + 23), color, 12 if color == PEN else 5)
        drawing.text(x + 36, y + 27, words, 11.5, SOFT, "start")
        x += 54 + 6.1 * len(words)
    drawing.text(x, y + 27, "wider: a larger gradient", 11.5, SOFT, "start")
    for i, words in enumerate(equations):
        last, result = i == len(equations) - 1, i == len(equations) - 2
        drawing.text(32, y + 57 + 21 * i, words, 12 if last else 13, SOFT if last else INK, "start",
                     650 if result else 400)  # fmt: skip


def short(value: float) -> str:
    """A number that fits into a circle."""
    words = f"{value:.3g}"
    return words if len(words) <= 6 else f"{value:.3f}" if abs(value) < 1 else f"{value:.1f}"


def shade(gradient: float, strong: bool) -> str:
    """The colour of a gradient's sign, pale for lines that stand back."""
    if gradient == 0:
        return SOFT if strong else FAINT
    color = RAISES if gradient > 0 else LOWERS
    return color if strong else mix(color, PAPER, 0.55)


def mix(color: str, other: str, share: float) -> str:
    """A colour with `share` of another in it."""
    pairs = zip(bytes.fromhex(color[1:]), bytes.fromhex(other[1:]), strict=True)
    return "#" + bytes(round(a + share * (b - a)) for a, b in pairs).hex()


def overlaps(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    """Whether two boxes share a place."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def escape(words: str) -> str:
    """Text as SVG wants it."""
    return words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
