"""Which type of number a model runs in, and the words for it.

The choice is made once, when a folder is loaded, and every class here tells it in its repr: small models keep
float32 where a step is too little work for bfloat16 to win, batches of whole texts take it where the machine
is fast in it. Read next: load.
"""

from __future__ import annotations

import torch

from transom.errors import Refused
from transom.hardware import Hardware
from transom.model.build import Model
from transom.units import counted

DTYPES = ("float32", "bfloat16", "float16")
SMALL = 50_000_000
"""Parameters below which a decoder that writes a text at a time stays in float32; see `choose`."""
SMALL_BATCHED = 3_000_000
"""The same where many texts go through at once."""


def choose(
    wanted: torch.dtype | str | None, n_parameters: int, hardware: Hardware, *, batched: bool
) -> tuple[torch.dtype, str]:
    """Return the type of the weights, and why. Raises Refused for a type that is none.

    Writing, measured on 2 cores of a Zen 5 (torch 2.13, 2026-11-23), bfloat16 against float32: one text at a
    time 0.73 times as fast with 14M parameters, 0.86 to 0.97 with 90M to 320M; 16 texts 1.3 and 1.5 to 2.3;
    reading a prompt of 256 tokens 2.0 and 2.5 to 3.7. So small models keep the exact arithmetic.
    Whole texts, packed (`onednn_weights`), on one core of a Xeon with AMX (2026-11-24), 16 rows of 16 tokens
    and 64 of 32: 0.9 and 1.3 with 0.6M parameters, 1.4 and 2.0 with 1.8M, 2.4 and 3.4 with 5M, 3.2 and 3.9
    with 14M.
    """
    name = "auto" if wanted is None else str(wanted).removeprefix("torch.")
    if name not in ("auto", *DTYPES):
        raise Refused(f"dtype is '{name}'; it must be one of auto, {', '.join(DTYPES)}")
    small = SMALL_BATCHED if batched else SMALL
    if name == "auto" and n_parameters < small:
        return torch.float32, f"float32: exact, and as fast for fewer than {small // 10**6}M parameters"
    choice = hardware.choose_dtype(name)
    return choice.dtype, choice.reason


def dtype_of(model: Model) -> str:
    """Return the name of the type of a model's numbers."""
    return str(model.embed.weight.dtype).removeprefix("torch.")


def in_words(model: Model) -> str:
    """Return how large a model is and where it runs, for people who use it."""
    size = f"{model.n_parameters / 1e6:,.1f} million parameters, reads {model.config.max_len:,} tokens"
    return f"{size}, in {dtype_of(model)} on {model.embed.weight.device}"


def describe(model: Model, job: str, reason: str, runs_by: str = "") -> str:
    """Return one line for people: the job, the size of the model, where, in what arithmetic and by what it
    runs.
    """
    config = model.config
    read = f"{config.n_encoder_layers}+" if config.n_encoder_layers else ""
    layers = f"{read}{config.n_layers} layers" if read else counted(config.n_layers, "layer")
    size = f"{model.n_parameters:,} parameters, {layers}, {config.max_len:,} tokens long"
    how = "; ".join(filter(None, (reason or dtype_of(model), runs_by)))
    return f"{job}({size}, on {model.embed.weight.device}; {how})"
