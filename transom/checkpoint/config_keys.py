"""A `config.json` read key by key: every value checked for its type and size, every key that was used noted.

A key of the wrong type is refused with its place; one that nobody asked for is reported, not lost.
Read next: families.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from transom.errors import Refused, nearest

LARGEST = 2**31 - 1
MOST_LAYERS = 4096
LAYERS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "n_encoder_layers",
    "encoder_layers",
    "decoder_layers",
    "num_layers",
    "num_decoder_layers",
    "block_count",
)


class ConfigKeys:
    """The table of one file, or a table inside it; `where` is said in every refusal."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where
        self.used: set[str] = set()
        self.notes: list[str] = []

    def refuse(self, key: str, why: str) -> Refused:
        """The error for one key, with what stands there."""
        found = f"is {str(self.get(key))[:80]!r}" if key in self.values else "is not there"
        return Refused(f"{self.where}: {key} {found}; {why}")

    def note(self, text: str) -> None:
        """Keep something to tell that is no reason to refuse."""
        self.notes.append(text)

    def absent(self, key: str) -> bool:
        """Whether a key is left out; null does not count as that."""
        return key not in self.values

    def get(self, key: str) -> Any:
        """The bare value, None when left out."""
        self.used.add(key)
        return self.values.get(key)

    def count(self, key: str, default: int | None, least: int = 1) -> Any:
        """A whole number, or the default for null and for a key left out."""
        value = self.get(key)
        if value is None:
            return default
        most = MOST_LAYERS if key.rpartition(".")[2] in LAYERS else LARGEST
        if type(value) is not int or not least <= value <= most:
            raise self.refuse(key, f"a whole number from {least} to {most:,} belongs there")
        return value

    def real(self, key: str, default: float | None) -> Any:
        """A finite number that is not negative."""
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise self.refuse(key, "a number that is not negative belongs there")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refuse(key, "true or false belongs there")
        return value

    def choice(self, key: str, default: str, meanings: Mapping[str, str]) -> str:
        """What one of a few words means."""
        value = default if self.get(key) is None else self.get(key)
        if not isinstance(value, str) or value not in meanings:
            close = nearest(value, meanings) if isinstance(value, str) else ""
            raise self.refuse(key, f"supported are {', '.join(meanings)}{close}")
        return meanings[value]

    def words(self, key: str, allowed: Sequence[str], n: int) -> list[str] | None:
        """A list of `n` of the allowed words."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != n or not all(word in allowed for word in value):
            raise self.refuse(key, f"a list of {n} words out of {', '.join(allowed)} belongs there")
        return value

    def table(self, key: str) -> ConfigKeys:
        """A table inside this one; empty for null and for a key left out."""
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.refuse(key, "a table belongs there")
        return ConfigKeys(value or {}, f"{self.where}: {key}")

    def token_id(self, key: str, default: int | None, vocab_size: int) -> int | None:
        """The id of a special token, the first of a list; an id outside of the vocabulary counts as none."""
        value = self.get(key)
        if isinstance(value, list) and value and all(type(one) is int for one in value):
            value = value[0]
        if self.absent(key):
            value = default
        if value is not None and type(value) is not int:
            raise self.refuse(key, "a token id, a list of them, or null belongs there")
        if value is None or 0 <= value < vocab_size:
            return value
        if not self.absent(key) and value != -1:
            self.note(f"{key} {value} is outside of the vocabulary of {vocab_size}, so there is none")
        return None
