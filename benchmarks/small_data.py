"""Little text: `transom train` by its defaults beside nanoGPT's recipe for small data, in bits per byte.

Answers of MedQuAD: the first 100 kB, 1 MB and 10 MB of them to learn from, and 200 kB of others to score with
at the end, which no contender sees. Nothing is given to transom but the text, a seed and what is asked for
here (`--budget`, `--steps`; none of them is the default run). `--before` is another checkout of Transom, run
the same way. The peer is `plain_gpt` with dropout 0.2 on characters; as in nanoGPT the last tenth of its text
is looked at every 250 steps, and the best weights are the result.
"""

from __future__ import annotations

import argparse
import copy
import html
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from transom.checkpoint.huggingface import load_model
from transom.data.tokenizer import Tokenizer

from .measure import DATA, tell
from .plain_gpt import Recipe, held_out_loss, train_plainly

HERE = Path(__file__).resolve().parents[1]
SIZES = {"100kB": 100_000, "1MB": 1_000_000, "10MB": 10_000_000}
SCORED = 200_000
"""Characters to score with."""
EVERY = 250
"""Steps of the peer between two looks at what it holds out."""


def answers() -> str:
    """The answers of MedQuAD, each once, in an order that is always the same and goes by nothing."""
    with tarfile.open(DATA / "medquad" / "MedQuAD_with_answers.tar.gz") as archive:
        members = sorted((m for m in archive if m.name.endswith(".xml")), key=lambda member: member.name)
        files = (archive.extractfile(member) for member in members)
        texts = [file.read().decode() for file in files if file is not None]
    found = (html.unescape(text) for one in texts for text in re.findall(r"(?s)<Answer>(.*?)</Answer>", one))
    texts = sorted({text.strip() for text in found})
    random.Random(0).shuffle(texts)
    return "\n\n".join(texts)


def ours(code: Path, limit: list[str], learn: str, scored: str, seed: int) -> float:
    """Bits per byte of a run by the command line of the checkout `code`."""
    with tempfile.TemporaryDirectory() as place:
        text = Path(place) / "learn.txt"
        text.write_text(learn)
        command = [sys.executable, "-m", "transom", "train", str(text), "--out", f"{place}/run"]
        environment = {**os.environ, "PYTHONPATH": str(code)}
        subprocess.run([*command, "--seed", str(seed), *limit], env=environment, cwd=place, check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        return bits_per_byte(Path(place) / "run" / "model", scored)


@torch.no_grad()
def bits_per_byte(folder: Path, text: str) -> float:
    """What a model folder makes of a text, in rows of its context that do not overlap."""
    model, tokenizer = load_model(folder).eval(), Tokenizer.load(folder)
    ids = torch.tensor([tokenizer.eos_id, *tokenizer.encode(text)])
    length, total = model.config.max_len, 0.0
    for first in range(0, len(ids) - 1, length):
        row = ids[first : first + length + 1]
        logits = model.logits(model(row[None, :-1]))[0]
        total += F.cross_entropy(logits, row[1:], reduction="sum").item()
    return total / math.log(2) / len(text.encode())


def plain(steps: int, learn: str, scored: str, seed: int) -> float:
    """Bits per byte of the peer, at the step that is best on the last tenth of its own text."""
    letters = {letter: i for i, letter in enumerate(sorted(set(learn + scored)))}
    ids, test = (torch.tensor([letters[letter] for letter in text]) for text in (learn, scored))
    recipe, cut = Recipe(dropout=0.2, steps=steps), int(0.9 * len(ids))
    best, kept = math.inf, None
    for step, _, model in train_plainly(ids[:cut], len(letters), recipe, seed):
        if step % EVERY == 0 or step == steps:
            loss = held_out_loss(model, ids[cut:], recipe.context)
            if loss < best:
                best, kept = loss, copy.deepcopy(model)
    assert kept is not None
    nats = held_out_loss(kept, test, recipe.context)
    return nats / math.log(2) * len(scored) / len(scored.encode())


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("small_data", description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--budget", help="of every run, instead of the default")
    parser.add_argument("--steps", type=int, help="of every run, instead of the default")
    parser.add_argument(
        "--plain-steps", type=int, default=Recipe().steps, help="of the peer; 0 leaves it out"
    )
    parser.add_argument("--before", type=Path, help="another checkout of Transom")
    asked = parser.parse_args(arguments)
    limit = [f"--{name}={value}" for name in ("budget", "steps") if (value := getattr(asked, name))]
    text = answers()
    scored, lines, results = text[-SCORED:], [], []
    contenders = {
        "before": asked.before and partial(ours, asked.before.resolve(), limit),
        "transom train": partial(ours, HERE, limit),
        "nanoGPT's recipe": asked.plain_steps and partial(plain, asked.plain_steps),
    }
    for size in asked.sizes:
        for name, bits_of in contenders.items():
            rows = []
            for seed in range(asked.seeds if bits_of else 0):
                started = time.perf_counter()
                bits = bits_of(text[: SIZES[size]], scored, seed)
                row = {"size": size, "name": name, "seed": seed, "bits_per_byte": bits}
                rows.append({**row, "seconds": time.perf_counter() - started})
            if not rows:
                continue
            bits, seconds = ([row[what] for row in rows] for what in ("bits_per_byte", "seconds"))
            spread = f" (deviation {statistics.stdev(bits):.3f})" if len(bits) > 1 else ""
            mean = f"{statistics.mean(bits):.3f}{spread} bits per byte"
            lines.append(f"{size:<6} {name:<17} {mean}, {statistics.mean(seconds):,.0f} s with scoring")
            results += rows
    tell("small data", lines, {"limit": limit, "results": results})
