"""llama.cpp beside us on the same GGUF file: the same tokens of a text, the same greedy tokens of prompts.

It rounds what goes into a product to half precision where weights are f16, and to 8 bits where they are
packed; we compute in float32. So the two may part where two tokens are about as likely, and where they do the
log-probabilities that both give to both tokens say whether that is why. Needs llama-cpp-python, which is no
dependency. Read next: export.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import Refused
from ..inference.generator import Generator
from ..units import counted

NEAR = 1.0
"""Nats between two tokens from which on rounding does not explain that another one was taken."""


@dataclass(frozen=True)
class Parting:
    """Where the two first take another token after a prompt."""

    prompt: int
    place: int
    """Tokens that were the same before."""
    tokens: tuple[str, str]
    """Ours and that of llama.cpp."""
    ours: tuple[float, float]
    """Our log-probabilities of these two."""
    theirs: tuple[float, float]

    @property
    def gap(self) -> float:
        """How sure the surer of the two was, in nats."""
        return max(self.ours[0] - self.ours[1], self.theirs[1] - self.theirs[0])

    def __str__(self) -> str:
        (a, b), (x, y), (u, v) = self.tokens, self.ours, self.theirs
        return (
            f"after prompt {self.prompt} they part at token {self.place}: {a!r} has log-probability {x:.3f} "
            f"here and {u:.3f} there, {b!r} {y:.3f} and {v:.3f}"
        )


@dataclass(frozen=True)
class Agreement:
    """What was found. It prints itself."""

    same_tokens: bool
    """Whether a text has the same tokens in both."""
    n_prompts: int
    n_tokens: int
    """Greedy tokens after each prompt."""
    partings: tuple[Parting, ...]

    @property
    def wrong(self) -> str:
        """What rounding does not explain; empty: nothing."""
        if not self.same_tokens:
            return "a text has other tokens there"
        return next((str(one) for one in self.partings if one.gap > NEAR), "")

    def __str__(self) -> str:
        same = self.n_prompts - len(self.partings)
        said = f"the same tokens of a text; {self.n_tokens} greedy tokens are the same after {same} of "
        return "; ".join([f"{said}{counted(self.n_prompts, 'prompt')}", *map(str, self.partings)])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "same_tokens": self.same_tokens, "prompts": self.n_prompts, "tokens": self.n_tokens,
            "partings": [
                {"prompt": one.prompt, "place": one.place, "tokens": list(one.tokens), "ours": list(one.ours),
                 "theirs": list(one.theirs)} for one in self.partings
            ],
        }  # fmt: skip


def compare(
    path: Path, generator: Generator, text: str, prompts: Sequence[list[int]], n: int
) -> Agreement | None:
    """Compare a GGUF file in llama.cpp with what we loaded from it; None where llama.cpp is not installed.

    prompts: token ids; n: greedy tokens after each, as far as the model reads.
    """
    if find_spec("llama_cpp") is None:
        return None
    longest = max(map(len, prompts))
    n = min(n, generator.model.config.max_len - longest)
    written = _greedy(generator, prompts, n)
    partings = []
    with opened(path, longest + n) as peer:
        same_tokens = peer.tokens(text) == generator.tokenizer.encode(text)
        for number, (prompt, ours) in enumerate(zip(prompts, written, strict=True), 1):
            theirs = peer.greedy(prompt, n, generator.tokenizer.vocab_size)
            pairs = enumerate(zip(ours, theirs, strict=True))
            place = next((place for place, (a, b) in pairs if a != b), None)
            if place is not None:
                read, two = [*prompt, *ours[:place]], [ours[place], theirs[place]]
                here = torch.log_softmax(generator.logits(read)[-1].double(), -1)[two].tolist()
                there = peer.log_probabilities(read)[two].tolist()
                names = [generator.tokenizer.token(one) for one in two]
                partings.append(Parting(number, place, (names[0], names[1]), tuple(here), tuple(there)))
    return Agreement(same_tokens, len(prompts), n, tuple(partings))


def _greedy(generator: Generator, prompts: Sequence[list[int]], n: int) -> list[list[int]]:
    """The likeliest tokens by the model alone: what its folder says of how it writes changes nothing."""
    found = generator.generate(
        list(prompts), temperature=0, max_tokens=n, ignore_eos=True, repetition_penalty=1.0
    )
    return [list(one.tokens) for one in (found if isinstance(found, list) else [found])]


@contextmanager
def opened(path: Path, n_context: int) -> Iterator[LlamaCpp]:
    """A file in llama.cpp with room for so many tokens, as exact as it gets: a cache in float32, no fused
    attention, no weights packed anew for this machine (for AMX it ended the process where this was written).
    """
    llama: Any = import_module("llama_cpp")
    silent = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(silent, None)
    llama.llama_backend_init()
    params: Any = llama.llama_model_default_params()
    params.n_gpu_layers, params.use_extra_bufts = 0, False
    limits: Any = llama.llama_context_default_params()
    limits.n_ctx, limits.n_batch, limits.n_ubatch = n_context, n_context, n_context
    limits.n_threads = limits.n_threads_batch = torch.get_num_threads()
    limits.type_k = limits.type_v = 0  # GGML_TYPE_F32
    limits.flash_attn_type = 0
    model = llama.llama_model_load_from_file(str(path).encode(), params)
    context = llama.llama_init_from_model(model, limits) if model else None
    try:
        if not context:
            raise Refused(f"{path}: llama.cpp does not read it")
        yield LlamaCpp(llama, model, context)
    finally:
        if context:
            llama.llama_free(context)
        if model:
            llama.llama_model_free(model)
        llama.llama_log_set(ctypes.cast(ctypes.c_void_p(), llama.llama_log_callback), None)


@dataclass(frozen=True)
class LlamaCpp:
    """A model in llama.cpp."""

    llama: Any
    model: Any
    context: Any

    @property
    def vocab(self) -> Any:
        return self.llama.llama_model_get_vocab(self.model)

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text in which nothing is control."""
        data = text.encode()
        room = (self.llama.llama_token * (len(data) + 16))()
        n = self.llama.llama_tokenize(self.vocab, data, len(data), room, len(room), False, False)
        return list(room[:n])

    def greedy(self, prompt: Sequence[int], n: int, known: int) -> list[int]:
        """The n likeliest tokens after a prompt, out of the first `known`: the rest stands for nothing."""
        self.clear()
        made: list[int] = []
        logits = self.read(prompt)
        while True:
            made.append(int(logits[:known].argmax()))
            if len(made) == n:
                return made
            logits = self.read(made[-1:])

    def log_probabilities(self, tokens: Sequence[int]) -> np.ndarray:
        """Of what follows these tokens: (V,) float64."""
        self.clear()
        return torch.log_softmax(torch.from_numpy(self.read(tokens)).double(), -1).numpy()

    def clear(self) -> None:
        """Forget what was read."""
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self.context), True)

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        """Read on; the logits (V,) of what follows."""
        llama = self.llama
        ids = (llama.llama_token * len(tokens))(*tokens)
        if llama.llama_decode(self.context, llama.llama_batch_get_one(ids, len(tokens))) != 0:
            raise RuntimeError("llama.cpp could not read a text")
        size = llama.llama_vocab_n_tokens(self.vocab)
        return np.ctypeslib.as_array(llama.llama_get_logits_ith(self.context, -1), (size,)).copy()
