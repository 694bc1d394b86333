"""How the next token is chosen from logits (N, V): the settings of a request, and pure functions.

Order of work, as in `transformers`: penalties, bias, grammar, temperature, top-k, top-p, min-p, one draw.
Filters are thresholds on probability, so a token tied with the last one kept is kept too, and a row's result
never depends on the other rows. The draw inverts the cumulative distribution with one number per row and
step, and that number is a pure function of (seed, sample, step). Read next: sampling_rows, for sequence with
different settings in one batch.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import reprlib
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypedDict, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from transom.errors import Refused, nearest

GREEDY_BELOW = 1e-5  # temperatures under this leave nothing but the likeliest token in float32
MAX_STOPS, MAX_STOP_BYTES, MAX_LOGPROBS, MAX_N = 16, 256, 20, 128
MAX_BIASED, MAX_BIAS = 1024, 100.0
BIN_BITS = 17  # a bin of probabilities is 1.6% wide
PIECE = 512  # tokens of a row that are summed first


@dataclass(frozen=True)
class SamplingParams:
    """What a request asks of the sampler; a value out of its limits raises Refused.

    A Generator takes what a call leaves out from its folder's generation_config.json, then from here.
    """

    max_tokens: int | None = None
    """Most tokens to make, the end token included. None: 128, or what the model's length leaves, if less."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token every time."""
    top_k: int | None = None
    """Draw only from the k likeliest tokens."""
    top_p: float = 1.0
    """Draw only from the fewest tokens that together have this probability; 0: from the likeliest alone."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens already in the prompt or the answer."""
    presence_penalty: float = 0.0
    """Taken from the logit of every token that is in the answer already, as OpenAI defines it."""
    frequency_penalty: float = 0.0
    """Taken from the logit of a token once for every time it is in the answer already."""
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] = ()
    """Added to the logits of these tokens: {token: bias}; -100 forbids one, 100 leaves hardly another."""
    seed: int | None = None
    """Same seed, same text; None: a new one for every prompt, told in the completion."""
    stop: str | Sequence[str] = ()
    """End before any of these strings."""
    logprobs: int | None = None
    """Report each token's log-probability with this many of the likeliest alternatives."""
    n: int = 1
    """Completions per prompt."""
    ignore_eos: bool = False
    """Go on to `max_tokens` past end tokens."""

    def __post_init__(self) -> None:
        for name, (kinds, accepts, wanted) in LIMITS.items():
            value = getattr(self, name)
            optional = value is None and name in ("max_tokens", "top_k", "seed", "logprobs")
            # bool is an int to Python, and True tokens are a mistake to everyone else
            number = isinstance(value, kinds) and isinstance(value, bool) == (kinds is bool)
            if not (optional or (number and accepts(value))):
                raise Refused(f"{name} is {reprlib.repr(value)}; it must be {wanted}")
        object.__setattr__(self, "stop", _stops(self.stop))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))

    @classmethod
    def of(cls, settings: dict[str, Any]) -> SamplingParams:
        """Settings by name; an unknown name raises Refused with the nearest one."""
        names = [field.name for field in fields(cls)]
        for name in settings:
            if name not in names:
                raise Refused(
                    f"generate knows no setting '{name}'{nearest(name, names)}; it knows {', '.join(names)}"
                )
        return cls(**settings)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken every time."""
        return self.temperature < GREEDY_BELOW


class Sampling(TypedDict, total=False):
    """The fields of `SamplingParams`, but n, as keywords; what is left out is as the folder says."""

    max_tokens: int | None
    temperature: float
    top_k: int | None
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]]
    seed: int | None
    stop: str | Sequence[str]
    logprobs: int | None
    ignore_eos: bool


Method = TypeVar("Method", bound=Callable[..., Any])


def by_name(method: Method) -> Method:
    """Show `help` and notebooks the keywords of a method that takes **settings: Unpack[Sampling]."""
    own = inspect.signature(method)
    named = [one for one in own.parameters.values() if one.kind is not one.VAR_KEYWORD]
    for name, kind in Sampling.__annotations__.items():
        said = getattr(kind, "__forward_arg__", kind)
        named.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=..., annotation=said))
    method.__signature__ = own.replace(parameters=named)  # type: ignore[attr-defined]
    return method


LIMITS: dict[str, tuple[Any, Callable[[Any], bool], str]] = {
    "max_tokens": (int, lambda x: x >= 1, "a whole number, at least 1"),
    "temperature": (
        (int, float),
        lambda x: 0 <= x < math.inf,
        "a number, 0 (the likeliest token) or more",
    ),
    "top_k": (int, lambda x: x >= 1, "a whole number, at least 1, or None for no limit"),
    "top_p": ((int, float), lambda x: 0 <= x <= 1, "between 0 (the likeliest token) and 1 (no limit)"),
    "min_p": ((int, float), lambda x: 0 <= x <= 1, "between 0 (no limit) and 1"),
    "repetition_penalty": ((int, float), lambda x: 0 < x < math.inf, "a number above 0 (1: no penalty)"),
    "presence_penalty": ((int, float), lambda x: -2 <= x <= 2, "a number from -2 to 2 (0: no penalty)"),
    "frequency_penalty": ((int, float), lambda x: -2 <= x <= 2, "a number from -2 to 2 (0: no penalty)"),
    "seed": (int, lambda x: -(2**63) <= x < 2**63, "a whole number of 64 bits"),
    "logprobs": (int, lambda x: 0 <= x <= MAX_LOGPROBS, f"a whole number from 0 to {MAX_LOGPROBS}, or None"),
    "n": (int, lambda x: 1 <= x <= MAX_N, f"a whole number from 1 to {MAX_N}"),
    "ignore_eos": (bool, lambda x: True, "True or False"),
}


def _stops(stop: Any) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MAX_STOPS:
        raise Refused(f"stop has {len(stops)} strings; the limit is {MAX_STOPS}")
    for text in stops:
        if not isinstance(text, str) or not text:
            raise Refused(f"stop holds {reprlib.repr(text)}; every stop must be a string that is not empty")
        if len(text.encode("utf-8", "surrogatepass")) > MAX_STOP_BYTES:
            raise Refused(
                f"stop {reprlib.repr(text)} is longer than {MAX_STOP_BYTES} bytes of UTF-8, the limit"
            )
    return stops


def _biases(biases: Any) -> tuple[tuple[int, float], ...]:
    """Tokens with what is added to their logits, in order; JSON writes the tokens as strings."""
    pairs = list(biases.items()) if isinstance(biases, Mapping) else biases or ()
    if not isinstance(pairs, list | tuple) or not all(isinstance(x, tuple) and len(x) == 2 for x in pairs):
        raise Refused(f"logit_bias is {reprlib.repr(biases)}; it must be an object of token ids and numbers")
    if len(pairs) > MAX_BIASED:
        raise Refused(f"logit_bias names {len(pairs)} tokens; the limit is {MAX_BIASED}")
    kept: dict[int, float] = {}
    for token, bias in pairs:
        number = int(token) if isinstance(token, str) and token.isdecimal() and len(token) < 12 else token
        if type(number) is not int or number < 0:
            raise Refused(f"logit_bias names {reprlib.repr(token)}; it takes token ids, whole numbers from 0")
        if type(bias) not in (int, float) or not -MAX_BIAS <= bias <= MAX_BIAS:
            raise Refused(
                f"logit_bias of token {number} is {reprlib.repr(bias)}; it must be a number from"
                f" {-MAX_BIAS:.0f} to {MAX_BIAS:.0f}"
            )
        kept[number] = float(bias)
    return tuple(sorted(kept.items()))


def choose(logits: Tensor, params: SamplingParams, uniforms: Tensor) -> Tensor:
    """The next token of each row: logits (N, V), uniforms (N,) in [0, 1) -> (N,) int64."""
    return logits.argmax(dim=-1) if params.greedy else draw(probabilities(logits, params), uniforms)


def probabilities(logits: Tensor, params: SamplingParams) -> Tensor:
    """What may be drawn and how likely, after temperature and filters: (N, V) -> (N, V), not normalised."""
    if params.top_k is not None and params.top_k < logits.shape[-1]:
        smallest = logits.topk(params.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -math.inf)
    # Shifted before it is scaled, so that a small temperature makes -inf and never inf - inf.
    weights = ((logits - logits.amax(dim=-1, keepdim=True)) / params.temperature).softmax(dim=-1)
    if params.top_p < 1:
        floor = nucleus_floor(weights, params.top_p)
        weights = weights.masked_fill(weights < floor, 0.0)
    if params.min_p > 0:
        weights = weights.masked_fill(weights < params.min_p * weights.amax(dim=-1, keepdim=True), 0.0)
    return weights


def nucleus_floor(weights: Tensor, top_p: float) -> Tensor:
    """The smallest probability in each row's nucleus (Holtzman et al. 2020): (N, V) -> (N, 1).

    A token belongs to it when all likelier ones together have less than `top_p`; the likeliest always does.
    """
    top_p = max(top_p, sys.float_info.min)
    if weights.device.type == "cpu" and weights.dtype == torch.float32:
        return _nucleus_floor_by_bins(weights, top_p)
    ranked = weights.sort(dim=-1, descending=True).values
    return ranked.gather(-1, _n_kept(ranked, 0.0, top_p) - 1)


def _nucleus_floor_by_bins(weights: Tensor, top_p: float) -> Tensor:
    """The same where sorting is slow: only numbers that begin with the bits of the floor are sorted."""
    bins = weights.view(torch.int32) >> BIN_BITS  # numbers from 0 on are in the order of their bits
    n, n_bins = len(weights), int(bins.max()) + 1
    of_rows = bins + torch.arange(n, dtype=torch.int32)[:, None] * n_bins
    mass = torch.bincount(of_rows.flatten(), weights.double().flatten(), minlength=n * n_bins).view(n, n_bins)
    reached = mass.flip(-1).cumsum(dim=-1).flip(-1)  # by a bin and all above it
    floor = weights.new_zeros(n, 1)  # where rounding leaves all together below top_p
    for row, last in enumerate(((reached >= top_p).sum(dim=-1) - 1).tolist()):
        if last >= 0:
            ranked = weights[row][bins[row] == last].sort(descending=True).values
            above = float(reached[row, last + 1]) if last + 1 < n_bins else 0.0
            floor[row] = ranked[_n_kept(ranked, above, top_p) - 1]
    return floor


def _n_kept(ranked: Tensor, above: float, top_p: float) -> Tensor:
    """How many of falling probabilities belong to the nucleus; `above` is likelier: (..., V) -> (..., 1)."""
    total = ranked.cumsum(dim=-1, dtype=torch.float64) + above
    return (total - ranked < top_p).sum(dim=-1, keepdim=True)


def draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Pick each row's token by inverting its cumulative weights (N, V) at uniforms (N,): -> (N,) int64.

    First the piece of the row in which it lies, then the token. All in float64, where u * total stays below
    total for every u < 1, and a weight of 0 has no width to fall into.
    """
    pieces = F.pad(weights, (0, -weights.shape[-1] % PIECE)).unflatten(-1, (-1, PIECE))
    ends = pieces.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    aim = uniforms[:, None] * ends[:, -1:]
    piece = torch.searchsorted(ends, aim, right=True)
    before = F.pad(ends, (1, 0)).gather(-1, piece)
    within = pieces[torch.arange(len(pieces), device=piece.device), piece[:, 0]].cumsum(
        dim=-1, dtype=torch.float64
    )
    # A sum in another order may end a last bit earlier: then the aim is the last token that has width.
    aim = torch.minimum(aim - before, within[:, -1:].nextafter(within.new_zeros(1)))
    return (piece * PIECE + torch.searchsorted(within, aim, right=True))[:, 0]


def uniform(seed: int, sample: int, step: int) -> float:
    """The number in [0, 1) that draws token `step` of sample `sample`: 53 bits of BLAKE2b over the three.

    Nothing is kept between steps: the same on every machine, whatever runs beside it or was run before.
    """
    digest = hashlib.blake2b(struct.pack("<qqq", seed, sample, step), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make the tokens marked in seen (N, V) less likely when `penalty` > 1 (Keskar et al. 2019): (N, V)."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def top_logprobs(logits: Tensor, tokens: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Natural log-probabilities by the model alone, before penalty, temperature and filters.

    logits (N, V), tokens (N,) -> of the tokens (N,), of the n likeliest (N, n), and their ids (N, n).
    """
    logprobs = logits.log_softmax(dim=-1)
    best = logprobs.topk(min(n, logits.shape[-1]))
    return logprobs.gather(-1, tokens[:, None])[:, 0], best.values, best.indices
