"""Where a store is: a folder of this machine, or `postgresql://USER@HOST/DATABASE#SCHEMA`.

Read next: folder_store, postgres_store.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from . import folder_store, postgres_store
from .folder_store import FolderStore
from .postgres_store import PostgresStore, is_postgres
from .store import Store


def open_store(place: str | Path) -> Store:
    """Open the newest generation of a store. Raises Refused for what is none, or cannot be reached."""
    return PostgresStore(str(place)) if is_postgres(place) else FolderStore(place)


def create_store(place: str | Path, embedder: Mapping[str, Any] | None) -> Store:
    """Make an empty store, to be searched with this embedder. Raises Refused where something else is."""
    return (PostgresStore if is_postgres(place) else FolderStore).create(str(place), embedder)


def exists(place: str | Path) -> bool:
    """Whether there is a store."""
    return (
        postgres_store.exists(str(place))
        if is_postgres(place)
        else (Path(place) / folder_store.INDEX).is_file()
    )


def writing(place: str | Path) -> AbstractContextManager[None]:
    """Be the only one that writes to a store. Raises Refused where another process is."""
    return postgres_store.writing(str(place)) if is_postgres(place) else folder_store.writing(place)


def shown(place: str | Path) -> str:
    """A place for a message: without a password."""
    return postgres_store.shown(str(place)) if is_postgres(place) else str(place)


def name_of(place: str | Path) -> str:
    """What a store is called, where nobody gave it a name."""
    return postgres_store.schema_of(str(place)) if is_postgres(place) else Path(place).name
