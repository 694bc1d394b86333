"""From messages to the tokens of a prompt, by the chat template of a model; content is never control.

The one idea: a template is rendered as it is, by `template_worker`, which also says which characters of the
text the template itself wrote. A control token is one that stands wholly in those. All the text is encoded
at once, so that words join as they did in training, by a copy of the tokenizer in which every control token
has a secret name: what a user writes is never that name. Read next: messages,
template_worker, worker_process.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, starmap
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from transom.data.documents import printable
from transom.data.gguf_file import is_gguf, read_gguf
from transom.data.gguf_tokenizer import chat_templates
from transom.data.in_folder import read_text
from transom.data.messages import checked_messages, checked_objects
from transom.data.tokenizer import Tokenizer
from transom.data.tokenizer_files import json_object
from transom.data.tokenizer_json import hide
from transom.data.worker_process import Died, WorkerProcess
from transom.errors import Refused, nearest

MAX_TEMPLATE_BYTES = 256 << 10
MAX_BYTES = 8 << 20
"""Of messages, tools and documents together, as JSON."""
WALL_SECONDS = 5.0
"""For a machine so busy that 250 ms of computing take this long."""

_TOKEN_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")

VARIABLES: dict[str, Callable[[Any], bool]] = {
    "enable_thinking": lambda x: isinstance(x, bool),
    "thinking": lambda x: isinstance(x, bool),
    "reasoning_effort": lambda x: x in ("none", "minimal", "low", "medium", "high"),
}
"""What a request may tell a template besides its messages, and which values."""

BUILTIN = {
    "plain": """{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{ 'User: ' + message.content + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- 'Assistant:' + ('' if message.content[:1].isspace() else ' ') + message.content + '\\n' }}
    {%- elif message.role == 'tool' %}{{ 'Tool: ' + message.content + '\\n' }}
    {%- else %}{{ message.content + '\\n\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}""",
    "turns": """{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{ 'User: ' + message.content + '\\n' }}
    {%- elif message.role == 'assistant' %}{{ 'Assistant: ' + message.content + eos_token + '\\n' }}
    {%- elif message.role == 'tool' %}{{ 'Tool: ' + message.content + '\\n' }}
    {%- else %}{{ message.content + '\\n\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}""",
    "chatml": """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
}
"""`plain`: a transcript, for models that have no template; `turns`: the same with an end of every answer, for
those that learn one; `chatml`: for those that know its two tokens."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as a prompt."""

    tokens: list[int]
    message_spans: list[tuple[int, int]]
    """For every message where its tokens begin and end, its scaffold included. Empty where the template
    leaves it out or writes it outside of its loop; a system message written before the loop has what stands
    before the first other one.
    """


@dataclass(frozen=True)
class Written:
    """What a template wrote."""

    text: str
    scaffold: Sequence[Sequence[int]]
    """(start, end) in characters of what the template wrote itself, in order; the rest is content."""
    marks: Sequence[Sequence[int]]
    """(character, message): from here on the message is written; -1 is nobody's."""


class ChatTemplate:
    """A chat template, rendered in a process of its own; safe to use from several threads."""

    def __init__(self, text: str, *, name: str = "the chat template", tool_text: str | None = None) -> None:
        """The template, and another where one is meant for conversations with tools. Raises Refused."""
        for part in (text, tool_text or ""):
            if len(part.encode("utf-8", "surrogatepass")) > MAX_TEMPLATE_BYTES:
                raise Refused(f"{name} is longer than {MAX_TEMPLATE_BYTES >> 10} kB, the limit")
        self.text, self.name, self._tool_text = text, name, tool_text
        self.stop: tuple[str, ...] = ("\nUser:",) if text == BUILTIN["plain"] else ()
        """Strings that end an answer, where no token does."""
        self._worker = WorkerProcess(Path(__file__).with_name("template_worker.py"), seconds=WALL_SECONDS)
        self._spellings: dict[str, SecretSpelling] = {}

    @property
    def all_text(self) -> str:
        """All that it is made of: the template, and the one for conversations with tools."""
        return self.text + (self._tool_text or "")

    @classmethod
    def builtin(cls, name: str) -> ChatTemplate:
        """`plain`, `turns` or `chatml`."""
        if name not in BUILTIN:
            known = ", ".join(BUILTIN)
            raise Refused(
                f"no chat template '{printable(name)}'{nearest(name, BUILTIN)}; it is one of {known}"
            )
        return cls(BUILTIN[name], name=f"the chat template '{name}'")

    @classmethod
    def from_folder(cls, folder: str | Path) -> ChatTemplate | None:
        """The template of a model folder, as transformers finds it; None where it has none."""
        folder = Path(folder)
        name = f"the chat template of {printable(folder)}"
        texts = _texts_in(folder)
        if "default" in texts:
            return cls(texts["default"], name=name, tool_text=texts.get("tool_use"))
        if texts:
            raise Refused(f"{name}: it names {', '.join(map(printable, texts))}, but no 'default'")
        return None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tokenizer: Tokenizer,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, str]] | None = None,
        add_generation_prompt: bool = True,
        prefix_tokens: Sequence[int] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> Rendered:
        """The prompt of a conversation, in the messages of the OpenAI API, and of an answer's first tokens.

        `variables` are some of VARIABLES. Raises Refused for a message that is none, and where the template
        turns the conversation down, breaks, or exceeds its limits.
        """
        spelling = self.spelling(tokenizer)
        text = self._tool_text if tools and self._tool_text is not None else self.text
        checked = checked_messages(messages, text)
        question = {
            "template": text,
            "names": spelling.token_names,
            "variables": {
                **_allowed({name: value for name, value in (variables or {}).items() if value is not None}),
                "messages": checked,
                "tools": checked_objects(tools, "tools"),
                "documents": checked_objects(documents, "documents"),
                "add_generation_prompt": add_generation_prompt,
            },
        }
        answer = self._ask(question)
        tokens, starts, ends = spelling.encode(answer["text"], answer["trust"], answer["marks"])
        for token in prefix_tokens:
            if type(token) is not int or not 0 <= token < tokenizer.vocab_size:
                limit = f"this model's tokens are 0 to {tokenizer.vocab_size - 1}"
                raise Refused(f"prefix_tokens holds {printable(repr(token)[:40])}; {limit}")
        spans = _message_spans(starts, ends, len(checked), checked[0]["role"] in ("system", "developer"))
        return Rendered(tokens + list(prefix_tokens), spans)

    def text_of(
        self,
        messages: Sequence[Mapping[str, Any]],
        tokenizer: Tokenizer,
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """The text of a conversation, control tokens by their names; for looking at, since what is control in
        it and what content cannot be told any more. Raises Refused as `render` does.
        """
        variables = {"messages": list(messages), "tools": None, "documents": None,
                     "add_generation_prompt": add_generation_prompt}  # fmt: skip
        names = self.spelling(tokenizer).token_names
        return self._ask({"template": self.text, "names": names, "variables": variables})["text"]

    def end_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """The control token that this template writes after an assistant's words: an answer ends with it."""
        talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            rendered = self.render(talk, tokenizer, add_generation_prompt=False)
        except Refused:
            return frozenset()
        start, _ = rendered.message_spans[1]
        own, control = rendered.tokens[start:], tokenizer.reserved
        said = [i for i, token in enumerate(own) if token not in control and "b" in tokenizer.token(token)]
        return frozenset([token for token in own[max(said, default=0) :] if token in control][:1])

    def default_system(self, tokenizer: Tokenizer) -> str | None:
        """The system text that this template writes where none is given, '' for none; None: it takes none.

        It is what stands in the place of one that is given, and believed where giving it changes no token.
        """
        mark = "<the system text>"

        def talk(*system: str) -> list[dict[str, str]]:
            first = [{"role": "system", "content": text} for text in system]
            return [*first, {"role": "user", "content": "a"}]

        try:
            own = self.text_of(talk(), tokenizer)
            before, found, after = self.text_of(talk(mark), tokenizer).partition(mark)
            if not found:
                return None
            if not (own.startswith(before) and own.endswith(after) and len(own) > len(before + after)):
                return ""
            default = own[len(before) : len(own) - len(after)]
            same = self.render(talk(default), tokenizer).tokens == self.render(talk(), tokenizer).tokens
            return default if same else ""
        except Refused:
            return None

    def close(self) -> None:
        """End the process; the next conversation starts another."""
        self._worker.close()

    def spelling(self, tokenizer: Tokenizer) -> SecretSpelling:
        """How this tokenizer's control tokens are written where content cannot forge them."""
        if tokenizer.hash not in self._spellings:
            self._spellings[tokenizer.hash] = SecretSpelling(tokenizer)
        return self._spellings[tokenizer.hash]

    def write(
        self,
        messages: Sequence[Mapping[str, Any]],
        tokenizer: Tokenizer,
        stops: Sequence[tuple[int, bool]],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Written]:
        """What the template writes of the first n messages, with the opening of an answer or without, for
        every (n, opened) of `stops`; raises Refused as `render` does.
        """
        text = self._tool_text if tools and self._tool_text is not None else self.text
        question = {
            "template": text,
            "names": self.spelling(tokenizer).token_names,
            "variables": {
                "messages": checked_messages(messages, text),
                "tools": checked_objects(tools, "tools"),
                "documents": None,
            },
            "stops": stops,
        }
        written = self._ask(question)["written"]
        return [Written(one["text"], one["trust"], one["marks"]) for one in written]

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Text, trust (the spans of it that are scaffold) and marks (which message begins where)."""
        try:
            size = len(json.dumps(question["variables"], ensure_ascii=False).encode())
        except UnicodeEncodeError:
            raise Refused("messages: half of a surrogate pair is not text; remove it") from None
        except TypeError as error:
            raise Refused(f"messages and tools must be plain JSON ({printable(str(error)[:80])})") from None
        if size > MAX_BYTES:
            raise Refused(f"messages have {size:,} bytes of JSON; the limit is {MAX_BYTES:,}")
        try:
            answer = self._worker.ask(question)
        except Died:
            answer: dict[str, Any] = {"refused": "it takes more time or memory than templates may have"}
        if "refused" in answer:
            raise Refused(f"{self.name} cannot write this conversation: {printable(answer['refused'])}")
        return answer


class SecretSpelling:
    """A copy of a tokenizer in which every control token has a name that nobody can write."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        spec = json.loads(tokenizer.json_text)
        unknown = spec["model"].get("unk_token")
        self._unknown = (
            spec["model"].get("unk_id") if unknown is None else tokenizer.backend.token_to_id(unknown)
        )  # content too becomes this token, where its characters are unknown
        self.reserved = tokenizer.reserved
        self.control = frozenset(tokenizer.control.values())
        self.secret = hide(spec, self.reserved)
        self.backend = Backend.from_str(json.dumps(spec))
        names = sorted(self.secret, key=len, reverse=True)  # the longest of those that begin alike
        self._pattern = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self.token_names = _token_names(tokenizer)

    def encode(
        self, text: str, scaffold: Sequence[Sequence[int]], marks: Sequence[Sequence[int]]
    ) -> tuple[list[int], list[tuple[int, int]], int]:
        """Token ids; marks as (token, message); how many tokens there are."""
        spelled = self._spell(text, scaffold)
        encoding = self.backend.encode(spelled.text, add_special_tokens=False)
        self._refuse_lost(encoding.ids, spelled)
        begins = [start for start, _ in encoding.offsets]
        places = [(bisect_left(begins, spelled.place(at)), message) for at, message in marks]
        return encoding.ids, places, len(encoding.ids)

    def encode_spans(
        self, texts: Sequence[tuple[str, Sequence[Sequence[int]]]], spans: Sequence[Sequence[tuple[int, int]]]
    ) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Texts with their scaffold as token ids, on all cores, and for every text its spans of characters as
        spans of tokens: those that hold any character of it.
        """
        spelled = list(starmap(self._spell, texts))
        encodings = self.backend.encode_batch([one.text for one in spelled], add_special_tokens=False)
        rows = []
        for one, encoding, wanted in zip(spelled, encodings, spans, strict=True):
            self._refuse_lost(encoding.ids, one)
            begins, ends = ([offset[side] for offset in encoding.offsets] for side in (0, 1))
            found = [
                (bisect_right(ends, one.place(start)), bisect_left(begins, one.place(end)))
                for start, end in wanted
            ]
            rows.append((encoding.ids, found))
        return rows

    def controls(self, written: Written, start: int) -> list[tuple[str, int]]:
        """The control tokens that the template writes from a character on, each with where it ends."""
        return [
            (found[0], first + found.end())
            for first, last in written.scaffold
            if last > start
            for found in self._pattern.finditer(written.text[first:last])
            if first + found.start() >= start and found[0] in self.control
        ]

    def _spell(self, text: str, scaffold: Sequence[Sequence[int]]) -> _Spelled:
        """The text with secret names for the control tokens that the template wrote."""
        pieces: list[str] = []
        shifts: list[tuple[int, int]] = [(0, 0)]
        copied, grown = 0, 0
        for start, end in scaffold:
            for found in self._pattern.finditer(text[start:end]):
                secret = self.secret[found[0]]
                pieces += text[copied : start + found.start()], secret
                copied = start + found.end()
                grown += len(secret) - len(found[0])
                shifts.append((copied, grown))
        return _Spelled("".join([*pieces, text[copied:]]), shifts)

    def _refuse_lost(self, ids: Sequence[int], spelled: _Spelled) -> None:
        """Raise Refused where a tokenizer hides control tokens: never seen, and must not go unnoticed."""
        n_control = sum(token in self.reserved and token != self._unknown for token in ids)
        if n_control != len(spelled.shifts) - 1:
            wrote = f"the chat template writes {len(spelled.shifts) - 1} control tokens"
            raise Refused(f"{wrote}, of which this tokenizer makes {n_control}")


@dataclass(frozen=True)
class _Spelled:
    """A text in which control tokens have their secret names."""

    text: str
    shifts: list[tuple[int, int]]
    """From this character of the original on, the spelled text is so much longer."""

    def place(self, at: int) -> int:
        """Where a character of the original stands in the spelled text."""
        return at + self.shifts[bisect_left(self.shifts, (at + 1, -1)) - 1][1]


def _message_spans(
    marks: Sequence[tuple[int, int]], n_tokens: int, n_messages: int, has_system: bool
) -> list[tuple[int, int]]:
    """(start, end) of every message, from (token, message) marks; -1 stands for what is nobody's."""
    stretches: list[tuple[int, int, int]] = []  # (message, start, end)
    for (start, message), (end, _) in pairwise([*marks, (n_tokens, -1)]):
        if stretches and stretches[-1][0] == message and stretches[-1][2] == start:
            message, start, _ = stretches.pop()
        stretches.append((message, start, end))
    # A template may go over the messages more than once; where it writes most is where they stand.
    longest: dict[int, tuple[int, int]] = {}
    for message, start, end in stretches:
        known = longest.get(message, (0, 0))
        if end - start > known[1] - known[0]:
            longest[message] = (start, end)
    if has_system and 0 not in longest:
        longest[0] = (0, min((longest[message][0] for message in longest if message > 0), default=0))
    spans, at = [], 0
    for message in range(n_messages):
        start, end = longest.get(message, (at, at))
        start = max(at, start)
        at = max(start, end)
        spans.append((start, at))
    return spans


def _texts_in(folder: Path) -> dict[str, str]:
    """The templates of a folder by name; a file of its own goes before tokenizer_config.json."""
    texts: dict[str, str] = {}
    if is_gguf(folder):
        found = chat_templates(read_gguf(folder))
    else:
        found = json_object(folder, "tokenizer_config.json").get("chat_template")
    if isinstance(found, str):
        texts["default"] = found
    elif isinstance(found, list):
        for part in found:
            if not (isinstance(part, dict) and {"name", "template"} <= part.keys()):
                where = printable(folder / "tokenizer_config.json")
                raise Refused(f"{where}: chat_template is a list of what has a name and a template")
            texts[str(part["name"])] = str(part["template"])
    more = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    files = {"default": "chat_template.jinja"}
    files |= {path.stem: f"{path.parent.name}/{path.name}" for path in more}
    for name, file in files.items():
        too_long = f"longer than {MAX_TEMPLATE_BYTES >> 10} kB, the limit"
        text = read_text(folder, file, MAX_TEMPLATE_BYTES, too_long)
        texts |= {} if text is None else {name: text}
    return texts


def _token_names(tokenizer: Tokenizer) -> dict[str, str]:
    """What templates call bos_token and so on; those that the folder names."""
    names: dict[str, str] = {}
    for name in _TOKEN_NAMES:
        token = tokenizer.config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            names[name] = token
    for name, number in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id)):
        if number is not None:
            names.setdefault(name, tokenizer.token(number))
    return names


def _allowed(variables: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in variables.items():
        if name not in VARIABLES:
            raise Refused(
                f"no template variable '{printable(str(name)[:40])}'{nearest(str(name)[:40], VARIABLES)};"
                f" a request may set {', '.join(VARIABLES)}"
            )
        if not VARIABLES[name](value):
            raise Refused(f"template variable {name} cannot be {printable(repr(value)[:40])}")
    return dict(variables)


def template_to_learn(folder: Path | None, given: str | None, tokenizer: Tokenizer | None) -> ChatTemplate:
    """The template by which a model learns to answer: the one given, else the folder's own, else ours."""
    found = template_of(folder, given)
    if found is not None:
        return found
    known = set() if tokenizer is None else set(tokenizer.control.values())
    return ChatTemplate.builtin("chatml" if {"<|im_start|>", "<|im_end|>"} <= known else "turns")


def template_of(folder: Path | None, given: str | None) -> ChatTemplate | None:
    """The template given (one of BUILTIN or a file), else the folder's own; None: it cannot chat."""
    if given is None:
        return None if folder is None else ChatTemplate.from_folder(folder)
    if given in BUILTIN:
        return ChatTemplate.builtin(given)
    try:
        return ChatTemplate(Path(given).read_text(encoding="utf-8"), name=f"the chat template {given}")
    except (OSError, UnicodeDecodeError):
        builtin = nearest(given, BUILTIN)
        raise Refused(
            f"the chat template {given} is no file that can be read{builtin}; it can be {', '.join(BUILTIN)}"
            " or a file"
        ) from None
