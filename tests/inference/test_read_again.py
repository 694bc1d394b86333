"""What is served in bfloat16 is what a plain pass reads again: alone, beside others, in pieces."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import transom
from tests.inference.bfloat16 import PLAIN_FEED_FORWARD, in_bfloat16
from tests.native.kernels import levels
from transom.inference.adapters import shared
from transom.inference.as_served import as_served
from transom.inference.native_runner import runner_for
from transom.inference.runner import Chunk, TorchRunner
from transom.insight.answer_score import logits_at
from transom.insight.hooks import Edit, edited
from transom.insight.lens import logit_lens
from transom.insight.token_probabilities import token_probabilities
from transom.model.build import Model, build
from transom.model.config import Experts, ModelConfig
from transom.model.lora import Lora, adapted_layers, add_lora, linear_layers
from transom.server.look import AGREES

CONFIG = ModelConfig(256, 32, 3, 4, 2, head_dim=8, ffn_dim=1100, max_len=640)
MEMBERS = {
    "decoder": {},
    "biases": PLAIN_FEED_FORWARD,
    "window, normed queries": {"window": 50, "qk_norm": True, "n_kv_heads": 4},
}  # fmt: skip


@pytest.fixture(params=MEMBERS)
def model(request: pytest.FixtureRequest) -> Model:
    return in_bfloat16(CONFIG.with_(**MEMBERS[request.param]))


@pytest.mark.parametrize("n_rows", [1, 5])
def test_rows_are_read_as_one_plain_pass_reads_them(model: Model, n_rows: int) -> None:
    runner = TorchRunner(model, n_tokens=n_rows * 600, reuse=False)
    runner._store.pool[:, 1:] = torch.nan  # what was never written may hold anything
    texts = torch.randint(256, (n_rows, 600), generator=torch.Generator().manual_seed(0)).tolist()
    starts = [30 + 112 * i for i in range(n_rows)]
    rows = [runner.open(text) for text in texts]
    made = [[runner.run([Chunk(row, n, n)])] for row, n in zip(rows, starts, strict=True)]
    for n in (*[1] * 40, 2, 3, 33):
        found = runner.run([Chunk(row, n, n) for row in rows]).split(n)
        for one, part in zip(made, found, strict=True):
            one.append(part)
    for text, one in zip(texts, made, strict=True):
        served = torch.cat(one)
        with torch.inference_mode():
            again = model.logits(model(torch.tensor([text])))[0, : len(served)]
        assert again.std() > 1  # or nothing was at stake
        # In float32 the order of a sum shows in the last digits; one step of bfloat16 would be 0.03 and more.
        assert float((served - again).abs().max()) < 1e-3


def test_what_was_never_written_takes_no_part_where_cells_are_read_one_by_one() -> None:
    config = CONFIG.with_(experts=Experts(4, 2, 32))  # of experts a cell is one token
    model = build(config, 0).eval().to(torch.bfloat16)
    runner = TorchRunner(model, n_tokens=120, reuse=False, deterministic=True)
    runner._store.pool[:, 1:] = torch.nan
    row = runner.open([*range(3, 63)])
    assert bool(runner.run([Chunk(row, 50, 50)]).isfinite().all())


def served_and_replayed(folder: Path, n_answers: int, n_tokens: int, beside: int) -> float:
    """The largest difference in nats, of answers that were written beside so many others."""
    loaded = transom.load(folder, transom.Generator, dtype="bfloat16")
    questions = [
        f"<|im_start|>user\nGive me {i + 2} facts about {thing}.<|im_end|>\n<|im_start|>assistant\n"
        for i in range(-(-n_answers // len(THINGS)))
        for thing in THINGS
    ][:n_answers]
    prompts = [loaded.tokenizer.backend.encode(question).ids for question in questions]
    worst = 0.0
    for start in range(0, n_answers, beside + 1):
        some = prompts[start : start + beside + 1]
        settings = {
            "max_tokens": n_tokens,
            "temperature": 1.0,
            "seed": start,
            "logprobs": 0,
            "ignore_eos": True,
        }
        for prompt, answer in zip(some, loaded.generate(some, **settings), strict=True):
            assert answer.logprobs is not None
            generated = torch.tensor([token.logprob for token in answer.logprobs], dtype=torch.float64)
            text = [*prompt, *answer.tokens]
            engine = loaded._local._made
            with as_served(loaded.model, text, None if engine is None else engine.runner):
                again = token_probabilities(loaded.model, text).logprob[len(prompt) - 1 :]
            assert len(generated) == n_tokens
            worst = max(worst, float((again - generated).abs().max()))
    return worst


THINGS = ("rain", "the moon", "a fox and a crow", "pancakes", "Lisbon", "steam engines", "bees", "old age")


@pytest.fixture
def rounds_alike(request: pytest.FixtureRequest) -> Callable[[], bool]:
    """Whether a product's rows are rounded here as they are alone; if not, the test ran where they are.

    oneDNN's AMX products of 576 by 1,536 round a few outputs by how many rows there are: 0.13 nats at the end
    of SmolLM2. Without AMX, as the environment can tell oneDNN at its start, they do not.
    """

    def alike() -> bool:
        generator = torch.Generator().manual_seed(0)
        weight, rows = (torch.randn(n, 1536, generator=generator).bfloat16() for n in (576, 64))
        whole = torch.nn.functional.linear(rows, weight)
        if all(torch.equal(torch.nn.functional.linear(rows[:n], weight), whole[:n]) for n in range(1, 64)):
            return True
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", request.node.nodeid]
        assert "ONEDNN_MAX_CPU_ISA" not in os.environ
        environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
        ran = subprocess.run(
            [*command, "-m", "slow or not slow"], cwd=request.config.rootpath, env=environment,
            capture_output=True, text=True,
        )  # fmt: skip
        assert ran.returncode == 0 and "1 passed" in ran.stdout, ran.stdout
        return False

    return alike


@pytest.fixture
def by_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSOM_NATIVE", "0")


@pytest.mark.parametrize("level", levels()[1:])
def test_what_the_kernels_served_is_read_again_as_served(
    smollm2: Path, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSOM_NATIVE", level)
    assert served_and_replayed(smollm2, 3, 24, beside=2) <= AGREES


@pytest.mark.parametrize("changes", [True, False])
@torch.no_grad()
def test_as_served_is_of_its_own_tokens_and_lets_changes_through(smollm2: Path, changes: bool) -> None:
    if len(levels()) < 2:
        pytest.skip("no native kernels that would be chosen here")
    loaded = transom.load(smollm2, transom.Generator, dtype="bfloat16")
    model, tokens = loaded.model, loaded.tokenizer.encode("The crow had found a piece of cheese.")
    runner = runner_for(model, n_tokens=256)
    plain, other = (logits_at(model, torch.tensor([x])) for x in (tokens, tokens[::-1]))
    served = runner.run([Chunk(runner.open(tokens), len(tokens), len(tokens))])
    before = runner.free_tokens()
    assert float((plain[0] - served).abs().max()) > 0.02  # or there was nothing to put in place
    with as_served(model, tokens, runner, changes=changes):
        torch.testing.assert_close(logits_at(model, torch.tensor([tokens]))[0], served, rtol=0, atol=0.01)
        beginning = logits_at(model, torch.tensor([tokens[:5]]))[0]
        torch.testing.assert_close(beginning, served[:5], rtol=0, atol=0.01)
        assert torch.equal(logits_at(model, torch.tensor([tokens[::-1]])), other)
        lens = logit_lens(model, tokens, positions=[-1], top=3)  # the last norm reads every layer afterwards
        assert lens.logprob.shape == (31, 1, 3)
        last = served[-1].double().log_softmax(-1).topk(3)
        assert lens.top[-1, 0].tolist() == last.indices.tolist()
        # The lens reads a state as the layer left it, which the model rounds to bfloat16 before its head.
        torch.testing.assert_close(lens.logprob[-1, 0], last.values, rtol=0, atol=0.05)
        with edited([Edit(model.layers[3].attn, "out", torch.zeros_like)]):  # type: ignore[union-attr, index]
            moved = float((logits_at(model, torch.tensor([tokens]))[0] - served).abs().max())
            assert moved > 0.5 if changes else moved < 0.01
    assert torch.equal(logits_at(model, torch.tensor([tokens])), plain) and runner.free_tokens() == before


@torch.no_grad()
def test_what_an_adapter_served_is_read_again_as_the_adapter(smollm2: Path) -> None:
    if len(levels()) < 2:
        pytest.skip("no native kernels that would be chosen here")
    loaded = transom.load(smollm2, transom.Generator, dtype="bfloat16")
    over, tokens = shared(loaded.model), loaded.tokenizer.encode("The crow had found a piece of cheese.")
    add_lora(over, dict.fromkeys(linear_layers(over), Lora(8)))
    for layer in adapted_layers(over).values():
        layer.lora_A.data, layer.lora_B.data = layer.lora_A.float(), layer.lora_B.float()
        layer.lora_B.normal_(std=0.01, generator=torch.Generator().manual_seed(0))
    runner = runner_for(loaded.model, n_tokens=256, adapters={"a": over})
    served = runner.run([Chunk(runner.open(tokens, adapter="a"), len(tokens), len(tokens))])
    base = runner.run([Chunk(runner.open(tokens), len(tokens), len(tokens))])
    assert float((served - base).abs().max()) > 0.3
    with as_served(over, tokens, runner, adapter="a"):
        torch.testing.assert_close(logits_at(over, torch.tensor([tokens]))[0], served, rtol=0, atol=0.01)


def test_a_real_model_says_again_what_was_served(
    smollm2: Path, by_pytorch: None, rounds_alike: Callable[[], bool]
) -> None:
    if rounds_alike():
        assert served_and_replayed(smollm2, 3, 24, beside=2) <= AGREES


@pytest.mark.slow
@pytest.mark.parametrize("beside", [0, 15])
def test_fifty_answers_of_a_real_model_are_what_was_served(
    smollm2: Path, beside: int, by_pytorch: None, rounds_alike: Callable[[], bool]
) -> None:
    if rounds_alike():
        assert served_and_replayed(smollm2, 50, 200, beside) <= AGREES
