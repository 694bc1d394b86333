"""From settings to the shape of a model and of a step: the rules for every number that nobody gave."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..errors import Refused
from ..model.build import Model, build
from ..model.config import SIZES, Experts, ModelConfig
from ..settings import EXPERTS, LIMITS, ModelSettings, OptimSettings, TrainSettings
from .budget import WARMUP_STEPS
from .optimizers import Rates, default_rates
from .task_facts import CELLS, TASK_FACTS

CAN = {
    member: tuple(task for task, facts in TASK_FACTS.items() if member in facts.members)
    for member in ("decoder", "encoder", "encoder-decoder", *CELLS)
}
"""The tasks that each member can learn."""

PRETRAINED_WINDOW = 1024
"""Tokens of a window of running text, and of a conversation, where weights are given and nobody says."""

BIASED = dict(qkv_bias=True, out_bias=True, ffn_bias=True)
LIKE_2017 = dict(norm="layer", norm_position="after", gated=False, qk_norm=False, **BIASED)
PARTS: dict[str, dict[str, Any]] = {
    "decoder": {},
    # As BERT and Marian have them, so that what is trained here is read as one of theirs.
    "encoder": LIKE_2017
    | dict(position="learned", activation="gelu", segments=2, embed_norm=True, norm_eps=1e-12),
    "encoder-decoder": LIKE_2017
    | dict(position="sinusoidal", activation="relu", scale_embeddings=True, head_bias=True, norm_eps=1e-5),
} | dict.fromkeys(CELLS, dict(n_layers=2, position="none", qk_norm=False))


def member(settings: ModelSettings, task: str) -> str:
    """Return the member of the family for a task: as asked for, else by the rule. Raises `Refused`."""
    facts = TASK_FACTS[task]
    kind = settings.kind or facts.members[0]
    if kind not in facts.members:
        article = "an" if kind[0] in "aeiour" and kind != "rnn" or kind in ("rnn", "lstm") else "a"
        raise Refused(
            f"model.kind is {kind}, and {article} {kind} cannot learn to {facts.does}; "
            f"use --model {' or '.join(facts.members)}, or --task {' or '.join(CAN[kind])}"
        )
    return kind


def model_config(
    settings: ModelSettings,
    vocab_size: int,
    task: str = "lm",
    labels: tuple[str, ...] = (),
    **ids: int | None,
) -> ModelConfig:
    """Combine the size's numbers, the member's parts, the settings over them, and what a width implies.

    labels: the classes, to classify. ids: pad_id, bos_id, eos_id, start_id. A `dim` without the rest keeps
    the proportions: heads of at most 64, a feed-forward of 8/3 D (gated) or 4 D (plain). In a decoder queries
    and keys are normalised where positions are rotary and norms RMS: 0.1 to 0.2 nats per token at equal time
    on nano. Raises `Refused`.
    """
    given, kind = settings.overrides(), member(settings, task)
    numbers: dict[str, Any] = {
        **SIZES[settings.size],
        **PARTS[kind],
        **TASK_FACTS[task].head,
        "labels": labels,
    }

    # A width alone brings heads and a feed-forward that fit it.
    dim = given.get("dim", numbers["dim"])
    plain = given.get("gated", numbers.get("gated")) is False
    if "dim" in given:
        head_dim = given.get("head_dim", min(64, dim))
        heads = max(1, dim // head_dim)
        numbers.update(head_dim=head_dim, n_heads=heads, n_kv_heads=heads)
        numbers["ffn_dim"] = 32 * math.ceil(dim * 8 / 3 / 32)
    if plain:
        numbers["ffn_dim"] = 4 * dim

    # What follows from other settings and from the member; then what was asked for, over all.
    if "n_heads" in given:
        numbers["n_kv_heads"] = given["n_heads"]
    if kind == "decoder":
        rotary_rms = given.get("position", "rotary") == "rotary" and given.get("norm", "rms") == "rms"
        numbers["qk_norm"] = rotary_rms
    if kind in CELLS:
        numbers.update(cell=kind, kind=TASK_FACTS[task].members[0])
        numbers.update(n_heads=1, n_kv_heads=1, head_dim=dim, ffn_dim=dim)
    else:
        numbers["kind"] = kind
    numbers.update(given)
    if numbers["kind"] == "encoder-decoder":
        numbers.setdefault("n_encoder_layers", numbers["n_layers"])
    if settings.experts:
        numbers["experts"] = experts(settings, numbers["ffn_dim"])
    try:
        return ModelConfig(**{"vocab_size": vocab_size, **numbers, **ids})
    except ValueError as error:
        raise Refused(f"model: {error}") from error


def experts(settings: ModelSettings, ffn_dim: int) -> Experts:
    """Return the experts that take the place of a feed-forward of width `ffn_dim`.

    What a token goes through is as wide, all together, as that was: the same operations a token.
    """
    through = settings.active_experts + settings.shared_experts
    width = settings.expert_dim or max(8, round(ffn_dim / through / 8) * 8)
    if settings.active_experts > settings.experts:
        raise Refused(
            f"model.active-experts is {settings.active_experts}, and there are {settings.experts} experts"
        )
    return Experts(
        n_experts=settings.experts,
        n_active=settings.active_experts,
        ffn_dim=width,
        n_shared=settings.shared_experts,
        score="sigmoid" if settings.balance == "bias" or settings.shared_experts else "softmax",
        balance=settings.balance,
        balance_rate=settings.balance_rate or Experts.balance_rate,
    )


def without_storage(config: ModelConfig) -> Model:
    """Make a model that has shapes and no numbers, to count with."""
    with torch.device("meta"):
        return build(config)


def longest_row(settings: TrainSettings, config: ModelConfig) -> int:
    """Tokens of the longest row that is learned from: as asked for, else as long as the model reads.

    For pretrained weights running text is cut into windows of at most `PRETRAINED_WINDOW`, and conversations
    are not longer, since a context of many thousands asks for more text and memory than most have. The
    model's own context stays as it is.
    """
    longest = settings.model.max_len or config.max_len
    if settings.model.max_len is None and settings.model.weights and TASK_FACTS[settings.task].long:
        longest = PRETRAINED_WINDOW
    return min(longest, config.max_len)


STEPS_OF_A_PASS = 48
"""At least so many steps for each pass through running text, by smaller ones where it is little."""


def windows_per_step(
    settings: TrainSettings, config: ModelConfig, world_size: int = 1, n_tokens: float = math.inf
) -> int:
    """Tell how many windows of `longest_row` tokens make one optimizer step, over all ranks, of a text of
    `n_tokens`. Raises `Refused`.

    The rule: about 25 * D tokens (a power of two). Muon then costs about a sixth of the step; twice as many
    tokens would halve that, and halve the steps that a short run has: nano learned less in the same time.
    Little text has smaller steps. 100 kB of prose, 4 passes, held-out bits per byte by the tokens of a step:
    4,096 2.382, 2,048 2.372, 1,024 2.374, 512 2.345; with another seed 4,096 2.426, 512 2.394 (2026-11-28).
    """
    length = longest_row(settings, config)
    most = 2 ** round(math.log2(25 * config.dim))
    if settings.task == "lm" and not settings.model.weights and n_tokens < most * STEPS_OF_A_PASS:
        most = 2 ** round(math.log2(max(1, n_tokens / STEPS_OF_A_PASS)))
    tokens = settings.batch.tokens or max(length * world_size, most)
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


def optimizer(settings: TrainSettings) -> str:
    """Return the optimizer: as asked for, else Muon, but AdamW for pretrained weights: not to be shaken."""
    if settings.optim.name != "auto":
        return settings.optim.name
    return "adamw" if settings.model.weights else "muon"


def phases(settings: TrainSettings, config: ModelConfig) -> dict[str, float | int]:
    """Return the shares of a run in which the rate rises and falls: as asked for, else by the rule.

    Post-norm, and weights that are given, need more of a rise. Post-norm also gains by a long fall: dates,
    700 steps, 5,000 unseen ones: 99.1% exact with 0.4 of the run (two seeds), 99.7% with 0.8 (2026-11-24).
    """
    optim, after = settings.optim, config.norm_position == "after"
    rise = 0.1 if after or settings.model.weights else 0.02
    least = WARMUP_STEPS if optim.warmup is None else 0
    return {
        "optim.warmup_steps": least if optim.warmup_steps is None else optim.warmup_steps,
        "optim.warmup": rise if optim.warmup is None else optim.warmup,
        "optim.cooldown": (0.8 if after else 0.4) if optim.cooldown is None else optim.cooldown,
    }


def rates(
    settings: OptimSettings, config: ModelConfig, task: str, pretrained: bool = False, lora: bool = False
) -> Rates:
    """Return the peak learning rates: as given, else by the rule for the width, for pretrained weights, or
    for adapters to them; of some tasks these are their own.

    One that is given alone moves the other with it: the matrices, where most of a model is, learn as much
    slower as was asked for.
    """
    own = TASK_FACTS[task].rates
    if own is not None and pretrained:
        rule = Rates(own[lora], own[lora])
    else:
        rule = default_rates(config, settings.name, pretrained, lora)
    lr = settings.lr or rule.lr
    return Rates(lr=lr, matrix_lr=settings.matrix_lr or rule.matrix_lr * lr / rule.lr)


PASSES = ((2_000, 3.0), (500, 10.0), (0, 20.0))
"""Of fine-tuning through at least so many examples: few are gone through often, and the best weights kept."""
TEXTS = 16, 32
"""Examples of a step, where they and not tokens are counted: of fewer than `MANY`, and from there on."""
MANY = 2_000


def by_evidence(settings: TrainSettings, n_examples: int | None) -> dict[str, float]:
    """Return the examples of a step, and how often fine-tuning goes through its data, where nobody gave them,
    by dotted name.

    n_examples: to learn from; None for running text, which is gone through as often as many examples are.
    """
    texts = None if n_examples is None else texts_of_step(settings, n_examples)
    by_rule: dict[str, float] = {} if texts is None else {"batch.texts": texts}
    if settings.recipe == "evidence" and all(settings.given().get(limit) is None for limit in LIMITS):
        most = MANY if n_examples is None else n_examples
        often = TASK_FACTS[settings.task].passes or PASSES
        by_rule["epochs"] = next(passes for least, passes in often if most >= least)
    return by_rule


def texts_of_step(settings: TrainSettings, n_examples: int) -> int | None:
    """Return the examples of an optimizer step where they are counted: as asked for, else by rule for
    answers and fine-tuning; None where tokens are, as to embed, where pairs are others' negatives.
    """
    if settings.batch.texts is not None:
        return settings.batch.texts
    answers = TASK_FACTS[settings.task].verb == "chat"
    counted = answers or (settings.recipe == "evidence" and settings.task != "embed")
    return TEXTS[n_examples >= MANY] if counted and settings.batch.tokens is None else None


ENOUGH = {"lm": 4.0, "translate": 12.0}
"""Passes up to which reading data again teaches nearly as much as new data (Muennighoff et al. 2023)."""
MOST_PASSES = {"lm": 8.0}
"""Of a run that memorises, where nobody said how long it shall be."""
AGAINST: dict[str, dict[str, float]] = {
    "lm": {"optim.weight_decay": 1.0},
    "translate": {"model.dropout": 0.2},
}
"""What such a run takes where nobody gave it, by dotted name (2026-11-28).

Prose (after arXiv 2605.01640): nano on 100 kB, steps of 512 tokens, two seeds, held-out bits per byte after
4 passes 2.345 and 2.394, after 8 2.769 and 2.865; 8 with dropout 0.2 2.491 and 2.498, 8 with a weight decay
of 1 2.238 and 2.322. Pairs: Multi30k, 0.6M parameters, 1,200 steps of 1,024 tokens, held-out nats without
dropout and with 0.2: 9 times through 4,000 pairs 3.04 and 3.23, 19 times through 2,000 4.20 and 3.42.
"""


def memorises(settings: TrainSettings, parameters: int, n_tokens: float, passes: float) -> bool:
    """Tell whether a run goes so often through `n_tokens` that a model from nothing learns them by heart:
    more often than `ENOUGH`, with more parameters than there are tokens.
    """
    enough = None if settings.model.weights else ENOUGH.get(settings.task)
    return enough is not None and passes > enough and parameters > n_tokens


def against_memorising(settings: TrainSettings) -> dict[str, float]:
    """Return what follows for a run that memorises where nobody gave it, by dotted name."""
    given, task = settings.given(), settings.task
    by_rule = {name: value for name, value in AGAINST[task].items() if not _names(given, name)}
    if task in MOST_PASSES and not any(limit in given for limit in LIMITS):
        by_rule["epochs"] = MOST_PASSES[task]
    return by_rule


def _names(given: dict[str, Any], name: str) -> bool:
    section, leaf = name.split(".")
    return leaf in given.get(section, {})


def settle(
    settings: TrainSettings, config: ModelConfig, peak: Rates, tokens_per_step: int, dtype: str
) -> TrainSettings:
    """Replace every rule in the settings by what it gave: settings.toml keeps that, a resume compares it."""
    beside = ("kind", "size", "weights", "max_len", *EXPERTS)
    named = [name for name in type(settings.model).model_fields if name not in beside]
    shape = {f"model.{name}": getattr(config, name) for name in named}
    shape["model.max_len"] = longest_row(settings, config)
    if config.experts is not None:
        shape["model.expert_dim"] = config.experts.ffn_dim
    return settings.with_({
        **shape,
        "optim.lr": peak.lr,
        "optim.matrix_lr": peak.matrix_lr,
        "batch.tokens": tokens_per_step,
        "dtype": dtype,
    })  # fmt: skip
