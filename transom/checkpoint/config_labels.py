"""Words of `config.json` that several families share: activations, labels, the width of a head.

Read next: decoder_families.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transom.model.config import ModelConfig

from .config_keys import ConfigKeys

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
ACTIVATION_LABELS = {name: name for name in ("silu", "gelu", "relu", "relu2")} | {
    "gelu_tanh": "gelu_pytorch_tanh"
}
MOST_LABELS = 100_000


def even_share(values: Mapping[str, Any], keys: ConfigKeys, key: str) -> int:
    """The width of a head where heads share the width of the model evenly; raises Refused where not."""
    if values["dim"] % values["n_heads"]:
        raise keys.refuse(key, f"the width {values['dim']} is not a multiple of it")
    return values["dim"] // values["n_heads"]


def read_labels(keys: ConfigKeys) -> tuple[str, ...]:
    """The classes in the order of their numbers, from id2label; raises Refused when they are not 0, 1, 2 ..

    Left out, they are called LABEL_0, LABEL_1 .. as transformers does.
    """
    table = keys.table("id2label").values
    n = keys.count("num_labels", None)
    if not table:
        n = n or 2
        if n > MOST_LABELS:
            raise keys.refuse("num_labels", f"at most {MOST_LABELS:,} classes are read")
        return tuple(f"LABEL_{i}" for i in range(n))
    numbers = [str(i) for i in range(len(table))]
    if sorted(table) != sorted(numbers):
        raise keys.refuse("id2label", f"the numbers of {len(table)} classes are 0 to {len(table) - 1}")
    labels = tuple(table[i] for i in numbers)
    if not all(isinstance(label, str) and label for label in labels) or len({*labels}) < len(labels):
        raise keys.refuse("id2label", "every class has a name of its own")
    if n is not None and n != len(labels):
        raise keys.refuse("num_labels", f"id2label names {len(labels)} classes")
    back = keys.table("label2id").values
    if back and back != {label: i for i, label in enumerate(labels)}:
        raise keys.refuse("label2id", "id2label says otherwise")
    return labels


def write_labels(config: ModelConfig) -> dict[str, Any]:
    """id2label and label2id, where there are classes."""
    if not config.labels:
        return {}
    return {
        "id2label": {str(i): label for i, label in enumerate(config.labels)},
        "label2id": {label: i for i, label in enumerate(config.labels)},
    }
