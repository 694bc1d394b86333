"""Did it help? A run that began with pretrained weights, held against those weights, at its end.

On the same held-out examples: the task's own measure, the loss, whether answers end by themselves; besides,
general text (what was forgotten), speed and size. Weights that got a new head could not do this before: in
their place stands something cheap that learned from the same. The report is a page in the run's folder, its
numbers lie beside it, and its table stands in the model card. Read next: page.
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
from ..inference.embedder import Embedder
from ..inference.fill_mask import FillMask
from ..inference.generator import Generator
from ..output import write_whole
from ..settings import TrainSettings
from ..settings import load as load_settings
from ..training.run import Run
from .against import Both, partners_of_both, text_measures
from .baselines import TfidfEmbedder
from .cost import in_turns, size, speed
from .examine import ExaminedRun, examine, examined
from .likelihood import Watch
from .page import write_page
from .paired import Comparison, Measure
from .perplexity import passages, score_text
from .test_set import Origin, examples_of, origin_of

GENERAL, HELD_OUT = 40_000, 200_000
"""Characters of general text, and at most of held-out text, conversations or pairs, that both are told by."""
ASKED, OPENING, TOKENS = 16, 80, 24
"""Texts by which speed is measured, their characters, and the tokens that are written after each."""
PER_CHARACTER = 4
"""Tokens of a character at most: its bytes."""
REPORT, NUMBERS, CARD = "report.html", "before_after.json", "README.md"
HEADING, HEADING_CHEAP = "## Beside the model that it began as", "## Beside something cheap"


def before_after(
    run: str | Path,
    *,
    general: str | None = None,
    test: str | None = None,
    watch: Watch | None = None,
    cheap: Comparison | None = None,
) -> Comparison:
    """Hold the model of a run against the pretrained weights that it began with, and write the report.

    test: examples instead of those that the run held out. general: a text for what was forgotten, by default
    the run's own, else what Python's library says of itself. cheap: the model beside something cheap, where
    that is known, for weights that could not do this before. Raises Refused, for a run that began with
    nothing too.
    """
    found = _compared(run, general, test, watch, cheap)
    _write_down(run, found)
    return found


def _compared(
    run: str | Path, general: str | None, test: str | None, watch: Watch | None, cheap: Comparison | None
) -> Comparison:
    """The model of a run beside what it began as. Raises Refused."""
    origin = origin_of(run)
    weights = origin.settings.model.weights
    if origin.run is None or weights is None:
        raise Refused(
            f"{run}: no run that began with pretrained weights, so there is nothing to hold it against"
        )
    if _could_before(origin):
        both = Both.load(run, weights, test=test, limit=HELD_OUT, watch=watch)
        found = replace(both.compare(), sides=("before", "after"))
        measures = [*_general(both, general or origin.settings.general), *_speed(both, found)]
        found = found.with_(*measures, size(*(one.weights for one in both.origins)))
    else:
        found = cheap or _beside_cheap(origin, test)
        told = (
            f"{weights} could not do this before, so beside the model stands something cheap that learned "
            f"from the same: {found.against}"
        )
        found = replace(found.beside("cheap", "the model"), model=str(run), notes=(told, *found.notes))
    return found


def _write_down(run: str | Path, found: Comparison) -> None:
    """Write the report into a run's folder, and its table into the model's card. Raises Refused."""
    origin = origin_of(run)
    assert origin.run is not None
    write_page(origin.run / REPORT, found)
    write_whole(origin.run / NUMBERS, json.dumps(found.to_dict(), indent=1) + "\n")
    _note_in_card(origin.weights, found)


class TunedRun:
    """A run with what it changed in the model that it began as. It prints itself.

    `run` is the `Run`, or an `ExaminedRun` where its task has scores of its own; `found` the `Comparison` of
    after and before; `report` where that is written as a page, None where it could not be.
    """

    def __init__(self, run: Run | ExaminedRun, found: Comparison, report: Path | None) -> None:
        """report: where that is written, None where it could not be."""
        self.run, self.found, self.report = run, found, report

    def __str__(self) -> str:
        report = "" if self.report is None else f"\nreport: {self.report}"
        return f"{self.run.outcome}\n\n{self.found}{report}\n\n{self.run.ending}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**self.run.to_dict(), "before_after": self.found.to_dict()}


def finetune(
    model: str | Path, data: str, /, *, config: str | None = None, **settings: Any
) -> Run | ExaminedRun | TunedRun:
    """Teach a model your data: the same settings as `transom finetune`, as keywords.

    Gives a `TunedRun`; a run that was interrupted, or is held against nothing, as it is.

    model: what to begin with: a run's folder, a model folder, a GGUF file or a hub id. data: what to learn
    from, as `data.source`. config: a TOML file of settings, over which the keywords go. Raises Refused for a
    setting that cannot be, and for data that cannot be learned from.
    """
    from ..training.loop import train

    asked = load_settings(TrainSettings, {"data.source": data, **settings}, config)
    return tuned(examined(train(asked.with_({"model.weights": str(model), "recipe": "evidence"}))))


def tuned(ended: Run | ExaminedRun, watch: Watch | None = None) -> Run | ExaminedRun | TunedRun:
    """Hold a run that has ended against what it began as, or against something cheap."""
    run, cheap = (ended.run, ended.report.beside) if isinstance(ended, ExaminedRun) else (ended, None)
    if run.interrupted or origin_of(run.folder).settings.model.weights is None:
        return ended
    try:
        found = _compared(run.folder, None, None, watch, cheap)
    except Refused as refused:  # the run itself has ended well
        print(f"not held against what it began as: {refused}", file=sys.stderr)
        return ended
    try:
        _write_down(run.folder, found)
    except Refused as refused:  # what was found is shown all the same
        print(f"what it changed is not written down: {refused}", file=sys.stderr)
        return TunedRun(ended, found, None)
    return TunedRun(ended, found, run.folder / REPORT)


def _could_before(origin: Origin) -> bool:
    """Whether the weights that a run began with had the same job: the same head, and the same classes."""
    from ..checkpoint.huggingface import load_config

    assert origin.settings.model.weights is not None
    now, before = (load_config(one.weights)[0] for one in (origin, origin_of(origin.settings.model.weights)))
    return (now.kind, now.head, now.labels) == (before.kind, before.head, before.labels)


def _beside_cheap(origin: Origin, test: str | None) -> Comparison:
    """Hold the model of a run against something cheap that learned from the same. Raises Refused."""
    from ..inference.load import load

    loaded = load(origin.weights)
    if isinstance(loaded, Embedder):
        learned, _ = examples_of("embed", origin)
        cheap = TfidfEmbedder([text for pair in learned for text in pair[:2]])
        name = str(origin.run)
        return partners_of_both(Both((loaded, cheap), (origin, origin), (name, cheap.name), test=test))
    assert origin.run is not None
    found = examine(origin.run, test=test).beside
    if found is None:
        raise Refused(f"{origin.settings.model.weights} had another job, and nothing cheap does this one")
    return found


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
    told = text_measures(now, before, "general text: ")
    return tuple(replace(one, elsewhere=True) for one in told)


def _speed(both: Both, found: Comparison) -> list[Measure]:
    """How fast both do the same: write so many tokens after texts of the examples, or answer them."""
    verb = next(
        (verb for verb in ("generate", "classify", "embed", "translate") if hasattr(both.pair[0], verb)), None
    )
    room = min(loaded.model.config.max_len for loaded in both.pair)
    opening = OPENING if verb != "generate" else max(1, min(OPENING, (room - TOKENS) // PER_CHARACTER))
    texts = [example.asked[:opening] for example in found.examples[:ASKED]]
    if verb is None or len(texts) < 2:
        return []
    settings = dict(max_tokens=TOKENS, temperature=0, ignore_eos=True) if verb == "generate" else {}
    sizes, seconds = in_turns(texts, *(partial(getattr(loaded, verb), **settings) for loaded in both.pair))
    each, of = (TOKENS, "tokens written") if settings else (1, "texts")
    return [speed([each * n for n in sizes], seconds, of)]


def _note_in_card(model: Path, found: Comparison) -> None:
    """Write the verdict and the table into the card of a model that a run has saved."""
    card = (model / CARD).read_text(encoding="utf-8") if (model / CARD).is_file() else ""
    other = HEADING if found.sides[0] == "before" else HEADING_CHEAP
    before, heading, after = card.partition(f"{other}\n")
    rest = after.partition("\n## ")
    tail = f"\n## {rest[2]}" if heading and rest[1] else ""
    head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in found.table()]
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join(f"| {' | '.join(row)} |" for row in lines)
    said = f"Beside `{found.against}`, on `{found.test}`: {found.headline}."
    replace_file(model, CARD, f"{before.rstrip()}\n\n{other}\n\n{said}\n\n{table}\n{tail}")
