"""`transom serve`: load, bind, say where, run, and end well.

The first SIGTERM or SIGINT drains: nothing new is taken, what is being answered ends, the exit code is 0.
The second one ends at once. Read next: app, protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import uvicorn

from transom.chat.memory import default_path
from transom.errors import Refused
from transom.inference.dtype import in_words
from transom.server_settings import ServerSettings

from .app import App
from .keys import read_keys
from .knowledge import told
from .memory import MemoryStore
from .models import ServedModel, serve_folders
from .protocol import FLOOD, protocol

ABORTED = 1
AT_ONCE = 16
"""Connections that the event loop takes up before it looks at the others again: a crowd must not stop it."""
AFTER_DRAIN = 2
"""Seconds for the last bytes to leave, once all answers have ended."""


def serve(folders: Sequence[str], settings: ServerSettings, tell: Callable[[Announcement], None]) -> int:
    """Serve models until a signal, and tell where once they can be asked; the exit code. Raises Refused."""
    keys, made = read_keys(settings)
    with listening(settings) as bound:
        models, memory = serve_folders(folders, settings), memories(settings)
        server = DrainingServer(App(models, settings, keys, memory), settings)
        host, port = bound.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        page = f"{url}/#memory={memory.token}" if memory and not keys else f"{url}/"
        server.when_up = lambda: tell(
            Announcement(
                url,
                page,
                list(models.values()),
                made,
                not keys and not settings.loopback,
                told(server.app.state.knowledge, bool(keys)),
            )  # fmt: skip
        )
        gc.collect()
        gc.freeze()  # else what is loaded is gone through whenever a large body is parsed, for 0.1 s
        server.run(sockets=[bound])
    return ABORTED if server.force_exit else 0


def memories(settings: ServerSettings) -> MemoryStore | None:
    """Return where the memory lies, if there is to be one."""
    if settings.no_memory or (settings.memory is None and not settings.loopback):
        return None
    return MemoryStore(settings.memory or default_path())


@contextlib.contextmanager
def listening(settings: ServerSettings) -> Iterator[socket.socket]:
    """A socket bound before any model is loaded, so that a port in use is known at once; raises Refused."""
    try:
        found = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(found[0], socket.SOCK_STREAM)
    except OSError as error:
        raise Refused(f"--host {settings.host}: {(error.strerror or str(error)).lower()}") from None
    with bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(found[4])
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise Refused(
                f"port {settings.port} of {settings.host}: {why}; --port 0 takes a free one"
            ) from None
        bound.set_inheritable(False)
        yield bound


@dataclass(frozen=True)
class Announcement:
    """What an operator is told once a server is up."""

    url: str
    page: str
    """The address of the page; without API keys it ends in the token that opens the memory."""
    models: list[ServedModel]
    made_key: str
    """The key that was made just now, which is never shown again."""
    public: bool
    """Whether other machines may ask without a key."""
    knowledge: Sequence[str] = ()
    """Lines about the knowledge bases."""

    def __str__(self) -> str:
        lines = [f"{one.name}: {one.task}; {in_words(one.model.model)}" for one in self.models]
        lines += [
            f"{one.name}: computed {by}" for one in self.models if (by := getattr(one.model, "runs_by", ""))
        ]
        lines += [
            f"{model.name}: no chat template, so it completes but does not chat (see --chat-template)"
            for model in self.models
            if model.task == "generate"
        ]
        lines += self.knowledge
        lines += [f"API key, shown this once: {self.made_key}"] * bool(self.made_key)
        lines += ["warning: whoever reaches this address can use these models"] * self.public
        if "#" in self.page:
            lines += [f"{self.page}  the page with your memory; keep this address to yourself"]
        return "\n".join([*lines, f"{self.url}  API at /v1, page at /; Ctrl-C to stop"])

    def to_dict(self) -> dict[str, Any]:
        models = [model.to_dict() for model in self.models]
        return {"url": self.url, "page": self.page, "models": models, "api_key": self.made_key or None}


class DrainingServer(uvicorn.Server):
    """uvicorn with our protocol, our ways with signals, and no log of what is asked."""

    def __init__(self, app: App, settings: ServerSettings) -> None:
        self.app, self.settings = app, settings
        logging.getLogger("uvicorn.error").addFilter(_quiet)
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol(settings),
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=AT_ONCE,
                timeout_keep_alive=settings.deadlines.idle,  # type: ignore[arg-type]
                timeout_graceful_shutdown=AFTER_DRAIN,
                h11_max_incomplete_event_size=settings.limits.header_bytes,
            )
        )
        self.when_up: Callable[[], None] = lambda: None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        for listener in sockets or ():  # more may wait with the kernel than are taken at once
            listener.listen(FLOOD * self.settings.limits.connections)
        if self.started:
            self.when_up()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Drain at the first signal, end at the second; neither is raised again afterwards."""
        if self.app.guard.draining or not self.started:
            self.should_exit = self.force_exit = True
            return
        self.app.guard.draining = True
        self._loop.call_soon_threadsafe(self.begin_drain)

    def begin_drain(self) -> None:
        """Drain, then exit."""
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        await self.app.drain()
        self.should_exit = True


def _quiet(record: logging.LogRecord) -> bool:
    """uvicorn's news are not ours, and what it warns of any client can cause: a flood could fill a disk."""
    return record.levelno >= logging.ERROR
