"""What a chat model writes, taken apart as it comes: reasoning, what it says, calls of tools.

The one idea: everything goes out at once but what could still become a marker, white space before one, and a
call that is not whole. What a client puts together from a stream is what it gets in one piece, since both are
read here. Each character is looked at once or twice, however the text is cut. Read next: tool_calls.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from .tool_calls import Call, CallSyntax, calls_in

THINK, END_THINK = "<think>", "</think>"
HEAD = 32
"""Characters of an answer in braces by which it shows whether it may be a call."""
PIECE = 4096
"""Characters of a whole answer that are taken at a time, since what follows a marker is copied."""
_BARE = re.compile(r'\{\s{0,16}"(?:name|type|function|parameters)"')


@dataclass
class ParsedOutput:
    """A part of an answer, or all of it."""

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.calls)

    def add(self, other: ParsedOutput) -> None:
        self.content += other.content
        self.reasoning += other.reasoning
        self.calls += other.calls


class OutputParser:
    """One answer on its way."""

    def __init__(
        self,
        *,
        syntax: CallSyntax | None = None,
        names: Collection[str] = (),
        parallel: bool = True,
        thinks: bool = False,
        opened: bool = False,
    ) -> None:
        """syntax: None where no tool may be called; names: of the tools. parallel: more calls than one may
        come. thinks: the answer may begin with reasoning; opened: the prompt has opened it already.
        """
        self._syntax, self._names, self._parallel = syntax, frozenset(names), parallel
        self._phase: Callable[[str, ParsedOutput], str] = self._saying
        if thinks or opened:
            self._phase = self._thinking if opened else self._beginning
        self._fresh = opened
        """White space at the beginning of a part is scaffold."""
        self._held = ""
        """The beginning of a marker, perhaps."""
        self._space: list[str] = []
        """White space that is told if something follows it."""
        self._call: list[str] = []
        self._opener = ""
        self._said = self._called = self._called_last = False

    def push(self, text: str) -> ParsedOutput:
        """Take the next piece; what is certain with it."""
        said, rest, self._held = ParsedOutput(), self._held + text, ""
        while rest:
            rest = self._phase(rest, said)
        return said

    def finish(self) -> ParsedOutput:
        """Return what is left when the answer has ended."""
        said, rest, self._held = ParsedOutput(), self._held, ""
        if self._phase == self._calling:
            self._call.append(rest)
            self._end_call("", said)
        elif self._phase == self._thinking:
            self._tell("reasoning", rest, said)
            return said  # white space at its end is scaffold
        else:
            self._tell("content", rest, said)
        said.content += "" if self._called_last else "".join(self._space)
        return said

    def _beginning(self, rest: str, said: ParsedOutput) -> str:
        """Before it is known whether the answer begins with reasoning."""
        text = rest.lstrip()
        self._space.append(rest[: len(rest) - len(text)])
        if text.startswith(THINK):
            self._space, self._fresh, self._phase = [], True, self._thinking
            return text[len(THINK) :]
        if THINK.startswith(text):
            self._held = text
            return ""
        self._phase = self._saying
        return text

    def _thinking(self, rest: str, said: ParsedOutput) -> str:
        before, found, after = _cut(rest, END_THINK)
        self._tell("reasoning", before, said)
        if not found:
            self._held = after
            return ""
        self._space, self._fresh, self._phase = [], True, self._saying
        return after

    def _saying(self, rest: str, said: ParsedOutput) -> str:
        if self._syntax is None:
            self._tell("content", rest, said)
            return ""
        if self._syntax.bare and not (self._said or self._called):
            text = rest.lstrip()
            if text.startswith("{"):
                self._space.append(rest[: len(rest) - len(text)])
                self._begin_call("")
                return text
        before, found, after = _cut(rest, self._syntax.opener)
        self._tell("content", before, said)
        if not found:
            self._held = after
            return ""
        self._begin_call(self._syntax.opener)
        return after

    def _begin_call(self, opener: str) -> None:
        self._call, self._opener, self._phase = [], opener, self._calling

    def _calling(self, rest: str, said: ParsedOutput) -> str:
        assert self._syntax is not None
        if not self._syntax.closer or not self._opener:
            self._call.append(rest)
            if not self._opener:
                self._leave_json(said)
            return ""
        before, found, after = _cut(rest, self._syntax.closer)
        self._call.append(before)
        if not found:
            self._held = after
            return ""
        self._end_call(self._syntax.closer, said)
        self._phase = self._saying
        return after

    def _leave_json(self, said: ParsedOutput) -> None:
        """Tell an answer in braces after all, once it shows that it is no call."""
        if len(self._call[0]) < HEAD:
            self._call = ["".join(self._call)]
            if len(self._call[0]) < HEAD:
                return
        if not _BARE.match(self._call[0]):
            self._phase = self._saying
            self._tell("content", "".join(self._call), said)

    def _end_call(self, closer: str, said: ParsedOutput) -> None:
        """Tell the calls that came, or else the text that they turned out to be."""
        assert self._syntax is not None
        written = "".join(self._call)
        calls = calls_in(written, self._syntax)
        if not self._opener and any(call["function"]["name"] not in self._names for call in calls):
            calls = []
        if not calls:
            self._tell("content", self._opener + written + closer, said)
            return
        said.calls += calls if self._parallel else [] if self._called else calls[:1]
        # White space around calls is theirs, but words before and after them stay apart.
        self._space = self._space if self._said else []
        self._fresh = bool(self._space) or not self._said
        self._called = self._called_last = True

    def _tell(self, kind: str, text: str, said: ParsedOutput) -> None:
        text = text.lstrip() if self._fresh else text
        if not text:
            return
        self._fresh = False
        waits = kind == "reasoning" or self._syntax is not None
        kept = text.rstrip() if waits else text
        if not kept:
            self._space.append(text)
            return
        told = "".join([*self._space, kept])
        self._space = [text[len(kept) :]]
        self._said, self._called_last = self._said or kind == "content", False
        if kind == "reasoning":
            said.reasoning += told
        else:
            said.content += told


def parsed(parser: OutputParser, text: str) -> ParsedOutput:
    """Return a whole answer taken apart."""
    said = ParsedOutput()
    for at in range(0, len(text), PIECE):
        said.add(parser.push(text[at : at + PIECE]))
    said.add(parser.finish())
    return said


def _cut(text: str, marker: str) -> tuple[str, bool, str]:
    """Return what stands before a marker, whether it is there, and what follows it or may become it."""
    before, found, after = text.partition(marker)
    if found:
        return before, True, after
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if marker.startswith(text[-length:]):
            return text[:-length], False, text[-length:]
    return text, False, ""
