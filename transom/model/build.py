"""From a config to a model: the one place that knows which class stands for which config.

Every model has the same interface: `model(tokens, ...)` gives hidden states, `logits`, `loss`, `new_state`,
`encode` where there is a source. Read next: transformer, recurrent.
"""

from __future__ import annotations

from .config import ModelConfig
from .recurrent import Recurrent
from .transformer import Transformer

Model = Transformer | Recurrent


def build(config: ModelConfig, seed: int = 0) -> Model:
    """The model that a config describes, with weights drawn from `seed`."""
    return Transformer(config, seed) if config.cell is None else Recurrent(config, seed)
