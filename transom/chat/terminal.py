"""Chat in the terminal: read a line, stream the answer, say what the model still knows of the conversation.

Lines that begin with a slash are commands (`COMMANDS`). Works the same when a script writes the lines: then
nothing but answers goes to the output, and the first mistake ends it. What a model writes can move no
cursor: control characters are shown, not sent. Read next: conversation, memory.
"""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from transom.data.chat_template import ChatTemplate
from transom.data.documents import printable
from transom.data.textfile import bad_byte
from transom.errors import Refused, nearest
from transom.inference.dtype import in_words
from transom.inference.generator import Generator
from transom.units import counted

from .conversation import ContextWindow, Conversation
from .memory import Fact, Memory, note, used_here


def chat(
    generator: Generator,
    template: ChatTemplate,
    *,
    system: str = "",
    memory: Memory | None = None,
    max_tokens: int | None = None,
    stdin: TextIO | None = None,
    stdout: TextIO | None = None,
    stderr: TextIO | None = None,
    **settings: Any,
) -> Conversation:
    """Talk until the input ends or /quit; the conversation as it then stands.

    memory: facts to use and keep, None for none. settings: as for `Generator.generate`. With a script as
    its input, raises Refused at the first line that cannot be carried out.
    """
    ends = generator.eos_ids | template.end_ids(generator.tokenizer)
    generator = Generator(
        generator.model,
        generator.tokenizer,
        eos_ids=tuple(ends),
        generation=generator.generation,
        reason=generator.reason,
        weights=generator.weights,
    )
    room = generator.answer_tokens if max_tokens is None else max_tokens
    settings = generator.generation.draws(settings, chat=True)
    settings["stop"] = [*template.stop, *settings.get("stop", ())]
    talk = ChatSession(generator, template, Conversation(system), memory, room, settings)
    talk.input, talk.out, talk.err = stdin or sys.stdin, stdout or sys.stdout, stderr or sys.stderr
    talk.run()
    return talk.conversation


class ChatSession:
    """One session at the terminal: the conversation, and what it is carried on with."""

    input: TextIO
    out: TextIO
    err: TextIO

    def __init__(
        self,
        generator: Generator,
        template: ChatTemplate,
        conversation: Conversation,
        memory: Memory | None,
        max_tokens: int,
        settings: dict[str, Any],
    ) -> None:
        self.generator, self.template, self.conversation = generator, template, conversation
        self.memory, self.max_tokens, self.settings = memory, max_tokens, settings
        self.saved: set[str] = set()
        """Files that this session wrote, which it may write again."""
        self.n_again = 0  # answers asked for again: each is to be another one, under a fixed seed too

    @property
    def interactive(self) -> bool:
        """Whether a person types."""
        return self.input.isatty()

    def run(self) -> None:
        """Line after line until the input ends or a command says so."""
        if self.interactive:
            self.say(
                f"A model of {in_words(self.generator.model)}.\nSay something; /help lists the commands."
            )
        if self.memory is not None and (used := used_here(self.memory)):
            self.say(f"{used} (/memory lists, /memory off leaves out)")
        for line in self._lines():
            try:
                if line.startswith("/"):
                    if not self._command(line):
                        return
                elif line:
                    self._hear(line)
            except Refused as refused:
                if not self.interactive:
                    raise
                self.say(f"refused: {refused}")

    def say(self, text: str) -> None:
        """A word of our own, beside the answers: on the error stream, dim where a person looks."""
        dim, end = ("\033[2m", "\033[0m") if self.err.isatty() else ("", "")
        print(f"{dim}{text}{end}", file=self.err, flush=True)

    # What a person says

    def _lines(self) -> Iterator[str]:
        """Lines without their ends; Ctrl-C at an empty prompt begins a new line.

        What a person types comes in the terminal's encoding, a script in UTF-8: Refused for other bytes.
        """
        source, n = None if self.interactive else getattr(self.input, "buffer", None), 0
        while True:
            if self.interactive:
                self.out.write("\n> ")
                self.out.flush()
            try:
                line = self.input.readline() if source is None else source.readline()
            except KeyboardInterrupt:
                continue
            except UnicodeDecodeError:
                self.say("refused: that line is not UTF-8; is the terminal's encoding another?")
                continue
            if not line:
                return
            n += 1
            if isinstance(line, bytes):
                line = line.removeprefix(codecs.BOM_UTF8) if n == 1 else line
                if (fault := bad_byte(line)) is not None:
                    raise Refused(f"standard input:{n}: byte {fault[0]} {fault[2]}")
                line = line.decode()
            yield line.strip()

    def _hear(self, text: str) -> None:
        if self.memory is not None:
            heard = self.memory.hear(text)
            if fact := heard.kept:
                self.say(f"kept as fact {fact.id}: {printable(fact.text)} (/forget {fact.id} takes it back)")
            if heard.not_kept:
                self.say(f"not kept: {heard.not_kept}")
        with self._unless_refused():
            self.conversation.say(text)
            self._answer()

    @contextmanager
    def _unless_refused(self) -> Iterator[None]:
        """Where the block is refused, the conversation is again what it was."""
        before = list(self.conversation.messages)
        try:
            yield
        except Refused:
            self.conversation.messages = before
            raise

    def _answer(self) -> None:
        """Stream the answer to the last message; Ctrl-C keeps what was written until then."""
        kept, facts = self._kept()
        settings = self.settings
        if settings.get("seed") is not None:
            settings = {**settings, "seed": settings["seed"] + self.n_again}
        stream = self.generator.stream(kept.tokens, continues=False, max_tokens=self.max_tokens, **settings)
        pieces: list[str] = []
        with _interruptible():
            for piece in stream:
                pieces.append(piece)
                self.out.write(shown(piece))
                self.out.flush()
        self.out.write("\n")
        self.out.flush()
        self.conversation.answer("".join(pieces))
        if facts:
            told = " · ".join(printable(fact.text) for fact in facts)
            self.say(f"{len(facts)} remembered fact{'s' * (len(facts) != 1)} went along: {told}")
        if self.interactive or kept.n_dropped:
            self.say(str(kept))
        if stream.completion and stream.completion.finish_reason == "length":
            self.say(f"cut at {counted(self.max_tokens, 'token')}; --max-tokens allows more")

    def _kept(self) -> tuple[ContextWindow, list[Fact]]:
        """What the model will read now, and the facts in it."""
        asked = next((m.content for m in reversed(self.conversation.messages) if m.role == "user"), "")
        facts = self.memory.relevant(asked) if self.memory is not None else []
        limit = self.generator.model.config.max_len
        fitting = self.conversation.fits(
            self.template, self.generator.tokenizer, limit, self.max_tokens, note=note(facts)
        )
        return fitting, facts

    # Commands

    def _command(self, line: str) -> bool:
        """Carry out a command; False where it ends the talk."""
        name, _, rest = line[1:].partition(" ")
        if name == "quit":
            return False
        if name not in COMMANDS:
            known = nearest(name, COMMANDS) or "; /help lists them"
            raise Refused(f"/{printable(name)} is no command{known}")
        COMMANDS[name][0](self, rest.strip())
        return True

    def help(self, _: str) -> None:
        width = max(len(usage) for _, usage, _ in COMMANDS.values())
        self.say("\n".join(f"{usage:{width}}  {what}" for _, usage, what in COMMANDS.values()))

    def regenerate(self, _: str) -> None:
        with self._unless_refused():
            self.conversation.regenerate()
            self.n_again += 1
            self._answer()

    def edit(self, text: str) -> None:
        """Replace the last thing the user said, with its answer."""
        if not text:
            raise Refused("/edit needs the new words, as in: /edit What is a transom?")
        mine = [i for i, message in enumerate(self.conversation.messages) if message.role == "user"]
        with self._unless_refused():
            self.conversation.edit(mine[-1] if mine else -1, text)
            self._answer()

    def context(self, _: str) -> None:
        kept, facts = self._kept()
        lines = [str(kept), *(f"  fact {fact.id}: {printable(fact.text)}" for fact in facts)]
        for i, message in enumerate(self.conversation.messages):
            mark = "dropped" if i < kept.n_dropped else "kept   "
            lines.append(f"  {mark} {message.role}: {printable(message.content[:60])}")
        self.say("\n".join(lines))

    def list_facts(self, switch: str) -> None:
        memory = self._memory()
        if switch in ("on", "off"):
            memory.enabled = switch == "on"
        elif switch:
            raise Refused(f"/memory {printable(switch)}: say /memory, /memory on or /memory off")
        state = "on" if memory.enabled else "off: nothing is kept or used"
        facts = [f"  {fact.id}: {printable(fact.text)}" for fact in memory.facts()]
        lead = f"memory is {state}; {counted(len(facts), 'fact')} in {printable(memory.path)}"
        self.say("\n".join([lead, *facts]))

    def remember(self, text: str) -> None:
        fact = self._memory().remember(text)
        self.say(f"kept as fact {fact.id}: {printable(fact.text)}")

    def forget(self, which: str) -> None:
        memory = self._memory()
        if which == "all":
            self.say(f"{counted(memory.forget_all(), 'fact')} forgotten")
        elif which.isdecimal():
            memory.forget(int(which))
            self.say(f"fact {which} forgotten")
        else:
            raise Refused("/forget needs the number of a fact, or all; /memory lists them")

    def save(self, path: str) -> None:
        if not path:
            raise Refused("/save needs a file, as in: /save talk.json")
        if path not in self.saved and Path(path).exists():
            raise Refused(f"{printable(path)} is there already; /save under another name")
        self.conversation.save(path)
        self.saved.add(path)
        self.say(f"{counted(len(self.conversation.messages), 'message')} saved in {printable(path)}")

    def new(self, _: str) -> None:
        self.conversation = Conversation(self.conversation.system)
        self.say("a new conversation; the memory stays")

    def _memory(self) -> Memory:
        if self.memory is None:
            raise Refused("this chat was started without a memory; start it again with one")
        return self.memory


COMMANDS: dict[str, tuple[Callable[[ChatSession, str], None], str, str]] = {
    "help": (ChatSession.help, "/help", "this list"),
    "regenerate": (ChatSession.regenerate, "/regenerate", "another answer to the last message"),
    "edit": (ChatSession.edit, "/edit TEXT", "say the last message differently"),
    "context": (ChatSession.context, "/context", "what the model reads now: kept, dropped, facts"),
    "memory": (ChatSession.list_facts, "/memory [on|off]", "the facts kept, and the switch"),
    "remember": (ChatSession.remember, "/remember TEXT", 'keep a fact; "remember that ..." does too'),
    "forget": (ChatSession.forget, "/forget N|all", "forget a fact for good"),
    "save": (ChatSession.save, "/save FILE", "the conversation as JSON"),
    "new": (ChatSession.new, "/new", "a new conversation"),
    "quit": (ChatSession.help, "/quit", "the end; so is the end of the input"),
}
"""Name -> what does it, how it is written, what it is for."""


def shown(text: str) -> str:
    """Text that cannot steer a terminal: control characters but newlines and tabs are spelled out."""
    return "".join(c if c in "\n\t" or c.isprintable() else printable(c) for c in text)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends the block and nothing else."""
    try:
        yield
    except KeyboardInterrupt:
        return
