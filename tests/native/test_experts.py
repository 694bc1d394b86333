"""Mixtures of experts by the kernels: choices as PyTorch makes them, each expert's products, whole models."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.checkpoint import test_expert_parity as parity
from tests.checkpoint.oracle import TOLERANCE, some_tokens
from tests.inference.test_runner import CONFIG
from tests.native.kernels import Ops, levels, library
from tests.native.test_ops import LEVELS, drawn, filled, rounded
from tests.native.test_runner import FAMILIES
from tests.scale import scaled
from transom.checkpoint.huggingface import load_model
from transom.data.tokenizer import train_tokenizer
from transom.inference.generator import Generator
from transom.inference.native_runner import NativeRunner
from transom.inference.runner import Chunk
from transom.model.build import build
from transom.model.config import Experts
from transom.model.experts import Router, routers
from transom.model.layers import ACTIVATIONS
from transom.native import abi
from transom.native.abi import BF16, F32, I8, Op

WITH_EXPERTS = [name for name, parts in FAMILIES.items() if "experts" in parts]


@pytest.mark.parametrize("level", levels() or ["scalar"])
@given(
    m=st.integers(1, 20), shape=st.sampled_from([(1, 1), (3, 1), (5, 2), (8, 8), (16, 4), (70, 1), (130, 2),
                                                 (130, 9)]),
    score=st.sampled_from(["softmax", "sigmoid"]), normalize=st.booleans(), scale=st.sampled_from([1.0, 2.5]),
    corrected=st.booleans(), ties=st.booleans(), threads=st.integers(1, 2), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=scaled(100))
def test_choices_are_those_of_the_router(
    level, m, shape, score, normalize, scale, corrected, ties, threads, seed
):
    """Of experts that tie too: those that torch.topk takes, in its order."""
    n, k = shape
    experts = Experts(n, k, 8, score=score, normalize=normalize, scale=scale,
                      balance="bias" if corrected else "none")  # fmt: skip
    x = drawn(seed, m, n, scale=2.0).float()
    bias = drawn(seed + 1, n).float() if corrected else None
    if ties:
        x, bias = x.round(), None if bias is None else bias.round()
    router = Router(n, experts).eval()
    with torch.inference_mode():
        router.weight.copy_(torch.eye(n))
        if router.correction is not None and bias is not None:
            router.correction.copy_(bias)
        chosen, weights = router(x)
    ops = Ops(library(level), F32, [(n, F32), (2 * k, F32)])
    ops.plan([Op(kind=abi.ROUTE, in_=0, out=1, n_experts=n, n_active=k, scale=scale, bias=ops.floats(bias),
                 sigmoid=int(score == "sigmoid"), normalize=int(normalize))])  # fmt: skip
    filled(ops, 0, x)
    ops.run([0] * m, threads=threads)
    found = ops.buffer(1, m)[:, : 2 * k].unflatten(1, (k, 2))
    assert torch.equal(found[..., 0].contiguous().view(torch.int32).long(), chosen)
    torch.testing.assert_close(found[..., 1], weights, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("level", levels() or ["scalar"])
@pytest.mark.parametrize("score", [0, 1], ids=["softmax", "sigmoid"])
def test_a_score_that_is_no_number_shows_in_the_weights(level, score):
    x = drawn(0, 4, 6).float()
    x[2, 5] = torch.nan
    ops = Ops(library(level), F32, [(6, F32), (4, F32)])
    ops.plan([Op(kind=abi.ROUTE, in_=0, out=1, n_experts=6, n_active=2, scale=1.0, sigmoid=score)])
    filled(ops, 0, x)
    ops.run([0] * 4)
    weights = ops.buffer(1, 4)[:, :4].unflatten(1, (2, 2))[..., 1]
    assert weights[[0, 1, 3]].isfinite().all() and weights[2].isnan().any()


class Mixture:
    """The ops of a mixture over rows of which the choices are given."""

    def __init__(self, level: str, format: int, n: int, k: int, dim: int, wide: int, gated: bool, int8: bool,
                 activation: str) -> None:  # fmt: skip
        self.k, self.dim, self.gated, self.activation = k, dim, gated, activation
        self.gate, self.up = (rounded(drawn(i, n, wide, dim, scale=dim**-0.5), format) for i in (1, 2))
        self.down = rounded(drawn(3, n, dim, wide, scale=wide**-0.5), format)
        own, held = dict(n_experts=n, n_active=k), I8 if int8 else format
        self.ops = ops = Ops(
            library(level), format,
            [(dim, format), (2 * k, F32), (dim, held), (dim, held), (wide, format), (wide, held), (dim, F32)],
        )  # fmt: skip

        def table(weights: list[Tensor]) -> int:
            matrices = [ops.matrix(weight, held) for weight in weights]
            ops.kept.append((ctypes.c_void_p * n)(*matrices))
            return ctypes.addressof(ops.kept[-1])

        fill = (0, 0, 0, -wide % 16)
        both = [self.gate, self.up] if gated else [self.up]
        panels = torch.stack(
            [torch.nn.functional.pad(w, fill).unflatten(1, (-1, 16)) for w in both], 2
        ).flatten(1, 3)
        ops.plan([
            Op(kind=abi.GROUP, in_=1, **own),
            *([Op(kind=abi.ENCODE, in_=0, out=2)] if int8 else []),
            Op(kind=abi.GATHER, in_=2 if int8 else 0, out=3, **own),
            Op(kind=abi.EXPERTS, in_=3, out=4, matrices=table(list(panels)), **own,
               store=abi.GATE if gated else abi.WRITE, activation=abi.ACTIVATIONS[activation]),
            *([Op(kind=abi.ENCODE, in_=4, out=5, n_active=k)] if int8 else []),
            Op(kind=abi.EXPERTS, in_=5 if int8 else 4, out=6, matrices=table(list(self.down)), **own,
               store=abi.ADD),
        ])  # fmt: skip

    def run(self, x: Tensor, chosen: Tensor, weights: Tensor, threads: int = 1) -> Tensor:
        """What is added to a stream of ones, (N, D)."""
        filled(self.ops, 0, x)
        choices = torch.stack((chosen.int().view(torch.float32), weights.float()), 2)
        self.ops.buffer(1, len(x))[:, : 2 * self.k] = choices.flatten(1)
        filled(self.ops, 6, torch.ones(len(x), self.dim))
        self.ops.run([0] * len(x), threads=threads)
        out = self.ops.buffer(6, len(x))
        assert not out[:, self.dim :].any()
        return out[:, : self.dim].clone()

    def plain(self, x: Tensor, chosen: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The same in float64, and how far off what is inside an expert may be, rounded once in bfloat16."""
        act, rows, unsure = ACTIVATIONS[self.activation], [], []
        for row, experts, own in zip(x, chosen.tolist(), weights, strict=True):
            total, off = torch.ones(self.dim, dtype=torch.float64), torch.zeros(self.dim, dtype=torch.float64)
            for expert, weight in zip(experts, own, strict=True):
                up = self.up[expert] @ row
                inner = act(self.gate[expert] @ row) * up if self.gated else act(up)
                total += weight * (self.down[expert] @ inner)
                off += weight * (self.down[expert].abs() @ inner.abs())
            rows.append(total)
            unsure.append(
                off * (2.0**-8 if self.ops.format == BF16 else 0.0) + 2e-5 * (1 + total.abs().max())
            )
        return torch.stack(rows), torch.stack(unsure)


def choices(m: int, n: int, k: int, seed: int, crowd: bool) -> tuple[Tensor, Tensor]:
    """Which experts rows meet, (N, k), with their weights; crowd: the same for all of them."""
    order = drawn(seed, m, n).argsort(1)[:, :k]
    return (order[:1].expand(m, k).contiguous() if crowd else order), drawn(
        seed + 1, m, k
    ).abs().float().double()


mixtures = dict(
    m=st.one_of(st.integers(1, 20), st.sampled_from([31, 33, 65])), n=st.integers(1, 9), k=st.integers(1, 4),
    dim=st.integers(1, 70), wide=st.integers(1, 70), seed=st.integers(0, 99), gated=st.booleans(),
    crowd=st.booleans(), threads=st.integers(1, 2), activation=st.sampled_from(["silu", "relu2"]),
)  # fmt: skip


@pytest.mark.parametrize(("level", "format"), LEVELS)
@given(**mixtures)
@settings(max_examples=scaled(60))
def test_rows_through_their_experts(
    level, format, m, n, k, dim, wide, seed, gated, crowd, threads, activation
):
    k = min(n, k)
    mixture = Mixture(level, format, n, k, dim, wide, gated, False, activation)
    x, (chosen, weights) = rounded(drawn(seed, m, dim), format), choices(m, n, k, seed, crowd)
    expected, off = mixture.plain(x, chosen, weights)
    assert bool(((mixture.run(x, chosen, weights, threads) - expected).abs() <= off).all())


@pytest.mark.parametrize(("level", "format"), LEVELS)
@pytest.mark.parametrize("int8", [False, True], ids=["", "int8"])
@given(**mixtures)
@settings(max_examples=scaled(30))
def test_a_row_has_its_bits_whoever_meets_its_experts(
    level, format, int8, m, n, k, dim, wide, seed, gated, crowd, threads, activation
):
    k = min(n, k)
    mixture = Mixture(level, format, n, k, dim, wide, gated, int8, activation)
    x, (chosen, weights) = rounded(drawn(seed, m, dim), format), choices(m, n, k, seed, crowd)
    whole = mixture.run(x, chosen, weights, threads)
    if int8:
        exact = mixture.plain(x, chosen, weights)[0]
        assert float((whole - exact).square().mean().sqrt()) <= 0.05 * float(exact.square().mean().sqrt() + 1)
    for first, end in ((0, 1), (m // 2, m), (m // 3, m // 3 + 9)):
        part = slice(first, min(end, m))
        assert torch.equal(mixture.run(x[part], chosen[part], weights[part]), whole[part])
    order = drawn(seed + 5, m).argsort()
    assert torch.equal(mixture.run(x[order], chosen[order], weights[order]), whole[order])


@pytest.mark.parametrize("name", parity.CASES)
@pytest.mark.parametrize("level", levels() or ["scalar"])
def test_the_logits_of_transformers(name: str, level: str, tmp_path: Path) -> None:
    theirs = parity.make(name)
    theirs.save_pretrained(tmp_path)
    expected, tokens = parity.their_logits(theirs), some_tokens(97)
    model = load_model(tmp_path).eval()
    runner = NativeRunner(model, library(level), n_tokens=4 * tokens.numel())
    n = tokens.shape[1]
    found = runner.run([Chunk(runner.open(row), n, n) for row in tokens.tolist()])
    torch.testing.assert_close(found.view_as(expected), expected, rtol=1e-5, atol=TOLERANCE)


@pytest.mark.parametrize("name", WITH_EXPERTS)
def test_greedy_texts_are_those_of_pytorch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_tokenizer("bytes", iter(["any text"]), 258)
    parts = FAMILIES[name] | {"vocab_size": tokenizer.vocab_size, "max_len": 96}
    model = build(CONFIG.with_(**parts), 0).eval()
    with torch.no_grad():
        model.embed.weight.mul_(30)
    prompts = [[1, 2, 3], list(range(40)), [7]]

    def texts() -> list[list[int]]:
        gpt = Generator(model, tokenizer)
        done = gpt.generate(prompts, max_tokens=40, temperature=0, ignore_eos=True)
        assert gpt.runs_by.startswith(by)
        return [one.tokens for one in done]

    by = "by native kernels" if len(levels()) > 1 else "by PyTorch"
    found = texts()
    by = "by PyTorch"
    monkeypatch.setenv("TRANSOM_NATIVE", "0")
    assert texts() == found and len({tuple(text) for text in found}) == len(prompts)


def test_a_correction_that_moves_is_read_anew() -> None:
    model = build(CONFIG.with_(experts=Experts(5, 2, 13)), 0).eval()
    runner = NativeRunner(model, library((levels() or ["scalar"])[-1]), n_tokens=64)
    row = runner.open([1, 2, 3])
    before = runner.run([Chunk(row, 3)])
    runner.close(row)
    assert not runner.stale
    for router in routers(model):
        assert router.correction is not None
        router.correction.copy_(torch.tensor([0.0, 0.0, 9.0, 9.0, 0.0]))
    assert runner.stale
    assert not torch.equal(runner.run([Chunk(runner.open([1, 2, 3]), 3)]), before)


@pytest.mark.timeout(120, method="thread")
@pytest.mark.parametrize("level", levels() or ["scalar"])
def test_a_thread_that_comes_late_has_nothing_to_wait_for(level: str) -> None:
    """Layers whose rows meet different numbers of experts, by more threads than there are cores."""
    model = build(CONFIG.with_(n_layers=6, experts=Experts(12, 2, 13)), 0).eval()
    with torch.no_grad():
        model.embed.weight.mul_(30)
    rows = [[(5 * i + row * i * i) % 23 for i in range(40)] for row in range(4)]
    before, found = torch.get_num_threads(), list[Tensor]()
    try:
        for n_threads in (1, *[4] * 10):
            torch.set_num_threads(n_threads)
            runner = NativeRunner(model, library(level), n_tokens=256)
            opened = [runner.open(row) for row in rows]
            found.append(torch.cat([runner.run([Chunk(row, 1, 1) for row in opened]) for _ in range(40)]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(other, found[0]) for other in found[1:])
