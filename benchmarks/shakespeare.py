"""Time to a held-out loss of 1.88 on Tiny Shakespeare: `transom train` beside nanoGPT's CPU recipe.

The peer is `plain_gpt`: float32, AdamW, 2,000 steps; its clock counts its training steps only, not its
imports, its reading of the text or its evaluations. Ours counts everything from the call of `transom.train`
to its return: reading, splitting, tokenizing, finding a micro-batch, evaluating and saving as well. Both
hold out the last tenth of the text and are scored on rows of 64 characters that do not overlap.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

import transom

from .measure import DATA, tell
from .plain_gpt import PlainGPT, Recipe, held_out_loss, train_plainly

GOAL = 1.88
OURS = {
    "data": {"tokenizer": "chars", "val_fraction": 0.1},
    # Fewer, wider layers of the same number of parameters: less to start, more to multiply at a time.
    "model": {"dim": 192, "n_layers": 2, "n_heads": 6, "head_dim": 32, "ffn_dim": 416, "max_len": 64},
    "batch": {"tokens": 2048, "micro": 32},
    "optim": {"cooldown": 0.8},
    "steps": 160,
    "eval_every": "1000 steps",
    "prompt": "",
}


def theirs(seed: int) -> tuple[float, float, int]:
    """Seconds of training, final held-out loss, parameters."""
    text = (DATA / "tinyshakespeare" / "input.txt").read_text()
    letters = {letter: i for i, letter in enumerate(sorted(set(text)))}
    ids = torch.tensor([letters[letter] for letter in text])
    learn, held_out = ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]
    recipe, spent, model = Recipe(), 0.0, PlainGPT(len(letters), Recipe())
    for _, spent, model in train_plainly(learn, len(letters), recipe, seed):  # noqa: B007
        pass
    return spent, held_out_loss(model, held_out, recipe.context), model.n_parameters


def ours(seed: int) -> tuple[float, float, int]:
    """Seconds of the whole call, final held-out loss, parameters."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run = transom.train(
            str(DATA / "tinyshakespeare" / "input.txt"), out=Path(folder) / "run", seed=seed, **OURS
        )
        seconds = time.perf_counter() - started
        parameters = run.ledger["model"]["parameters"]
    assert run.loss is not None
    return seconds, run.loss, parameters


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("shakespeare", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    asked = parser.parse_args(arguments)
    lines, results = [], []
    for seed in range(asked.seeds):
        for name, run in (("plain float32 PyTorch", theirs), ("transom train", ours)):
            seconds, loss, parameters = run(seed)
            results.append(
                {"name": name, "seed": seed, "seconds": seconds, "loss": loss, "parameters": parameters}
            )
            lines.append(
                f"{name:<24} {parameters:>9,} parameters {seconds:>7.1f} s  held-out {loss:.3f} nats"
            )
        plain, transom_ = results[-2:]
        share = transom_["seconds"] / plain["seconds"]
        reached = "at or below" if transom_["loss"] <= GOAL else "ABOVE"
        lines.append(f"seed {seed}: ours took {share:.2f} of the time and is {reached} {GOAL}")
    tell("time to 1.88 on Tiny Shakespeare", lines, {"results": results})
