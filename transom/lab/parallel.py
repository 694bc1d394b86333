"""Claim 2: what a token costs, by the length of the text: while learning, all at once, and while writing.

The only claim about time, so its numbers are of this machine and of nothing else. Tokens of a step are the
same whatever the length; members and lengths are timed in turns. Read next: tiny.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..insight.html import Markup
from ..intervals import Estimate, student
from ..model.build import build
from ..model.config import ModelConfig
from .claim import Point, Points, Settings, values
from .plot import Series, figure, lines

MEMBERS = {"Transformer": None, "LSTM": "lstm", "GRU": "gru", "RNN": "rnn"}
LENGTHS = (16, 64, 128, 512)
WRITTEN = (32, 480)
"""Positions at which writing a token is timed."""
N_SEEDS = (5, 12)


def arms(quick: bool) -> dict[str, dict[str, Any]]:
    return {"in turns": {"tokens": 2048, "dim": 64, "repeats": 2 if quick else 5}}


def measure(arm: Settings, seeds: Sequence[int]) -> list[Point]:
    """Of every seed one round: each member learns at each length, and writes."""
    return [_round(arm, seed) for seed in seeds]


def _round(arm: Settings, seed: int) -> Point:
    point: Point = {}
    jobs = [(name, length) for name in MEMBERS for length in LENGTHS]
    for i in np.random.default_rng(seed).permutation(len(jobs)):
        name, length = jobs[i]
        step = _step(_model(name, arm["dim"], seed), arm["tokens"], length)
        point[f"{name}, {length}"] = 1e3 * _seconds(step, arm["repeats"]) / arm["tokens"]
    for name in MEMBERS:
        for at, spent in zip(WRITTEN, _writing(_model(name, arm["dim"], seed), arm["repeats"]), strict=True):
            point[f"{name} writes, {at}"] = 1e3 * spent
    return point


def _model(name: str, dim: int, seed: int) -> Any:
    """Two layers each, as wide, and without the vocabulary about as large."""
    cell: Any = MEMBERS[name]
    config = ModelConfig(vocab_size=64, dim=dim, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=dim // 4,
                         ffn_dim=dim * 4 // 3, max_len=max(LENGTHS), cell=cell)  # fmt: skip
    return build(config, seed)


def _step(model: Any, tokens: int, length: int) -> Callable[[], None]:
    rows = torch.randint(64, (tokens // length, length))

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model.logits(model(rows)).logsumexp(-1).sum().backward()

    return step


def _seconds(work: Callable[[], None], repeats: int) -> float:
    """The median of several runs after one that warms up."""
    work()
    spent = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        spent.append(time.perf_counter() - started)
    return float(np.median(spent))


@torch.no_grad()
def _writing(model: Any, repeats: int) -> list[float]:
    """Seconds for one more token of eight texts after so many."""
    model.eval()
    found = []
    for at in WRITTEN:
        state = model.new_state(8, at + 2 + repeats)
        model(torch.zeros(8, at, dtype=torch.int64), state=state)
        token = torch.zeros(8, 1, dtype=torch.int64)
        found.append(_seconds(lambda state=state, token=token: model(token, state=state), repeats))
    return found


def read(points: Points) -> dict[str, Estimate]:
    found = points["in turns"]

    def ratio(a: str, b: str) -> Estimate:
        """The mean of the logarithm base 2 of a over b."""
        return student(np.log2(values(found, a) / values(found, b)))

    growth = {f"doublings of a token's cost from 16 to 512, {name}": ratio(f"{name}, 512", f"{name}, 16")
              for name in MEMBERS}  # fmt: skip
    early, late = WRITTEN
    writing = {f"doublings of a written token's cost from 32 to 480, {name}":
               ratio(f"{name} writes, {late}", f"{name} writes, {early}") for name in MEMBERS}  # fmt: skip
    dearer = {f"doublings by which an LSTM's token costs more at {length}":
              ratio(f"LSTM, {length}", f"Transformer, {length}") for length in LENGTHS}  # fmt: skip
    grown = {name: np.log2(values(found, f"{name}, 512") / values(found, f"{name}, 16")) for name in MEMBERS}
    apart = student(grown["LSTM"] - grown["Transformer"])
    return {**growth, "that of an LSTM less that of a Transformer": apart, **dearer, **writing}


def draw(points: Points) -> Markup:
    found = points["in turns"]
    learning = [Series(name, LENGTHS, [values(found, f"{name}, {n}").tolist() for n in LENGTHS])
                for name in MEMBERS]  # fmt: skip
    writing = [Series(name, WRITTEN, [values(found, f"{name} writes, {n}").tolist() for n in WRITTEN])
               for name in MEMBERS]  # fmt: skip
    return figure(
        lines(learning, title="Learning: what a token costs", across="tokens of a text", up="ms per token",
              log_x=True, log_y=True),
        lines(writing, title="Writing: what the next token costs", across="tokens before it", log_x=True,
              up="ms for one more token of 8 texts", bottom=0.0),
        label="Time per token over the length of the text",
    )  # fmt: skip
