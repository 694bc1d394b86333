"""Transom: train it, run it and see through it; the Transformer family on the machine you have.

What is named here is the public API and nothing else is. Each name is imported when it is first used, so
`import transom` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Classifier",
    "Embedder",
    "FillMask",
    "Generator",
    "Refused",
    "Translator",
    "__version__",
    "evaluate",
    "finetune",
    "load",
    "look",
    "plan",
    "train",
]

if TYPE_CHECKING:
    from .errors import Refused
    from .evaluation.before_after import finetune
    from .evaluation.evaluate import evaluate
    from .inference.classifier import Classifier
    from .inference.embedder import Embedder
    from .inference.fill_mask import FillMask
    from .inference.generator import Generator
    from .inference.load import load
    from .inference.translator import Translator
    from .insight.look import look
    from .settings import TrainSettings
    from .training.forecast import Forecast
    from .training.run import Run

_HOMES = {
    "Classifier": "inference.classifier",
    "Embedder": "inference.embedder",
    "FillMask": "inference.fill_mask",
    "Generator": "inference.generator",
    "Refused": "errors",
    "Translator": "inference.translator",
    "evaluate": "evaluation.evaluate",
    "finetune": "evaluation.before_after",
    "load": "inference.load",
    "look": "insight.look",
}


def train(data: str = "stdlib", /, *, config: str | None = None, **settings: Any) -> Run:
    """Train a model: the same settings as `transom train`, as keywords.

    A section is a dict, a dotted name or its short form: `train("notes/", model="gpt", budget="10min",
    optim={"lr": 3e-4})`, `train(**{"model.n_layers": 6})`. Gives a Run: its `model` (as `load` gives it),
    `loss`, `references` (the baselines), `sentence` (what the loss means), `sample`, `metrics`, `ledger`.

    data: what to learn from, as `data.source`. config: a TOML file of settings, over which the keywords go.
    Raises Refused for a setting that cannot be, and for data that cannot be learned from.
    """
    from .training.loop import train as run_training

    return run_training(_settings(data, config, settings))


def plan(data: str = "stdlib", /, *, config: str | None = None, **settings: Any) -> Forecast:
    """What the run would cost that `train` makes of the same words: a Forecast of parameters, memory, steps,
    tokens, passes through the data, seconds and energy. Nothing is learned.

    Takes what `train` takes. Raises Refused as `train` does.
    """
    from .training.forecast import plan as forecast

    return forecast(_settings(data, config, settings))


def _settings(data: str, config: str | None, given: dict[str, Any]) -> TrainSettings:
    from .settings import TrainSettings, load

    return load(TrainSettings, {"data.source": data, **given} if data != "stdlib" else given, config)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'transom' has no attribute '{name}'")
    home, _, called = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f"transom.{home}"), called or name)


def __dir__() -> list[str]:
    return sorted(__all__)
