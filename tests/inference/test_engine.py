"""The engine: whatever runs beside a request, and however it is cut into steps, its answer is its own."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.inference.plain_runner import PlainRunner, Score, chain
from tests.inference.workloads import agree, alone, asks, request_of, serve
from tests.scale import scaled
from transom.data.decoding import StreamDecoder
from transom.data.tokenizer import Tokenizer, train_tokenizer
from transom.errors import Refused
from transom.inference.engine import Engine, EngineSettings
from transom.inference.generator import Generator
from transom.inference.request import Request
from transom.inference.request_queue import Busy
from transom.inference.runner import TorchRunner
from transom.inference.structured import compile
from transom.model.build import Model, build
from transom.model.config import ModelConfig
from transom.sampling_params import SamplingParams

LETTERS: Tokenizer = train_tokenizer("chars", iter(["abcdefghij"]), 16)
V = LETTERS.vocab_size
LIMITS = st.builds(
    EngineSettings,
    max_rows=st.integers(3, 6),
    chunk_tokens=st.integers(1, 40),
    draft=st.sampled_from([0, 0, 1, 3]),
)
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # shrinking real models takes minutes
QUIET = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """These models are too small to share among cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plain(score: Score, n_tokens: int = 400) -> PlainRunner:
    return PlainRunner(score, vocab_size=V, max_len=64, n_tokens=n_tokens)


def member(kind: str, cell: str | None, seed: int = 0) -> Model:
    """A small random model in float64, whose rounding is too small to ever decide a draw."""
    config = ModelConfig(
        V, 16, 2, 2, 2, head_dim=8, ffn_dim=24, max_len=64, kind=kind, cell=cell, tie_embeddings=False,  # type: ignore[arg-type]
        n_encoder_layers=1 if kind == "encoder-decoder" else None,
    )  # fmt: skip
    model = build(config, seed).eval()
    with torch.no_grad():
        model.head.weight.mul_(30)  # type: ignore[operator, union-attr]
        model.embed.weight.mul_(40)
    return model.double()


def scores_of(model: Model) -> Score:
    def score(tokens: list[int], source: list[int] | None) -> torch.Tensor:
        with torch.inference_mode():
            memory = None if source is None else model.encode(torch.tensor([source]))
            return model.logits(model(torch.tensor([tokens]), memory=memory))[0]

    return score


MEMBERS = {
    "decoder": ("decoder", None),
    "encoder-decoder": ("encoder-decoder", None),
    "lstm": ("decoder", "lstm"),
    "lstm encoder-decoder": ("encoder-decoder", "lstm"),
}
MODELS = {name: member(*how) for name, how in MEMBERS.items()}

# ------------------------------------------------------------------------------------------- beside others


@settings(QUIET, max_examples=scaled(150))
@given(st.lists(asks(V), min_size=1, max_size=9), LIMITS, st.integers(0, 5), st.sampled_from([180, 400]))
def test_each_answer_is_what_it_is_alone(
    work: list[dict[str, Any]], limits: EngineSettings, seed: int, room: int
):
    score = chain(V, seed)
    runner = plain(score, room)
    engine = Engine(runner, LETTERS, settings=limits)
    for ask, request in zip(work, serve(engine, work), strict=True):
        agree(request, alone(ask, LETTERS, score), ask)
    assert not runner.rows and runner.free_tokens() == engine.load()["cache_tokens"]
    assert all(sum(sizes) <= limits.chunk_tokens + limits.max_rows * (1 + 64) for sizes in runner.sizes)


@pytest.mark.parametrize("name", MEMBERS)
@settings(QUIET, max_examples=scaled(12), phases=PHASES)
@given(data=st.data(), limits=LIMITS, reuse=st.booleans(), room=st.sampled_from([180, 600]))
def test_every_member_of_the_family_is_served_alike(
    name: str, data, limits: EngineSettings, reuse: bool, room: int
):
    model = MODELS[name]
    work = data.draw(st.lists(asks(V, sources=model.config.kind != "decoder"), min_size=1, max_size=6))
    runner = TorchRunner(model, n_tokens=room, block=4, reuse=reuse)
    engine, score = Engine(runner, LETTERS, settings=limits), scores_of(model)
    for ask, request in zip(work, serve(engine, work), strict=True):
        agree(request, alone(ask, LETTERS, score), ask)
    assert runner.free_tokens() == engine.load()["cache_tokens"]


@pytest.mark.parametrize("name", MEMBERS)
@settings(QUIET, max_examples=scaled(8), phases=PHASES)
@given(data=st.data(), limits=LIMITS, other=LIMITS)
def test_in_deterministic_mode_not_one_bit_depends_on_others(name: str, data, limits, other):
    model = MODELS[name].float()
    try:
        work = data.draw(st.lists(asks(V, sources=model.config.kind != "decoder"), min_size=1, max_size=5))
        for ask in work:
            ask.pop("leaves", None)
            ask["logprobs"] = 3

        def run(limits: EngineSettings, work: list[dict[str, Any]], reuse: bool) -> list[Request]:
            runner = TorchRunner(model, n_tokens=300, block=4, reuse=reuse, deterministic=True)
            return serve(Engine(runner, LETTERS, settings=limits), work)

        together = run(limits, work, True)
        for ask, request in zip(work, together, strict=True):
            (one,) = run(other, [ask], False)
            assert (request.tokens, request.logprobs, request.found) == (
                one.tokens,
                one.logprobs,
                one.found,
            )
    finally:
        model.double()


@settings(QUIET, max_examples=scaled(60))
@given(st.lists(asks(V, beams=False), min_size=1, max_size=5), st.integers(1, 6), st.integers(0, 3))
def test_guessing_ahead_changes_no_text_and_saves_steps(work, draft: int, seed: int):
    for ask in work:
        ask |= {"at": 0, "leaves": 99}
    score = chain(V, seed, sharpness=9)
    engines = [Engine(plain(score), LETTERS, settings=EngineSettings(draft=n)) for n in (0, draft)]
    without, ahead = (serve(engine, work) for engine in engines)
    for one, other in zip(without, ahead, strict=True):
        assert (one.tokens, one.text, one.finish_reason) == (other.tokens, other.text, other.finish_reason)
        assert [entry.logprob for entry in one.logprobs] == pytest.approx([e.logprob for e in other.logprobs])
    figures = engines[1].load()
    assert figures["drafts_kept"] <= figures["drafted"]
    assert figures["steps"] <= engines[0].load()["steps"]


def test_a_text_that_repeats_is_written_several_tokens_at_a_time():
    def score(tokens: list[int], source: list[int] | None) -> torch.Tensor:
        return torch.nn.functional.one_hot((torch.tensor(tokens) + 1) % 5 + 3, V).float() * 9

    engine = Engine(plain(score), LETTERS, settings=EngineSettings(draft=4))
    (request,) = serve(engine, [ask([3, 4, 5], max_tokens=40)])
    figures = engine.load()
    assert len(request.tokens) == 40 and figures["drafts_kept"] > 25
    busy = [sizes for sizes in engine.runner.sizes if sizes]  # type: ignore[attr-defined]
    assert len(busy) < 20


def ask(prompt: list[int], **changes: Any) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "max_tokens": 6,
        "temperature": 0,
        "seed": 0,
        "sample": 0,
        "tenant": "a",
        "at": 0,
    } | changes


def test_a_prompt_that_others_begin_with_too_is_read_once():
    model, shared = MODELS["decoder"], [3 + i % 9 for i in range(40)]
    work = [ask([*shared, 3 + i], tenant=scope) for i in range(4) for scope in "ab"]
    for reuse in (True, False):
        engine = Engine(TorchRunner(model, n_tokens=900, block=4, reuse=reuse), LETTERS)
        serve(engine, work)
        assert engine.load()["prefix_hits"] == (2 * 3 * 40 if reuse else 0), "each scope reads its own"


# ------------------------------------------------------------------------------------- what may go wrong


class Broken(StreamDecoder):
    """A decoder that fails after some tokens."""

    left = 3

    def push(self, number: int) -> str:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("no such token")
        return super().push(number)


class BrokenGrammar:
    """A grammar that fails after some tokens."""

    finished = False

    def __init__(self, after: int) -> None:
        self.left = after

    def mask(self, vocab_size: int) -> torch.Tensor:
        if self.left < 0:
            raise RuntimeError("no such rule")
        return torch.ones(vocab_size, dtype=torch.bool)

    def accept(self, token: int) -> bool:
        self.left -= 1
        return True

    def copy(self) -> BrokenGrammar:
        return BrokenGrammar(self.left)


@pytest.mark.parametrize("what", ["decoder", "grammar", "logits", "run", "open"])
@pytest.mark.parametrize("draft", [0, 3])
def test_what_goes_wrong_in_one_request_ends_that_one_only(what: str, draft: int, monkeypatch):
    score = chain(V)
    runner = plain(score)
    engine = Engine(runner, LETTERS, settings=EngineSettings(draft=draft, chunk_tokens=7))
    endless = {"temperature": 0.8, "max_tokens": 9, "logprobs": 1, "logit_bias": {0: -100.0}}
    work = [ask([4, 5, 6 + i], seed=i, **endless) for i in range(4)]
    requests = [request_of(one, LETTERS) for one in work]
    bad = requests[2]
    if what == "decoder":
        bad.decoder = Broken(LETTERS.spelling)
    elif what == "grammar":
        bad.grammar = BrokenGrammar(3)
    elif what == "logits":
        runner.score = lambda tokens, source: score(tokens, source) * (math.nan if tokens[2:3] == [8] else 1)
    else:
        inner = getattr(runner, what)

        def failing(given, *more, **others):
            rows = [given] if what == "open" else [chunk.sequence.tokens for chunk in given]
            if any(tokens[2:3] == [8] for tokens in rows):
                raise RuntimeError("no such thing")
            return inner(given, *more, **others)

        monkeypatch.setattr(runner, what, failing)
    for request in requests:
        engine.submit(request)
    events = []
    while engine.busy:
        events += engine.step()
    (failed,) = [event for event in events if event.finish_reason == "error"]
    assert failed.request is bad and isinstance(bad.error, Exception) and failed.error
    assert ("not finite" in failed.error) == (what == "logits")
    for one, request in zip(work, requests, strict=True):
        if request is not bad:
            agree(request, alone(one, LETTERS, score), one)
    assert not runner.rows and runner.free_tokens() == engine.load()["cache_tokens"]


def test_aborting_is_idempotent_and_frees_at_once():
    runner = plain(chain(V))
    engine = Engine(runner, LETTERS, settings=EngineSettings(chunk_tokens=5))
    for steps in range(8):  # waiting, reading, writing, ended
        request = request_of(ask([5] * 12, max_tokens=4), LETTERS)
        engine.submit(request)
        events = [event for _ in range(steps) for event in engine.step()]
        ended = request.finish_reason is not None
        engine.abort(request)
        engine.abort(request)
        assert not runner.rows and runner.free_tokens() == engine.load()["cache_tokens"]
        after = engine.step()
        assert [event.finish_reason for event in after] == ([] if ended else ["abort"])
        assert not engine.busy and request.finish_reason == ("length" if ended else "abort")
        assert len(request.tokens) == sum(len(event.tokens) for event in events)


# ----------------------------------------------------------------------------------------------- the door


def test_a_full_queue_says_when_to_come_again():
    engine = Engine(plain(chain(V)), LETTERS, settings=EngineSettings(max_queue=3, max_queue_tokens=60))
    requests = [request_of(ask([5, 6, 7]), LETTERS) for _ in range(6)]
    for request in requests[:3]:
        engine.submit(request)
    with pytest.raises(Busy, match="3 requests wait already") as busy:
        engine.submit(requests[3])
    assert 1 <= busy.value.retry_after <= 60 and isinstance(busy.value, Refused)
    engine.step()
    engine.submit(requests[3])  # those that run wait no more
    with pytest.raises(Busy, match="60 tokens"):
        engine.submit(request_of(ask([5] * 50), LETTERS))
    while engine.busy:
        engine.step()
    assert [request.finish_reason is None for request in requests] == [False] * 4 + [True] * 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompt": [5] * 60, "max_tokens": 9}, "60 tokens and max_tokens is 9: together 69, where"),
        ({"prompt": [5] * 30, "max_tokens": 30}, "may come to hold 60 tokens, and the cache has room for 48"),
        ({"beam": 9}, "beam is 9; at most 8 rows run together"),
        ({"logit_bias": {V: 1.0}}, "logit_bias names token"),
    ],
)
def test_what_can_never_run_is_refused_with_the_numbers(changes: dict[str, Any], says: str):
    engine = Engine(plain(chain(V), n_tokens=48), LETTERS, settings=EngineSettings(max_rows=8))
    with pytest.raises(Refused, match=says):
        engine.submit(request_of(ask([5]) | changes, LETTERS))
    assert not engine.busy


def test_an_answer_begins_as_it_is_told_and_goes_on_as_if_it_had_chosen_that():
    engine = Engine(plain(chain(V)), LETTERS)
    how = {"temperature": 1.2, "seed": 4, "logprobs": 2, "max_tokens": 14}
    (free,) = serve(engine, [ask([5, 6], **how)])
    for n in (1, 5, 13):
        (told,) = serve(engine, [ask([5, 6], **how, prefix_tokens=free.tokens[:n])])
        assert told.tokens == free.tokens and told.text == free.text
        assert told.logprobs == free.logprobs, "given tokens have log-probabilities too"
    request = request_of(ask([5, 6], **how), LETTERS)
    request.prefix_tokens = [5] * 14
    with pytest.raises(Refused, match="set max_tokens to at least 15"):
        engine.submit(request)


def test_a_grammar_ends_an_answer_and_must_allow_its_beginning():
    class Twice:
        """Two of one token."""

        def __init__(self, made: int = 0) -> None:
            self.made = made

        @property
        def finished(self) -> bool:
            return self.made == 2

        def mask(self, vocab_size: int) -> torch.Tensor:
            return torch.arange(vocab_size) == 7

        def accept(self, token: int) -> bool:
            self.made += 1
            return token == 7

        def copy(self) -> Twice:
            return Twice(self.made)

    for draft in (0, 3):
        engine = Engine(plain(chain(V)), LETTERS, settings=EngineSettings(draft=draft))
        for begins, fine in (([], True), ([7], True), ([8], False)):
            request = request_of(ask([7, 7, 7, 7]), LETTERS)
            request.grammar, request.prefix_tokens = Twice(), begins
            if not fine:
                with pytest.raises(Refused, match="does not fit its grammar"):
                    engine.submit(request)
                continue
            engine.submit(request)
            while engine.busy:
                engine.step()
            assert (request.tokens, request.finish_reason) == ([7, 7], "stop")


@pytest.mark.parametrize("draft", [0, 4])
def test_a_schema_is_kept_to_beside_free_text(draft: int):
    tokenizer = train_tokenizer("bytes", iter(["any text"]), 258)
    schema = {
        "type": "object", "properties": {"name": {"enum": ["ada", "bob"]}, "old": {"type": "boolean"}},
        "required": ["name", "old"], "additionalProperties": False,
    }  # fmt: skip
    config = ModelConfig(tokenizer.vocab_size, 16, 1, 2, 2, head_dim=8, ffn_dim=24, max_len=200)
    generator = Generator(build(config, 0).eval().double(), tokenizer)  # type: ignore[arg-type]
    grammar, engine = compile(schema, tokenizer), generator.engine(EngineSettings(draft=draft))
    how = SamplingParams(n=4, seed=1, max_tokens=100, temperature=1.0)
    requests = generator.request("a", how, grammar=grammar)
    free = generator.request("a", how)
    for request in (*requests, *free):
        engine.submit(request)
    while engine.busy:
        engine.step()
    found = [json.loads(request.text) for request in requests]
    assert all(one["name"] in ("ada", "bob") and one["old"] in (True, False) for one in found)
    assert all(request.finish_reason == "stop" for request in requests)
    alone = generator.generate("a", n=4, seed=1, max_tokens=100, temperature=1.0)
    assert [request.text for request in free] == [done.text for done in alone]


def test_settings_of_one_request_touch_no_other():
    score = chain(V)
    work = [
        ask([5, 6], temperature=1.5, seed=1, logit_bias={7: 90.0}),
        ask([5, 6], temperature=1.5, seed=1),
        ask([5, 6], temperature=0, stop=["a"]),
        ask([5, 6], temperature=1.5, seed=1, top_k=1, repetition_penalty=1.4),
    ]
    requests = serve(Engine(plain(score), LETTERS), work)
    assert set(requests[0].tokens) == {7}
    assert len({tuple(request.tokens) for request in requests}) == 4
    for one, request in zip(work, requests, strict=True):
        agree(request, alone(one, LETTERS, score), one)
    assert requests[0].params == SamplingParams(temperature=1.5, logit_bias={7: 90.0})
