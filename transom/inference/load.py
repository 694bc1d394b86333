"""From a folder to whatever its model is for: a Generator, Translator, Classifier, Embedder or FillMask.

What a model does follows from its config alone: its kind and its head. Read next: generator, translator,
classifier, embedder, fill_mask.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, overload

import torch

from transom.checkpoint.adapter import model_of, texts_of
from transom.checkpoint.generation import GENERATION, read_generation
from transom.checkpoint.hub import resolve
from transom.checkpoint.huggingface import empty_model, fill_model, load_config
from transom.checkpoint.sentence import load_max_tokens
from transom.data.tokenizer import Tokenizer
from transom.errors import Refused
from transom.hardware import Hardware
from transom.model.config import ModelConfig
from transom.sampling_params import SamplingParams

from .dtype import choose

if TYPE_CHECKING:
    from .classifier import Classifier
    from .embedder import Embedder
    from .fill_mask import FillMask
    from .generator import Generator
    from .translator import Translator

    Loaded = Generator | Translator | Classifier | Embedder | FillMask
    Job = TypeVar("Job", bound=Loaded)

HOMES = {
    ("decoder", "tokens"): ("generator", "Generator"),
    ("encoder-decoder", "tokens"): ("translator", "Translator"),
    ("encoder", "classify"): ("classifier", "Classifier"),
    ("encoder", "embed"): ("embedder", "Embedder"),
    ("encoder", "tokens"): ("fill_mask", "FillMask"),
}
"""Kind and head of a model -> the file and the class of its job."""

log = logging.getLogger(__name__)


@overload
def load(
    folder_or_id: str | Path,
    kind: type[Job],
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    merge: bool = False,
    adapters: Mapping[str, str | Path] = MappingProxyType({}),
    weights: str | None = None,
) -> Job: ...
@overload
def load(
    folder_or_id: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    merge: bool = False,
    adapters: Mapping[str, str | Path] = MappingProxyType({}),
    weights: str | None = None,
) -> Loaded: ...
def load(
    folder_or_id: str | Path,
    kind: type[Loaded] | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    merge: bool = False,
    adapters: Mapping[str, str | Path] = MappingProxyType({}),
    weights: str | None = None,
) -> Loaded:
    """The model of a local folder, a GGUF file or a hub id (`owner/name`), ready for its job.

    Gives a Generator (decoder), Translator (encoder-decoder), Classifier, Embedder or FillMask (encoder, by
    its head). A folder may be a run, a model folder or an adapter (LoRA).

    kind: which of these it must be, so that an editor knows too. dtype: float32, bfloat16 or
    float16, the weights being cast once; None chooses, and the repr of what is loaded tells why. device: as
    torch names it; None takes the GPU where there is one. merge: of an adapter folder (LoRA), put what it
    learned into the weights of its base; else it stands beside them, rounded apart. adapters: by
    name, the adapter folders that work over this model at once: `loaded.adapters[name]` is each of them.
    weights: `int8` multiplies in 8 bits, on a CPU whose kernels run the model (any but one that fills
    masks): faster, and a little less exact; `bfloat16` reads 16 bits of each weight of a float32 model
    there; None as the model has them. Raises Refused for what is not
    there or cannot be read.
    """
    folder = resolve(folder_or_id)
    hardware = Hardware.detect("auto" if device is None else str(device))
    config, family = load_config(folder)
    made = _job(config, folder, kind)
    model: Any = empty_model(config, folder)
    chosen, reason = choose(dtype, model.n_parameters, hardware, batched=config.kind != "decoder")
    texts = texts_of(folder)
    tokenizer = Tokenizer.load(texts)
    _check_fits(tokenizer, config, texts)
    fill_model(model, folder, family, dtype=chosen, device=hardware.device, merge=merge)
    if adapters:
        if config.kind != "decoder":
            raise Refused(
                f"{folder}: adapters work side by side over a model that writes; load each by itself"
            )
        places = {name: resolve(place) for name, place in adapters.items()}
        made = partial(made, adapters=places, base=folder)
    if weights:
        if (config.kind, config.head) == ("encoder", "tokens"):
            raise Refused(f"{folder}: no kernels read {weights} weights of such a model; leave it out")
        made = partial(made, weights=weights)
    return made(model.eval(), tokenizer, reason=reason)


def foreseen(folder: Path, *, dtype: str | None, device: str | None) -> tuple[str, str, str]:
    """What `load` would make of a folder: the class, the type of its numbers, and the device."""
    hardware, (config, _) = Hardware.detect(device or "auto"), load_config(folder)
    _job(config, folder, None)
    n_parameters = empty_model(config, folder).n_parameters
    chosen, _ = choose(dtype, n_parameters, hardware, batched=config.kind != "decoder")
    return HOMES[config.kind, config.head][1], str(chosen).removeprefix("torch."), hardware.device


def _check_fits(tokenizer: Tokenizer, config: ModelConfig, folder: Path) -> None:
    """Raise Refused where a text could become a token that the model does not have.

    Control tokens beyond the model (a padding token that was added, say) are let be: no text becomes one.
    """
    if tokenizer.vocab_size <= config.vocab_size:
        return
    written = {*chain(*tokenizer.frame), tokenizer.eos_id, tokenizer.bos_id, tokenizer.mask_id}
    spare = tokenizer.control_ids - written
    beyond = {
        number: token
        for token, number in tokenizer.backend.get_vocab(with_added_tokens=True).items()
        if number >= config.vocab_size
    }
    if unfit := sorted(beyond.keys() - spare):
        raise Refused(
            f"{folder}: {beyond[unfit[0]]!r} is token {unfit[0]} of the tokenizer, but the model has"
            f" {config.vocab_size} (0 to {config.vocab_size - 1}); they were not made for each other"
        )
    named = ", ".join(repr(beyond[number]) for number in sorted(beyond))
    log.warning("%s: the model has no row for %s; what needs it is refused", folder, named[:200])


def _job(config: ModelConfig, folder: Path, kind: type[Loaded] | None) -> Callable[..., Loaded]:
    """Return what is made of a model of this config, which must be of a `kind` if there is one."""
    if (config.kind, config.head) not in HOMES:
        known = "transom.checkpoint.huggingface.load_model reads it"
        raise Refused(f"{folder}: a model whose head can {config.head} has no job here yet; {known}")
    home, name = HOMES[config.kind, config.head]
    job = getattr(import_module(f".{home}", __package__), name)
    if kind is not None and kind is not job:
        raise Refused(f"{folder} holds a {name}, not a {getattr(kind, '__name__', kind)}")
    if config.head == "embed":
        return partial(job, max_tokens=load_max_tokens(model_of(folder), config))
    if config.kind == "encoder":
        return job
    said = read_generation(folder, config.vocab_size, searches=config.kind == "encoder-decoder")
    try:
        SamplingParams.of(dict(said.sampling))
    except Refused as refused:
        raise Refused(f"{model_of(folder) / GENERATION}: {refused}") from None
    place = {"folder": texts_of(folder)} if config.kind == "decoder" else {}
    return partial(job, eos_ids=said.eos_token_id, generation=said, **place)
