"""The native runner: whole models against the plain pass in float64, and bit by bit against itself."""

from __future__ import annotations

import os
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from tests.inference.test_runner import CONFIG, Key, Play, moves
from tests.native.kernels import levels, library
from tests.scale import scaled
from transom.data.tokenizer import train_tokenizer
from transom.inference.generator import Generator
from transom.inference.native_runner import NativeRunner, WatchedRunner, available, runner_for
from transom.inference.runner import Chunk, TorchRunner
from transom.insight.hooks import Edit, edited
from transom.insight.look import look
from transom.model.build import Model, build
from transom.model.config import Experts, RopeScaling

LEVELS = levels() or ["scalar"]
BIASED = {"qkv_bias": True, "out_bias": True, "ffn_bias": True}
GPT2 = {
    "position": "learned",
    "norm": "layer",
    "gated": False,
    "activation": "gelu_tanh",
    "n_kv_heads": 4,
    **BIASED,
}
LLAMA3 = RopeScaling("llama3", 8.0, original_max_len=16)
FAMILIES = {
    "llama": {},
    "llama 3.1": {"rope_scaling": LLAMA3, "rope_theta": 500.0, "tie_embeddings": False},
    "linear": {"rope_scaling": RopeScaling("linear", 2.0), "head_dim": 18},
    "mistral": {"window": 5},
    "window in some layers": {"window": 7, "window_layers": (True, False)},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True, "head_dim": 12},
    "norm over the projection": {"qk_norm": True, "qk_norm_over": "projection"},
    "gpt2": GPT2,
    "offset, scaled, biased head": {
        **GPT2,
        "position_offset": 2,
        "scale_embeddings": True,
        "head_bias": True,
    },
    "caps and scales": {"logit_softcap": 8.0, "logit_scale": 0.5, "attn_scale": 0.3, "activation": "relu2"},
    "no positions": {"position": "none", "ffn_dim": 41, "dim": 19, "activation": "gelu"},
}


@cache
def family(name: str, dtype: torch.dtype) -> Model:
    model = build(CONFIG.with_(**FAMILIES[name]), 0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.embed.weight.mul_(30)  # so that logits depend on what was read
        for part in model.parameters():
            if part.ndim == 1:  # norms that are not 1, biases that are not 0
                part.add_(0.2 * torch.randn(part.shape, generator=generator))
    return model.to(dtype).requires_grad_(False)


@cache
def plain(name: str, dtype: torch.dtype, tokens: tuple[int, ...]) -> Tensor:
    """(L, V) by one pass in float64 over the weights of a model of another type."""
    model = build(CONFIG.with_(**FAMILIES[name]), 0).eval().double()
    model.load_state_dict(
        {part: weight.double() for part, weight in family(name, dtype).state_dict().items()}
    )
    with torch.inference_mode():
        return model.logits(model(torch.tensor([tokens])))[0].double()


def made(name: str, level: str, dtype: torch.dtype, n_tokens: int = 400, reuse: bool = True) -> NativeRunner:
    return NativeRunner(family(name, dtype), library(level), n_tokens=n_tokens, reuse=reuse)


TOKENS = [(7 * i + i * i) % 23 for i in range(48)]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("level", LEVELS)
def test_float32_is_the_plain_pass(name: str, level: str) -> None:
    runner = made(name, level, torch.float32)
    found = runner.run([Chunk(runner.open(TOKENS), 48, 48)])
    torch.testing.assert_close(
        found.double(), plain(name, torch.float32, tuple(TOKENS)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("level", LEVELS)
def test_bfloat16_is_no_further_from_exact_than_pytorch_is(name: str, level: str) -> None:
    model, runner = family(name, torch.bfloat16), made(name, level, torch.bfloat16)
    exact = plain(name, torch.bfloat16, tuple(TOKENS))
    ours = runner.run([Chunk(runner.open(TOKENS), 48, 48)]).double()
    with torch.inference_mode():
        theirs = model.logits(model(torch.tensor([TOKENS])))[0].double()

    def distance(found: Tensor) -> float:
        return float((found - exact).square().mean().sqrt())

    def agreement(found: Tensor) -> float:
        return float((found.argmax(-1) == exact.argmax(-1)).double().mean())

    assert distance(ours) <= distance(theirs)
    assert agreement(ours) >= agreement(theirs) - 1 / 48  # one place where two tokens tie


@pytest.mark.parametrize("level", LEVELS[-2:])
@given(plan=moves)
@settings(max_examples=scaled(40))
def test_any_workload_gives_what_one_pass_gives(level, plan):
    name = ("llama", "mistral", "qwen3", "gpt2")[plan[0][1] % 4]
    runner = made(
        name, level, torch.float32, n_tokens=(32, 64, 400)[plan[0][1] // 4 % 3], reuse=plan[0][1] % 2 > 0
    )
    for (tokens, _), logits in Play(runner, False).play(plan).seen:
        expected = plain(name, torch.float32, tokens)[-1]
        torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@given(one=moves, other=moves)
@settings(max_examples=scaled(20))
def test_logits_are_bitwise_a_function_of_the_row(level, dtype, one, other):
    """Alone and beside others, in any chunks, from the prefix cache, as a fork: always the same bits."""
    known: dict[Key, Tensor] = {}
    for plan, reuse in ((one, True), (other, False), (one + other, True)):
        for key, logits in Play(made("mistral", level, dtype, reuse=reuse), False).play(plan).seen:
            assert torch.equal(known.setdefault(key, logits), logits)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_bits_are_those_of_any_number_of_threads_and_any_chunks(level: str, dtype: torch.dtype) -> None:
    config = CONFIG.with_(max_len=2100, dim=48, window=1500)
    model = build(config, 0).eval().to(dtype)
    tokens, before = [(7 * i + i * i) % 23 for i in range(2100)], torch.get_num_threads()
    found = []
    try:
        for n_threads, size in ((1, 2100), (2, 2100), (3, 700), (2, 333)):
            torch.set_num_threads(n_threads)
            runner = NativeRunner(model, library(level), n_tokens=2112)
            row, parts = runner.open(tokens), []
            while row.n_read < 2100:
                n = min(size, 2100 - row.n_read)
                parts.append(runner.run([Chunk(row, n, n)]))
            found.append(torch.cat(parts))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(other, found[0]) for other in found[1:])


def test_what_a_plan_cannot_say_is_left_to_pytorch_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    if len(LEVELS) == 1:
        pytest.skip("no level here that would be chosen")
    cases = {
        "it has experts": {"experts": Experts(4, 2, 12)},
        "it is a recurrence": {"cell": "lstm"},
        "its positions are relative": {"position": "relative"},
        "its attention has a soft cap": {"attn_softcap": 3.0},
    }
    for why, parts in cases.items():
        model = build(CONFIG.with_(**parts), 0).eval()
        assert isinstance(runner_for(model, n_tokens=64), TorchRunner) and available(model)[1].endswith(why)
    model = build(CONFIG, 0).eval()
    assert isinstance(runner_for(model, n_tokens=64), NativeRunner)
    assert available(model)[1].startswith("by native kernels (")
    monkeypatch.setenv("TRANSOM_NATIVE", "0")
    assert isinstance(runner_for(model, n_tokens=64), TorchRunner)
    assert available(model)[1] == "by PyTorch: native kernels turned off (TRANSOM_NATIVE=0)"
    assert isinstance(runner_for(model.double(), n_tokens=64), TorchRunner)


@pytest.mark.parametrize("level", LEVELS)
def test_numbers_that_are_none_show_in_the_logits(level: str) -> None:
    """A model whose weights are damaged must be found out, and nobody else's answer be damaged by it."""
    model = build(CONFIG, 0).eval()
    with torch.no_grad():
        model.get_parameter("layers.1.attn.k_proj.weight")[3, 2] = torch.nan
    runner = NativeRunner(model, library(level), n_tokens=64)
    assert not runner.run([Chunk(runner.open([1, 2, 3]), 3)]).isfinite().any()


def test_a_child_of_fork_runs_with_threads_of_its_own() -> None:
    runner = made("llama", LEVELS[-1], torch.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    expected = runner.run([Chunk(runner.open(TOKENS[:9]), 9)])
    if not (child := os.fork()):
        same = torch.equal(runner.run([Chunk(runner.open(TOKENS[:9], tenant="b"), 9)]), expected)
        os._exit(0 if same else 1)
    torch.set_num_threads(before)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_changed_weights_are_read_anew() -> None:
    model = build(CONFIG, 0).eval()
    runner = NativeRunner(model, library(LEVELS[-1]), n_tokens=64)
    tokens = TOKENS[:20]
    row = runner.open(tokens)
    old = runner.run([Chunk(row, 20)])
    runner.close(row)
    assert not runner.stale and runner.open(tokens).n_reused == 16
    other = NativeRunner(model, library(LEVELS[-1]), n_tokens=64)
    with torch.no_grad():
        model.get_parameter("layers.0.ffn.up_proj.weight").add_(0.5)
    assert other.stale
    new = other.run([Chunk(other.open(tokens), 20)])
    assert not torch.allclose(old, new) and not other.stale


def test_plans_that_end_give_their_memory_back() -> None:
    resident = []
    for i in range(60):
        runner = made("llama", LEVELS[-1], torch.float32, n_tokens=64)
        runner.run([Chunk(runner.open(TOKENS), 48)])
        if i in (20, 59):
            with open("/proc/self/statm") as file:
                resident.append(int(file.read().split()[1]))
        del runner
    assert resident[1] - resident[0] < 500  # pages of 4 KB: 39 models of some 150 KB each would be 1,500


def test_whoever_looks_sees_what_is_computed() -> None:
    if len(LEVELS) == 1:
        pytest.skip("no level here that would be chosen")
    tokenizer = train_tokenizer("bytes", iter(["any text"]), 258)
    gpt = Generator(build(CONFIG.with_(vocab_size=tokenizer.vocab_size), 0).eval(), tokenizer)
    model = gpt.model

    def text() -> list[int]:
        return gpt.generate([1, 2, 3], max_tokens=9, temperature=0, ignore_eos=True).tokens

    def runner() -> type:
        assert gpt._local._made is not None
        return type(gpt._local._made.runner)

    before = text()
    assert runner() is NativeRunner
    with look(model) as seen:
        assert text() == before and runner() is WatchedRunner
    assert len(seen.calls) == 9 * CONFIG.n_layers
    assert text() == before and runner() is NativeRunner
    with edited([Edit(model.get_submodule("layers.0"), "out", lambda x: -3 * x)]):
        assert text() != before
    assert text() == before and runner() is NativeRunner
