"""One text seen from all sides that a model has: the pictures of `transom look` and of a saved page.

Which views apply is told by the structure of the model (does it attend, does it predict tokens, has it
experts); a view that applies and cannot be had stands there with the reason. Read next: figures.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..errors import Refused
from ..model.experts import routers
from . import attention_figures, figures
from .answer_score import device_of, hidden_of
from .attribution import attribute
from .gradients import gradient_flow, token_gradients
from .html import Picture, quoted, readable, tag, visible, write
from .lens import logit_lens
from .look import Seen, look
from .module_finder import model_parts
from .patching import Patching, patch
from .reading import OF_TEXT, found, opening
from .routing import routing
from .token_probabilities import TokenProbabilities, token_probabilities, unaided
from .view import View

MANY = 128
"""Of a longer text the map of gradients is left out: it costs a backward pass for every token."""
READ, TRIED = 8192, 64
"""To see what an answer hangs on, so many of the last tokens are taken away, a forward pass each, that no
more than READ are read in all."""
PATCHED = 200_000
"""Tokens that are read at most to patch one text into another: each piece is a pass over all of it."""
WHERE = {"cross": ", from what is written to the source", "self": ", within what is written",
         "encoder": ", within the source"}  # fmt: skip
"""Kind of attention -> how it is called where there are several."""
WIDTH = 98
"""Characters of a line of a terminal that sentences take."""
LIKELIEST = 3
"""Tokens that each layer would have said, where one place is asked about."""
DRAWN = 3
"""Heads that are drawn large; of the second and third kind of attention one."""


@dataclass
class Text:
    """What a model reads, and what its tokens are called."""

    model: nn.Module
    tokens: Sequence[int]
    tokenizer: Any
    source: Sequence[int] | None = None
    """What an encoder-decoder reads; `tokens` are then what it wrote."""
    target: int | None = None
    """The token after these about which all is asked, as on the served page; None: about the whole text."""

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

    def writes(self, token: int) -> bool:
        """Whether a token is text, and no control token."""
        return not hasattr(self.tokenizer, "token_bytes") or bool(self.tokenizer.token_bytes(token))

    @cached_property
    def token_probabilities(self) -> TokenProbabilities:
        """How likely each token was."""
        return token_probabilities(self.model, self.tokens, source=self.source)


@dataclass(frozen=True)
class Overview:
    """Everything that was looked at: prints its essentials, saves itself as one HTML file."""

    title: str
    lead: str
    pictures: list[Picture]
    views: list[dict[str, Any]]
    how: Sequence[str] = OF_TEXT
    """How the pictures are read, a line each."""
    path: Path | None = None

    def __str__(self) -> str:
        """A screen of it."""
        parts = [f"{picture.title}\n{picture.brief}" for picture in self.pictures if picture.brief]
        return self._told(parts, "what each picture does not show, and all numbers: --all")

    def whole(self) -> str:
        """All of it, as text."""
        return self._told([str(picture) for picture in self.pictures])

    def _told(self, parts: list[str], more: str = "") -> str:
        wrapped = partial(textwrap.fill, width=WIDTH, initial_indent="  ", subsequent_indent="  ")
        findings = "\n".join(wrapped(sentence) for sentence in found(self.pictures))
        end = [f"pictures: {self.path}"] if self.path else []
        end += [more] if more else []
        top = [self.title] + (["What it found\n" + findings] if findings else [])
        return "\n\n".join([*top, *parts, "\n".join(end)]).rstrip()

    def to_dict(self) -> dict[str, Any]:
        return {"title": self.title, "file": str(self.path) if self.path else None, "views": self.views}

    def save(self, path: str | os.PathLike[str]) -> Overview:
        """Write the page; the same look, that knows where it lies."""
        return replace(
            self, path=write(path, self.title, self.pictures, self.lead, opening(self.pictures, self.how))
        )


def overview(
    model: nn.Module, tokens: Sequence[int], tokenizer: Any = None, *, source: Sequence[int] | None = None,
    other: Sequence[int] | None = None, title: str = "A look inside",
) -> Overview:  # fmt: skip
    """Look at a text of tokens (L,) from every side that this model has. Raises `Refused`.

    other (L,): a text whose run is patched with pieces of this one's, to see what carries their difference.
    """
    text = Text(model, [int(token) for token in tokens], tokenizer, source)
    if not text.tokens:
        raise Refused("a text of no tokens has nothing to look at; give at least one")
    pictures: list[Picture] = []
    views: list[dict[str, Any]] = []
    if other is not None:
        patched = _patched(text, [int(token) for token in other])
        pictures.append(patched.draw(text.words))
        views.append(patched.to_dict())
    for side in SIDES:
        if not side.applies(text):
            continue
        try:
            for picture, view in side.look(text):
                pictures.append(picture)
                views.append(view.to_dict())
        except Refused as refused:
            reason = f"  not shown: {refused}"
            page = tag("p", str(refused))
            pictures.append(Picture(side.title, page, reason, "", "Not shown.", brief=reason))
    read = "".join(
        visible(word) if not word.isprintable() else word for word in text.words(text.source or text.tokens)
    )
    return Overview(title, f"{read[:300]}{'…' if len(read) > 300 else ''}", pictures, views)


Drawn = Iterator[tuple[Picture, View]]


@dataclass(frozen=True)
class Side:
    """One side from which a text is looked at."""

    name: str
    title: str
    look: Callable[[Text], Drawn]
    """Gives its pictures, each with the view that it was drawn of; raises `Refused` where there is none."""
    applies: Callable[[Text], bool]
    """Whether a model and a text of this kind have it."""
    served: Literal["", "token", "text"] = ""
    """Whether the served page shows it too: of the token that is marked (`Text.target`), or of all."""


def _token_probabilities(text: Text) -> Drawn:
    view = text.token_probabilities
    yield view.draw(text.words), view


def _attention(text: Text) -> Drawn:
    with look(text.model) as seen:
        _run(text)
    for kind in text.kinds:
        yield from _heads(text, seen, kind)


def _heads(text: Text, seen: Seen, kind: str) -> Drawn:
    """The heads that say most, and the grid of all."""
    grid = seen.heads(kind=kind)
    numbers = grid.to_dict()
    where = "" if len(text.kinds) == 1 else WHERE[kind]
    queries = text.words(text.source or () if kind == "encoder" else text.tokens)
    keys = text.words(text.source or ()) if kind == "cross" else None
    titles = []
    telling = grid.worth.flatten().argsort(descending=True, stable=True)
    for place in telling[: DRAWN if kind == text.kinds[0] else 1].tolist():
        at, head = divmod(place, grid.worth.shape[1])
        layer = grid.layers[at]
        looked = seen.attention(layer, head, kind=kind)
        picture = attention_figures.attention(looked.to_dict(), queries, keys)
        titles.append(f"{picture.title}{where}")
        yield replace(picture, title=titles[-1]), looked
    small = [seen.thumbnails(layer, 24, kind=kind).numpy() for layer in grid.layers]
    drawn = attention_figures.heads(numbers, small)
    said = "\n".join([*(f"  {title}" for title in titles), drawn.brief]).rstrip()
    yield replace(drawn, title=f"{drawn.title}{where}", folded=True, brief=said,
                  finding=f"{drawn.finding} Among the sharpest: l{titles[0][1:]}.".strip()), grid  # fmt: skip


def _run(text: Text) -> None:
    """The plain forward pass, as generation sees it."""
    if text.predicts:
        token_probabilities(text.model, [*text.tokens, text.tokens[-1]], top=1, source=text.source)
    else:
        with torch.no_grad():
            hidden_of(text.model, torch.tensor([list(text.tokens)], device=device_of(text.model)))  # type: ignore[arg-type]


def _lens(text: Text) -> Drawn:
    if text.target is None:
        view = logit_lens(text.model, text.tokens, source=text.source)
    else:
        view = logit_lens(text.model, text.tokens, source=text.source, positions=[-1], top=LIKELIEST)
    yield view.draw(text.words), view


def _why(text: Text) -> Drawn:
    """What the token that is asked about hangs on, or else the one that the rest of the text helped most."""
    if text.target is None:
        picture, view, read, target = _most_helped(text)
    else:
        read, target = text.tokens, text.target
        view = attribute(text.model, read, target, source=text.source)
        picture = view.draw(text.words)
    yield picture, view
    flow = gradient_flow(text.model, read, target=target, source=text.source)
    yield replace(flow.draw(text.words), folded=True), flow


def _most_helped(text: Text) -> tuple[Picture, View, Sequence[int], int]:
    """The token whose probability the rest of the text raised most, what that hangs on, and what was read."""
    whole, source = text.token_probabilities.logprob, text.source
    if source is None:
        alone = torch.cat([whole[:1], unaided(text.model, text.tokens)])
    else:
        alone = token_probabilities(text.model, text.tokens, source=source[-1:]).logprob
    raised = whole.exp() - alone.exp()
    raised[[not text.writes(token) for token in text.tokens[1:]]] = 0.0
    most = int(raised.argmax())
    if raised[most] <= 0:
        raise Refused("what stands further back made no token of this text more likely")
    read, target = text.tokens[: most + 1], text.tokens[most + 1]
    n_read = len(source or read)
    first = n_read - max(1, min(TRIED, READ // n_read, n_read))
    view = attribute(text.model, read, target, method="leave_one_out", source=source,
                     units=[(place,) for place in range(first, n_read)])  # fmt: skip
    picture = view.draw(text.words)
    word, start, last = (quoted(one) for one in text.words([target, read[0], read[-1]]))
    little, much = (figures.percent(float(logs[most].exp())) for logs in (alone, whole))
    if source is None:
        helped = f"The rest of the text before it helped {word} most: {little} after {start} and {last} alone"
    else:
        helped = f"The source helped {word} most: {little} after its last token alone"
    helped += f", {much} with it. "
    asked = "" if not first else f", of the {n_read - first} tokens before it"
    title = f"What {word} hangs on{asked}"
    return replace(picture, title=title, finding=helped + picture.finding), view, read, target


def _between(text: Text) -> Drawn:
    view = token_gradients(text.model, text.tokens)
    yield replace(view.draw(text.words), folded=True), view


def _experts(text: Text) -> Drawn:
    view = routing(text.model, text.tokens, source=text.source)
    yield view.draw(text.words), view


def _patched(text: Text, other: list[int]) -> Patching:
    """The residual stream of the text, piece by piece in the run over the other one."""
    n_read = len(text.tokens) ** 2 * model_parts(text.model).n_layers
    if n_read > PATCHED:
        raise Refused(f"to patch {len(text.tokens)} tokens in every layer {n_read:,} would be read; the "
                      f"limit is {PATCHED:,}: give shorter texts")  # fmt: skip
    return patch(text.model, text.tokens, other)


def _predicts_tokens(text: Text) -> bool:
    return getattr(text.config, "head", "tokens") == "tokens"


SIDES = (
    Side("tokens", "How likely each token was", _token_probabilities, lambda text: text.predicts),
    Side("gradient", "What a token hangs on", _why,
         lambda text: text.predicts and len(text.tokens) > 2, "token"),
    Side("heads", "Heads", _attention, lambda text: bool(text.kinds)),
    Side("lens", "What each layer would have said", _lens, _predicts_tokens, "token"),
    Side("between", "Which earlier tokens each token hangs on", _between,
         lambda text: text.predicts and text.source is None and len(text.tokens) <= MANY),
    Side("experts", "Which experts were asked", _experts, lambda text: bool(routers(text.model)), "text"),
)  # fmt: skip
"""What a look is made of, in order."""
