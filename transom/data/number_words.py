"""Numbers in words, in English, German and French: what the dates of `dates` need, 0 to 99 and years.

Read next: dates.
"""

from __future__ import annotations


def listed(words: str) -> tuple[str, ...]:
    """The words of a line, one by one."""
    return tuple(words.split())


_ENGLISH = listed(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_ENGLISH_TENS = listed("- - twenty thirty forty fifty sixty seventy eighty ninety")
_ENGLISH_ODD = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth"}
_ENGLISH_ODD |= {"nine": "ninth", "twelve": "twelfth", "twenty": "twentieth", "thirty": "thirtieth"}

_GERMAN = listed(
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn "
    "siebzehn achtzehn neunzehn"
)
_GERMAN_TENS = listed("- - zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig")
_GERMAN_ODD = {1: "erste", 3: "dritte", 7: "siebte", 8: "achte"}

_FRENCH = listed(
    "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dix-sept "
    "dix-huit dix-neuf"
)
_FRENCH_TENS = listed("- - vingt trente quarante cinquante soixante soixante quatre-vingt quatre-vingt")


def english(n: int) -> str:
    """84 -> eighty-four."""
    tens, ones = divmod(n, 10)
    if n < 20:
        return _ENGLISH[n]
    return _ENGLISH_TENS[tens] + (f"-{_ENGLISH[ones]}" if ones else "")


def english_ordinal(n: int) -> str:
    """22 -> twenty-second."""
    *before, last = english(n).split("-")
    return "-".join([*before, _ENGLISH_ODD.get(last, last + "th")])


def english_year(year: int) -> str:
    """1984 -> nineteen eighty-four, 1905 -> nineteen oh five, 2005 -> two thousand five."""
    century, rest = divmod(year, 100)
    if century % 10 == 0 and rest < 10:
        return f"{_ENGLISH[century // 10]} thousand" + (f" {_ENGLISH[rest]}" if rest else "")
    return f"{english(century)} " + (
        english(rest) if rest > 9 else f"oh {_ENGLISH[rest]}" if rest else "hundred"
    )


def german(n: int) -> str:
    """84 -> vierundachtzig."""
    tens, ones = divmod(n, 10)
    if n < 20:
        return _GERMAN[n]
    one = "ein" if ones == 1 else _GERMAN[ones]
    return (f"{one}und" if ones else "") + _GERMAN_TENS[tens]


def german_ordinal(n: int) -> str:
    """22 -> zweiundzwanzigste."""
    return _GERMAN_ODD.get(n) or german(n) + ("te" if n < 20 else "ste")


def german_year(year: int) -> str:
    """1984 -> neunzehnhundertvierundachtzig, 2005 -> zweitausendfünf."""
    century, rest = divmod(year, 100)
    head = (
        f"{german(century // 10)}tausend"
        if century % 10 == 0 and century >= 20
        else f"{german(century)}hundert"
    )
    return head + (german(rest) if rest else "")


def french(n: int) -> str:
    """84 -> quatre-vingt-quatre."""
    if n < 20:
        return _FRENCH[n]
    tens, ones = divmod(n, 10)
    if tens in (7, 9):
        ones += 10
    if not ones:
        return _FRENCH_TENS[tens] + ("s" if tens == 8 else "")
    joint = " et " if ones in (1, 11) and tens < 8 else "-"
    return _FRENCH_TENS[tens] + joint + _FRENCH[ones]


def french_day(n: int) -> str:
    """1 -> premier, 22 -> vingt-deux: only the first of a month is an ordinal."""
    return "premier" if n == 1 else french(n)


def french_year(year: int) -> str:
    """1984 -> mille neuf cent quatre-vingt-quatre, 2005 -> deux mille cinq."""
    century, rest = divmod(year, 100)
    thousands, hundreds = divmod(century, 10)
    parts = ["mille" if thousands == 1 else f"{french(thousands)} mille"]
    if hundreds:
        hundred = "cent" if hundreds == 1 else f"{french(hundreds)} cent"
        parts.append(hundred + ("s" if hundreds > 1 and not rest else ""))
    return " ".join(parts + ([french(rest)] if rest else []))
