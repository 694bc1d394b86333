"""A tokenizer out of a GGUF file's metadata gives the tokens of the one that the metadata were made of.

Oracles: `tokenizers` and `sentencepiece` for what went in, and llama.cpp, where llama-cpp-python is installed
(tests/inference/test_export.py).
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import io
import json
import random
from pathlib import Path
from typing import Any

import gguf
import pytest
import sentencepiece
from tokenizers import AddedToken, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from transom.data.chat_template import ChatTemplate
from transom.data.gguf_file import read_gguf
from transom.data.gguf_tokenizer import WORDS, end_ids
from transom.data.tokenizer import Tokenizer, train_tokenizer
from transom.errors import Refused

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
TEXTS = (
    "Hello world", "  two  spaces ", "12345 and 67", "it's we'll I'M", "naïve café — Übung",
    "日本語のテキスト", "🙂👩‍👩‍👧", "\t\n \n\n x", "def f(x):\n    return x**2  # ok\n", "<s> </s> <unk>", "",
)  # fmt: skip

CODE = inspect.getsource(argparse)[:60_000]


def write(path: Path, **said: Any) -> Path:
    """A file of these keys of the tokenizer and nothing else; a list of whole numbers is one of int32."""
    file = gguf.GGUFWriter(path, "llama")
    for name, value in said.items():
        key = "tokenizer.chat_template" if name == "chat_template" else f"tokenizer.ggml.{name}"
        if isinstance(value, list):
            file.add_array(key, value)
        else:
            add = {bool: file.add_bool, str: file.add_string, int: file.add_uint32}[type(value)]
            add(key, value)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.close()
    return path


def of_tokenizer(path: Path, tokenizer: Tokenizer, **said: Any) -> Path:
    """The metadata of a byte-level tokenizer."""
    spec = json.loads(tokenizer.json_text)
    tokens = [tokenizer.backend.id_to_token(n) for n in range(tokenizer.vocab_size)]
    kinds = [CONTROL if n in tokenizer.control else NORMAL for n in range(tokenizer.vocab_size)]
    merges = [" ".join(merge) for merge in spec["model"]["merges"]]
    first = dict(model="gpt2", pre="gpt-2", eos_token_id=tokenizer.eos_id)
    return write(path, **first | dict(tokens=tokens, token_type=kinds, merges=merges) | said)


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_tokenizer("bpe", iter([CODE, *TEXTS]), 700)


def same_tokens(one: Tokenizer, other: Tokenizer) -> None:
    for text in (*TEXTS, CODE[:3000]):
        ids = one.encode(text)
        assert other.encode(text) == ids
        assert other.decode(ids) == one.decode(ids)


def test_a_tokenizer_trained_here_comes_back(trained: Tokenizer, tmp_path: Path) -> None:
    found = Tokenizer.load(of_tokenizer(tmp_path / "v.gguf", trained))
    same_tokens(trained, found)
    assert (found.eos_id, found.control, found.kind) == (trained.eos_id, trained.control, "bpe")
    assert found.cuts_cleanly and found.frame == ((), ())


def test_control_is_never_content(trained: Tokenizer, tmp_path: Path) -> None:
    found = Tokenizer.load(of_tokenizer(tmp_path / "v.gguf", trained))
    assert not found.control.keys() & set(found.encode("<|endoftext|><|pad|>"))
    assert found.decode(found.encode("<|endoftext|>")) == "<|endoftext|>"


def test_words_that_a_user_added_are_found_and_what_is_unused_is_not_there(
    trained: Tokenizer, tmp_path: Path
) -> None:
    n = trained.vocab_size
    tokens = [trained.backend.id_to_token(i) for i in range(n)] + ["<think>", "[PAD9]"]
    kinds = [CONTROL if i in trained.control else NORMAL for i in range(n)] + [USER, UNUSED]
    found = Tokenizer.load(of_tokenizer(tmp_path / "v.gguf", trained, tokens=tokens, token_type=kinds))
    assert found.encode("a<think>b")[1] == n and found.decode([n]) == "<think>"
    assert found.vocab_size == n + 1 and n not in found.control


@pytest.mark.parametrize(("said", "frame"), [
    (dict(), ((), ())),
    (dict(add_bos_token=True), ((3,), ())),
    (dict(add_bos_token=True, add_eos_token=True), ((3,), (0,))),
    (dict(pre="llama-bpe"), ((3,), ())),
    (dict(pre="llama-bpe", add_bos_token=False), ((), ())),
])  # fmt: skip
def test_what_stands_around_a_text(
    said: dict[str, Any], frame: Any, trained: Tokenizer, tmp_path: Path
) -> None:
    found = Tokenizer.load(of_tokenizer(tmp_path / "v.gguf", trained, bos_token_id=3, **said))
    assert found.frame == frame


def test_templates_come_with_the_file(trained: Tokenizer, tmp_path: Path) -> None:
    path = of_tokenizer(
        tmp_path / "v.gguf", trained, chat_template="{{ messages[0].content }}{{ eos_token }}"
    )
    found, tokenizer = ChatTemplate.from_folder(path), Tokenizer.load(path)
    assert found is not None
    rendered = found.render([{"role": "user", "content": "hi"}], tokenizer)
    assert rendered.tokens == [*tokenizer.encode("hi"), tokenizer.eos_id]
    assert end_ids(read_gguf(path)) == [tokenizer.eos_id]


@pytest.fixture(scope="module")
def pieces() -> sentencepiece.SentencePieceProcessor:
    """SentencePiece's BPE as Llama 2 has it: bytes to fall back to, text left as it is."""
    made = io.BytesIO()
    lines = [line for line in (CODE + "\n".join(TEXTS)).splitlines() if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=made, model_type="bpe", vocab_size=600,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, allow_whitespace_only_pieces=True, minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())


def of_pieces(path: Path, pieces: sentencepiece.SentencePieceProcessor, **said: Any) -> Path:
    ids = range(pieces.vocab_size())
    kinds = [
        UNKNOWN if pieces.is_unknown(i) else CONTROL if pieces.is_control(i)
        else BYTE if pieces.is_byte(i) else NORMAL for i in ids
    ]  # fmt: skip
    lists = dict(tokens=[pieces.id_to_piece(i) for i in ids], token_type=kinds)
    scores = [float(pieces.get_score(i)) for i in ids]
    return write(path, **dict(model="llama", scores=scores, **lists) | said)


def test_sentencepiece_is_read_with_scores_and_bytes(
    pieces: sentencepiece.SentencePieceProcessor, tmp_path: Path
) -> None:
    found = Tokenizer.load(of_pieces(tmp_path / "v.gguf", pieces))
    draw = random.Random(0)
    mixed = ["".join(draw.choices(CODE + "äß語🙂  \n", k=60)) for _ in range(200)]
    for text in (*TEXTS, CODE[:3000], *mixed):
        ids = found.encode(text)
        assert ids == pieces.encode(text)
        assert found.decode(ids) == text
    assert found.frame == ((pieces.bos_id(),), ())
    assert (found.eos_id, found.kind) == (pieces.eos_id(), "other")


def test_the_space_before_a_text_can_be_left_out(
    pieces: sentencepiece.SentencePieceProcessor, tmp_path: Path
) -> None:
    with_space = Tokenizer.load(of_pieces(tmp_path / "a.gguf", pieces))
    without = Tokenizer.load(of_pieces(tmp_path / "b.gguf", pieces, add_space_prefix=False))
    assert without.encode(" return x") == with_space.encode("return x")
    assert without.decode(without.encode("return x")) == "return x"


BROKEN = {
    "another model": (dict(model="bert"), "tokenizer.ggml.model is 'bert'; gpt2"),
    "another rule": (dict(pre="smolm"), "tokenizer.ggml.pre is 'smolm'; read are gpt-2"),
    "a rule that is a number": (dict(pre=7), "tokenizer.ggml.pre is '7'; a str belongs there"),
    "no tokens": (dict(tokens=7), "tokenizer.ggml.tokens is '7'; a list belongs there"),
    "tokens that are numbers": (dict(tokens=[1, 2]), "tokenizer.ggml.tokens is no list of str"),
    "a token twice": (dict(tokens=["a", "a"], token_type=[1, 1]), "holds a token twice"),
    "too few kinds": (dict(token_type=[1]), "tokenizer.ggml.token_type has 1 entries for 700 tokens"),
    "a merge of one part": (dict(merges=["ab"]), "tokenizer.ggml.merges holds 'ab', no two parts"),
    "a merge of strangers": (dict(merges=["qq zz"]), "not a readable tokenizer"),
    "a separator": (dict(add_sep_token=True), "tokenizer.ggml.add_sep_token is 'True'; only False"),
    "no scores": (dict(model="llama"), "tokenizer.ggml.scores is not there"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_vocabulary_is_refused_by_name(name: str, trained: Tokenizer, tmp_path: Path) -> None:
    said, why = BROKEN[name]
    path = of_tokenizer(tmp_path / "v.gguf", trained, **said)
    with pytest.raises(Refused) as refused:
        Tokenizer.load(path)
    assert str(refused.value).startswith(f"{path}: ") and why in str(refused.value)


def in_llama_cpp(path: Path, texts: list[str]) -> list[list[int]]:
    """The tokens of texts by llama.cpp, where content is no control."""
    llama = pytest.importorskip("llama_cpp")
    llama.llama_backend_init()
    params = llama.llama_model_default_params()
    params.vocab_only = True
    handle = llama.llama_model_load_from_file(str(path).encode(), params)
    assert handle
    vocab, found = llama.llama_model_get_vocab(handle), []
    for text in texts:
        room = (llama.llama_token * (4 * len(text) + 8))()
        data = text.encode()
        n = llama.llama_tokenize(vocab, data, len(data), room, len(room), False, False)
        found.append(list(room[:n]))
    llama.llama_model_free(handle)
    return found


@pytest.mark.skipif(not importlib.util.find_spec("llama_cpp"), reason="llama-cpp-python is not installed")
@pytest.mark.parametrize("name", WORDS)
def test_rules_for_words_are_those_of_llama_cpp(name: str, tmp_path: Path) -> None:
    """A vocabulary is learned by each rule, so that words cut otherwise would be other tokens."""
    backend = Backend(models.BPE())
    spec = json.loads(backend.to_str())
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": WORDS[name].steps()}
    backend = Backend.from_str(json.dumps(spec))
    end = AddedToken("<|endoftext|>", special=True, normalized=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[end], initial_alphabet=letters, show_progress=False
    )
    backend.train_from_iterator([CODE, *TEXTS] * 2, trainer)
    config = {"eos_token": "<|endoftext|>"}
    ours = Tokenizer(backend.to_str(), config)
    path = of_tokenizer(tmp_path / "v.gguf", ours, pre=name)
    draw = random.Random(1)
    mixed = ["".join(draw.choices(CODE + "äßÉ語🙂  \n\r\t'sS1234", k=80)) for _ in range(200)]
    texts = [text for text in (*TEXTS, CODE[:3000], *mixed) if text]
    found = Tokenizer.load(path)
    assert [found.encode(text) for text in texts] == in_llama_cpp(path, texts)
