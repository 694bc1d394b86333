"""`/memory`: what a person asked to be remembered, to see, edit, forget and switch off.

One file is one person's. With API keys each key has its own, named after its digest; without, it is the
owner's, and only the page that was opened by the address which `serve` printed may ask: that carries a
token, kept beside the file, where others on the machine reach no more than the models. Read next:
transom.chat.memory.
"""

from __future__ import annotations

import hmac
import logging
import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from starlette.routing import Route

from transom.chat.memory import IN_PROMPT, Memory, note, used_here
from transom.errors import Refused

from .body import read_body
from .endpoint import Sender, to_json
from .errors import INTERNAL, ApiError, from_refused
from .schema import Body
from .state import State

logger = logging.getLogger("transom.server")
TOKEN = b"x-transom-memory"
"""The header in which the page says by which address it was opened."""
Words = Annotated[str, Field(min_length=1, max_length=8000)]


class FactBody(Body):
    """A fact to keep, or other words for one."""

    text: Words


class SwitchBody(Body):
    """Whether anything is kept and used."""

    enabled: bool


class RecallBody(Body):
    """What somebody said: what bears on it is wanted, and what it asks to be kept is kept."""

    text: Annotated[str, Field(max_length=1_000_000)]
    k: Annotated[int, Field(ge=1, le=50)] = IN_PROMPT


class MemoryStore:
    """The memory of whoever asks."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.token = token_of(self.path)
        self._open: dict[str, Memory] = {}

    def check(self, tenant: str, headers: list[tuple[bytes, bytes]]) -> None:
        """Raise ApiError 403 for whoever has neither an API key nor the token of the address."""
        given = dict(headers).get(TOKEN, b"")
        if not tenant and not hmac.compare_digest(given, self.token.encode()):
            raise ApiError(403, "this memory is for the page of whoever started the server: open it by the"
                           " address that transom serve printed, which ends in #memory=...",
                           code="memory_locked")  # fmt: skip

    def of(self, tenant: str) -> Memory:
        """Return the memory of one API key; '' is its owner's where there are none."""
        if tenant not in self._open:
            path = (
                self.path.with_name(f"{self.path.stem}-{tenant}{self.path.suffix}") if tenant else self.path
            )
            self._open[tenant] = Memory(path)
        return self._open[tenant]


def token_of(path: Path) -> str:
    """Return the token of a memory's address: kept beside it, so that the address outlives the server.

    Whoever can read that file can read the memory too. Where others can, or none can be kept, there is a new
    one with every start.
    """
    file, new = path.with_name(f"{path.name}.token"), secrets.token_urlsafe(24)
    with suppress(OSError, ValueError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with (
            suppress(FileExistsError),
            os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as made,
        ):
            made.write(new)
        found = file.read_text(encoding="ascii")
        if file.stat().st_mode & 0o077 == 0 and re.fullmatch(r"[\w-]{32}", found):
            return found
    return new


Work = Callable[[Memory, Any, int], Any]


def routes(state: State) -> list[Route]:
    """Return all routes of the memory; they answer 404 where the server remembers nothing."""

    def where(memory: Memory) -> str | None:
        """Return the file of a memory, to whom the machine belongs; an API key may be anybody's."""
        return str(memory.path) if state.memory is not None and memory.path == state.memory.path else None

    def route(path: str, method: str, body: type[Body] | None, work: Work) -> Route:
        return Route(path, MemoryRoute(state, body, work), methods=[method])

    return [
        route("/memory", "GET", None, lambda memory, _, __: {**_all(memory), "path": where(memory)}),
        route("/memory", "POST", FactBody, lambda memory, asked, _: memory.remember(asked.text).to_dict()),
        route("/memory", "PATCH", SwitchBody, _switch),
        route("/memory", "DELETE", None, lambda memory, _, __: {"forgotten": memory.forget_all()}),
        route("/memory/recall", "POST", RecallBody, _recall),
        route(
            "/memory/{id}",
            "PATCH",
            FactBody,
            lambda memory, asked, id: memory.edit(id, asked.text).to_dict(),
        ),
        route("/memory/{id}", "DELETE", None, _forget),
    ]


class MemoryRoute:
    """One route: its work is done in the pool, since it waits for a disk."""

    def __init__(self, state: State, body: type[Body] | None, work: Work) -> None:
        self.state, self.body, self.work = state, body, work

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.state.memory is None:
            raise ApiError(
                404, "this server remembers nothing; start it with --memory FILE", code="no_memory"
            )
        self.state.memory.check(scope["transom.tenant"], scope["headers"])
        asked = None
        if self.body is not None:
            asked, _ = await read_body(self.body, scope, receive, self.state)
        id = number_of(scope["path_params"].get("id", "0"))

        def work() -> Any:
            return self.work(self.state.memory.of(scope["transom.tenant"]), asked, id)

        try:
            data = await self.state.text_work(scope["transom.tenant"], lambda: to_json(work()))
        except Refused as refused:
            if refused.code == "memory_file":  # the operator's business
                logger.error("%s", refused)
                raise INTERNAL from None
            raise from_refused(refused) from None
        await Sender(send, {}).whole(data)


def number_of(id: str) -> int:
    """Return the number of a fact in a path; raises ApiError 404 for what is none."""
    if not (id.isascii() and id.isdigit() and len(id) < 20):
        raise ApiError(404, "facts have numbers: /memory/3; list the facts to see theirs")
    return int(id)


def _all(memory: Memory) -> dict[str, Any]:
    facts = [fact.to_dict() for fact in memory.facts()]
    return {"enabled": memory.enabled, "facts": facts, "used": used_here(memory)}


def _switch(memory: Memory, asked: SwitchBody, _: int) -> dict[str, Any]:
    memory.enabled = asked.enabled
    return _all(memory)


def _forget(memory: Memory, _: Any, id: int) -> dict[str, Any]:
    memory.forget(id)
    return {"forgotten": 1}


def _recall(memory: Memory, asked: RecallBody, _: int) -> dict[str, Any]:
    heard = memory.hear(asked.text, asked.k)
    return {
        "note": note(heard.facts),
        "facts": [fact.to_dict() for fact in heard.facts],
        "kept": None if heard.kept is None else heard.kept.to_dict(),
        "not_kept": heard.not_kept or None,
    }
