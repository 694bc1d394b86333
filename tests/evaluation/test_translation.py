"""Scores of translations against sacreBLEU's own, through its own interface."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import sacrebleu

from transom.errors import Refused
from transom.evaluation.translation import (
    bleu_counts,
    bleu_of,
    chrf_counts,
    chrf_of,
    score_translations,
)

REFERENCES = [
    "Ein Mann fährt ein rotes Fahrrad.",
    "Zwei Hunde rennen am Strand.",
    "Sie liest ein Buch im Park.",
]
OURS = ["Ein Mann fährt ein Fahrrad.", "Zwei Hunde rennen am Strand.", "Sie liest im park ein Buch."]


def test_scores_and_signatures_are_sacrebleus() -> None:
    score = score_translations(OURS, REFERENCES)
    assert score.bleu and score.bleu.value == sacrebleu.corpus_bleu(OURS, [REFERENCES]).score
    assert score.chrf == sacrebleu.corpus_chrf(OURS, [REFERENCES]).score
    assert score.tokenised_bleu == sacrebleu.corpus_bleu(OURS, [REFERENCES], lowercase=True).score
    assert score.bleu_signature == (
        f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
    )
    assert "case:lc" in score.tokenised_bleu_signature and "nc:6" in score.chrf_signature
    assert score.exact.value == pytest.approx(1 / 3)
    for part in (score.bleu_signature, score.chrf_signature, f"{score.bleu.value:.1f}"):
        assert part in str(score)
    assert json.loads(json.dumps(score.to_dict()))["exact"]["value"] == pytest.approx(1 / 3)


def test_counts_of_sentences_add_up_to_the_corpus(shared_data: Path) -> None:
    with gzip.open(shared_data / "multi30k" / "test_2016_flickr.de.gz", "rt", encoding="utf-8") as file:
        references = file.read().splitlines()[:300]
    rng = np.random.default_rng(0)
    ours = [" ".join(word for word in text.split() if rng.random() > 0.2) for text in references]
    assert bleu_of(bleu_counts(ours, references).sum(axis=0)) == pytest.approx(
        sacrebleu.corpus_bleu(ours, [references]).score, abs=1e-9
    )
    score = score_translations(ours, references)
    assert score.bleu and score.bleu.low < score.bleu.value < score.bleu.high < score.bleu.low + 10
    assert score.length_ratio < 0.9


def test_perfect_and_hopeless() -> None:
    perfect = score_translations(REFERENCES, REFERENCES)
    assert perfect.bleu and perfect.bleu.value == pytest.approx(100) and perfect.exact.value == 1
    hopeless = score_translations(["", "", ""], REFERENCES)
    assert hopeless.bleu and hopeless.bleu.value == hopeless.bleu.high == hopeless.exact.value == 0


def test_where_there_is_nothing_for_bleu_to_count_exact_answers_come_first() -> None:
    short = ["guten Tag", "auf Wiedersehen", "danke", "bis morgen dann mal"]
    score = score_translations(short, short)
    assert score.bleu is None is score.tokenised_bleu and score.headline() == {"exact %": 100}
    assert str(score).startswith("exact      100.0%") and "left out" in str(score)
    assert json.loads(json.dumps(score.to_dict()))["bleu"] is None


def test_sides_that_do_not_match_are_refused() -> None:
    with pytest.raises(Refused, match="2 translations and 3 references"):
        score_translations(OURS[:2], REFERENCES)
    with pytest.raises(Refused, match="0 translations"):
        score_translations([], [])


@pytest.mark.parametrize("ours", [OURS, ["", "a", "ganz anders als das"], REFERENCES, ["Ein", "Zwei", "S"]])
def test_counts_of_characters_add_up_to_sacrebleus_chrf(ours: list[str]) -> None:
    counts = chrf_counts(ours, REFERENCES)
    assert chrf_of(counts.sum(0)) == pytest.approx(sacrebleu.corpus_chrf(ours, [REFERENCES]).score, abs=1e-9)
    for row, one, wanted in zip(counts, ours, REFERENCES, strict=True):
        assert chrf_of(row) == pytest.approx(sacrebleu.sentence_chrf(one, [wanted]).score, abs=1e-9)
