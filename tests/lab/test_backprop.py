"""Back-propagation by hand against autograd and finite differences, and the story that is told of it."""

from __future__ import annotations

import itertools
import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.scale import scaled
from transom.errors import Refused
from transom.lab.backprop import LOSSES, backprop, by_autograd, by_finite_differences, example
from transom.lab.chain_rule import Weight, paths
from transom.lab.network import HIDDEN, Network, softmax

sizes_of_nets = st.lists(st.integers(1, 5), min_size=2, max_size=5).map(tuple)


def a_net(sizes: tuple[int, ...], activation: str, loss: str, seed: int) -> Network:
    if loss == "cross-entropy":
        sizes = (*sizes[:-1], max(2, sizes[-1]))
    return Network.random(sizes, activation, loss, seed)


def a_batch(network: Network, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.normal(size=(n, network.sizes[-1]))
    return rng.normal(size=(n, network.sizes[0])), (
        softmax(target) if network.loss_kind == "cross-entropy" else target
    )


@settings(max_examples=scaled(80))
@given(
    sizes_of_nets, st.sampled_from(HIDDEN), st.sampled_from(LOSSES), st.integers(0, 10**6), st.integers(1, 4)
)
def test_by_hand_equals_autograd(
    sizes: tuple[int, ...], activation: str, loss: str, seed: int, n_examples: int
) -> None:
    network = a_net(sizes, activation, loss, seed)
    x, target = a_batch(network, n_examples, seed)
    by_hand = network.backward(network.forward(x), target)
    other = by_autograd(network, x, target)
    for ours, theirs in zip(by_hand.weights + by_hand.biases, other.weights + other.biases, strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < 1e-10


@settings(max_examples=scaled(60))
@given(sizes_of_nets, st.sampled_from(HIDDEN), st.sampled_from(LOSSES), st.integers(0, 10**6), st.data())
def test_one_weight_by_paths_and_by_finite_differences(
    sizes: tuple[int, ...], activation: str, loss: str, seed: int, data: st.DataObject
) -> None:
    network = a_net(sizes, activation, loss, seed)
    sizes = network.sizes
    x, target = example(network, seed)
    trace = network.forward(x)
    if activation == "relu":  # its slope jumps at zero: a difference across the jump says nothing
        assume(all(np.abs(z).min() > 1e-3 for z in trace.sums))
    layer = data.draw(st.integers(0, len(sizes) - 2))
    weight = Weight(layer, data.draw(st.integers(0, sizes[layer] - 1)),
                    data.draw(st.integers(0, sizes[layer + 1] - 1)))  # fmt: skip
    by_hand = network.backward(trace, target).weights[layer][weight.target, weight.source]
    walked = paths(network, trace, target, weight)
    assert len(walked) == math.prod(sizes[layer + 2 :])
    assert math.fsum(path.product for path in walked) == pytest.approx(by_hand, abs=1e-12)
    assert by_finite_differences(network, x, target, weight) == pytest.approx(by_hand, abs=1e-6)


def test_a_sum_worked_out_with_a_pencil() -> None:
    """One weight, one bias, sigmoid: loss (s(w x + b) - t)^2 / 2 has the slope (s - t) s (1 - s) x."""
    network = Network((np.array([[0.5]]),), (np.array([0.25]),), "sigmoid")
    x, target = np.array([[2.0]]), np.array([[0.2]])
    trace = network.forward(x)
    s = 1 / (1 + math.exp(-1.25))
    assert trace.outputs[-1].item() == pytest.approx(s, abs=1e-15)
    assert network.loss(trace, target) == pytest.approx((s - 0.2) ** 2 / 2, abs=1e-15)
    gradient = network.backward(trace, target)
    assert gradient.weights[0].item() == pytest.approx((s - 0.2) * s * (1 - s) * 2, abs=1e-15)
    assert gradient.biases[0].item() == pytest.approx((s - 0.2) * s * (1 - s), abs=1e-15)


@pytest.mark.parametrize("activation", HIDDEN)
@pytest.mark.parametrize("loss", LOSSES)
def test_steps_learn_what_no_single_layer_can(activation: str, loss: str) -> None:
    """Exclusive or: the gradient by hand, step after step, finds it."""
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], float)
    answer = np.array([0, 1, 1, 0])
    target = np.eye(2)[answer] if loss == "cross-entropy" else answer[:, None].astype(float)
    network = Network.random((2, 6, target.shape[1]), activation, loss, seed=2)
    for _ in range(4000):
        network = network.step(
            network.backward(network.forward(x), target), 0.5 if loss != "squared" else 0.3
        )
        if network.loss(network.forward(x), target) < 0.02:
            break
    out = network.forward(x).outputs[-1]
    guessed = out.argmax(axis=1) if loss == "cross-entropy" else (out[:, 0] > 0.5).astype(int)
    assert guessed.tolist() == answer.tolist()


def test_the_story_tells_every_number_it_rests_on() -> None:
    story = backprop((2, 3, 2, 1), weight="0:1>2", seed=4)
    text, plain = str(story), json.loads(json.dumps(story.to_dict()))
    assert len(plain["paths"]) == 2
    for path in plain["paths"]:
        values = [factor["value"] for factor in path["factors"]]
        assert math.prod(values) == pytest.approx(path["product"], rel=1e-12)
        assert " × ".join(f"{value:.4g}" for value in values) in text
    for name in ("by_paths", "by_autograd", "by_finite_differences"):
        assert plain[name] == pytest.approx(plain["by_hand"], abs=1e-9)
    assert f"{plain['by_hand']:+.10f}" in text
    assert "from x1 to h1.2" in text
    assert plain["loss_after"] < plain["loss"]


@given(st.integers(0, 10**6), st.sampled_from(HIDDEN), st.sampled_from(LOSSES))
@settings(max_examples=scaled(30))
def test_a_small_step_does_what_the_gradient_foretells(seed: int, activation: str, loss: str) -> None:
    story = backprop((3, 4, 2), activation, seed=seed, loss=loss, rate=1e-6)
    assert story.loss_after - story.loss == pytest.approx(story.foretold, rel=1e-2, abs=1e-14)


@pytest.mark.parametrize("sizes", [(2, 3, 1), (1, 1), (4, 12, 12, 3), (12, 12, 12, 12, 12, 12)])
@pytest.mark.parametrize("activation", HIDDEN)
def test_the_picture_is_svg_of_its_own_and_shows_every_unit(
    sizes: tuple[int, ...], activation: str, tmp_path: Path
) -> None:
    story = backprop(sizes, activation, seed=1, out=tmp_path / "gradient.svg")
    text = (tmp_path / "gradient.svg").read_text()
    root = ET.fromstring(text)
    names = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert not names & {"script", "image", "style", "use", "foreignObject"}
    assert "href" not in text and "url(" not in text
    circles = [element for element in root.iter() if element.tag.endswith("circle")]
    assert len(circles) == sum(sizes)
    titles = [element.text for element in root.iter() if element.tag.endswith("title")]
    assert len(titles) == sum(a * b for a, b in itertools.pairwise(sizes))
    width, height = (float(root.attrib[side]) for side in ("width", "height"))
    for circle in circles:
        assert 0 < float(circle.attrib["cx"]) < width and 0 < float(circle.attrib["cy"]) < height
    assert f"gradient {story.by_hand:+.4g}" in text


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (dict(sizes=(2,)), "2 to 6 layers"),
        (dict(sizes=(2, 0, 1)), "1 to 12 units"),
        (dict(activation="tan"), "did you mean 'tanh'"),
        (dict(loss="square"), "did you mean 'squared'"),
        (dict(weight="1>2"), "LAYER:FROM>TO"),
        (dict(weight="2:0>0"), "layers 0 to 1"),
        (dict(weight="0:2>0"), "from unit 2, but there the net has 2 units"),
        (dict(weight="1:0>1"), "to unit 1, but there the net has 1 unit,"),
        (dict(sizes=(2, 1), loss="cross-entropy"), "at least 2"),
        (dict(out=Path("/no/such/folder/g.svg")), "--out names a file"),
    ],
)
def test_a_mistake_is_one_line(call: dict, words: str) -> None:
    with pytest.raises(Refused) as refused:
        backprop(**call)
    assert words in str(refused.value) and "\n" not in str(refused.value)
