"""A real server on loopback, in a thread: tiny models of every kind, the official clients, no mocks."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server import models
from transom.server.app import App, make_app
from transom.server.keys import Keys
from transom.server.memory import MemoryStore
from transom.server.models import serve_folders
from transom.server.serve import DrainingServer
from transom.server_settings import ServerSettings
from transom.settings import load as load_settings

KINDS: dict[str, Callable[[Path], Path]] = {
    "crow": lambda folder: models.decoder(folder),
    "plain": lambda folder: models.decoder(folder, chat=False),
    "lstm": lambda folder: models.decoder(folder, chat=False, cell="lstm"),
    "moses": models.translator,
    "sorter": lambda folder: models.encoder(folder, "classify"),
    "vector": lambda folder: models.encoder(folder, "embed"),
}


class Running:
    """A server that runs, and where."""

    def __init__(self, app: App, url: str, server: DrainingServer) -> None:
        self.app, self.url, self.server = app, url, server
        self.port = int(url.rpartition(":")[2])

    def client(self, **more: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, **more)

    @property
    def own(self) -> dict[str, str]:
        """The header of whoever opened the page by the address that was printed."""
        return {"x-transom-memory": self.app.state.memory.token}

    @property
    def page(self) -> str:
        """That address."""
        memory = self.app.state.memory
        return self.url if memory is None else f"{self.url}/#memory={memory.token}"

    def in_flight(self) -> int:
        """Sequences that some engine works on, or that wait for one."""
        workers = [model.worker for model in self.app.state.models.values()]
        engines = [worker.engine for worker in workers if worker.engine is not None]
        return sum(worker.in_flight for worker in workers) + sum(engine.busy for engine in engines)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of models as a run leaves them: NAME/model."""
    root = tmp_path_factory.mktemp("runs")
    return {name: make(root / name / "model") for name, make in KINDS.items()}


@contextmanager
def serving(
    folders: Mapping[str, Path],
    *names: str,
    keys: tuple[str, ...] = (),
    memory: Path | None = None,
    **settings: Any,
) -> Iterator[Running]:
    """Serve some of the models while the block runs."""
    checked = load_settings(ServerSettings, {"port": 0, **settings})
    app = make_app(
        serve_folders([str(folders[name]) for name in names], checked), checked, Keys(keys),
        None if memory is None else MemoryStore(memory),
    )  # fmt: skip
    with run(app, checked) as running:
        yield running


@contextmanager
def run(app: App, settings: ServerSettings) -> Iterator[Running]:
    """An application in a thread with a loop of its own, as `transom serve` runs it."""
    bound = socket.create_server(("127.0.0.1", 0))
    server = DrainingServer(app, settings)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            asyncio.run(server.serve(sockets=[bound]))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, name="server")
    thread.start()
    try:
        while not server.started and thread.is_alive():
            thread.join(0.01)
        assert not failed, failed
        yield Running(app, f"http://127.0.0.1:{bound.getsockname()[1]}", server)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive() and not failed, failed


@pytest.fixture(scope="session")
def server(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server with a model of every kind."""
    memory = tmp_path_factory.mktemp("memory") / "memory.sqlite"
    with serving(folders, *KINDS, memory=memory) as running:
        yield running


@pytest.fixture(scope="session")
def http(server: Running) -> Iterator[httpx.Client]:
    with server.client(headers=server.own) as client:
        yield client
