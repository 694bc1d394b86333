"""Claim 9: do documents in the context keep a model from making things up? In a world that we invented.

600 things with two names and four facts each: some met often while learning, most rarely, a third never. The
reader learns facts by heart, and to answer from documents about other things or to say that they do not tell.
A document is one position, the sum of its words, so that reading takes one layer. Read next: tiny.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..insight.html import Markup
from ..intervals import Estimate
from ..model.losses import IGNORE
from .claim import Plant, Point, Points, Settings, mean_share, share_gap, values
from .plot import figure, stacks
from .tiny import Draw, Net, Rows, Seeds, shape, thinned

NAMES, RELATIONS, VALUES, SLOTS = 30, 4, 40, 3
FIRST, LAST, RELATION, VALUE = 0, NAMES, 2 * NAMES, 2 * NAMES + RELATIONS
ASK = VALUE + VALUES
UNKNOWN, NOTHING = ASK + 1, ASK + 2
VOCABULARY = ASK + 3
WORLD, MET, OFTEN = 600, 400, 40
"""Things of the world, those met while learning, those met often; the other 300 names are only read of."""
BUCKETS = {"often met": (0, OFTEN), "rarely met": (OFTEN, MET), "never met": (MET, WORLD)}
CONDITIONS = (
    "closed book", "one document", "three documents", "the right document", "another's document",
    "two that contradict",
)  # fmt: skip
MISSING = 0.05
"""The share of facts that no document holds."""
ANSWERS = ("right", "does not know", "made up")


@dataclass(frozen=True)
class World:
    """What is so, of one seed."""

    names: Tensor
    """(900, 2): first and last name of each thing."""
    facts: Tensor
    """(600, 4): the value of each relation."""
    documents: Tensor
    """(N, 4): what can be retrieved: names, relation, value."""


def world(seed: int, false_documents: bool) -> World:
    generator = torch.Generator().manual_seed(10_000 + seed)
    order = torch.randperm(NAMES * NAMES, generator=generator)
    names = torch.stack((FIRST + order // NAMES, LAST + order % NAMES), 1)
    facts = VALUE + torch.randint(VALUES, (WORLD, RELATIONS), generator=generator)
    told = facts
    if false_documents:  # each says another value than the true one
        told = VALUE + (facts - VALUE + torch.randint(1, VALUES, facts.shape, generator=generator)) % VALUES
    thing, relation = torch.meshgrid(torch.arange(WORLD), torch.arange(RELATIONS), indexing="ij")
    every = torch.cat((names[thing.flatten()], (RELATION + relation).reshape(-1, 1), told.reshape(-1, 1)), 1)
    return World(names, facts, every[torch.rand(len(every), generator=generator) >= MISSING])


def arms(quick: bool) -> dict[str, dict[str, Any]]:
    return {"reader": {"steps": 1500 if quick else 5000, "rows": 128, "rate": 3e-3, "false documents": False,
                       "asked": 300}}  # fmt: skip


def lesson(of: World, rows: int) -> Draw:
    """Rows of three documents and a question, (B, 4, 4); two in five have no document and ask by heart."""
    often = 1 / torch.arange(1, MET + 1, dtype=torch.float)  # Zipf

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        kind = torch.rand(rows, generator=generator)
        by_heart, told = kind < 0.4, kind < 0.75
        known = torch.multinomial(often, rows, True, generator=generator)
        other = torch.randint(WORLD, NAMES * NAMES, (rows,), generator=generator)
        thing = torch.where(by_heart, known, other)
        relation = torch.randint(RELATIONS, (rows,), generator=generator)
        value = VALUE + torch.randint(VALUES, (rows,), generator=generator)
        value = torch.where(by_heart, of.facts[thing.clamp(max=WORLD - 1), relation], value)
        slots = torch.stack([_unlike(of, thing, relation, generator) for _ in range(SLOTS)], 1)
        slots[:, 1:][torch.rand(rows, SLOTS - 1, generator=generator) < 0.3] = NOTHING
        place = torch.randint(SLOTS, (rows,), generator=generator)
        fact = torch.cat((of.names[thing], RELATION + relation[:, None], value[:, None]), 1)
        slots[torch.arange(rows)[told], place[told]] = fact[told]
        slots[by_heart] = NOTHING
        return _asked(slots, of.names[thing], relation, torch.where(told, value, UNKNOWN))

    return draw


def _unlike(of: World, thing: Tensor, relation: Tensor, generator: torch.Generator) -> Tensor:
    """A document about something else, (B, 4): another fact of the same thing, or the same of another."""
    rows = len(thing)
    shift = torch.randint(1, RELATIONS, (rows,), generator=generator)
    same = torch.rand(rows, generator=generator) < 0.5
    away = torch.randint(1, NAMES * NAMES - WORLD, (rows,), generator=generator)
    others = WORLD + (thing - WORLD + away) % (NAMES * NAMES - WORLD)
    names = of.names[torch.where(same, thing, others)]
    kind = RELATION + torch.where(same, (relation + shift) % RELATIONS, relation)
    value = VALUE + torch.randint(VALUES, (rows,), generator=generator)
    return torch.cat((names, kind[:, None], value[:, None]), 1)


def _asked(slots: Tensor, names: Tensor, relation: Tensor, answer: Tensor) -> tuple[Tensor, Tensor]:
    question = torch.cat((names, RELATION + relation[:, None], torch.full_like(relation, ASK)[:, None]), 1)
    targets = torch.full((len(slots), SLOTS + 1), IGNORE)
    targets[:, -1] = answer
    return torch.cat((slots, question[:, None]), 1), targets


def retrieve(of: World, names: Tensor, relation: Tensor, generator: torch.Generator) -> Tensor:
    """The three documents that share most words with each question, (B, 3, 4); of equals any."""
    found = []
    for name, kind in zip(names, relation, strict=True):
        shared = (of.documents[:, :2] == name).sum(1) + (of.documents[:, 2] == RELATION + kind)
        found.append(of.documents[(shared + torch.rand(len(shared), generator=generator) / 2).topk(SLOTS)[1]])
    return torch.stack(found)


def questions(of: World, bucket: str, n: int, seed: int) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
    """The same questions under every condition, and how often retrieval found the document that answers."""
    generator = torch.Generator().manual_seed(20_000 + seed)
    first, end = BUCKETS[bucket]
    thing = torch.randint(first, end, (n,), generator=generator)
    relation = torch.randint(RELATIONS, (n,), generator=generator)
    names, answer = of.names[thing], of.facts[thing, relation]
    near = retrieve(of, names, relation, generator)
    right = (near[:, 0, :2] == names).all(1) & (near[:, 0, 2] == RELATION + relation)
    documents = {name: torch.full((n, SLOTS, 4), NOTHING) for name in CONDITIONS}
    documents["one document"][:, 0] = near[:, 0]
    documents["three documents"] = near
    fact = torch.cat((names, RELATION + relation[:, None], answer[:, None]), 1)
    documents["the right document"][:, 0] = fact
    documents["another's document"][:, 0] = near.roll(1, 0)[:, 0]
    shift = torch.randint(1, VALUES, (n,), generator=generator)
    false = torch.cat((fact[:, :3], (VALUE + (answer - VALUE + shift) % VALUES)[:, None]), 1)
    first = torch.rand(n, generator=generator) < 0.5  # which of the two is read first is a coin
    documents["two that contradict"][:, 0] = torch.where(first[:, None], fact, false)
    documents["two that contradict"][:, 1] = torch.where(first[:, None], false, fact)
    asked = {name: _asked(slots, names, relation, answer) for name, slots in documents.items()}
    return asked, float(right.float().mean())


def measure(arm: Settings, seeds: Sequence[int]) -> list[Point]:
    worlds = [world(seed, arm["false documents"]) for seed in seeds]
    config = shape(VOCABULARY, SLOTS + 1, dim=64, n_heads=4, ffn_dim=256, position="none")
    nets = Seeds(lambda seed: Net(config, seed), seeds)
    losses = nets.train([lesson(of, arm["rows"]) for of in worlds], arm["steps"], arm["rate"])
    points: list[Point] = [{"curve": thinned(loss)} for loss in losses]
    for bucket in BUCKETS:
        drawn = [questions(of, bucket, arm["asked"], seed) for of, seed in zip(worlds, seeds, strict=True)]
        for point, (_, found) in zip(points, drawn, strict=True):
            point |= {"asked": arm["asked"], f"retrieval, {bucket}": found}
        for name in CONDITIONS:
            rows = Rows(*(torch.stack([asked[name][i] for asked, _ in drawn]) for i in (0, 1)))
            said = nets.ask(rows).argmax(-1)
            hit, silent = said == rows.targets[..., -1], said == UNKNOWN
            for i, point in enumerate(points):
                shares = [float(x[i].float().mean()) for x in (hit, silent, ~(hit | silent))]
                point[f"{bucket}, {name}"] = shares
    return points


def _rare(found: Sequence[Point], condition: str, answer: str) -> np.ndarray[Any, Any]:
    """The share of an answer over what was rarely or never met, (S,)."""
    place = ANSWERS.index(answer)
    rare = ("rarely met", "never met")
    return np.array([np.mean([p[f"{b}, {condition}"][place] for b in rare]) for p in found])


def read(points: Points) -> dict[str, Estimate]:
    found, asked = points["reader"], points["reader"][0]["asked"]

    def change(condition: str, answer: str) -> Estimate:
        return share_gap(_rare(found, condition, answer), _rare(found, "closed book", answer), 2 * asked)

    def made_up(condition: str) -> Estimate:
        return mean_share(_rare(found, condition, "made up"), 2 * asked)

    rare = "of what was rarely or never met"
    return {
        f"made up {rare}, one document less closed book": change("one document", "made up"),
        f"right {rare}, one document less closed book": change("one document", "right"),
        f"made up {rare}, one document": made_up("one document"),
        f"made up {rare}, another's document less closed book": change("another's document", "made up"),
        f"made up {rare}, closed book": made_up("closed book"),
        f"made up {rare}, two documents that contradict": made_up("two that contradict"),
        "retrieval finds the document": mean_share(
            (values(found, "retrieval, rarely met") + values(found, "retrieval, never met")) / 2, 2 * asked
        ),
        "right, often met, closed book": _share(found, "often met, closed book"),
        "right, never met, the right document": _share(found, "never met, the right document"),
    }


def _share(found: Sequence[Point], key: str) -> Estimate:
    return mean_share(np.array([point[key][0] for point in found]), found[0]["asked"])


def draw(points: Points) -> Markup:
    panels = []
    for bucket in BUCKETS:
        rows = [(name, np.mean([p[f"{bucket}, {name}"] for p in points["reader"]], 0).tolist())
                for name in CONDITIONS]  # fmt: skip
        panels.append(stacks(rows, ANSWERS, title=f"Answers about what was {bucket} while learning"))
    return figure(*panels, label="Right, unknown and made-up answers by what the model was given to read")


PLANT = Plant({"false documents": True})
