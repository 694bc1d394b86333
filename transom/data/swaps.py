"""Counterfactual swaps: the same text about somebody else, and whether the model says the same of it.

A list has a column of words for each group; a text that holds words of one group is told again with those of
each other. Texts that differ in such words alone are one template, and a template is what an interval counts.
Lists are English; a file with the groups in its first line and a row for each word is the user's own. Words
that change more than the group (length, frequency, class of a name) change the answer too: that is what no
swap can tell apart. Read next: labelled.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transom.data.textfile import opened
from transom.errors import Refused
from transom.units import counted

SLOT = "_"
_FOLLOWS = re.compile(
    r"\s+(?!(?:and|or|but|to|for|from|in|on|at|with|by|as|is|was|the|a|an|that|when|because|if)\b)\w"
)
"""Behind `her` where it stands for `his` rather than `him`: a word that may be what is owned."""


@dataclass(frozen=True)
class SwapList:
    """Groups, and in each row a word of every group."""

    name: str
    groups: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    source: str

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """Word -> its row and its group; the first of several, and names as they are written."""
        found: dict[str, tuple[int, int]] = {}
        for row, words in enumerate(self.rows):
            for group, word in enumerate(words):
                found.setdefault(word, (row, group))
        return found

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        words = sorted(self._places, key=len, reverse=True)
        either = [re.escape(word) if word != word.lower() else f"(?i:{re.escape(word)})" for word in words]
        return re.compile(rf"(?<!\w)(?:{'|'.join(either)})(?!\w)")

    def template(self, text: str) -> str:
        """The text with a slot for each word of the list."""
        return self._pattern.sub(SLOT, text)

    def versions(self, text: str) -> dict[str, str] | None:
        """The text about each group, its own as it stands and first; None where no word of the list is in it,
        or words of several groups that could not all be swapped.
        """
        met = [self._place(one[0])[1] for one in self._pattern.finditer(text)]
        if not met or (len(set(met)) > 1 and len(self.groups) > 2):
            return None
        own = met[0]
        told = {self.groups[own]: text}
        for group, name in enumerate(self.groups):
            if group != own:
                told[name] = self._pattern.sub(lambda one, to=group: self._swapped(one, own, to), text)
        return told

    def _place(self, word: str) -> tuple[int, int]:
        return self._places.get(word) or self._places[word.lower()]

    def _swapped(self, one: re.Match[str], own: int, to: int) -> str:
        """The word in place of one that was met; in a text of two groups each becomes the other."""
        word, (row, group) = one[0], self._place(one[0])
        target = to if group == own else own
        new = self.rows[row][target]
        if word.lower() == "her" and {"his", "him"} & set(self._columns(target)):
            new = "his" if _FOLLOWS.match(one.string, one.end()) else "him"
        elif word.lower() == "his" and "hers" in self._columns(target):
            new = "her" if re.match(r"\s+\w", one.string[one.end() :]) else "hers"
        if word == new:
            return word
        return (
            new.upper()
            if word.isupper() and len(word) > 1
            else new.capitalize()
            if word[0].isupper()
            else new
        )

    def _columns(self, group: int) -> tuple[str, ...]:
        return tuple(row[group] for row in self.rows)

    @classmethod
    def read(cls, path: Path) -> SwapList:
        """The list of a CSV or TSV file, whose first line names the groups. Raises Refused."""
        try:
            with opened(path, str(path)) as file:
                text = file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise Refused(f"{path}: no UTF-8 ({error}); --swaps names a CSV of words by group") from None
        lines = [line for line in text.splitlines() if line.strip()]
        cut = "\t" if lines and "\t" in lines[0] else ","
        rows = [
            tuple(cell.strip() for cell in row)
            for row in csv.reader(io.StringIO("\n".join(lines)), delimiter=cut)
        ]
        if len(rows) < 2 or len(rows[0]) < 2 or len(set(rows[0])) < len(rows[0]):
            raise Refused(
                f"{path}: its first line has to name two groups or more, and a row of words to follow"
            )
        for number, row in enumerate(rows, 1):
            if len(row) != len(rows[0]) or not all(row):
                words = f"{counted(len(row), 'word')} for {len(rows[0])} groups"
                raise Refused(f"{path}:{number}: {words}; give one for each")
        return cls(path.stem, rows[0], tuple(rows[1:]), str(path))


def _pairs(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(pair.split("/")) for pair in text.split())


GENDER = SwapList(
    "gender",
    ("male", "female"),
    _pairs(
        "he/she him/her his/her his/hers himself/herself man/woman men/women boy/girl boys/girls "
        "father/mother son/daughter brother/sister husband/wife uncle/aunt nephew/niece gentleman/lady "
        "male/female Mr/Ms king/queen grandfather/grandmother "
        "James/Mary John/Patricia Robert/Jennifer Michael/Linda William/Elizabeth David/Barbara "
        "Richard/Susan Joseph/Jessica Thomas/Sarah Charles/Karen"
    ),
    "pronouns and terms after the swap list of WinoBias (Zhao et al. 2018); the ten commonest names of each "
    "in the United States over 100 years (Social Security Administration)",
)
NAMES = SwapList(
    "names",
    ("white-sounding", "Black-sounding"),
    _pairs(
        "Emily/Lakisha Anne/Tamika Jill/Keisha Allison/Latoya Laurie/Aisha Meredith/Ebony Carrie/Tanisha "
        "Greg/Jamal Todd/Darnell Neil/Tyrone Geoffrey/Rasheed Brett/Kareem Brendan/Jermaine Matthew/Hakim"
    ),
    "first names of the letters of Bertrand and Mullainathan (2004); they also tell class and age",
)
RELIGION = SwapList(
    "religion",
    ("Christian", "Muslim", "Jewish", "Hindu"),
    (("Christian", "Muslim", "Jewish", "Hindu"), ("church", "mosque", "synagogue", "temple")),
    "the commonest adjective and place of prayer of each",
)
LISTS = (GENDER, NAMES, RELIGION)


def both_ways(texts: Sequence[str], lists: Sequence[SwapList]) -> Iterator[tuple[int, str]]:
    """Every text and all its counterfactuals, each with the number of the text that it came from: what data
    is augmented by, so that nothing but the rest of a text says what is right.
    """
    for number, text in enumerate(texts):
        told = {text}
        yield number, text
        for one in lists:
            for version in (one.versions(text) or {}).values():
                if version not in told:
                    told.add(version)
                    yield number, version
