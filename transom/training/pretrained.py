"""A run that begins with the weights of a model folder: which model comes out, and with which tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..checkpoint.hub import resolve
from ..checkpoint.huggingface import load_config, load_model
from ..data.gguf_file import is_gguf
from ..data.tokenizer import Tokenizer
from ..errors import Refused
from ..model.build import Model
from ..model.config import ModelConfig
from ..settings import EXPERTS, TrainSettings

FIELD_OF: dict[str, str] = {
    "experts": "n_experts",
    "active_experts": "n_active",
    "shared_experts": "n_shared",
    "expert_dim": "ffn_dim",
    "balance": "balance",
}
"""What the settings of experts are called in a config."""
MAY_CHANGE = ("dropout", "pooling")
"""What of a given model may be set anew: its weights do not depend on it."""


def tokenizer_of(settings: TrainSettings, otherwise: str) -> str:
    """Return the tokenizer: as asked for, else that of the pretrained weights, else `otherwise`."""
    asked = settings.data.tokenizer
    if asked != "auto":
        there = Path(asked).is_dir() or is_gguf(Path(asked))
        return str(resolve(asked)) if there else asked
    return str(resolve(settings.model.weights)) if settings.model.weights else otherwise


def pretrained_config(settings: TrainSettings, tokenizer: Tokenizer, **head: Any) -> ModelConfig:
    """Return the config of `model.weights` with another head and what else may change. Raises `Refused`."""
    assert settings.model.weights is not None
    config, _ = load_config(resolve(settings.model.weights))
    asked = {name: value for name, value in settings.model.given().items() if value is not None}
    if asked.get("max_len", config.max_len) <= config.max_len:  # of the texts; the model's own stays
        asked.pop("max_len", None)
    experts = config.experts
    if experts is None and not settings.model.experts:  # how they would be is then no question
        asked = {name: value for name, value in asked.items() if name not in EXPERTS}
    for name in asked.keys() - {*MAY_CHANGE, "weights", "kind", "size"}:
        stands = getattr(experts, FIELD_OF[name], 0) if name in FIELD_OF else getattr(config, name)
        if stands != asked[name]:
            raise Refused(
                f"model.{name} is {asked[name]}, and in {settings.model.weights} it is {stands}; "
                "the shape of pretrained weights stays as it is"
            )
    if tokenizer.vocab_size > config.vocab_size:
        raise Refused(
            f"the tokenizer has {tokenizer.vocab_size:,} entries, and {settings.model.weights} knows "
            f"{config.vocab_size:,}; leave out --data.tokenizer, and its own is taken"
        )
    changes = {name: asked[name] for name in MAY_CHANGE if name in asked}
    try:
        return config.with_(**{**head_changes(config, **head), **changes})
    except ValueError as error:
        raise Refused(f"{settings.model.weights}: {error}") from error


def head_changes(config: ModelConfig, **head: Any) -> dict[str, Any]:
    """Return the fields that change with the head; those of the old one go."""
    if head.get("head") == config.head == "tokens":
        return {}
    gone = dict(head_transform=False, head_bias=False, labels=(), normalize=False)
    return {**gone, **head}


def pretrained_model(settings: TrainSettings, config: ModelConfig, seed: int) -> Model:
    """Load the body of `model.weights` under the head of `config`, drawn from `seed` where it is new."""
    assert settings.model.weights is not None
    names = ("head", "head_transform", "head_bias", "labels", "pooling", "normalize", "dropout")
    return load_model(
        resolve(settings.model.weights), head={name: getattr(config, name) for name in names}, seed=seed
    )
