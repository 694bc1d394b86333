"""What a client is told when something is wrong: OpenAI's shape, our one line, nothing from inside.

An `ApiError` is raised anywhere on a request's way and becomes a JSON answer, or an event where the answer
has begun. Whatever else is raised is our bug: the client hears that and no more. Read next: app, guard.
"""

from __future__ import annotations

import json
from typing import Any

from transom.errors import Refused

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """An answer that is an error: HTTP status, one line, and which field it is about."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, " ".join(message.split()), param, code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """OpenAI's error object; 503 says that the same request may be sent again."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error | ({"retryable": True} if self.status in (429, 503) else {})}


def busy(message: str, seconds: float = 1.0) -> ApiError:
    """429: too much is waiting; the client may come back in so many seconds."""
    again = str(max(1, round(seconds)))
    return ApiError(429, message, code="overloaded", headers={"retry-after": again})


def unavailable(message: str, seconds: float = 1.0) -> ApiError:
    """503: nothing is wrong with the request, and it may be sent again."""
    again = str(max(1, round(seconds)))
    return ApiError(503, message, code="unavailable", headers={"retry-after": again})


def from_refused(refused: Refused, param: str | None = None) -> ApiError:
    """Tell a client of a refusal: 429 when it names a time to wait, 500 for the model's fault, else 400."""
    seconds = getattr(refused, "retry_after", None)
    if seconds is not None:
        return busy(str(refused), seconds)
    if refused.code == "logits_not_finite":
        return ApiError(500, str(refused))
    return ApiError(400, str(refused), param=param, code=refused.code or None)


INTERNAL = ApiError(500, "something went wrong inside the server; the operator's log has more")


async def answer_error(error: ApiError, send: Any) -> None:
    """Send the whole HTTP answer that says so."""
    body = json.dumps(error.body()).encode()
    plain = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    headers = [(name.encode(), value.encode()) for name, value in plain.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
