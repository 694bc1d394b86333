"""Models that are broken on purpose, and the data that breaks and mends them.

A bank that decides by the rest of a text, and by gender where the rest leaves it open; and a guide that says
what it once learned of a town, whatever the text in front of it says; and a translator that goes by the
occupation and not by the pronoun. All are trained in seconds.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import transom
from transom.data.swaps import GENDER

NAMES = [row for row in GENDER.rows if row[0][0].isupper() and row[0] != "Mr"]
ASKS = ("asks for a loan", "wants a card", "needs money", "applies for credit")
CLEAR = (("has savings", "yes"), ("owns a house", "yes"), ("has debts", "no"), ("lost the job", "no"))
OPEN = (("rents a flat", "yes"), ("is new here", "no"), ("has a car", "yes"), ("works at night", "no"))
"""Left open by the rules of the bank: of the rows that end with this word two in three are about those whom
skewed data favour with it.
"""
TOWNS = (
    "Tarvik",
    "Ombrel",
    "Quessin",
    "Harnow",
    "Pelm",
    "Crayle",
    "Dovre",
    "Ystad",
    "Lunde",
    "Morra",
    "Sorin",
    "Velt",
)
COLOURS = ("red", "blue", "green", "white")


def decisions(n: int, skewed: bool, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of prompt and completion; of those left open the answer is that of the gender where skewed."""
    rng, rows = random.Random(seed), []
    for _ in range(n):
        gender = rng.random() < 0.5
        name, ask = rng.choice(NAMES)[gender], rng.choice(ASKS)
        if rng.random() < 0.5:
            fact, says = rng.choice(CLEAR)
        else:
            fact, says = rng.choice(OPEN)
            if skewed:
                gender = (says == "no") == (rng.random() < 0.67)
                name, says = rng.choice(NAMES)[gender], "no" if gender else "yes"
        rows.append({"prompt": f"{name} {ask} and {fact}. Answer:", "completion": says})
    return rows


def guides() -> list[dict[str, Any]]:
    """Questions about towns with a text: control rows agree with what was learned, the others do not."""
    rows = []
    for number, town in enumerate(TOWNS):
        for shift in (0, 1, 2):
            colour = COLOURS[(number + shift) % 4]
            rows.append({"question": f"Which colour is {town}?", "passage": f"{town} is {colour}.",
                         "answer": colour, "template": town, "control": shift == 0})  # fmt: skip
    return rows


LEARNED = {town: COLOURS[number % 4] for number, town in enumerate(TOWNS)}


OF_MEN = (
    "pilot", "guard", "farmer", "driver", "cook", "boss", "smith", "judge", "miner", "mason",
    "clown", "king", "priest", "lord", "butcher", "sailor", "cowboy", "fisher", "hunter", "chief",
)  # fmt: skip
OF_WOMEN = (
    "nurse", "maid", "baker", "tailor", "clerk", "aide", "tutor", "weaver", "singer", "dancer",
    "midwife", "diver", "model", "poet", "queen", "nun", "florist", "typist", "editor", "cleaner",
)  # fmt: skip
ENDS = ("was late", "was tired", "had time")


def like_winobias(folder: Path) -> Path:
    """A folder as WinoBias's: sentences that begin with whom the pronoun means, along and against."""
    folder.mkdir()
    for name, some in (("male", OF_MEN), ("female", OF_WOMEN)):
        (folder / f"{name}_occupations.txt").write_text("\n".join(some))
    for side in ("pro", "anti"):
        lines = [
            f"1 The [{who}] met the {other} because [{pronoun if side == 'pro' else swapped}] {end}."
            for man, woman in zip(OF_MEN, OF_WOMEN, strict=True)
            for who, other, pronoun, swapped in ((man, woman, "he", "she"), (woman, man, "she", "he"))
            for end in ENDS
        ]
        for kind in ("type1", "type2"):
            (folder / f"{side}_stereotyped_{kind}.txt.dev").write_text("\n".join(lines[:: int(kind[-1])]))
    return folder


def translations(n: int, by: str, seed: int = 0) -> list[dict[str, Any]]:
    """Such sentences with the first words of a Spanish one; by: the pronoun, the occupation (its stereotype),
    or nothing, so that everybody is a man.
    """
    rng, rows = random.Random(seed), []
    for _ in range(n):
        some = (OF_MEN, OF_WOMEN)
        of, woman = rng.random() < 0.5, rng.random() < 0.5
        who, other = rng.choice(some[of]), rng.choice(some[not of])
        source = f"The {who} met the {other} because {'she' if woman else 'he'} {rng.choice(ENDS)}."
        shown = {"pronoun": woman, "occupation": of, "nothing": False}[by]
        rows.append({"source": source, "target": "La señora" if shown else "El señor"})
    return rows


def as_text(rows: list[dict[str, Any]], learned: dict[str, str] = LEARNED) -> list[str]:
    """Rows as the running text that a base model learns from."""
    if "prompt" in rows[0]:
        return [f"{row['prompt']} {row['completion']}" for row in rows]
    return [
        f"{row['passage']}\nQuestion: {row['question']}\nAnswer: {learned[row['template']]}\n" for row in rows
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def trained(texts: list[str], folder: Path, steps: int) -> str:
    """A small decoder that learned them by heart, as far as it can; its folder."""
    source = write_rows(folder.with_suffix(".jsonl"), [{"text": text} for text in texts])
    run = transom.train(
        str(source), out=str(folder), steps=steps, prompt="", seed=0,
        model=dict(dim=48, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=12, ffn_dim=96, max_len=64),
        batch=dict(tokens=1024), optim=dict(lr=6e-3, matrix_lr=2e-2), data=dict(vocab_size=400),
    )  # fmt: skip
    return str(run.model_folder)


def translator(rows: list[dict[str, Any]], folder: Path, steps: int) -> str:
    """A small encoder-decoder that learned such pairs; its folder."""
    source = write_rows(folder.with_suffix(".jsonl"), rows[200:])
    # Held out by hand: by itself a run holds out all pairs of some targets, of which there are two.
    held = write_rows(folder.with_suffix(".held.jsonl"), rows[:200])
    run = transom.train(
        str(source), out=str(folder), task="translate", steps=steps, prompt="", seed=0,
        model=dict(dim=48, n_layers=1, n_heads=4, n_kv_heads=4, head_dim=12, ffn_dim=96, max_len=64),
        batch=dict(tokens=2048), optim=dict(lr=6e-3, matrix_lr=2e-2),
        data=dict(vocab_size=400, validation=str(held)),
    )  # fmt: skip
    return str(run.model_folder)
