"""A model that is served: its name, what it is for, and the worker that runs it.

Read next: worker, state.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from transom.checkpoint.hub import name_of, resolve
from transom.data.chat_template import ChatTemplate, template_of
from transom.errors import Refused, nearest
from transom.inference.encoder_engine import EncoderEngine
from transom.inference.engine import EngineSettings
from transom.inference.load import load
from transom.server_settings import ServerSettings

from .output_parser import END_THINK, THINK
from .tool_calls import CallSyntax, syntax_of
from .worker import Worker

TASKS = {"Translator": "translate", "Classifier": "classify", "Embedder": "embed"}
SAMPLED = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
SPARE = 64
"""Tokens of the cache that no one request gets: it is cut into blocks."""
LISTS = 4
"""Requests of one API key, with as many texts as one may have, that wait together at most."""


@dataclass
class ServedModel:
    """One model of a server."""

    name: str
    task: str
    """`generate`, `chat` (it has a chat template), `translate`, `classify` or `embed`."""
    model: Any
    """What `transom.load` gave: a Generator, Translator, Classifier or Embedder."""
    worker: Worker
    template: ChatTemplate | None = None
    ends: frozenset[int] = frozenset()
    """Tokens that end an answer in a chat, besides the model's own."""
    default_system: str | None = None
    """What the template says where no system text is given; None where it takes none."""
    aliases: frozenset[str] = frozenset()
    """What else a client may call it, where no other model is called so too."""
    folder: Path | None = None
    base: str | None = None
    """The name of the model that it is an adapter of."""
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def max_len(self) -> int:
        """The most tokens that it takes, prompt and answer together."""
        return getattr(self.model, "max_tokens", None) or self.model.model.config.max_len

    @property
    def room(self) -> int:
        """The most tokens that one request may come to hold: what the model reads, or the cache if less."""
        cache = self.worker.figures.get("cache_tokens")
        return self.max_len if cache is None else min(self.max_len, int(cache) - SPARE)

    @cached_property
    def call_syntax(self) -> CallSyntax:
        """How it writes calls of tools."""
        return syntax_of("" if self.template is None else self.template.text)

    @cached_property
    def markers(self) -> dict[int, str]:
        """Tokens that mark calls and reasoning, of those that make no text."""
        tokenizer = self.model.tokenizer
        names = (THINK, END_THINK, self.call_syntax.opener, self.call_syntax.closer, "[ARGS]", "[CALL_ID]")
        ids = {tokenizer.backend.token_to_id(name): name for name in names if name}
        return {id: name for id, name in ids.items() if id is not None and not tokenizer.decode([id])}

    @cached_property
    def thinks(self) -> bool:
        """Whether its answers may begin with reasoning."""
        known = self.model.tokenizer.backend.token_to_id(THINK) is not None
        return known or (self.template is not None and END_THINK in self.template.text)

    def opens_reasoning(self, prompt: Sequence[int]) -> bool:
        """Return whether a prompt ends where reasoning begins."""
        tail = [self.markers.get(token) or self.model.tokenizer.decode([token]) for token in prompt[-8:]]
        return self.thinks and "".join(tail).rstrip().endswith(THINK)

    def to_dict(self) -> dict[str, Any]:
        """Its entry in `/v1/models`."""
        return {
            "id": self.name, "object": "model", "created": self.created, "owned_by": "transom",
            "parent": self.base, "task": self.task, "max_len": self.max_len,
            "chat": self.template is not None, "parameters": self.model.model.n_parameters,
            "labels": list(getattr(self.model, "labels", ())) or None,
            **self._usual(),
            "default_system": self.default_system,
        }  # fmt: skip

    def _usual(self) -> dict[str, Any]:
        """Return what holds where a request does not say: the folder's word, else Transom's."""
        if self.task == "translate":
            return {"beam": self.model.beam}
        if self.task in ("classify", "embed"):
            return {}
        usual = self.model.params({}, chat=self.task == "chat")
        return {"sampling": {name: getattr(usual, name) for name in SAMPLED}}


def serve_folders(folders: Sequence[str], settings: ServerSettings) -> dict[str, ServedModel]:
    """Load each folder or hub id and make it ready; raises Refused for one without a job or its own name."""
    if not folders and not settings.index:
        raise Refused("name at least one model folder: transom serve runs/NAME/model")
    models: dict[str, ServedModel] = {}
    adapters = adapters_of([name_of(given) for given in folders], settings.adapter)
    for given in folders:
        name, folder = name_of(given), resolve(given)
        if name in models:
            raise Refused(f"two models are called '{name}'; rename a folder, for clients choose by that name")
        own = adapters.get(name, {})
        model = load(
            folder, dtype=settings.dtype, device=settings.device, adapters=own, weights=settings.weights
        )
        base = serve_model(model, name, settings, folder=folder, aliases={given, folder.name})
        models[name] = base
        for adapter, one in getattr(model, "adapters", {}).items():
            place, called = resolve(own[adapter]), f"{name}:{adapter}"
            models[called] = serve_model(one, called, settings, folder=place, over=base)
    return models


def adapters_of(models: Sequence[str], given: Sequence[str]) -> dict[str, dict[str, str]]:
    """The adapters of each model, by name, as `--adapter` gives them. Raises Refused for what is unclear."""
    found: dict[str, dict[str, str]] = {}
    for said in given:
        called, equals, folder = said.partition("=")
        model, colon, name = called.rpartition(":")
        if not (equals and folder and re.fullmatch(r"[\w.-]+", name)):
            raise Refused(f"--adapter {said}: give NAME=FOLDER, or MODEL:NAME=FOLDER")
        if not colon and len(models) > 1:
            raise Refused(f"--adapter {said}: over which of {', '.join(models)}? give MODEL:{said}")
        model = model if colon else models[0]
        if model not in models:
            raise Refused(f"--adapter {said}: no model is called '{model}'{nearest(model, models)}")
        if name in found.setdefault(model, {}):
            raise Refused(f"--adapter {said}: {model} has an adapter of that name already")
        found[model][name] = folder
    return found


def serve_model(
    model: Any,
    name: str,
    settings: ServerSettings,
    *,
    folder: Path | None = None,
    aliases: Iterable[str] = (),
    over: ServedModel | None = None,
) -> ServedModel:
    """Take a loaded model as one that is served; its worker is not started yet. over: the model that it is an
    adapter of, whose worker is its own too.
    """
    kind = type(model).__name__
    if kind not in ENGINES:
        raise Refused(
            f"{folder or name}: a {kind} has no route here; fine-tune it to classify or embed first"
        )
    texts = getattr(model, "folder", None) or folder
    template = _template(texts, settings.chat_template) if kind == "Generator" else None
    if template is not None:
        template.name = f"the chat template of {name}"  # clients hear of it: no path of the operator
    ends = frozenset() if template is None else template.end_ids(model.tokenizer)
    system = None if template is None else template.default_system(model.tokenizer)
    task = TASKS.get(kind, "chat" if template is not None else "generate")
    worker = over.worker if over else Worker(ENGINES[kind](model, settings), name, settings.limits.looks)
    base = over.name if over else None
    return ServedModel(name, task, model, worker, template, ends, system, frozenset(aliases), folder, base)


def _template(folder: Path | None, given: str | None) -> ChatTemplate | None:
    """Return the template of the model folder; the one given where it has none that can be read."""
    instead = template_of(None, given)
    try:
        return template_of(folder, None) or instead
    except Refused:
        if instead is None:
            raise
        return instead


def _text_engine(model: Any, settings: ServerSettings) -> Callable[[], Any]:
    """Return how an engine for text is made, and made again."""
    bounds = _engine_settings(settings)
    return lambda: model.engine(bounds, n_tokens=settings.cache_tokens, deterministic=settings.deterministic)


def _engine_settings(settings: ServerSettings) -> EngineSettings:
    limits = settings.limits
    return EngineSettings(
        max_rows=settings.max_rows, max_queue=limits.queue, max_queue_tokens=limits.queue_tokens,
        draft=settings.draft,
    )  # fmt: skip


def _encoder_engine(model: Any, settings: ServerSettings) -> Callable[[], Any]:
    """Texts wait one by one, so there is room for several requests' worth of them; tokens bound them too."""
    limits = settings.limits
    bounds = EngineSettings(max_queue=LISTS * limits.texts, max_queue_tokens=limits.queue_tokens)
    return lambda: EncoderEngine(model, settings=bounds)


ENGINES: dict[str, Callable[[Any, ServerSettings], Callable[[], Any]]] = {
    "Generator": _text_engine,
    "Translator": _text_engine,
    "Classifier": _encoder_engine,
    "Embedder": _encoder_engine,
}
"""Kind of model -> how its engine is made."""
