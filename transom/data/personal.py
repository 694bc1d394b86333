"""Personal data in texts, counted and never shown: e-mail addresses, phone numbers, numbers of cards.

A pattern finds what looks like one, and where a rule tells more it is asked: the check digit of a card (Luhn,
ISO/IEC 7812-1), as many digits as a phone number has (ITU-T E.164). What is counted is a hint to look at the
data, not a proof that there is nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

_CARD = re.compile(r"(?<![\w.,+-])[2-6]\d{3}(?:[ -]?\d){9,15}(?![\w-])")
_EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[a-z0-9-]{1,63}\.){1,8}[a-z]{2,24}(?!\w)", re.IGNORECASE)
_PHONE = re.compile(
    r"(?<![\w.,/+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){1,4}"
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4}|0\d{2,4}[ /-]\d{3,4}[ -]?\d{3,5})(?![\w-])"
)
PHONE_DIGITS = range(8, 16)


def passes_luhn(number: str) -> bool:
    """Whether the last digit of a number is the check digit of the others."""
    digits = [int(digit) for digit in number if digit.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_card(found: str) -> bool:
    digits = [digit for digit in found if digit.isdigit()]
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and passes_luhn(found)


def _is_phone(found: str) -> bool:
    digits = [digit for digit in found if digit.isdigit()]
    return len(digits) in PHONE_DIGITS and len(set(digits)) > 2


KINDS: dict[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "e-mail addresses": (_EMAIL, lambda _: True),
    "card numbers": (_CARD, _is_card),
    "phone numbers": (_PHONE, _is_phone),
}


def personal(text: str) -> Iterator[str]:
    """The kind of everything in a text that looks like personal data; a number is of one kind only."""
    if "@" not in text and not any(map(str.isdigit, text)):
        return
    taken: list[range] = []
    for kind, (pattern, is_one) in KINDS.items():
        for found in pattern.finditer(text):
            if is_one(found[0]) and not any(found.start() in span for span in taken):
                taken.append(range(*found.span()))
                yield kind


@dataclass
class PersonalData:
    """What was found in many texts."""

    counts: dict[str, int] = field(default_factory=dict)
    """Kind -> how many."""
    first: dict[str, str] = field(default_factory=dict)
    """Kind -> the place of the first."""

    def look(self, text: str, where: str) -> None:
        """Count what a text holds."""
        for kind in personal(text):
            self.counts[kind] = self.counts.get(kind, 0) + 1
            self.first.setdefault(kind, where)

    def __str__(self) -> str:
        kinds = [f"{count:,} {kind} (first at {self.first[kind]})" for kind, count in self.counts.items()]
        return ", ".join(kinds) or "none seen: no e-mail addresses, phone or card numbers"
