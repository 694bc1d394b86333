"""How the next token is chosen from logits (N, V), by pure functions.

Order of work, as in `transformers`: penalties, bias, grammar, temperature, top-k, top-p, min-p, one draw.
Filters are thresholds on probability, so a token tied with the last one kept is kept too, and a row's result
never depends on the other rows. The draw inverts the cumulative distribution with one number per row and
step, and that number is a pure function of (seed, sample, step). Read next: sampling_rows, for sequence with
different settings in one batch.
"""

from __future__ import annotations

import hashlib
import math
import struct
import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from transom.native import sampling as by_kernels
from transom.sampling_params import SamplingParams

BIN_BITS = 17  # a bin of probabilities is 1.6% wide
PIECE = 512  # tokens of a row that are summed first


def choose(logits: Tensor, params: SamplingParams, uniforms: Tensor) -> Tensor:
    """Return the next token of each row: logits (N, V), uniforms (N,) in [0, 1) -> (N,) int64."""
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
    """Return the smallest probability in each row's nucleus (Holtzman et al. 2020): (N, V) -> (N, 1).

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
    """Return the number in [0, 1) that draws token `step` of sample `sample`: 53 bits of BLAKE2b over the
    three.

    Nothing is kept between steps: the same on every machine, whatever runs beside it or was run before.
    """
    digest = hashlib.blake2b(struct.pack("<qqq", seed, sample, step), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def top_logprobs(logits: Tensor, tokens: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Natural log-probabilities by the model alone, before penalty, temperature and filters.

    logits (N, V), tokens (N,) -> of the tokens (N,), of the n likeliest (N, n), and their ids (N, n).
    """
    n = min(n, logits.shape[-1])
    if (kernels := by_kernels.kernels_for(logits)) is not None:
        normalizers, values, ids = by_kernels.likeliest(kernels, logits, n)
        taken = logits.gather(-1, tokens[:, None])[:, 0] - normalizers
        return taken.float(), (values - normalizers[:, None]).float(), ids
    logprobs = logits.log_softmax(dim=-1)
    best = logprobs.topk(n)
    return logprobs.gather(-1, tokens[:, None])[:, 0], best.values, best.indices
