"""Where a token stands: rotary, sinusoidal, learned and relative positions.

Rotary positions (Su et al. 2021) turn each pair of query and key channels by an angle that grows with the
position, so that a dot product depends on the distance only. Sinusoidal ones (Vaswani et al. 2017) and a
learned table are added to the embeddings instead. Relative ones (Raffel et al. 2020) add a learned number to
the scores, one for each bucket of distances and head. Read next: heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .config import ModelConfig, RopeScaling

Rotary = tuple[Tensor, Tensor]
"""Cosines and signed sines of the angles of rotary positions; see `rotation`."""


def rotary_frequencies(config: ModelConfig) -> Tensor:
    """Radians per position of each channel pair: (K/2,) float32, stretched as the config says."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    return frequencies if config.rope_scaling is None else stretch(frequencies, config.rope_scaling)


def stretch(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Slow the frequencies (K/2,) down so that positions past the trained length stay within known angles."""
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    wavelength = 2 * math.pi / frequencies
    longest = scaling.original_max_len / scaling.low_freq_factor
    shortest = scaling.original_max_len / scaling.high_freq_factor
    # 0 where the wave is too long for the trained length, 1 where it is short, a ramp between.
    keep = (scaling.original_max_len / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    ramp = (1 - keep) * frequencies / scaling.factor + keep * frequencies
    stretched = torch.where(wavelength > longest, frequencies / scaling.factor, frequencies)
    between = (wavelength <= longest) & (wavelength >= shortest)
    return torch.where(between, ramp, stretched)


def rotation(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> Rotary:
    """Cosine and signed sine of every angle, as `rotate` takes them; angles in float32.

    (..., L) positions and (K/2,) frequencies -> two (..., L, 1, K): cosines twice, and sines, first negated.
    """
    angles = positions[..., None].float() * frequencies
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat((cos, cos), dim=-1)[..., None, :], torch.cat((-sin, sin), dim=-1)[..., None, :]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the channel pairs (i, i + K/2) of x (B, L, H, K) by the angles of `rotation`."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def sinusoids(positions: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Sines in the first half of the channels and cosines in the second: (..., L) -> (..., L, D).

    Frequencies fall from 1 to 1/10,000; the two halves are laid side by side as Marian does, which is the
    2017 paper's table with its channels in another order.
    """
    half = (width + 1) // 2
    exponents = torch.arange(half, dtype=torch.float32, device=positions.device) * 2 / width
    angles = positions[..., None].float() / 10_000.0**exponents
    return torch.cat((angles.sin(), angles.cos()[..., : width - half]), dim=-1).to(dtype)


class RelativeBias(nn.Embedding):
    """What distance adds to the scores: one number a head for each bucket of distances, (buckets, H)."""

    def __init__(self, config: ModelConfig, causal: bool) -> None:
        super().__init__(config.relative_buckets, config.n_heads)
        self.causal, self.max_distance = causal, config.relative_max_distance

    def reset_parameters(self) -> None:
        """Leave the rows as they are: `initialize` draws the weights of a whole model."""

    def forward(self, positions: Tensor, n_keys: int) -> Tensor:
        """Queries at positions (B or 1, L), keys at 0 .. M-1 -> (B or 1, H, L, M)."""
        distance = torch.arange(n_keys, device=positions.device) - positions[..., None]
        return self.of_distances(distance).permute(0, 3, 1, 2)

    def of_distances(self, distance: Tensor) -> Tensor:
        """What distances key - query (...) add for each head: (..., H)."""
        bucket = distance_bucket(distance, self.num_embeddings, self.max_distance, self.causal)
        return super().forward(bucket)


def distance_bucket(distance: Tensor, n_buckets: int, max_distance: int, causal: bool) -> Tensor:
    """The bucket of each distance key - query: half of them exact, half growing with its logarithm.

    Where all is seen, one half of the buckets is for keys ahead. Distances of 32 buckets, causal: 0 1 2 .. 15
    each their own, 16 to 18 share one, 113 and more the last.
    """
    ahead = torch.zeros_like(distance)
    if causal:
        distance = (-distance).clamp(min=0)
    else:
        n_buckets //= 2
        ahead = (distance > 0).long() * n_buckets
        distance = distance.abs()
    exact = n_buckets // 2
    growth = torch.log(distance.float().clamp(min=1) / exact) / math.log(max_distance / exact)
    far = (exact + (growth * (n_buckets - exact)).long()).clamp(max=n_buckets - 1)
    return ahead + torch.where(distance < exact, distance, far)
