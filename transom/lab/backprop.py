"""`transom lab backprop`: back-propagation for one weight, told with its numbers and checked twice.

A small net with numbers of two decimals, one example, one weight: the forward pass unit by unit, the chain
rule path by path, the same gradient by autograd and by finite differences, and what one step does to the
loss.
Read next: gradient_picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch

from ..errors import Refused, nearest
from ..output import writable, write_whole
from .chain_rule import Path, Weight, paths, unit_name
from .gradient_picture import draw_gradient
from .network import AT_OUTPUT, HIDDEN, Gradient, Network, Numbers, Trace

MOST_UNITS, MOST_LAYERS = 12, 6
"""Units of a layer and layers of units: beyond that, neither paths nor picture can be followed."""
SHOWN_PATHS, SHOWN_BARS, BAR = 8, 24, 18
LOSSES = ("squared", "cross-entropy")


def backprop(
    sizes: Sequence[int] = (2, 3, 1),
    activation: str = "tanh",
    weight: str | Weight | None = None,
    seed: int = 0,
    out: FilePath | None = None,
    *,
    loss: str = "squared",
    rate: float = 0.1,
) -> BackpropStory:
    """Follow the gradient of one weight through a small random net, and draw it into `out` (SVG).

    weight: `LAYER:FROM>TO`, all from 0; by default the one of the first layer with the largest gradient.
    rate: of the one step of gradient descent that is tried. Raises `Refused`.
    """
    sizes = tuple(sizes)
    _check(sizes, activation, loss)
    if out is not None:
        writable(out)
    network = Network.random(sizes, activation, loss, seed)
    x, target = example(network, seed)
    trace = network.forward(x)
    gradient = network.backward(trace, target)
    chosen = _largest(gradient) if weight is None else Weight.parse(str(weight), sizes)
    story = BackpropStory(
        network=network, x=x, target=target, trace=trace, gradient=gradient, weight=chosen,
        paths=tuple(paths(network, trace, target, chosen)),
        autograd=float(by_autograd(network, x, target).weights[chosen.layer][chosen.target, chosen.source]),
        differences=by_finite_differences(network, x, target, chosen), rate=rate, seed=seed,
    )  # fmt: skip
    if out is not None:
        write_whole(out, story.svg())
    return story


def example(network: Network, seed: int) -> tuple[Numbers, Numbers]:
    """One example for a net: input (1, n_0) and target (1, n_last), with numbers of one decimal."""
    rng = np.random.default_rng((seed, 1))
    n_inputs, n_outputs = network.sizes[0], network.sizes[-1]
    x = rng.integers(2, 10, (1, n_inputs)) / 10 * rng.choice([-1.0, 1.0], (1, n_inputs))
    if network.loss_kind == "cross-entropy":
        return x, np.eye(n_outputs)[rng.integers(n_outputs, size=1)]
    low, high = (1, 9) if AT_OUTPUT[network.activation] == "sigmoid" else (-8, 8)
    return x, rng.integers(low, high + 1, (1, n_outputs)) / 10


def by_autograd(network: Network, x: Numbers, target: Numbers) -> Gradient:
    """The same gradient by PyTorch, which keeps the road of the forward pass itself; sums are left out."""
    weights = [torch.from_numpy(w.copy()).requires_grad_() for w in network.weights]
    biases = [torch.from_numpy(b.copy()).requires_grad_() for b in network.biases]
    functions = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "relu": torch.relu}
    hidden, wanted = torch.from_numpy(x), torch.from_numpy(target)
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        z = hidden @ weight.T + bias
        hidden = functions.get(network.activation_of(layer), lambda scores: scores)(z)
    if network.loss_kind == "squared":
        loss = 0.5 * ((hidden - wanted) ** 2).sum(dim=1).mean()
    else:
        loss = -(wanted * torch.log_softmax(hidden, dim=1)).sum(dim=1).mean()
    grads = [grad.numpy() for grad in torch.autograd.grad(loss, weights + biases)]
    return Gradient(tuple(grads[: len(weights)]), tuple(grads[len(weights) :]), ())


def by_finite_differences(
    network: Network, x: Numbers, target: Numbers, weight: Weight, step: float = 1e-5
) -> float:
    """The slope between the losses a little above and a little below the weight's value."""
    losses = []
    for sign in (1, -1):
        weights = [w.copy() for w in network.weights]
        weights[weight.layer][weight.target, weight.source] += sign * step
        moved = Network(tuple(weights), network.biases, network.activation, network.loss_kind)
        losses.append(moved.loss(moved.forward(x), target))
    return (losses[0] - losses[1]) / (2 * step)


@dataclass(frozen=True)
class BackpropStory:
    """The gradient of one weight: how it comes about, and that it is right. It prints and draws itself."""

    network: Network
    x: Numbers
    target: Numbers
    trace: Trace
    gradient: Gradient
    weight: Weight
    paths: tuple[Path, ...]
    autograd: float
    differences: float
    rate: float
    seed: int

    @property
    def by_hand(self) -> float:
        """dLoss/dw by back-propagation."""
        return float(self.gradient.weights[self.weight.layer][self.weight.target, self.weight.source])

    @property
    def by_paths(self) -> float:
        """dLoss/dw as the sum over the paths."""
        return math.fsum(path.product for path in self.paths)

    @property
    def loss(self) -> float:
        return self.network.loss(self.trace, self.target)

    @property
    def loss_after(self) -> float:
        """The loss after one step that moves every weight and bias against its gradient."""
        moved = self.network.step(self.gradient, self.rate)
        return moved.loss(moved.forward(self.x), self.target)

    @property
    def foretold(self) -> float:
        """The change of loss that the gradient foretells for that step: -rate * |gradient|^2."""
        parts = [*self.gradient.weights, *self.gradient.biases]
        return -self.rate * float(sum((part**2).sum() for part in parts))

    def unit(self, level: int, unit: int) -> str:
        """A unit's short name."""
        return unit_name(self.network.sizes, level, unit)

    @property
    def ends(self) -> tuple[str, str]:
        """The two units that the weight joins."""
        weight = self.weight
        return self.unit(weight.layer, weight.source), self.unit(weight.layer + 1, weight.target)

    def svg(self) -> str:
        """The gradient through the net, as a picture."""
        return draw_gradient(self)

    _repr_svg_ = svg

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "sizes": list(self.network.sizes), "activation": self.network.activation,
            "loss_kind": self.network.loss_kind, "seed": self.seed,
            "input": self.x[0].tolist(), "target": self.target[0].tolist(),
            "output": self.trace.outputs[-1][0].tolist(), "loss": self.loss,
            "weight": str(self.weight), "from": self.ends[0], "to": self.ends[1],
            "value": float(self.network.weights[self.weight.layer][self.weight.target, self.weight.source]),
            "paths": [
                {"units": list(path.units), "factors": [f._asdict() for f in path.factors],
                 "product": path.product}
                for path in self.paths
            ],
            "by_hand": self.by_hand, "by_paths": self.by_paths, "by_autograd": self.autograd,
            "by_finite_differences": self.differences, "rate": self.rate, "loss_after": self.loss_after,
            "foretold_change": self.foretold,
            "weights": [w.tolist() for w in self.network.weights],
            "biases": [b.tolist() for b in self.network.biases],
            "weight_gradients": [g.tolist() for g in self.gradient.weights],
            "bias_gradients": [g.tolist() for g in self.gradient.biases],
        }  # fmt: skip

    def __str__(self) -> str:
        parts = [self._opening(), self._forward(), self._chain(), self._check(), self._bars(), self._step()]
        return "\n\n".join(parts)

    def _opening(self) -> str:
        network = self.network
        classifier = network.loss_kind == "cross-entropy"
        loss = "softmax and cross-entropy" if classifier else "half the squared miss"
        return (
            f"A net of {'-'.join(map(str, network.sizes))} units ({network.activation}), one example; the "
            f"loss is {loss}.\nFollowed here: weight {self.weight}, from {self.ends[0]} to {self.ends[1]}."
        )

    def _forward(self) -> str:
        """Every unit's sum, with its numbers."""
        lines = ["Forward: each unit adds up weight × input, adds its bias, and bends the sum z."]
        lines += [f"  {self.unit(0, i)} = {number(value)}" for i, value in enumerate(self.x[0])]
        for layer, (weight, bias) in enumerate(zip(self.network.weights, self.network.biases, strict=True)):
            name = self.network.activation_of(layer)
            for j, row in enumerate(weight):
                inputs = zip(row, self.trace.outputs[layer][0], strict=True)
                terms = " + ".join(f"{number(w)} × {number(x)}" for w, x in inputs)
                z, output = self.trace.sums[layer][0, j], self.trace.outputs[layer + 1][0, j]
                bent = "" if name == "linear" else f"   {name} gives {number(output)}"
                unit = self.unit(layer + 1, j)
                added = f"{terms} + {number(bias[j])}".replace("+ -", "- ")
                lines.append(f"  {unit}: z = {added} = {number(z)}{bent}")
        wanted = ", ".join(number(value) for value in self.target[0])
        return "\n".join([*lines, f"  target {wanted}, loss {number(self.loss)}"])

    def _chain(self) -> str:
        """The chain rule, path by path; the largest ones where there are many."""
        source, unit = self.ends
        shown = sorted(self.paths, key=lambda path: -abs(path.product))[:SHOWN_PATHS]
        lines = [
            f"Backward: how fast the loss grows with the weight {source}>{unit}, from the loss back to it."
        ]
        for path in shown:
            level = self.weight.layer + 1
            way = " > ".join(self.unit(level + i, u) for i, u in enumerate(path.units))
            names = " × ".join(factor.name for factor in path.factors)
            values = " × ".join(number(factor.value) for factor in path.factors)
            label = "dLoss/dw" if len(self.paths) == 1 else f"along {way} > loss"
            lines += [f"  {label} = {names}", f"    = {values} = {number(path.product)}"]
        left = len(self.paths) - len(shown)
        if left:
            rest = math.fsum(p.product for p in self.paths) - math.fsum(p.product for p in shown)
            lines.append(f"  along {left} further paths, smaller each: {number(rest)} together")
        if len(self.paths) > 1:
            lines.append(f"  dLoss/dw = the sum over all {len(self.paths)} paths = {number(self.by_paths)}")
        if self.by_hand == 0:
            lines.append(
                "  Nothing comes through: a relu on each of its paths is off, and flat where it is off."
            )
        return "\n".join(lines)

    def _check(self) -> str:
        walked = "the sum over the paths" if len(self.paths) > 1 else "the one path"
        rows = [("back-propagation by hand", self.by_hand), (walked, self.by_paths),
                ("PyTorch's autograd", self.autograd), ("finite differences", self.differences)]  # fmt: skip
        lines = ["The same number, four ways:"]
        for name, value in rows:
            apart = abs(value - self.by_hand)
            said = f"apart by {apart:.0e}" if apart else "the same bits"
            lines.append(f"  {name:<25} {value:+.10f}" + f"   {said}" * (name != rows[0][0]))
        return "\n".join(lines)

    def _bars(self) -> str:
        """Every weight's gradient as a bar, to the left where it is negative."""
        entries = [
            (abs(value), Weight(layer, source, unit), value)
            for layer, grads in enumerate(self.gradient.weights)
            for (unit, source), value in np.ndenumerate(grads)
        ]
        shown = sorted(entries, key=lambda entry: -entry[0])[:SHOWN_BARS]
        most = shown[0][0] or 1.0
        what = f"the {len(shown)} largest of {len(entries)}" if len(shown) < len(entries) else "every weight"
        lines = [f"The gradient of {what} (left: a larger weight lowers the loss; right: it raises it)"]
        for size, weight, value in sorted(shown, key=lambda entry: entry[1]):
            bar = "█" * max(round(BAR * size / most), int(size > 0))
            left, right = (bar, "") if value < 0 else ("", bar)
            ends = f"{self.unit(weight.layer, weight.source)}>{self.unit(weight.layer + 1, weight.target)}"
            mark = "  followed" if weight == self.weight else ""
            lines.append(f"  {ends:<10} {value:+.5f} {left:>{BAR}}│{right:<{BAR}}{mark}".rstrip())
        return "\n".join(lines)

    def _step(self) -> str:
        change = self.loss_after - self.loss
        return (
            f"One step: every weight and bias moves by -{number(self.rate)} × its gradient.\n"
            f"  loss {self.loss:.6f} -> {self.loss_after:.6f}, a change of {change:+.6f}; "
            f"the gradient foretold {self.foretold:+.6f}"
        )


def number(value: float) -> str:
    """Four digits that matter."""
    return f"{float(value):.4g}"


def _largest(gradient: Gradient) -> Weight:
    """The first layer's weight with the largest gradient: its paths cross the whole net."""
    unit, source = np.unravel_index(np.abs(gradient.weights[0]).argmax(), gradient.weights[0].shape)
    return Weight(0, int(source), int(unit))


def _check(sizes: tuple[int, ...], activation: str, loss: str) -> None:
    written = "-".join(map(str, sizes))
    if not 2 <= len(sizes) <= MOST_LAYERS or not all(1 <= n <= MOST_UNITS for n in sizes):
        raise Refused(
            f"sizes {written}: give 2 to {MOST_LAYERS} layers of 1 to {MOST_UNITS} units, such as 2-3-1"
        )
    if activation not in HIDDEN:
        raise Refused(
            f"activation '{activation}' is not one of {', '.join(HIDDEN)}{nearest(activation, HIDDEN)}"
        )
    if loss not in LOSSES:
        raise Refused(f"loss '{loss}' is not one of {', '.join(LOSSES)}{nearest(loss, LOSSES)}")
    if loss == "cross-entropy" and sizes[-1] < 2:
        raise Refused(f"sizes {written}: cross-entropy chooses between outputs; give at least 2 of them")
