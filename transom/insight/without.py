"""How likely each token of a text is when one head says nothing of its own.

`ablate` gives one number for a question; here every token is judged anew, so that a page can show whose
probability moved. The head's output is replaced by its mean over the text: zero is a value that the layers
above may never have met. Read next: ablation, token_probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..errors import Refused
from .ablation import How, places, replacements, replacing, what_they_say
from .answer_score import AnswerScore
from .hooks import edited
from .module_finder import model_parts
from .token_probabilities import TokenProbabilities, token_probabilities


@torch.no_grad()
def without_head(
    model: nn.Module, tokens: Sequence[int], layer: int, head: int, *, how: How = "mean",
    source: Sequence[int] | None = None,
) -> TokenProbabilities:  # fmt: skip
    """The probability of each token (L,) without one head; of an encoder-decoder, of its decoder's own
    attention. Raises `Refused`.
    """
    parts = model_parts(model)
    modules = places(parts, "heads")
    for name, value, known in (("layer", layer, len(modules)), ("head", head, parts.n_heads)):
        if not 0 <= value < known:
            raise Refused(f"{name} is {value}; this model has 0 to {known - 1}")
    read = tuple(tokens[:-1])
    metric = AnswerScore(
        read, ((len(read) - 1, tokens[-1]),), None, None if source is None else tuple(source)
    )
    said = what_they_say(parts, metric, "heads")
    instead = replacements(said, how, torch.Generator().manual_seed(0))[layer]
    with edited(replacing(modules[layer], "heads", parts.n_heads, [(0, head)], instead)):
        return token_probabilities(model, tokens, top=1, source=source)
