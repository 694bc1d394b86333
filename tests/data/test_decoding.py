"""Ids to text: a stream in pieces is the whole text, and the bytes of the tokens are its bytes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from tests.data.conftest import NASTY
from tests.data.test_chat_template import byte_level, sentencepiece_like
from tests.data.test_documents import TEXTS
from tests.scale import scaled
from transom.data.decoding import StreamDecoder
from transom.data.tokenizer import Tokenizer, train_tokenizer
from transom.errors import Refused

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def wordpiece() -> Tokenizer:
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = (
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    )
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    backend.train_from_iterator([NASTY], trainer)
    backend.decoder = decoders.WordPiece(cleanup=True)
    return Tokenizer(backend.to_str(), {"sep_token": "[SEP]", "pad_token": "[PAD]"})


def unigram() -> Tokenizer:
    backend = Backend(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator([NASTY], trainer)
    return Tokenizer(backend.to_str(), {"eos_token": "</s>", "pad_token": "<pad>"})


def bare() -> Tokenizer:
    """Words without a decoder: the library joins them with spaces."""
    backend = Backend(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "crow": 3}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizer(backend.to_str(), {})


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "bytes": lambda: train_tokenizer("bytes", iter([]), 0),
    "chars": lambda: train_tokenizer("chars", iter([NASTY]), 0),
    "metaspace": lambda: sentencepiece_like(legacy=False),
    "legacy": lambda: sentencepiece_like(legacy=True),
    "unigram": unigram,
    "wordpiece": wordpiece,
    "bare": bare,
}


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return MAKERS[request.param]()


def test_pieces_and_bytes_are_the_whole_text(tokenizer: Tokenizer) -> None:
    @given(
        ids=st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=30),
        cut=st.integers(0, 30),
        text=TEXTS,
    )
    @settings(max_examples=scaled(60))
    def holds(ids: list[int], cut: int, text: str) -> None:
        for some in (ids, tokenizer.encode(text)):
            whole = tokenizer.decode(some)
            decoder, written, pieces = tokenizer.decoder(), b"", []
            for number in some:
                begun = decoder.n_characters
                written += decoder.writes(number)
                pieces.append(decoder.push(number))
                assert begun <= decoder.n_characters <= decoder.reach <= len(whole)
            assert "".join(pieces) + decoder.finish() == whole == written.decode("utf-8", "replace")
            assert decoder.n_characters == len(whole)
            # In two halves, the second going on from the first.
            first, second = tokenizer.decoder(), tokenizer.decoder(some[:cut])
            assert _written(first, some[:cut]) + _written(second, some[cut:]) == written

    holds()


def _written(decoder: StreamDecoder, ids: list[int]) -> bytes:
    data = b""
    for number in ids:
        data += decoder.writes(number)
        decoder.push(number)
    return data


def test_whole_texts_are_what_the_library_writes(tokenizer: Tokenizer) -> None:
    @given(text=ANY_TEXT | TEXTS, order=st.randoms(use_true_random=False))
    @settings(max_examples=scaled(60))
    def holds(text: str, order: random.Random) -> None:
        ids = tokenizer.encode(text)
        if tokenizer.unknown_id is None:  # our own mark of an unknown character
            assert tokenizer.decode(ids) == tokenizer.backend.decode(ids)
        ids = [i for i in range(tokenizer.vocab_size) if not tokenizer.token(i).startswith("<0x")]
        ids = [
            i for i in order.sample(ids, min(40, len(ids))) if b"\xef\xbf\xbd" not in tokenizer.token_bytes(i)
        ]
        if tokenizer.kind in ("other", "chars"):
            assert tokenizer.decode(ids) == tokenizer.backend.decode(ids)

    holds()


def test_the_bytes_of_a_text_are_those_of_its_tokens() -> None:
    tokenizer, text = sentencepiece_like(False), "the crow and the fox said return é 🦊 " * 80
    ids = tokenizer.encode(text)
    assert int(tokenizer.bytes_per_token[ids].sum()) == len(text.encode()) + 1, "a space is put before it"
    assert {"▁return", "<0xF0>"} <= {tokenizer.backend.id_to_token(i) for i in ids}


def test_half_a_character_between_tokens_stalls_nothing() -> None:
    tokenizer = sentencepiece_like(False)
    number = tokenizer.backend.get_vocab()
    names = ["▁return", "<0xC3>", "<0xA9>", "<0xC3>", "▁return", "<0xF0>", "▁return"]
    decoder = tokenizer.decoder()
    pieces = [decoder.push(number[name]) for name in names]
    assert pieces == ["return", "", "é", "", "\ufffd return", "", "\ufffd return"] and decoder.finish() == ""


def test_no_two_tokens_have_one_name(tokenizer: Tokenizer) -> None:
    names = [tokenizer.token(i) for i in range(tokenizer.vocab_size)]
    assert len(set(names)) == len(names) and all(names)


def test_a_token_costs_the_same_wherever_it_stands() -> None:
    tokenizer = sentencepiece_like(False)
    ids = tokenizer.encode("the crow said return é 😀 ") * 5_000

    def seconds(n: int) -> float:
        decoder, begun = tokenizer.decoder(), time.thread_time()
        for i in ids[:n]:
            decoder.push(i)
        return time.thread_time() - begun

    seconds(1000)
    short, long = (min(seconds(n) for _ in range(3)) for n in (3_000, 60_000))
    assert long < 100 * short, "20 times as many cost 20 times as much, where decoding anew costs 400"


def test_rules_by_which_neighbours_change_a_text_are_refused() -> None:
    vocab = {"a": 0, "b": 1, "c": 2}
    backend = Backend(models.WordLevel(vocab, "a"))
    backend.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("bc", "x")])
    with pytest.raises(Refused, match="writes a token by what stands beside it"):
        Tokenizer(backend.to_str(), {}).decode([0])
