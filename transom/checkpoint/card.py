"""A model card for when the caller knows nothing but the shape of the model. Read next: huggingface."""

from __future__ import annotations

from transom.model.config import ModelConfig
from transom.units import counted

from .family import Family

# What the hub calls the job of a model, and what a person does.
JOBS = {
    ("decoder", "tokens"): ("text-generation", "language model"),
    ("encoder", "tokens"): ("fill-mask", "model of masked words"),
    ("encoder", "classify"): ("text-classification", "classifier of texts"),
    ("encoder", "tag"): ("token-classification", "classifier of tokens"),
    ("encoder", "embed"): ("sentence-similarity", "model that embeds texts"),
    ("encoder-decoder", "tokens"): ("translation", "model from texts to texts"),
}


def plain_card(config: ModelConfig, family: Family | None) -> str:
    """The README.md of a model folder: what it is, in numbers, and that nothing else is known."""
    tag, job = JOBS[config.kind, config.head]
    library, written = "transom", "Transom's own format; load it with Transom"
    if family is not None:
        library = "sentence-transformers" if config.head == "embed" else "transformers"
        written = f"`{family.architecture_of(config)}`"
    mixes = counted(config.n_heads, "head") if config.cell is None else config.cell.upper()
    return f"""---
library_name: {library}
pipeline_tag: {tag}
tags: [transom]
---
# A {job}

Made with Transom, stored as {written}: {counted(config.n_layers, "layer")} of width {config.dim},
{mixes}, {config.vocab_size:,} tokens in the vocabulary, at most {config.max_len:,} in a text.

What it learned from and how good it is was not recorded here.
"""
