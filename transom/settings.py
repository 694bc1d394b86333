"""Settings: every choice of a verb, typed, with its meaning written beside it and nowhere else.

The string under a field is its only documentation: `transom train --help` is made from it, and the error
messages from its type. Values come in layers, default < file (`--config run.toml`) < flag or keyword, and
a name that does not exist is refused with the nearest one that does. Knows no room; the numbers that a size
of model stands for live in model/config.py. Read next: cli.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

from cyclopts import Group, Parameter
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from .errors import Refused, nearest
from .units import Every, format_time, parse_count, parse_time

# ------------------------------------------------------------------------------------------- kinds of values


def _on_off(value: Any) -> Any:
    """true and false, as TOML and Python write them, for the switches that also know `auto`."""
    return ("off", "on")[value] if isinstance(value, bool) else value


Time = Annotated[
    float,
    BeforeValidator(parse_time),
    PlainSerializer(format_time, when_used="json"),
    Parameter(metavar="TIME", show_default=format_time),
]
Interval = Annotated[
    Every,
    BeforeValidator(Every.parse),
    PlainSerializer(str),
    Parameter(metavar="TIME|STEPS", accepts_keys=False, show_default=str),
]
Count = Annotated[int, BeforeValidator(parse_count), Parameter(metavar="COUNT")]
Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_off)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[int, Field(ge=1)]
Flag = Annotated[bool, Parameter(negative=(), show_default=False)]
Names = Parameter(show_default=False)


@dataclass(frozen=True)
class Wording:
    """What a setting must be, where our words say more than pydantic's: an annotation beside its bounds."""

    text: str


# ------------------------------------------------------------------------------------------------- sections


def _kinds(annotation: Any) -> set[Any]:
    """The types that an annotation admits."""
    inner = [one for one in get_args(annotation) if not isinstance(one, str)]
    return {annotation} if not inner else set().union(*map(_kinds, inner))


class Settings(BaseModel):
    """A record of settings: typed, frozen, documented field by field, with no room for an unknown name."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        """Of a number, true is not 1: whoever wrote it meant another setting."""
        if isinstance(value, bool):
            kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
            if kinds & {int, float} and bool not in kinds:
                raise PydanticKnownError("float_parsing" if float in kinds else "int_parsing")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _utf8(cls, value: Any) -> Any:
        """Bytes of a command line that are no text could not be written down again."""
        if isinstance(value, (str, Path)) and not str(value).isascii():
            try:
                str(value).encode()
            except UnicodeEncodeError:
                raise ValueError(f"{ascii(str(value))} is not UTF-8 text") from None
        return value

    @classmethod
    def sections(cls) -> list[tuple[str, type[Settings]]]:
        """The fields that are records of settings themselves."""
        kinds = [(name, field.annotation) for name, field in cls.model_fields.items()]
        return [(n, kind) for n, kind in kinds if isinstance(kind, type) and issubclass(kind, Settings)]

    @classmethod
    def names(cls) -> list[str]:
        """Every setting's dotted name, in the order of the class: `budget`, ..., `data.source`, ..."""
        sections = dict(cls.sections())
        return [
            dotted
            for name in cls.model_fields
            for dotted in (
                [f"{name}.{leaf}" for leaf in sections[name].names()] if name in sections else [name]
            )
        ]

    def __getitem__(self, name: str) -> Any:
        """The value at a dotted name: `settings["optim.lr"]`."""
        value: Any = self
        for part in name.split("."):
            value = getattr(value, part)
        return value

    def with_(self, changes: Mapping[str, Any]) -> Self:
        """A checked copy with some dotted names changed: `settings.with_({"optim.lr": 0.02})`."""
        return _layered(type(self), self.given(), check(type(self), _nested(changes)).given())

    def given(self) -> dict[str, Any]:
        """What was set rather than left at its default, nested."""
        return self.model_dump(exclude_unset=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, nested by section; times as text with their unit."""
        return self.model_dump(mode="json")

    def flat(self) -> dict[str, Any]:
        """`to_dict` by dotted name."""
        return dict(_flat(self.to_dict()))

    def to_toml(self) -> str:
        """The settings as TOML that `load` reads back; what is None (left to a rule) is not written."""
        sections: dict[str, list[str]] = {"": []}  # bare names come first in TOML
        for name, value in self.flat().items():
            section, _, leaf = name.rpartition(".")
            if value is not None:
                sections.setdefault(section, []).append(f"{leaf} = {_toml(value)}")
        blocks = ["\n".join([f"[{name}]"] * bool(name) + lines) for name, lines in sections.items()]
        return "\n\n".join(blocks) + "\n"


class DataSettings(Settings):
    source: Annotated[str, Field(min_length=1)] = "stdlib"
    """What to learn from: a file (text, JSONL, CSV, Parquet), a folder, `stdlib` (the Python standard
    library), `hf:NAME` or `-` (standard input); for pairs also `dates`, for classes also `stdlib-labels`."""
    target: str | None = None
    """The file with the other side of each line of `source`, for pairs in two files."""
    field: str | None = None
    """The field or column that holds the text (of pairs: the source), where records have several."""
    target_field: str | None = None
    """The field or column that holds the target of a pair."""
    label: str | None = None
    """The field or column that holds the class."""
    validation: str | None = None
    """Examples to measure with, instead of a share of `source`."""
    validation_target: str | None = None
    """The other side of `validation`, for pairs in two files."""
    tokenizer: str = "auto"
    """`bpe` (learned from the data), `bytes`, `chars`, or a folder with a tokenizer.json; auto: that of
    `model.weights`, `chars` for dates, else `bpe`."""
    vocab_size: Annotated[Count, Field(ge=1)] | None = None
    """Entries of the vocabulary that `bpe` learns [default: 4096; 1024 for at most 200 kB of text]."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the documents held out to measure with, never trained on."""
    on_error: Literal["error", "skip", "replace"] = "error"
    """What to do with bytes that are not UTF-8: stop, leave the document out, or put a replacement mark."""
    map: Annotated[tuple[str, ...], Names] = ()
    """FIELD=COLUMN: which column holds a field, where it is called otherwise (`--map prompt=question` for
    short); repeat for several."""
    chat_template: str | None = None
    """How conversations are written: `chatml`, `turns` or a file [default: the model folder's own; where it
    has none, chatml for a model that knows its two tokens, else turns]."""
    too_long: Literal["cut", "drop"] | None = None
    """What to do with labelled texts, conversations and texts to embed that are longer than the model reads:
    cut their ends off or leave them out, which is counted and said [default: leave them out, and refuse the
    data where they are more than 1%]."""
    cache: Path | None = None
    """Folder for the prepared tokens [default: inside the run's folder]."""


ALIASES = {"gpt": "decoder", "bert": "encoder", "transformer": "encoder-decoder"}
EXPERTS = ("experts", "active_experts", "shared_experts", "expert_dim", "balance", "balance_rate")
NO_FIELD = frozenset(("kind", "size", "weights", *EXPERTS))
"""Settings of a model that are no fields of its ModelConfig."""


class ModelSettings(Settings):
    kind: (
        Annotated[
            Literal["decoder", "encoder", "encoder-decoder", "rnn", "lstm", "gru"],
            BeforeValidator(lambda kind: ALIASES.get(kind, kind)),
        ]
        | None
    ) = None
    """The member of the family; `--model lstm` for short [default: by the task]."""
    weights: str | None = None
    """Begin with the weights and tokenizer of this model folder, .gguf file or hub id, not from nothing."""
    size: Literal["nano", "mini", "small"] = "nano"
    """The dial: 1.8M, 10.6M or 85M parameters besides the embeddings. What follows overrides its numbers."""
    n_layers: Size | None = None
    """Blocks, one above the other; of an encoder-decoder those that write."""
    n_encoder_layers: Size | None = None
    """Blocks that read the source [default: as n_layers]."""
    dim: Size | None = None
    """Width of the residual stream."""
    n_heads: Size | None = None
    """Query heads."""
    n_kv_heads: Size | None = None
    """Key-value heads; fewer than n_heads is grouped-query attention."""
    head_dim: Size | None = None
    """Width of a head."""
    ffn_dim: Size | None = None
    """Width inside the feed-forward."""
    max_len: Size | None = None
    """The context: tokens in a training window, and the longest sequence; from pretrained weights the window
    alone [default: by the size; 1024 at most from pretrained weights]."""
    activation: Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"] | None = None
    """The feed-forward's nonlinearity."""
    gated: bool | None = None
    """Gated feed-forward, down(act(gate(x)) * up(x)), or plain."""
    norm: Literal["rms", "layer"] | None = None
    """RMS norm or layer norm."""
    norm_position: Literal["before", "after"] | None = None
    """Norm before each branch, or after the sum as in 2017."""
    norm_eps: Annotated[float, Field(gt=0)] | None = None
    """Added under the norm's square root."""
    qk_norm: bool | None = None
    """Normalise queries and keys, head by head."""
    qkv_bias: bool | None = None
    """Biases of the query, key and value projections."""
    out_bias: bool | None = None
    """Bias of attention's output projection."""
    ffn_bias: bool | None = None
    """Biases of the feed-forward."""
    position: Literal["rotary", "learned", "sinusoidal", "relative", "none"] | None = None
    """How the model knows order."""
    rope_theta: Annotated[float, Field(gt=0)] | None = None
    """Base of the rotary wavelengths."""
    window: Size | None = None
    """Sliding window: how many positions, itself included, a token sees."""
    tie_embeddings: bool | None = None
    """One table for reading and for writing tokens."""
    scale_embeddings: bool | None = None
    """Multiply embeddings by the root of dim, as in 2017."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of activations dropped in training."""
    attn_softcap: Annotated[float, Field(gt=0)] | None = None
    """Squash attention scores to this bound."""
    logit_softcap: Annotated[float, Field(gt=0)] | None = None
    """Squash logits to this bound."""
    pooling: Literal["first", "mean"] | None = None
    """What stands for a whole text: its first position or the mean of all."""
    experts: Annotated[int, Field(ge=0)] = 0
    """Mixture of experts: so many in the place of each feed-forward; 0 is a plain one."""
    active_experts: Size = 2
    """Experts that a token goes through."""
    shared_experts: Annotated[int, Field(ge=0)] = 1
    """Experts that every token goes through besides."""
    expert_dim: Size | None = None
    """Width inside an expert [default: as wide, all that a token goes through together, as ffn_dim]."""
    balance: Literal["bias", "loss", "none"] = "bias"
    """What keeps the load of the experts even."""
    balance_rate: Annotated[float, Field(gt=0)] | None = None
    """How far the bias moves in a step, or the weight of the loss [default: 0.001]; short runs need more."""

    def overrides(self) -> dict[str, Any]:
        """The fields of a ModelConfig that were asked for, over those that the size stands for."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {n: v for n, v in values.items() if v is not None and n not in NO_FIELD}


class OptimSettings(Settings):
    name: Literal["auto", "muon", "adamw"] = "auto"
    """Muon for the matrices with AdamW for the rest, or AdamW for all; `--optim adamw` for short; auto: muon,
    but adamw from pretrained weights."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """AdamW's peak learning rate [default: by the size]; what it is moved by moves matrix_lr too."""
    matrix_lr: Annotated[float, Field(gt=0)] | None = None
    """Muon's peak learning rate, of the matrices [default: by the size and lr]."""
    head_lr: Annotated[float, Field(gt=0)] | None = None
    """The peak learning rate of a new head over pretrained weights [default: as all else]."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """From pretrained weights: each layer's rate is so much of that of the one above it [default: 1, off]."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay, on matrices only."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's memory of the gradient."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """AdamW's memory of the squared gradient."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Muon's memory of the gradient."""
    schedule: Literal["wsd", "cosine"] = "wsd"
    """Warm-up, stable, decay; or a cosine. Both end at zero when the run ends."""
    warmup: Fraction | None = None
    """Share of the run in which the learning rate rises [default: 0.02; 0.1 where norms come after]."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """It rises for so many steps at least, or a tenth of the run [default: 30; 0 where warmup is given]."""
    cooldown: Fraction | None = None
    """Share of the run in which it falls to zero (wsd) [default: 0.4; 0.8 where norms come after]."""
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of the whole gradient; 0 does not clip."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of each target that is spread over all others [default: 0.1 to translate, else 0]."""
    class_weights: Literal["auto", "none", "balanced"] = "auto"
    """Learn more from examples of rare classes: fully (balanced), by the square root of that where classes
    are uneven (auto), or not. Probabilities are those of the data either way."""


class LoraSettings(Settings):
    rank: Size = 16
    """Width of the two thin matrices beside each weight: what can be learned, and what it takes."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """Their product counts alpha / rank."""
    targets: str = "all"
    """The linear layers that are adapted: `all`, or names with commas between them, `q_proj,v_proj`."""
    rslora: Flag = False
    """Let the product count alpha / sqrt(rank), which keeps large ranks learning."""
    dora: Flag = False
    """Learn the length of each row of a weight besides (DoRA); slower."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of what the two matrices read that is dropped in training."""


class PreferenceSettings(Settings):
    loss: Literal["dpo", "orpo"] = "dpo"
    """Gain on the rejected answer, against the model as it was (DPO, Rafailov et al. 2023); or learn the
    chosen one and outweigh the rejected, with no model beside it (ORPO, Hong et al. 2024)."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Of DPO how much a nat of gain counts, which keeps the model near what it was; of ORPO the weight of the
    odds. With `optim.label_smoothing` DPO takes that share of the pairs to be the wrong way round."""


class BatchSettings(Settings):
    tokens: Annotated[Count, Field(ge=1)] | None = None
    """Tokens of one optimizer step, over all processes [default: by the size]."""
    texts: Size | None = None
    """Examples of one optimizer step instead: conversations, texts, pairs [default: by tokens; 16
    conversations or pairs of answers, 32 from 2,000 on]."""
    micro: Size | None = None
    """Windows that go through the model at once [default: found, so that it fits]."""
    checkpoint_activations: Flag = False
    """Keep less in memory and compute it again in the backward pass."""


class CardSettings(Settings):
    license: str | None = None
    """The licence of the data, as its source states it."""
    use: str | None = None
    """What the model is meant for."""
    not_for: str | None = None
    """What it must not be used for, such as "diagnosis or treatment"; nothing is guessed from the data."""


class TrainSettings(Settings):
    """Everything that `transom train` can be told."""

    task: Literal["auto", "lm", "mlm", "sft", "preference", "translate", "classify", "embed"] = "auto"
    """Predict the next token, masked tokens, the answers in chats (sft), a translation, a class, prefer the
    better answer (preference), or bring texts that belong together near each other; auto: guessed from the
    data and said."""
    method: Literal["full", "lora"] = "full"
    """Learn all weights, or with `model.weights` two thin matrices beside each (LoRA): less memory, and a
    small folder, an adapter to the model. `transom finetune` takes LoRA for a model that writes."""
    budget: Time | None = 600.0
    """Train for this long (3min for the examples that are embedded). One of budget, steps, epochs and tokens
    ends a run; the schedule ends with it."""
    steps: Size | None = None
    """Train for this many optimizer steps."""
    tokens: Annotated[Count, Field(ge=1)] | None = None
    """Train on this many tokens."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Go through the data this often."""
    out: Path | None = None
    """The run's folder [default: runs/ and the name of the data]."""
    resume: Flag = False
    """Go on from the newest checkpoint in the run's folder, with its settings. With another limit (`--resume
    --budget 1h`) a run goes on from before its rate fell, as if it had been begun with that."""
    recipe: Literal["time", "evidence"] = "time"
    """How what nobody gave is chosen: by the time there is, or as fine-tuning is done (`transom finetune`): 3
    passes, 10 to 20 through fewer than 2,000 examples, and steps of 16 or 32 of them."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Decides the first weights, the order of the data and the dropout."""
    save_every: Interval = Every(seconds=120.0)
    """Write a checkpoint this often; one is always written at the end."""
    keep: Size = 2
    """Checkpoints kept: the newest, and among them the last before the rate fell."""
    eval_every: Annotated[Interval | None, Parameter(show_default=False)] = None
    """Measure on held-out text this often [default: about ten times in a run]."""
    sample_every: Annotated[Interval | None, Parameter(show_default=False)] = None
    """Let the model write this often [default: with every measurement]."""
    general: str | None = None
    """A text that tells at the end what pretrained weights forgot [default: prose of Python's library]."""
    prompt: str | None = None
    """What the samples go on from; "" writes none [default: the first words of a text that is held out]."""
    sample_tokens: Size = 48
    """Tokens of a sample of running text."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic; auto measures which is fast here. Master weights are float32 either way."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, `mps`; auto takes the fastest there is."""
    compile: Switch = "auto"
    """torch.compile; auto: on CUDA only, where it pays."""
    parallel: Literal["auto", "none", "ddp", "fsdp"] = "auto"
    """How several processes (torchrun) share the work; auto: ddp when there are several."""
    deterministic: Flag = False
    """Only operations that give the same bits every time, where a device has a faster one that does not."""
    log: Annotated[tuple[Literal["tensorboard", "wandb"], ...], Names] = ()
    """Also log there; repeat for both. metrics.jsonl is always written."""
    quiet: Flag = False
    """Show nothing while it runs, as in a notebook; metrics.jsonl has all of it."""
    data: Annotated[DataSettings, Parameter(group=Group("Data", sort_key=2))] = DataSettings()
    model: Annotated[ModelSettings, Parameter(group=Group("Model", sort_key=3))] = ModelSettings()
    optim: Annotated[OptimSettings, Parameter(group=Group("Optimizer", sort_key=5))] = OptimSettings()
    lora: Annotated[LoraSettings, Parameter(group=Group("LoRA", sort_key=6))] = LoraSettings()
    preference: Annotated[PreferenceSettings, Parameter(group=Group("Preference", sort_key=7))] = (
        PreferenceSettings()
    )
    batch: Annotated[BatchSettings, Parameter(group=Group("Batch", sort_key=4))] = BatchSettings()
    card: Annotated[CardSettings, Parameter(group=Group("Model card", sort_key=8))] = CardSettings()

    @model_validator(mode="before")
    @classmethod
    def _one_limit(cls, given: Any) -> Any:
        """A limit that is given takes the place of the others, those of a lower layer included."""
        if not isinstance(given, Mapping):
            return given
        limits = [name for name in LIMITS if given.get(name) is not None]
        if len(limits) > 1:
            raise ValueError(
                f"{' and '.join(limits)} are both given; a run ends by one of {', '.join(LIMITS)}"
            )
        return {**given, **{name: None for name in LIMITS if limits and name not in limits}}

    def identity(self) -> dict[str, Any]:
        """What a resumed run must not change, by dotted name: all that its numbers depend on."""
        return {name: value for name, value in self.flat().items() if name not in FREE_ON_RESUME}


LIMITS = ("budget", "steps", "tokens", "epochs")
FREE_ON_RESUME = frozenset(
    (
        "out",
        "resume",
        "save_every",
        "keep",
        "eval_every",
        "sample_every",
        "general",
        "prompt",
        "sample_tokens",
        "device",
        "parallel",
        "log",
        "quiet",
    )
    + ("data.cache", "card.license", "card.use", "card.not_for")
)
# What a bare value of a section means: `--model gpt`, `--data notes/`, model="gpt" in Python.
SHORT = {"data": "source", "model": "kind", "optim": "name"}


# --------------------------------------------------------------------------------------- layers and refusals

S = TypeVar("S", bound=Settings)


def load(kind: type[S], given: Mapping[str, Any] | S | None = None, file: str | Path | None = None) -> S:
    """Merge default < file < given, and check. Raises Refused with the file, the name and the nearest name.

    `given` holds flags or keywords: nested (`{"optim": {"lr": 1e-3}}`), dotted (`{"optim.lr": 1e-3}`) or
    short (`{"model": "gpt"}`). With `resume`, and no file named, the run's own settings.toml is the file.
    """
    upper = given.given() if isinstance(given, Settings) else check(kind, _nested(given or {})).given()
    if file is None and upper.get("resume") and upper.get("out") is not None:
        kept = Path(upper["out"]) / "settings.toml"
        file = kept if kept.is_file() else None
    lower = _from_file(kind, Path(file)).given() if file is not None else {}
    return _layered(kind, lower, upper)


def check(
    kind: type[S], values: Mapping[str, Any], file: str = "", toml: str = "", *, strict: bool = False
) -> S:
    """Build `kind` from nested values; raises Refused with one line for the first thing that is wrong.

    strict: values of Python or JSON, of their own types; else texts of a command line or file as well.
    """
    try:
        return kind.model_validate(values, strict=strict or None)
    except ValidationError as error:
        raise Refused(explain(error, kind, file, toml)) from None


def explain(error: ValidationError, kind: type[Settings], file: str = "", toml: str = "") -> str:
    """One line for pydantic's first complaint: file and line, the setting, its value, what is allowed."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    known = [*kind.names(), *(name for name, _ in kind.sections())]
    if first["type"] != "extra_forbidden":
        while path and ".".join(path) not in known:
            path.pop()  # pydantic's own marks: the branch of a union, the place in a list
    name, value, context = ".".join(path), first["input"], first.get("ctx", {})
    place = f"{file}{_line_of(toml, path)}: " if file else ""
    if first["type"] == "extra_forbidden":
        return f"{place}'{name}' is not a setting{_nearest_setting(name, known)}"
    if first["type"] == "value_error":
        said = str(context["error"])
        return place + said if said.startswith(name) else f"{place}{name}: {said}"
    if first["type"] == "literal_error":
        choices = re.findall("'([^']*)'", context["expected"])
        others = [other for other in kind.names() if value in _choices(kind, other)]
        meant = f"; {value!r} is a {others[0]}" if others else nearest(str(value), choices)
        return f"{place}{name} is {value!r}; it can be {', '.join(choices)}{meant}"
    wanted = _wording(kind, name) or _rule(first["type"], first["msg"])
    return f"{place}{name} is {_shown(value):.200}; it must be {wanted}"


def _shown(value: Any) -> str:
    """A value as a person wrote it: a number of a command line, which comes as text, without quotes."""
    number = isinstance(value, str) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", value, re.I)
    return str(value) if number else repr(value)


def _wording(kind: type[Settings], name: str) -> str:
    """The words of a setting's own limits, or nothing."""
    metadata = kind.model_fields[name].metadata if name in kind.model_fields else ()
    return next((one.text for one in metadata if isinstance(one, Wording)), "")


def _choices(kind: type[Settings], name: str) -> tuple[Any, ...]:
    """The words that a setting can be, where it is one of some."""
    *sections, leaf = name.split(".")
    for section in sections:
        kind = dict(kind.sections())[section]
    wanted = kind.model_fields[leaf].annotation
    return get_args(wanted) if get_origin(wanted) is Literal else ()


def _rule(complaint: str, message: str) -> str:
    """What pydantic asks of a value, in our words."""
    rules = {
        "int_parsing": "a whole number",
        "int_from_float": "a whole number",
        "float_parsing": "a number",
        "bool_parsing": "true or false",
        "model_type": "a table of settings",
        "model_attributes_type": "a table of settings",
        "path_type": "a path",
        "string_too_short": "a name that is not empty",
    }
    return rules.get(complaint) or message.removeprefix("Input should be ")


def _layered(kind: type[S], *layers: Mapping[str, Any]) -> S:
    """Checked settings from the lowest layer to the highest."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merged(merged, layer)
    return check(kind, merged)


def _merged(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """`upper` over `lower`, section by section."""
    merged = dict(lower)
    for name, value in upper.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], value) if both else value
    return merged


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names and short forms spelled out: {"model": "gpt", "optim.lr": 1} -> two nested sections."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        first, *rest = name.split(".")
        if isinstance(value, Settings):
            value = value.given()
        elif name in SHORT and isinstance(value, (str, Path)):
            value = {SHORT[name]: str(value)}
        for part in reversed(rest):
            value = {part: value}
        nested = _merged(nested, {first: value})
    return nested


def _flat(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _nearest_setting(name: str, known: list[str]) -> str:
    """The closest dotted name: by its last part when that is exact (`lr` -> `optim.lr`), else by spelling."""
    leaf = name.rpartition(".")[2]
    by_leaf = {dotted.rpartition(".")[2]: dotted for dotted in reversed(known)}
    if leaf in by_leaf:
        return nearest(by_leaf[leaf], [by_leaf[leaf]])
    return nearest(name, known) or nearest(nearest(leaf, by_leaf).partition("'")[2].partition("'")[0], known)


def _from_file(kind: type[S], file: Path) -> S:
    """The settings that a TOML file gives, checked by themselves so that a mistake names its line."""
    try:
        text = file.read_text(encoding="utf-8-sig")  # an editor may have begun it with a byte-order mark
        return check(kind, _nested(tomllib.loads(text)), str(file), text)
    except OSError as error:
        raise Refused(
            f"{file}: {(error.strerror or str(error)).lower()}; --config needs a TOML file"
        ) from None
    except UnicodeDecodeError as error:
        raise Refused(f"{file}: not UTF-8 at byte {error.start}; --config needs a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise Refused(f"{file}: not TOML: {error}") from None


def _line_of(toml: str, path: list[str]) -> str:
    """`:7` where the TOML text gives the setting at `path`, or nothing where it cannot be told."""
    section = ""
    for number, line in enumerate(toml.splitlines(), 1):
        if header := re.match(r"\s*\[([^\[\]]+)\]", line):
            section = f"{header[1].strip()}."
            found = section
        else:
            key = re.match(r"""\s*([\w.\-]+)\s*=""", line)
            found = f"{section}{key[1]}." if key else ""
        if found and found == ".".join(path) + ".":
            return f":{number}"
    return ""


def _toml(value: Any) -> str:
    """One TOML value: JSON's strings, numbers, booleans and lists are TOML's, but for the delete mark."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
