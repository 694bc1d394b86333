"""How good a model is, alone or against another: the one door of `transom evaluate` and of Python.

Translators and classifiers stand beside cheap baselines, language models are told by a text, embedders by
whom they find; two models of one kind are compared example by example. Read next: examine, against.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

from ..checkpoint.huggingface import load_config
from ..errors import Refused
from ..inference.generator import Generator
from .against import Both
from .answers import score_answers
from .examine import examine
from .likelihood import Watch
from .paired import Comparison
from .perplexity import TextScore, passages, reader, score_text
from .report import Report
from .test_set import asks, examples, origin_of, texts


@overload
def evaluate(
    model: str | Path,
    *,
    against: str | Path,
    test: str | None = None,
    test_target: str | None = None,
    columns: Sequence[str] = (),
    beam: int = 4,
    limit: int | None = None,
    watch: Watch | None = None,
) -> Comparison: ...
@overload
def evaluate(
    model: str | Path,
    *,
    against: None = None,
    test: str | None = None,
    test_target: str | None = None,
    train: str | None = None,
    train_target: str | None = None,
    columns: Sequence[str] = (),
    beam: int = 4,
    limit: int | None = None,
    watch: Watch | None = None,
) -> Report | TextScore: ...
def evaluate(
    model: str | Path,
    *,
    against: str | Path | None = None,
    test: str | None = None,
    test_target: str | None = None,
    train: str | None = None,
    train_target: str | None = None,
    columns: Sequence[str] = (),
    beam: int = 4,
    limit: int | None = None,
    watch: Watch | None = None,
) -> Report | TextScore | Comparison:
    """Score a model: a run's folder, a model folder or a hub id; against another one, or by itself.

    Gives a `Comparison` with `against`; else a `Report` of a translator or classifier beside cheap baselines,
    or a `TextScore` of a model that predicts text (perplexity, nats per token, bits per byte). Each prints
    itself, and every score has its 95% interval.

    against: the model that it is held against. test: the examples or the text; by default what its run held
    out. test_target: the other side of pairs in two files. train: what the baselines of a translator or
    classifier learn from; by default what its run learned from. train_target: as test_target. columns:
    FIELD=COLUMN, which columns of the test hold its fields, where they are not those of the run. beam: of
    translations. limit: about so many characters of a text, spread evenly, instead of all. watch: is told how
    many tokens of how many are read. Raises Refused for what cannot be scored or compared.
    """
    if against is not None:
        if train is not None:
            raise Refused("a model is held against another one or against baselines; leave out --train")
        both = Both.load(
            model, against, test=test, test_target=test_target, columns=columns, beam=beam, limit=limit,
            watch=watch,
        )  # fmt: skip
        return both.compare()
    origin = origin_of(model)
    config, _ = load_config(origin.weights)
    if config.head == "embed":
        raise Refused(f"{model} is an embedder: hold it against another one (--against FOLDER --test PAIRS)")
    if config.head == "classify" or config.kind == "encoder-decoder":
        return examine(
            model, train=train, train_target=train_target, test=test, test_target=test_target,
            columns=columns, beam=beam,
        )  # fmt: skip
    from ..inference.load import load

    loaded = reader(load(origin.weights), model)
    if isinstance(loaded, Generator) and asks((origin,), test, columns):
        return score_answers(loaded, *examples("chat", (origin,), test, None, columns), model=str(model),
                             watch=watch)  # fmt: skip
    documents, name = texts((origin,), test, columns)
    return score_text(loaded, passages(documents, limit), model=str(model), test=name, watch=watch)
