"""Messages and tools as OpenAI's two interfaces for chats spell them, and what both become here.

Text only: pictures and sound are refused by name. Roles are the few that templates know.
Read next: prompts, chat, responses.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from transom.server_settings import LimitSettings

from .errors import ApiError
from .schema import (
    Body,
    Few,
    Format,
    Many,
    Name,
    Sampling,
    Share,
    StreamOptions,
    Strict,
    Temperature,
    TextFormat,
    at_most,
)

Message = dict[str, Any]
"""A message as templates take it: role, content, and what goes with it."""


class TextPart(Strict):
    type: Literal["text", "input_text", "output_text", "refusal"]
    text: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


Content = str | list[TextPart]


class CalledFunction(Strict):
    name: Name
    arguments: str


class ToolCall(Strict):
    id: Name | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Plain(Strict):
    """What a system, developer or user message is made of."""

    role: Literal["system", "developer", "user"]
    content: Content
    name: Name | None = None


class Assistant(Strict):
    role: Literal["assistant"]
    content: Content | None = None
    name: Name | None = None
    tool_calls: list[ToolCall] | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None


class ToolResult(Strict):
    role: Literal["tool"]
    content: Content
    tool_call_id: Name
    name: Name | None = None


AnyMessage = Annotated[Plain | Assistant | ToolResult, Field(discriminator="role")]


class Function(Strict):
    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[\w.-]+$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class ChatBody(Sampling):
    """`POST /v1/chat/completions`."""

    ignored: ClassVar = (
        "metadata", "moderation", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
        "reasoning_effort", "safety_identifier", "service_tier", "store", "user", "verbosity",
    )  # fmt: skip
    fixed: ClassVar = {
        "audio": (), "modalities": (["text"],), "prediction": (), "web_search_options": (),
        "function_call": ("none",), "functions": ([],), "parallel_tool_calls": (True, False),
    }  # fmt: skip

    messages: list[AnyMessage]
    max_completion_tokens: Many | None = None
    logprobs: bool | None = None
    top_logprobs: Few | None = None
    response_format: Format | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none"] = "auto"

    def check(self, limits: LimitSettings) -> None:
        super().check(limits)
        if not self.messages:
            raise ApiError(400, "messages: the list is empty", param="messages")
        at_most("messages", len(self.messages), limits.messages, "messages")
        at_most("tools", len(self.tools or ()), limits.tools, "tools")
        at_most("top_logprobs", self.top_logprobs or 0, limits.logprobs)
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs goes with logprobs: true", param="top_logprobs")
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise ApiError(400, "max_tokens and max_completion_tokens differ; give one", param="max_tokens")

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class TokenizeBody(Body):
    """`POST /tokenize`: a text, or the messages of a chat as its template writes them."""

    text: str | None = None
    messages: list[AnyMessage] | None = None

    def check(self, limits: LimitSettings) -> None:
        if (self.text is None) == (self.messages is None):
            raise ApiError(400, "give text or messages, one of the two", param="text")
        at_most("messages", len(self.messages or ()), limits.messages, "messages")


def for_template(messages: list[Any]) -> list[Message]:
    """Checked messages as plain values, without what is not there."""
    return [
        message.model_dump(exclude_none=True, exclude_defaults=True) | {"role": message.role}
        for message in messages
    ]


class InputMessage(Strict):
    """A message of the responses interface."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    id: Name | None = None
    status: str | None = None
    phase: str | None = None


class InputCall(Strict):
    type: Literal["function_call"]
    call_id: Name
    name: Name
    arguments: str
    id: Name | None = None
    status: str | None = None


class InputResult(Strict):
    type: Literal["function_call_output"]
    call_id: Name
    output: Content
    id: Name | None = None
    status: str | None = None


class FlatFunction(Function):
    """A tool as the responses interface spells it."""

    type: Literal["function"]


class FlatSchema(Strict):
    type: Literal["json_schema"]
    name: Annotated[str, Field(min_length=1, max_length=64)]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class JsonObject(Strict):
    type: Literal["json_object"]


class TextOptions(Strict):
    format: Annotated[TextFormat | JsonObject | FlatSchema, Field(discriminator="type")] | None = None
    verbosity: str | None = None


class ResponseBody(Body):
    """`POST /v1/responses`, in its text form: nothing is stored, so nothing can be referred to."""

    ignored: ClassVar = (
        "access_programs", "max_tool_calls", "metadata", "moderation", "prompt_cache_key",
        "prompt_cache_options", "prompt_cache_retention", "reasoning", "safety_identifier", "service_tier",
        "store", "user", "background_options",
    )  # fmt: skip
    fixed: ClassVar = {
        "background": (False,), "context_management": (), "conversation": (), "image": (),
        "parallel_tool_calls": (True, False), "previous_response_id": (), "prompt": (),
        "truncation": ("disabled",),
    }  # fmt: skip

    input: str | list[InputMessage | InputCall | InputResult]
    instructions: str | None = None
    max_output_tokens: Many | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_logprobs: Few | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    text: TextOptions | None = None
    tools: list[FlatFunction] | None = None
    tool_choice: Literal["auto", "none"] = "auto"
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def check(self, limits: LimitSettings) -> None:
        if not self.input:
            raise ApiError(400, "input is empty", param="input")
        if isinstance(self.input, list):
            at_most("input", len(self.input), limits.messages, "items")
        at_most("tools", len(self.tools or ()), limits.tools, "tools")
        at_most("top_logprobs", self.top_logprobs or 0, limits.logprobs)

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.top_logprobs) or "message.output_text.logprobs" in (self.include or ())

    def messages(self) -> list[Message]:
        """The same as messages for a template."""
        given: list[Message] = []
        if self.instructions is not None:
            given.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*given, {"role": "user", "content": self.input}]
        return given + [_item(item) for item in self.input]


def _item(item: InputMessage | InputCall | InputResult) -> Message:
    if isinstance(item, InputMessage):
        return {"role": item.role, "content": _text(item.content)}
    if isinstance(item, InputResult):
        return {"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)}
    function = {"name": item.name, "arguments": item.arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"id": item.call_id, "function": function}]}


def _text(content: Content) -> str:
    return (
        content
        if isinstance(content, str)
        else "\n".join(part.text or part.refusal or "" for part in content)
    )
