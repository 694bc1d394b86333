"""The front door: which verbs there are, and how an error leaves the house.

A verb is imported when it is called, so `transom --help` loads neither torch nor any room. What a person can
mend is one line on stderr and exit code 2; anything else is our bug and keeps its traceback. Read next: cli.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from cyclopts import (
    App,
    CycloptsError,
    Parameter,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from . import __version__
from .errors import Refused
from .hardware import tune_libraries
from .lab import CLAIMS
from .usage import epilogue, help_for, unknown_flag, unknown_verb

VERBS = {
    "train": "Train a model on text, pairs or classes, within a time budget.",
    "finetune": "Teach a model your data: chats, classes, pairs or text.",
    "compare": "Train members of the family on the same data, side by side.",
    "generate": "Let a model go on from one or several prompts.",
    "chat": "Talk with a model; it may remember what you ask it to.",
    "translate": "Translate texts, a file, or what comes from standard input.",
    "classify": "Tell the class of texts, with probabilities, or decline to.",
    "embed": "Turn texts into vectors whose nearness is that of meaning.",
    "index": "Make folders of documents searchable, with places to cite.",
    "ask": "Answer a question from an index, with its source, or say that it is not there.",
    "calibrate": "Find from when on an index may answer, so that few answers are wrong.",
    "look": "Look inside a model over a text, or at how a run moved.",
    "serve": "Serve models: the API that OpenAI's clients speak, and a page.",
    "evaluate": "Score a model on examples, beside cheap baselines.",
    "trust": "Ask a model about names, groups and what it makes up: act, watch, or fine.",
    "export": "Write a model for llama.cpp, Ollama or the hub, and prove it.",
    "plan": "Say what a training run would take, before it takes it.",
    "bench": "Measure this machine, and how near training is to its limits.",
    "doctor": "Say what this machine has, what works, and what to do.",
}

EXPERIMENTS = {
    "backprop": "Follow the gradient of one weight through a small net, by hand.",
    "distance": "How far back the gradient reaches in an RNN, LSTM, GRU and Transformer.",
    "cat": "Which word does `it` look at? The picture of the textbooks, tested.",
}
"""The verbs of `transom lab` beside the claims."""
OF_CLAIMS = {
    "all": "All claims, one after the other, and their page.",
    "report": "The page of all claims that were run: what was claimed, what was seen.",
}

OF_RUNS = ("train", "finetune", "plan", "compare", "bench", "data")
"""The verbs that take the settings of a run."""
SHORT = {"--data": "--data.source", "--model": "--model.kind", "--optim": "--optim.name",
         "--batch": "--batch.tokens", "--map": "--data.map"}  # fmt: skip
"""What a bare section means among those."""

OF_DATA = {
    "check": "What a run would learn from these data, and what is wrong with them.",
    "swap": "Tell every row about everybody: each name and pronoun swapped as well.",
}
"""The verbs of `transom data`."""

app = App(
    name="transom",
    help="Train it, run it and see through it: the Transformer family on your machine. With no data named,"
    " train learns from Python's own standard library.",
    help_epilogue=epilogue(""),
    version=__version__,
    help_format="markdown",
    default_parameter=Parameter(negative_iterable=(), negative_none=()),
    suppress_keyboard_interrupt=False,
)
for _place, (_verb, _help) in enumerate(VERBS.items()):
    app.command(f"transom.cli:{_verb}", name=_verb, help=_help, help_epilogue=epilogue(_verb),
                sort_key=_place)  # fmt: skip
lab = App(name="lab", help="Experiments that print their numbers and draw them.",
          help_epilogue=epilogue("lab"), sort_key=len(VERBS))  # fmt: skip
for _verb, _help in EXPERIMENTS.items():
    lab.command(f"transom.cli:{_verb}", name=_verb, help=_help, help_epilogue=epilogue("lab"))
for _verb, _help in {**CLAIMS, **OF_CLAIMS}.items():
    lab.command(f"transom.cli:lab_{_verb.replace('-', '_')}", name=_verb, help=_help,
                help_epilogue=epilogue("lab"))  # fmt: skip
app.command(lab)
data = App(name="data", help="Look at data before anything is learned from it.", help_epilogue="",
           sort_key=len(VERBS))  # fmt: skip
for _verb, _help in OF_DATA.items():
    data.command(f"transom.cli:data_{_verb}", name=_verb, help=_help, help_epilogue=epilogue("data"))
app.command(data)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command line and exit: 0 done, 1 our bug, 2 refused, 130 interrupted."""
    tune_libraries()
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code."""
    try:
        words, app.help_formatter = help_for(spelled_out(arguments))
        code = app(words, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return code or 0
    except CycloptsError as error:
        return _refuse(_plain(error))
    except Refused as error:
        return _refuse(str(error))
    except KeyboardInterrupt as stop:
        return _refuse(str(stop) or "stopped", 130)
    except BrokenPipeError:  # `transom ... | head`: whoever read has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception:
        traceback.print_exc()
        return _refuse("this is a bug in Transom; please report it with the lines above", 1)


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """The short forms of a run's settings in full: `--model gpt` is `--model.kind gpt`, `-` as data is
    `--data.source=-`; and a `-` after a flag that takes a file belongs to it.
    """
    short = SHORT if arguments and arguments[0] in OF_RUNS else {}  # elsewhere --model is a folder
    takes_data = bool(arguments) and arguments[0] in ("train", "plan", "finetune")
    words: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if (
            argument == "-"
            and words
            and words[-1] in ("--input", "--data.source", "--data.target", "--data.validation")
        ):
            words[-1] += "=-"
        elif argument == "-" and takes_data:
            words.append("--data.source=-")
        else:
            words.append(short.get(name, name) + equals + value)
    return words


def _plain(error: CycloptsError) -> str:
    """One line for what the command line itself got wrong."""
    from pydantic import ValidationError

    if isinstance(error.__cause__, ValidationError):
        from . import settings

        direct = settings.Settings.__subclasses__()
        kinds = {one.__name__: one for kind in direct for one in (kind, *kind.__subclasses__())}
        return settings.explain(error.__cause__, kinds[error.__cause__.title])
    if isinstance(error, UnknownCommandError):
        below = {"lab": {**EXPERIMENTS, **CLAIMS, **OF_CLAIMS}, "data": OF_DATA}
        known = below.get(error.app.name[0] if error.app else "", [*VERBS, *below])
        return unknown_verb((error.unused_tokens or [""])[0], known)
    if isinstance(error, UnknownOptionError):
        names = [name for argument in error.argument_collection for name in argument.names]
        return unknown_flag((error.token.keyword or error.token.value).partition("=")[0], names)
    if isinstance(error, UnusedCliTokensError):
        return f"unexpected {', '.join(map(repr, error.unused_tokens or ()))}"
    text = str(error).rstrip(".")
    return text[:1].lower() + text[1:]


def _refuse(message: str, code: int = 2) -> int:
    print("transom:", " ".join(message.split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
