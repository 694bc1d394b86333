"""What a request may ask of the sampler: the one definition for Python, the command line and the API.

Knows no torch, so that `--help` and a check cost nothing. Read next: inference/sampling, which obeys it.
"""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypedDict, TypeVar

from cyclopts import Parameter
from pydantic import Field, PlainValidator

from .errors import Refused, nearest
from .settings import Flag, Names, Settings, Wording, check

GREEDY_BELOW = 1e-5  # temperatures under this leave nothing but the likeliest token in float32
MAX_STOPS, MAX_STOP_BYTES, MAX_LOGPROBS, MAX_N = 16, 256, 20, 128
MAX_BIASED, MAX_BIAS = 1024, 100.0


def _stops(stop: Any) -> tuple[str, ...]:
    if not isinstance(stop, str | list | tuple | None):
        raise Refused(f"stop is {reprlib.repr(stop)}; it must be a string, or a list of strings")
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MAX_STOPS:
        raise Refused(f"stop has {len(stops)} strings; the limit is {MAX_STOPS}")
    for text in stops:
        if not isinstance(text, str) or not text:
            raise Refused(f"stop holds {reprlib.repr(text)}; every stop must be a string that is not empty")
        if len(text.encode("utf-8", "surrogatepass")) > MAX_STOP_BYTES:
            raise Refused(
                f"stop {reprlib.repr(text)} is longer than {MAX_STOP_BYTES} bytes of UTF-8, the limit"
            )
    return stops


def _biases(biases: Any) -> tuple[tuple[int, float], ...]:
    """Tokens with what is added to their logits, in order; JSON writes the tokens as strings."""
    pairs = list(biases.items()) if isinstance(biases, Mapping) else biases or ()
    if not isinstance(pairs, list | tuple) or not all(isinstance(x, tuple) and len(x) == 2 for x in pairs):
        raise Refused(f"logit_bias is {reprlib.repr(biases)}; it must be an object of token ids and numbers")
    if len(pairs) > MAX_BIASED:
        raise Refused(f"logit_bias names {len(pairs)} tokens; the limit is {MAX_BIASED}")
    kept: dict[int, float] = {}
    for token, bias in pairs:
        number = int(token) if isinstance(token, str) and token.isdecimal() and len(token) < 12 else token
        if type(number) is not int or number < 0:
            raise Refused(f"logit_bias names {reprlib.repr(token)}; it takes token ids, whole numbers from 0")
        if type(bias) not in (int, float) or not -MAX_BIAS <= bias <= MAX_BIAS:
            raise Refused(
                f"logit_bias of token {number} is {reprlib.repr(bias)}; it must be a number from"
                f" {-MAX_BIAS:.0f} to {MAX_BIAS:.0f}"
            )
        kept[number] = float(bias)
    return tuple(sorted(kept.items()))


Plain = Parameter(show_default=False)
"""The default is told in words, since a folder may have another."""
Temperature = Annotated[float, Field(ge=0, le=100), Wording("between 0 (the likeliest token) and 100"), Plain]
TopP = Annotated[float, Field(ge=0, le=1), Wording("between 0 (the likeliest token) and 1 (no limit)"), Plain]
Penalty = Annotated[float, Field(ge=-2, le=2), Wording("a number from -2 to 2 (0: no penalty)")]
Stops = Annotated[Sequence[str], PlainValidator(_stops, json_schema_input_type=str | list[str]), Names]
Biases = Annotated[
    Mapping[int, float] | Sequence[tuple[int, float]],
    PlainValidator(_biases, json_schema_input_type=dict[str, float]),
    Parameter(parse=False),
]
COUNT = "a whole number, at least 1, below 2^31"


class SamplingSettings(Settings):
    """How tokens are picked and when a text ends, as every way of asking has it.

    What is not given is as the model's folder says (generation_config.json), else as it stands here.
    """

    max_tokens: Annotated[int | None, Field(ge=1, lt=2**31), Wording(COUNT)] = None
    """Most tokens to write, the end token included [default: as the folder says, else 128, or what the
    model's context leaves]."""
    temperature: Temperature = 1.0
    """Divides the logits: 0 always takes the likeliest token, 1 samples the model's own probabilities
    [default: as the folder says, else 1]."""
    top_k: Annotated[int | None, Field(ge=1, lt=2**31), Wording(f"{COUNT}, or None for no limit")] = None
    """Only the k likeliest tokens [default: as the folder says, else all]."""
    top_p: TopP = 1.0
    """Only the fewest tokens that together have this probability; 0: the likeliest alone [default: as the
    folder says, else 1]."""
    min_p: Annotated[float, Field(ge=0, le=1), Wording("between 0 (no limit) and 1"), Plain] = 0.0
    """Only tokens with at least this share of the likeliest one's probability [default: as the folder says,
    else 0]."""
    repetition_penalty: Annotated[
        float, Field(gt=0, le=100), Wording("a number above 0 (1: no penalty), at most 100"), Plain
    ] = 1.0
    """Above 1: tokens that were there before, in the prompt or the answer, become less likely [default: as
    the folder says, else 1]."""
    presence_penalty: Penalty = 0.0
    """Taken from the logits of tokens that the answer holds already, -2 to 2."""
    frequency_penalty: Penalty = 0.0
    """The same for each time that it holds them."""
    logit_bias: Biases = ()
    """Added to the logits of these tokens: {token: bias}; -100 forbids one, 100 leaves hardly another."""
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63), Wording("a whole number of 64 bits")] = None
    """Makes sampling repeatable: same seed, same text."""
    stop: Stops = ()
    """Stop before this text; repeat for several. `\\n`, `\\t` and `\\r` are read as what they stand for."""
    n: Annotated[int, Field(ge=1, le=MAX_N), Wording(f"a whole number from 1 to {MAX_N}")] = 1
    """Completions for each prompt."""
    ignore_eos: Flag = False
    """Write on past the end of a text."""


class SamplingParams(SamplingSettings):
    """What a request asks of the sampler."""

    logprobs: Annotated[
        int | None, Field(ge=0, le=MAX_LOGPROBS), Wording(f"a whole number from 0 to {MAX_LOGPROBS}, or None")
    ] = None
    """Give each token's log-probability and this many of the likeliest (with --json)."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> SamplingParams:
        """Check settings by name; raises Refused for an unknown one, with the nearest, and for a value out
        of its limits.
        """
        names = list(cls.model_fields)
        for name in settings:
            if name not in names:
                raise Refused(
                    f"generate knows no setting '{name}'{nearest(name, names)}; it knows {', '.join(names)}"
                )
        return check(cls, settings, strict=True)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken every time."""
        return self.temperature < GREEDY_BELOW


class Sampling(TypedDict, total=False):
    """The fields of `SamplingParams`, but n, as keywords; what is left out is as the folder says."""

    max_tokens: int | None
    temperature: float
    top_k: int | None
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]]
    seed: int | None
    stop: str | Sequence[str]
    logprobs: int | None
    ignore_eos: bool


Method = TypeVar("Method", bound=Callable[..., Any])


def by_name(method: Method) -> Method:
    """Show `help` and notebooks the keywords of a method that takes **settings: Unpack[Sampling]."""
    own = inspect.signature(method)
    named = [one for one in own.parameters.values() if one.kind is not one.VAR_KEYWORD]
    for name, kind in Sampling.__annotations__.items():
        said = getattr(kind, "__forward_arg__", kind)
        named.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=..., annotation=said))
    method.__signature__ = own.replace(parameters=named)  # type: ignore[attr-defined]
    return method
