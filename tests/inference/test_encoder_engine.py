"""The engine for whole texts: each gets the answer it gets alone, in its turn, or hears what is wrong."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scale import scaled
from transom.data.tokenizer import Tokenizer, train_tokenizer
from transom.errors import Refused
from transom.inference.classifier import Classifier
from transom.inference.embedder import Embedder
from transom.inference.encoder_engine import EncoderEngine, TextRequest
from transom.inference.engine import EngineSettings
from transom.inference.request import Event
from transom.inference.request_queue import Busy
from transom.model.build import build
from transom.model.config import ModelConfig

BYTES: Tokenizer = train_tokenizer("bytes", iter(["any text"]), 258, frame="text")


def model_of(**changes: Any) -> Any:
    config = ModelConfig(
        BYTES.vocab_size, 32, 1, 4, 4, head_dim=8, ffn_dim=48, max_len=40, kind="encoder", pad_id=BYTES.pad_id
    )
    return build(config.with_(**changes), 0).eval()


CLASSIFIER = Classifier(model_of(head="classify", labels=("ham", "spam")), BYTES)
EMBEDDER = Embedder(model_of(head="embed", pooling="mean", normalize=True), BYTES)


def drain(engine: EncoderEngine) -> list[Event]:
    events = []
    while engine.busy:
        events += engine.step()
    return events


@settings(max_examples=scaled(25))
@given(
    st.lists(
        st.tuples(st.text("ab ", min_size=1, max_size=30), st.sampled_from("xy"), st.booleans()), max_size=14
    ),
    st.integers(1, 120),
)
def test_each_text_gets_the_answer_that_it_gets_alone(work: list[tuple[str, str, bool]], budget: int):
    work = [(f"t{text}", scope, leaves) for text, scope, leaves in work]
    for reader, alone in ((CLASSIFIER, CLASSIFIER.classify), (EMBEDDER, EMBEDDER.embed)):
        engine = EncoderEngine(reader, budget=budget)
        requests = [engine.requests([text], tenant=scope)[0] for text, scope, _ in work]
        for request in requests:
            engine.submit(request)
        for request, (_, _, leaves) in zip(requests, work, strict=True):
            if leaves:
                engine.abort(request)
                engine.abort(request)
        events = drain(engine)
        assert {id(event.request) for event in events} == set(map(id, requests)) and len(events) == len(work)
        for event in events:
            text, _, leaves = work[requests.index(event.request)]
            assert event.finish_reason == ("abort" if leaves else "stop") == event.request.finish_reason
            if leaves:
                assert event.answer is None
            elif reader is EMBEDDER:
                np.testing.assert_allclose(event.answer, alone(text), atol=2e-6)
            else:
                assert event.answer.label == alone(text).label
                assert event.answer.confidence == pytest.approx(alone(text).confidence, abs=1e-6)
        figures = engine.load()
        assert figures["queued"] == 0 and figures["answers"] == sum(not leaves for _, _, leaves in work)


def test_texts_are_read_together_and_a_busy_scope_keeps_nobody_waiting():
    engine = EncoderEngine(EMBEDDER, budget=60, settings=EngineSettings(max_queue=100))
    many = engine.requests(["a" * 18] * 30, tenant="busy")
    for request in many:
        engine.submit(request)
    (other,) = engine.requests(["b"], tenant="other")
    engine.submit(other)
    steps = []
    while engine.busy:
        steps.append([event.request for event in engine.step()])
    assert max(map(len, steps)) == 3 and len(steps) <= 12
    assert any(other in step for step in steps[:2])
    order = [request for step in steps for request in step if request is not other]
    assert order == many, "within a scope, first come"


def test_one_that_goes_wrong_fails_alone():
    engine = EncoderEngine(CLASSIFIER)
    fine, strange = engine.requests(["abc"])[0], TextRequest(np.array([9999], dtype=np.uint32))
    for request in (fine, strange):
        engine.submit(request)
    ends = {event.request: event for event in drain(engine)}
    assert ends[fine].finish_reason == "stop" and ends[fine].answer.label in ("ham", "spam")
    assert ends[strange].finish_reason == "error" and "IndexError" in str(ends[strange].error)
    broken = model_of(head="embed", pooling="mean")
    with torch.no_grad():
        broken.embed.weight[ord("q")] = torch.nan
    engine = EncoderEngine(Embedder(broken, BYTES))
    requests = engine.requests(["abc", "q"])
    for request in requests:
        engine.submit(request)
    reasons = {event.request: event.finish_reason for event in drain(engine)}
    assert [reasons[request] for request in requests] == ["stop", "error"]


def test_what_cannot_run_is_refused_and_a_full_queue_says_when_to_come_again():
    engine = EncoderEngine(EMBEDDER, settings=EngineSettings(max_queue=2))
    with pytest.raises(Refused, match="has 52 tokens; this model reads at most 40"):
        engine.requests(["a" * 50])
    (cut,) = engine.requests(["a" * 50], cut=True)
    with pytest.raises(Refused, match="50 tokens; this model reads at most 40"):
        engine.submit(TextRequest(np.zeros(50, dtype=np.uint32)))
    engine.submit(cut)
    engine.submit(engine.requests(["b"])[0])
    with pytest.raises(Busy, match="2 texts wait already") as busy:
        engine.submit(engine.requests(["c"])[0])
    assert busy.value.retry_after >= 1
    assert len(drain(engine)) == 2


def test_a_full_queue_of_one_scope_keeps_no_other_out():
    engine = EncoderEngine(EMBEDDER, settings=EngineSettings(max_queue=2, max_queue_tokens=12))
    for text in ("a", "b"):
        engine.submit(engine.requests([text], tenant="busy")[0])
    with pytest.raises(Busy, match="2 texts wait already"):
        engine.submit(engine.requests(["c"], tenant="busy")[0])
    for text in ("aaaa", "b"):
        engine.submit(engine.requests([text], tenant="other")[0])
    assert engine.load()["queued"] == 4 and len(drain(engine)) == 4 and not engine.busy


def test_callers_at_once_get_the_answers_of_their_own_texts():
    """Texts of so many different words that they are encoded word by word, in three threads."""
    drawn = random.Random(0)
    words = ["".join(drawn.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(9_000)]
    tokenizer = train_tokenizer("bpe", iter([" ".join(words[:50]) * 5]), 300, frame="text")

    def reader(kind: Any, **head: Any) -> Any:
        return kind(model_of(vocab_size=tokenizer.vocab_size, pad_id=tokenizer.pad_id, **head), tokenizer)

    embedder = reader(Embedder, head="embed", pooling="mean", normalize=True)
    classifier = reader(Classifier, head="classify", labels=("ham", "spam"))
    own = [words[at : at + 3_000] for at in (0, 3_000, 6_000)]
    texts = [[" ".join(drawn.sample(some, 4)) for _ in range(2_200)] for some in own]
    alone = [
        reader(Embedder, head="embed", pooling="mean", normalize=True).embed(some[:40]) for some in texts
    ]
    classes = [classifier.classify(some[:40]) for some in texts]
    with ThreadPoolExecutor(3) as threads:
        for vectors, right in zip(threads.map(embedder.embed, texts), alone, strict=True):
            np.testing.assert_allclose(vectors[:40], right, atol=1e-5)
        for found, right in zip(threads.map(classifier.classify, texts), classes, strict=True):
            assert [one.label for one in found[:40]] == [one.label for one in right]
