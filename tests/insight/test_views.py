"""The views against what they mean: plain autograd, weights set to zero by hand, texts that are shorter."""

from __future__ import annotations

import json
import math
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from transom.errors import Refused
from transom.insight.ablation import ablate
from transom.insight.answer_score import AnswerScore, answer_score, logits_at
from transom.insight.attribution import GRADED, METHODS, attribute, grade, leave_one_out, spearman
from transom.insight.figures import attribution
from transom.insight.gradients import distance_curve, gradient_flow, slope_of, token_gradients
from transom.insight.hooks import Edit, edited
from transom.insight.lens import logit_lens
from transom.insight.module_finder import model_parts
from transom.insight.patching import patch
from transom.insight.routing import routing
from transom.insight.token_probabilities import token_probabilities
from transom.model.build import build
from transom.model.config import Experts, ModelConfig

SHAPE = dict(vocab_size=40, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=48, max_len=64)
EXPERTS = Experts(4, 2, ffn_dim=16)
TOKENS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3])


def model_of(**other: Any) -> Any:
    model = build(ModelConfig(**{**SHAPE, **other}), seed=1).eval()
    with torch.no_grad():  # far from uniform, so that views have something to see
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.mul_(3.0 if "embed" in name or "router" in name else 1.5)
    return model


DECODERS = {
    "transformer": {}, "post-norm": dict(norm_position="after", norm="layer"),
    "experts": dict(experts=EXPERTS), **{cell: dict(cell=cell) for cell in ("rnn", "lstm", "gru")},
}  # fmt: skip
RECURRENT = ("rnn", "lstm", "gru")


@pytest.fixture(params=DECODERS)
def model(request: pytest.FixtureRequest) -> Any:
    return model_of(**DECODERS[request.param])


def logprobs(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(tokens[None]))[0].double().log_softmax(-1)


# ------------------------------------------------------------------------------------------- what is asked


def test_surprise_is_what_the_plain_pass_gives(model: Any) -> None:
    found = token_probabilities(model, TOKENS, top=3)
    logs = logprobs(model, TOKENS)[:-1]
    own = logs.gather(-1, TOKENS[1:, None])[:, 0]
    torch.testing.assert_close(found.logprob, own, atol=1e-6, rtol=1e-6)
    assert found.rank.tolist() == [
        (row > row[t]).sum().item() for row, t in zip(logs, TOKENS[1:], strict=True)
    ]
    torch.testing.assert_close(found.entropy, -(logs.exp() * logs).sum(-1), atol=1e-6, rtol=1e-6)
    assert found.perplexity == pytest.approx(math.exp(-own.mean()), rel=1e-5)
    assert found.top.shape == (len(TOKENS) - 1, 3)


def test_surprise_reads_a_long_text_in_parts() -> None:
    model = model_of(max_len=700)
    tokens = torch.randint(40, (600,), generator=torch.Generator().manual_seed(0))
    own = logprobs(model, tokens)[:-1].gather(-1, tokens[1:, None])[:, 0]
    torch.testing.assert_close(token_probabilities(model, tokens).logprob, own, atol=1e-5, rtol=1e-5)


def test_a_question_scores_an_answer_of_several_tokens_and_a_choice(model: Any) -> None:
    logs = logprobs(model, TOKENS)
    asked = answer_score(model, TOKENS, answer=3)
    by_hand = sum(logs[p - 1, TOKENS[p]] for p in (7, 8, 9))
    with torch.no_grad():
        assert float(asked.of(model)) == pytest.approx(float(by_hand), abs=1e-5)
        choice = answer_score(model, TOKENS, target=7, foil=8, at=4)
        assert float(choice.of(model)) == pytest.approx(float(logs[4, 7] - logs[4, 8]), abs=1e-5)
    assert answer_score(model, TOKENS).targets == ((9, int(logs[-1].argmax())),)


@given(st.lists(st.integers(0, 30), min_size=2, max_size=12), st.data())
def test_without_keeps_the_order_and_moves_the_question(ids: list[int], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(ids) - 1))
    gone = data.draw(st.sets(st.integers(0, len(ids) - 1).filter(lambda p: p != at)))
    shorter = AnswerScore(tuple(ids), ((at, 5),)).without(sorted(gone))
    assert list(shorter.tokens) == [t for p, t in enumerate(ids) if p not in gone]
    assert shorter.tokens[shorter.positions[0]] == ids[at]


# ----------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", ["transformer", *RECURRENT])
def test_token_gradients_are_autograd_token_by_token(name: str) -> None:
    model = model_of(**DECODERS[name])
    found = token_gradients(model, TOKENS, rows=4).norms
    for t in range(len(TOKENS) - 1):
        leaf = model.embed(TOKENS[None, :-1]).detach().requires_grad_()
        with edited([Edit(model.embed, "out", lambda _, leaf=leaf: leaf)]):
            logits = model.logits(model(TOKENS[None, :-1]))
        F.cross_entropy(logits[0, t], TOKENS[t + 1]).backward()
        torch.testing.assert_close(found[t], leaf.grad[0].norm(dim=-1).double(), rtol=1e-4, atol=1e-7)  # type: ignore[index]
    assert found.triu(1).abs().max() == 0, "a later token has no say"


@pytest.mark.parametrize("name", ["transformer", *RECURRENT])
def test_the_distance_curve_is_the_last_row_and_its_slope_a_line(name: str) -> None:
    model = model_of(**DECODERS[name]).double()
    curve = distance_curve(model, TOKENS[None], last_only=True)
    torch.testing.assert_close(curve.norms[0], token_gradients(model, TOKENS).norms[-1].flip(0))
    line = 10 ** (-0.25 * torch.arange(30, dtype=torch.float64))
    assert slope_of(line[None]) == pytest.approx(-0.25)


def test_gradient_flow_starts_at_the_embeddings_and_splits_where_it_can(model: Any) -> None:
    flow = gradient_flow(model, TOKENS, target=7)
    assert flow.total.shape == (3, len(TOKENS))
    assert flow.loss == pytest.approx(-float(logprobs(model, TOKENS)[-1, 7]), abs=1e-5)
    rows = token_gradients(model, torch.cat((TOKENS, torch.tensor([7])))).norms
    torch.testing.assert_close(flow.total[0], rows[-1], rtol=1e-3, atol=1e-6)
    if flow.why:
        assert flow.identity is None and flow.branch is None and "pre-norm" in flow.why
    else:
        assert flow.identity is not None and flow.branch is not None
        torch.testing.assert_close(flow.identity, flow.total[1:])
        assert (flow.total[:-1] <= flow.identity + flow.branch + 1e-9).all()


# ---------------------------------------------------------------------------------------------------- lens


def test_the_lens_ends_in_the_answer_itself(model: Any) -> None:
    lens = logit_lens(model, TOKENS, top=4)
    best = logprobs(model, TOKENS).topk(4, dim=-1)
    torch.testing.assert_close(lens.logprob[-1], best.values, atol=1e-5, rtol=1e-5)
    assert lens.top[-1].tolist() == best.indices.tolist()
    assert lens.divergence[-1].abs().max() < 1e-9 and (lens.divergence > -1e-9).all()
    some = logit_lens(model, TOKENS, positions=[2, -1])
    assert some.positions == (2, 9)
    torch.testing.assert_close(some.divergence, lens.divergence[:, [2, 9]], atol=1e-6, rtol=1e-5)


# ------------------------------------------------------------------------------------- ablation, patching


def test_a_head_set_to_zero_is_a_head_whose_way_out_is_zero() -> None:
    model = model_of()
    found = ablate(model, TOKENS, "heads", target=7)
    assert len(found.units) == 8
    before = logprobs(model, TOKENS)[-1, 7]
    for (layer, head), change in zip(found.units, found.change.tolist(), strict=True):
        out = model.layers[layer].attn.o_proj.weight
        kept = out.detach().clone()
        with torch.no_grad():
            out[:, head * 8 : (head + 1) * 8] = 0
        assert float(logprobs(model, TOKENS)[-1, 7] - before) == pytest.approx(change, abs=1e-5)
        with torch.no_grad():
            out.copy_(kept)


@pytest.mark.parametrize("name", ["transformer", "post-norm"])
def test_a_layer_taken_away_passes_its_stream_on(name: str) -> None:
    model = model_of(**DECODERS[name])
    found = ablate(model, TOKENS, "layers", target=7)
    before = float(logprobs(model, TOKENS)[-1, 7])
    for layer in (0, 1):
        came: list[torch.Tensor] = []
        block = model.layers[layer]
        with edited([Edit(block, "in", came.append), Edit(block, "out", lambda _, came=came: came[-1])]):
            assert float(logprobs(model, TOKENS)[-1, 7]) - before == pytest.approx(
                float(found.change[layer]), abs=1e-5
            )


@pytest.mark.parametrize("balance", ["bias", "none"])
def test_an_expert_taken_away_is_an_expert_that_says_nothing(balance: Any) -> None:
    model = model_of(experts=Experts(4, 2, ffn_dim=16, balance=balance, n_shared=1))
    found = ablate(model, TOKENS, "experts", target=7, units=[(0, 1), (1, 3), (0, 2)])
    before = float(logprobs(model, TOKENS)[-1, 7])
    for (layer, expert), change in zip(found.units, found.change.tolist(), strict=True):
        bank = model.layers[layer].ffn.experts.down_proj
        kept = bank.detach().clone()
        with torch.no_grad():
            bank[expert] = 0
        assert float(logprobs(model, TOKENS)[-1, 7]) - before == pytest.approx(change, abs=1e-5)
        with torch.no_grad():
            bank.copy_(kept)
    routed = routing(model, TOKENS)
    assert routed.load.sum(-1).tolist() == pytest.approx([1.0, 1.0])
    assert (routed.entropy <= routed.even + 1e-6).all()


def test_mean_and_resample_put_in_what_the_part_says_itself() -> None:
    model = model_of()
    twice = torch.full((9,), 5)  # every position of one repeated token hears the same in layer 0
    for how in ("mean", "resample"):
        found = ablate(model, twice, "heads", how, target=7, units=[(0, 0)])
        assert abs(float(found.change)) < 1e-4
    first, again = (ablate(model, TOKENS, "heads", "resample", target=7, seed=3) for _ in range(2))
    assert torch.equal(first.change, again.change)
    assert (first.spread[:, 0] <= first.change).all() and (first.change <= first.spread[:, 1]).all()


def test_all_of_the_stream_before_a_layer_brings_the_answer_back() -> None:
    model, corrupt = model_of(), TOKENS.clone()
    corrupt[3] = 30
    found = patch(model, TOKENS, corrupt)
    before = dict(zip(found.units, found.restored.tolist(), strict=True))
    assert before[0, 3] == pytest.approx(1.0, abs=1e-5), "before any layer the texts differ in one place"
    assert all(abs(before[0, place]) < 1e-5 for place in range(10) if place != 3)
    assert all(abs(before[1, place]) < 1e-5 for place in range(3)), "a later token moves nothing before it"


def test_nothing_is_left_behind_and_another_thread_is_left_alone() -> None:
    model, before = model_of(), logprobs(model_of(), TOKENS)
    other: list[torch.Tensor] = []
    with edited([Edit(model.layers[0], "out", torch.zeros_like)]):
        assert not torch.allclose(logprobs(model, TOKENS), before)
        thread = threading.Thread(target=lambda: other.append(logprobs(model, TOKENS)))
        thread.start()
        thread.join()
    assert torch.equal(other[0], before)
    with pytest.raises(RuntimeError), edited([Edit(model.layers[0], "out", lambda x: x[:, :, :3])]):
        model(TOKENS[None])
    assert torch.equal(logprobs(model, TOKENS), before)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


# --------------------------------------------------------------------------------------------- attribution


def test_leave_one_out_is_a_run_without_it_bit_for_bit(model: Any) -> None:
    asked = answer_score(model, TOKENS, target=7)
    found = leave_one_out(model, asked, [(2,), (4, 5)])
    for unit, score in zip([(2,), (4, 5)], found.tolist(), strict=True):
        left = tuple(t for p, t in enumerate(TOKENS.tolist()) if p not in unit)
        with torch.no_grad():
            shorter = AnswerScore(left, ((len(left) - 1, 7),)).of(model)
            assert score == float(asked.of(model) - shorter)
        by_hand = logprobs(model, TOKENS)[-1, 7] - logprobs(model, torch.tensor(left))[-1, 7]
        assert score == pytest.approx(float(by_hand), abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_fast_attribution_carries_its_grade(model: Any, method: Any) -> None:
    """A norm has no sign, so it is graded by the size of what exact removal changes."""
    found = attribute(model, TOKENS, method=method)
    exact = leave_one_out(model, answer_score(model, TOKENS), found.units)
    exact = exact.abs() if method == "gradient" else exact
    assert found.control is not None
    assert found.control.exact == pytest.approx(exact.tolist(), abs=1e-5)
    assert found.control.correlation == pytest.approx(spearmanr(found.scores, exact).statistic, abs=1e-3)
    assert abs(found.control.random) < 0.05 and 0.4 < found.control.random_95 < 0.8
    assert "rank correlation" in found.to_dict()["control"]["text"]
    assert ("the size of" in str(found.control)) == (method == "gradient")


def test_what_is_exact_is_not_graded_by_itself(model: Any) -> None:
    found = attribute(model, TOKENS, method="leave_one_out")
    assert found.control is None and found.to_dict()["control"] is None
    assert "exact: each was taken away" in attribution(found.to_dict(), [str(t) for t in TOKENS]).note.lower()


def test_a_grade_beats_chance_by_chance_as_seldom_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(400, 2, 12, generator=generator, dtype=torch.float64)
    lucky = sum(grade(a, b, tuple(range(12)), seed).beats_random for seed, (a, b) in enumerate(draws))
    assert lucky <= 20  # 2.5% of 400 is 10, and 3 standard deviations are 9.4


def test_integrated_gradients_add_up_to_the_difference_to_average_tokens() -> None:
    model = model_of(n_layers=1).double()
    found = attribute(model, TOKENS, 7, method="integrated")
    average = model.embed.weight.mean(0).expand(1, len(TOKENS), -1)
    with torch.no_grad(), edited([Edit(model.embed, "out", lambda _: average)]):
        nothing = float(answer_score(model, TOKENS, target=7).of(model))
    assert float(found.scores.sum()) == pytest.approx(found.value - nothing, rel=0.05)


def test_of_many_units_some_are_graded_and_spans_are_one_unit() -> None:
    model = model_of()
    tokens = torch.arange(60) % 40
    assert len(attribute(model, tokens).control.units) == GRADED
    spans = attribute(
        model, tokens, 5, units=[range(0, 20), range(20, 40), range(40, 55)], method="leave_one_out"
    )
    whole, left = logprobs(model, tokens)[-1, 5], logprobs(model, tokens[20:])[-1, 5]
    assert float(spans.scores[0]) == pytest.approx(float(whole - left), abs=1e-5)


@settings(deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=3, max_size=20), st.integers(0, 1000))
def test_spearman_is_that_of_scipy(values: list[int], seed: int) -> None:
    a = torch.tensor(values, dtype=torch.float64)
    b = torch.randn(len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if len(set(values)) == 1:
        assert math.isnan(spearman(a, b))
    else:
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-9)
        assert spearman(a, b) == pytest.approx(spearman(a * 3 + 1, b.exp()))


def test_random_scores_are_told_from_good_ones() -> None:
    exact = torch.arange(12, dtype=torch.float64)
    assert grade(exact * 2, exact, tuple(range(12))).beats_random
    mixed = torch.tensor([5.0, 2, 9, 0, 11, 7, 1, 10, 3, 8, 4, 6])
    control = grade(mixed, exact, tuple(range(12)))
    assert not control.beats_random and "NOT" in str(control)
    assert control.random_95 == pytest.approx(0.587, abs=0.05)  # the table of Spearman's test at n = 12


# ------------------------------------------------------------------------------------------ other models


@pytest.mark.parametrize("cell", [None, "lstm"])
def test_an_encoder_decoder_puts_its_answer_down_to_the_source(cell: Any) -> None:
    model = model_of(kind="encoder-decoder", n_encoder_layers=1, n_kv_heads=4, cell=cell)
    source, target = TOKENS, torch.tensor([1, 2, 3])
    found = attribute(model, target, source=source, method="gradient_x_input")
    assert found.tokens == tuple(source.tolist()) and len(found.units) == len(source)
    assert len(token_probabilities(model, target, source=source).logprob) == 2
    if cell is None:
        assert len(ablate(model, target, source=source).units) == 8
        assert logit_lens(model, target, source=source).divergence.shape == (3, 3)
    with pytest.raises(Refused, match="source"):
        token_probabilities(model, target)


def test_a_classifier_puts_its_class_down_to_words() -> None:
    model = model_of(kind="encoder", head="classify", labels=("a", "b", "c"), position="learned")
    with torch.no_grad():
        logs = model.label_logits(model(TOKENS[None]))[0].double().log_softmax(-1)
        left = model.label_logits(model(TOKENS[None, 1:]))[0].double().log_softmax(-1)
    found = attribute(model, TOKENS, 2, method="leave_one_out")
    assert found.value == pytest.approx(float(logs[2])) and len(found.units) == len(TOKENS)
    assert float(found.scores[0]) == pytest.approx(float(logs[2] - left[2]), abs=1e-6)


def test_every_view_becomes_json_and_says_what_it_does_not_show(model: Any) -> None:
    views: list[Any] = [token_probabilities(model, TOKENS), logit_lens(model, TOKENS),
                        attribute(model, TOKENS), gradient_flow(model, TOKENS),
                        token_gradients(model, TOKENS)]  # fmt: skip
    if model.config.cell is None:
        views += [ablate(model, TOKENS), patch(model, TOKENS, TOKENS.flip(0))]
    for view in views:
        said = json.loads(json.dumps(view.to_dict(), allow_nan=False))
        assert said["view"] == type(view).__name__ and len(said["caveat"]) > 40


REFUSALS = [
    (lambda m: token_probabilities(m, [1]), "at least 2"),
    (lambda m: token_probabilities(m, torch.zeros(66, dtype=torch.int64)), "at most 64"),
    (lambda m: answer_score(m, []), "no tokens"),
    (lambda m: answer_score(m, TOKENS, at=10), "positions 0 to 9"),
    (lambda m: answer_score(m, TOKENS, target=40), "scores 0 to 39"),
    (lambda m: answer_score(m, TOKENS, answer=10), "last 0 to 9"),
    (lambda m: answer_score(m, TOKENS, answer=2, foil=3), "leave out target and foil"),
    (lambda m: answer_score(m, TOKENS, source=[1]), "only an encoder-decoder reads a source"),
    (lambda m: ablate(m, TOKENS, "head"), "did you mean 'heads'"),  # type: ignore[arg-type]
    (lambda m: ablate(m, TOKENS, "heads", "average"), "zero, mean, resample"),  # type: ignore[arg-type]
    (lambda m: ablate(m, TOKENS, "experts"), "routes nothing"),
    (lambda m: ablate(m, TOKENS, "experts", "mean"), "never computed"),
    (lambda m: ablate(m, TOKENS, units=[(0, 9)]), r"up to \(1, 3\)"),
    (lambda m: patch(m, TOKENS, TOKENS[1:]), "equally long"),
    (lambda m: patch(m, TOKENS, TOKENS), "no difference"),
    (lambda m: patch(m, TOKENS, TOKENS.flip(0), "stream"), "resid, heads"),  # type: ignore[arg-type]
    (lambda m: attribute(m, TOKENS, method="attention"), "leave_one_out"),  # type: ignore[arg-type]
    (lambda m: attribute(m, TOKENS, units=[(10,)]), "0 to 9"),
    (lambda m: attribute(m, TOKENS, at=0), "nothing is left to ask about"),
    (lambda m: attribute(m, TOKENS, units=[range(10)]), "nothing is left to ask about"),
    (lambda m: routing(m, TOKENS), "routes nothing"),
    (lambda m: model_parts(torch.nn.Linear(2, 2)), "cannot be found"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(REFUSALS)))
def test_what_cannot_be_had_is_refused_with_the_reason(case: int) -> None:
    run, message = REFUSALS[case]
    with pytest.raises(Refused, match=message) as refused:
        run(model_of())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("cell", RECURRENT)
def test_a_recurrence_has_no_heads_to_take_away(cell: str) -> None:
    for what in ("heads", "layers", "ffn"):
        with pytest.raises(Refused, match="no heads or branches"):
            ablate(model_of(cell=cell), TOKENS, what)  # type: ignore[arg-type]


def test_a_model_that_embeds_has_no_probability_to_ask_for() -> None:
    model = model_of(kind="encoder", head="embed", pooling="mean")
    with pytest.raises(Refused, match="no probability"):
        logits_at(model, TOKENS[None])
    with pytest.raises(Refused, match="encoder sees"):
        token_probabilities(model_of(kind="encoder"), TOKENS)
