"""From ids to text: the bytes that each token writes, and text as ids come one by one.

The one idea: every token writes the same bytes wherever it stands, but for the beginning of a text, where
SentencePiece and WordPiece leave out the space before a word. So a tokenizer is two tables of bytes, and
everything that turns ids into text reads them: the whole text, a stream, the bytes beside a log-probability,
the grammars of structured answers. Read next: tokenizer.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from tokenizers import Tokenizer as Backend

from transom.errors import Refused

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CHECKED = 64


@dataclass(frozen=True)
class Spelling:
    """For every id the bytes it writes; none for control and for ids that are no token."""

    first: list[bytes]
    """At the beginning of a text (V,)."""
    within: list[bytes]
    """After another token (V,)."""
    silent: frozenset[int]
    """Control and ids that are no token: after those alone a text still begins."""

    @classmethod
    def of_rules(cls, backend: Backend, names: Mapping[int, str], size: int) -> Spelling:
        """The spelling of foreign rules (Metaspace, byte fallback, WordPiece), asked of the library.

        names: the tokens that are written, by id. Raises Refused for rules by which a token's text hangs on
        its neighbours.
        """
        ids, silent = sorted(names), frozenset(range(size)) - names.keys()
        # Between two others that join without a space, as far as there are such: letters, else what has some.
        others = sorted(ids, key=lambda i: not (names[i].isascii() and names[i].isalpha()))
        side = [i for i in others if names[i][:1].isalnum()][:1]
        head = backend.decode(side, skip_special_tokens=False)
        tail = backend.decode(side * 2, skip_special_tokens=False)[len(head) :]
        alone = backend.decode_batch([[i] for i in ids], skip_special_tokens=False)
        texts = backend.decode_batch([[*side, i, *side] for i in ids], skip_special_tokens=False)
        first, within = [b""] * size, [b""] * size
        for i, text, opening in zip(ids, texts, alone, strict=True):
            written = text[len(head) : len(text) - len(tail)]
            byte = _BYTE.fullmatch(names[i])
            if byte and written != names[i]:  # half a character is not seen by itself
                within[i] = bytes.fromhex(byte[1])
                first[i] = within[i] if opening else b""
            else:
                first[i], within[i] = opening.encode(), written.encode()
        spelling = cls(first, within, silent)
        some = [i for i in ids[:: 1 + len(ids) // _CHECKED] if not _BYTE.fullmatch(names[i])]
        joined = b"".join([first[some[0]], *(within[i] for i in some[1:])]) if some else b""
        if joined.decode() != backend.decode(some, skip_special_tokens=False):
            raise Refused(
                "tokenizer.json: its decoder writes a token by what stands beside it; not read here"
            )
        return spelling

    def speaks(self, number: int) -> bool:
        """Whether an id is part of a text."""
        return 0 <= number < len(self.within) and number not in self.silent


class StreamDecoder:
    """Turns ids into text as they come, holding back what is not yet a whole character.

    The pieces and `finish()` joined are `Tokenizer.decode` of all ids, and what an id costs does not grow.
    """

    def __init__(
        self,
        spelling: Spelling,
        *,
        begun: bool = False,
        spaced: bool = False,
        markers: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        """begun: it goes on from another text. spaced: the space before its first word is written already.
        markers: control tokens that are written all the same, for a reader who looks for them.
        """
        self._spelling, self._begun, self._spaced, self._markers = spelling, begun, spaced, markers
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self.n_characters = 0
        """Characters given so far."""

    def writes(self, number: int) -> bytes:
        """The bytes that a token would write as the next one."""
        if number in self._markers:
            return self._markers[number].encode()
        table = self._spelling.within if self._begun else self._spelling.first
        data = table[number] if 0 <= number < len(table) else b""
        return data.removeprefix(b" ") if self._spaced else data

    @property
    def reach(self) -> int:
        """Characters given or begun so far."""
        return self.n_characters + bool(self._utf8.getstate()[0])

    def push(self, number: int) -> str:
        """Take the next id; the text that is now certain."""
        text = self._utf8.decode(self.writes(number))
        if self._spelling.speaks(number):
            self._begun, self._spaced = True, False
        self.n_characters += len(text)
        return text

    def finish(self) -> str:
        """The rest: U+FFFD where the last character never became whole."""
        text = self._utf8.decode(b"", final=True)
        self.n_characters += len(text)
        return text

    def text(self, ids: Sequence[int]) -> str:
        """What these would write from here on; changes nothing."""
        other = StreamDecoder(self._spelling, begun=self._begun, spaced=self._spaced, markers=self._markers)
        other._utf8.setstate(self._utf8.getstate())
        return "".join(map(other.push, ids))
