"""Every family that is read and written, one table each: the index of the files that hold the tables.

Family names live in those tables and nowhere else. A table says which keys of `config.json` hold which fields
of `ModelConfig`, which parts the family always has, and where its weights stand under what name.
Read next: family, decoder_families, encoder_families, seq2seq_families, expert_families.
"""

from __future__ import annotations

from transom.errors import Refused
from transom.model.config import ModelConfig

from .config_keys import ConfigKeys
from .decoder_families import GPT2, LLAMA, MISTRAL, QWEN2, QWEN3, SEED_OSS
from .encoder_families import BERT, ROBERTA
from .expert_families import DOTS1, MIXTRAL, OLMOE, QWEN3_MOE
from .family import Family, canonical, read_config, write_config
from .seq2seq_families import MARIAN, T5

# Where several can express the same model, the first of them is written.
BY_PREFERENCE = (
    LLAMA, MISTRAL, QWEN2, QWEN3, GPT2, QWEN3_MOE, DOTS1, MIXTRAL, OLMOE, BERT, ROBERTA, MARIAN, T5,
    SEED_OSS,
)  # fmt: skip
FAMILIES = {family.model_type: family for family in sorted(BY_PREFERENCE, key=lambda one: one.model_type)}


def family_for(config: ModelConfig) -> Family | None:
    """The family whose table expresses every field of `config`, or None: it takes Transom's own format.

    A family can express a config exactly when reading back what it writes gives the same config.
    """
    wanted = canonical(config)
    for family in BY_PREFERENCE if config.cell is None else ():
        fits = all(getattr(config, name) == value for name, value in family.parts.items())
        if fits and config.head in family.architectures.values():
            try:
                written = ConfigKeys(write_config(family, wanted), "config.json")
                back = read_config(family, written, config.head)
                if config.head == "embed":  # what is done with the hidden states stands in files beside
                    back = back.with_(pooling=wanted.pooling, normalize=wanted.normalize)
                if back == wanted:
                    return family
            except Refused:  # for example a width that the heads do not share evenly
                continue
    return None
