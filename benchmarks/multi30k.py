"""Multi30k, English to German: from nothing to test_2016_flickr on this machine, BLEU over the time it took.

A Transformer, or an LSTM with attention that is as large, is trained by `transom.train` on the 29,000 pairs
by its defaults but for data, budget and length. Checkpoints on the way translate the test set with a beam,
and the model that it leaves, which is the result. Published text-only best: 41.02 tokenised, lower-cased
(fairseq's transformer_tiny, Wu et al. 2021). No test sentence is in training, and nothing is chosen by it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path
from typing import Any

import transom
from transom.checkpoint.tensors import load_tensors
from transom.evaluation.translation import score_translations

from .measure import DATA, tell

SETS = DATA / "multi30k"
RECIPE: dict[str, Any] = {
    "task": "translate",
    "data.source": str(SETS / "train.en.gz"),
    "data.target": str(SETS / "train.de.gz"),
    "data.validation": str(SETS / "val.en.gz"),
    "data.validation_target": str(SETS / "val.de.gz"),
    "model.max_len": 128,
    "save_every": "60s",
    "keep": 1000,
}
OF_MEMBER: dict[str, dict[str, Any]] = {
    "lstm": {"model.dim": 320},
}


def lines_of(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().splitlines()


def main(options: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks multi30k", description=__doc__)
    parser.add_argument("--budget", default="20min")
    parser.add_argument("--steps", type=int, help="in place of a time, on a machine that is not alone")
    parser.add_argument("--model", default="encoder-decoder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/multi30k"))
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--points", type=int, default=12, help="checkpoints of the curve")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another setting")
    asked = parser.parse_args(options)
    changes = dict(one.split("=", 1) for one in asked.set)
    settings = {
        **RECIPE,
        **OF_MEMBER.get(asked.model, {}),
        "model.kind": asked.model,
        "seed": asked.seed,
        **({"steps": asked.steps} if asked.steps else {"budget": asked.budget}),
        **changes,
    }
    started = time.perf_counter()
    run = transom.train(**settings, out=str(asked.out))
    took = time.perf_counter() - started
    curve = over_time(run.folder, asked.beam, asked.points)
    last = curve[-1]
    reached = next((point["minutes"] for point in curve if point["tokenised"] >= 35), None)
    shown = [
        f"{run.ledger['model']['parameters']:,} parameters, {took / 60:.1f} min, {run.step:,} steps",
        *(f"{p['minutes']:6.1f} min  BLEU {p['bleu']:5.2f}  tokenised {p['tokenised']:5.2f}" for p in curve),
        f"to 35 tokenised: {'not reached' if reached is None else f'{reached:.1f} min'}",
        f"at the end: BLEU {last['bleu']:.2f} ({last['signature']}), tokenised {last['tokenised']:.2f}, "
        f"chrF {last['chrf']:.2f}",
    ]
    (asked.out / "curve.json").write_text(json.dumps(curve, indent=1))
    tell(
        f"multi30k {asked.model}",
        shown,
        {"curve": curve, "seconds": took, "to_35": reached, "seed": asked.seed},
    )


def over_time(folder: Path, beam: int, points: int) -> list[dict[str, Any]]:
    """The scores of a run's checkpoints on the test set, oldest first, and last of the model that it left."""
    sources, references = (lines_of(SETS / f"test_2016_flickr.{side}.gz") for side in ("en", "de"))
    kept = sorted((folder / "checkpoints").glob("step-*"))
    curve = []
    for path in [*kept[: -1 : max(1, len(kept) // points)], None]:
        translator = transom.load(folder / "model", dtype="float32")
        if path is not None:
            translator.model.load_state_dict(load_tensors(path / "weights.safetensors"))
        found = translator.translate(sources, beam=beam)
        score = score_translations([one.text for one in found], references)
        assert score.bleu is not None
        position = json.loads(((path or kept[-1]) / "position.json").read_text())
        curve.append({
            "minutes": position["elapsed"] / 60, "step": position["step"], "bleu": score.bleu.value,
            "low": score.bleu.low, "high": score.bleu.high, "signature": score.bleu_signature,
            "tokenised": score.tokenised_bleu, "chrf": score.chrf,
        })  # fmt: skip
        print(json.dumps(curve[-1]), flush=True)
    return curve
