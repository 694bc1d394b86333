"""The native runner: whole models against the plain pass in float64, and bit by bit against itself."""

from __future__ import annotations

import copy
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from tests.inference.test_runner import CONFIG, Play, check_bits, moves
from tests.native.kernels import in_8_bits, levels, library
from tests.scale import scaled
from transom.checkpoint.huggingface import save_model
from transom.data.tokenizer import train_tokenizer
from transom.errors import Refused
from transom.inference.adapters import shared
from transom.inference.generator import Generator
from transom.inference.load import load
from transom.inference.native_runner import NativeRunner, WatchedRunner, available, runner_for
from transom.inference.runner import Chunk, TorchRunner
from transom.insight.hooks import Edit, edited
from transom.insight.look import look
from transom.model.build import Model, build
from transom.model.config import Experts, RopeScaling
from transom.model.experts import routers
from transom.model.lora import Lora, adapted_layers, add_lora, linear_layers, named_by

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
    "relative": {"position": "relative", "relative_buckets": 8, "relative_max_distance": 20, "window": 9},
    "sinusoidal": {"position": "sinusoidal"},
    "no positions": {"position": "none", "ffn_dim": 41, "dim": 19, "activation": "gelu"},
    "mixtral": {"experts": Experts(5, 2, 13, score="softmax", balance="none")},
    "olmoe": {
        "experts": Experts(6, 3, 12, score="softmax", normalize=False, balance="loss"),
        "qk_norm": True,
        "qk_norm_over": "projection",
    },
    "qwen3-moe": {"experts": Experts(8, 2, 9, score="softmax", balance="loss"), "qk_norm": True},
    "dots1": {"experts": Experts(6, 3, 11, n_shared=2, scale=2.5, first_dense=1), "qk_norm": True},
    "one of many experts, no gate": {
        "experts": Experts(70, 1, 20, score="softmax"),
        "gated": False,
        "activation": "relu2",
    },
    "lstm": {"cell": "lstm", "dim": 40, "tie_embeddings": False},
    "gru": {"cell": "gru", "n_layers": 3, "logit_softcap": 8.0, "head_bias": True},
    "rnn": {"cell": "rnn", "dim": 19, "n_layers": 1, "scale_embeddings": True, "logit_scale": 0.5},
}
ATTENDING = [name for name, parts in FAMILIES.items() if "cell" not in parts]


@cache
def family(name: str, dtype: torch.dtype) -> Model:
    model = build(CONFIG.with_(**FAMILIES[name]), 0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.embed.weight.mul_(30)  # so that logits depend on what was read
        for part in model.parameters():
            if part.ndim == 1:  # norms that are not 1, biases that are not 0
                part.add_(0.2 * torch.randn(part.shape, generator=generator))
        for router in routers(model):
            if router.correction is not None:  # chosen by it, not weighted
                router.correction.normal_(std=0.1, generator=generator)
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
    name = ("llama", "mistral", "qwen3", "gpt2", "dots1", "lstm", "gru", "rnn")[plan[0][1] % 8]
    runner = made(
        name, level, torch.float32, n_tokens=(32, 64, 400)[plan[0][1] // 4 % 3], reuse=plan[0][1] % 2 > 0
    )
    for (tokens, _), logits in Play(runner, False).play(plan).seen:
        expected = plain(name, torch.float32, tokens)[-1]
        torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["mistral", "dots1", "lstm", "gru"])
@given(one=moves, other=moves)
@settings(max_examples=scaled(20))
def test_logits_are_bitwise_a_function_of_the_row(level, dtype, name, one, other):
    """Alone and beside others, in any chunks, from the prefix cache, as a fork: always the same bits."""
    plans = (one, True), (other, False), (one + other, True)
    check_bits(Play(made(name, level, dtype, reuse=reuse), False).play(plan) for plan, reuse in plans)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "parts",
    [{}, {"experts": Experts(7, 3, 40, n_shared=1)}, {"cell": "gru"}],
    ids=["dense", "experts", "gru"],
)
def test_bits_are_those_of_any_number_of_threads_and_any_chunks(
    level: str, dtype: torch.dtype, parts: dict[str, Any]
) -> None:
    config = CONFIG.with_(max_len=2100, dim=48, window=1500, **parts)
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


KINDS = (Lora(4), Lora(3, 6.0, rslora=True), Lora(5, dora=True), Lora(2), Lora(40), Lora(8, dora=True))
TARGETS = ("all", "q_proj", "v_proj", "down_proj", "o_proj", "up_proj")


@cache
def adapters_to(name: str, dtype: torch.dtype, n: int = 8) -> dict[str, Model]:
    """Adapters of different kinds to different layers, over one base; what they learned is float32."""
    made = dict[str, Model]()
    for number in range(n):
        twin, generator = shared(family(name, dtype)), torch.Generator().manual_seed(number)
        chosen = named_by(TARGETS[number % 6], linear_layers(twin))
        add_lora(twin, dict.fromkeys(chosen, KINDS[number % 6]), number)
        with torch.no_grad():
            for layer in adapted_layers(twin).values():
                layer.lora_A.data, layer.lora_B.data = layer.lora_A.float(), layer.lora_B.float()
                layer.lora_B.normal_(std=0.03, generator=generator)
                if layer.lora_magnitude is not None:
                    layer.lora_magnitude.data = layer.row_lengths().float()
                    layer.lora_magnitude.mul_(1 + 0.3 * torch.rand(layer.out_features, generator=generator))
        made[f"a{number}"] = twin.eval().requires_grad_(False)
    return made


@cache
def plain_adapted(name: str, dtype: torch.dtype, adapter: str, tokens: tuple[int, ...]) -> Tensor:
    """(L, V) of an adapter over a model of another type, by one pass in float64."""
    with torch.inference_mode():
        model = copy.deepcopy(adapters_to(name, dtype)[adapter]).double()
        return model.logits(model(torch.tensor([tokens])))[0].double()


def adapted(name: str, level: str, dtype: torch.dtype, reuse: bool = True) -> NativeRunner:
    base, over = family(name, dtype), adapters_to(name, dtype)
    return NativeRunner(base, library(level), n_tokens=2000, adapters=over, reuse=reuse)


@pytest.mark.parametrize("name", ATTENDING)
@pytest.mark.parametrize("level", LEVELS)
def test_adapters_in_float32_are_the_plain_pass(name: str, level: str) -> None:
    runner = adapted(name, level, torch.float32)
    rows = [runner.open(TOKENS[i:], adapter=over) for i, over in enumerate(adapters_to(name, torch.float32))]
    found = runner.run([Chunk(row, len(row.tokens), len(row.tokens)) for row in rows])
    for row, logits in zip(rows, found.split([len(row.tokens) for row in rows]), strict=True):
        expected = plain_adapted(name, torch.float32, row.adapter, tuple(row.tokens))
        torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=2e-5, msg=row.adapter)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("level", LEVELS)
def test_adapters_in_bfloat16_are_no_further_from_exact_than_in_pytorch(name: str, level: str) -> None:
    runner = adapted(name, level, torch.bfloat16)
    plain = TorchRunner(family(name, torch.bfloat16), n_tokens=2000,
                        adapters=adapters_to(name, torch.bfloat16))  # fmt: skip
    for over in adapters_to(name, torch.bfloat16):
        exact = plain_adapted(name, torch.bfloat16, over, tuple(TOKENS))
        ours, theirs = (
            float((who.run([Chunk(who.open(TOKENS, adapter=over), 48, 48)]) - exact).square().mean())
            for who in (runner, plain)
        )
        assert ours <= theirs, over


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_eight_adapters_in_one_batch_have_the_bits_of_each_alone(level: str, dtype: torch.dtype) -> None:
    names = ["", *adapters_to("llama", dtype)]
    alone = {}
    for name in names:
        runner = adapted("llama", level, dtype, reuse=False)
        alone[name] = runner.run([Chunk(runner.open(TOKENS, adapter=name), 48, 48)])
    base = made("llama", level, dtype)
    assert torch.equal(base.run([Chunk(base.open(TOKENS), 48, 48)]), alone[""])
    assert len({tuple(logits[-1].tolist()) for logits in alone.values()}) == len(names)
    before = torch.get_num_threads()
    try:
        for n_threads, step in ((1, 48), (2, 7), (3, 1)):
            torch.set_num_threads(n_threads)
            runner = adapted("llama", level, dtype)
            rows = [runner.open(TOKENS, adapter=name) for name in (*names, *names[::-2])]
            parts = list[Tensor]()
            while (n := min(step, 48 - rows[0].n_read)) > 0:
                parts.append(runner.run([Chunk(row, n, n) for row in rows]).unflatten(0, (len(rows), n)))
            for row, logits in zip(rows, torch.cat(parts, 1), strict=True):
                assert torch.equal(logits, alone[row.adapter])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("level", LEVELS)
def test_an_adapter_that_has_learned_nothing_is_the_base(level: str) -> None:
    base, none, fresh = (
        family("llama", torch.bfloat16),
        *(shared(family("llama", torch.bfloat16)) for _ in "ab"),
    )
    add_lora(none, dict.fromkeys(linear_layers(none), Lora(0)))
    add_lora(fresh, dict.fromkeys(linear_layers(fresh), Lora(4)))
    runner = NativeRunner(base, library(level), n_tokens=400, adapters={"none": none, "fresh": fresh})
    rows = [runner.open(TOKENS, adapter=name) for name in ("", "none", "fresh")]
    own, *others = runner.run([Chunk(row, 48, 48) for row in rows]).split(48)
    assert all(torch.equal(own, other) for other in others)


def test_a_model_with_an_adapter_of_its_own_is_read_by_it_and_anew_when_that_learns() -> None:
    model = copy.deepcopy(adapters_to("llama", torch.bfloat16)["a0"])
    runner = runner_for(model, n_tokens=400)
    if len(LEVELS) == 1:
        pytest.skip("no level here that would be chosen")
    assert isinstance(runner, NativeRunner)
    beside = adapted("llama", LEVELS[-1], torch.bfloat16)
    row = runner.open(TOKENS)
    found = runner.run([Chunk(row, 48, 48)])
    assert torch.equal(found, beside.run([Chunk(beside.open(TOKENS, adapter="a0"), 48, 48)]))
    assert not torch.equal(found, beside.run([Chunk(beside.open(TOKENS), 48, 48)]))
    torch.testing.assert_close(runner.streams(TOKENS), beside.streams(TOKENS, "a0"), rtol=0, atol=0)
    runner.close(row)
    assert not runner.stale
    with torch.no_grad():
        model.get_parameter("layers.0.attn.q_proj.lora_B").mul_(2)
    assert runner.stale and not torch.equal(runner.run([Chunk(runner.open(TOKENS), 48, 48)]), found)


def test_an_adapter_beside_its_base_is_read_anew_when_it_learns() -> None:
    base = family("llama", torch.float32)
    over = copy.deepcopy(adapters_to("llama", torch.float32)["a0"])
    runner = NativeRunner(base, library(LEVELS[-1]), n_tokens=400, adapters={"a": over})
    assert not runner.stale
    with torch.no_grad():
        over.get_parameter("layers.1.ffn.gate_proj.lora_A").mul_(2)
    assert runner.stale


@pytest.mark.parametrize("level", LEVELS)
def test_numbers_that_are_none_in_an_adapter_damage_its_own_rows_alone(level: str) -> None:
    base, broken = family("llama", torch.bfloat16), copy.deepcopy(adapters_to("llama", torch.bfloat16)["a0"])
    with torch.no_grad():
        broken.get_parameter("layers.0.attn.v_proj.lora_A")[1, 3] = torch.nan
    good = adapters_to("llama", torch.bfloat16)["a2"]
    runner = NativeRunner(base, library(level), n_tokens=400, adapters={"bad": broken, "good": good})
    names = ["good", "bad", "", "good"]
    for _ in range(2):
        rows = [runner.open(TOKENS[:20], adapter=name) for name in names]
        found = runner.run([Chunk(row, 20 - row.n_read, 1) for row in rows])
        assert [bool(logits.isfinite().all()) for logits in found] == [name != "bad" for name in names]
        assert not found[1].isfinite().any()
        for row in rows:
            runner.close(row)


@cache
def plain_in_8_bits(name: str, dtype: torch.dtype, tokens: tuple[int, ...], inputs: bool) -> Tensor:
    """(L, V) in float64 by weights that were rounded to 8 bits, and what they are multiplied with too."""
    model = copy.deepcopy(family(name, dtype)).double()
    head = in_8_bits(model.output_weight.double(), model.config.dim)
    read = (lambda x: in_8_bits(x, 32)) if inputs else (lambda x: x)
    with torch.inference_mode():
        for layer in linear_layers(model).values():
            layer.weight.data = in_8_bits(layer.weight, layer.in_features)
            layer.register_forward_pre_hook(lambda _, given: (read(given[0]),))
        return read(model(torch.tensor([tokens])))[0] @ head.T


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_8_bits_are_those_of_weights_and_of_what_they_multiply(
    name: str, level: str, dtype: torch.dtype
) -> None:
    runner = NativeRunner(family(name, dtype), library(level), n_tokens=400, weights="int8")
    found = runner.run([Chunk(runner.open(TOKENS), 48, 48)]).double()
    rounded, exact = plain_in_8_bits(name, dtype, tuple(TOKENS), True), plain(name, dtype, tuple(TOKENS))

    def away(one: Tensor, other: Tensor) -> float:
        return float((one - other).square().mean().sqrt())

    # A last bit before a rounding moves its result by a step, so it is not bit by bit the same; in bfloat16,
    # where every number is rounded before, most are moved.
    assert dtype == torch.bfloat16 or away(found, rounded) < 0.5 * away(rounded, exact)
    assert 0.5 < away(found, exact) / away(rounded, exact) < 1.5


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("level", LEVELS[-1:])
def test_every_family_runs_in_8_bits(name: str, level: str) -> None:
    exact = plain(name, torch.float32, tuple(TOKENS))
    runner = NativeRunner(family(name, torch.float32), library(level), n_tokens=400, weights="int8")
    found = runner.run([Chunk(runner.open(TOKENS), 48, 48)]).double()
    spread = float((exact - exact.mean(-1, keepdim=True)).square().mean().sqrt())
    assert 0 < float((found - exact).square().mean().sqrt()) < 0.05 * spread


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["qwen2", "dots1"])
def test_a_row_in_8_bits_has_its_bits_beside_any_others(level: str, dtype: torch.dtype, name: str) -> None:
    base, over, known = family(name, dtype), adapters_to(name, dtype), dict[str, Tensor]()
    before = torch.get_num_threads()
    try:
        for n_threads, step in ((1, 48), (2, 7), (3, 1)):
            torch.set_num_threads(n_threads)
            runner = NativeRunner(base, library(level), n_tokens=2000, adapters=over, weights="int8")
            rows = [runner.open(TOKENS, adapter=name) for name in ("a1", "", "a0", "", "a2")[: n_threads + 2]]
            parts = list[Tensor]()
            while (n := min(step, 48 - rows[0].n_read)) > 0:
                parts.append(runner.run([Chunk(row, n, n) for row in rows]).unflatten(0, (len(rows), n)))
            for row, logits in zip(rows, torch.cat(parts, 1), strict=True):
                assert torch.equal(known.setdefault(row.adapter, logits), logits)
    finally:
        torch.set_num_threads(before)
    assert len({tuple(logits[-1].tolist()) for logits in known.values()}) == 4


@pytest.mark.parametrize("name", ["qwen2", "dots1"])
@pytest.mark.parametrize("level", LEVELS)
def test_weights_in_bfloat16_are_those_of_a_model_that_has_them_so(name: str, level: str) -> None:
    """Asked for, they are rounded; and where they are so already they are kept so."""
    model = copy.deepcopy(family(name, torch.float32))
    model.embed.weight.copy_(model.embed.weight.bfloat16())  # what is looked up is never rounded
    rounded = copy.deepcopy(model)
    for part, weight in rounded.named_parameters():
        if weight.ndim > 1 and "router" not in part:
            weight.copy_(weight.bfloat16())
    asked, found, plainly = (
        NativeRunner(one, library(level), n_tokens=400, weights=weights)
        for one, weights in ((model, "bfloat16"), (rounded, ""), (model, ""))
    )
    logits, same, other = (
        runner.run([Chunk(runner.open(TOKENS), 48, 48)]) for runner in (asked, found, plainly)
    )
    assert torch.equal(logits, same) and not torch.equal(logits, other)
    assert asked.plan.bytes == found.plan.bytes < 0.8 * plainly.plan.bytes


def test_weights_of_8_bits_are_told_and_refused_where_pytorch_computes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tokenizer = train_tokenizer("bytes", iter(["any text"]), 258)
    config = CONFIG.with_(vocab_size=tokenizer.vocab_size)
    model = build(config, 0).eval()
    with pytest.raises(Refused, match="weights is 'int4'; it must be int8 or bfloat16, or left out"):
        Generator(model, tokenizer, weights="int4")
    with pytest.raises(
        Refused, match="int8 weights are read by native kernels alone, and this model .*a soft cap"
    ):
        Generator(build(config.with_(attn_softcap=3.0), 0).eval(), tokenizer, weights="int8")
    monkeypatch.setenv("TRANSOM_NATIVE", "0")
    with pytest.raises(Refused, match="by PyTorch: native kernels turned off"):
        Generator(model, tokenizer, weights="int8")
    monkeypatch.delenv("TRANSOM_NATIVE")
    if len(LEVELS) == 1:
        pytest.skip("no level here that would be chosen")
    (tmp_path / "m").mkdir()
    save_model(tmp_path / "m", model, tokenizer)
    gpt = load(tmp_path / "m", Generator, weights="int8")
    assert gpt.runs_by.startswith("by native kernels (") and gpt.runs_by.endswith(", int8 weights)")
    assert gpt.runs_by in repr(gpt)
    gpt.generate([1, 2, 3], max_tokens=4)
    assert gpt._local._made is not None
    runner = gpt._local._made.runner
    assert isinstance(runner, NativeRunner) and runner.weights == "int8"


def test_what_a_plan_cannot_say_is_left_to_pytorch_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    if len(LEVELS) == 1:
        pytest.skip("no level here that would be chosen")
    cases = {
        "it is a recurrence that reads a source": {
            "cell": "lstm",
            "kind": "encoder-decoder",
            "n_encoder_layers": 1,
        },
        "its norms come after": {"norm_position": "after"},
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


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell")
def test_a_thousand_runners_leave_nothing_behind():
    model, held = build(CONFIG.with_(dim=128, ffn_dim=256, vocab_size=2000), 0).eval(), list[int]()
    size = 4 * model.n_parameters
    for number in range(1000):
        runner = NativeRunner(model, library(LEVELS[-1]), n_tokens=64)
        runner.run([Chunk(runner.open(TOKENS), 48, 1)])
        if number in (99, 999):
            held.append(resident())
    assert size > 1e6 and held[1] - held[0] < 10 * size  # of 900
