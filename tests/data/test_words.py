"""The fast way of encoding large texts gives exactly the ids of its plain twin, the library."""

from __future__ import annotations

import itertools
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.conftest import NASTY
from tests.data.test_documents import TEXTS
from tests.scale import scaled
from transom.data import words
from transom.data.sources import open_source
from transom.data.tokenizer import Tokenizer, train_tokenizer
from transom.data.words import WordEncoder

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def plain(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [tokenizer.backend.encode(text, add_special_tokens=False).ids for text in texts]


@pytest.fixture(scope="module")
def encoder(bpe: Tokenizer) -> WordEncoder:
    return WordEncoder(bpe.backend)


@pytest.fixture(autouse=True)
def always_by_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_MOSTLY_NEW", 2.0)


def test_nasty_texts(bpe: Tokenizer, encoder: WordEncoder) -> None:
    @given(texts=st.lists(TEXTS | ANY_TEXT, min_size=1, max_size=6))
    @settings(max_examples=scaled(500))
    def holds(texts: list[str]) -> None:
        assert [ids.tolist() for ids in encoder.encode(texts)] == plain(bpe, texts)

    holds()


def test_contractions_and_spaces(bpe: Tokenizer, encoder: WordEncoder) -> None:
    cases = [
        "I'll",
        "'tis",
        " 's",
        "x's's",
        "''s",
        "'",
        "a'",
        "'re",
        "'r",
        "'lla",
        "'sa 's1 '\u0301s",
        "1've",
        "é'd",
    ]
    cases += [
        "\n's",
        "\t'm x",
        "a  b",
        "a \n b",
        "a\n\n\nb",
        "   ",
        " \n",
        "\u00a0x",
        " \u00a0 x",
        "'S",
        "don'T",
        "\r\n\r\n",
    ]
    assert [ids.tolist() for ids in encoder.encode(cases)] == plain(bpe, cases)


def test_long_words_and_many_groups(bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_GROUP_CHARACTERS", 500)
    texts = [
        "=" * 300 + " " + "a" * 65 + "b" * 64,
        "世" * 200,
        NASTY,
        "",
        "x" * 64,
        " " * 70 + "y",
        NASTY[::-1],
    ]
    encoder = WordEncoder(bpe.backend)
    for _ in range(3):
        assert [ids.tolist() for ids in encoder.encode(texts)] == plain(bpe, texts)


def test_mostly_new_words_are_left_to_the_library(bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_MOSTLY_NEW", 0.4)
    encoder = WordEncoder(bpe.backend)
    permutations = ["".join(letters) for letters in itertools.permutations("abcdefgh")]
    text = " ".join(random.Random(0).choices(permutations, k=2000))
    assert [ids.tolist() for ids in encoder.encode([text])] == plain(bpe, [text])
    assert words._known([encoder._words([text])]) == ({"": 0}, [False])


def test_a_word_made_to_have_the_hash_of_another_stays_itself(bpe: Tokenizer, encoder: WordEncoder) -> None:
    forged, meant = " ᏻ𭮵𗳴𠓵𤵸𣎮𣫠𠴙", " not"  # found by a birthday search over eight letters
    assert _hash(forged) == _hash(meant)
    texts = [f"You must{forged} give it. " * 3, f"You must{meant} give it."]
    for asked in (texts, texts[::-1], ["".join(texts)], texts[:1], texts[1:]):
        assert [ids.tolist() for ids in encoder.encode(asked)] == plain(bpe, asked)


def _hash(word: str) -> int:
    points = np.frombuffer(word.encode("utf-32-le"), dtype=np.uint32)
    return int(words._hashes(points, np.zeros(1, dtype=np.int64), word)[0])


def _texts_of_few_shared_words(seed: int) -> list[str]:
    drawn = random.Random(seed)
    letters = ["".join(drawn.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(4_000)]
    return [" ".join(drawn.choices(letters, k=3_000)) for _ in range(4)]


def _callers_get_their_own(tokenizer: Tokenizer, seconds: float) -> None:
    """Four threads, each with texts of its own, for so long: every answer is the single-threaded one."""
    texts = [_texts_of_few_shared_words(seed) for seed in range(4)]
    right = [plain(tokenizer, some) for some in texts]
    fresh = Tokenizer(tokenizer.json_text, tokenizer.config)
    begin, end = threading.Barrier(4), time.monotonic() + seconds

    def call(i: int) -> int:
        begin.wait()
        n = 0
        while n < 2 or time.monotonic() < end:
            assert fresh.encode_many(texts[i]) == right[i]
            n += 1
        return n

    with ThreadPoolExecutor(4) as threads:
        assert all(n >= 2 for n in threads.map(call, range(4)))


def test_callers_at_once_get_their_own_ids(bpe: Tokenizer) -> None:
    _callers_get_their_own(bpe, 0)


@pytest.mark.slow
def test_callers_at_once_get_their_own_ids_for_half_a_minute(bpe: Tokenizer) -> None:
    _callers_get_their_own(bpe, 30)


@pytest.mark.parametrize(
    "name", ["tinyshakespeare/input.txt", "multi30k/train.fr.gz", "wikitext-2/valid.txt"]
)
def test_real_text(shared_data: Path, name: str) -> None:
    text = next(open_source(shared_data / name).documents()).text()[:600_000]
    tokenizer = train_tokenizer("bpe", iter([text]), 1000)
    texts = [text[at : at + 100_000] for at in range(0, len(text), 100_000)]
    for fast, slow in zip(WordEncoder(tokenizer.backend).encode(texts), plain(tokenizer, texts), strict=True):
        assert np.array_equal(fast, np.array(slow))
