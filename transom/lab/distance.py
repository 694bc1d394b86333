"""`transom lab distance`: how much of a token's gradient is left after so many tokens, for the whole family.

One lens for RNN, LSTM, GRU and Transformer: the gradient of the last token's loss with respect to the
embedding of each token before it, in float64, over several drawings of weights and random texts. Untrained
models show their wiring; folders of trained ones may be put beside them. Claims tested: recurrences lose the
gradient with distance, attention does not, unless its residual path is taken away and the stack is deep
(Hochreiter 1991; Pascanu et al. 2013; Dong et al. 2021). Read next: distance_figure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint.hub import resolve
from ..checkpoint.huggingface import load_model
from ..errors import Refused
from ..insight.gradients import DistanceCurve, distance_curve
from ..insight.hooks import Edit, edited
from ..intervals import Estimate, student
from ..model.build import Model, build
from ..model.config import ModelConfig
from ..output import writable, write_whole
from .distance_figure import draw_distance

DIM, VOCABULARY, ROWS = 64, 256, 4
FLAT = 0.002
"""Decades per token within which a curve counts as flat: less than a factor of 3 over 256 tokens."""


@dataclass(frozen=True)
class Member:
    """One line of the figure."""

    name: str
    make: Callable[[int], Model]
    """From a seed."""
    cut_residual: bool = False


def family(depth: int = 2, deep: int = 8) -> tuple[Member, ...]:
    """The members as they are initialised here, all as wide, and a Transformer without its residual path."""
    recurrent = [Member(cell.upper(), maker(cell, depth)) for cell in ("rnn", "gru", "lstm")]
    as_torch = [Member(f"{cell.upper()}, torch's init", maker(cell, depth, "torch"))
                for cell in ("rnn", "lstm")]  # fmt: skip
    return (
        *recurrent,
        *as_torch,
        Member("Transformer", maker(None, depth)),
        Member(f"Transformer, {deep} layers", maker(None, deep)),
        Member(f"{deep} layers, no residual", maker(None, deep), cut_residual=True),
    )


def maker(cell: Any, n_layers: int, init: str = "ours") -> Callable[[int], Model]:
    """What builds a member from a seed. init: `ours`, `torch`, or for an LSTM `chrono`, to remember long."""
    config = ModelConfig(
        vocab_size=VOCABULARY, dim=DIM, n_layers=n_layers, n_heads=4, n_kv_heads=4, head_dim=16,
        ffn_dim=4 * DIM, max_len=1 << 14, cell=cell,
    )  # fmt: skip

    def make(seed: int) -> Model:
        model = build(config, seed)
        generator = torch.Generator().manual_seed(seed)
        if init == "torch":  # uniform over +-1 / sqrt(D), no gate held open
            for weight in model.layers.parameters():
                nn.init.uniform_(weight, -(DIM**-0.5), DIM**-0.5, generator=generator)
        elif init == "chrono":
            remember_long(model, LONG, generator)
        return model

    return make


LONG = 256


@torch.no_grad()
def remember_long(model: Any, longest: int, generator: torch.Generator) -> None:
    """Biases of an LSTM's gates for memories of up to `longest` steps: forget log U(1, longest), input its
    negative (Tallec and Ollivier 2018).
    """
    for layer in model.layers:
        bias, width = layer.bias_ih_l0, layer.width  # torch's order of gates: i f g o
        forget = torch.empty(width).uniform_(1, longest - 1, generator=generator).log()
        bias[:width], bias[width : 2 * width] = -forget, forget


@dataclass(frozen=True)
class Line:
    """How the gradient falls for one member."""

    name: str
    norms: list[float]
    """Geometric mean over drawings, at distances 0, 1, 2 ..., of what it is at distance 0."""
    low: list[float]
    high: list[float]
    """The least and the largest over drawings."""
    slope: Estimate
    """Decades per token."""
    newest: float
    """The gradient norm at distance 0, of which the others are shares; its geometric mean."""

    @property
    def half_distance(self) -> float:
        """Tokens over which half is lost."""
        return 0.30103 / -self.slope.value if self.slope.value < 0 else float("inf")

    @property
    def says(self) -> str:
        """In words."""
        if self.slope.high < -FLAT:
            return f"vanishes with distance: half is lost in {self.half_distance:.1f} tokens"
        if self.slope.low > FLAT:
            return "grows with distance"
        flat = self.slope.low >= -FLAT and self.slope.high <= FLAT
        return "does not depend on distance" if flat else "undecided: more drawings would tell"


@dataclass(frozen=True)
class Distances:
    """All members, one line each."""

    lines: tuple[Line, ...]
    protocol: str
    caveat: str = DistanceCurve.caveat

    def __str__(self) -> str:
        rows = [f"{line.name:<26} {line.slope.value:+.4f} ({line.slope.low:+.4f} to {line.slope.high:+.4f})"
                f"  {line.newest:.0e}  {line.norms[-1]:.0e}  {line.says}" for line in self.lines]  # fmt: skip
        far = len(self.lines[0].norms) - 1
        head = f"{'':<26} decades per token (95%)        newest  at {far}"
        return "\n".join([self.protocol, head, *rows, f"Not shown: {self.caveat}."])

    def to_dict(self) -> dict[str, Any]:
        lines = [{**vars(line), "slope": line.slope.to_dict(), "says": line.says} for line in self.lines]
        return {"protocol": self.protocol, "lines": lines, "caveat": self.caveat}


def distance(
    models: Sequence[str] = (), *, length: int = 128, drawings: int = 6, out: Path | None = None
) -> Distances:
    """Measure the family, and the models of some folders, over `length` tokens; draw into `out` (PNG).

    drawings: of weights and texts, for the interval. Raises `Refused`.
    """
    if length < 8 or drawings < 2:
        raise Refused(
            f"length {length}, drawings {drawings}: a slope with an interval needs at least 8 and 2"
        )
    if out is not None:
        writable(out)
    members = [*family(), *(Member(Path(folder).name, _loader(folder)) for folder in models)]
    lines = tuple(measure(member, length, drawings) for member in members)
    protocol = (f"gradient of the last token's loss at the embedding of each token before it, {length} "
                f"random tokens, {drawings} drawings, width {DIM}, untrained")  # fmt: skip
    if models:
        protocol += " but for " + ", ".join(Path(folder).name for folder in models)
    found = Distances(lines, protocol)
    if out is not None:
        draw_distance(found, out)
        write_whole(out.with_suffix(".json"), json.dumps(found.to_dict(), indent=2))
    return found


def _loader(folder: str) -> Callable[[int], Model]:
    model: Any = load_model(resolve(folder)).eval()
    if model.config.kind != "decoder":
        raise Refused(f"{folder} is an {model.config.kind}; the loss of the last token is that of a decoder")
    return lambda _: model


def measure(member: Member, length: int, drawings: int) -> Line:
    """One member over several drawings of weights and texts."""
    curves, slopes, newest = [], [], []
    for seed in range(drawings):
        curve = curve_of(member, length, seed)
        curves.append((curve.mean / curve.mean[0]).numpy())
        slopes.append(curve.slope)
        newest.append(float(curve.mean[0]))
    all_of_them = np.stack(curves)
    tiny = np.finfo(np.float64).tiny
    middle = np.exp(np.log(np.maximum(all_of_them, tiny)).mean(0))
    return Line(member.name, middle.tolist(), all_of_them.min(0).tolist(), all_of_them.max(0).tolist(),
                student(np.array(slopes)), float(np.exp(np.log(newest).mean())))  # fmt: skip


def curve_of(member: Member, length: int, seed: int) -> DistanceCurve:
    """One drawing of weights and texts."""
    model = member.make(seed).double().eval()
    generator = torch.Generator().manual_seed(seed)
    texts = torch.randint(model.config.vocab_size, (ROWS, length + 2), generator=generator)
    with edited(without_residual(model) if member.cut_residual else []):
        return distance_curve(model, texts, last_only=True)


def without_residual(model: nn.Module) -> list[Edit]:
    """Each branch takes away what the residual path brings, so that a block passes on its branches alone."""
    edits: list[Edit] = []
    for block in model.layers:  # type: ignore[union-attr]
        for norm, branch in ((block.attn_norm, block.attn), (block.ffn_norm, block.ffn)):
            came: list[Tensor] = []
            edits.append(Edit(norm, "in", came.append))
            edits.append(Edit(branch, "out", lambda out, came=came: out - came.pop()))
    return edits
