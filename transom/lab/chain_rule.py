"""The chain rule for one weight, factor by factor: every path from the weight to the loss, with its numbers.

A weight of an early layer reaches the loss along several paths, one for each way through the layers after it.
A path's share of the gradient is the product of the slopes along it; the gradient is the sum over the paths.
Back-propagation gives the same number without walking each path: paths that share a part share its work.
Read next: backprop.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import Refused
from .network import Network, Numbers, Trace


class Weight(NamedTuple):
    """Which weight: of layer `layer`, from unit `source` of the layer below to unit `target`; all from 0."""

    layer: int
    source: int
    target: int

    @classmethod
    def parse(cls, text: str, sizes: Sequence[int]) -> Weight:
        """`0:1>2` is layer 0, from unit 1 to unit 2. Raises `Refused` for what a net of `sizes` has not."""
        match = re.fullmatch(r"(\d+):(\d+)>(\d+)", text.strip())
        if match is None:
            raise Refused(f"weight '{text}' is not written LAYER:FROM>TO; 0:1>2 is layer 0, unit 1 to unit 2")
        weight = cls(*map(int, match.groups()))
        n_layers = len(sizes) - 1
        if weight.layer >= n_layers:
            raise Refused(f"weight '{text}': layer {weight.layer} of a net with layers 0 to {n_layers - 1}")
        for unit, n_units, word in (
            (weight.source, sizes[weight.layer], "from"),
            (weight.target, sizes[weight.layer + 1], "to"),
        ):
            if unit >= n_units:
                raise Refused(
                    f"weight '{text}': {word} unit {unit}, but there the net has {n_units} unit"
                    f"{'s' * (n_units > 1)}, numbered from 0"
                )
        return weight

    def __str__(self) -> str:
        return f"{self.layer}:{self.source}>{self.target}"


class Factor(NamedTuple):
    """One slope on the way: its name and its value."""

    name: str
    value: float


@dataclass(frozen=True)
class Path:
    """One way from a weight to the loss."""

    units: tuple[int, ...]
    """The units it goes through: first the one that the weight leads to, last an output."""
    factors: tuple[Factor, ...]
    """From the loss back to the weight, as the chain rule is written."""

    @property
    def product(self) -> float:
        """This path's share of the gradient."""
        return math.prod(factor.value for factor in self.factors)


def unit_name(sizes: Sequence[int], level: int, unit: int) -> str:
    """x1, h2 (h1.2 where there are several hidden layers), out (out0 where there are several outputs)."""
    if level == 0:
        return f"x{unit}"
    if level == len(sizes) - 1:
        return "out" if sizes[-1] == 1 else f"out{unit}"
    return f"h{unit}" if len(sizes) == 3 else f"h{level}.{unit}"


def paths(network: Network, trace: Trace, target: Numbers, weight: Weight) -> list[Path]:
    """Every path of `weight` to the loss, for the one example of `trace`; their products sum to dLoss/dw."""
    later = [range(n) for n in network.sizes[weight.layer + 2 :]]
    return [
        _path(network, trace, target, weight, (weight.target, *rest)) for rest in itertools.product(*later)
    ]


def _path(network: Network, trace: Trace, target: Numbers, weight: Weight, units: tuple[int, ...]) -> Path:
    """Multiply from the loss backwards: the loss's slope, then a unit's slope and a weight in turn."""
    sizes, last = network.sizes, network.n_layers - 1
    names = [unit_name(sizes, weight.layer + 1 + i, unit) for i, unit in enumerate(units)]
    miss = float(trace.outputs[-1][0, units[-1]] - target[0, units[-1]])
    fused = network.activation_of(last) == "softmax"
    factors = [Factor(f"dLoss/dz({names[-1]})" if fused else f"dLoss/d{names[-1]}", miss)]
    for i in reversed(range(len(units))):
        layer = weight.layer + i
        if not (fused and layer == last):
            factors.append(Factor(f"d{names[i]}/dz", float(network.slopes(trace, layer)[0, units[i]])))
        if i > 0:
            value = float(network.weights[layer][units[i], units[i - 1]])
            factors.append(Factor(f"w({names[i - 1]}>{names[i]})", value))
    source = unit_name(sizes, weight.layer, weight.source)
    factors.append(Factor(source, float(trace.outputs[weight.layer][0, weight.source])))
    return Path(units, tuple(factors))
