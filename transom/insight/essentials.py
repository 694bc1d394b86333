"""One text seen from all sides that a model has: the pictures of `transom look` and of a saved page.

Which views apply is told by the structure of the model (does it attend, does it predict tokens, has it
experts); a view that applies and cannot be had stands there with the reason. Read next: figures.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import Refused
from ..model.experts import routers
from . import figures
from .attribution import attribute
from .gradients import gradient_flow, token_gradients
from .html import Markup, Picture, readable, tag, visible, write
from .lens import logit_lens
from .look import Seen, look
from .question import device_of, hidden_of
from .routing import routing
from .surprise import surprise
from .view import plain

MANY = 128
"""Of a longer text the map of gradients is left out: it costs a backward pass for every token."""
DRAWN = 3
"""Heads that are drawn large."""


@dataclass
class Text:
    """What a model reads, and what its tokens are called."""

    model: nn.Module
    tokens: Sequence[int]
    tokenizer: Any
    source: Sequence[int] | None = None
    """What an encoder-decoder reads; `tokens` are then what it wrote."""

    def words(self, tokens: Sequence[int]) -> list[str]:
        return readable(self.tokenizer, tokens)

    @property
    def config(self) -> Any:
        return getattr(self.model, "config", None)

    @property
    def kinds(self) -> list[str]:
        """Kinds of attention there are."""
        if getattr(self.config, "cell", None):
            return []
        return ["self"] if self.source is None else ["cross", "self", "encoder"]

    @property
    def predicts(self) -> bool:
        """Whether each token was predicted from those before it."""
        return getattr(self.config, "kind", "decoder") != "encoder" and len(self.tokens) > 1


@dataclass(frozen=True)
class Look:
    """Everything that was looked at: prints its essentials, saves itself as one HTML file."""

    title: str
    lead: str
    pictures: list[Picture]
    views: list[dict[str, Any]]
    path: Path | None = None

    def __str__(self) -> str:
        parts = [self.title, *(str(picture) for picture in self.pictures if not picture.folded)]
        return "\n\n".join(parts + ([f"pictures: {self.path}"] if self.path else []))

    def to_dict(self) -> dict[str, Any]:
        return {"title": self.title, "file": str(self.path) if self.path else None, "views": self.views}

    def save(self, path: str | os.PathLike[str]) -> Look:
        """Write the page; the same look, that knows where it lies."""
        return Look(
            self.title,
            self.lead,
            self.pictures,
            self.views,
            write(path, self.title, self.pictures, self.lead),
        )


def essentials(
    model: nn.Module, tokens: Sequence[int], tokenizer: Any = None, *, source: Sequence[int] | None = None,
    title: str = "A look inside",
) -> Look:  # fmt: skip
    """Look at a text of tokens (L,) from every side that this model has. Raises `Refused`."""
    text = Text(model, [int(token) for token in tokens], tokenizer, source)
    if not text.tokens:
        raise Refused("a text of no tokens has nothing to look at; give at least one")
    pictures: list[Picture] = []
    views: list[dict[str, Any]] = []
    for name, sides in SIDES:
        try:
            for picture, view in sides(text):
                pictures.append(picture)
                views.append(view)
        except Refused as refused:
            pictures.append(
                Picture(name, tag("p", str(refused)), f"  not shown: {refused}", "", "Not shown.")
            )
    read = "".join(
        visible(word) if not word.isprintable() else word for word in text.words(text.source or text.tokens)
    )
    return Look(title, f"{read[:300]}{'…' if len(read) > 300 else ''}", pictures, views)


Drawn = Iterator[tuple[Picture, dict[str, Any]]]


def _surprise(text: Text) -> Drawn:
    if text.predicts:
        view = surprise(text.model, text.tokens, source=text.source).to_dict()
        yield figures.surprise(view, text.words(text.tokens)), view


def _attention(text: Text) -> Drawn:
    if not text.kinds:
        return
    with look(text.model) as seen:
        _run(text)
    for kind in text.kinds:
        yield from _heads(text, seen, kind)


def _heads(text: Text, seen: Seen, kind: str) -> Drawn:
    """The grid, and the heads of it that say most."""
    grid = seen.heads(kind=kind)
    view = grid.to_dict()
    small = [seen.thumbnails(layer, 24, kind=kind).numpy() for layer in grid.layers]
    which = {"self": "", "cross": ", from what is written to the source", "encoder": ", within the source"}[
        kind
    ]
    drawn = figures.heads(view, small)
    yield _called(drawn, f"{drawn.title}{which}"), view
    queries = text.words(text.source or () if kind == "encoder" else text.tokens)
    keys = text.words(text.source or ()) if kind == "cross" else None
    for layer, head in _telling(view)[:DRAWN]:
        found = seen.attention(layer, head, kind=kind).to_dict()
        picture = figures.attention(found, queries, keys)
        yield _called(picture, f"{picture.title}{which if kind == 'encoder' else ''}", folded=True), found


def _telling(view: dict[str, Any]) -> list[tuple[int, int]]:
    """Heads that weigh one thing much, and neither the first token nor the one before."""
    figure = view["figures"]
    places = [(at, head) for at in range(len(view["layers"])) for head in range(len(figure["peak"][at]))]

    def worth(place: tuple[int, int]) -> float:
        at, head = place
        value = figure["peak"][at][head]
        if view["kind"] != "cross":
            value *= (1 - figure["sink"][at][head]) * (1 - figure["previous"][at][head])
            value *= min(1.0, figure["distance"][at][head] / 4)
        return -value

    return [(view["layers"][at], head) for at, head in sorted(places, key=worth)]


def _run(text: Text) -> None:
    """The plain forward pass, as generation sees it."""
    if text.predicts:
        surprise(text.model, [*text.tokens, text.tokens[-1]], top=1, source=text.source)
    else:
        with torch.no_grad():
            hidden_of(text.model, torch.tensor([list(text.tokens)], device=device_of(text.model)))  # type: ignore[arg-type]


def _lens(text: Text) -> Drawn:
    if getattr(text.config, "head", "tokens") == "tokens":
        view = logit_lens(text.model, text.tokens, source=text.source).to_dict()
        yield figures.lens(view, text.words(text.tokens), lambda token: text.words([token])[0]), view


def _why(text: Text) -> Drawn:
    """What the model would say next, and what that hangs on."""
    if not text.predicts:
        return
    found = attribute(text.model, text.tokens, source=text.source)
    view = found.to_dict()
    picture = figures.attribution(view, text.words(found.tokens))
    said = text.words([int(found.question.split()[1])])[0]
    yield _called(picture, f"Why {visible(said)} comes next"), view
    flow = gradient_flow(text.model, text.tokens, source=text.source).to_dict()
    yield _called(figures.gradient_flow(flow, text.words(text.tokens)), folded=True), flow


def _between(text: Text) -> Drawn:
    if text.predicts and text.source is None and len(text.tokens) <= MANY:
        view = token_gradients(text.model, text.tokens).to_dict()
        yield _called(figures.token_gradients(view, text.words(text.tokens)), folded=True), view


def _experts(text: Text) -> Drawn:
    if routers(text.model):
        view = routing(text.model, text.tokens, source=text.source).to_dict()
        yield figures.routing(view), view


SIDES: tuple[tuple[str, Callable[[Text], Drawn]], ...] = (
    ("How likely each token was", _surprise),
    ("Heads", _attention),
    ("What each layer would have said", _lens),
    ("Why the next token", _why),
    ("Which earlier tokens each token hangs on", _between),
    ("Which experts were asked", _experts),
)
"""What a look is made of, in order."""


def _called(picture: Picture, title: str | None = None, folded: bool = False) -> Picture:
    return Picture(
        title or picture.title, Markup(picture.body), picture.text, picture.caveat, picture.note, folded
    )


def _map_alone(view: dict[str, Any]) -> Picture:
    """A map that knows no tokens: by their places."""
    if view["head"] is None:
        return figures.layer_of_heads(view)
    rows = view["weights"] if view["row"] is None else [view["weights"]]
    n_queries = len(rows) if view["row"] is None else 1 + view["row"]
    places = [str(i) for i in range(max(n_queries, len(rows[0])))]
    return figures.attention(view, places[:n_queries] if view["kind"] == "cross" else places,
                             places[: len(rows[0])] if view["kind"] == "cross" else None)  # fmt: skip


def picture_of(view: Any, tokenizer: Any = None) -> Picture:
    """The picture of one view by itself, for a notebook; without a tokenizer its tokens are numbers."""
    numbers = plain(view)
    kind = type(view).__name__
    if kind not in ALONE:
        raise Refused(f"no picture of a {kind} can be drawn alone; there are {', '.join(ALONE)}")
    words = lambda tokens: readable(tokenizer, tokens)  # noqa: E731
    return ALONE[kind](numbers, words)


ALONE: dict[str, Callable[[dict[str, Any], Callable[[Sequence[int]], list[str]]], Picture]] = {
    "Surprise": lambda view, words: figures.surprise(view, words(view["tokens"])),
    "LogitLens": lambda view, words: figures.lens(view, words(view["tokens"]), lambda t: words([t])[0]),
    "GradientFlow": lambda view, words: figures.gradient_flow(view, words(view["tokens"])),
    "TokenGradients": lambda view, words: figures.token_gradients(view, words(view["tokens"])),
    "Attribution": lambda view, words: figures.attribution(view, words(view["tokens"])),
    "AttentionMap": lambda view, words: _map_alone(view),
    "HeadGrid": lambda view, words: figures.grid_of_heads(view),
    "Routing": lambda view, words: figures.routing(view),
    "Ablation": lambda view, words: figures.ablation(view),
}
"""View -> how it is drawn where only its numbers and a tokenizer are there."""
