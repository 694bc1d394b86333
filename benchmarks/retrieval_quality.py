"""Which documents are found, and which answers: Cranfield's abstracts and XQuAD's English paragraphs.

Found by words (BM25, beside the package `bm25s` on the same chunks), by the vectors of MiniLM, and by both;
each document counts where its best chunk stands. Answers are judged on the half of XQuAD's articles that the
judge's weights did not learn from, with the right paragraph among the passages and without it; the threshold
that `transom calibrate` finds on half of these questions is tried on the others.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import Stemmer
from numpy.typing import NDArray

from transom.intervals import Estimate, bootstrap, paired_bootstrap, share
from transom.retrieval.ask import POOL, rank
from transom.retrieval.calibrate import choose, plain
from transom.retrieval.chunks import chunks
from transom.retrieval.evidence import candidates
from transom.retrieval.indexing import index
from transom.retrieval.judge import DEFAULT, judge_of
from transom.retrieval.search import STOP, KnowledgeBase, Way

from .classification import minilm
from .measure import DATA, tell

GAIN = {1: 4, 2: 3, 3: 2, 4: 1}
"""Of Cranfield's codes, of which 1 is the strongest; -1 is of no interest."""
WAYS: dict[str, Way] = {"BM25": "words", "MiniLM": "vectors", "both": "both"}
DEPTH = 400
Ranking = list[int]


def cranfield() -> tuple[list[str], list[str], list[dict[int, int]]]:
    """Abstracts, queries, and for each query the code of each judged abstract (from 1)."""
    folder = DATA / "cranfield"

    def texts(name: str) -> list[str]:
        parts = re.split(r"^\.I ", (folder / name).read_text(), flags=re.M)[1:]
        return [part.partition("\n.W\n")[2].strip() for part in parts]

    queries = [" ".join(query.split()) for query in texts("cran.qry")]
    judged: list[dict[int, int]] = [{} for _ in queries]
    for line in (folder / "cranqrel").read_text().splitlines():
        query, document, code = map(int, line.split())
        judged[query - 1][document] = GAIN.get(code, 0)
    return texts("cran.all.1400"), queries, judged


def xquad(language: str = "en") -> tuple[list[str], list[tuple[int, int, str, str]]]:
    """Paragraphs, and questions as (article, paragraph from 1, question, answer)."""
    articles = json.loads((DATA / "xquad" / f"xquad.{language}.json").read_text())["data"]
    paragraphs, questions = [], []
    for article, one in enumerate(articles):
        for paragraph in one["paragraphs"]:
            paragraphs.append(paragraph["context"])
            questions += [
                (article, len(paragraphs), each["question"], each["answers"][0]["text"])
                for each in paragraph["qas"]
            ]
    return paragraphs, questions


def indexed(texts: Sequence[str], place: Path) -> KnowledgeBase:
    """An index of texts, each a record."""
    file = place / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    index([file], place / "kb", embedder=str(minilm()))
    return KnowledgeBase.open(place / "kb")


def first_places(documents: Sequence[int]) -> Ranking:
    """Documents by the place of their best chunk."""
    return list(dict.fromkeys(documents))


def found(base: KnowledgeBase, way: Way, query: str) -> Ranking:
    hits = base.search(query, DEPTH, way=way)
    return first_places([int(hit.passage.document.rpartition(":")[2]) for hit in hits])


def by_bm25s(texts: Sequence[str]) -> Callable[[str], Ranking]:
    """The package on the same chunks, with Porter's stems, our stop words, and the k1 of SQLite."""
    units = [(n, text[one.start : one.end]) for n, text in enumerate(texts, 1) for one in chunks(text)]
    stemmer, engine = Stemmer.Stemmer("porter"), bm25s.BM25(k1=1.2, b=0.75)

    def tokens(some: list[str]) -> Any:
        return bm25s.tokenize(some, stopwords=sorted(STOP), stemmer=stemmer, show_progress=False)

    engine.index(tokens([text for _, text in units]), show_progress=False)
    most = min(DEPTH, len(units))
    return lambda query: first_places(
        [units[at][0] for at in engine.retrieve(tokens([query]), k=most, show_progress=False)[0][0]]
    )


def ndcg(ranking: Ranking, gains: dict[int, int], k: int = 10) -> float:
    """Of the k first, with the gains themselves."""
    ideal = sum(gain / math.log2(at + 2) for at, gain in enumerate(sorted(gains.values(), reverse=True)[:k]))
    return sum(gains.get(one, 0) / math.log2(at + 2) for at, one in enumerate(ranking[:k])) / (ideal or 1)


def recall(ranking: Ranking, gains: dict[int, int], k: int) -> float:
    wanted = {one for one, gain in gains.items() if gain}
    return len(wanted & {*ranking[:k]}) / len(wanted)


def mean(values: Sequence[float], less: Sequence[float] | None = None) -> Estimate:
    """A mean over queries in percent, or of a paired difference."""
    rows = [np.array([[value, 1.0] for value in some]) for some in (values, less or ())]
    score = lambda sums: 100 * sums[0] / sums[1]  # noqa: E731
    return bootstrap(rows[0], score) if less is None else paired_bootstrap(rows[0], rows[1], score)


def compared(
    base: KnowledgeBase, texts: Sequence[str], queries: Sequence[str], gains: list[dict[int, int]],
    measures: dict[str, Callable[[Ranking, dict[int, int]], float]],
) -> tuple[list[str], dict[str, dict[str, object]]]:  # fmt: skip
    """Every way by every measure, and both beside each side alone."""
    engine = by_bm25s(texts)
    rankings = {name: [found(base, way, query) for query in queries] for name, way in WAYS.items()}
    rankings["bm25s"] = [engine(query) for query in queries]
    lines, results = [], {}
    for measure, score in measures.items():
        values = {
            name: [score(*pair) for pair in zip(own, gains, strict=True)] for name, own in rankings.items()
        }
        shown = {name: mean(own) for name, own in values.items()}
        gaps = {f"both less {name}": mean(values["both"], values[name]) for name in ("BM25", "MiniLM")}
        gaps["BM25 less bm25s"] = mean(values["BM25"], values["bm25s"])
        lines += [f"  {measure:<11} {name:<16} {one}" for name, one in {**shown, **gaps}.items()]
        results[measure] = {name: one.to_dict() for name, one in {**shown, **gaps}.items()}
    return lines, results


def answers(
    base: KnowledgeBase, questions: Sequence[tuple[int, int, str, str]]
) -> tuple[list[str], dict[str, object]]:
    """How often an answer is said and right, with the paragraph and without it; a calibrated threshold's
    promise.
    """
    judge, rows = judge_of(base), {"with its paragraph": [], "without it": []}
    known: dict[str, NDArray[np.float32]] = {}
    vectors = base.vectors

    def cached(texts: list[str]) -> NDArray[np.float32]:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known.update(zip(new, vectors(new), strict=True))
        return np.stack([known[text] for text in texts])

    base.vectors = cached  # type: ignore[method-assign]
    for _, paragraph, question, answer in questions:
        hits = base.search(question, POOL)
        own = f":{paragraph}"
        others = [hit for hit in hits if not hit.passage.document.endswith(own)]
        for name, some in (("with its paragraph", hits), ("without it", others)):
            ranked = rank(judge, candidates(base, question, some))
            confidence, best = ranked[0] if ranked else (0.0, None)
            right = best is not None and f" {plain(answer)} " in f" {plain(best.text)} "
            rows[name].append((confidence, right and name != "without it"))
    lines, results = [], {}
    for name, own in rows.items():
        said = [right for confidence, right in own if confidence >= DEFAULT]
        answered, correct = share(len(said), len(own)), share(sum(said), max(1, len(said)))
        best = share(sum(right for _, right in own), len(own))
        lines.append(f"  {name}: answered {answered.percent()} of {len(own)}")
        if name != "without it":
            lines += [f"    of these right {correct.percent()}", f"    best sentence right {best.percent()}"]
        results[name] = {"answered": answered.to_dict(), "right": correct.to_dict(), "best": best.to_dict()}
    pairs = list(zip(*rows.values(), strict=True))
    random.Random(0).shuffle(pairs)
    half = len(pairs) // 2
    learn, test = ([one for pair in some for one in pair] for some in (pairs[:half], pairs[half:]))
    random.Random(1).shuffle(learn)
    for allowed in (0.05, 0.1, 0.2):
        scores, right = (np.array(column) for column in zip(*learn, strict=True))
        n, kept, strictest, needed = choose(scores, right, allowed)
        if kept is None:
            lines.append(
                f"  at most {allowed:.0%} wrong: no promise ({strictest.wrong} of {strictest.answered});"
                f" needs {needed}"
            )
            continue
        said = [ok for confidence, ok in test if confidence >= kept.threshold]
        wrong = len(said) - sum(said)
        lines.append(
            f"  at most {allowed:.0%} wrong: threshold {kept.threshold:.2f} on {n} questions; on"
            f" {len(test)} others"
            f" {len(said)} answered, {wrong} wrong, {share(wrong, len(said)).percent()}"
        )
        results[f"at most {allowed}"] = {
            "threshold": kept.threshold,
            "n": len(test),
            "answered": len(said),
            "wrong": wrong,
        }
    return lines, results


def main(options: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks retrieval_quality", description=__doc__)
    parser.add_argument(
        "--languages", nargs="+", default=[], help="of XQuAD, in place of all else: de zh ..."
    )
    asked = parser.parse_args(options)
    lines: list[str] = []
    results: dict[str, object] = {}
    for language in asked.languages:
        with tempfile.TemporaryDirectory() as place:
            paragraphs, questions = xquad(language)
            base = indexed(paragraphs, Path(place))
            rankings = {way: [found(base, way, one[2]) for one in questions] for way in WAYS.values()}
            at_1 = {way: mean([recall(own, {one[1]: 1}, 1) for own, one in zip(some, questions, strict=True)])
                    for way, some in rankings.items()}  # fmt: skip
        lines.append(f"XQuAD, {language}: recall@1 " + ", ".join(f"{way} {one}" for way, one in at_1.items()))
        results[language] = {way: one.to_dict() for way, one in at_1.items()}
    if asked.languages:
        tell("retrieval quality, XQuAD by language", lines, results)
        return
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "cranfield").mkdir()
        texts, queries, gains = cranfield()
        base = indexed(texts, Path(place) / "cranfield")
        shown, results["cranfield"] = compared(base, texts, queries, gains, {
            "nDCG@10": lambda ranking, own: ndcg(ranking, own),
            "recall@100": lambda ranking, own: recall(ranking, own, 100),
        })  # fmt: skip
        lines += [f"Cranfield: {len(texts):,} abstracts, {len(queries)} queries", *shown]
        (Path(place) / "xquad").mkdir()
        paragraphs, questions = xquad()
        base = indexed(paragraphs, Path(place) / "xquad")
        shown, results["xquad"] = compared(
            base, paragraphs, [one[2] for one in questions], [{one[1]: 1} for one in questions],
            {f"recall@{k}": lambda ranking, own, k=k: recall(ranking, own, k) for k in (1, 5, 20)},
        )  # fmt: skip
        lines += [f"XQuAD, English: {len(paragraphs)} paragraphs, {len(questions):,} questions", *shown]
        unseen = [one for one in questions if one[0] % 2]
        shown, results["answers"] = answers(base, unseen)
        lines += [f"Answers: {len(unseen)} questions of the articles that the judge has not seen", *shown]
    tell("retrieval quality", lines, results)
