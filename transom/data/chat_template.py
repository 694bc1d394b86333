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
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
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
    "chatml": """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
}
"""`plain`: a transcript, for models that have no template; `chatml`: for those that know its two tokens."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as a prompt."""

    tokens: list[int]
    message_spans: list[tuple[int, int]]
    """For every message where its tokens begin and end, its scaffold included. Empty where the template
    leaves it out or writes it outside of its loop; a system message written before the loop has what stands
    before the first other one.
    """


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
        self._spellings: dict[str, _Spelling] = {}

    @property
    def all_text(self) -> str:
        """All that it is made of: the template, and the one for conversations with tools."""
        return self.text + (self._tool_text or "")

    @classmethod
    def builtin(cls, name: str) -> ChatTemplate:
        """`plain` or `chatml`."""
        if name not in BUILTIN:
            raise Refused(
                f"no chat template '{printable(name)}'{nearest(name, BUILTIN)}; it is plain or chatml"
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
        spelling = self._spelling(tokenizer)
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
        tokens, starts, ends = spelling.encode(*self._ask(question))
        for token in prefix_tokens:
            if type(token) is not int or not 0 <= token < tokenizer.vocab_size:
                limit = f"this model's tokens are 0 to {tokenizer.vocab_size - 1}"
                raise Refused(f"prefix_tokens holds {printable(repr(token)[:40])}; {limit}")
        spans = _message_spans(starts, ends, len(checked), checked[0]["role"] in ("system", "developer"))
        return Rendered(tokens + list(prefix_tokens), spans)

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

        def written(messages: list[dict[str, str]]) -> str:
            variables = {
                "messages": messages,
                "tools": None,
                "documents": None,
                "add_generation_prompt": True,
            }
            names = self._spelling(tokenizer).token_names
            return self._ask({"template": self.text, "names": names, "variables": variables})[0]

        try:
            own = written(talk())
            before, found, after = written(talk(mark)).partition(mark)
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

    def _spelling(self, tokenizer: Tokenizer) -> _Spelling:
        if tokenizer.hash not in self._spellings:
            self._spellings[tokenizer.hash] = _Spelling(tokenizer)
        return self._spellings[tokenizer.hash]

    def _ask(self, question: dict[str, Any]) -> tuple[str, list[list[int]], list[list[int]]]:
        """The text, the spans of it that are scaffold, and which message begins where."""
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
        return answer["text"], answer["trust"], answer["marks"]


class _Spelling:
    """A copy of a tokenizer in which every control token has a name that nobody can write."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        spec = json.loads(tokenizer.json_text)
        unknown = spec["model"].get("unk_token")
        self._unknown = (
            spec["model"].get("unk_id") if unknown is None else tokenizer.backend.token_to_id(unknown)
        )  # content too becomes this token, where its characters are unknown
        self.reserved = tokenizer.reserved
        self.secret = hide(spec, self.reserved)
        self.backend = Backend.from_str(json.dumps(spec))
        names = sorted(self.secret, key=len, reverse=True)  # the longest of those that begin alike
        self._pattern = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self.token_names = _token_names(tokenizer)

    def encode(
        self, text: str, scaffold: Sequence[Sequence[int]], marks: Sequence[Sequence[int]]
    ) -> tuple[list[int], list[tuple[int, int]], int]:
        """Token ids; marks as (token, message); how many tokens there are."""
        pieces: list[str] = []
        shifts: list[tuple[int, int]] = [(0, 0)]  # from this character on, the spelled text is so much longer
        copied, grown = 0, 0
        for start, end in scaffold:
            for found in self._pattern.finditer(text[start:end]):
                secret = self.secret[found[0]]
                pieces += text[copied : start + found.start()], secret
                copied = start + found.end()
                grown += len(secret) - len(found[0])
                shifts.append((copied, grown))
        encoding = self.backend.encode("".join([*pieces, text[copied:]]), add_special_tokens=False)
        n_control = sum(token in self.reserved and token != self._unknown for token in encoding.ids)
        if n_control != len(shifts) - 1:  # never seen; a tokenizer that hides tokens must not go unnoticed
            wrote = f"the chat template writes {len(shifts) - 1} control tokens"
            raise Refused(f"{wrote}, of which this tokenizer makes {n_control}")
        begins = [start for start, _ in encoding.offsets]
        places = []
        for at, message in marks:
            shift = shifts[bisect_left(shifts, (at + 1, -1)) - 1][1]
            places.append((bisect_left(begins, at + shift), message))
        return encoding.ids, places, len(encoding.ids)


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


def template_of(folder: Path | None, given: str | None) -> ChatTemplate | None:
    """The template given (`plain`, `chatml` or a file), else the folder's own; None: it cannot chat."""
    if given is None:
        return None if folder is None else ChatTemplate.from_folder(folder)
    if given in BUILTIN:
        return ChatTemplate.builtin(given)
    try:
        return ChatTemplate(Path(given).read_text(encoding="utf-8"), name=f"the chat template {given}")
    except (OSError, UnicodeDecodeError):
        builtin = nearest(given, BUILTIN)
        raise Refused(
            f"--chat-template {given} is no file that can be read{builtin}; it can be plain, chatml or a file"
        ) from None
