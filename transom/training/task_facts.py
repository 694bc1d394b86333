"""What tells one task from another, as data: a row for each, which the rest of the room asks.

A row says which members of the family can learn it, under which head, from what, and how its models are used
and described. What prepares its data, model and objective is one function, named in tasks. Read next: tasks,
task.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

CELLS = ("rnn", "lstm", "gru")
"""The recurrent members of the family."""
PAIRS = ("target", "target_field", "validation", "validation_target")
"""The settings of data that say where pairs stand."""


@dataclass(frozen=True)
class CardWords:
    """What a model card says about the models of one task."""

    what: str
    tag: str
    use: str
    """A command line."""
    elsewhere: str
    """The same in Python with the library that reads the folder."""
    limits: str


@dataclass(frozen=True)
class TaskFacts:
    """One task."""

    does: str
    """What a model learns to do, after "cannot learn to"."""
    members: tuple[str, ...]
    """The members of the family that can learn it; the first where none is named."""
    verb: str | None
    """What its models are used by; None where another task has to follow."""
    card: CardWords
    frame: Literal["", "text", "target"]
    """How a text is framed: not at all, begun and ended as encoders read it, ended as a decoder writes it."""
    head: dict[str, Any] = field(default_factory=dict)
    """What its models have that others of the member do not, by name of `ModelConfig`."""
    running: bool = False
    """Learned from windows of running text; otherwise from examples."""
    long: bool = False
    """Whether a row may be as long as a context of many thousand tokens."""
    tokens: int | None = None
    """Of a step of examples where nobody says: of all sides, padding not counted."""
    rates: tuple[float, float] | None = None
    """Of AdamW from pretrained weights: all of them, and adapters beside them; None: those of every task."""
    passes: tuple[tuple[int, float], ...] | None = None
    """Of fine-tuning through at least so many examples; None: those of every task."""
    example_set: str | None = None
    """What is learned when no data is named; None: the standard library, as running text."""
    data: tuple[str, ...] = ()
    """The settings of data that mean something to it and not to every task."""


def _python(*lines: str) -> str:
    return "\n".join(("```python", *lines, "```"))


_CHAT = _python(
    "from transformers import pipeline",
    "",
    'chat = pipeline("text-generation", "THIS_FOLDER")',
    'print(chat([{"role": "user", "content": "Hello"}])[0]["generated_text"][-1]["content"])',
)

TASK_FACTS: dict[str, TaskFacts] = {
    "lm": TaskFacts(
        does="predict the next token (lm)",
        members=("decoder", *CELLS),
        verb="generate",
        frame="",
        running=True,
        long=True,
        card=CardWords(
            "A language model",
            "text-generation",
            'transom generate THIS_FOLDER "Once upon a time"',
            _python(
                "from transformers import AutoModelForCausalLM, AutoTokenizer",
                "",
                'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
                'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")',
                'tokens = model.generate(**tokenizer("Once upon a time", return_tensors="pt"), max_new_tokens=50)',  # noqa: E501
                "print(tokenizer.decode(tokens[0]))",
            ),
            "It continues text like the text it learned from; it was not tuned to follow instructions or to "
            "tell the\ntruth, and repeats what its data holds, mistakes and prejudices included. Nothing was "
            "filtered out.",
        ),
    ),
    "mlm": TaskFacts(
        does="predict masked tokens (mlm)",
        members=("encoder",),
        verb=None,
        frame="text",
        head=dict(head_transform=True, head_bias=True),
        running=True,
        long=True,
        card=CardWords(
            "A masked language model",
            "fill-mask",
            "transom train LABELLED_DATA --task classify --model.weights THIS_FOLDER",
            _python(
                "from transformers import pipeline",
                "",
                'fill = pipeline("fill-mask", "THIS_FOLDER")',
                'print(fill("Once upon a <|mask|>"))',
            ),
            "It fills masks in text like the text it learned from, and is meant to be fine-tuned. Nothing "
            "was filtered out.",
        ),
    ),
    "sft": TaskFacts(
        does="answer (sft)",
        members=("decoder", *CELLS),
        verb="chat",
        frame="",
        long=True,
        data=("validation", "too_long", "chat_template"),
        card=CardWords(
            "A language model that answers",
            "text-generation",
            "transom chat THIS_FOLDER",
            _CHAT,
            "It answers in the manner of the conversations it learned from, and was not taught what is true: "
            "it invents\nfacts without a sign, and has the prejudices of its data and of the model it began "
            "as.",
        ),
    ),
    "preference": TaskFacts(
        does="prefer the better of two answers (preference)",
        members=("decoder", *CELLS),
        verb="chat",
        frame="",
        long=True,
        rates=(5e-6, 5e-5),
        passes=((2_000, 1.0), (0, 3.0)),
        data=("validation", "too_long", "chat_template"),
        card=CardWords(
            "A language model that answers as people preferred",
            "text-generation",
            "transom chat THIS_FOLDER",
            _CHAT,
            "Of two answers it was taught which one somebody preferred, and nothing else: neither that it is "
            "true nor that\nit is harmless. It can prefer what only looks better (longer, more polite), and "
            "invents facts without a sign.",
        ),
    ),
    "translate": TaskFacts(
        does="translate",
        members=("encoder-decoder", *CELLS),
        verb="translate",
        frame="target",
        tokens=4096,
        example_set="dates",
        data=PAIRS,
        card=CardWords(
            "A translator",
            "translation",
            'transom translate THIS_FOLDER "A text to translate"',
            _python(
                "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer",
                "",
                'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
                'model = AutoModelForSeq2SeqLM.from_pretrained("THIS_FOLDER")',
                'tokens = model.generate(**tokenizer("A text to translate", return_tensors="pt"))',
                "print(tokenizer.decode(tokens[0], skip_special_tokens=True))",
            ),
            "It translates texts like those it learned from; on others it may invent, leave out or repeat, "
            "without a sign.",
        ),
    ),
    "classify": TaskFacts(
        does="classify",
        members=("encoder",),
        verb="classify",
        frame="text",
        head=dict(head="classify", dropout=0.1),
        tokens=2048,
        example_set="stdlib-labels",
        data=("label", "validation", "too_long"),
        card=CardWords(
            "A text classifier",
            "text-classification",
            'transom classify THIS_FOLDER "A text" --reject-below 0.8',
            _python(
                "from transformers import pipeline",
                "",
                'classify = pipeline("text-classification", "THIS_FOLDER")',
                'print(classify("A text"))',
            ),
            "It names one of its classes for any text, also for one that belongs to none; a probability is a "
            "confidence\nonly on texts like those it learned from.",
        ),
    ),
    "embed": TaskFacts(
        does="embed",
        members=("encoder",),
        verb="embed",
        frame="text",
        head=dict(head="embed", pooling="mean", normalize=True),
        tokens=8192,
        example_set="dates",
        data=(*PAIRS, "too_long"),
        card=CardWords(
            "A text embedder",
            "sentence-similarity",
            'transom embed THIS_FOLDER "One text" "and another"',
            _python(
                "from sentence_transformers import SentenceTransformer",
                "",
                'model = SentenceTransformer("THIS_FOLDER")',
                'print(model.encode(["One text", "and another"]))',
            ),
            "Near vectors mean that texts belong together as the pairs did that it learned from, nothing "
            "else.",
        ),
    ),
}
