"""The claims by name, and all of them after the check that the instrument itself is sound.

Read next: claim.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import Refused
from . import CLAIMS
from .backprop import backprop
from .cat import cat
from .claim import Claim, Control, Prediction
from .claim_run import Result, made, run_claim
from .report import CAT, GLASS_BOX, write_report

SOUND = 1e-6
"""How far the chain rule by hand may be from autograd."""


@cache
def words() -> dict[str, dict[str, Any]]:
    """What every claim says, from claims.toml."""
    return tomllib.loads(Path(__file__).with_name("claims.toml").read_text(encoding="utf-8"))


def claim(name: str) -> Claim:
    """The claim of this name: its words from the file, its work from its module."""
    work, said = import_module(f".{name.replace('-', '_')}", __package__), dict(words()[name])
    predictions = tuple(Prediction(**one) for one in said.pop("predictions"))
    controls = tuple(Control(**one) for one in said.pop("controls", ()))
    return Claim(
        name=name, predictions=predictions, controls=controls, arms=work.arms, measure=work.measure,
        read=work.read, draw=work.draw, plant=getattr(work, "PLANT", None),
        n_seeds=getattr(work, "N_SEEDS", Claim.n_seeds), **said,
    )  # fmt: skip


@dataclass(frozen=True)
class Lab:
    """What came of all claims."""

    results: tuple[Result, ...]
    page: Path

    def to_dict(self) -> dict[str, Any]:
        return {"results": [result.record for result in self.results], "page": str(self.page)}

    def __str__(self) -> str:
        rows = [
            f"{r.record['number']:>2}. {r.record['verdict']:<27} {r.record['claim']}" for r in self.results
        ]
        return "\n".join([*rows, f"{self.page}"])


def run_all(out: Path, *, quick: bool, say: Callable[[str], None] = lambda _: None) -> Lab:
    """All claims, one after the other, then the page. Raises Refused where the instrument is broken."""
    made(out)
    glass_box(out)
    results = [run_claim(claim(name), out, quick=quick, say=say) for name in CLAIMS]
    say("lab cat")
    cat(pairs=100 if quick else 400, out=out / CAT)
    return Lab(tuple(results), write_report(out, out / "lab.html"))


def glass_box(out: Path) -> None:
    """Before all claims: the gradient of a small net by hand, path by path and by autograd must agree."""
    story = backprop(out=out / GLASS_BOX)
    found = (story.by_hand, story.by_paths, story.autograd)
    if max(found) - min(found) > SOUND:
        raise Refused(
            f"the gradients by hand, by paths and by autograd differ: {found}; nothing else is measured"
        )
