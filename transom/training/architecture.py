"""From settings to the shape of a model and of a step: the rules for every number that nobody gave."""

from __future__ import annotations

import math
from typing import Any

from ..errors import Refused
from ..model.config import SIZES, ModelConfig
from ..settings import ModelSettings, OptimSettings, TrainSettings
from .optimizers import Rates, default_rates


def model_config(settings: ModelSettings, vocab_size: int, **ids: int | None) -> ModelConfig:
    """The size's numbers, the settings over them, and what follows from a width that was given alone.

    ids: pad_id, bos_id, eos_id. A `dim` without the rest keeps the proportions: heads of at most 64, a
    feed-forward of 8/3 D (gated) or 4 D (plain). Queries and keys are normalised where positions are rotary
    and norms RMS: 0.1 to 0.2 nats per token at equal time on nano. Raises `Refused`.
    """
    given = settings.overrides()
    numbers: dict[str, Any] = dict(SIZES[settings.size])
    if "dim" in given:
        dim = given["dim"]
        head_dim = given.get("head_dim", min(64, dim))
        ffn_dim = 4 * dim if given.get("gated") is False else 32 * math.ceil(dim * 8 / 3 / 32)
        heads = max(1, dim // head_dim)
        numbers.update(head_dim=head_dim, n_heads=heads, n_kv_heads=heads, ffn_dim=ffn_dim)
    if "n_heads" in given:
        numbers["n_kv_heads"] = given["n_heads"]
    rotary_rms = given.get("position", "rotary") == "rotary" and given.get("norm", "rms") == "rms"
    numbers["qk_norm"] = rotary_rms
    numbers.update(given)
    try:
        return ModelConfig(**{"vocab_size": vocab_size, "kind": settings.kind, **numbers, **ids})
    except ValueError as error:
        raise Refused(f"model: {error}") from error


def windows_per_step(settings: TrainSettings, config: ModelConfig, world_size: int = 1) -> int:
    """How many windows of max_len tokens make one optimizer step, over all ranks. Raises `Refused`.

    The rule: about 25 * D tokens (a power of two). Muon then costs about a sixth of the step; twice as many
    tokens would halve that, and halve the steps that a short run has: nano learned less in the same time.
    """
    length = config.max_len
    tokens = settings.batch.tokens or max(length, 2 ** round(math.log2(25 * config.dim)))
    windows = tokens // length
    if windows < 1:
        raise Refused(
            f"batch.tokens is {tokens}, less than one window of {length} tokens (model.max_len); "
            f"give at least {length}"
        )
    if windows % world_size:
        fitting = max(1, round(windows / world_size)) * world_size
        raise Refused(
            f"a step has {windows} windows of {length} tokens, which {world_size} processes cannot share "
            f"equally; use --batch.tokens {fitting * length}"
        )
    return windows


def rates(settings: OptimSettings, config: ModelConfig) -> Rates:
    """The peak learning rates: as given, else by the rule for the width."""
    rule = default_rates(config.dim, settings.name)
    lr = settings.lr or rule.lr
    follows = lr if settings.name == "adamw" else rule.matrix_lr
    return Rates(lr=lr, matrix_lr=settings.matrix_lr or follows)


def settle(
    settings: TrainSettings, config: ModelConfig, peak: Rates, tokens_per_step: int, dtype: str
) -> TrainSettings:
    """The settings with every rule replaced by what it gave: what settings.toml keeps, and a resume
    compares."""
    named = [name for name in type(settings.model).model_fields if name not in ("kind", "size")]
    shape = {f"model.{name}": getattr(config, name) for name in named}
    return settings.with_({
        **shape,
        "optim.lr": peak.lr,
        "optim.matrix_lr": peak.matrix_lr,
        "batch.tokens": tokens_per_step,
        "dtype": dtype,
    })  # fmt: skip
