"""Which examples a model is scored on: those that are named, else those that its run held out.

Read next: examine, against.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.hub import resolve
from ..data.documents import Document
from ..data.formats import ELSEWHERE, named_fields
from ..data.sources import open_source
from ..data.task_guess import guess_task, unmapped
from ..errors import Refused
from ..settings import TrainSettings, load
from ..training.example_tasks import preparation, sources_of
from ..training.folder import RunFolder
from ..training.parallelism import World
from ..training.report import Report
from ..training.run import task_of
from ..training.task_facts import TASK_FACTS
from ..training.text_task import prepare_text


@dataclass(frozen=True)
class Origin:
    """Where a model comes from."""

    settings: TrainSettings
    run: Path | None
    """The folder of the run that made it, where it lies in one."""
    weights: Path
    """The model's own folder."""


def origin_of(folder: str | Path) -> Origin:
    """Tell where the model of a run's folder, a model folder or a hub id comes from. Raises Refused."""
    weights = resolve(folder)
    run = weights.parent if (weights.parent / "settings.toml").is_file() else None
    return Origin(load(TrainSettings, file=run / "settings.toml" if run else None), run, weights)


def named_test(
    settings: TrainSettings, test: str, target: str | None = None, columns: Sequence[str] = ()
) -> TrainSettings:
    """Return the settings of a run with a test that a person named as its data. Raises Refused.

    columns: FIELD=COLUMN of the test; by default as the run has them, where the test has such columns.
    """
    data, fields = settings.data, named_fields(columns)
    own = {**named_fields(data.map), "text": data.field, "target": data.target_field, "label": data.label}
    own = {field: column for field, column in own.items() if column is not None and not column.isdigit()}
    changes: dict[str, Any] = {"data.source": test, "data.target": target, "data.validation": None,
                               "data.validation_target": None}  # fmt: skip
    if fields or unmapped(test, own):
        changes |= {f"data.{name}": None for name in ELSEWHERE.values()} | {"data.map": tuple(columns)}
        changes |= {
            f"data.{ELSEWHERE[field]}": column for field, column in fields.items() if field in ELSEWHERE
        }
    return settings.with_(changes)


def examples_of(task: str, origin: Origin, test: TrainSettings | None = None) -> tuple[list[Any], list[Any]]:
    """Return the examples that a run learned from, and those to measure with: what it held out, or what
    `test` has as its data (see named_test).

    What the run prepared says which they are; where that is gone, they are prepared anew. Raises Refused.
    """
    settings, run = origin.settings, origin.run
    data = settings.data
    if "-" in (data.source, data.target):
        raise Refused(
            f"{run} learned from standard input, which is gone; name a file with the same rows by --train"
        )
    if data.validation == "-":
        if test is None:
            raise Refused(f"{run} was measured on standard input, which is gone; name a file by --test")
        settings = settings.with_({"data.validation": None})
    folder = data.cache or (None if run is None else RunFolder(run).data)
    way = preparation(task, settings)
    made = way.found(folder) or dataclasses.replace(way, tokenizer=origin.weights).once(folder)
    named = sources_of(task, settings)[1] if test is None else sources_of(task, test)[0]
    return made.train_examples, made.held_out_examples if named is None else list(named)


def examples(
    verb: str,
    origins: Sequence[Origin],
    test: str | None,
    test_target: str | None = None,
    columns: Sequence[str] = (),
) -> tuple[list[Any], str]:
    """Return the examples to score models by the verb of their models (`classify`), and their name.

    Without `test` they are what the run of the first model that learned to do so held out. Raises Refused.
    """
    if test is not None:
        named = named_test(origins[0].settings, test, test_target, columns)
        tasks = (task for task, facts in TASK_FACTS.items() if facts.verb == verb)
        task = (asks(origins, test, columns) if verb == "chat" else None) or next(tasks)
        return list(sources_of(task, named)[0]), test
    for origin in origins:
        if origin.run is not None and TASK_FACTS[task := task_of(origin.run)].verb == verb:
            held_out = examples_of(task, origin)[1]
            data = origin.settings.data
            return held_out, data.validation or f"{data.source} (held out)"
    raise Refused(f"{origins[0].weights} lies in no run that held examples out; name some by --test FILE")


def asks(origins: Sequence[Origin], test: str | None, columns: Sequence[str] = ()) -> str | None:
    """The task of what language models are scored on, where that are conversations or pairs of answers; None
    for running text.
    """
    if test is not None:
        fields = named_fields(named_test(origins[0].settings, test, columns=columns).data.map)
        tasks = [guess_task(test, None, fields)[0]]
        if tasks == ["lm"] and (says := unmapped(test, fields)):
            raise Refused(says)
    else:
        tasks = [task_of(origin.run) for origin in origins if origin.run is not None]
    return next((task for task in tasks if TASK_FACTS[task].verb == "chat"), None)


def evenly(items: Sequence[Any], total: int, limit: int | None) -> list[Any]:
    """Return as many items, spread evenly, as have about `limit` characters of their `total`; None: all."""
    n = len(items) if limit is None or total <= limit else max(1, len(items) * limit // total)
    return [items[i * len(items) // n] for i in range(n)]


def texts(
    origins: Sequence[Origin], test: str | None, columns: Sequence[str] = ()
) -> tuple[Iterator[Document], str]:
    """Return the text to score language models on, and its name; as `examples` chooses. Raises Refused."""
    if test is not None:
        data = named_test(origins[0].settings, test, columns=columns).data
        return open_source(test, field=data.field, on_error=data.on_error).documents(), test
    for origin in origins:
        if origin.run is not None and TASK_FACTS[task_of(origin.run)].running:
            return _held_out_text(origin), f"{origin.settings.data.source} (held out)"
    raise Refused(f"{origins[0].weights} lies in no run that held text out; name a text by --test FILE")


def _held_out_text(origin: Origin) -> Iterator[Document]:
    """The documents that a run held out, as its token files have them."""
    assert origin.run is not None
    if origin.settings.data.source == "-":
        raise Refused(f"{origin.run} learned from standard input, which is gone; name a text by --test")
    corpus = prepare_text(origin.settings, RunFolder(origin.run), World(), Report(is_first=False))
    for number, row in enumerate(map(corpus.held_out.rows().__getitem__, range(corpus.held_out.n_documents))):
        text = corpus.tokenizer.decode(row[1:].tolist())
        yield Document(f"{origin.settings.data.source} (held out)", number + 1, [text])
