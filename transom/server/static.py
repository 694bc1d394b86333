"""The page: a few files, read once when the server starts and served from memory, whole.

No directory is looked into while serving, so there is no path to escape from. Read next: app.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .errors import ApiError

FOLDER = Path(__file__).with_name("page")
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
}


def files() -> dict[str, tuple[bytes, str]]:
    """Path in the API -> bytes and kind, for every file of the page."""
    found = {
        f"/page/{path.name}": (path.read_bytes(), KINDS[path.suffix])
        for path in sorted(FOLDER.iterdir())
        if path.is_file() and path.suffix in KINDS
    }
    if "/page/index.html" in found:
        found["/"] = found.pop("/page/index.html")
    return found


def routes(served: dict[str, tuple[bytes, str]]) -> list[Route]:
    """Return one route for each file."""
    return [Route(path, _giver(data, kind), methods=["GET"]) for path, (data, kind) in served.items()]


def _giver(data: bytes, kind: str) -> Any:
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'

    async def give(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"etag": tag})
        return Response(data, media_type=kind, headers={"etag": tag})

    return give


async def missing(scope: Any, receive: Any, send: Any) -> None:
    """Refuse what is nowhere."""
    raise ApiError(404, f"there is nothing at {ascii(scope['path'][:200])}; /v1/models and / are here",
                   code="not_found")  # fmt: skip
