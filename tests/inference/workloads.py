"""Random workloads for engines: requests of all kinds that come and go, and what each must answer."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import strategies as st

from tests.inference.plain_runner import Score
from transom.data.tokenizer import Tokenizer
from transom.inference.beam import BeamSearch, best_next
from transom.inference.engine import Engine
from transom.inference.request import Event, Request
from transom.inference.sampling_rows import SamplingRow, choose_rows
from transom.sampling_params import SamplingParams

Ask = dict[str, Any]
"""What one request asks, when it comes (`at`, a step) and when it is aborted (`leaves`, a step, or never)."""


def asks(
    vocab_size: int, *, beams: bool = True, sources: bool = False, longest: int = 30
) -> st.SearchStrategy[Ask]:
    """One request; prompts often begin alike."""
    token = st.integers(0, vocab_size - 1)
    shared = [(7 * i + i // 3) % vocab_size for i in range(longest)]
    prompt = st.builds(
        lambda n, rest: (shared[:n] + rest)[:longest],
        st.integers(0, longest),
        st.lists(token, min_size=1, max_size=6),
    )
    fields: dict[str, Any] = {
        "prompt": prompt,
        "max_tokens": st.integers(1, 12),
        "temperature": st.sampled_from([0, 0.8, 1.5]),
        "seed": st.integers(0, 3),
        "sample": st.integers(0, 2),
        "tenant": st.sampled_from("ab"),
        "at": st.integers(0, 12),
    }
    optional: dict[str, Any] = {
        "top_p": st.sampled_from([0.5, 0.9]),
        "top_k": st.integers(1, 5),
        "repetition_penalty": st.sampled_from([0.7, 1.5]),
        "presence_penalty": st.sampled_from([-1.0, 1.5]),
        "frequency_penalty": st.sampled_from([-0.5, 0.5]),
        "logit_bias": st.dictionaries(token, st.sampled_from([-5.0, 5.0]), max_size=2),
        "logprobs": st.integers(0, 3),
        "prefix_tokens": st.lists(token, max_size=4),
        "leaves": st.integers(0, 20),
    }
    if beams:
        optional["beam"] = st.integers(2, 3)
    if sources:
        fields["source"] = st.lists(token, min_size=1, max_size=9)
    return st.fixed_dictionaries(fields, optional=optional)


def request_of(ask: Ask, tokenizer: Tokenizer) -> Request:
    how = {name: ask[name] for name in SETTINGS if name in ask}
    prefix = ask.get("prefix_tokens", [])[: ask["max_tokens"] - 1]
    return Request(
        list(ask["prompt"]), SamplingParams(**how), max_tokens=ask["max_tokens"], seed=ask["seed"],
        sample=ask["sample"], eos_ids=[0], decoder=tokenizer.decoder(), source=ask.get("source"),
        beam=ask.get("beam", 1), prefix_tokens=[] if ask.get("beam", 1) > 1 else prefix, tenant=ask["tenant"],
    )  # fmt: skip


SETTINGS = (
    "temperature", "top_p", "top_k", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "logit_bias", "logprobs", "stop",
)  # fmt: skip


def alone(ask: Ask, tokenizer: Tokenizer, score: Score) -> Request:
    """The answer by the plainest loop there is: the whole text read anew for every token."""
    request = request_of(ask, tokenizer)
    if request.beam > 1:
        return _searched(request, score)
    row = SamplingRow(
        request.params, vocab_size=tokenizer.vocab_size, seed=request.seed, sample=request.sample,
        prompt=request.prompt,
    )  # fmt: skip
    text = list(request.prompt)
    while request.finish_reason is None:
        if len(request.tokens) < len(request.prefix_tokens):
            token = request.prefix_tokens[len(request.tokens)]
        else:
            (token,) = choose_rows(score(text, request.source)[-1:], [row])
        row.push(token)
        request.push(token)
        text.append(token)
    return request


def _searched(request: Request, score: Score) -> Request:
    search = BeamSearch(request.max_tokens, beam=request.beam, ends=request.ends)
    texts = [list(request.prompt)]
    while not search.done:
        logits = torch.stack([score(text, request.source)[-1] for text in texts])
        before = torch.tensor([[one.logprob for one in search.open]])
        values, choices = best_next(logits, before, request.beam * 2)
        search.grow(values[0], choices[0], logits.shape[-1])
        texts = [[*texts[one.parent], one.token] for one in search.open]
    for token in search.finished[0].tokens:
        request.push(token)
    return request


def serve(engine: Engine, work: list[Ask], most_steps: int = 3000) -> list[Request]:
    """Run a workload to its end; what is told on the way must agree with what comes of it."""
    requests = [request_of(ask, engine.tokenizer) for ask in work]
    told: dict[Request, list[Event]] = {request: [] for request in requests}
    step = 0
    while engine.busy or step <= 21:
        for ask, request in zip(work, requests, strict=True):
            if ask["at"] == step:
                engine.submit(request)
            if ask.get("leaves") == step:
                engine.abort(request)
        for event in engine.step():
            if event.request.error is not None:
                raise event.request.error
            assert not told[event.request] or told[event.request][-1].finish_reason is None
            told[event.request].append(event)
        step += 1
        assert step < most_steps, "nothing moves"
    for ask, request in zip(work, requests, strict=True):
        check_told(ask, request, told[request])
    return requests


def check_told(ask: Ask, request: Request, events: list[Event]) -> None:
    """The events of a request, joined, are the request."""
    tokens = [one for event in events for one in event.tokens]
    assert [one.token for one in tokens] == request.tokens
    assert "".join(event.piece for event in events) == request.text
    assert all(
        math.isnan(one.logprob) == (request.params.logprobs is None or request.beam > 1) for one in tokens
    )
    if "leaves" not in ask or ask["leaves"] > ask["at"]:
        assert events[-1].finish_reason == request.finish_reason is not None


def agree(request: Request, oracle: Request, ask: Ask) -> None:
    """A request came to what it comes to alone, or to a part of that when it was aborted."""
    if request.finish_reason == "abort" or (request.finish_reason is None and "leaves" in ask):
        assert request.tokens == oracle.tokens[: len(request.tokens)]
        return
    assert request.tokens == oracle.tokens
    assert (request.text, request.finish_reason) == (oracle.text, oracle.finish_reason)
