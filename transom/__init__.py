"""Transom: train it, run it and see through it; the Transformer family on the machine you have.

What is named here is the public API and nothing else is. Each name is imported when it is first used, so
`import transom` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Refused", "__version__", "load", "look", "train"]

if TYPE_CHECKING:
    from .errors import Refused
    from .inference.load import load
    from .insight.look import look
    from .training.loop import Run

_HOMES = {
    "Refused": "transom.errors",
    "load": "transom.inference.load",
    "look": "transom.insight.look",
}


def train(data: str = "stdlib", /, *, config: str | None = None, **settings: Any) -> Run:
    """Train a model: the same settings as `transom train`, as keywords; returns the finished run.

    A section is a dict, a dotted name or its short form: `train("notes/", model="gpt", budget="10min",
    optim={"lr": 3e-4})`, `train(**{"model.n_layers": 6})`. Raises Refused for a setting that cannot be.
    """
    kept = importlib.import_module("transom.settings")
    loop = importlib.import_module("transom.training.loop")
    given = {"data.source": data, **settings} if data != "stdlib" else settings
    return loop.train(kept.load(kept.TrainSettings, given, config))


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'transom' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
