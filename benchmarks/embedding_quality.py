"""Which answer belongs to which question: recall@1 among 1,000 held-out pairs of MedQuAD.

Contenders: TF-IDF, the real MiniLM as it comes, and `transom train --task embed` by its defaults but for
what is asked for here, from nothing and from MiniLM. `--before` is another checkout of Transom, run the same
way. An answer is its first 60 words for all, which no contender has to cut. No held-out question or answer
is among those to learn from, and nothing is chosen by them.
"""

from __future__ import annotations

import argparse
import html
import os
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

import transom

from .classification import minilm
from .measure import DATA, tell

HERE = Path(__file__).resolve().parents[1]
HELD_OUT = 1000
WORDS = 60
PAIR = re.compile(r"(?s)<Question[^>]*>(.*?)</Question>\s*<Answer>(.*?)</Answer>")

Pairs = list[tuple[str, str]]


def medquad() -> tuple[Pairs, Pairs]:
    """Pairs to learn from and 1,000 held out, each question and each answer once, in an order by no rule."""
    with tarfile.open(DATA / "medquad" / "MedQuAD_with_answers.tar.gz") as archive:
        members = sorted((m for m in archive if m.name.endswith(".xml")), key=lambda member: member.name)
        files = (archive.extractfile(member) for member in members)
        texts = [file.read().decode() for file in files if file is not None]
    found: dict[str, str] = {}
    answers: set[str] = set()
    for text in texts:
        for pair in PAIR.findall(text):
            question, answer = (" ".join(html.unescape(side).split()[:WORDS]) for side in pair)
            if question and answer and question not in found and answer not in answers:
                found[question] = answer
                answers.add(answer)
    pairs = list(found.items())
    random.Random(0).shuffle(pairs)
    return pairs[HELD_OUT:], pairs[:HELD_OUT]


def recall_at_1(queries: Tensor, answers: Tensor) -> float:
    """The share of queries (N, D) whose own answer (N, D) is the nearest of all."""
    return float((queries @ answers.T).argmax(1).eq(torch.arange(len(queries))).float().mean())


def of_model(folder: Path, held_out: Pairs) -> float:
    """The recall of a model folder."""
    embedder = transom.load(folder, transom.Embedder)
    questions, answers = (embedder.embed([pair[side] for pair in held_out]) for side in (0, 1))
    return recall_at_1(torch.as_tensor(questions), torch.as_tensor(answers))


def of_words(learn: Pairs, held_out: Pairs) -> float:
    """The recall of TF-IDF that counted its words in what the others learn from."""
    words = TfidfVectorizer(sublinear_tf=True, stop_words="english").fit(
        text for pair in learn for text in pair
    )
    questions, answers = (words.transform(pair[side] for pair in held_out) for side in (0, 1))
    return recall_at_1(torch.tensor(questions.toarray()), torch.tensor(answers.toarray()))


def trained(code: Path, file: Path, out: Path, settings: list[str]) -> Path:
    """The model folder of a run by the command line of the checkout `code`."""
    command = [sys.executable, "-m", "transom", "train", str(file), "--task", "embed", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(code)}
    subprocess.run([*command, *settings], env=environment, cwd=out.parent, check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    return out / "model"


def main(options: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks embedding_quality", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--budget", help="of every run, instead of the default")
    parser.add_argument("--before", type=Path, help="another checkout of Transom")
    asked = parser.parse_args(options)
    learn, held_out = medquad()
    limit = [f"--budget={asked.budget}"] if asked.budget else []
    results = [
        {"name": "TF-IDF", "recall": of_words(learn, held_out)},
        {"name": "MiniLM as it comes", "recall": of_model(minilm(), held_out)},
    ]
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "pairs.tsv"
        file.write_text("question\tanswer\n" + "".join(f"{q}\t{a}\n" for q, a in learn))
        ways = {"from nothing": [], "from MiniLM": [f"--model.weights={minilm()}"]}
        trees = {"now": HERE, **({"before": asked.before.resolve()} if asked.before else {})}
        for way, settings in ways.items():
            for when, code in trees.items():
                for seed in range(asked.seeds):
                    out, started = Path(place) / f"{way}-{when}-{seed}", time.perf_counter()
                    folder = trained(code, file, out, [*limit, *settings, f"--seed={seed}"])
                    row = {"name": f"{way}, {when}", "seed": seed, "recall": of_model(folder, held_out)}
                    results.append({**row, "seconds": time.perf_counter() - started})
                    print(results[-1], file=sys.stderr, flush=True)
    shown = [f"{row['name']:<20} {100 * row['recall']:5.1f}% of {HELD_OUT:,}" for row in results]
    tell("embedding quality", [f"{len(learn):,} pairs to learn from", *shown], {"results": results})
