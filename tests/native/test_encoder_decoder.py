"""Encoder-decoders by the kernels: against the plain pass in float64, and bit by bit against themselves."""

from __future__ import annotations

import copy
import gc
import weakref
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from tests.inference.test_runner import CONFIG, Play, check_bits, moves
from tests.native.kernels import add_learned_lora, in_8_bits, levels, library
from tests.scale import scaled
from transom.checkpoint.huggingface import save_model
from transom.data.tokenizer import train_tokenizer
from transom.errors import Refused
from transom.inference.beam import Finished
from transom.inference.engine import Engine
from transom.inference.load import load
from transom.inference.native_runner import NativeRunner, WatchedRunner, available, runner_for
from transom.inference.request import Request
from transom.inference.runner import BlockRunner, Chunk, TorchRunner
from transom.inference.sync_engine import SyncEngine, sync_settings
from transom.inference.translator import Translator
from transom.insight.hooks import Edit, edited
from transom.model.build import Model, build
from transom.model.config import Experts
from transom.model.lora import linear_layers
from transom.sampling_params import SamplingParams

LEVELS = levels() or ["scalar"]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
TWO = CONFIG.with_(kind="encoder-decoder", n_encoder_layers=3, n_kv_heads=4, start_id=1)
MARIAN = {
    "norm": "layer", "norm_position": "after", "norm_eps": 1e-5, "gated": False, "position": "sinusoidal",
    "qkv_bias": True, "out_bias": True, "ffn_bias": True, "head_bias": True, "scale_embeddings": True,
}  # fmt: skip
T5 = {
    "position": "relative", "attn_scale": 1.0, "activation": "gelu_tanh", "relative_buckets": 8,
    "relative_max_distance": 20,
}  # fmt: skip
FAMILIES = {
    "marian": MARIAN,
    "marian, odd widths": {
        **MARIAN, "dim": 37, "ffn_dim": 41, "n_heads": 3, "n_kv_heads": 3, "head_dim": 9,
        "n_encoder_layers": 1,
    },
    "t5, gated": T5 | {"tie_embeddings": False},
    "t5, plain": T5 | {"gated": False, "activation": "relu", "logit_scale": 0.25, "head_dim": 18},
    "rotary": {"qk_norm": True},
    "learned": {**MARIAN, "position": "learned", "position_offset": 2, "n_encoder_layers": 2},
    "experts": {"experts": Experts(6, 2, 11, n_shared=1, first_dense=1)},
    "window": {"window": 5, "position": "relative"},
}  # fmt: skip
TOKENS = [(7 * i + i * i) % 23 for i in range(48)]
SOURCES = [[(3 * i * i + n * i + n) % 23 for i in range(n)] for n in (17, 1, 48, 16, 5)]


@cache
def family(name: str, dtype: torch.dtype, seed: int = 0) -> Model:
    model = build(TWO.with_(**FAMILIES[name]), seed).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        model.embed.weight.mul_(8)  # so that logits depend on what was read
        for part, weight in model.named_parameters():
            if weight.ndim == 1:  # norms that are not 1, biases that are not 0
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
            elif "relative" in part:
                weight.mul_(100)
            elif "cross_attn" in part:
                weight.mul_(2)
    return model.to(dtype).requires_grad_(False)


def exactly(model: Model, tokens: list[int], source: list[int]) -> Tensor:
    """(L, V) by one pass over the target and one over its source, both alone."""
    with torch.inference_mode():
        memory = model.encode(torch.tensor([source]))
        return model.logits(model(torch.tensor([tokens]), memory=memory))[0].double()


@cache
def plain(name: str, dtype: torch.dtype, tokens: tuple[int, ...], source: tuple[int, ...]) -> Tensor:
    """The same in float64 over the weights of a model of another type."""
    return exactly(copy.deepcopy(family(name, dtype)).double(), list(tokens), list(source))


def made(
    name: str, level: str, dtype: torch.dtype, n_tokens: int = 600, reuse: bool = True, weights: str = ""
) -> NativeRunner:
    model = family(name, dtype)
    return NativeRunner(model, library(level), n_tokens=n_tokens, reuse=reuse, weights=weights)


def whole(runner: BlockRunner, sources: list[list[int]] = SOURCES) -> list[Tensor]:
    """The logits of all tokens after each source, read in one step."""
    rows = [runner.open(TOKENS, source) for source in sources]
    return list(runner.run([Chunk(row, 48, 48) for row in rows]).split(48))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("level", LEVELS)
def test_float32_is_the_plain_pass(name: str, level: str) -> None:
    for source, found in zip(SOURCES, whole(made(name, level, torch.float32)), strict=True):
        expected = plain(name, torch.float32, tuple(TOKENS), tuple(source))
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_sources_and_places_are_told_apart(name: str) -> None:
    """What the other tests compare depends on all of it."""
    one, other = (plain(name, torch.float32, tuple(TOKENS), tuple(source)) for source in SOURCES[:2])
    assert (one - other).abs().max() > 0.05
    turned = plain(name, torch.float32, tuple(TOKENS), tuple(SOURCES[0][::-1]))
    assert (one - turned).abs().max() > 0.01


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("level", LEVELS)
def test_bfloat16_is_no_further_from_exact_than_pytorch_is(name: str, level: str) -> None:
    ours = theirs = 0.0
    for seed in range(3):  # of one model of this size chance may decide
        model = family(name, torch.bfloat16, seed)
        exact = copy.deepcopy(model).double()
        found = whole(NativeRunner(model, library(level), n_tokens=600))
        for source, logits in zip(SOURCES, found, strict=True):
            expected = exactly(exact, TOKENS, source)
            ours += float((logits - expected).square().sum())
            theirs += float((exactly(model, TOKENS, source) - expected).square().sum())
    assert 0 < ours <= theirs


@pytest.mark.parametrize("level", LEVELS[-1:])
@given(plan=moves)
@settings(max_examples=scaled(40))
def test_any_workload_gives_what_one_pass_gives(level, plan):
    name = [*FAMILIES][plan[0][1] % len(FAMILIES)]
    room, reuse = (32, 64, 400)[plan[0][1] // 8 % 3], plan[0][1] // 24 % 2 > 0
    runner = made(name, level, torch.float32, room, reuse)
    for (tokens, source), logits in Play(runner, True).play(plan).seen:
        expected = plain(name, torch.float32, tokens, source or ())[-1]
        torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["marian", "t5, gated"])
@DTYPES
@given(one=moves, other=moves)
@settings(max_examples=scaled(10))
def test_logits_are_bitwise_a_function_of_the_row(level, name, dtype, one, other):
    """Alone and beside others, in any chunks, from the prefix cache, as a fork: always the same bits."""
    plans = (one, True), (other, False), (one + other, True)
    check_bits(Play(made(name, level, dtype, reuse=reuse), True).play(plan) for plan, reuse in plans)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", FAMILIES)
@DTYPES
@pytest.mark.parametrize("weights", ["", "int8"], ids=["", "int8"])
def test_bits_are_those_of_any_number_of_threads_any_chunks_and_alone(
    level: str, name: str, dtype: torch.dtype, weights: str
) -> None:
    alone = [whole(made(name, level, dtype, weights=weights), [source])[0] for source in SOURCES]
    before = torch.get_num_threads()
    try:
        for n_threads, size in ((1, 48), (2, 48), (2, 7), (3, 1)):
            torch.set_num_threads(n_threads)
            runner = made(name, level, dtype, 1200, reuse=False, weights=weights)
            rows = [runner.open(TOKENS, source) for source in SOURCES]
            twins = [runner.fork(row) for row in rows]  # of each source two rows, far apart and side by side
            order = [*rows, *twins[:2], twins[4], twins[3], twins[2]]
            parts = list[Tensor]()
            while (n := min(size, 48 - rows[0].n_read)) > 0:
                parts.append(runner.run([Chunk(row, n, n) for row in order]).unflatten(0, (10, n)))
            for logits, number in zip(torch.cat(parts, 1), (0, 1, 2, 3, 4, 0, 1, 4, 3, 2), strict=True):
                assert torch.equal(logits, alone[number])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("level", LEVELS[-1:])
@pytest.mark.parametrize("name", ["marian", "t5, gated"])
def test_a_long_source_is_read_in_stretches(level: str, name: str) -> None:
    model = build(TWO.with_(**FAMILIES[name], max_len=2100), 0).eval()
    source = [(5 * i * i + i) % 23 for i in range(2100)]
    runner = NativeRunner(model, library(level), n_tokens=64)
    found = runner.run([Chunk(runner.open(TOKENS, source), 48, 48)])
    expected = exactly(copy.deepcopy(model).double(), TOKENS, source)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=2e-5)


@cache
def plain_in_8_bits(name: str, tokens: tuple[int, ...], source: tuple[int, ...]) -> Tensor:
    """(L, V) in float64 by weights that were rounded to 8 bits, and what they are multiplied with too."""
    model = copy.deepcopy(family(name, torch.float32)).double()
    head = in_8_bits(model.output_weight.double(), model.config.dim)
    with torch.inference_mode():
        for layer in linear_layers(model).values():
            layer.weight.data = in_8_bits(layer.weight, layer.in_features)
            layer.register_forward_pre_hook(lambda _, given: (in_8_bits(given[0], 32),))
        memory = model.encode(torch.tensor([source]))
        hidden = model.head(model(torch.tensor([tokens]), memory=memory))[0]
        bias = model.head.bias
        return in_8_bits(hidden, 32) @ head.T + (0.0 if bias is None else bias)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "experts"])  # whose choice flips
@pytest.mark.parametrize("level", LEVELS)
def test_8_bits_are_those_of_weights_and_of_what_they_multiply(name: str, level: str) -> None:
    """A last bit before a rounding moves its result by a step, so it is not bit by bit the same."""
    off = apart = 0.0
    for source, found in zip(SOURCES, whole(made(name, level, torch.float32, weights="int8")), strict=True):
        asked = name, tuple(TOKENS), tuple(source)
        rounded, exact = plain_in_8_bits(*asked), plain(name, torch.float32, *asked[1:])
        off += float((found - rounded).square().sum())
        apart += float((rounded - exact).square().sum())
    assert off < 0.25 * apart


def searched(model: Model, runner: BlockRunner, beam: int) -> list[list[Finished]]:
    """What a search writes after each source, several at a time."""
    tokenizer = train_tokenizer("bytes", iter(["any text"]), 258)
    requests = [
        Request(
            [1], SamplingParams(temperature=0, logprobs=0), max_tokens=20 + number, seed=0, sample=0,
            eos_ids=[0], decoder=tokenizer.decoder(), source=source, beam=beam,
        )
        for number, source in enumerate(SOURCES)
    ]  # fmt: skip
    for _ in SyncEngine(lambda: Engine(runner, tokenizer, settings=sync_settings(8))).run(requests):
        pass
    return [request.found or [Finished(0.0, 0.0, request.tokens)] for request in requests]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("beam", [1, 4])
def test_translations_are_those_of_pytorch(name: str, beam: int) -> None:
    model = family(name, torch.float32)
    ours = searched(model, made(name, LEVELS[-1], torch.float32, 640), beam)
    theirs = searched(model, TorchRunner(model, n_tokens=640), beam)
    assert len({tuple(found[0].tokens) for found in ours}) == len(SOURCES)
    for one, other in zip(ours, theirs, strict=True):
        assert [found.tokens for found in one] == [found.tokens for found in other]
        assert [found.logprob for found in one] == pytest.approx([found.logprob for found in other], abs=1e-4)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["marian", "t5, plain"])
def test_an_adapter_of_its_own_is_read(name: str, level: str) -> None:
    model = copy.deepcopy(family(name, torch.float32))
    add_learned_lora(model, 0.1)
    exact = copy.deepcopy(model).double()
    for source, found in zip(SOURCES, whole(NativeRunner(model, library(level), n_tokens=600)), strict=True):
        torch.testing.assert_close(found.double(), exactly(exact, TOKENS, source), rtol=1e-4, atol=5e-5)
        without = plain(name, torch.float32, tuple(TOKENS), tuple(source))
        assert not torch.allclose(found.double(), without, rtol=1e-2)


@DTYPES
def test_a_number_that_is_none_in_a_source_shows_in_its_own_rows_alone(dtype: torch.dtype) -> None:
    model = copy.deepcopy(family("marian", dtype))
    damaged = [source.index(11) if 11 in source else None for source in SOURCES]
    assert None in damaged and any(damaged)
    with torch.no_grad():
        model.embed.weight[11] = torch.nan
    runner = NativeRunner(model, library(LEVELS[-1]), n_tokens=600)
    rows = [runner.open([1, 2, 3], source) for source in SOURCES]
    found = runner.run([Chunk(row, 3, 3) for row in rows]).split(3)
    for place, logits in zip(damaged, found, strict=True):  # 11 is a word of the head too
        others = torch.cat([logits[:, :11], logits[:, 12:]], 1)
        assert others.isfinite().all() if place is None else not others.isfinite().any()


def test_what_is_kept_of_a_source_goes_with_the_last_row_that_asks_it() -> None:
    runner = made("marian", LEVELS[-1], torch.float32)
    row = runner.open(TOKENS, SOURCES[0])
    runner.run([Chunk(row, 48)])
    twin = runner.fork(row)
    assert row.source is not None and row.source.by_kernels is not None and twin.source is row.source
    kept = weakref.ref(row.source)
    runner.close(row)
    gc.collect()
    assert kept() is not None
    runner.close(twin)
    gc.collect()
    assert kept() is None


def test_sources_that_the_model_does_not_read_are_refused_and_hold_nothing() -> None:
    runner = made("marian", LEVELS[-1], torch.float32)
    free = runner.free_tokens()
    refused = [([], "a source without tokens"), ([1] * 49, "a text of 49 tokens; the model reads 48"),
               ([23], "token 23; this model has 0 to 22"), ([-1, 5], "has 0 to 22")]  # fmt: skip
    for wrong, error in refused:
        row = runner.open([1, 2], wrong)
        with pytest.raises((ValueError, IndexError), match=error):
            runner.run([Chunk(row, 2)])
        assert row.n_read == 0 and runner.free_tokens() == free
        runner.close(row)


def test_translators_run_by_the_kernels_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    if len(LEVELS) == 1:
        pytest.skip("no level here that would be chosen")
    tokenizer = train_tokenizer("bytes", iter(["any text"]), 258, frame="target")
    config = TWO.with_(**MARIAN, vocab_size=tokenizer.vocab_size)
    model = build(config, 0).eval().requires_grad_(False)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3) if weight.ndim > 1 else None
    translator = Translator(model, tokenizer, eos_ids=[0])

    def runner() -> type:
        assert translator._local._made is not None
        return type(translator._local._made.runner)

    texts, beams = ["some words", "any", "x" * 40], (1, 4)
    assert translator.runs_by.startswith("by native kernels (") and translator.runs_by in repr(translator)
    found = {beam: translator.translate(texts, beam=beam, max_tokens=12) for beam in beams}
    assert runner() is NativeRunner
    for beam in beams:
        assert [translator.translate(one, beam=beam, max_tokens=12) for one in texts] == found[beam]
    with pytest.raises(Refused, match="line has 49 tokens|reads at most 48"):
        translator.translate("x" * 60)
    with edited([Edit(model, "out", lambda x: x)]):
        watched = translator.translate(texts, beam=4, max_tokens=12)
        assert runner() is WatchedRunner
    assert [one.tokens for one in watched] == [one.tokens for one in found[4]]
    monkeypatch.setenv("TRANSOM_NATIVE", "0")
    assert translator.runs_by == "by PyTorch: native kernels turned off (TRANSOM_NATIVE=0)"
    translator.forget()
    assert [one.tokens for one in translator.translate(texts, beam=4, max_tokens=12)] == [
        one.tokens for one in found[4]
    ]
    assert runner() is TorchRunner


def test_translators_in_8_bits_say_so_and_are_refused_where_pytorch_computes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tokenizer = train_tokenizer("bytes", iter(["any text"]), 258, frame="target")
    config = TWO.with_(**MARIAN, vocab_size=tokenizer.vocab_size)
    (tmp_path / "m").mkdir()
    save_model(tmp_path / "m", build(config, 0).eval(), tokenizer)
    if len(LEVELS) == 1:
        pytest.skip("no level here that would be chosen")
    with pytest.raises(Refused, match="int8 weights are read by native kernels alone.* fewer heads of keys"):
        Translator(build(config.with_(n_kv_heads=2), 0).eval(), tokenizer, weights="int8")
    translator = load(tmp_path / "m", Translator, weights="int8", dtype="float32")
    assert translator.runs_by.endswith(", int8 weights)") and translator.runs_by in repr(translator)
    exact = load(tmp_path / "m", Translator, dtype="float32")
    one, other = (each.translate("any text", beam=1, max_tokens=3) for each in (translator, exact))
    assert 0 < abs(one.logprob - other.logprob) < 0.1
    assert translator._local._made is not None
    runner = translator._local._made.runner
    assert isinstance(runner, NativeRunner) and runner.weights == "int8"
    monkeypatch.setenv("TRANSOM_NATIVE", "0")
    with pytest.raises(Refused, match="by PyTorch: native kernels turned off"):
        load(tmp_path / "m", Translator, weights="int8")


def test_what_a_plan_cannot_say_is_left_to_pytorch_and_said() -> None:
    if len(LEVELS) == 1:
        pytest.skip("no level here that would be chosen")
    cases = {
        "it has fewer heads of keys than of queries": {"n_kv_heads": 2},
        "it is a recurrence that reads a source": {"cell": "lstm", "n_encoder_layers": 1},
        "its attention has a soft cap": {"attn_softcap": 3.0},
    }
    for why, parts in cases.items():
        model = build(TWO.with_(**parts), 0).eval()
        assert isinstance(runner_for(model, n_tokens=64), TorchRunner) and available(model)[1].endswith(why)
    assert isinstance(runner_for(family("t5, gated", torch.bfloat16), n_tokens=64), NativeRunner)
