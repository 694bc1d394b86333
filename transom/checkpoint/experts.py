"""A mixture of experts in `config.json`: the same few numbers, spelled by every family in its own way.

Read next: expert_families.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from transom.model.config import Experts, ModelConfig

from .config_keys import ConfigKeys
from .tensors import MAX_TENSORS


@dataclass(frozen=True)
class ExpertKeys:
    """How a family spells its experts; None where it has no key for something."""

    n_experts: tuple[str, ...]
    """The key, under each of the names it has had; all are written."""
    ffn_dim: tuple[str, int]
    """The key of an expert's width, and its default."""
    defaults: tuple[int | None, int | None]
    """Experts, and those a token goes through, where the keys are left out."""
    score: Literal["softmax", "sigmoid"] = "softmax"
    loss: float | None = None
    """`router_aux_loss_coef` where it is left out; None: the load is balanced by a bias."""
    normalize: str | None = None
    """The key; None: the weights are always divided by their sum."""
    n_shared: str | None = None
    scale: str | None = None
    first_dense: str | None = None
    rate: str | None = None
    """A key of ours, for how far the bias moves in a step."""


def read_experts(table: ExpertKeys, keys: ConfigKeys, n_layers: int) -> Experts:
    """The experts that the keys of a family describe; raises Refused."""
    said = [key for key in table.n_experts if keys.get(key) is not None]
    for key in said[1:]:
        if keys.get(key) != keys.get(said[0]):
            raise keys.refuse(key, f"{said[0]} says {keys.get(said[0])!r}")
    name = said[0] if said else table.n_experts[0]
    n_experts = keys.count(name, table.defaults[0], least=2)
    if n_experts is None:
        raise keys.refuse(name, "how many experts there are must be said")
    if 3 * n_experts * n_layers > MAX_TENSORS:
        raise keys.refuse(name, f"with {n_layers} layers that is more than the {MAX_TENSORS:,} tensors read")
    n_active = keys.count("num_experts_per_tok", table.defaults[1])
    if n_active is None or n_active > n_experts:
        raise keys.refuse(
            "num_experts_per_tok", f"a whole number from 1 to {name}, {n_experts}, belongs there"
        )
    loss = None if table.loss is None else keys.real("router_aux_loss_coef", table.loss)
    rate = keys.real(table.rate, Experts.balance_rate) if table.rate else Experts.balance_rate
    return Experts(
        n_experts=n_experts,
        n_active=n_active,
        ffn_dim=keys.count(*table.ffn_dim),
        n_shared=keys.count(table.n_shared, 0, least=0) if table.n_shared else 0,
        score=table.score,
        normalize=keys.flag(table.normalize, False) if table.normalize else True,
        scale=keys.real(table.scale, 1.0) if table.scale else 1.0,
        balance="bias" if loss is None else "loss" if loss else "none",
        balance_rate=loss or rate,
        first_dense=keys.count(table.first_dense, 0, least=0) if table.first_dense else 0,
    )


def write_experts(table: ExpertKeys, config: ModelConfig) -> dict[str, Any]:
    """The keys of a family for the experts of a config."""
    experts = config.experts
    if experts is None:
        return {}
    balanced_by_loss = experts.balance_rate if experts.balance == "loss" else 0.0
    optional = {
        table.normalize: experts.normalize,
        table.n_shared: experts.n_shared,
        table.scale: experts.scale,
        table.first_dense: experts.first_dense,
        table.rate: experts.balance_rate,
        None if table.loss is None else "router_aux_loss_coef": balanced_by_loss,
    }
    return {
        **dict.fromkeys(table.n_experts, experts.n_experts),
        "num_experts_per_tok": experts.n_active,
        table.ffn_dim[0]: experts.ffn_dim,
        **{key: value for key, value in optional.items() if key is not None},
    }
