"""What the command line says of itself: help that fits a screen, and what other tools' names are called here.

`--help` shows the flags that a first run needs and examples, `--help-all` every flag. Read next: __main__.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import nearest

if TYPE_CHECKING:
    from cyclopts.help import HelpPanel

FIRST = {
    "train": (
        "--task", "--budget", "--out", "--data.field", "--data.target", "--data.label", "--model.kind",
        "--model.weights", "--model.size", "--json",
    ),
    "serve": (
        "--host", "--port", "--api-key-file", "--generate-key", "--chat-template", "--no-memory", "--dtype",
        "--json",
    ),
    "generate": (
        "--max-tokens", "--temperature", "--top-p", "--seed", "--stop", "--n", "--input", "--field", "--out",
        "--json",
    ),
    "data": (
        "--strict", "--task", "--data.map", "--data.validation", "--data.too-long", "--data.chat-template",
        "--model.max-len", "--json",
    ),
    "bench": ("--model.size", "--device", "--json"),
}  # fmt: skip
"""Verb -> the flags of its help; of a verb that is not here, all."""
FIRST["plan"] = FIRST["train"]
FIRST["finetune"] = ("--method", "--data.map", "--data.too-long", "--epochs", "--out", "--json")
FIRST["compare"] = ("--by", "--equal", "--budget", "--tokens", "--out", "--data.source", "--task",
                    "--model.size", "--json")  # fmt: skip

EXAMPLES = {
    "": (
        ("transom train notes/ --out runs/notes", "learn from your own text"),
        ('transom generate runs/notes "Once upon a time"', "let it write"),
        ("transom VERB --help", "explain a verb"),
    ),
    "train": (
        ("transom train notes/ --out runs/notes", "text: it learns to write on"),
        ("transom train tickets.csv --task classify", "a text and its class in a row"),
        ("transom train pairs.tsv --task translate", "two sides in a row"),
        ("transom finetune MODEL --data chats.jsonl", "from weights that are there"),
        ("transom plan notes/ --budget 1h", "what that would take"),
    ),
    "finetune": (
        ("transom finetune MODEL --data chats.jsonl", "answers: chats, prompts and completions"),
        ("transom finetune MODEL --data qa.zip --map prompt=Ask", "the same, by the name of a column"),
        ("transom finetune MODEL --data pairs.jsonl", "which answer is better: chosen, rejected"),
        ("transom finetune MODEL --data tickets.csv", "classes: a text and its label in a row"),
        ("transom finetune MODEL --data a.en --data.target a.de", "translation: two sides of each line"),
        ("transom finetune MODEL --data faq.csv --task embed", "search: a text and its partner"),
        ("transom finetune MODEL --data notes/", "running text"),
    ),
    "data": (
        ("transom data check chats.jsonl MODEL", "two examples, what is learned of them, what is wrong"),
        ("transom data check chats.jsonl MODEL --strict", "exit code 1 for any finding, for CI"),
    ),
    "lab": (
        ("transom lab all --quick", "all claims, and their page"),
        ("transom lab order --planted", "one, with its cause taken away"),
    ),
    "compare": (("transom compare decoder lstm --budget 2min", ""),),
    "generate": (
        ('transom generate runs/notes "Once upon a time"', ""),
        ("transom generate runs/notes --temperature 0 < prompt.txt", "the likeliest text"),
    ),
    "chat": (('transom chat MODEL --system "You are brief."', ""),),
    "translate": (
        ('transom translate runs/pairs "a text"', ""),
        ("transom translate runs/pairs --input rows.csv --out answers.csv", "the rows, with a column more"),
    ),
    "classify": (
        ('transom classify runs/tickets "a text"', ""),
        ("transom classify runs/tickets --input rows.csv --out answers.csv", "the rows, with a column more"),
    ),
    "embed": (
        ("transom embed MODEL --input notes.txt --out vectors.npy", ""),
        ("transom embed MODEL --input big.jsonl --out big.parquet", "in shards: goes on after a kill"),
        (
            "transom embed MODEL --input big.jsonl --out big.parquet --ray HOST:6379",
            "the same on a Ray cluster",
        ),
    ),
    "index": (
        ("transom index handbook/ --out kb", "again after changes: only they are read"),
        ("transom index stdlib-docs", "what Python's library says of itself"),
    ),
    "ask": (
        ('transom ask kb "How many days of leave are there?"', ""),
        ('transom ask kb "Who serves the boiler?" --explain', "what was found, and why it was not taken"),
        ('transom ask kb "..." --model MODEL --generate', "in the model's words, checked"),
        ('transom ask kb "..." --reranker MODEL', "a cross-encoder reads what was found once more"),
    ),
    "calibrate": (("transom calibrate kb labelled.jsonl --max-error 0.05", ""),),
    "look": (
        ('transom look MODEL "The cat sat because it was tired"', ""),
        ("transom look runs/notes", "how its inside moved while it learned"),
    ),
    "serve": (
        ("transom serve runs/notes MODEL", "both, each under its name"),
        ("transom serve MODEL --adapter mine=runs/mine", "an adapter over it: MODEL:mine"),
    ),
    "evaluate": (
        ("transom evaluate runs/tickets", "on what the run held out"),
        ("transom evaluate MODEL --test text.txt", "perplexity, bits per byte"),
        ("transom evaluate runs/new --against runs/old", "did it help?"),
    ),
    "trust": (
        ("transom trust MODEL", "decisions, facts and an invented world of ours"),
        ("transom trust MODEL --on prompts.jsonl", "your prompts and what is right: prompt, completion"),
        ("transom trust runs/tickets --on tickets.csv --group region", "a classifier, group by group"),
        ("transom trust MODEL --fail-on ACT", "exit code 1 where a line says ACT, for CI"),
    ),
    "export": (
        ("transom export runs/notes --dtype q8_0", "one GGUF file"),
        ("transom export MODEL --to ollama", "that and a Modelfile"),
        ("transom export model.gguf --to hf", "a folder for transformers"),
    ),
    "plan": (("transom plan notes/ --budget 1h", ""),),
}
"""Verb (or "": any) -> commands that work, each with what it is for."""

MARGIN = 2
"""Columns beside a block of text in a help."""

GLOSSARY = "What a word means: docs/glossary.md."
"""The last line of every help."""

VERBS_ELSEWHERE = {
    "sft": "that is transom finetune MODEL --data DATA",
    "lora": "that is transom finetune MODEL --data DATA --method lora",
    "fit": "that is transom train DATA",
    "resume": "that is transom train --out runs/NAME --resume",
    "predict": "that is transom classify, translate or generate, by what the model was trained for",
    "complete": "that is transom generate MODEL TEXT",
    "run": "that is transom generate MODEL TEXT, or transom chat MODEL",
    "encode": "that is transom embed MODEL TEXT",
    "test": "that is transom evaluate RUN",
    "inspect": "that is transom look MODEL TEXT",
    "estimate": "that is transom plan DATA",
    "convert": "that is transom export MODEL --to gguf, ollama, hf or sentence-transformers; a model folder "
    "(runs/NAME/model) is a Hugging Face folder already",
    "quantize": "that is transom export MODEL --dtype q8_0 (or q4_0), a GGUF file",
    "search": "that is transom index DOCS, then transom ask kb QUESTION",
    "download": "a model of the hub is named where a folder is: transom chat OWNER/NAME",
    "help": "that is transom --help, or transom VERB --help",
}
SAME = {
    "sft": ("fine-tune", "tune"),
    "resume": ("continue",),
    "predict": ("infer", "inference"),
    "complete": ("completion", "sample", "write"),
    "encode": ("vectors", "embeddings"),
    "test": ("eval", "score"),
    "inspect": ("explain", "visualize", "attention"),
    "estimate": ("cost", "forecast"),
    "convert": ("gguf", "save", "ollama"),
    "quantize": ("quantise", "compress"),
    "search": ("rag", "query", "retrieve"),
    "download": ("pull", "fetch"),
}
MEANT = VERBS_ELSEWHERE | {name: VERBS_ELSEWHERE[known] for known, names in SAME.items() for name in names}

FLAGS_ELSEWHERE = {
    "--baseline": "--against",
    "--compare-to": "--against",
    "--learning-rate": "--optim.lr",
    "--batch-size": "--batch.tokens (tokens of one step)",
    "--epoch": "--epochs",
    "--num-epochs": "--epochs",
    "--max-steps": "--steps",
    "--iterations": "--steps",
    "--time": "--budget",
    "--layers": "--model.n-layers",
    "--heads": "--model.n-heads",
    "--hidden-size": "--model.dim",
    "--d-model": "--model.dim",
    "--context": "--model.max-len",
    "--block-size": "--model.max-len",
    "--seq-len": "--model.max-len",
    "--max-length": "--model.max-len",
    "--pretrained": "--model.weights",
    "--base-model": "--model.weights",
    "--from": "--model.weights",
    "--optimizer": "--optim",
    "--output": "--out",
    "--output-dir": "--out",
    "-o": "--out",
    "--file": "--input",
    "-i": "--input",
    "--gpu": "--device cuda",
    "--cuda": "--device cuda",
    "--max-new-tokens": "--max-tokens",
    "--temp": "--temperature",
    "--template": "--chat-template",
}
"""What a flag is called elsewhere -> what it is called here, where the verb has it."""


def unknown_verb(name: str, verbs: Iterable[str]) -> str:
    """One line for a verb that does not exist."""
    if name in MEANT:
        return f"unknown command: {name}; {MEANT[name]}"
    return f"unknown command: {name}{nearest(name, verbs) or ';'} transom --help lists {', '.join(verbs)}"


def unknown_flag(name: str, known: list[str]) -> str:
    """One line for a flag that this verb does not have; `known` are those it has."""
    spelled = name.replace("_", "-")
    elsewhere = FLAGS_ELSEWHERE.get(spelled, "")
    leaves = {flag.removeprefix("--").rpartition(".")[2]: flag for flag in reversed(known)}
    if elsewhere.split(" ")[0] in known:
        return f"unknown option: {name}; here it is {elsewhere}"
    if leaf := leaves.get(spelled.removeprefix("--").rpartition(".")[2]):
        return f"unknown option: {name}; did you mean '{leaf}'?"
    return f"unknown option: {name}{nearest(spelled, known) or '; --help-all lists every one'}"


def in_words_of_a_test(message: str) -> str:
    """A refusal of data in the flags of a verb that has `--map`, and none of those of a run."""
    field = "source" if "--data.target-field" in message else "text"
    for flag, meant in {"target-field": "target", "field": field, "label": "label"}.items():
        pattern = rf"--data\.{flag}(?: (?!and\b|names\b)([\w'.-]+)(?=[ ;)]|$))?(?![\w-])"
        message = re.sub(pattern, lambda one, meant=meant: f"--map {meant}={one[1] or 'COLUMN'}", message)
    return re.sub(r" \(or --data\.on-error [^)]*\)$", "", message)


def epilogue(verb: str) -> str:
    """Say what stands below the help of a verb, as markdown for a terminal as wide as this one.

    What a command is for stands beside it where all of them have room for that, else in a line above.
    """
    examples = EXAMPLES.get(verb, ())
    if verb in FIRST:
        examples = (*examples, (f"transom {verb} --help-all", "every flag"))
    width = max((len(command) for command, _ in examples), default=0)
    beside = [f"{command:{width}}  # {what}" if what else command for command, what in examples]
    room = shutil.get_terminal_size().columns - MARGIN
    if all(len(line) <= room for line in beside):
        lines = beside
    else:
        lines = [line for command, what in examples for line in ([f"# {what}"] if what else []) + [command]]
    return "\n".join(["```text", *lines, "", GLOSSARY, "```"])


@dataclass(frozen=True)
class Help:
    """Shows the help of one verb: the flags of `FIRST`, or all."""

    shown: tuple[str, ...] = ()
    """Flags; none: all."""

    def __call__(self, console: Any, options: Any, panel: HelpPanel) -> None:
        from cyclopts.help import DefaultFormatter

        if self.shown:
            panel = panel.copy(
                entries=[one for one in panel.entries if one.positional_label or {*one.names} & {*self.shown}]
            )
        DefaultFormatter()(console, options, panel)

    def render_usage(self, console: Any, options: Any, usage: Any) -> None:
        from cyclopts.help import DefaultFormatter

        DefaultFormatter().render_usage(console, options, usage)


def help_for(arguments: list[str]) -> tuple[list[str], Help]:
    """The arguments with `--help-all` as `--help`, and what shows it."""
    whole = "--help-all" in arguments
    first = () if whole or not arguments else FIRST.get(arguments[0], ())
    return ["--help" if one == "--help-all" else one for one in arguments], Help(first)
