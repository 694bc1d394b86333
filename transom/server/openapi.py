"""`/openapi.json`: routes and bodies as a schema, for tools that read one, and those that try to break us.

Read next: app.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from transom import __version__

from .endpoint import to_json

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}},
        }
    },
}
GETS = {"/health": False, "/metrics": True, "/v1/models": True, "/knowledge": True, "/props": True,
        "/memory": True}  # fmt: skip
"""Path -> whether it needs a key where there are any."""


def route(posts: Mapping[str, tuple[Any, ...]]) -> Route:
    """Return the route of the schema."""
    data = to_json(document(posts))

    async def give(request: Request) -> Response:
        return Response(data, media_type="application/json")

    return Route("/openapi.json", give, methods=["GET"])


def document(posts: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """OpenAPI 3.1 of every route that takes or gives JSON."""
    parts: dict[str, Any] = {"Error": ERROR}
    paths: dict[str, Any] = {path: {"get": _operation(path)} for path in GETS}
    for path, (body, *_) in posts.items():
        schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
        parts |= schema.pop("$defs", {})
        content = {"application/json": {"schema": schema}}
        paths[path] = {"post": {**_operation(path), "requestBody": {"required": True, "content": content}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Transom", "version": __version__},
        "paths": paths,
        "components": {"schemas": parts, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}, {}],
    }


def _operation(path: str) -> dict[str, Any]:
    error = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    return {
        "operationId": path.strip("/").replace("/", "_").replace(".", "_"),
        "responses": {
            "200": {"description": "The answer."},
            "default": {"description": "An error.", **error},
        },
    }
