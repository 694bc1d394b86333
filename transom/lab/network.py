"""A feed-forward net on plain numbers, with back-propagation written out by hand.

Nothing here differentiates by itself. `forward` keeps every number that it computes; `backward` walks the
same road in the other direction and multiplies by one slope after the other. All of it is float64 in numpy.
Shapes: B examples; layer l reads n_l numbers and gives n_(l+1).
Source: Rumelhart, Hinton and Williams 1986. Read next: chain_rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Activation:
    """What a unit makes of its weighted sum z, and how steep that is there."""

    value: Callable[[Numbers], Numbers]
    """The output, from z."""
    slope: Callable[[Numbers], Numbers]
    """d output / d z, from z."""


def sigmoid(z: Numbers) -> Numbers:
    """1 / (1 + exp(-z)), in a form that does not overflow."""
    return 0.5 * (1 + np.tanh(z / 2))


ACTIVATIONS = {
    "tanh": Activation(np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "sigmoid": Activation(sigmoid, lambda z: sigmoid(z) * (1 - sigmoid(z))),
    "relu": Activation(lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(np.float64)),
    "linear": Activation(lambda z: z, np.ones_like),
}
HIDDEN = ("tanh", "sigmoid", "relu")
"""What the units between may be: a linear one would add nothing to the layer after it."""
AT_OUTPUT = {"tanh": "tanh", "sigmoid": "sigmoid", "relu": "linear"}
"""What the outputs are, by what the hidden units are: a relu there could give nothing below zero."""


def softmax(z: Numbers) -> Numbers:
    """Probabilities (B, n) of scores (B, n)."""
    raised = np.exp(z - z.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Trace:
    """What a forward pass computed, which is what the backward pass needs."""

    outputs: tuple[Numbers, ...]
    """outputs[0] is the input (B, n_0), outputs[l + 1] what layer l gave (B, n_(l+1))."""
    sums: tuple[Numbers, ...]
    """sums[l]: the weighted sums z of layer l before the activation, (B, n_(l+1))."""


@dataclass(frozen=True)
class Gradient:
    """How fast the loss grows with every number of the net."""

    weights: tuple[Numbers, ...]
    biases: tuple[Numbers, ...]
    sums: tuple[Numbers, ...]
    """dLoss/dz of every unit, (B, n_(l+1)) for layer l."""


@dataclass(frozen=True)
class Network:
    """Dense layers: each gives activation(x W^T + b), and the last one meets the loss.

    weights[l] is (n_(l+1), n_l), biases[l] is (n_(l+1),). loss `squared`: half the squared distance to the
    target. loss `cross-entropy`: softmax of the last sums, then -log of the target's probability.
    """

    weights: tuple[Numbers, ...]
    biases: tuple[Numbers, ...]
    activation: str = "tanh"
    loss_kind: str = "squared"

    @classmethod
    def random(cls, sizes: Sequence[int], activation: str, loss_kind: str, seed: int) -> Network:
        """A net of `sizes` units, with numbers of two decimals, so that a reader can redo every sum."""
        rng = np.random.default_rng(seed)
        pairs = list(zip(sizes[:-1], sizes[1:], strict=True))
        weights = [np.round(rng.uniform(-1, 1, (n, m)) * np.sqrt(3 / m), 2) for m, n in pairs]
        biases = [np.round(rng.uniform(-0.3, 0.3, n), 2) for _, n in pairs]
        return cls(tuple(weights), tuple(biases), activation, loss_kind)

    @property
    def n_layers(self) -> int:
        """Layers of weights: one less than layers of units."""
        return len(self.weights)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Units per layer, inputs first."""
        return self.weights[0].shape[1], *(len(weight) for weight in self.weights)

    def activation_of(self, layer: int) -> str:
        """The name of what layer `layer` does to its sums; `softmax` at the end of a classifier."""
        if layer < self.n_layers - 1:
            return self.activation
        return "softmax" if self.loss_kind == "cross-entropy" else AT_OUTPUT[self.activation]

    def forward(self, x: Numbers) -> Trace:
        """Run the examples x (B, n_0) through the net and keep what was computed on the way."""
        outputs, sums = [x], []
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            z = outputs[-1] @ weight.T + bias
            name = self.activation_of(layer)
            sums.append(z)
            outputs.append(softmax(z) if name == "softmax" else ACTIVATIONS[name].value(z))
        return Trace(tuple(outputs), tuple(sums))

    def loss(self, trace: Trace, target: Numbers) -> float:
        """The mean loss over the examples; target (B, n_last), for cross-entropy a probability per class."""
        if self.loss_kind == "squared":
            return float(0.5 * ((trace.outputs[-1] - target) ** 2).sum(axis=1).mean())
        z = trace.sums[-1] - trace.sums[-1].max(axis=1, keepdims=True)
        log_probability = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        return float(-(target * log_probability).sum(axis=1).mean())

    def slopes(self, trace: Trace, layer: int) -> Numbers:
        """d output / d z of every unit of a layer (B, n_(l+1)); not for softmax, where units share theirs."""
        return ACTIVATIONS[self.activation_of(layer)].slope(trace.sums[layer])

    def backward(self, trace: Trace, target: Numbers) -> Gradient:
        """Back-propagation: how fast the mean loss grows with every weight and bias.

        Start at the loss and go back layer by layer, carrying dLoss/dz, what each unit's sum is to blame for.
        """
        d_weights, d_biases, d_sums = [], [], []

        # At the loss. Half a squared distance has the slope (output - target), then comes the activation.
        # Softmax and cross-entropy together have the slope (probability - target) already.
        d_sum = (trace.outputs[-1] - target) / len(target)
        if self.loss_kind == "squared":
            d_sum = d_sum * self.slopes(trace, self.n_layers - 1)

        for layer in reversed(range(self.n_layers)):
            # z = sum of weight * input + bias: a weight's slope is the input it multiplies, a bias's is 1.
            d_weights.append(d_sum.T @ trace.outputs[layer])
            d_biases.append(d_sum.sum(axis=0))
            d_sums.append(d_sum)
            if layer > 0:
                # What this layer read reaches the loss through every unit that read it: a sum over them.
                d_input = d_sum @ self.weights[layer]
                # It came out of the layer below through that layer's activation.
                d_sum = d_input * self.slopes(trace, layer - 1)

        return Gradient(tuple(d_weights[::-1]), tuple(d_biases[::-1]), tuple(d_sums[::-1]))

    def step(self, gradient: Gradient, rate: float) -> Network:
        """The net after one step of gradient descent: every number moves against its gradient."""
        weights = [w - rate * g for w, g in zip(self.weights, gradient.weights, strict=True)]
        biases = [b - rate * g for b, g in zip(self.biases, gradient.biases, strict=True)]
        return Network(tuple(weights), tuple(biases), self.activation, self.loss_kind)
