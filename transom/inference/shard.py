"""A shard: so many rows of a large file, and what a verb answers to them.

The one idea: the answers are a function of the job and of the shard's own texts, so it does not matter who
computes them, after what, or whether for the second time. Read next: batch, workers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version as version_of
from typing import Any, NamedTuple

import torch

from transom.checkpoint.hub import resolve
from transom.checkpoint.manifest import fingerprint
from transom.data.row_writer import ERROR
from transom.errors import Refused

from .answers import class_columns, classes_of
from .load import load

Settings = dict[str, Any]
Answered = tuple[dict[str, Any], float | None]
"""The columns of a row, and how sure a translator is (mean log-probability of a token)."""


class Verb(NamedTuple):
    """What one verb does with rows."""

    kind: str
    """Of the model."""
    n_rows: int
    """Of a shard: seconds of work, more than it takes to start a process, and few enough to be lost."""
    columns: tuple[str, ...]
    answer: Callable[[Any, list[str], Settings], list[Answered]]


@dataclass(frozen=True)
class Job:
    """What decides the answers to a text, and is alike wherever they are computed."""

    verb: str
    model: str
    fingerprint: str
    """Of the model's weights."""
    settings: Settings
    dtype: str
    device: str
    weights: str | None
    """`int8`, `bfloat16`, or as the model has them."""
    threads: int
    version: str = version_of("transom")


def answers(job: Job, texts: Sequence[str | None]) -> bytes | Refused:
    """The file of a shard: how many rows were refused, then for each row its columns and sureness (JSON).
    None stands for a row without a text.

    Gives a Refused where the job itself cannot be done here.
    """
    torch.set_num_threads(job.threads)
    verb, held = VERBS[job.verb], [place for place, text in enumerate(texts) if text is not None]
    try:
        model = _model(job.model, job.fingerprint, job.dtype, job.device, job.weights, job.version)
        verb.answer(model, [], job.settings)  # settings that are wrong for any text
    except Refused as refused:
        return refused
    rows: list[Answered] = [({}, None)] * len(texts)

    def work(places: list[int]) -> None:
        try:
            found = verb.answer(model, [texts[place] or "" for place in places], job.settings)
        except Refused as refused:  # one of the texts: looked for by halves
            if len(places) == 1:
                rows[places[0]] = ({ERROR: str(refused)}, None)
                return
            work(places[: len(places) // 2])
            work(places[len(places) // 2 :])
        else:
            for place, answer in zip(places, found, strict=True):
                rows[place] = answer

    if held:
        work(held)
    n_refused = sum(ERROR in columns for columns, _ in rows)
    return "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in (n_refused, *rows)).encode()


@lru_cache(maxsize=1)
def _model(model: str, expected: str, dtype: str, device: str, weights: str | None, version: str) -> Any:
    """The model of a job, loaded once by each worker."""
    if version != (mine := version_of("transom")):
        raise Refused(f"a worker has Transom {mine}, this is {version}; install the same everywhere")
    loaded = load(model, dtype=dtype, device=device, weights=weights)
    if fingerprint(resolve(model)) != expected:
        raise Refused(f"{model}: a worker finds other weights there; copy the model to all machines")
    return loaded


def _generate(model: Any, texts: list[str], settings: Settings) -> list[Answered]:
    model.params(settings)
    model.forget()
    found = model.generate(texts, **settings) if texts else []
    return [({"completion": one.text}, None) for one in found]


def _translate(model: Any, texts: list[str], settings: Settings) -> list[Answered]:
    model.forget()
    found = iter(model.translate([text for text in texts if text.strip()], **settings))
    made = [next(found) if text.strip() else None for text in texts]
    return [({"translation": one.text if one else ""}, one.mean_logprob if one else 0.0) for one in made]


def _classify(model: Any, texts: list[str], settings: Settings) -> list[Answered]:
    return [(class_columns(one), None) for one in classes_of(model, texts, **settings)]


def _embed(model: Any, texts: list[str], settings: Settings) -> list[Answered]:
    return [({"embedding": vector}, None) for vector in model.embed(texts, **settings).tolist()]


VERBS = {
    "generate": Verb("Generator", 64, ("completion",), _generate),
    "translate": Verb("Translator", 256, ("translation",), _translate),
    "classify": Verb("Classifier", 2048, ("class", "confidence"), _classify),
    "embed": Verb("Embedder", 2048, ("embedding",), _embed),
}
