"""Messages and tools as OpenAI's two interfaces for chats spell them, and what both become here.

Text only: pictures and sound are refused by name. Roles are the few that templates know.
Read next: prompts, chat, responses.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from transom.errors import nearest
from transom.inference.schemas import unkept
from transom.sampling_params import TopP
from transom.server_settings import LimitSettings

from .errors import ApiError
from .schema import (
    AtMost,
    Body,
    Few,
    Format,
    JsonFormat,
    Many,
    Name,
    Quick,
    Sampling,
    SchemaFormat,
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


Content = Annotated[str | Annotated[list[TextPart], Quick], AtMost("parts", "parts")]


class CalledFunction(Strict):
    name: Name
    arguments: str


class ToolCall(Strict):
    id: Name | None = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Few | None = None
    """As streams number them; the order of the list is what counts."""


class Plain(Strict):
    """What a system, developer or user message is made of."""

    role: Literal["system", "developer", "user"]
    content: Content
    name: Name | None = None


class Assistant(Strict):
    role: Literal["assistant"]
    content: Content | None = None
    name: Name | None = None
    tool_calls: Annotated[list[ToolCall] | None, Quick, AtMost("tools", "calls")] = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    """Another name of the same."""
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None

    @property
    def thought(self) -> str | None:
        return self.reasoning_content or self.reasoning


class ToolResult(Strict):
    role: Literal["tool"]
    content: Content
    tool_call_id: Name
    name: Name | None = None


AnyMessage = Annotated[Plain | Assistant | ToolResult, Field(discriminator="role")]
Messages = Annotated[list[AnyMessage], Quick, AtMost("messages", "messages")]


class Function(Strict):
    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[\w.-]+$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class ToolName(Strict):
    name: Name


class NamedTool(Strict):
    """The one tool that is to be called."""

    type: Literal["function"]
    function: ToolName

    @property
    def name(self) -> str:
        return self.function.name


TemplateVariables = dict[str, bool | str | None]
"""What a request tells the chat template besides its messages (`chat_template.VARIABLES`)."""


class Grounding(Strict):
    """How a question is answered from a knowledge base."""

    knowledge_base: Name | None = None
    """Which one; may be left out where one is served."""
    generate: bool = False
    """Whether a small model too answers in its own words."""
    unsupported: Literal["mark", "drop", "fail"] = "mark"
    """What becomes of a sentence that no passage carries."""
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    """The confidence below which nothing is said, in place of the knowledge base's own."""
    loo: bool = False
    """Whether each citation tells by how much (nats) the named model finds its sentence likelier with its
    passage than without (leave one out); two passes over the passages each."""


class AskBody(Grounding, Body):
    """`POST /ask`."""

    without_model: ClassVar[bool] = True
    question: Annotated[str, Field(min_length=1)]
    explain: bool = False
    """Whether every stage is told."""
    chat_template_kwargs: TemplateVariables = {}


class PassageBody(Body):
    """`POST /passage`: a place in a document, and what stands around it."""

    without_model: ClassVar[bool] = True
    knowledge_base: Name | None = None
    document: Annotated[str, Field(min_length=1, max_length=4096)]
    start: Annotated[int, Field(ge=0)]
    """Characters of the document's text, as a citation has them."""
    end: Annotated[int, Field(ge=0)]
    around: Annotated[int, Field(ge=0, le=20_000)] = 2_000
    """Characters before and after it that are shown besides."""


class ChatBody(Sampling):
    """`POST /v1/chat/completions`."""

    ignored: ClassVar = (
        "metadata", "moderation", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
        "reasoning_effort", "safety_identifier", "service_tier", "store", "user", "verbosity",
    )  # fmt: skip
    fixed: ClassVar = {
        "audio": (), "modalities": (["text"],), "prediction": (), "web_search_options": (),
        "function_call": ("none",), "functions": ([],),
    }  # fmt: skip

    messages: Messages
    max_completion_tokens: Many | None = None
    logprobs: bool | None = None
    top_logprobs: Few | None = None
    response_format: Format | None = None
    tools: Annotated[list[Tool] | None, Quick, AtMost("tools", "tools")] = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True
    chat_template_kwargs: TemplateVariables = {}
    separate_reasoning: bool = True
    """Whether reasoning is told apart from the content, or stands in it between its markers."""
    knowledge_base: Name | Grounding | None = None
    """Answer the last message from this knowledge base, with citations as annotations."""

    @property
    def grounding(self) -> Grounding | None:
        """The same in full."""
        named = self.knowledge_base
        return Grounding(knowledge_base=named) if isinstance(named, str) else named

    def check(self, limits: LimitSettings) -> None:
        super().check(limits)
        if self.knowledge_base is not None:
            unfit = {"n": self.n > 1, "tools": self.tools, "response_format": self.response_format,
                     "logprobs": self.logprobs}  # fmt: skip
            if odd := [name for name, given in unfit.items() if given]:
                raise ApiError(400, f"{odd[0]} does not go with knowledge_base; leave one out", param=odd[0])
        _check_choice(self.tool_choice, self.tools)
        if not self.messages:
            raise ApiError(400, "messages: the list is empty", param="messages")
        at_most("top_logprobs", self.top_logprobs or 0, limits.logprobs)
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs goes with logprobs: true", param="top_logprobs")
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise ApiError(400, "max_tokens and max_completion_tokens differ; give one", param="max_tokens")

    @property
    def unheeded(self) -> list[str]:
        format = self.response_format
        asked = format.json_schema.schema_ if isinstance(format, SchemaFormat) else None
        return _unkept("response_format", asked) + _unkept("tools", _strict(self.tools))

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class TokenizeBody(Body):
    """`POST /tokenize`: a text, or the messages of a chat as its template writes them."""

    text: str | None = None
    messages: Messages | None = None
    chat_template_kwargs: TemplateVariables = {}

    def check(self, limits: LimitSettings) -> None:
        if (self.text is None) == (self.messages is None):
            raise ApiError(400, "give text or messages, one of the two", param="text")


def for_template(messages: list[Any]) -> list[Message]:
    """Checked messages as templates take them; what says nothing to a model (annotations) is left out."""
    return [_message(message) for message in messages]


def _message(message: Plain | Assistant | ToolResult) -> Message:
    plain: Message = {"role": message.role, "content": _text(message.content or "")}
    if message.name is not None:
        plain["name"] = message.name
    if isinstance(message, ToolResult):
        plain["tool_call_id"] = message.tool_call_id
    if isinstance(message, Assistant):
        plain["content"] = plain["content"] or message.refusal or ""
        if message.thought:
            plain["reasoning_content"] = message.thought
        if message.tool_calls:
            plain["tool_calls"] = [
                {"type": "function", "function": call.function.model_dump()}
                | ({} if call.id is None else {"id": call.id})
                for call in message.tool_calls
            ]
    return plain


def _unkept(field: str, schemas: Any) -> list[str]:
    """Return what in the schemas of a field the answer is not held to."""
    return [f"{field}: {keyword}" for keyword in unkept(schemas)]


def _strict(tools: list[Any] | None) -> list[Any]:
    functions = [getattr(tool, "function", tool) for tool in tools or ()]
    return [function.parameters for function in functions if function.strict]


def _check_choice(choice: Any, tools: list[Any] | None) -> None:
    """Raise ApiError for a choice of tools without tools, or of one that is not among them."""
    if choice in ("auto", "none"):
        return
    if not tools:
        raise ApiError(400, "tool_choice asks for a call, and there are no tools", param="tool_choice")
    names = [getattr(tool, "function", tool).name for tool in tools]
    if choice != "required" and choice.name not in names:
        close = nearest(choice.name, names)
        raise ApiError(400, f"tool_choice names '{choice.name}', which is none of the tools{close}",
                       param="tool_choice")  # fmt: skip


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


class ReasoningPart(Strict):
    type: Literal["reasoning_text", "summary_text"]
    text: str


ReasoningParts = Annotated[list[ReasoningPart], Quick, AtMost("parts", "parts")]


class InputReasoning(Strict):
    """What a model thought, as its response told it."""

    type: Literal["reasoning"]
    id: Name | None = None
    summary: ReasoningParts = []
    content: ReasoningParts = []
    encrypted_content: str | None = None
    status: str | None = None


InputItem = InputMessage | InputCall | InputResult | InputReasoning


class FlatName(ToolName):
    """The one tool that is to be called, as the responses interface spells it."""

    type: Literal["function"]


class FlatFunction(Function):
    """A tool as the responses interface spells it."""

    type: Literal["function"]


class FlatSchema(Strict):
    type: Literal["json_schema"]
    name: Annotated[str, Field(min_length=1, max_length=64)]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class TextOptions(Strict):
    format: Annotated[TextFormat | JsonFormat | FlatSchema, Field(discriminator="type")] | None = None
    verbosity: str | None = None


Included = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]


class ResponseBody(Body):
    """`POST /v1/responses`, in its text form: nothing is stored, so nothing can be referred to."""

    ignored: ClassVar = (
        "access_programs", "max_tool_calls", "metadata", "moderation", "prompt_cache_key",
        "prompt_cache_options", "prompt_cache_retention", "reasoning", "safety_identifier", "service_tier",
        "store", "user", "background_options",
    )  # fmt: skip
    fixed: ClassVar = {
        "background": (False,), "context_management": (), "conversation": (), "image": (),
        "previous_response_id": (), "prompt": (),
        "truncation": ("disabled",),
    }  # fmt: skip

    input: Annotated[str | Annotated[list[InputItem], Quick], AtMost("messages", "items")]
    instructions: str | None = None
    max_output_tokens: Many | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_logprobs: Few | None = None
    include: Annotated[list[Included] | None, Quick, AtMost("parts", "names")] = None
    text: TextOptions | None = None
    tools: Annotated[list[FlatFunction] | None, Quick, AtMost("tools", "tools")] = None
    tool_choice: Literal["auto", "none", "required"] | FlatName = "auto"
    parallel_tool_calls: bool = True
    chat_template_kwargs: TemplateVariables = {}
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def check(self, limits: LimitSettings) -> None:
        if not self.input:
            raise ApiError(400, "input is empty", param="input")
        _check_choice(self.tool_choice, self.tools)
        at_most("top_logprobs", self.top_logprobs or 0, limits.logprobs)

    @property
    def unheeded(self) -> list[str]:
        format = None if self.text is None else self.text.format
        asked = format.schema_ if isinstance(format, FlatSchema) else None
        return _unkept("text.format", asked) + _unkept("tools", _strict(self.tools))

    @property
    def sampling(self) -> Sampling:
        """What it says of how tokens are chosen."""
        return Sampling.model_validate({"temperature": self.temperature, "top_p": self.top_p})

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
        for item in self.input:
            said = _item(item)
            if given and given[-1]["role"] == said["role"] == "assistant" and _goes_on(given[-1], said):
                _join(given[-1], said)
            else:
                given.append(said)
        return given


def _item(item: InputMessage | InputCall | InputResult | InputReasoning) -> Message:
    if isinstance(item, InputMessage):
        return {"role": item.role, "content": _text(item.content)}
    if isinstance(item, InputResult):
        return {"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)}
    if isinstance(item, InputReasoning):
        thought = "\n".join(part.text for part in item.content or item.summary)
        return {"role": "assistant", "content": ""} | ({"reasoning_content": thought} if thought else {})
    function = {"name": item.name, "arguments": item.arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"id": item.call_id, "function": function}]}


def _goes_on(message: Message, said: Message) -> bool:
    """Return whether two items are parts of one answer: what was thought, then said, then called."""
    if said.get("tool_calls"):
        return True
    return not (message.get("tool_calls") or message["content"] or said.get("reasoning_content"))


def _join(message: Message, said: Message) -> None:
    message["content"] += said["content"]
    if said.get("tool_calls"):
        message["tool_calls"] = [*message.get("tool_calls", ()), *said["tool_calls"]]


def _text(content: Content) -> str:
    return (
        content
        if isinstance(content, str)
        else "\n".join(part.text or part.refusal or "" for part in content)
    )
