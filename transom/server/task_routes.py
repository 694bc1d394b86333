"""What is not text that goes on: `/translate`, `/classify`, `/v1/embeddings`, `/tokenize`, `/detokenize`.

Read next: streaming.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transom.inference.encoder_engine import NO_OPTIONS

from .chat_schema import TokenizeBody, for_template
from .endpoint import Answer, Call
from .errors import ApiError, unavailable
from .prompts import render
from .schema import ClassifyBody, DetokenizeBody, EmbeddingBody, TranslateBody, as_list
from .streaming import all_parts, failure


async def translate(call: Call) -> Answer:
    """Return the likeliest target of each text, of several lines line by line."""
    asked: TranslateBody = call.asked
    translator = call.served.model

    def requests() -> list[Any]:
        return translator.requests(
            as_list(asked.text), beam=asked.beam, length_penalty=asked.length_penalty,
            max_tokens=asked.max_tokens, tenant=call.tenant, id=call.id,
        )  # fmt: skip

    made = await call.text_work(requests)
    parts = await all_parts(call, made)
    n_made = sum(part.n_made for part in parts)

    def made_of_them() -> dict[str, Any]:
        found = translator.answers(as_list(asked.text), [part.request for part in parts])
        n_source = sum(one.n_source_tokens for one in found)
        shown = ("text", "tokens", "logprob", "mean_logprob", "n_source_tokens", "finished")
        return {
            "object": "list",
            "model": call.served.name,
            "translations": [{name: getattr(one, name) for name in shown} for one in found],
            "usage": {
                "prompt_tokens": n_source, "completion_tokens": n_made, "total_tokens": n_source + n_made,
            },
        }  # fmt: skip

    return await call.whole(n_made, made_of_them)


async def classify(call: Call) -> Answer:
    """Return the class of each text, with all probabilities."""
    asked: ClassifyBody = call.asked
    answers, n_tokens = await _read(call, as_list(asked.text), options={"temperature": asked.temperature})
    answers = [one.unless_below(asked.reject_below) for one in answers]
    n_labels = len(call.served.model.labels)
    return await call.whole(len(answers) * n_labels, lambda: {
        "object": "list",
        "model": call.served.name,
        "classifications": [
            {name: getattr(one, name) for name in ("label", "confidence", "probabilities")}
            for one in answers
        ],
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    })  # fmt: skip


async def embeddings(call: Call) -> Answer:
    """Return the vector of each text; in base64 the bytes are float32, little-endian."""
    asked: EmbeddingBody = call.asked
    dim = call.served.model.model.config.dim
    if asked.dimensions not in (None, dim):
        raise ApiError(400, f"dimensions: the vectors of {call.served.name} have {dim} numbers; leave it out",
                       param="dimensions", code="unsupported_parameter")  # fmt: skip
    vectors, n_tokens = await _read(call, as_list(asked.input), blank=True)
    return await call.whole(len(vectors) * dim, lambda: {
        "object": "list", "model": call.served.name,
        "data": [
            {"object": "embedding", "index": at, "embedding": _written(vector, asked.encoding_format)}
            for at, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    })  # fmt: skip


def _written(vector: Any, encoding: str) -> list[float] | str:
    numbers = np.asarray(vector, dtype="<f4")
    return base64.b64encode(numbers.tobytes()).decode() if encoding == "base64" else numbers.tolist()


async def _read(
    call: Call, texts: Sequence[str], *, blank: bool = False, options: Mapping[str, Any] = NO_OPTIONS
) -> tuple[list[Any], int]:
    """Have each text read by the encoder; its answers, and how many tokens were read."""
    engine = call.served.worker.engine
    if engine is None:
        raise unavailable(f"the engine of {call.served.name} is not running; it is being started again", 5)
    cut = call.asked.truncate_prompt_tokens

    def made() -> list[Any]:
        return engine.requests(  # type: ignore[attr-defined]
            texts, cut=cut is not None, most=cut if cut and cut > 0 else None, blank=blank, options=options,
            tenant=call.tenant, id=call.id,
        )  # fmt: skip

    requests = await call.text_work(made)
    n_tokens = sum(len(request.tokens) for request in requests)
    call.state.metrics.tokens.labels(call.served.name, "read").inc(n_tokens)
    answers: dict[int, Any] = {}
    async with call.served.worker.run(requests) as events:
        async for event in events:
            if event.finish_reason in ("error", "abort"):
                raise failure(event)
            answers[id(event.request)] = event.answer
    return [answers[id(request)] for request in requests], n_tokens


async def tokenize(call: Call) -> Answer:
    """How many tokens a text or a chat makes; of a chat also where each message lies, for a context meter."""
    asked: TokenizeBody = call.asked
    served = call.served
    if asked.messages is None:
        tokens = await call.text_work(served.model.tokenizer.encode, asked.text)
        counted = {"model": served.name, "n_tokens": len(tokens), "tokens": tokens}
        return await call.whole(len(tokens), lambda: counted)
    messages = asked.messages
    rendered = await call.text_work(
        lambda: render(served, for_template(messages), None, asked.chat_template_kwargs)
    )
    return await call.whole(len(rendered.tokens), lambda: {
        "model": served.name, "n_tokens": len(rendered.tokens), "tokens": rendered.tokens,
        "message_spans": rendered.message_spans, "max_len": served.max_len,
    })  # fmt: skip


async def detokenize(call: Call) -> Answer:
    """Return the text of tokens; what is no text in them (the beginning, the end) writes nothing."""
    asked: DetokenizeBody = call.asked
    tokenizer = call.served.model.tokenizer
    if max(asked.tokens, default=0) >= tokenizer.vocab_size:
        raise ApiError(400, f"tokens: this model's are 0 to {tokenizer.vocab_size - 1}", param="tokens")
    text = await call.text_work(tokenizer.decode, asked.tokens)
    return await call.whole(len(asked.tokens), lambda: {"model": call.served.name, "text": text})
