"""A loaded model and a text, looked into: what `transom look MODEL "text"` does.

A generator reads the text, a translator translates it first, an encoder reads it as it would to classify or
embed it. Read next: insight/overview.
"""

from __future__ import annotations

from typing import Any

from transom.errors import Refused
from transom.insight.overview import Overview, overview

from .batching import framed
from .sampling import SamplingParams
from .translator import Translator


def look_into(loaded: Any, text: str, name: str = "a model") -> Overview:
    """Overview at a text through what `load` gave. Raises `Refused`."""
    if not text:
        raise Refused("there is no text to look at; give one: transom look MODEL 'a text'")
    model, tokenizer = loaded.model, loaded.tokenizer
    title = f"Inside {name}"
    if isinstance(loaded, Translator):
        (request,) = loaded.requests([text], beam=1)
        written = loaded.translate(text, beam=1)
        tokens = [*request.prompt, *written.tokens][: model.config.max_len]
        return overview(model, tokens, tokenizer, source=request.source, title=title)
    if hasattr(loaded, "request"):
        (request,) = loaded.request(text, SamplingParams(max_tokens=1))
        return overview(model, request.prompt, tokenizer, title=title)
    ids = framed(tokenizer, [text], model.config.max_len)[0]
    return overview(model, ids.tolist(), tokenizer, title=title)
