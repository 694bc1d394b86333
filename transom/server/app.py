"""The application: every route there is, and the door before them.

    protocol (deadlines) -> Guard (who, from where) -> Endpoint (what is asked) -> handler -> Worker (engine)

Read next: guard, endpoint, models.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route, Router

from transom.server_settings import ServerSettings

from . import memory as memory_routes
from . import openapi, static, status
from .chat import chat
from .chat_schema import AskBody, ChatBody, PassageBody, ResponseBody, TokenizeBody
from .completions import completions
from .endpoint import Endpoint
from .errors import ApiError
from .guard import Guard
from .keys import Keys
from .knowledge import ask, open_knowledge, passage
from .look import look
from .look_schema import LookBody
from .models import ServedModel
from .responses import responses
from .schema import ClassifyBody, CompletionBody, DetokenizeBody, EmbeddingBody, TranslateBody
from .state import State
from .task_routes import classify, detokenize, embeddings, tokenize, translate

WRITES = ("generate", "chat")
GONE = 499
"""The status that an answer is counted under whose client left before it began, as nginx has it."""
POSTS = {
    "/v1/chat/completions": (ChatBody, WRITES, chat),
    "/v1/responses": (ResponseBody, WRITES, responses),
    "/v1/completions": (CompletionBody, WRITES, completions),
    "/v1/embeddings": (EmbeddingBody, ("embed",), embeddings),
    "/translate": (TranslateBody, ("translate",), translate),
    "/classify": (ClassifyBody, ("classify",), classify),
    "/tokenize": (TokenizeBody, (), tokenize),
    "/detokenize": (DetokenizeBody, (), detokenize),
    "/ask": (AskBody, (), ask),
    "/passage": (PassageBody, (), passage),
    "/look": (LookBody, (*WRITES, "translate"), look),
}
"""Path -> the body it takes, the kinds of model that answer there, and who answers."""


class App:
    """The whole of it, as uvicorn runs it; `drain` lets it end well."""

    def __init__(
        self, models: Mapping[str, ServedModel], settings: ServerSettings, keys: Keys, memory: Any = None
    ) -> None:
        self.state = State(models, settings, memory, open_knowledge(settings), keys.labels)
        page, doors = static.files(), []
        routes: list[BaseRoute] = [
            Route(path, Endpoint(self.state, body, tasks, handler), methods=["POST"])
            for path, (body, tasks, handler) in POSTS.items()
        ]
        routes += status.routes(self.state, doors) + memory_routes.routes(self.state) + static.routes(page)
        routes += [openapi.route(POSTS)]
        self.router = Router(routes, redirect_slashes=False, default=static.missing, lifespan=self._lifespan)
        self.guard = Guard(self._measured, settings, keys, {"/health", *page})
        doors.append(self.guard)
        self.paths = frozenset(getattr(route, "path", "") for route in routes)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.guard(scope, receive, send)

    async def _measured(self, scope: Any, receive: Any, send: Any) -> None:
        """Count what is answered, by route and status; a path that is no route has no name of its own."""
        if scope["type"] != "http":
            return await self.router(scope, receive, send)
        route, began, code = scope["path"] if scope["path"] in self.paths else "other", perf_counter(), GONE

        async def counted(message: Any) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            await self.router({**scope, "app": self}, receive, counted)
        except ApiError as error:
            code = error.status
            raise
        except HTTPException as error:  # the router's own: a method that the path does not have
            code = error.status_code
            message = f"{scope['method'][:20]} is not for this path"
            raise ApiError(code, message, headers=dict(error.headers or {})) from None
        except Exception:
            code = 500
            raise
        finally:
            metrics = self.state.metrics
            metrics.answers.labels(route, str(code)).inc()
            metrics.seconds.labels(route).observe(perf_counter() - began)

    @asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncIterator[None]:
        for worker in self.state.workers:
            worker.start()
        watch = asyncio.create_task(self.state.metrics.watch_loop())
        try:
            yield
        finally:
            watch.cancel()
            await asyncio.to_thread(self.state.close)

    async def drain(self) -> None:
        """Take nothing new, let what is being answered end, and after the grace end it with a clear error."""
        self.guard.draining = True
        try:
            async with asyncio.timeout(self.state.settings.deadlines.grace):
                while self.state.in_flight:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            self.state.end_all()
            await asyncio.sleep(0.1)


def make_app(
    models: Mapping[str, ServedModel], settings: ServerSettings, keys: Keys | None = None, memory: Any = None
) -> App:
    """An ASGI application that serves these models; without keys it is open to whoever reaches it."""
    return App(models, settings, keys or Keys(), memory)
