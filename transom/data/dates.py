"""Dates in words, in English, German and French, with the ISO date each one means: a translation task that
is always at hand and can be checked exactly.

`the fourteenth of July, 1984`, `Samstag, 14. Juli 1984`, `le quatorze juillet 1984` -> `1984-07-14`. Every
sentence names its month by a word and its year in full, so each has one meaning. Which dates are held out is
decided by a hash of the date alone: no wording of a held-out date is ever learned from. Read next: pairs.
"""

from __future__ import annotations

import datetime
import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from transom.data import number_words as words

DATES = "dates"
FIRST_YEAR, LAST_YEAR = 1950, 2049
LONGEST = 59
"""Characters of the longest sentence."""

_HELD_OUT_SHARE = 20  # one date in so many
_LOWER_SHARE = 0.1  # of the sentences are written without capitals


@dataclass(frozen=True)
class _Language:
    """How a language writes dates; in templates {d} is the day, {o} its ordinal in digits, {w} in words,
    {i} inflected, {m} the month, {s} its abbreviation, {D} the weekday, {S} its abbreviation, {y} the year,
    {Y} the year in words.
    """

    months: tuple[str, ...]
    short_months: tuple[str, ...]
    weekdays: tuple[str, ...]
    """Monday first."""
    short_weekdays: tuple[str, ...]
    day_in_digits: Callable[[int], str]
    day_in_words: Callable[[int], str]
    inflected: Callable[[int], str]
    year_in_words: Callable[[int], str]
    templates: tuple[str, ...]


def _english_digits(day: int) -> str:
    ending = "th" if 10 < day < 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{ending}"


_LANGUAGES = (
    _Language(
        words.listed("January February March April May June July August September October November December"),
        words.listed("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec"),
        words.listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
        words.listed("Mon Tue Wed Thu Fri Sat Sun"),
        _english_digits,
        words.english_ordinal,
        words.english_ordinal,
        words.english_year,
        (
            "{m} {d}, {y}", "{m} {d} {y}", "{m} {o}, {y}", "{d} {m} {y}", "{o} {m} {y}", "{o} of {m} {y}",
            "the {o} of {m}, {y}", "{s} {d}, {y}", "{s} {d} {y}", "{d} {s} {y}",
            "{D}, {m} {d}, {y}", "{D} {d} {m} {y}", "{D}, {d} {m} {y}", "{S} {d} {s} {y}",
            "{S}, {s} {d}, {y}", "{D} the {o} of {m} {y}", "{m} {w}, {y}", "the {w} of {m} {y}",
            "the {w} of {m}, {y}",
            "{D} the {w} of {m} {y}", "on the {w} of {m} {y}", "{d} {m} {Y}", "{m} {d}, {Y}",
            "the {o} of {m}, {Y}", "{m} {w}, {Y}", "the {w} of {m} {Y}", "{D}, {m} {w}, {y}",
            "{d} {s} {Y}", "{m} {o}, {Y}", "{D} {d} {m} {Y}", "{S}, {s} {d}, {Y}",
        ),
    ),
    _Language(
        words.listed("Januar Februar März April Mai Juni Juli August September Oktober November Dezember"),
        words.listed("Jan. Feb. März Apr. Mai Jun. Jul. Aug. Sept. Okt. Nov. Dez."),
        words.listed("Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag"),
        words.listed("Mo Di Mi Do Fr Sa So"),
        lambda day: f"{day}.",
        words.german_ordinal,
        lambda day: words.german_ordinal(day) + "n",
        words.german_year,
        (
            "{o} {m} {y}", "{o} {s} {y}", "der {o} {m} {y}", "am {o} {m} {y}", "den {o} {m} {y}",
            "{D}, {o} {m} {y}", "{D}, der {o} {m} {y}", "{D}, den {o} {m} {y}", "am {D}, dem {o} {m} {y}",
            "{S}, {o} {s} {y}", "{S}. {o} {m} {y}", "der {w} {m} {y}", "am {i} {m} {y}",
            "{D}, der {w} {m} {y}", "{D}, den {i} {m} {y}", "{o} {m} {Y}", "am {o} {m} {Y}",
            "der {w} {m} {Y}", "am {i} {m} {Y}", "{o} {s} {Y}", "{D}, {o} {m} {Y}", "den {o} {m} {Y}",
        ),
    ),
    _Language(
        words.listed("janvier février mars avril mai juin juillet août septembre octobre novembre décembre"),
        words.listed("janv. févr. mars avr. mai juin juil. août sept. oct. nov. déc."),
        words.listed("lundi mardi mercredi jeudi vendredi samedi dimanche"),
        words.listed("lun. mar. mer. jeu. ven. sam. dim."),
        lambda day: "1er" if day == 1 else str(day),
        words.french_day,
        words.french_day,
        words.french_year,
        (
            "{o} {m} {y}", "le {o} {m} {y}", "{o} {s} {y}", "le {o} {s} {y}", "{D} {o} {m} {y}",
            "le {D} {o} {m} {y}", "{S} {o} {s} {y}", "{D}, le {o} {m} {y}", "{w} {m} {y}", "le {w} {m} {y}",
            "{D} {w} {m} {y}", "le {D} {w} {m} {y}", "ce {w} {m} {y}", "{o} {m} {Y}", "le {o} {m} {Y}",
            "le {w} {m} {Y}", "{o} {s} {Y}", "le {o} {s} {Y}", "{S} {o} {m} {Y}",
        ),
    ),
)  # fmt: skip


def date_pairs(n: int, seed: int = 0, *, held_out: bool = False) -> list[tuple[str, str]]:
    """`n` different (date in words, ISO date), the same for the same arguments, in the order of training.

    `held_out` takes the dates that are kept for measuring; without it these never occur.
    """
    numbers = random.Random(f"dates {seed} {held_out}")
    days = _days(held_out)
    pairs: dict[str, str] = {}
    while len(pairs) < n:
        day = days[int(numbers.random() * len(days))]
        language = _LANGUAGES[int(numbers.random() * len(_LANGUAGES))]
        template = language.templates[int(numbers.random() * len(language.templates))]
        text = _written(day, language, template)
        text = text.lower() if numbers.random() < _LOWER_SHARE else text
        if len(text) <= LONGEST:
            pairs.setdefault(text, day.isoformat())
    return list(pairs.items())


def is_held_out(day: datetime.date) -> bool:
    """Whether a date is kept for measuring."""
    digest = hashlib.blake2b(day.isoformat().encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % _HELD_OUT_SHARE == 0


@cache
def _days(held_out: bool) -> tuple[datetime.date, ...]:
    first, last = datetime.date(FIRST_YEAR, 1, 1), datetime.date(LAST_YEAR, 12, 31)
    days = (first + datetime.timedelta(n) for n in range((last - first).days + 1))
    return tuple(day for day in days if is_held_out(day) == held_out)


def _written(day: datetime.date, language: _Language, template: str) -> str:
    """A date in the words of a template."""
    return template.format(
        d=day.day,
        o=language.day_in_digits(day.day),
        w=language.day_in_words(day.day),
        i=language.inflected(day.day),
        m=language.months[day.month - 1],
        s=language.short_months[day.month - 1],
        D=language.weekdays[day.weekday()],
        S=language.short_weekdays[day.weekday()],
        y=day.year,
        Y=language.year_in_words(day.year),
    )
