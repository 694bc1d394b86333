"""`POST /look`: an answer read once more by the plain model, and one view of what happened inside.

Nothing is kept of an answer between two requests, and the path that writes answers carries no instrument: a
view is a replay of prompt and answer, bounded in tokens, in the model's own thread between two steps, one at
a time; what a panel shows first comes of one pass. What was likely when the answer was written is compared
with the replay, and the client is told where the two differ. Read next: look_schema,
insight/token_probabilities.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from transom.errors import Refused
from transom.inference.adapters import BASE
from transom.inference.as_served import as_served
from transom.insight.ablation import ablate_head
from transom.insight.answer_score import device_of, hidden_of
from transom.insight.attention_figures import checked
from transom.insight.html import Picture, readable
from transom.insight.look import Seen
from transom.insight.look import look as look_at
from transom.insight.overview import Side, Text
from transom.insight.token_probabilities import TokenProbabilities, token_probabilities
from transom.insight.view import View
from transom.sampling_params import SamplingParams

from .chat_schema import for_template
from .endpoint import Answer, Call
from .errors import ApiError
from .look_schema import SERVED, LookBody
from .models import ServedModel
from .prompts import render
from .schema import at_most
from .state import LARGE

AGREES = 0.02
"""Nats by which a token's log-probability may differ from the one at generation: its probability by 2%."""
PANE = 24
"""Side of a head's thumbnail, in pixels."""
KEYS = 16
"""The heaviest keys of a row that are told."""
ROWS = 512
"""Of a longer text, rows of attention are told for the answer alone."""
LIKELIEST = 3


@dataclass(frozen=True)
class Replay:
    """What was read and written, as token ids; the source is that of an encoder-decoder."""

    served: ServedModel
    tokens: list[int]
    n_prompt: int
    source: list[int] | None
    asked: LookBody
    n_left_out: int = 0
    """Tokens at the end of the answer that are not looked at."""

    def first(self, n: int) -> Replay:
        """Return it with its first n tokens where those reach into an answer: what was served for each hangs
        on none that comes later.
        """
        room, left_out = n - self.n_prompt, len(self.tokens) - n
        if self.source is not None or room < 1 or left_out < 1:
            return self
        logprobs = self.asked.logprobs and self.asked.logprobs[:room]
        asked = self.asked.model_copy(update={"logprobs": logprobs})
        return replace(self, tokens=self.tokens[:n], asked=asked, n_left_out=left_out)

    @property
    def model(self) -> Any:
        return self.served.model.model

    @property
    def offset(self) -> int:
        """Where the place of a token in `tokens` begins in the order that clients see: after the source."""
        return len(self.source or ())

    def texts(self, tokens: Sequence[int]) -> list[str]:
        return readable(self.served.model.tokenizer, tokens)

    @property
    def whole(self) -> Text:
        """All of it, as insight takes it."""
        return Text(self.model, self.tokens, self.served.model.tokenizer, self.source)

    def before(self, position: int) -> Text:
        """Return what was read before a token, and that token as what is asked about."""
        read, target = self.tokens[:position], self.tokens[position]
        return Text(self.model, read, self.served.model.tokenizer, self.source, target)

    @torch.no_grad()
    def run(self) -> None:
        """Do the pass that each token but the first came of."""
        rows = partial(torch.tensor, device=device_of(self.model))
        source = None if self.source is None else rows([self.source])
        hidden_of(self.model, rows([self.tokens[:-1]]), source)


async def look(call: Call) -> Answer:
    """Return one view of an answer."""
    worker, limits = call.served.worker, call.state.settings.limits
    replay = (await call.text_work(replay_of, call)).first(limits.look_tokens)
    n_tokens = len(replay.tokens) + replay.offset
    at_most("prompt and answer together", n_tokens, limits.look_tokens, "tokens", "look_tokens")
    call.state.metrics.tokens.labels(call.served.name, "read").inc(n_tokens)
    found = await worker.between_steps(lambda: viewed(replay), call.tenant)
    what = {"object": "look", "view": call.asked.view, "model": call.served.name}
    return await call.whole(LARGE, lambda: {**what, **_finite(found)})


def replay_of(call: Call) -> Replay:
    """Return what the request says was read and written, as ids. Raises ApiError or Refused."""
    asked, served = call.asked, call.served
    if (served.task == "translate") != (asked.source is not None):
        needs = "a source" if served.task == "translate" else "messages or a prompt"
        raise ApiError(400, f"{served.name} is a model to {served.task}: give {needs}", param="source")
    if asked.source is not None:
        (request,) = served.model.requests([asked.source], beam=1)
        known = served.model.model.config.vocab_size
        if max(asked.answer) >= known:
            raise ApiError(400, f"answer: this model's tokens are 0 to {known - 1}", param="answer")
        at_most("answer", len(asked.answer), served.model.model.config.max_len - 1, "tokens")
        return Replay(served, [*request.prompt, *asked.answer], len(request.prompt), request.source, asked)
    prompt = asked.prompt if asked.messages is None else render(served, for_template(asked.messages)).tokens
    params = SamplingParams(max_tokens=len(asked.answer))
    (request,) = served.model.request(prompt, params, prefix_tokens=asked.answer)
    return Replay(served, [*request.prompt, *asked.answer], len(request.prompt), None, asked)


# Views: what is told of each, as plain values.


def viewed(replay: Replay) -> dict[str, Any]:
    """Return the view that is asked for, of the pass that was served; in the engine's thread."""
    view = replay.asked.view
    runner = getattr(replay.served.worker.engine, "runner", None)  # of whole texts there is none
    adapter = getattr(replay.served.model, "adapter", BASE)
    with as_served(replay.model, replay.tokens, runner, adapter=adapter, changes=view not in WATCHED):
        return VIEWS[view](replay)


def opening_view(replay: Replay) -> dict[str, Any]:
    """What a panel shows first: the tokens, the heads, and the rows of the head that moves most; one pass."""
    if not _kinds(replay):
        return {**tokens_view(replay), "heads": None, "attention": None}
    with look_at(replay.model) as seen:
        tokens = tokens_view(replay)
    heads = _heads(replay, seen)
    most = max(heads["heads"], key=lambda one: one["worth"])
    return {**tokens, "heads": heads, "attention": _rows(replay, seen, most["layer"], most["head"])}


def tokens_view(replay: Replay) -> dict[str, Any]:
    """Every token with its probability, rank and entropy, and whether the replay is what was served."""
    began = perf_counter()
    found = token_probabilities(replay.model, replay.tokens, top=LIKELIEST, source=replay.source)
    seconds = perf_counter() - began
    texts = replay.texts(replay.tokens)
    tokens: list[dict[str, Any]] = [
        {"text": text, "logprob": None} for text in replay.texts(replay.source or ())
    ]
    tokens.append({"text": texts[0], "logprob": None})
    tokens += [_token(replay, found, at, texts[at]) for at in range(1, len(texts))]
    config = replay.model.config
    return {
        "n_tokens": len(tokens), "n_prompt": replay.n_prompt + replay.offset, "n_source": replay.offset,
        "seconds": seconds, "replay": agreement(replay, found), "tokens": tokens, "caveat": found.caveat,
        "n_left_out": replay.n_left_out, "n_layers": config.n_layers,
        "n_heads": 0 if config.cell else config.n_heads, "kinds": _kinds(replay), "sides": _sides(replay),
    }  # fmt: skip


def _token(replay: Replay, found: TokenProbabilities, at: int, text: str) -> dict[str, Any]:
    token: dict[str, Any] = {
        "text": text,
        "logprob": float(found.logprob[at - 1]),
        "rank": int(found.rank[at - 1]) + 1,
        "entropy": float(found.entropy[at - 1]),
    }
    if at >= replay.n_prompt:
        token["answer"] = True
        token["top"] = _likeliest(replay, found.top[at - 1].tolist(), found.top_logprob[at - 1].tolist())
    return token


def _likeliest(replay: Replay, tokens: Sequence[int], logprobs: Sequence[float]) -> list[dict[str, Any]]:
    pairs = zip(replay.texts(tokens), logprobs, strict=True)
    return [{"text": text, "p": math.exp(logprob)} for text, logprob in pairs]


def _kinds(replay: Replay) -> list[str]:
    return (
        []
        if replay.model.config.cell
        else ["self"]
        if replay.source is None
        else ["cross", "self", "encoder"]
    )


def _sides(replay: Replay) -> list[dict[str, str]]:
    """Return what else there is to see, in order."""
    return [
        {"name": name, "title": side.title, "of": side.served}
        for name, side in SERVED.items()
        if side.applies(replay.whole)
    ]


def agreement(replay: Replay, found: TokenProbabilities) -> dict[str, Any]:
    """Return how far the replay is from what was served, in nats, and what that means, in words."""
    replayed, asked = found.logprob[replay.n_prompt - 1 :], replay.asked
    if asked.logprobs is not None:
        apart = (replayed - torch.tensor(asked.logprobs, dtype=torch.float64)).abs()
        whose = "no token's probability is off by more than"
        which = f"{int((apart > AGREES).sum())} of {len(apart)} tokens have another probability"
    elif asked.logprob is not None:
        apart = (replayed.sum() - asked.logprob).abs()
        whose, which = "its probability is off by", "it has another probability"
    else:
        text = "How likely it was when it was written was not said, so it is not compared."
        return {"drift": None, "agrees": None, "limit": AGREES, "text": text}
    drift = float(apart.max())
    agrees = drift <= AGREES
    if agrees:
        share = f"{max(0.01, 100 * math.expm1(drift)):.2g} % of it"
        text = f"It agrees with what was served: {whose} {share} (limit {100 * AGREES:g} %)."
    else:
        factor = f"{math.exp(drift):.3g}" if drift < math.log(1000) else "more than a thousand"
        text = (f"It differs from what was served: {which}, by a factor of up to {factor} (limit"
                f" {1 + AGREES:g}). What is below is true of this replay, not of the answer as it was"
                " written.")  # fmt: skip
    return {"drift": drift, "agrees": agrees, "limit": AGREES, "text": text}


def seen_of(replay: Replay, layers: list[int] | None = None) -> Seen:
    """Return the replay, watched from outside."""
    with look_at(replay.model, layers=layers) as seen:
        replay.run()
    return seen


def kind_of(replay: Replay) -> str:
    """Return which attention is meant."""
    kinds = _kinds(replay)
    if not kinds:
        raise Refused("a recurrence has no heads: nothing here attends")
    kind = replay.asked.kind or kinds[0]
    if kind not in kinds:
        raise Refused(f"kind is '{kind}'; this model has {', '.join(kinds)}")
    return kind


def heads_view(replay: Replay) -> dict[str, Any]:
    """Figures and a thumbnail of every head."""
    kind_of(replay)  # where there are none, that is said before a pass
    return _heads(replay, seen_of(replay))


def _heads(replay: Replay, seen: Seen) -> dict[str, Any]:
    kind = kind_of(replay)
    grid = seen.heads(kind=kind)
    pixels = [_squared(seen.thumbnails(layer, PANE, kind=kind)) for layer in grid.layers]
    figures = {name: values.tolist() for name, values in {**grid.figures, "worth": grid.worth}.items()}
    n_heads = pixels[0].shape[0]
    heads = [
        {"layer": layer, "head": head, **{name: round(rows[at][head], 4) for name, rows in figures.items()}}
        for at, layer in enumerate(grid.layers)
        for head in range(n_heads)
    ]
    return {
        "kind": kind, "n_heads": n_heads, "size": PANE, "heads": heads, "caveat": grid.caveat,
        "thumbnails": base64.b64encode(torch.cat(pixels).numpy().tobytes()).decode(),
    }  # fmt: skip


def _squared(small: Tensor) -> Tensor:
    """Thumbnails (H, r, c) uint8 as (H, PANE, PANE), the square root of each weight: most are small."""
    rows = torch.arange(PANE) * small.shape[1] // PANE
    columns = torch.arange(PANE) * small.shape[2] // PANE
    scale = small.float().amax((1, 2), keepdim=True).clamp(min=1)
    return (255 * (small.float() / scale).sqrt())[:, rows][:, :, columns].round().to(torch.uint8)


def attention_view(replay: Replay) -> dict[str, Any]:
    """Return what one head weighs: the heaviest keys of every row."""
    kind_of(replay)
    layer = _layer(replay)
    return _rows(replay, seen_of(replay, [layer]), layer, replay.asked.head or 0)


def _rows(replay: Replay, seen: Seen, layer: int, head: int) -> dict[str, Any]:
    kind = kind_of(replay)
    found = seen.attention(layer, head, kind=kind)
    queries = 0 if kind == "encoder" else replay.offset
    keys = replay.offset if kind == "self" else 0
    best = found.weights.topk(min(KEYS, found.weights.shape[1]), dim=-1)
    rows: list[Any] = [None] * (len(replay.tokens) + replay.offset)
    whole = len(rows) <= ROWS
    for i in range(len(found.weights)):
        if whole or i >= replay.n_prompt - 1:
            pairs = [(k + keys, round(w, 4)) for k, w in zip(*_row(best, i), strict=True) if w >= 5e-4]
            rows[i + queries] = {"keys": [k for k, _ in pairs], "weights": [w for _, w in pairs]}
    return {
        "layer": layer, "head": head, "kind": kind, "rows": rows, "sink": keys, "error": found.error,
        "caveat": found.caveat,
        "check": checked(found.error),
    }  # fmt: skip


def _row(best: Any, i: int) -> tuple[list[int], list[float]]:
    return best.indices[i].tolist(), best.values[i].tolist()


def ablate_view(replay: Replay) -> dict[str, Any]:
    """Return the probability of every token of the answer with and without one head."""
    layer, head = _layer(replay), replay.asked.head or 0
    view = ablate_head(replay.model, replay.tokens, layer, head, first=replay.n_prompt, source=replay.source)
    return drawn([(view.draw(replay.texts), view)])


def side_view(side: Side, replay: Replay) -> dict[str, Any]:
    """Return what `transom look` shows too, of the token that is asked about or of all."""
    return drawn(side.look(replay.before(_position(replay)) if side.served == "token" else replay.whole))


def drawn(found: Iterable[tuple[Picture, View]]) -> dict[str, Any]:
    """Views as they are: their numbers, and what the page draws of them."""
    pairs = [(picture.to_dict(), view.to_dict()) for picture, view in found]
    return {"pictures": [picture for picture, _ in pairs], "views": [view for _, view in pairs]}


WATCHED = ("opening", "tokens", "heads", "attention", "lens")
"""Views that change nothing of the pass that they look at."""
VIEWS: dict[str, Callable[[Replay], dict[str, Any]]] = {
    "opening": opening_view,
    "tokens": tokens_view,
    "heads": heads_view,
    "attention": attention_view,
    "ablate": ablate_view,
    **{name: partial(side_view, side) for name, side in SERVED.items()},
}
"""Name -> what it tells: those in which one walks about, and the others as insight draws them."""


def _layer(replay: Replay) -> int:
    """Return the layer and head that are asked for, which must be there."""
    asked, config = replay.asked, replay.model.config
    if config.cell:
        raise Refused("a recurrence has no heads: nothing here attends")
    of_encoder = config.n_encoder_layers if asked.kind == "encoder" else None
    layers = config.n_layers if of_encoder is None else of_encoder
    for name, value, known in (
        ("layer", asked.layer or 0, layers),
        ("head", asked.head or 0, config.n_heads),
    ):
        if value >= known:
            raise ApiError(400, f"{name} is {value}; this model has 0 to {known - 1}", param=name)
    return asked.layer or 0


def _position(replay: Replay) -> int:
    """Return the place in `tokens` of the token that is asked for; one that was predicted."""
    at = (replay.asked.token or 0) - replay.offset
    if not 1 <= at < len(replay.tokens):
        first, last = replay.offset + 1, replay.offset + len(replay.tokens) - 1
        message = f"token is {replay.asked.token}; those that were predicted are {first} to {last}"
        raise ApiError(400, message, param="token")
    return at


def _finite(value: Any) -> Any:
    """JSON has no infinity: the log-probability of the impossible is -9999, as elsewhere in this API."""
    if isinstance(value, float):
        return value if math.isfinite(value) else -9999.0
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list) else value
