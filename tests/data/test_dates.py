"""Dates in words: one meaning each, as an independent parser reads them; held-out dates are never learned."""

# ruff: noqa: E501 - tables of words

from __future__ import annotations

import datetime
import re

import pytest

from transom.data.dates import FIRST_YEAR, LAST_YEAR, LONGEST, date_pairs, is_held_out
from transom.data.pairs import open_pairs

MONTHS = {
    1: "january jan januar janvier janv", 2: "february feb februar février févr", 3: "march mar märz mars",
    4: "april apr avril avr", 5: "may mai", 6: "june jun juni juin", 7: "july jul juli juillet juil",
    8: "august aug août", 9: "september sep sept septembre", 10: "october oct oktober okt octobre",
    11: "november nov novembre", 12: "december dec dezember dez décembre déc",
}  # fmt: skip
MONTH_OF = {name: number for number, names in MONTHS.items() for name in names.split()}
WEEKDAYS = {
    0: "monday mon montag mo lundi lun", 1: "tuesday tue dienstag di mardi", 2: "wednesday wed mittwoch mi mercredi mer",
    3: "thursday thu donnerstag do jeudi jeu", 4: "friday fri freitag fr vendredi ven",
    5: "saturday sat samstag sa samedi sam", 6: "sunday sun sonntag so dimanche dim",
}  # fmt: skip
WEEKDAY_OF = {name: number for number, names in WEEKDAYS.items() for name in names.split()}
SMALL = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen,ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn "
    "sechzehn siebzehn achtzehn neunzehn,un deux trois quatre cinq six sept huit neuf dix onze douze treize "
    "quatorze quinze seize dix-sept dix-huit dix-neuf"
)
VALUES = {word: n for language in SMALL.split(",") for n, word in enumerate(language.split(), 1)}
TENS = "twenty thirty forty fifty sixty seventy eighty ninety,zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig"
VALUES |= {word: 10 * n for language in TENS.split(",") for n, word in enumerate(language.split(), 2)}
VALUES |= {"vingt": 20, "trente": 30, "quarante": 40, "cinquante": 50, "soixante": 60, "vingts": 20}
VALUES |= {"oh": 0, "eins": 1, "first": 1, "second": 2, "third": 3, "fifth": 5, "eighth": 8, "ninth": 9}
VALUES |= {"twelfth": 12, "twentieth": 20, "thirtieth": 30, "erste": 1, "dritte": 3, "siebte": 7, "achte": 8}
VALUES["premier"] = 1


def number(text: str) -> int:
    """A spelled number: greedy words, hundreds and thousands multiply, `quatre-vingt` multiplies too."""
    if text.isdigit():
        return int(text)
    german = re.fullmatch(r"(.*?)(hundert|tausend)(.*)", text)
    if german:
        before, unit, after = german.groups()
        return number(before) * (100 if unit == "hundert" else 1000) + (number(after) if after else 0)
    tens = re.fullmatch(r"(.+)und(.+zig|.+ßig)(s?te)?", text)
    if tens and tens[1] in VALUES:
        return VALUES[tens[1]] + VALUES[tens[2]]
    total, year, parts = 0, 0, [part for part in re.split(r"[- ]", text) if part not in ("et", "")]
    for at, part in enumerate(parts):
        stems = (part, *(part.removesuffix(ending) for ending in ("th", "te", "ste")))
        part = next((stem for stem in stems if stem in VALUES), part)
        if part in ("mille", "thousand"):
            year, total = year + max(total, 1) * 1000, 0
        elif part in ("cent", "cents", "hundred"):
            year, total = year + max(total, 1) * 100, 0
        elif part in ("vingt", "vingts") and at and parts[at - 1] == "quatre":
            total = total - 4 + 80
        else:
            total += VALUES[part]
    return year + total


def parsed(text: str) -> tuple[str, int | None]:
    """The ISO date of a sentence, and its weekday where it names one."""
    words = text.lower().replace(",", " ").replace(".", " ").split()
    weekday = None
    for at, word in enumerate(words):
        # `mar` is March in English and, before another month, Tuesday in French
        other = any(later in MONTH_OF for later in words[1:-1])
        if word in WEEKDAY_OF or (word == "mar" and at == 0 and other):
            weekday = WEEKDAY_OF.get(word, 1)
            words = words[:at] + words[at + 1 :]
            break
    words = [word for word in words if word not in ("the", "of", "on", "am", "der", "den", "dem", "le", "ce")]
    at = max(at for at, word in enumerate(words[:-1]) if word in MONTH_OF)  # `sept` is seven as well
    month, before, after = MONTH_OF[words[at]], words[:at], words[at + 1 :]
    if not before:  # July 14 1984: the day is one word
        before, after = after[:1], after[1:]
    day = re.sub(r"^(\d+)(st|nd|rd|th|er)$", r"\1", " ".join(before))
    day = day if day in VALUES or not day.endswith("ten") else day.removesuffix("n")
    year = " ".join(after)
    if " " in year and year.split()[1] not in ("thousand", "mille", "cent", "neuf"):  # nineteen eighty-four
        first, rest = year.split(" ", 1)
        value = number(first) * 100 + (0 if rest == "hundred" else number(rest))
    else:
        value = number(year)
    return f"{value:04d}-{month:02d}-{number(day):02d}", weekday


@pytest.mark.parametrize("held_out", [False, True])
def test_every_sentence_has_one_meaning(held_out: bool) -> None:
    pairs = date_pairs(6000, seed=3, held_out=held_out)
    for text, iso in pairs:
        read, weekday = parsed(text)
        assert read == iso, text
        day = datetime.date.fromisoformat(iso)
        assert weekday in (None, day.weekday()), text
        assert FIRST_YEAR <= day.year <= LAST_YEAR and is_held_out(day) == held_out
    assert len({text for text, _ in pairs}) == len(pairs) and max(len(text) for text, _ in pairs) <= LONGEST
    assert not [text for text, _ in pairs if not re.search(r"[A-Za-zäéû]{3}", text)], "no digits alone"


def test_the_split_is_by_date_and_the_seed_decides_the_rest() -> None:
    learned = {iso for seed in range(3) for _, iso in date_pairs(20_000, seed)}
    held_out = {iso for _, iso in date_pairs(1_000, held_out=True)}
    assert not learned & held_out and len(held_out) > 600
    assert date_pairs(50, 1) == date_pairs(50, 1) == date_pairs(90, 1)[:50]
    assert date_pairs(50, 1) != date_pairs(50, 2)


def test_all_languages_and_kinds_of_wording() -> None:
    texts = [text for text, _ in date_pairs(20_000)]
    for sign in ("August 1", "août", "ärz", "nineteen", "neunzehnhundert", "mille neuf", "1er", "21st", "Sat ",
                 "Freitag, den", "le samedi", "Okt.", "juil.", "thirty-first", "einunddreißigste", "the "):  # fmt: skip
        assert sum(sign in text for text in texts) > 20, sign


def test_as_a_source() -> None:
    source = open_pairs("dates")
    assert source.tokenizer == "chars" and source.held_out is not None
    pairs = list(source)
    assert len(pairs) == 50_000 and pairs[0].where == "dates:1"
    assert list(open_pairs("dates:held-out")) == list(source.held_out)
    assert len(list(source.held_out)) == 1_000
