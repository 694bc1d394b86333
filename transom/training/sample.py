"""What the model makes of something while it learns: the quickest way to see how far it is.

It is run as it will be run later, by the engine of `inference/`, over the weights in memory. Nothing is drawn
from the random numbers of training, and the engine's cache holds no more than what is asked. Logits that are
not finite end a text where it is. Read next: inference/generator.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..checkpoint.generation import GenerationConfig
from ..data.chat_template import ChatTemplate
from ..data.tokenizer import Tokenizer
from ..errors import Refused
from ..inference.classifier import Classifier
from ..inference.fill_mask import FillMask
from ..inference.generator import Generator
from ..inference.request import Request
from ..inference.sync_engine import sync_settings
from ..inference.translator import Translator
from ..model.build import Model
from ..sampling_params import SamplingParams

DRAWN = {"temperature": 0.8, "top_p": 0.95}
"""How running text is drawn, here and by whoever uses the model."""
BLOCK = 8
"""Tokens by which a cache is rounded up."""


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Let a model answer for a moment: no dropout, no gradients, nothing compiled for lengths seen once."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.train(was_training)
        gc.collect()  # an engine and its cache refer to each other, and training collects at saves alone


def run(job: Generator | Translator, requests: Sequence[Request]) -> None:
    """Run requests to their end in an engine that has room for them and for nothing else."""
    n_tokens = sum(len(one.prompt) + one.max_tokens + BLOCK for one in requests)
    engine = job.engine(sync_settings(max_rows=len(requests)), n_tokens=n_tokens)
    for request in requests:
        engine.submit(request)
    while engine.busy:
        engine.step()


def ends(tokenizer: Tokenizer) -> list[int]:
    """Return the tokens that end a text: a model that knows little writes padding too."""
    return [token for token in (tokenizer.eos_id, tokenizer.pad_id) if token is not None]


def sample(
    model: Model,
    *,
    tokenizer: Tokenizer,
    prompt: str,
    max_tokens: int = 48,
    temperature: float = DRAWN["temperature"],
    top_p: float = DRAWN["top_p"],
    seed: int = 0,
) -> str:
    """Continue `prompt`; return what was written, "" where none fits; the same seed gives the same text."""
    with evaluating(model):
        said = GenerationConfig(max_new_tokens=max_tokens)
        generator = Generator(model, tokenizer, eos_ids=ends(tokenizer), generation=said)
        try:
            params = SamplingParams(temperature=temperature, top_p=top_p, seed=seed)
            requests = generator.request(prompt, params)
        except Refused:  # no room after the prompt, or nothing that opens an empty one
            return ""
        run(generator, requests)
    return requests[0].text


def answered(
    model: Model,
    *,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    max_tokens: int,
) -> str:
    """Answer a conversation with the likeliest tokens; what does not end within `max_tokens` says so."""
    with evaluating(model):
        generator = Generator(model, tokenizer, eos_ids=[*ends(tokenizer), *template.end_ids(tokenizer)])
        try:
            prompt = template.render(messages, tokenizer).tokens
            params = SamplingParams(temperature=0, max_tokens=max_tokens)
            requests = generator.request(prompt, params, continues=False)
        except Refused:  # no room after the prompt
            return ""
        run(generator, requests)
    request = requests[0]
    return request.text + ("" if request.finish_reason == "stop" else f" ... [{max_tokens} tokens, no end]")


def translated(model: Model, *, tokenizer: Tokenizer, source: str) -> tuple[str, float]:
    """Translate greedily; return the text, and how likely the model finds it as a whole, its end included."""
    with evaluating(model):
        translator = Translator(model, tokenizer, eos_ids=ends(tokenizer))
        requests = translator.requests([source], beam=1)
        run(translator, requests)
        (answer,) = translator.answers([source], requests)
    return answer.text, math.exp(answer.logprob)


def fill(model: Model, *, tokenizer: Tokenizer, prompt: str) -> str:
    """Return what a masked model puts in the place of the last token of `prompt`, likeliest first."""
    ids, (before, after) = tokenizer.framed(prompt.rstrip()), tokenizer.frame
    if tokenizer.mask_id is None or not len(before) + len(after) < len(ids) <= model.config.max_len:
        return ""
    ids[len(ids) - len(after) - 1] = tokenizer.mask_id
    with evaluating(model):
        (best,) = FillMask(model, tokenizer).read(ids)  # type: ignore[arg-type]
    return " | ".join(one.text for one in best)


def classified(model: Model, *, tokenizer: Tokenizer, text: str) -> str:
    """Return the likeliest class of a text, with its probability."""
    with evaluating(model):
        answer = Classifier(model, tokenizer).classify(text, cut=True)  # type: ignore[arg-type]
    return f"{answer.label} ({answer.confidence:.2f})"
