"""What looks like personal data is counted; dates, prices, versions and words are not."""

from __future__ import annotations

from collections import Counter

import pytest

from transom.data.personal import PersonalData, passes_luhn, personal

FOUND = {
    "write to ann.lee+x@mail.example.org, please": {"e-mail addresses": 1},
    "a@b.co and c_d@e-f.museum.": {"e-mail addresses": 2},
    "card 4111 1111 1111 1111 is a test": {"card numbers": 1},
    "4012888888881881, 378282246310005 and 5555-5555-5555-4444": {"card numbers": 3},
    "call +49 30 901820 or +1 (415) 555-2671": {"phone numbers": 2},
    "(415) 555-2671, 415-555-2671, 415.555.2671": {"phone numbers": 3},
    "030 1234 56789 in Berlin": {"phone numbers": 1},
    "": {},
    "It costs 1,234,567.89 on 2024-11-29 at 10:15, version 3.11.7, 192.168.0.1": {},
    "4111 1111 1111 1112 fails its check digit; 1234567890123456 is no card": {},
    "ISBN 978-3-16-148410-0, order 123-45, 10-12 of 2000-2010": {},
    "an @mention, a@b, user@localhost, 5 @ 3.50": {},
    "0000 0000 0000 0000": {},
    "pi is 3.141592653589793": {},
}


@pytest.mark.parametrize("text", FOUND)
def test_what_is_found(text: str) -> None:
    assert Counter(personal(text)) == FOUND[text]


def test_the_check_digit_is_luhns() -> None:
    known = ["79927398713", "4539578763621486", "6011000990139424"]
    assert all(map(passes_luhn, known))
    for number in known:
        for digit in "0123456789":
            assert passes_luhn(number[:-1] + digit) == (digit == number[-1])


def test_places_are_said_and_the_data_is_not() -> None:
    found = PersonalData()
    for line, text in enumerate(["nothing", "ann@example.org", "bob@example.org and 4111111111111111"], 1):
        found.look(text, f"a.jsonl:{line}")
    says = str(found)
    assert says == "2 e-mail addresses (first at a.jsonl:2), 1 card numbers (first at a.jsonl:3)"
    assert "ann" not in says and "4111" not in says
