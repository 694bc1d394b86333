"""Rotary positions in `config.json`: two spellings of the same few numbers.

Up to transformers 4.5x a config says `rope_theta` and `rope_scaling`; from 5 on, one table
`rope_parameters`. Both are read, and both are written, so that either reads us. Read next: families.
"""

from __future__ import annotations

from typing import Any

from transom.model.config import ModelConfig, RopeScaling

from .config_keys import ConfigKeys

LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
KINDS = {"default": (), "linear": ("factor",), "llama3": LLAMA3}
"""Kind of scaling -> the numbers it needs."""


def read_rope(keys: ConfigKeys, max_len: int, default: float) -> dict[str, Any]:
    """The fields rope_theta and rope_scaling of ModelConfig; raises Refused for other kinds of scaling.

    default: rope_theta where nothing says it.
    """
    new, old = keys.table("rope_parameters"), keys.table("rope_scaling")
    for name in new.values.keys() & old.values.keys():
        if new.get(name) != old.get(name):
            raise old.refuse(name, f"rope_parameters says {new.get(name)!r}")
    table = old if old.values else new
    theta = keys.real("rope_theta", default)
    theta = old.real("rope_theta", None) or new.real("rope_theta", None) or theta
    kind = table.choice(
        "rope_type" if not table.absent("rope_type") else "type", "default", {k: k for k in KINDS}
    )
    known = {"rope_type", "type", "rope_theta", *KINDS[kind]}
    for name, value in table.values.items():
        harmless = value is None or (name == "partial_rotary_factor" and value == 1)
        if name not in known and not harmless:
            raise table.refuse(name, f"it means nothing to {kind!r} scaling here")
    if kind == "default":
        return {"rope_theta": theta, "rope_scaling": None}
    factor = table.real("factor", None)
    if factor is None:
        raise table.refuse("factor", f"{kind!r} scaling needs it")
    if kind == "linear":
        return {"rope_theta": theta, "rope_scaling": RopeScaling("linear", factor)}
    low, high = table.real("low_freq_factor", None), table.real("high_freq_factor", None)
    if low is None or high is None or high <= low:
        raise table.refuse("high_freq_factor", "it must be above low_freq_factor, and both be there")
    original = table.count("original_max_position_embeddings", max_len)
    return {
        "rope_theta": theta,
        "rope_scaling": RopeScaling("llama3", factor, low, high, original or max_len),
    }


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """Both spellings, equal."""
    scaling = config.rope_scaling
    if scaling is None:
        numbers, kind = (), "default"
    else:
        numbers = (
            scaling.factor,
            scaling.low_freq_factor,
            scaling.high_freq_factor,
            scaling.original_max_len,
        )
        kind = scaling.kind
    table = {"rope_type": kind, **dict(zip(KINDS[kind], numbers, strict=False))}
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": table if scaling else None,
        "rope_parameters": table | {"rope_theta": config.rope_theta},
    }
