"""Did it help? A run that began with pretrained weights, held against those weights, at its end.

On the same held-out examples: the task's own measure, the loss, whether answers end by themselves; besides,
general text (what was forgotten), speed and size. The report is a page in the run's folder, its numbers lie
beside it, and one line of it stands in the model card. Read next: page.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..checkpoint.folder import replace_file
from ..data.documents import Document
from ..data.samples import stdlib_prose
from ..data.sources import open_source
from ..errors import Refused
from ..inference.fill_mask import FillMask
from ..inference.generator import Generator
from ..output import write_whole
from ..training.run import Run
from .against import Both, text_measures
from .cost import in_turns, size, speed
from .likelihood import Watch
from .page import write_page
from .paired import Comparison, Measure
from .perplexity import passages, score_text
from .test_set import origin_of

GENERAL, HELD_OUT = 40_000, 200_000
"""Characters of general text, and at most of held-out text or conversations, that both are told by."""
ASKED, OPENING, TOKENS = 16, 80, 24
"""Texts by which speed is measured, their characters, and the tokens that are written after each."""
REPORT, NUMBERS, CARD = "report.html", "before_after.json", "README.md"
HEADING = "## Beside the model that it began as"


def before_after(
    run: str | Path, *, general: str | None = None, test: str | None = None, watch: Watch | None = None
) -> Comparison:
    """Hold the model of a run against the pretrained weights that it began with, and write the report.

    test: examples instead of those that the run held out. general: a text for what was forgotten, by default
    what Python's library says of itself. Raises Refused, for a run that began with nothing too.
    """
    origin = origin_of(run)
    weights = origin.settings.model.weights
    if origin.run is None or weights is None:
        raise Refused(
            f"{run}: no run that began with pretrained weights, so there is nothing to hold it against"
        )
    both = Both.load(run, weights, test=test, limit=HELD_OUT, watch=watch)
    found = replace(both.compare(), sides=("before", "after"))
    measures = [*_general(both, general), *_speed(both, found)]
    found = found.with_(*measures, size(*(one.weights for one in both.origins)))
    write_page(origin.run / REPORT, found)
    write_whole(origin.run / NUMBERS, json.dumps(found.to_dict(), indent=1) + "\n")
    _note_in_card(origin.weights, found)
    return found


class TunedRun:
    """A run with what it changed in the model that it began as. It prints itself."""

    def __init__(self, run: Run, found: Comparison) -> None:
        self.run, self.found = run, found

    def __str__(self) -> str:
        report = f"report: {self.run.folder / REPORT}"
        return f"{self.run.outcome}\n\n{self.found}\n{report}\n\n{self.run.ending}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**self.run.to_dict(), "before_after": self.found.to_dict()}


def tuned(run: Run, general: str | None = None, watch: Watch | None = None) -> Run | TunedRun:
    """Hold a run that has ended against what it began as, where both have the same job."""
    if run.interrupted:
        return run
    origin = origin_of(run.folder)
    if origin.settings.model.weights is None:
        return run
    from ..checkpoint.huggingface import load_config

    try:
        base = origin_of(origin.settings.model.weights)
        now, before = (load_config(one.weights)[0] for one in (origin, base))
        if (now.kind, now.head, now.labels) != (before.kind, before.head, before.labels):
            return run
        return TunedRun(run, before_after(run.folder, general=general, watch=watch))
    except Refused as refused:  # the run itself has ended well
        print(f"not held against what it began as: {refused}", file=sys.stderr)
        return run


def _general(both: Both, general: str | None) -> tuple[Measure, ...]:
    """How well both predict a text that the run did not learn."""
    if not isinstance(both.pair[0], Generator | FillMask):
        return ()
    if general is None:
        documents = (Document(where, 1, [text]) for text, where in stdlib_prose(GENERAL))
    else:
        documents = open_source(general).documents()
    found = passages(documents, GENERAL)
    now, before = (score_text(loaded, found, watch=both.watch) for loaded in both.pair)
    return text_measures(now, before, "general text: ")


def _speed(both: Both, found: Comparison) -> list[Measure]:
    """How fast both do the same: write so many tokens after texts of the examples, or answer them."""
    texts = [example.asked[:OPENING] for example in found.examples[:ASKED]]
    verb = next(
        (verb for verb in ("generate", "classify", "embed", "translate") if hasattr(both.pair[0], verb)), None
    )
    if verb is None or len(texts) < 2:
        return []
    settings = dict(max_tokens=TOKENS, temperature=0, ignore_eos=True) if verb == "generate" else {}
    sizes, seconds = in_turns(texts, *(partial(getattr(loaded, verb), **settings) for loaded in both.pair))
    each, of = (TOKENS, "tokens written") if settings else (1, "texts")
    return [speed([each * n for n in sizes], seconds, of)]


def _note_in_card(model: Path, found: Comparison) -> None:
    """Write the verdict into the card of a model that a run has saved."""
    card = (model / CARD).read_text(encoding="utf-8") if (model / CARD).is_file() else ""
    before, heading, after = card.partition(f"{HEADING}\n")
    rest = after.partition("\n## ")
    tail = f"\n## {rest[2]}" if heading and rest[1] else ""
    line = f"{HEADING}\n\nBeside `{found.against}`, on {found.test}: {found.headline}.\n"
    replace_file(model, CARD, f"{before.rstrip()}\n\n{line}{tail}")
