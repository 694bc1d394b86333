"""What generation_config.json says of how a model writes, each key under the name it has there.

Read as `transformers` reads it: without that file, config.json may hold the same keys. What is not obeyed
here is said once, when the folder is loaded. Read next: inference.token_rules, which does what is forced and
forbidden.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transom.data.gguf_file import is_gguf, read_gguf
from transom.data.gguf_tokenizer import end_ids
from transom.data.in_folder import inside

from .adapter import model_of
from .config_keys import ConfigKeys
from .strict_json import read_json

CONFIG, GENERATION = "config.json", "generation_config.json"
SAMPLED = ("temperature", "top_k", "top_p", "min_p")
"""What shapes a draw and has no effect where the likeliest token is taken."""
GENTLE = {"temperature": 0.7, "top_p": 0.9}
"""How an answer in a chat is drawn where neither its folder nor the call says anything of `SAMPLED`.

SmolLM2-135M-Instruct, 20 easy questions by 3 seeds: 39 of 60 right, 27 at temperature 1, 36 at 0.2 with the
same top_p, which repeats itself most (31% of 4-grams in longer answers, 12% here).
"""
OBEYED = (
    *SAMPLED, "do_sample", "repetition_penalty", "max_length", "max_new_tokens", "min_length",
    "min_new_tokens", "num_beams", "length_penalty", "early_stopping", "no_repeat_ngram_size",
    "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id",
    "decoder_start_token_id", "eos_token_id",
)  # fmt: skip
NOT_OBEYED = (
    "typical_p", "top_h", "epsilon_cutoff", "eta_cutoff", "encoder_repetition_penalty", "sequence_bias",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "num_beam_groups", "constraints",
    "diversity_penalty", "penalty_alpha", "force_words_ids", "forced_decoder_ids", "guidance_scale",
    "renormalize_logits", "remove_invalid_values", "stop_strings", "token_healing", "watermarking_config",
    "dola_layers", "max_time", "num_return_sequences",
)  # fmt: skip
"""Keys of `transformers` that would change a text and are not computed here."""

OF_GGUF = {
    "temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}  # fmt: skip
"""Name of a setting -> what it is called among `general.sampling.*` of GGUF."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GenerationConfig:
    """How a model is meant to write, by its folder; None and empty: the folder does not say."""

    eos_token_id: tuple[int, ...] = ()
    """Every id that ends a text."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Fields of SamplingParams that hold where a request gives none; temperature 0 for `do_sample: false`."""
    repetition_penalty: float = 1.0
    """Of a search; of a draw it stands in `sampling`."""
    decoder_start_token_id: int | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] = False
    max_length: int | None = None
    """Most tokens, those of the prompt (or the start of a target) included."""
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()

    def draws(self, given: Mapping[str, Any], *, chat: bool = False) -> dict[str, Any]:
        """How a text is drawn: as `given`, else as the folder says; an answer in a chat, else, gently."""
        said = {**self.sampling, **given}
        return said if not chat or any(name in said for name in SAMPLED) else {**GENTLE, **said}


UNSAID = GenerationConfig()
"""Of a folder that says nothing."""


def load_generation(folder: str | Path) -> dict[str, Any]:
    """A folder's generation settings as they stand, with every id that ends a text as `eos_token_id`.

    A GGUF file says some of them in its metadata; of an adapter they are its base's.
    """
    folder = model_of(Path(folder))
    if is_gguf(folder):
        file = read_gguf(folder)
        told = {name: file.metadata.get(f"general.sampling.{key}") for name, key in OF_GGUF.items()}
        return {name: value for name, value in told.items() if value is not None} | {
            "eos_token_id": end_ids(file)
        }
    config = read_json(inside(folder, CONFIG))
    if (folder / GENERATION).exists():
        settings = read_json(inside(folder, GENERATION))
    else:
        settings = {name: config[name] for name in (*OBEYED, *NOT_OBEYED) if config.get(name) is not None}
    ends = settings.get("eos_token_id", config.get("eos_token_id"))
    ends = ends if isinstance(ends, list) else [ends]
    settings["eos_token_id"] = [one for one in ends if type(one) is int and one >= 0]
    return settings


def read_generation(folder: str | Path, vocab_size: int, *, searches: bool = False) -> GenerationConfig:
    """The same, checked. searches: texts of this model are searched for (beams), not drawn.

    Raises Refused for a value of the wrong kind and for an id that is no token of the model where one is to
    be written; logs what is not obeyed.
    """
    folder = model_of(Path(folder))
    name = GENERATION if (folder / GENERATION).exists() else CONFIG
    keys = ConfigKeys(load_generation(folder), str(folder / name))
    config = GenerationConfig(
        eos_token_id=tuple(keys.get("eos_token_id")),
        sampling={} if searches else _sampling(keys),
        repetition_penalty=keys.real("repetition_penalty", 1.0) if searches else 1.0,
        decoder_start_token_id=_token(keys, "decoder_start_token_id", vocab_size),
        num_beams=keys.count("num_beams", None),
        length_penalty=_signed(keys, "length_penalty"),
        early_stopping=_early_stopping(keys),
        max_length=keys.count("max_length", None),
        max_new_tokens=keys.count("max_new_tokens", None),
        min_length=keys.count("min_length", 0, 0),
        min_new_tokens=keys.count("min_new_tokens", 0, 0),
        no_repeat_ngram_size=keys.count("no_repeat_ngram_size", 0, 0),
        bad_words_ids=_bad_words(keys, vocab_size),
        suppress_tokens=_tokens(keys, "suppress_tokens", vocab_size),
        begin_suppress_tokens=_tokens(keys, "begin_suppress_tokens", vocab_size),
        forced_bos_token_id=_token(keys, "forced_bos_token_id", vocab_size),
        forced_eos_token_id=_tokens(keys, "forced_eos_token_id", vocab_size),
    )
    if config.repetition_penalty == 0:
        raise keys.refuse("repetition_penalty", "a number above 0 belongs there")
    if unheeded := _unheeded(keys, searches):
        log.warning("%s: not obeyed here: %s", keys.where, ", ".join(unheeded)[:400])
    return config


def _sampling(keys: ConfigKeys) -> dict[str, Any]:
    """What holds for a draw, as fields of SamplingParams; its limits are checked where they are known."""
    given = {name: value for name in SAMPLED if (value := keys.get(name)) is not None}
    if given.get("top_k") in (0, -1):
        given["top_k"] = None
    if not keys.flag("do_sample", True):
        given = {"temperature": 0}
    penalty = keys.get("repetition_penalty")
    return given if penalty is None else {**given, "repetition_penalty": penalty}


def _early_stopping(keys: ConfigKeys) -> bool | Literal["never"]:
    return "never" if keys.get("early_stopping") == "never" else keys.flag("early_stopping", False)


def _signed(keys: ConfigKeys, key: str) -> float | None:
    value = keys.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -10 <= value <= 10:
        raise keys.refuse(key, "a number from -10 to 10 belongs there")
    return float(value)


def _token(keys: ConfigKeys, key: str, vocab_size: int) -> int | None:
    found = _ids(keys, key, keys.get(key))
    if len(found) > 1 or any(one >= vocab_size for one in found):
        raise keys.refuse(key, f"one of the model's {vocab_size} tokens belongs there")
    return found[0] if found else None


def _tokens(keys: ConfigKeys, key: str, vocab_size: int) -> tuple[int, ...]:
    """Ids; one that is no token of the model is never written and so needs no rule."""
    return tuple(one for one in _ids(keys, key, keys.get(key)) if one < vocab_size)


def _bad_words(keys: ConfigKeys, vocab_size: int) -> tuple[tuple[int, ...], ...]:
    words = keys.get("bad_words_ids") or []
    if not isinstance(words, list) or not all(isinstance(word, list) and word for word in words):
        raise keys.refuse("bad_words_ids", "a list of lists of token ids belongs there")
    found = (_ids(keys, "bad_words_ids", word) for word in words)
    return tuple(word for word in found if max(word) < vocab_size)


def _ids(keys: ConfigKeys, key: str, value: Any) -> tuple[int, ...]:
    listed = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(one) is int and one >= 0 for one in listed):
        raise keys.refuse(key, "token ids belong there, whole numbers from 0")
    return tuple(listed)


def _unheeded(keys: ConfigKeys, searches: bool) -> list[str]:
    """Keys that would change a text in `transformers` and change nothing here, each with its value."""
    names = [*NOT_OBEYED, "do_sample"] if searches else [*NOT_OBEYED, "num_beams"]
    return [
        f"{name} {str(value)[:60]}"
        for name in names
        if (value := keys.values.get(name)) is True or value not in (None, False, 0, 1, "", [], {})
    ]
