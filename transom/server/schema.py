"""What a client may ask, field by field; every number has its bounds here, before any work is done.

Each field that OpenAI documents is known: obeyed, or ignored and named in a header where it changes nothing
about the answer (`ignored`), or refused where it would (`fixed` tells the values that change nothing). Any
other name is refused with the nearest one. A list is counted before its items are looked at, and the first
bad item ends the look. Read next: chat_schema, prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from transom.errors import nearest
from transom.sampling_params import Biases, SamplingSettings, Stops, Temperature
from transom.server_settings import LimitSettings

from .errors import ApiError

SAID = {
    "missing": "this field is needed",
    "model_type": "input should be an object",
    "model_attributes_type": "input should be an object",
    "union_tag_not_found": "input should be an object that says which kind it is (role or type)",
}
"""What pydantic says in terms of Python, in terms of JSON."""
Name = Annotated[str, Field(min_length=1, max_length=256)]
Many = Annotated[int, Field(ge=1, lt=2**31)]
Few = Annotated[int, Field(ge=0, lt=2**31)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Truncation = Annotated[int, Field(ge=-1, lt=2**31)]
"""How many tokens of a longer text are read; -1: as many as the model reads."""
Filled = Annotated[str, Field(min_length=1)]
Quick = Field(fail_fast=True)
"""Of a list: its first bad item is complaint enough."""
Tokens = Annotated[list[TokenId], Quick]


@dataclass(frozen=True)
class AtMost:
    """How many items a list or names an object may have, before any of them is looked at.

    Its lists are `Quick` besides. Text in place of a list is nobody's concern here.
    """

    limit: str
    """The field of LimitSettings; the server's own come as the context of the validation."""
    unit: str
    one: tuple[type, ...] = ()
    """Where a list of these stands for one item, and not for many."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_before_validator_function(self._counted, handler(source))

    def _counted(self, given: Any, info: ValidationInfo) -> Any:
        if isinstance(given, list | dict) and not self._is_one(given):
            limits = info.context or LimitSettings()
            at_most(info.field_name or "", len(given), getattr(limits, self.limit), self.unit, self.limit)
        return given

    def _is_one(self, given: Any) -> bool:
        return isinstance(given, list) and bool(given) and isinstance(given[0], self.one)


class Strict(BaseModel):
    """A record from outside: exact types, no unknown name, no number that is not finite.

    null is "not given", and JSON has one kind of number: 12.0 is 12. Neither touches what a client says
    freely, such as the inside of a JSON schema.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _as_meant(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: _whole(value) for name, value in given.items() if value is not None}


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Body(Strict):
    """The body of a request."""

    ignored: ClassVar[tuple[str, ...]] = ()
    """Fields of OpenAI that would not change the answer."""
    fixed: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Fields of OpenAI that would, with the values that ask for what happens anyway."""
    also: ClassVar[dict[str, str]] = {}
    """What a field may be called too, and its name."""

    without_model: ClassVar[bool] = False
    """Whether it can be answered without a model where none is named."""

    model: Name | None = None
    """Which of the models; may be left out where one is served."""

    def check(self, limits: LimitSettings) -> None:
        """Raise ApiError for what is more than this server's limits."""

    @property
    def unheeded(self) -> list[str]:
        """What was asked for and cannot be kept to, where the answer is of use without it."""
        return []


B = TypeVar("B", bound=Body)


def read(
    kind: type[B], given: Mapping[str, Any], limits: LimitSettings, *, lenient: bool = False
) -> tuple[B, list[str]]:
    """Return a checked request, and the names of what was left out of account. Raises ApiError, one line."""
    left_out = [name for name in kind.ignored if given.get(name) is not None]
    for name, harmless in kind.fixed.items():
        if given.get(name) is not None and not any(_same(given[name], value) for value in harmless):
            raise ApiError(400, f"{name} is not supported here{_with(harmless)}; leave it out", param=name,
                           code="unsupported_parameter")  # fmt: skip
    also = {name: own for name, own in kind.also.items() if own not in given}
    known = {
        also.get(name, name): value
        for name, value in given.items()
        if name not in kind.ignored and name not in kind.fixed
    }
    try:
        asked = kind.model_validate(known, context=limits, extra="ignore" if lenient else None)
    except ValidationError as error:
        raise _complaint(error, kind, known) from None
    asked.check(limits)
    left_out += _left_out(known, asked) if lenient else ()
    return asked, left_out + asked.unheeded


def _same(given: Any, value: Any) -> bool:
    return type(_whole(given)) is type(value) and given == value


def _with(harmless: tuple[Any, ...]) -> str:
    return f" other than as {harmless[0]!r}" if harmless else ""


def _left_out(given: Any, asked: Any, where: str = "") -> Iterator[str]:
    """The names in the JSON of a client that the checked request does not have, each with its place."""
    if isinstance(asked, Strict) and isinstance(given, dict):
        fields = {field.alias or name: name for name, field in type(asked).model_fields.items()}
        for name, value in given.items():
            if name in fields:
                yield from _left_out(value, getattr(asked, fields[name]), f"{where}{name}.")
            elif value is not None:
                yield where + name
    elif isinstance(asked, list) and isinstance(given, list):
        for at, (one, checked) in enumerate(zip(given, asked, strict=True)):
            yield from _left_out(one, checked, f"{where}{at}.")


def _place(given: Any, loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Say where in the body a complaint is: pydantic's path without its names for the branches of unions."""
    place: list[int | str] = []
    for at, part in enumerate(loc):
        if isinstance(given, Mapping) and (part in given or at == len(loc) - 1):
            given = given.get(part)
        elif isinstance(given, list) and isinstance(part, int) and part < len(given):
            given = given[part]
        else:
            continue
        place.append(part)
    return tuple(place)


def _complaint(error: ValidationError, kind: type[Body], given: Mapping[str, Any]) -> ApiError:
    """Pydantic's deepest complaint as one line: the field, what is wrong, the nearest name.

    The value itself is not repeated: it may be long, and it is the client's own.
    """
    complaints = error.errors(include_url=False, include_input=False, include_context=False)
    first = max(complaints, key=lambda complaint: len(complaint["loc"]))
    path = _place(given, first["loc"])
    name = ".".join(map(str, path))[:200]
    if first["type"] == "extra_forbidden":
        known = [*kind.model_fields, *kind.ignored, *kind.fixed]
        close = nearest(name[:100], known) if len(path) == 1 else ""
        return ApiError(400, f"'{name}' is not a field of this request{close}", param=name,
                        code="unknown_parameter")  # fmt: skip
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    if first["type"] == "value_error":  # in our words, with the name
        return ApiError(400, first["msg"].removeprefix("Value error, "), param=name or None, code=code)
    said = SAID.get(first["type"]) or first["msg"][:1].lower() + first["msg"][1:300]
    return ApiError(400, f"{name or 'the request'}: {said}", param=name or None, code=code)


class StreamOptions(Strict):
    """What comes with a stream."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class JsonSchema(Strict):
    """A schema that the answer must follow."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    description: str | None = None
    strict: bool | None = None


class TextFormat(Strict):
    type: Literal["text"]


class JsonFormat(Strict):
    type: Literal["json_object"]


class SchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema


Format = Annotated[TextFormat | JsonFormat | SchemaFormat, Field(discriminator="type")]


class Sampling(SamplingSettings, Body):
    """What every request for text may say about how its tokens are chosen, and how it is sent."""

    temperature: Temperature = 1.0
    logit_bias: Annotated[Biases, AtMost("logit_bias", "tokens")] = ()
    stop: Annotated[Stops, AtMost("stop", "strings")] = ()
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    prefix_tokens: Tokens = []
    """The answer goes on after these tokens as if they had been its beginning; it does not repeat them."""

    @property
    def drawn(self) -> dict[str, Any]:
        """What was asked of the sampler, by name."""
        asked = self.model_fields_set & SamplingSettings.model_fields.keys()
        return {name: getattr(self, name) for name in asked}

    @property
    def with_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def check(self, limits: LimitSettings) -> None:
        at_most("n", self.n, limits.n)
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options goes with stream: true", param="stream_options")


def at_most(name: str, value: int, limit: int, unit: str = "", setting: str = "") -> None:
    """Raise ApiError where a value is above its limit, which an operator sets by the name of `setting`."""
    if value > limit:
        what = f"{value:,} {unit}".strip()
        where = f" (--limits.{setting.replace('_', '-')})" if setting else ""
        message = f"{name} is {what}; the limit is {limit:,}{where}"
        raise ApiError(400, message, param=name, code="above_limit")


class CompletionBody(Sampling):
    """`POST /v1/completions`.

    A prompt that spells a control token is plain text, as all content is; control tokens are given as ids.
    """

    ignored: ClassVar = ("user",)
    fixed: ClassVar = {"suffix": ("",), "best_of": (1,)}

    prompt: Annotated[
        str | Annotated[list[str], Quick] | Tokens | Annotated[list[Tokens], Quick],
        AtMost("prompts", "prompts", one=(int, float)),
    ]
    logprobs: Few | None = None
    echo: bool = False

    @property
    def prompts(self) -> list[Any]:
        """Each prompt by itself, as text or token ids."""
        single = isinstance(self.prompt, str) or (self.prompt and isinstance(self.prompt[0], int))
        return [self.prompt] if single else list(self.prompt)

    def check(self, limits: LimitSettings) -> None:
        super().check(limits)
        if not self.prompts:
            raise ApiError(400, "prompt: the list is empty", param="prompt")
        at_most("logprobs", self.logprobs or 0, limits.logprobs)
        if self.echo and self.logprobs is not None:
            raise ApiError(400, "echo with logprobs is not supported here; leave one out", param="echo")


class EmbeddingBody(Body):
    """`POST /v1/embeddings`."""

    ignored: ClassVar = ("user",)

    input: Annotated[str | Annotated[list[str], Quick], AtMost("texts", "texts")]
    """Blank texts too have a vector, as OpenAI gives them one."""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Many | None = None
    truncate_prompt_tokens: Truncation | None = None

    def check(self, limits: LimitSettings) -> None:
        if self.input != "":
            _some_texts("input", self.input)

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """Token ids are told apart from other mistakes: LangChain sends those of OpenAI's own vocabulary."""
        given = obj.get("input") if isinstance(obj, dict) else None
        if isinstance(given, list) and given and isinstance(given[0], int | list):
            raise ApiError(
                400,
                "input: send text, not token ids (in LangChain: check_embedding_ctx_length=False)",
                param="input",
            )
        return super().model_validate(obj, **options)


LIKE_V1 = {"input": "text"}
"""The routes of `/v1` call texts `input`."""


class TranslateBody(Body):
    """`POST /translate`."""

    also = LIKE_V1
    text: Annotated[Filled | Annotated[list[Filled], Quick], AtMost("prompts", "texts")]
    beam: Many | None = None
    length_penalty: Annotated[float, Field(ge=0, le=10)] | None = None
    max_tokens: Many | None = None

    def check(self, limits: LimitSettings) -> None:
        _some_texts("text", self.text)
        lines = sum(bool(line.strip()) for text in as_list(self.text) for line in text.split("\n"))
        at_most("text", lines, limits.prompts, "lines")
        at_most("beam", self.beam or 1, limits.beam)


class ClassifyBody(Body):
    """`POST /classify`."""

    also = LIKE_V1
    text: Annotated[Filled | Annotated[list[Filled], Quick], AtMost("texts", "texts")]
    truncate_prompt_tokens: Truncation | None = None
    reject_below: Annotated[float, Field(ge=0, le=1)] | None = None
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Divides the logits; above 1 for a model that is too sure, by as much as its evaluation says."""

    def check(self, limits: LimitSettings) -> None:
        _some_texts("text", self.text)


class DetokenizeBody(Body):
    """`POST /detokenize`: token ids, as `/tokenize` gives them."""

    tokens: Tokens


def as_list(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


def _some_texts(name: str, texts: str | list[str]) -> None:
    if not texts:
        raise ApiError(400, f"{name}: the list is empty", param=name)
