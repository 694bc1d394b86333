"""How well texts are translated: BLEU and chrF as sacreBLEU counts them, with their signatures.

A BLEU without its signature compares with nothing (Post 2018). The interval comes from test sets drawn anew
out of the sentences. Beside the cased 13a BLEU stands the lower-cased one, which older papers on Multi30k
print. Read next: baselines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from ..errors import Refused
from ..intervals import Estimate, Rows, bootstrap, wilson

ORDER = 4


@dataclass(frozen=True)
class TranslationScore:
    """The scores of translations on a test set. It prints itself."""

    n: int
    bleu: float
    bleu_low: float
    bleu_high: float
    bleu_signature: str
    chrf: float
    chrf_signature: str
    tokenised_bleu: float
    """BLEU of lower-cased text in 13a tokens, which is near to what papers call tokenised BLEU."""
    tokenised_bleu_signature: str
    length_ratio: float
    """Tokens of the translations to tokens of the references."""
    exact: Estimate
    """Share of translations that are the reference, letter by letter."""

    def headline(self) -> dict[str, float]:
        """The two scores that are read first, in percent."""
        return {"BLEU": self.bleu, "exact %": 100 * self.exact.value}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**vars(self), "exact": self.exact.to_dict()}

    def __str__(self) -> str:
        return "\n".join([
            f"BLEU       {Estimate(self.bleu, self.bleu_low, self.bleu_high)}   {self.bleu_signature}",
            f"chrF       {self.chrf:.1f}   {self.chrf_signature}",
            f"lower-case {self.tokenised_bleu:.1f} BLEU   {self.tokenised_bleu_signature}",
            f"exact      {self.exact.percent()} are the reference letter by letter; {self.n:,} texts, "
            f"{self.length_ratio:.2f} times its length",
        ])  # fmt: skip


def score_translations(hypotheses: Sequence[str], references: Sequence[str]) -> TranslationScore:
    """Score translations against one reference each, in the same order. Raises `Refused`."""
    if not references or len(hypotheses) != len(references):
        raise Refused(f"{len(hypotheses):,} translations and {len(references):,} references; give one each")
    bleu, chrf, lower = BLEU(), CHRF(), BLEU(lowercase=True)
    whole = bleu.corpus_score(hypotheses, [references])
    interval = bootstrap(bleu_counts(hypotheses, references), bleu_of)
    exact = sum(ours.strip() == wanted.strip() for ours, wanted in zip(hypotheses, references, strict=True))
    return TranslationScore(
        n=len(references), bleu=whole.score, bleu_low=interval.low, bleu_high=interval.high,
        bleu_signature=str(bleu.get_signature()),
        chrf=chrf.corpus_score(hypotheses, [references]).score, chrf_signature=str(chrf.get_signature()),
        tokenised_bleu=lower.corpus_score(hypotheses, [references]).score,
        tokenised_bleu_signature=str(lower.get_signature()),
        length_ratio=whole.sys_len / max(1, whole.ref_len), exact=wilson(exact, len(references)),
    )  # fmt: skip


def bleu_counts(hypotheses: Sequence[str], references: Sequence[str]) -> NDArray[np.int64]:
    """What BLEU is made of, sentence by sentence (N, 10): n-gram hits, n-grams, both lengths; they add up."""
    metric = BLEU(effective_order=True)  # as sacreBLEU asks of single sentences; the counts are the same
    rows = []
    for ours, wanted in zip(hypotheses, references, strict=True):
        score = metric.sentence_score(ours, [wanted])
        rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
    return np.array(rows)


def bleu_of(rows: Rows) -> float:
    """BLEU of the sentences whose counts are `rows` (N, 10)."""
    counts = np.asarray(rows, np.int64).sum(axis=0).tolist()
    hits, totals, lengths = counts[:ORDER], counts[ORDER : 2 * ORDER], counts[2 * ORDER :]
    return BLEU.compute_bleu(hits, totals, *lengths, smooth_method="exp").score
