"""Recurrences by the kernels: a layer alone against PyTorch in float64, states that are forked, cut and used
again, whole answers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.inference.test_runner import CONFIG
from tests.native.kernels import Ops, levels, library
from tests.native.test_ops import LEVELS, close, drawn, filled, in_8_bits, rounded, sizes
from tests.native.test_runner import FAMILIES, family, made
from tests.scale import scaled
from transom.data.tokenizer import train_tokenizer
from transom.inference.engine import Engine
from transom.inference.generator import Generator
from transom.inference.native_runner import NativeRunner
from transom.inference.request import Request
from transom.inference.runner import BlockRunner, Chunk, TorchRunner
from transom.inference.sync_engine import SyncEngine, sync_settings
from transom.model.build import build
from transom.model.recurrent import GATES, RecurrentLayer
from transom.native import abi
from transom.native.abi import F32, I8, Op
from transom.sampling_params import SamplingParams

RECURRENCES = [name for name, parts in FAMILIES.items() if "cell" in parts]
PAGE = 16


def in_blocks(x: Tensor, n_gates: int) -> Tensor:
    """Rows of gates (gates * D, ...): of 32 units those of each gate, and so on, filled up with zeros."""
    gates = [F.pad(gate.T, (0, -len(gate) % 32)).T.unflatten(0, (-1, 32)) for gate in x.chunk(n_gates)]
    return torch.stack(gates, 1).flatten(0, 2)


@pytest.mark.parametrize(("level", "format"), LEVELS)
@pytest.mark.parametrize("cell", GATES)
@given(
    width=sizes, spans=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 36)), min_size=1, max_size=5),
    many=st.sampled_from([0, 0, 34]), coded=st.booleans(), threads=st.integers(1, 2), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=scaled(30))
def test_states_of_rows_that_begin_anywhere(level, format, cell, width, spans, many, coded, threads, seed):
    """Read in two steps, the first up to where each row begins in the second: in pages of any order."""
    spans = spans + [(1 + i % 3, 1) for i in range(many)]
    layer, n_gates = RecurrentLayer(cell, 1, width).double(), GATES[cell]
    with torch.no_grad():
        for i, part in enumerate(layer.parameters()):
            part.copy_(drawn(seed + i, *part.shape, scale=0.5))
        layer.weight_hh_l0.copy_(rounded(layer.weight_hh_l0 * 3 * width**-0.5, format))
        layer.weight_ih_l0.zero_()
        layer.bias_ih_l0.zero_()
    lengths = [start + n for start, n in spans]
    brought = [drawn(seed + i, n, n_gates * width).float().double() for i, n in enumerate(lengths)]

    n_pages = [-(-n // PAGE) for n in lengths]
    order = torch.randperm(sum(n_pages), generator=torch.Generator().manual_seed(seed)).tolist()
    pages = [order[sum(n_pages[:i]) : sum(n_pages[: i + 1])] for i in range(len(spans))]
    padded, weights = -(-width // 32) * 32, I8 if coded else format
    ops = Ops(library(level), format, [(n_gates * padded, F32), (width, F32), (width, weights)],
              head_dim=32, n_pages=sum(n_pages))  # fmt: skip
    ops.plan([
        Op(kind=abi.CELL, in_=0, out=1, state=2, cell=abi.CELLS[cell],
           matrix=ops.matrix(in_blocks(layer.weight_hh_l0.detach(), n_gates), weights),
           bias=ops.floats(in_blocks(layer.bias_hh_l0.detach()[:, None], n_gates)[:, 0]))
    ])  # fmt: skip

    def read(steps: list[tuple[int, int]]) -> list[Tensor]:
        some = [(i, start, n) for i, (start, n) in enumerate(steps) if n]
        rows = torch.cat([brought[i][start : start + n] for i, start, n in some])
        filled(ops, 0, in_blocks(rows.T, n_gates).T)
        ops.run([0] * len(rows), [(start, n) for _, start, n in some], [pages[i] for i, _, _ in some],
                threads=threads)  # fmt: skip
        out = ops.buffer(1, len(rows))
        assert not out[:, width:].any(), "padding is read by the next product: it must stay 0"
        return list(out[:, :width].double().clone().split([n for _, _, n in some]))

    early = iter(read([(0, start) for start, _ in spans]) if any(start for start, _ in spans) else [])
    late = read(spans)
    if coded:
        whole, scales = in_8_bits(layer.weight_hh_l0.detach(), width)
        layer.weight_hh_l0.data = (whole[:, 0] * scales).double()[:, :width]
    for x, (start, _), own in zip(brought, spans, late, strict=True):
        own = torch.cat([next(early), own]) if start else own
        close(own, states(layer, x, own, weights), F32)


def states(layer: RecurrentLayer, brought: Tensor, found: Tensor, format: int) -> Tensor:
    """(L, D): the state after each token by the plain equations from that which was found before it: what the
    product reads of it is rounded, and a last bit before that moves it by a step.
    """
    h = torch.cat([torch.zeros(1, layer.width, dtype=torch.float64), found])
    if format == I8:
        whole, scales = in_8_bits(h, 32)
        read = (whole * scales[..., None]).flatten(1)[:, : layer.width].double()
    else:
        read = rounded(h, format)
    kept, out, memory = F.linear(read, layer.weight_hh_l0, layer.bias_hh_l0), [], torch.tensor(0.0)
    for x, own, before in zip(brought, kept, h, strict=False):
        if layer.cell == "rnn":
            out.append(torch.tanh(x + own))
        elif layer.cell == "gru":
            (reset_x, update_x, new_x), (reset_h, update_h, new_h) = x.chunk(3), own.chunk(3)
            update, reset = torch.sigmoid(update_x + update_h), torch.sigmoid(reset_x + reset_h)
            out.append((1 - update) * torch.tanh(new_x + reset * new_h) + update * before)
        else:
            into, forget, new, last = (x + own).chunk(4)
            memory = torch.sigmoid(forget) * memory + torch.sigmoid(into) * torch.tanh(new)
            out.append(torch.sigmoid(last) * torch.tanh(memory))
    return torch.stack(out).detach()


@pytest.mark.parametrize("level", levels() or ["scalar"])
@pytest.mark.parametrize("name", RECURRENCES)
@pytest.mark.parametrize("weights", ["", "int8", "bfloat16"])
def test_a_row_has_its_bits_beside_any_others_in_any_pieces(level: str, name: str, weights: str) -> None:
    dtype = torch.float32 if weights == "bfloat16" else torch.bfloat16
    model, known = family(name, dtype), dict[int, Tensor]()
    texts = [[(7 * i + n * i * i) % 23 for i in range(48 - n)] for n in range(37)]
    before = torch.get_num_threads()
    try:
        for n_threads, size, n_rows in ((1, 48, 1), (2, 7, 5), (3, 1, 37), (1, 48, 37)):
            torch.set_num_threads(n_threads)
            runner = NativeRunner(model, library(level), n_tokens=4000, weights=weights)
            rows = [runner.open(text) for text in texts[:n_rows]]
            parts = [list[Tensor]() for _ in rows]
            while unread := [i for i, row in enumerate(rows) if row.n_read < len(row.tokens)]:
                chunks = [Chunk(rows[i], n := min(size, len(texts[i]) - rows[i].n_read), n) for i in unread]
                for i, logits in zip(unread, runner.run(chunks).split([c.n for c in chunks]), strict=True):
                    parts[i].append(logits)
            for i, logits in enumerate(parts):
                assert torch.equal(known.setdefault(i, torch.cat(logits)), torch.cat(logits))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", RECURRENCES)
@pytest.mark.parametrize("at", [7, 16, 20, 39])
def test_what_is_cut_or_was_interrupted_goes_on_from_where_it_was(
    name: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [(7 * i + i * i) % 23 for i in range(40)]
    runner = made(name, (levels() or ["scalar"])[-1], torch.float32, reuse=False)
    expected = runner.run([Chunk(runner.open(tokens), 40, 40)])
    row = runner.open(tokens)
    runner.run([Chunk(row, 40)])
    twin = runner.fork(row)
    runner.truncate(row, at)
    row.tokens += tokens[at:]
    assert torch.equal(runner.run([Chunk(row, 40 - at, 40 - at)]), expected[at:])
    runner.truncate(row, at)
    row.tokens += tokens[at:]
    runner.run([Chunk(row, 1)])
    run = type(runner.plan).run

    def interrupted(*arguments: object) -> Tensor:
        run(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    if at < 39:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(type(runner.plan), "run", interrupted)
            runner.run([Chunk(row, 1)])
        assert torch.equal(runner.run([Chunk(row, 39 - at, 39 - at)]), expected[at + 1 :])
    twin.tokens += [5, 6]
    plain = runner.run([Chunk(runner.open([*tokens, 5, 6]), 42)])
    assert torch.equal(runner.run([Chunk(twin, 2)]), plain)


def answers(runner: BlockRunner, beam: int) -> list[list[int]]:
    tokenizer = train_tokenizer("bytes", iter(["any text"]), 258)
    requests = [
        Request(
            prompt, SamplingParams(temperature=0), max_tokens=20, seed=0, sample=0, eos_ids=[],
            decoder=tokenizer.decoder(), beam=beam,
        )
        for prompt in ([1, 2, 3], [(5 * i) % 23 for i in range(17)], [7])
    ]  # fmt: skip
    for _ in SyncEngine(lambda: Engine(runner, tokenizer, settings=sync_settings(8))).run(requests):
        pass
    return [found.tokens for request in requests for found in request.found or [request]]


@pytest.mark.parametrize("name", RECURRENCES)
def test_beams_and_greedy_answers_are_those_of_pytorch(name: str) -> None:
    model = family(name, torch.float32)
    for beam in (1, 4):
        ours = answers(made(name, (levels() or ["scalar"])[-1], torch.float32), beam)
        assert ours == answers(TorchRunner(model, n_tokens=400), beam) and len(set(map(tuple, ours))) > 2


@pytest.mark.parametrize("name", RECURRENCES)
def test_texts_are_those_of_pytorch_streamed_or_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_tokenizer("bytes", iter(["any text"]), 258)
    parts = FAMILIES[name] | {"vocab_size": tokenizer.vocab_size, "max_len": 96}
    model = build(CONFIG.with_(**parts), 0).eval()
    with torch.no_grad():
        model.embed.weight.mul_(30)
    prompts = ["a", "any text that is longer than a page", "any text that is longer, and another"]

    def texts() -> list[str]:
        gpt = Generator(model, tokenizer)
        assert gpt.runs_by.startswith(by)
        done = [one.text for one in gpt.generate(prompts, max_tokens=40, temperature=0, ignore_eos=True)]
        streamed = ["".join(gpt.stream(prompt, max_tokens=40, temperature=0)) for prompt in prompts]
        assert [one.startswith(other) for one, other in zip(done, streamed, strict=True)] == [True] * 3
        drawn = gpt.generate(prompts[1], n=3, max_tokens=40, temperature=0.8, seed=1, ignore_eos=True)
        return [*done, *streamed, *(one.text for one in drawn)]

    by = "by native kernels" if len(levels()) > 1 else "by PyTorch"
    found = texts()
    by = "by PyTorch"
    monkeypatch.setenv("TRANSOM_NATIVE", "0")
    assert texts() == found and len(set(found)) > 5
