"""How well texts are translated: BLEU and chrF as sacreBLEU counts them, with their signatures.

A BLEU without its signature compares with nothing (Post 2018). The interval comes from test sets drawn anew
out of the sentences. Beside the cased 13a BLEU stands the lower-cased one, which older papers on Multi30k
print. BLEU counts pieces of up to four tokens: where most texts are shorter it says nothing, and is left out.
Read next: baselines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from ..errors import Refused
from ..intervals import Estimate, Rows, bootstrap, share

ORDER = 4
CHARACTERS, BETA = 6, 2
"""chrF counts pieces of up to so many characters; what was missed weighs so many times (Popović 2015)."""


@dataclass(frozen=True)
class TranslationScore:
    """The scores of translations on a test set. It prints itself."""

    n: int
    """Texts."""
    bleu: Estimate | None
    """0 to 100; None, as the lower-cased one, where fewer than half of the references have four tokens."""
    bleu_signature: str
    """How sacreBLEU counted it."""
    chrf: float
    """0 to 100, by pieces of up to 6 characters."""
    chrf_signature: str
    """How sacreBLEU counted it."""
    tokenised_bleu: float | None
    """BLEU of lower-cased text in 13a tokens, which is near to what papers call tokenised BLEU."""
    tokenised_bleu_signature: str
    """How sacreBLEU counted it."""
    length_ratio: float
    """Tokens of the translations to tokens of the references."""
    exact: Estimate
    """Share of translations that are the reference, letter by letter."""

    def headline(self) -> dict[str, float]:
        """The scores that are read first, in percent."""
        bleu = {} if self.bleu is None else {"BLEU": self.bleu.value}
        return {**bleu, "exact %": 100 * self.exact.value}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**vars(self), "exact": self.exact.to_dict(), "bleu": self.bleu and self.bleu.to_dict()}

    def __str__(self) -> str:
        exact = (f"exact      {self.exact.percent()} are the reference letter by letter; {self.n:,} texts, "
                 f"{self.length_ratio:.2f} times its length")  # fmt: skip
        chrf = f"chrF       {self.chrf:.1f}   {self.chrf_signature}"
        if self.bleu is None:
            return "\n".join([exact, chrf, "BLEU       left out: most references are shorter than 4 tokens"])
        return "\n".join([
            f"BLEU       {self.bleu}   {self.bleu_signature}",
            chrf,
            f"lower-case {self.tokenised_bleu:.1f} BLEU   {self.tokenised_bleu_signature}",
            exact,
        ])  # fmt: skip


def score_translations(hypotheses: Sequence[str], references: Sequence[str]) -> TranslationScore:
    """Score translations against one reference each, in the same order. Raises `Refused`."""
    if not references or len(hypotheses) != len(references):
        raise Refused(f"{len(hypotheses):,} translations and {len(references):,} references; give one each")
    bleu, chrf, lower = BLEU(), CHRF(), BLEU(lowercase=True)
    whole = bleu.corpus_score(hypotheses, [references])
    counts = bleu_counts(hypotheses, references)
    counted = has_bleu(counts)
    exact = exactly(hypotheses, references)
    chrf_score = chrf.corpus_score(hypotheses, [references]).score
    lower_score = lower.corpus_score(hypotheses, [references]).score
    return TranslationScore(
        n=len(references), bleu=bootstrap(counts, bleu_of) if counted else None,
        bleu_signature=str(bleu.get_signature()), chrf=chrf_score, chrf_signature=str(chrf.get_signature()),
        tokenised_bleu=lower_score if counted else None,
        tokenised_bleu_signature=str(lower.get_signature()),
        length_ratio=whole.sys_len / max(1, whole.ref_len), exact=share(int(exact.sum()), len(exact)),
    )  # fmt: skip


def exactly(hypotheses: Sequence[str], references: Sequence[str]) -> NDArray[np.bool_]:
    """Which translations (N,) are the reference, letter by letter."""
    return np.array([ours.strip() == ref.strip() for ours, ref in zip(hypotheses, references, strict=True)])


def has_bleu(counts: Rows) -> bool:
    """Whether at least half of the references, of which these are the `bleu_counts`, have four tokens."""
    return float((counts[:, -1] >= ORDER).mean()) >= 0.5


def bleu_counts(hypotheses: Sequence[str], references: Sequence[str]) -> NDArray[np.int64]:
    """What BLEU is made of, sentence by sentence (N, 10): n-gram hits, n-grams, both lengths; they add up."""
    metric = BLEU(effective_order=True)  # as sacreBLEU asks of single sentences; the counts are the same
    rows = []
    for ours, wanted in zip(hypotheses, references, strict=True):
        score = metric.sentence_score(ours, [wanted])
        rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
    return np.array(rows)


def bleu_of(sums: Rows) -> float:
    """BLEU from sums (10,) of such counts."""
    counts = np.asarray(sums, np.int64).tolist()
    hits, totals, lengths = counts[:ORDER], counts[ORDER : 2 * ORDER], counts[2 * ORDER :]
    return BLEU.compute_bleu(hits, totals, *lengths, smooth_method="exp").score


def chrf_counts(hypotheses: Sequence[str], references: Sequence[str]) -> NDArray[np.int64]:
    """What chrF is made of, sentence by sentence (N, 18): pieces in both, in ours, in theirs; they add up."""
    rows = []
    for ours, wanted in zip(hypotheses, references, strict=True):
        one, other = (_pieces("".join(text.split())) for text in (ours, wanted))
        both = [(mine & theirs).total() for mine, theirs in zip(one, other, strict=True)]
        rows.append([*both, *(pieces.total() for pieces in (*one, *other))])
    return np.array(rows)


def _pieces(text: str) -> list[Counter[str]]:
    """How often every piece of 1, 2, ... characters occurs."""
    sizes = range(1, CHARACTERS + 1)
    return [Counter(text[start : start + n] for start in range(len(text) - n + 1)) for n in sizes]


def chrf_of(sums: Rows) -> float:
    """chrF from sums (18,) of such counts, as sacreBLEU has it: over the lengths that both sides reach."""
    both, ours, theirs = np.split(np.asarray(sums, np.float64), 3)
    there = (ours > 0) & (theirs > 0)
    if not there.any():
        return 0.0
    precision, recall = ((both / np.maximum(side, 1))[there].mean() for side in (ours, theirs))
    weighed = BETA**2 * precision + recall
    return float(100 * (1 + BETA**2) * precision * recall / weighed) if weighed else 0.0
