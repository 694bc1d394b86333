"""Stop strings against the definition: cut before the stop that is complete first, however text arrives."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scale import scaled
from transom.inference.stop import StopMatcher


def by_definition(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Read character by character; at the first end of a stop, cut before the longest that ends there."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            longest = max(ended, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(max_examples=scaled(500))
@given(
    pieces=st.lists(st.text(alphabet="abü", max_size=5), max_size=12),
    stops=st.lists(st.text(alphabet="abü", min_size=1, max_size=5), max_size=4),
)
def test_any_cut_into_pieces_gives_the_text_of_the_definition(pieces, stops):
    matcher, released = StopMatcher(stops), ""
    for piece in pieces:
        released += matcher.push(piece)
        assert "".join(pieces).startswith(released)
        assert not any(stop in released for stop in stops)
    assert (released + matcher.finish(), matcher.found) == by_definition("".join(pieces), stops)


def test_only_a_possible_beginning_is_held_back():
    matcher = StopMatcher(["END", "\n\n"])
    assert matcher.push("one ") == "one "
    assert matcher.push("two\n") == "two"
    assert matcher.push("three E") == "\nthree "
    assert matcher.push("N") == ""
    assert matcher.push("d") == "ENd"
    assert matcher.push(" E") == " "
    assert matcher.push("ND more") == ""
    assert matcher.found == "END"
    assert matcher.push("later") == "" and matcher.finish() == ""


def test_without_stops_nothing_is_held_back():
    matcher = StopMatcher(())
    assert matcher.push("text") == "text" and matcher.finish() == "" and matcher.found is None


def test_long_text_costs_only_its_new_part():
    matcher = StopMatcher(["a" * 250 + "b"] * 16)
    released = sum(len(matcher.push("a" * 10)) for _ in range(2000))
    assert released == 20_000 - 250
