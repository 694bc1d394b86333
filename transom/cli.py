"""The verbs of the command line: one function each, which turns words into a call and an answer into words.

Whatever a verb does is done by a room; a verb prints it, as text or with --json as one JSON document at the
end of stdout (everything else then goes to stderr). Options come from settings.py. Read next: settings.
"""

from __future__ import annotations

import contextlib
import json as json_text
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from cyclopts import Group, Parameter

from .errors import Refused
from .output import unused, writable, write_whole
from .server_settings import ServerSettings
from .settings import GenerateSettings, TrainSettings, load

if TYPE_CHECKING:
    from .chat.conversation import Conversation
    from .inference.classifier import Classification
    from .insight.overview import Overview
    from .training.run import Run

EXAMINED = ("translate", "classify")  # tasks whose models are scored at once, beside cheap baselines
VERB_OF = {
    "Generator": "use transom generate",
    "Translator": "use transom translate",
    "Classifier": "use transom classify",
    "Embedder": "use transom embed",
    "FillMask": "fine-tune it first: transom train DATA --task classify --model.weights FOLDER",
}
INTERRUPTED = 130  # what a shell makes of Ctrl-C: `transom train && ...` does not go on

Json = Annotated[bool, Parameter(negative=(), show_default=False)]
Flags = Annotated[TrainSettings, Parameter(name="*", group=Group("Run", sort_key=1))]
Config = Annotated[Path | None, Parameter(name="--config")]
Switched = Annotated[bool, Parameter(negative=(), show_default=False)]
SERVER = ServerSettings()


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
            show(run if run.interrupted or run.task not in EXAMINED else Examined(run))
    return INTERRUPTED if run.interrupted else 0


def compare(
    *members: str,
    flags: Flags = TrainSettings(),
    config: Config = None,
    by: Literal["time", "tokens"] = "time",
    equal: Literal["parameters", "active", "size"] = "parameters",
    json: Json = False,
) -> None:
    """Compare members of the family.

    Parameters
    ----------
    members
        `rnn`, `lstm`, `gru`, `decoder`, `decoder+experts`, `encoder-decoder`, ...: each is trained in turn.
    config
        A TOML file with any of the settings below; flags beat it.
    by
        Give each the same time, or the same tokens (--tokens, or as many as the slowest reads in the budget).
    equal
        Choose widths so that all have as many parameters (or active ones) as the first, tables that are only
        looked up left out, or take the size as it is.
    json
        Print one JSON document last.
    """
    settings = _settings(None, flags, config)
    from .lab.compare import compare as run_comparison

    out = settings.out or Path("runs/compare")
    budget = settings.budget if by == "time" else settings.tokens
    if budget is None:
        raise Refused(f"to compare by {by}, give --{'budget' if by == 'time' else 'tokens'}")
    given = {
        n: v for n, v in settings.given().items() if n not in ("out", "budget", "tokens", "steps", "epochs")
    }
    with _answer(json) as show:
        show(run_comparison(list(members), given, by=by, budget=budget, out=out,
                            equal=None if equal == "size" else equal, score=_scores))  # fmt: skip


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
    input: Path | None = None,
    field: str | None = None,
    out: Path | None = None,
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
        What to go on from; with nothing here and no file, one prompt is read from standard input.
    input
        A file with a prompt on each line, or a table or records of which one field is.
    field
        Which column or field holds the prompts [default: `text`, or the only one with text].
    out
        Write the rows there with what was written on in a column of its own (.csv, .tsv or .jsonl).
    dtype
        `float32` or `bfloat16` [default: as the folder says, and as is fast here].
    device
        `cpu`, `cuda`, `mps` [default: the fastest].
    json
        Print one JSON document last.
    """
    if flags.logprobs is not None and not json:
        raise Refused("--logprobs is shown with --json only; add --json")
    from .data.lines import whole_input

    if out is not None and flags.n > 1:
        raise Refused("--out has room for one completion of each prompt; leave out --n")
    whole = () if prompts or input else (whole_input(),)
    pipe = "its text can be piped in (transom generate MODEL < FILE), its lines read (--input)"
    asked = Asked(prompts or whole, input, field, out, fix=pipe)
    texts = asked.texts
    settings = flags.given()
    if "stop" in settings:
        settings["stop"] = [_unescaped(stop) for stop in settings["stop"]]
    with _answer(json) as show:
        generator = _loaded(model, "Generator", dtype, device)
        if json or input or out or len(texts) > 1 or flags.n > 1:
            show(Completions(asked, flags.n, generator.generate(texts, **settings)))
        else:
            pieces = generator.stream(texts[0], **settings)  # refuses before anything is written
            _write(texts[0])
            for piece in pieces:
                _write(piece)
            print()


def translate(
    model: str,
    /,
    *texts: str,
    input: Path | None = None,
    field: str | None = None,
    out: Path | None = None,
    beam: int | None = None,
    length_penalty: float | None = None,
    max_tokens: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    json: Json = False,
) -> None:
    """Translate.

    Parameters
    ----------
    model
        A model folder (`runs/NAME/model`) or a Hugging Face id.
    texts
        What to translate; with nothing here and no file, the lines of standard input.
    input
        A file whose lines are translated, or a table or records of which one field is.
    field
        Which column or field holds the texts [default: `text`, or the only one with text].
    out
        Write the rows there with their answers in columns of their own (.csv, .tsv or .jsonl).
    beam
        Translations kept at a time while searching; 1 takes the likeliest token each time (greedy)
        [default: as the folder says, else 4].
    length_penalty
        Scores are divided by length to this power; above 1 favours long translations [default: as the folder
        says, else 1].
    max_tokens
        Most tokens of a translation [default: by the length of the source].
    dtype
        `float32` or `bfloat16` [default: as is fast here].
    device
        `cpu`, `cuda`, `mps` [default: the fastest].
    json
        Print one JSON document last.
    """
    asked = Asked(texts, input, field, out)
    translator = _loaded(model, "Translator", dtype, device)
    with _answer(json) as show:
        found = translator.translate(
            asked.texts, beam=beam, length_penalty=length_penalty, max_tokens=max_tokens
        )
        lines = [answer.text for answer in found]
        show(Answers("translations", asked, found, lines, [{"translation": line} for line in lines]))
    if doubt := _doubt(model, [answer.mean_logprob for answer in found]):
        print(doubt, file=sys.stderr)


def classify(
    model: str,
    /,
    *texts: str,
    input: Path | None = None,
    field: str | None = None,
    out: Path | None = None,
    reject_below: float | None = None,
    cut: Annotated[bool, Parameter(negative=())] = False,
    temperature: float = 1.0,
    dtype: str | None = None,
    device: str | None = None,
    json: Json = False,
) -> None:
    """Tell classes.

    Parameters
    ----------
    model
        A model folder (`runs/NAME/model`) or a Hugging Face id.
    texts
        What to classify; with nothing here and no file, the lines of standard input.
    input
        A file whose lines are classified, or a table or records of which one field is.
    field
        Which column or field holds the texts [default: `text`, or the only one with text].
    out
        Write the rows there with their answers in columns of their own (.csv, .tsv or .jsonl).
    reject_below
        Name no class when the likeliest has less than this probability.
    cut
        Leave out the end of texts that are longer than the model reads, rather than refuse them.
    temperature
        Divide the logits by this; above 1 for a model that its evaluation calls too sure.
    dtype
        `float32` or `bfloat16` [default: as is fast here].
    device
        `cpu`, `cuda`, `mps` [default: the fastest].
    json
        Print one JSON document last, with the probability of every class.
    """
    from .inference.classifier import Classification

    asked = Asked(texts, input, field, out)
    classifier = _loaded(model, "Classifier", dtype, device)
    with _answer(json) as show:
        written = [text for text in asked.texts if text.strip()]
        found = iter(
            classifier.classify(written, reject_below=reject_below, cut=cut, temperature=temperature)
        )
        answers = [next(found) if text.strip() else Classification(None, {}, 0.0) for text in asked.texts]
        lines = [_class_line(text, answer) for text, answer in zip(asked.texts, answers, strict=True)]
        columns = [{"class": one.label, "confidence": round(one.confidence, 4)} for one in answers]
        show(Answers("classifications", asked, answers, lines, columns))


def embed(
    model: str,
    /,
    *texts: str,
    input: Path | None = None,
    field: str | None = None,
    out: Path | None = None,
    cut: Annotated[bool, Parameter(negative=())] = False,
    dtype: str | None = None,
    device: str | None = None,
    json: Json = False,
) -> None:
    """Turn texts into vectors.

    Parameters
    ----------
    model
        A model folder, also one of sentence-transformers, or a Hugging Face id.
    texts
        What to embed; with nothing here and no file, the lines of standard input.
    input
        A file whose lines are embedded, or a table or records of which one field is.
    field
        Which column or field holds the texts [default: `text`, or the only one with text].
    out
        Write the vectors there: a NumPy array (.npy), or the rows with a column more (.csv, .tsv or .jsonl)
        [default: print how near the texts are].
    cut
        Read only the beginning of a text that is longer than the model reads.
    dtype
        `float32` or `bfloat16` [default: as is fast here].
    device
        `cpu`, `cuda`, `mps` [default: the fastest].
    json
        Print one JSON document last, with the vectors.
    """
    asked = Asked(texts, input, field, out, also=".npy")
    embedder = _loaded(model, "Embedder", dtype, device)
    with _answer(json) as show:
        show(Vectors(asked, embedder.embed(asked.texts, cut=cut)))


def chat(
    model: str,
    /,
    *,
    system: str = "",
    memory: Path | None = None,
    no_memory: Switched = False,
    chat_template: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    json: Json = False,
) -> None:
    """Talk with a model.

    Parameters
    ----------
    model
        A model folder (`runs/NAME/model`) or a Hugging Face id.
    system
        What the model is told before the conversation.
    memory
        The file of what it remembers across conversations [default: this user's own].
    no_memory
        Remember nothing.
    chat_template
        `plain`, `chatml` or a file, for a model whose folder has none.
    max_tokens
        Most tokens of an answer [default: 256, or a quarter of what the model reads if that is less].
    temperature
        0 always takes the likeliest token; 1 samples the model's own probabilities [default: as the folder
        says, else 0.7, or 1 where top-p is given].
    top_p
        Only the fewest tokens that together have this probability [default: as the folder says, else 0.9, or
        1 where the temperature is given].
    seed
        Makes the answers repeatable.
    dtype
        `float32` or `bfloat16` [default: as the folder says, and as is fast here].
    device
        `cpu`, `cuda`, `mps` [default: the fastest].
    json
        Print the conversation as one JSON document last.
    """
    from .chat.memory import Memory, default_path
    from .chat.terminal import chat as talk
    from .checkpoint.hub import resolve
    from .server.models import template_of

    generator = _loaded(model, "Generator", dtype, device)
    template = template_of(resolve(model), chat_template)
    if template is None:
        raise Refused(
            f"{model} has no chat template: it goes on with a text and was not taught to answer; use transom"
            " generate, or add --chat-template plain, chatml or a file to try"
        )
    kept = None if no_memory else Memory(memory or default_path())
    given = {"temperature": temperature, "top_p": top_p, "seed": seed}
    with _answer(json) as show:
        said = talk(generator, template, system=system, memory=kept, max_tokens=max_tokens,
                    **{name: value for name, value in given.items() if value is not None})  # fmt: skip
        if json:
            show(Talk(said))


def serve(
    *folders: str,
    flags: Annotated[ServerSettings, Parameter(name="*", group=Group("Server", sort_key=1))] = SERVER,
    config: Config = None,
    json: Json = False,
) -> int:
    """Serve models.

    Parameters
    ----------
    folders
        Model folders (`runs/NAME/model`) or Hugging Face ids; clients call each by its NAME.
    config
        A TOML file with any of the settings below; flags beat it.
    json
        Print one JSON document once it listens: its address and its models.
    """
    settings = load(ServerSettings, flags, config)
    from .server.serve import serve as run_server

    with _answer(json) as show:
        return run_server(folders, settings, show)


def look(
    model: str,
    text: str | None = None,
    /,
    *,
    patch: str | None = None,
    out: Path | None = None,
    all: Switched = False,
    dtype: str | None = None,
    device: str | None = None,
    json: Json = False,
) -> None:
    """Look inside.

    Parameters
    ----------
    model
        A model folder (`runs/NAME/model`) or a Hugging Face id, to look into over a text; or a run's folder
        (`runs/NAME`), to see how its inside moved while it learned.
    text
        What the model reads; leave it out for a run.
    patch
        Another text of as many tokens: which layer and token carry what the two differ in. Pieces of the
        text's run are put into the run over this one, and what comes back of the answer is measured.
    out
        Where the pictures go: one HTML file that needs no network [default: look.html, or
        the next such name that is free].
    all
        Print every number here, not a screen of them.
    dtype
        `float32` or `bfloat16` [default: as the folder says, and as is fast here].
    device
        `cpu`, `cuda`, `mps` [default: the fastest].
    json
        Print one JSON document last, with every number.
    """
    page = writable(out or unused("look.html"))
    with _answer(json) as show:
        if text is None:
            if patch is not None:
                raise Refused("--patch compares two texts; give the first: transom look MODEL 'a text'")
            from .training.probes import look_at_run

            show(Looked(look_at_run(Path(model)).save(page), all))
        else:
            from .inference.load import load as load_model
            from .inference.look import look_into
            from .server.models import name_of

            _said((text,), "give its text in quotes")
            loaded = load_model(model, dtype=dtype, device=device)
            show(Looked(look_into(loaded, text, name_of(model), patch).save(page), all))


def evaluate(
    model: Path,
    /,
    *,
    test: str | None = None,
    test_target: str | None = None,
    train: str | None = None,
    train_target: str | None = None,
    beam: int = 4,
    json: Json = False,
) -> None:
    """Score a model.

    Parameters
    ----------
    model
        A run's folder (`runs/NAME`), or a model's own.
    test
        Examples to score [default: those that the run held out].
    test_target
        The other side of `test`, for pairs in two files.
    train
        What the baselines learn from [default: what the run learned from].
    train_target
        The other side of `train`, for pairs in two files.
    beam
        Beams of a translation.
    json
        Print one JSON document last.
    """
    from .evaluation.examine import examine

    with _answer(json) as show:
        show(examine(model, train=train, train_target=train_target, test=test, test_target=test_target,
                     beam=beam))  # fmt: skip


def backprop(
    *,
    sizes: str = "2-3-1",
    activation: str = "tanh",
    weight: str | None = None,
    loss: str = "squared",
    seed: int = 0,
    out: Path = Path("backprop.svg"),
    json: Json = False,
) -> None:
    """Follow the gradient of one weight through a small net, by hand.

    Parameters
    ----------
    sizes
        Units of each layer, from the input to the output.
    activation
        `tanh`, `sigmoid` or `relu`.
    weight
        Which weight, as LAYER:FROM>TO, all from 0 [default: the one with the largest gradient].
    loss
        `squared` or `cross-entropy`.
    seed
        Decides the weights and the example.
    out
        Where the picture goes (SVG).
    json
        Print one JSON document last.
    """
    from .lab.backprop import backprop as follow

    with _answer(json) as show:
        show(follow(_sizes(sizes), activation, weight, seed, out, loss=loss))


def distance(
    models: tuple[str, ...] = (),
    /,
    *,
    length: int = 128,
    drawings: int = 6,
    out: Path = Path("distance.png"),
    json: Json = False,
) -> None:
    """How far back the gradient reaches in an RNN, LSTM, GRU and Transformer.

    Parameters
    ----------
    models
        Folders of trained language models to put beside the untrained ones.
    length
        Tokens over which it is measured.
    drawings
        Of weights and texts: the interval is over them.
    out
        Where the picture goes (PNG), and its numbers beside it (JSON).
    json
        Print one JSON document last.
    """
    from .lab.distance import distance as measure

    with _answer(json) as show:
        show(measure(models, length=length, drawings=drawings, out=out))


def cat(
    model: str | None = None,
    /,
    *,
    dpr: Path | None = None,
    pairs: int = 400,
    steps: int = 600,
    seed: int = 0,
    out: Path = Path("cat.json"),
    json: Json = False,
) -> None:
    """Which word does `it` look at? The picture of the textbooks, tested.

    Parameters
    ----------
    model
        An encoder that embeds: a folder or a hub id [default: MiniLM, where its package is installed].
    dpr
        A file of definite pronouns (sentence, pronoun, candidates, answer, empty line), read besides.
    pairs
        Generated pairs of sentences: half choose the head, half judge it.
    steps
        Of training the small encoder that is asked too.
    seed
        Decides the sentences and the small encoder.
    out
        Where the report goes (JSON).
    json
        Print one JSON document last.
    """
    from .lab.cat import cat as run_cat

    with _answer(json) as show:
        show(run_cat(model, dpr, pairs=pairs, steps=steps, seed=seed, out=out))


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


class Looked:
    """A look inside; what a terminal shows of it cannot steer the terminal."""

    def __init__(self, look: Overview, whole: bool) -> None:
        self.look, self.whole = look, whole

    def __str__(self) -> str:
        return _shown(self.look.whole() if self.whole else str(self.look))

    def to_dict(self) -> dict[str, Any]:
        return self.look.to_dict()


class Talk:
    """A conversation as it stands."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation

    def to_dict(self) -> dict[str, Any]:
        said = self.conversation
        return {"system": said.system, "messages": [asdict(message) for message in said.messages]}


class Asked:
    """The texts of the command line, of a file, or of the lines of standard input, each in its row."""

    def __init__(
        self,
        texts: tuple[str, ...],
        file: Path | None,
        field: str | None,
        out: Path | None,
        *,
        also: str = "",
        fix: str = "--input reads it",
    ) -> None:
        """out: where rows with answers go, or what ends in `also`; asked about before any work is done."""
        from .data.lines import answers_file, rows_to_answer

        if file == Path("-"):
            file = None
        if texts and file is not None:
            raise Refused(f"texts are given twice: on the command line and in {file}; leave one out")
        if field is not None and file is None:
            raise Refused("--field names a field of the records in a file; add --input FILE")
        self.file, self.out = file, out
        if out is not None:
            writable(out) if also and out.suffix == also else answers_file(out, file)
        given = [({"text": text}, text) for text in _said(texts, fix)]
        rows = given or rows_to_answer(file, field)
        self.rows, self.texts = [row for row, _ in rows], [text for _, text in rows]

    def write(self, answers: list[dict[str, Any]]) -> str:
        """Write the rows with these fields after their own; what was done, in words."""
        from .data.lines import write_rows

        assert self.out is not None
        return f"{len(answers):,} rows: {write_rows(self.out, self.rows, answers, self.file)}"


class Answers:
    """One answer for each text, also as a line, and as columns of its row."""

    def __init__(
        self, name: str, asked: Asked, answers: list[Any], lines: list[str], columns: list[dict[str, Any]]
    ) -> None:
        self.name, self.texts, self.answers, self.lines = name, asked.texts, answers, lines
        self.written = None if asked.out is None else asked.write(columns)

    def __str__(self) -> str:
        return self.written or "\n".join(map(_shown, self.lines))

    def to_dict(self) -> dict[str, Any]:
        pairs = zip(self.texts, self.answers, strict=True)
        return {self.name: [{"input": text, **asdict(answer)} for text, answer in pairs]}


class Vectors:
    """The vectors of texts: written to a file, or shown by how near they are to each other (cosine)."""

    SHOWN = 12

    def __init__(self, asked: Asked, vectors: Any) -> None:
        self.texts, self.vectors, self.out = asked.texts, vectors, asked.out
        if self.out is not None and self.out.suffix == ".npy":
            import io

            import numpy as np

            np.save(made := io.BytesIO(), vectors)
            write_whole(self.out, made.getvalue())
        elif self.out is not None:
            asked.write([{"embedding": vector} for vector in vectors.tolist()])

    def __str__(self) -> str:
        size = f"{len(self.texts):,} vectors of {self.vectors.shape[1]} numbers"
        if self.out is not None:
            return f"{size}: {self.out}"
        first = self.vectors[: self.SHOWN]
        lengths = (first**2).sum(1) ** 0.5
        near = first @ first.T / lengths[:, None] / lengths[None]
        rows = [" ".join(f"{value:6.2f}" for value in row) for row in near]
        lines = [f"{row}  {text}" for row, text in zip(rows, self.texts, strict=False)]
        more = len(self.texts) > self.SHOWN
        rest = [f"the first {self.SHOWN} of them; --out FILE.npy or --json gives all"] if more else []
        return _shown("\n".join([f"{size}; how near each is to each other (cosine):", *lines, *rest]))

    def to_dict(self) -> dict[str, Any]:
        pairs = zip(self.texts, self.vectors.tolist(), strict=True)
        return {"embeddings": [{"input": text, "embedding": vector} for text, vector in pairs]}


class Completions:
    """The texts that `generate` made, each after its prompt."""

    def __init__(self, asked: Asked, n: int, completions: list[Any]) -> None:
        repeated = [prompt for prompt in asked.texts for _ in range(n)]
        self.pairs = list(zip(repeated, completions, strict=True))
        self.written = asked.write([{"completion": one.text} for one in completions]) if asked.out else ""

    def __str__(self) -> str:
        return self.written or "\n\n".join(
            _shown(prompt + completion.text) for prompt, completion in self.pairs
        )

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


class Examined:
    """A run with the scores of its model on what it never learned from, beside cheap baselines."""

    def __init__(self, run: Run) -> None:
        from .evaluation.examine import examine

        self.run, self.report = run, examine(run.folder)

    def __str__(self) -> str:
        return f"{self.run.outcome}\n\n{self.report}\n\n{self.run.ending}"

    def to_dict(self) -> dict[str, Any]:
        return {**self.run.to_dict(), "evaluation": self.report.to_dict()}


def _scores(folder: Path) -> dict[str, float]:
    """The scores of a run's model in the task's own measure, where it has one."""
    from .evaluation.examine import examine
    from .training.run import task_of

    if task_of(folder) not in EXAMINED:
        return {}
    return examine(folder).score.headline()


def _loaded(model: str, kind: str, dtype: str | None, device: str | None) -> Any:
    """The model of a folder, which must be of one kind."""
    from .inference.load import load as load_model

    found = load_model(model, dtype=dtype, device=device)
    if type(found).__name__ != kind:
        raise Refused(f"{model} is a {type(found).__name__}; {VERB_OF[type(found).__name__]}")
    return found


def _doubt(model: str, sure: list[float]) -> str:
    """Say which translations the model of a run is less sure of than of nearly all that it was evaluated on;
    "" where there are none, or nothing to compare with.
    """
    from .checkpoint.hub import resolve

    if not os.path.isdir(model):
        return ""
    report = resolve(model).parent / "evaluation.json"
    line = json_text.loads(report.read_text()).get("unsure_below") if report.is_file() else None
    unsure = [f"{i} ({value:.2f})" for i, value in enumerate(sure, 1) if line is not None and value < line]
    if not unsure:
        return ""
    more = f" and {len(unsure) - 8:,} more" if len(unsure) > 8 else ""
    return (
        f"unsure of {', '.join(unsure[:8])}{more}: mean log-probability per token below {line:.2f}, which 95 "
        "of 100 texts of its evaluation reach"
    )


def _said(texts: tuple[str, ...], fix: str) -> list[str]:
    """Texts of the command line as they are; Refused for what is no text, or the name of a file."""
    from .data.documents import printable
    from .data.textfile import not_text

    for text in texts:
        if os.path.isfile(text):
            raise Refused(f"{printable(text)} is a file, not a text; {fix}")
        if (says := not_text(text)) is not None:
            raise Refused(f"'{printable(text)}': {says}")
    return list(texts)


def _class_line(text: str, answer: Classification) -> str:
    """The class of a text, how sure it is, and the text on one line; of a blank line nothing."""
    words = " ".join(text.splitlines())
    return f"{answer.label or '(unsure)'}\t{answer.confidence:.3f}\t{words}" if text.strip() else ""


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split("-"))
    except ValueError:
        raise Refused(f"sizes is '{text}'; give units of each layer, such as 2-3-1") from None


def _unescaped(text: str) -> str:
    """A newline, a tab, a carriage return or a backslash where a shell left it spelled out."""
    meant = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
    return re.sub(r"\\([ntr\\])", lambda found: meant[found[1]], text)


def _write(text: str) -> None:
    print(_shown(text), end="", flush=True)


def _shown(text: str) -> str:
    """Text for stdout: what a model writes must not steer a terminal, but a file gets it as it is."""
    if not sys.stdout.isatty():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
