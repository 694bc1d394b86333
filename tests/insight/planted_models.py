"""Models whose circuit is known because it was written by hand: what every view must find.

Built from our own `ModelConfig` and `Transformer`, so that a view of one goes through the code that it goes
through for any model; only the weights are set, not learned. The residual stream is cut into rooms (which
token, which position, which token before, what is the answer), and each planted part reads one room and
writes another. All other heads are bystanders: they attend, and write into a room that nobody reads.

* `induction`: "... a b ... a" goes on with b. One head looks at the token before, a later one looks for
  whoever came after this token (Elhage et al. 2021; Olsson et al. 2022).
* `lookup`: "a=2 b=0 a?" is answered by 2. One head with grouped keys finds the pair, and one of several
  experts turns what it fetched into a word.

Read next: ablation, patching.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transom.model.config import Experts, ModelConfig
from transom.model.transformer import Transformer

SHARP = 9.0
"""By how much the score of the key that is looked for beats the others, in nats."""
LOUD = 12.0
"""The gain of the answer's logit."""
WHISPER = 0.1
"""The size of what bystanders write."""
STEADY = 3.0
"""What one channel of every token holds: with it the norms hardly change when a room is filled."""
NOISE = 8
"""Channels that bystanders write to."""

Place = tuple[int, int]


@dataclass(frozen=True)
class Example:
    """One text, and what is true of it by construction."""

    tokens: Tensor
    """(L,) int64; the answer comes after the last."""
    answer: int
    foil: int
    """What the corrupt text is answered by."""
    corrupt: Tensor
    """(L,) the same text but for one token, `decides`, which changes the answer."""
    decides: int
    """The position of the token that is the answer, or holds it."""
    needs: tuple[int, ...]
    """Positions without which the answer is lost."""
    looks: dict[str, Place]
    """By planted head: at which position it stands and at which it must look."""
    expert: Place | None = None
    """(layer, expert) that must turn what was found into the answer."""


@dataclass(frozen=True)
class PlantedModel:
    """A model, the names of its tokens, and where its parts were planted."""

    model: Transformer
    words: tuple[str, ...]
    heads: dict[str, Place]
    """(layer, head) by what it does."""
    answers_at: int
    """The layer after which the answer stands in the residual stream."""
    example: Callable[[int], Example] = field(repr=False)
    """A text, from a seed."""


@dataclass(frozen=True)
class Rooms:
    """Which channels of the residual stream hold what."""

    sizes: dict[str, int]

    @property
    def width(self) -> int:
        return sum(self.sizes.values())

    def __getitem__(self, name: str) -> slice:
        start = 0
        for room, size in self.sizes.items():
            if room == name:
                return slice(start, start + size)
            start += size
        raise KeyError(name)


@torch.no_grad()
def induction(n_words: int = 12, length: int = 24) -> PlantedModel:
    """A model that goes on as it went on before: `n_words` words, texts of up to `length` tokens."""
    words = ("<s>", *(chr(ord("a") + i) for i in range(n_words)))
    n = len(words)
    rooms = Rooms(dict(steady=1, token=n, position=length, before=n, answer=n, noise=NOISE))
    config = _config(rooms, len(words), n_layers=4, max_len=length, position="learned", n_kv_heads=4,
                     head_dim=max(length, len(words)))  # fmt: skip
    model = _silent(config, rooms)
    model.embed.weight[:, rooms["token"]] = torch.eye(len(words))
    model.position_embed.weight[:, rooms["position"]] = torch.eye(length)  # type: ignore[index]
    before = torch.diag(torch.ones(length - 1), -1)  # position i asks for position i - 1
    plant(model, rooms, (1, 2), query=("position", before), key="position", value="token", to="before")
    plant(model, rooms, (2, 0), query=("token", torch.eye(n)), key="before", value="token", to="answer")
    model.head.weight[:, rooms["answer"]] = LOUD * torch.eye(len(words))  # type: ignore[index]

    def example(seed: int) -> Example:
        rng = np.random.default_rng(seed)
        n = int(rng.integers(6, n_words))
        drawn = rng.permutation(np.arange(1, n_words + 1))
        text, other = drawn[:n], int(drawn[n])
        i = int(rng.integers(1, n - 2))  # the word that comes again stands at position i + 1
        tokens = torch.tensor([0, *text.tolist(), int(text[i])])
        corrupt = tokens.clone()
        corrupt[i + 2] = other
        looks = {"previous token": (i + 2, i + 1), "induction": (len(tokens) - 1, i + 2)}
        needs = (i + 1, i + 2, len(tokens) - 1)
        return Example(tokens, int(text[i + 1]), other, corrupt, i + 2, needs, looks)

    return PlantedModel(model, words, {"previous token": (1, 2), "induction": (2, 0)}, 2, example)


@torch.no_grad()
def lookup(n_keys: int = 6, n_values: int = 4) -> PlantedModel:
    """A model that answers `a?` by the value that stands beside `a` in the text before."""
    keys, values = [chr(ord("a") + i) for i in range(n_keys)], [str(i) for i in range(n_values)]
    words = ("<s>", *(f"{k}={v}" for k in keys for v in values), *(f"{k}?" for k in keys), *values)
    first_query, first_value = 1 + n_keys * n_values, 1 + n_keys * n_values + n_keys
    rooms = Rooms(dict(steady=1, start=1, key=n_keys, value=n_values, query=n_keys, fetched=n_values,
                       answer=n_values, noise=NOISE))  # fmt: skip
    experts = Experts(n_values, 2, ffn_dim=n_values, score="softmax", balance="none", first_dense=1)
    config = _config(rooms, len(words), n_layers=2, max_len=64, position="none", n_kv_heads=2,
                     head_dim=max(n_keys, n_values), experts=experts)  # fmt: skip
    model = _silent(config, rooms)
    embed = model.embed.weight
    embed[0, rooms["start"]] = 1.0
    pairs = embed[1:first_query].view(n_keys, n_values, -1)
    pairs[:, :, rooms["key"]] = torch.eye(n_keys)[:, None]
    pairs[:, :, rooms["value"]] = torch.eye(n_values)
    embed[first_query:first_value, rooms["query"]] = torch.eye(n_keys)
    embed[first_value:, rooms["noise"]] = torch.eye(n_values, NOISE)
    plant(model, rooms, (0, 3), query=("query", torch.eye(n_keys)), key="key", value="value", to="fetched")
    knows = torch.randperm(n_values, generator=torch.Generator().manual_seed(1))  # expert of each value
    mixture: Any = model.layers[1].ffn
    for value, expert in enumerate(knows.tolist()):
        mixture.router.weight[expert, rooms["fetched"].start + value] = SHARP
        mixture.experts.up_proj[expert, value, rooms["fetched"].start + value] = 1.0
        mixture.experts.down_proj[expert, rooms["answer"].start + value, value] = 1.0
    model.head.weight[first_value:, rooms["answer"]] = LOUD * torch.eye(n_values)  # type: ignore[index]

    def example(seed: int) -> Example:
        rng = np.random.default_rng(seed)
        order, held = rng.permutation(n_keys), rng.integers(n_values, size=n_keys)
        at = int(rng.integers(n_keys))
        key, value = int(order[at]), int(held[at])
        other = int((value + rng.integers(1, n_values)) % n_values)
        pair = [1 + int(k) * n_values + int(v) for k, v in zip(order, held, strict=True)]
        tokens = torch.tensor([0, *pair, first_query + key])
        corrupt = tokens.clone()
        corrupt[at + 1] = 1 + key * n_values + other
        last = len(tokens) - 1
        return Example(tokens, first_value + value, first_value + other, corrupt, at + 1, (at + 1, last),
                       {"lookup": (last, at + 1)}, (1, int(knows[value])))  # fmt: skip

    return PlantedModel(model, words, {"lookup": (0, 3)}, 1, example)


def plant(
    model: Transformer, rooms: Rooms, at: Place, *, query: tuple[str, Tensor], key: str, value: str, to: str
) -> None:
    """Make the head `at` look from what stands in one room at who has it in another, and copy a third.

    query: a room, and the matrix (n, n) whose row i says what entry i looks for in the room `key`.
    """
    layer, head = at
    attn: Any = model.layers[layer].attn
    width, group = model.config.head_dim, head // (model.config.n_heads // model.config.n_kv_heads)
    own, shared = head * width, group * width
    for part, first in ((attn.q_proj, own), (attn.k_proj, shared), (attn.v_proj, shared)):
        part.weight[first : first + width] = 0.0
    attn.o_proj.weight[:, own : own + width] = 0.0
    asks, gives = query[1].shape[0], rooms.sizes[value]
    attn.q_proj.weight[own : own + asks, rooms[query[0]]] = SHARP * query[1].T
    attn.k_proj.weight[shared : shared + asks, rooms[key]] = torch.eye(asks)
    attn.v_proj.weight[shared : shared + gives, rooms[value]] = torch.eye(gives)
    attn.o_proj.weight[rooms[to], own : own + gives] = torch.eye(gives)


def _config(rooms: Rooms, vocab_size: int, **other: Any) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size, dim=rooms.width, n_heads=4, ffn_dim=4, gated=False, activation="relu",
        attn_scale=1.0, tie_embeddings=False, **other,
    )  # fmt: skip


def _silent(config: ModelConfig, rooms: Rooms) -> Transformer:
    """A model that says nothing, with bystander heads that whisper into a room that nobody reads."""
    model = Transformer(config, seed=0).eval()
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):
            weight.fill_(((STEADY**2 + 2) / config.dim) ** 0.5)  # what holds two things keeps its size
        elif not (name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))):
            weight.zero_()
    model.embed.weight[:, rooms["steady"]] = STEADY
    generator = torch.Generator().manual_seed(0)
    for block in model.layers:
        attn: Any = block.attn
        out = attn.o_proj.weight
        out[rooms["noise"]] = WHISPER * torch.randn(NOISE, out.shape[1], generator=generator)
    return model
