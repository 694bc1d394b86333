"""The verbs of the command line: one function each, which turns words into a call and an answer into words.

Whatever a verb does is done by a room; a verb prints it, as text or with --json as one JSON document at the
end of stdout (everything else then goes to stderr). Options come from settings.py. Read next: settings.
"""

from __future__ import annotations

import contextlib
import json as json_text
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Protocol

from cyclopts import Group, Parameter

from .errors import Refused
from .settings import GenerateSettings, TrainSettings, load

INTERRUPTED = 130  # what a shell makes of Ctrl-C: `transom train && ...` does not go on

Json = Annotated[bool, Parameter(negative=(), show_default=False)]
Flags = Annotated[TrainSettings, Parameter(name="*", group=Group("Run", sort_key=1))]
Config = Annotated[Path | None, Parameter(name="--config")]


def train(
    data: str | None = None, /, *, flags: Flags = TrainSettings(), config: Config = None, json: Json = False
) -> int:
    """Train a model.

    Parameters
    ----------
    data
        What to learn from: a file, a folder, `hf:NAME` or `-`; nothing for the Python standard library.
    config
        A TOML file with any of the settings below; flags beat it.
    json
        Print one JSON document last.
    """
    settings = _settings(data, flags, config)
    from .training.loop import train as run_training

    with _answer(json) as show:
        run = run_training(settings)
        if os.environ.get("RANK", "0") == "0":
            show(run)
    return INTERRUPTED if run.interrupted else 0


def plan(
    data: str | None = None, /, *, flags: Flags = TrainSettings(), config: Config = None, json: Json = False
) -> None:
    """Forecast a run.

    Parameters
    ----------
    data
        What to learn from, as for train.
    config
        A TOML file with any of the settings below; flags beat it.
    json
        Print one JSON document last.
    """
    settings = _settings(data, flags, config)
    from .training.forecast import plan as forecast

    with _answer(json) as show:
        show(forecast(settings))


def generate(
    model: str,
    /,
    *prompts: str,
    flags: Annotated[GenerateSettings, Parameter(name="*")] = GenerateSettings(),
    dtype: str | None = None,
    device: str | None = None,
    json: Json = False,
) -> None:
    """Write on.

    Parameters
    ----------
    model
        A model folder (`runs/NAME/model`) or a Hugging Face id.
    prompts
        What to go on from; with nothing here, one prompt is read from standard input.
    dtype
        `float32` or `bfloat16` [default: as the folder says, and as is fast here].
    device
        `cpu`, `cuda`, `mps` [default: the fastest].
    json
        Print one JSON document last.
    """
    if flags.logprobs is not None and not json:
        raise Refused("--logprobs is shown with --json only; add --json")
    from .inference.generator import load as load_model

    texts = list(prompts) or [sys.stdin.read()]
    with _answer(json) as show:
        generator = load_model(model, dtype=dtype, device=device)
        if json or len(texts) > 1 or flags.n > 1:
            show(Completions(texts, flags.n, generator.generate(texts, **flags.given())))
        else:
            pieces = generator.stream(texts[0], **flags.given())  # refuses before anything is written
            _write(texts[0])
            for piece in pieces:
                _write(piece)
            print()


def bench(*, flags: Flags = TrainSettings(), config: Config = None, json: Json = False) -> None:
    """Measure this machine.

    Parameters
    ----------
    config
        A TOML file with any of the settings below; flags beat it.
    json
        Print one JSON document last.
    """
    settings = _settings(None, flags, config)
    from .bench import measure

    with _answer(json) as show:
        show(measure(settings))


def doctor(*, device: str = "auto", json: Json = False) -> int:
    """Look at this machine.

    Parameters
    ----------
    device
        `cpu`, `cuda`, `mps`; auto takes the fastest there is.
    json
        Print one JSON document last.
    """
    from .doctor import examine

    with _answer(json) as show:
        report = examine(device)
        show(report)
    return 0 if report.can_train else 1


class Answer(Protocol):
    """What a verb shows: words for a person, plain values for a program."""

    def __str__(self) -> str: ...
    def to_dict(self) -> dict[str, Any]: ...


class Completions:
    """The texts that `generate` made, each after its prompt."""

    def __init__(self, prompts: list[str], n: int, completions: list[Any]) -> None:
        repeated = [prompt for prompt in prompts for _ in range(n)]
        self.pairs = list(zip(repeated, completions, strict=True))

    def __str__(self) -> str:
        return "\n\n".join(_shown(prompt + completion.text) for prompt, completion in self.pairs)

    def to_dict(self) -> dict[str, Any]:
        return {"completions": [{"prompt": p, **completion.to_dict()} for p, completion in self.pairs]}


@contextlib.contextmanager
def _answer(json: bool) -> Iterator[Callable[[Answer], None]]:
    """How a verb shows its answer; with --json all that is printed meanwhile goes to stderr."""
    stdout = sys.stdout

    def show(answer: Answer) -> None:
        print(_json(answer.to_dict()) if json else answer, file=stdout, flush=True)

    with contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext():
        yield show


def _json(document: dict[str, Any]) -> str:
    """JSON as its standard has it: what is not a finite number is null."""
    plain = json_text.loads(json_text.dumps(document), parse_constant=lambda _: None)
    return json_text.dumps(plain, indent=2, ensure_ascii=False)


def _settings(data: str | None, flags: TrainSettings, config: Path | None) -> TrainSettings:
    """Flags over the file, with the data named first on the command line."""
    given = flags.given()
    if data is not None and "source" in given.get("data", {}):
        raise Refused(f"the data is named twice: {data} and --data {given['data']['source']}")
    if data is not None:
        given["data"] = {**given.get("data", {}), "source": data}
    return load(TrainSettings, given, config)


def _write(text: str) -> None:
    print(_shown(text), end="", flush=True)


def _shown(text: str) -> str:
    """Text for stdout: what a model writes must not steer a terminal, but a file gets it as it is."""
    if not sys.stdout.isatty():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
