"""A loaded model and a text, looked into: what `transom look MODEL "text"` does.

A generator reads the text, a translator translates it first, an encoder reads it as it would to classify or
embed it. Read next: insight/overview.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transom.errors import Refused
from transom.insight.html import readable, visible
from transom.insight.overview import Overview, overview
from transom.sampling_params import SamplingParams

from .batching import framed
from .translator import Translator


def look_into(loaded: Any, text: str, name: str = "a model", patch: str | None = None) -> Overview:
    """Look at a text through what `load` gave, beside another one if `patch` is given. Raises `Refused`."""
    if not text:
        raise Refused("there is no text to look at; give one: transom look MODEL 'a text'")
    model, tokenizer = loaded.model, loaded.tokenizer
    title = f"Inside {name}"
    if patch is not None and (isinstance(loaded, Translator) or not hasattr(loaded, "request")):
        raise Refused("--patch compares what two texts are followed by; give a model that writes on")
    if isinstance(loaded, Translator):
        (request,) = loaded.requests([text], beam=1)
        written = loaded.translate(text, beam=1)
        tokens = [*request.prompt, *written.tokens][: model.config.max_len]
        return overview(model, tokens, tokenizer, source=request.source, title=title)
    if hasattr(loaded, "request"):
        (request,) = loaded.request(text, SamplingParams(max_tokens=1))
        other = None if patch is None else _of_as_many(loaded, patch, request.prompt)
        return overview(model, request.prompt, tokenizer, other=other, title=title)
    ids = framed(tokenizer, [text], model.config.max_len)[0]
    return overview(model, ids.tolist(), tokenizer, title=title)


def _of_as_many(loaded: Any, patch: str, prompt: Sequence[int]) -> list[int]:
    """Return the tokens of the other text, which must be as many as those of the text."""
    if not patch:
        raise Refused("--patch: there is no other text; give one that differs in a word")
    (request,) = loaded.request(patch, SamplingParams(max_tokens=1))
    if len(request.prompt) != len(prompt):
        words = " ".join(visible(word) for word in readable(loaded.tokenizer, request.prompt)[:32])
        raise Refused(f"--patch: {len(request.prompt)} tokens ({words}) beside {len(prompt)} of the text; "
                      "each piece goes to its own place: change words, not the number of tokens")  # fmt: skip
    return request.prompt
