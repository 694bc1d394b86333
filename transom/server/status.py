"""What a server says of itself: `/health`, `/metrics`, `/v1/models`, `/props`. Read next: app."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from transom import __version__
from transom.data.in_folder import read_text

from .endpoint import to_json
from .guard import Guard
from .models import ServedModel
from .state import State

MOST_CARD = 1 << 20


def routes(state: State, guard: list[Guard]) -> list[Route]:
    """Return the routes; `guard` holds the door once it is there."""

    async def health(request: Request) -> Response:
        """200 while every model can answer; 503 while one cannot, or while the server drains."""
        failed = [name for name, model in state.models.items() if model.worker.failed]
        draining = any(door.draining for door in guard)
        said = "draining" if draining else "failed" if failed else "ok"
        return _json({"status": said, "failed": failed}, 503 if failed or draining else 200)

    async def metrics(request: Request) -> Response:
        return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(request: Request) -> Response:
        return _json({"object": "list", "data": [model.to_dict() for model in state.models.values()]})

    async def knowledge(request: Request) -> Response:
        data = [{"id": name, "object": "knowledge_base"} for name in state.knowledge]
        return _json({"object": "list", "data": data})

    async def model(request: Request) -> Response:
        return _json(state.find(request.path_params["name"]).to_dict())

    async def props(request: Request) -> Response:
        served = state.find(request.query_params.get("model"))
        return _json(await state.text_work(request.scope["transom.tenant"], _props, served, state))

    return [
        Route("/health", health, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{name:path}", model, methods=["GET"]),
        Route("/knowledge", knowledge, methods=["GET"]),
        Route("/props", props, methods=["GET"]),
    ]


def _json(value: Any, status: int = 200) -> Response:
    return Response(to_json(value), status, media_type="application/json")


def _props(served: ServedModel, state: State) -> dict[str, Any]:
    """Return all that there is to know of one model: shape, limits, template, and how it was trained."""
    model = served.model.model
    return {
        **served.to_dict(),
        "version": __version__,
        "n_parameters": model.n_parameters,
        "vocab_size": model.config.vocab_size,
        "dtype": str(model.embed.weight.dtype).removeprefix("torch."),
        "device": str(model.embed.weight.device),
        "labels": list(getattr(served.model, "labels", ())) or None,
        "chat_template": None if served.template is None else served.template.text,
        "limits": state.settings.limits.to_dict(),
        "deterministic": state.settings.deterministic,
        "memory": state.memory is not None,
        "run": _ledger(served.folder),
    }


def _ledger(folder: Path | None) -> dict[str, Any] | None:
    """Return what the run that made the model wrote down of itself: data, time, energy, scores."""
    if folder is None:
        return None
    try:
        text = read_text(folder.resolve().parent, "ledger.json", MOST_CARD, "too long")
        found = None if text is None else json.loads(text)
    except (ValueError, RecursionError):  # Refused too: a model is served without what is told of its run
        return None
    return found if isinstance(found, dict) else None
