"""Which optimizer moves which weight, and how fast.

Muon for every matrix from hidden states to hidden states; AdamW for embeddings, scores (head, classes, the
router: pushing its rows to one size would make choices of noise), norms and biases; or AdamW for all. Muon's
iterations cost about 3.3 to 5 times min(rows, columns) / tokens-per-step of the rest of the step, so it pays
from about 50 * min(rows, columns) tokens a step on. Sources: muon; AdamW, Loshchilov & Hutter 2019.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import Refused
from ..model.config import ModelConfig
from ..model.initialize import is_matrix
from ..settings import OptimSettings
from .muon import Muon

LAYER = re.compile(r"^(.*?)layers\.(\d+)\.")
"""A weight of a layer, by its stack and number."""
EMBEDDING = re.compile(r"^(\w+\.)*(\w+_)?embed(_norm)?\.")
"""A table below the layers, or the norm that follows it."""


@dataclass(frozen=True)
class Rates:
    """Learning rates at the top of the schedule: of AdamW, and of the matrices."""

    lr: float
    matrix_lr: float

    def in_words(self, settings: OptimSettings) -> str:
        """Say them, and what learns at another rate."""
        said, matrices = f"{self.lr:.3g}", f"{self.matrix_lr:.3g}"
        if matrices != said:
            said += f", of matrices {matrices}"
        if settings.layer_decay not in (None, 1.0):
            said += f"; {settings.layer_decay:g} times that for each layer further down, then the embeddings"
        if settings.head_lr is not None:
            said += f"; the new head {settings.head_lr:.3g}"
        return said


def default_rates(config: ModelConfig, name: str, pretrained: bool = False, lora: bool = False) -> Rates:
    """Give the rule for a model when none is given; weights that were learned before move little. Adapters to
    them, whose product begins at zero, take the field's 2e-4 (Dettmers et al. 2023, QLoRA).

    Measured with nano on the standard library, 50 s of steps of 4,096 tokens with normalised queries and
    keys (2 cores, 2026-11-23), held-out nats per token by (lr, matrix_lr): (0.01, 0.01) 4.73, (0.015, 0.015)
    4.23, (0.02, 0.02) 4.35, (0.01, 0.03) 4.28.
    """
    if lora:
        return Rates(lr=2e-4, matrix_lr=2e-4)
    if pretrained:
        return Rates(lr=5e-5, matrix_lr=5e-5)
    narrow = min(1.0, (192 / config.dim) ** 0.5)  # nothing narrower was measured
    if config.norm_position == "after":
        # Post-norm breaks at the rates above. Dates, 300 steps of 2,048 tokens, held-out nats by (lr,
        # matrix_lr): (0.012, 0.02) 1.3 and not falling, (0.003, 0.005) 0.165, (0.002, 0.003) 0.147.
        slow = Rates(lr=2e-3 * narrow, matrix_lr=4e-3 * narrow)
        return slow if name != "adamw" else Rates(lr=1e-3 * narrow, matrix_lr=1e-3 * narrow)
    if name != "adamw":
        return Rates(lr=0.012 * narrow, matrix_lr=0.02 * narrow)
    return Rates(lr=2e-3 * narrow, matrix_lr=2e-3 * narrow)


def rate_shares(model: nn.Module, settings: OptimSettings, rates: Rates) -> dict[str, float]:
    """How much of the rate each weight learns at, by name: 1 but for what `layer_decay` and `head_lr` say.

    Of n layers layer i, from 0, has layer_decay ** (n - i), the tables below them layer_decay ** (n + 1),
    what stands above them 1 (Clark et al. 2020, ELECTRA); the head has head_lr / lr.
    """
    decay, shares = settings.layer_decay or 1.0, {}
    head = 1.0 if settings.head_lr is None else settings.head_lr / rates.lr
    places = {name: LAYER.search(name) for name, _ in model.named_parameters()}
    n_layers = Counter[str]()
    for place in filter(None, places.values()):
        n_layers[place[1]] = max(n_layers[place[1]], int(place[2]) + 1)
    for name, place in places.items():
        if place is not None:
            shares[name] = decay ** (n_layers[place[1]] - int(place[2]))
        elif EMBEDDING.search(name):
            shares[name] = decay ** (max(n_layers.values(), default=0) + 1)
        else:
            shares[name] = head if name.startswith("head.") else 1.0
    return shares


class Optimizers:
    """One or two optimizers over all weights of a model, stepped, saved and loaded as one.

    dtype: the arithmetic of Muon's iterations. With FSDP2, made after the model is spread.
    """

    def __init__(
        self, model: nn.Module, settings: OptimSettings, rates: Rates, dtype: torch.dtype = torch.float32
    ) -> None:
        weight_decay, betas = settings.weight_decay, (settings.beta1, settings.beta2)
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.names = {id(weight): n for n, weight in named.items()}
        matrices = {n: p for n, p in named.items() if is_matrix(n, p)}
        tables = {n: p for n, p in named.items() if p.ndim >= 2 and not is_matrix(n, p)}
        vectors = {n: p for n, p in named.items() if p.ndim < 2}
        shares = rate_shares(model, settings, rates)

        def by_rate(weights: Mapping[str, Tensor], lr: float, weight_decay: float) -> list[dict[str, Any]]:
            found: dict[float, list[Tensor]] = {}
            for name, weight in weights.items():
                found.setdefault(shares[name], []).append(weight)
            decayed = {"weight_decay": weight_decay}
            return [{"params": found[share], "lr": lr * share, **decayed} for share in found]

        # Norm weights and biases are not pulled towards zero: they are offsets and scales, not mixtures.
        groups = by_rate(tables, rates.lr, weight_decay) + by_rate(vectors, rates.lr, 0.0)
        of_matrices = by_rate(matrices, rates.matrix_lr, weight_decay)
        self.parts: list[torch.optim.Optimizer] = []
        if settings.name != "adamw":
            self.parts.append(Muon(of_matrices, rates.matrix_lr, settings.momentum, dtype=dtype))
        else:
            groups += of_matrices
        self.parts.append(torch.optim.AdamW(groups, lr=rates.lr, betas=betas, eps=1e-8, fused=True))
        for group in self._groups():
            group["peak_lr"] = group["lr"]

    def _groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def set_factor(self, factor: float) -> None:
        """Set every learning rate to `factor` times its peak."""
        for group in self._groups():
            group["lr"] = group["peak_lr"] * factor

    def step(self) -> None:
        """Apply one update to every weight."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """All running averages and counts under flat names, `NAME.momentum`, `NAME.exp_avg`; whole tensors.

        With FSDP2 every rank must call it: shards are gathered.
        """
        return {
            f"{self.names[id(weight)]}.{key}": whole(value)
            for part in self.parts
            for weight, state in part.state.items()
            for key, value in state.items()
        }

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state` gave, onto each weight's device and, with FSDP2, shard."""
        weights = {name: (part, w) for part, w, name in self._members()}
        for flat, value in tensors.items():
            name, _, key = flat.rpartition(".")
            if name not in weights:
                raise Refused(
                    f"the checkpoint holds optimizer state '{flat}' for a weight this model has not"
                )
            part, weight = weights[name]
            shaped = value.shape == weight.shape
            part.state[weight][key] = like(value, weight) if shaped else value.to(weight.device, copy=True)

    def _members(self) -> list[tuple[torch.optim.Optimizer, Tensor, str]]:
        return [
            (part, weight, self.names[id(weight)])
            for part in self.parts
            for group in part.param_groups
            for weight in group["params"]
        ]


def whole(value: Tensor) -> Tensor:
    """Copy to the CPU, sharing nothing; a sharded tensor is gathered, which all ranks must join."""
    full = value.full_tensor() if isinstance(value, DTensor) else value
    return full.detach().to("cpu", copy=True).contiguous()


def like(value: Tensor, weight: Tensor) -> Tensor:
    """`value` on the device of `weight`, and sharded as it is."""
    value = value.to(weight.device, copy=True)
    if isinstance(weight, DTensor):
        return distribute_tensor(value, weight.device_mesh, weight.placements)
    return value
