"""Every view must find what was planted in the models whose weights were set by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.insight.planted_models import Example, PlantedModel, induction, lookup
from transom.insight.ablation import HOW, ablate
from transom.insight.attribution import attribute
from transom.insight.gradients import gradient_flow, token_gradients
from transom.insight.lens import logit_lens
from transom.insight.look import look
from transom.insight.patching import patch
from transom.insight.routing import routing
from transom.insight.token_probabilities import token_probabilities

SEEDS = range(5)
BOXES = {"induction": induction(), "lookup": lookup()}


@pytest.fixture(params=BOXES)
def box(request: pytest.FixtureRequest) -> PlantedModel:
    return BOXES[request.param]


def with_answer(example: Example) -> torch.Tensor:
    return torch.cat((example.tokens, torch.tensor([example.answer])))


def over_seeds(box: PlantedModel, check: Callable[[Example], Any]) -> None:
    for seed in SEEDS:
        check(box.example(seed))


@pytest.mark.parametrize("name", BOXES)
def test_the_model_does_what_it_was_built_for(name: str) -> None:
    box = BOXES[name]
    for seed in range(60):
        example = box.example(seed)
        both = torch.stack((example.tokens, example.corrupt))
        with torch.no_grad():
            scores = box.model.logits(box.model(both))[:, -1].softmax(-1)
        assert scores.argmax(-1).tolist() == [example.answer, example.foil]
        assert scores[0, example.answer] > 0.95
        assert int((example.tokens != example.corrupt).sum()) == 1


def test_attention_shows_the_planted_heads_looking(box: PlantedModel) -> None:
    def check(example: Example) -> None:
        with look(box.model) as seen, torch.no_grad():
            box.model(example.tokens[None])
        for name, (row, column) in example.looks.items():
            layer, head = box.heads[name]
            weights = seen.attention(layer, head, row=row).weights
            assert int(weights.argmax()) == column
            assert weights[column] > 0.9

    over_seeds(box, check)


@pytest.mark.parametrize("how", HOW)
def test_ablation_finds_the_planted_heads(box: PlantedModel, how: Any) -> None:
    def check(example: Example) -> None:
        found = ablate(box.model, example.tokens, "heads", how, target=example.answer)
        n = len(box.heads)
        assert {unit for unit, _ in found.ranked()[:n]} == set(box.heads.values())
        assert found.ranked()[n - 1][1] < -0.5
        assert abs(found.ranked()[n][1]) < 0.02, "a bystander moves the answer"

    over_seeds(box, check)


def test_ablation_finds_the_planted_layers(box: PlantedModel) -> None:
    example = box.example(0)
    needed = {layer for layer, _ in box.heads.values()} | ({example.expert[0]} if example.expert else set())
    found = ablate(box.model, example.tokens, "layers", target=example.answer).ranked()
    assert {unit[0] for unit, change in found if change < -0.5} == needed


def test_ablation_and_routing_find_the_planted_expert() -> None:
    def check(example: Example) -> None:
        assert example.expert is not None
        found = ablate(BOXES["lookup"].model, example.tokens, "experts", target=example.answer).ranked()
        assert found[0][0] == example.expert and found[0][1] < -1
        assert abs(found[1][1]) < 0.01
        routed = routing(BOXES["lookup"].model, example.tokens)
        assert routed.layers == (1,)
        assert int(routed.chosen[0, -1, 0]) == example.expert[1] and routed.weights[0, -1, 0] > 0.9

    over_seeds(BOXES["lookup"], check)


def test_patching_follows_the_answer_from_its_token_to_the_end(box: PlantedModel) -> None:
    def check(example: Example) -> None:
        found = patch(box.model, example.tokens, example.corrupt, target=example.answer, foil=example.foil)
        last = len(example.tokens) - 1
        restored = dict(zip(found.units, found.restored.tolist(), strict=True))
        carrier = max(layer for layer, _ in box.heads.values())  # the head that moves the answer
        for (layer, place), share in restored.items():
            wanted = place == (example.decides if layer <= carrier else last)
            assert share == pytest.approx(float(wanted), abs=0.03), (layer, place)

    over_seeds(box, check)


def test_patching_finds_the_head_that_carries_the_answer(box: PlantedModel) -> None:
    def check(example: Example) -> None:
        found = patch(
            box.model, example.tokens, example.corrupt, "heads", target=example.answer, foil=example.foil
        )
        assert found.units[int(found.restored.argmax())] == max(box.heads.values())
        assert found.restored.max() == pytest.approx(1.0, abs=0.02)
        assert found.restored.topk(2).values[1] < 0.05

    over_seeds(box, check)


@pytest.mark.parametrize("method", ["gradient_x_input", "integrated", "leave_one_out"])
def test_attribution_finds_the_token_that_decides(box: PlantedModel, method: Any) -> None:
    def check(example: Example) -> None:
        found = attribute(box.model, example.tokens, example.answer, example.foil, method=method)
        assert found.units[found.ranked()[0]] == (example.decides,)

    over_seeds(box, check)


def test_leave_one_out_finds_all_that_is_needed(box: PlantedModel) -> None:
    def check(example: Example) -> None:
        found = attribute(box.model, example.tokens, example.answer, method="leave_one_out")
        n = len(example.needs)
        assert {found.units[i][0] for i in found.ranked()[:n]} == set(example.needs)
        assert found.scores[found.ranked()[n - 1]] > 0.5 > abs(float(found.scores[found.ranked()[n]]))

    over_seeds(box, check)


def test_the_lens_reads_the_answer_from_the_layer_on_that_writes_it(box: PlantedModel) -> None:
    def check(example: Example) -> None:
        lens = logit_lens(box.model, example.tokens)
        assert int(lens.settled[-1]) == box.answers_at + 1
        assert int(lens.top[-1, -1, 0]) == example.answer
        assert lens.divergence[box.answers_at, -1] > 1 > 0.01 > lens.divergence[box.answers_at + 1, -1]

    over_seeds(box, check)


def test_the_gradient_reaches_the_token_that_decides_and_the_last(box: PlantedModel) -> None:
    def check(example: Example) -> None:
        last = len(example.tokens) - 1
        rows = token_gradients(box.model, with_answer(example)).norms
        assert example.decides in rows[-1].topk(2).indices.tolist()
        flow = gradient_flow(box.model, example.tokens, target=example.answer)
        torch.testing.assert_close(flow.total[0], rows[-1], rtol=2e-3, atol=1e-7)
        above = flow.total[max(box.heads.values())[0] + 1]
        assert above[:last].max() < 0.02 * above[last], "above the carrier the answer hangs on the last token"

    over_seeds(box, check)


def test_surprise_is_small_where_the_circuit_knows(box: PlantedModel) -> None:
    def check(example: Example) -> None:
        found = token_probabilities(box.model, with_answer(example))
        assert found.rank[-1] == 0 and found.logprob[-1] > -0.05 and found.entropy[-1] < 0.3
        assert found.logprob[:-1].mean() < -1, "what cannot be known must surprise"

    over_seeds(box, check)
