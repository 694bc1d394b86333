"""Where the gradient goes: by layer and position, and by distance.

`gradient_flow` follows one loss down the residual stream and tells the direct path from the branches.
`token_gradients` takes the loss of every token and asks how much each earlier token matters to it: the same
lens for RNN, LSTM, GRU and Transformer (Madsen 2019, "Visualizing memorization in RNNs").
Read next: attribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import Refused
from ..model.recurrent import Recurrent
from ..units import counted
from . import figures
from .activations import embedded, residual_stream
from .answer_score import AnswerScore, answer_score, chunks, device_of, logits_at
from .hooks import Edit, edited
from .html import Picture
from .module_finder import ModelParts, model_parts
from .view import View, Words


@dataclass(frozen=True)
class GradientFlow(View):
    """Norms of the gradient of -log p(answer) with respect to the residual stream."""

    caveat: ClassVar[str] = (
        "a gradient is the slope at this very input: small where the answer is already certain, and blind to "
        "what a large change would do"
    )
    tokens: tuple[int, ...]
    loss: float
    total: Tensor
    """(n_layers + 1, L): before each layer and, last, after them all."""
    identity: Tensor | None
    """(n_layers, L): what comes straight down the residual path of each layer; None where a norm or a gate
    stands on that path, see `why`."""
    branch: Tensor | None
    """(n_layers, L): what comes through the branches of each layer; branch + identity = total as vectors."""
    why: str
    """Why there is no split, where there is none."""

    def draw(self, words: Words) -> Picture:
        """Draw it; words gives the texts of its tokens."""
        return figures.gradient_flow(self.to_dict(), words(self.tokens))


def gradient_flow(
    model: nn.Module, tokens: Tensor | Sequence[int], *, target: int | None = None, foil: int | None = None,
    at: int = -1, answer: int = 0, source: Tensor | Sequence[int] | None = None,
) -> GradientFlow:  # fmt: skip
    """Follow the gradient of one loss down the layers. Raises `Refused`.

    The arguments are those of `answer_score`.
    """
    parts = model_parts(model)
    metric = answer_score(model, tokens, target=target, foil=foil, at=at, answer=answer, source=source)
    with differentiable():
        loss, points = _loss_and_stream(parts, metric)
        grads = [g[0] for g in torch.autograd.grad(loss, points)]
    why = ""
    try:
        for layer in range(parts.n_layers):
            parts.branches(layer)
    except Refused as refusal:
        why = str(refusal)
    split = [grads[i] - grads[i + 1] for i in range(parts.n_layers)]
    return GradientFlow(
        metric.tokens, float(loss.detach()), _norms(grads),
        identity=None if why else _norms(grads[1:]), branch=None if why else _norms(split), why=why,
    )  # fmt: skip


def _loss_and_stream(parts: ModelParts, metric: AnswerScore) -> tuple[Tensor, list[Tensor]]:
    """-score of the answer, and the residual stream that it hangs on."""
    model, scores = parts.model, []
    rows, source = metric.rows(model), metric.source_rows(model)

    def run() -> None:
        scores.append(metric.score(logits_at(model, rows, metric.positions, source)))

    with _as_leaf(parts):
        points = residual_stream(parts, run)
    if isinstance(model, Recurrent):  # followed by its own structure, beside the run
        return -metric.score(model.logits(points[-1][:, metric.positions])).sum(), points
    return -scores[0].sum(), points


def _as_leaf(parts: ModelParts) -> AbstractContextManager[None]:
    """The embedding's output takes part in the graph even where no weight wants a gradient."""
    return edited([Edit(parts.embedding, "out", lambda x: x if x.requires_grad else x.requires_grad_())])


def _norms(grads: Sequence[Tensor]) -> Tensor:
    return torch.stack([g.double().norm(dim=-1) for g in grads]).cpu()


@dataclass(frozen=True)
class TokenGradients(View):
    """How steeply the loss of each token hangs on the embedding of each token before it."""

    caveat: ClassVar[str] = (
        "the slope at this text, of unit length in embedding space: what matters little by a small change "
        "can still matter by its absence (attribute, method leave_one_out)"
    )
    tokens: tuple[int, ...]
    norms: Tensor
    """(L - 1, L - 1) float64: row t is the loss of token t + 1, column s the embedding of token s."""

    def over_distance(self) -> Tensor:
        """(L - 1,) the mean over rows at each distance t - s; distance 0 is the token just read."""
        n = len(self.norms)
        return torch.stack([self.norms.diagonal(-d).mean() for d in range(n)])

    def draw(self, words: Words) -> Picture:
        """Draw it; words gives the texts of its tokens."""
        return figures.token_gradients(self.to_dict(), words(self.tokens))


def token_gradients(model: nn.Module, tokens: Tensor | Sequence[int], *, rows: int = 16) -> TokenGradients:
    """The gradient of each token's loss with respect to each token before it, `rows` losses at a time."""
    parts = model_parts(model)
    ids = torch.as_tensor(tokens, device=device_of(model)).flatten()
    if len(ids) < 2:
        raise Refused(f"a text of {counted(len(ids), 'token')} has none that is predicted; give at least 2")
    found = []
    for some in chunks(len(ids) - 1, rows):
        losses = lambda logits, some=some: F.cross_entropy(  # noqa: E731
            logits.diagonal(dim1=0, dim2=1).T, ids[some.start + 1 : some.stop + 1], reduction="sum"
        )  # fmt: skip
        found.append(_embedding_gradient(parts, ids[None, :-1].expand(len(some), -1), losses, some))
    return TokenGradients(tuple(ids.tolist()), torch.cat(found).double().norm(dim=-1).cpu())


def _embedding_gradient(
    parts: ModelParts, rows: Tensor, loss: Callable[[Tensor], Tensor], at: Sequence[int]
) -> Tensor:
    """The gradient (B, L, D) of a loss of some logits (B, n, V) of rows (B, L) with respect to embeddings."""
    with differentiable():
        value, leaf = embedded(parts, lambda: loss(logits_at(parts.model, rows, at)))
        return torch.autograd.grad(value, leaf)[0]


@dataclass(frozen=True)
class DistanceCurve(View):
    """How the gradient that reaches an earlier token falls with its distance."""

    caveat: ClassVar[str] = (
        "what can reach a token, not what is learned from it; a model that is not trained shows its wiring, "
        "a trained one its text too"
    )
    norms: Tensor
    """(n texts, distances) float64: mean gradient norm at distances 0, 1, 2 ..."""
    slope: float
    """Decades per token, by least squares on log10 of the mean over texts."""

    @property
    def mean(self) -> Tensor:
        """(distances,) the geometric mean over texts."""
        return self.norms.clamp(min=torch.finfo(torch.float64).tiny).log().mean(0).exp()

    @property
    def half_distance(self) -> float:
        """Tokens over which half of it is lost; infinite where nothing is."""
        return 0.30103 / -self.slope if self.slope < 0 else math.inf


def distance_curve(model: nn.Module, texts: Tensor, *, last_only: bool = False) -> DistanceCurve:
    """Gradient norm against distance over texts (B, L). `last_only`: of the loss of the last token alone."""
    if last_only:
        losses = lambda logits: F.cross_entropy(logits[:, 0], texts[:, -1], reduction="sum")  # noqa: E731
        grads = _embedding_gradient(model_parts(model), texts[:, :-1], losses, [-1])
        norms = grads.double().norm(dim=-1).flip(1).cpu()
    else:
        norms = torch.stack([token_gradients(model, text).over_distance() for text in texts])
    return DistanceCurve(norms, slope_of(norms))


def slope_of(norms: Tensor) -> float:
    """Decades per token of norms (n, distances): least squares where the mean is not rounded to zero."""
    mean = norms.double().mean(0)
    kept = mean > 0
    if kept.sum() < 2:
        return -math.inf
    distance = torch.arange(len(mean), dtype=torch.float64)[kept]
    logs = mean[kept].log10()
    distance = distance - distance.mean()
    return float((distance * (logs - logs.mean())).sum() / distance.square().sum())


@contextmanager
def differentiable() -> Iterator[None]:
    """Gradients on, even inside `no_grad`; cuDNN off, whose recurrences differentiate in training only."""
    cudnn_off = torch.backends.cudnn.flags(enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), cudnn_off:
        yield
