"""Marian's SentencePiece files: MarianTokenizer is the oracle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece

import transom
from tests.checkpoint.oracle import randomize
from transom.data.marian_files import read_sentencepiece
from transom.data.tokenizer import Tokenizer
from transom.errors import Refused

ENGLISH = ["the crow and the fox said cheese", "a good day is not a bad night", "sat under the old tree (3)"]
OTHER = ["die Krähe und der Fuchs sagten Käse", "ein guter Tag ist keine süße Nacht", "unter dem Baum: größe"]


def write(folder: Path, source: list[str], target: list[str], **options) -> Path:
    """A folder as opus-mt folders are, with a vocabulary for both sides and two codes of languages."""
    vocab = {"</s>": 0, "<unk>": 1}
    for name, texts, size in (("source", source, 80), ("target", target, 70)):
        sentencepiece.SentencePieceTrainer.train(  # type: ignore[attr-defined]
            sentence_iterator=iter(texts * 20), model_prefix=str(folder / name), vocab_size=size,
            hard_vocab_limit=False, minloglevel=2, bos_id=-1, eos_id=0, unk_id=1, **options,
        )  # fmt: skip
        (folder / f"{name}.model").rename(folder / f"{name}.spm")
        (folder / f"{name}.vocab").unlink()
        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{name}.spm"))
        for number in range(model.vocab_size()):
            vocab.setdefault(model.id_to_piece(number), len(vocab))
    for token in (">>deu<<", ">>fra<<", "<pad>"):
        vocab[token] = len(vocab)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "tokenizer_config.json").write_text('{"source_lang": "en", "target_lang": "de"}')
    (folder / "config.json").write_text('{"model_type": "marian"}')
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("marian"), ENGLISH, OTHER)


@pytest.fixture(scope="module")
def both(folder):
    from transformers import MarianTokenizer

    with pytest.warns(UserWarning, match="sacremoses"):
        theirs = MarianTokenizer.from_pretrained(folder)
    return theirs, Tokenizer.load(folder)


TEXTS = [
    *ENGLISH, "The fox, the crow.", "  two   spaces\tand\na line ", "naïve Ａ½ ﬁne", "ä", "cheese ß tree",
    "世界 cat", ">>fra<< the crow", "x" * 60,
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_transformers(both, text):
    theirs, ours = both
    assert ours.framed(text) == theirs.encode(text)


def test_texts_of_ids_are_those_of_transformers(both):
    theirs, ours = both
    for text in OTHER:
        ids = theirs(text_target=text)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == text


def test_the_ids_that_are_named(both):
    theirs, ours = both
    assert (ours.eos_id, ours.pad_id) == (theirs.eos_token_id, theirs.pad_token_id)
    assert ours.vocab_size == len(theirs)
    spelled = ours.encode("</s> <pad> <unk>")
    assert not {ours.eos_id, ours.pad_id} & set(spelled)


def test_what_is_saved_is_one_file_that_transformers_reads(both, tmp_path):
    from transformers import AutoTokenizer

    theirs, ours = both
    ours.save(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.encode(ENGLISH[0]) == theirs.encode(ENGLISH[0])


def test_a_sentencepiece_file_is_read_as_the_library_reads_it(folder):
    found = read_sentencepiece((folder / "source.spm").read_bytes())
    library = sentencepiece.SentencePieceProcessor(model_file=str(folder / "source.spm"))
    assert [piece for piece, _, _ in found.pieces] == [library.id_to_piece(i) for i in range(len(library))]
    assert [score for _, score, _ in found.pieces] == [library.get_score(i) for i in range(len(library))]


def test_a_folder_of_these_files_translates_as_in_transformers(both, folder, tmp_path):
    from transformers import MarianConfig, MarianMTModel

    theirs, ours = both
    n = ours.vocab_size
    config = MarianConfig(
        vocab_size=n, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64,
        pad_token_id=n - 1, eos_token_id=0, decoder_start_token_id=n - 1,
    )  # fmt: skip
    model = randomize(MarianMTModel(config))
    model.generation_config.bad_words_ids, model.generation_config.num_beams = [[n - 1]], 3
    shutil.copytree(folder, tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    made = model.generate(**theirs(ENGLISH[0], return_tensors="pt"), max_new_tokens=8)[0]
    found = transom.load(tmp_path / "model").translate(ENGLISH[0], max_tokens=8)
    assert found.tokens == made[1:].tolist()
    assert found.text.strip() == theirs.decode(made, skip_special_tokens=True)


@pytest.mark.parametrize("size", [0, 1, 7, 1000])
def test_a_file_that_is_cut_is_refused(tmp_path, size):
    write(tmp_path, ENGLISH, OTHER)
    (tmp_path / "source.spm").write_bytes((tmp_path / "source.spm").read_bytes()[:size])
    with pytest.raises(Refused, match="source.spm: not a SentencePiece file"):
        Tokenizer.load(tmp_path)


def test_what_cannot_be_said_in_one_file_is_refused(tmp_path):
    write(tmp_path, ENGLISH, OTHER, model_type="bpe")
    with pytest.raises(Refused, match="source.spm: Unigram models without byte pieces are read"):
        Tokenizer.load(tmp_path)


def test_a_folder_without_its_other_half_is_refused(tmp_path):
    write(tmp_path, ENGLISH, OTHER)
    (tmp_path / "target.spm").unlink()
    with pytest.raises(Refused, match="target.spm: cannot be read"):
        Tokenizer.load(tmp_path)
    write(tmp_path, ENGLISH, OTHER)
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 2}')
    with pytest.raises(Refused, match="vocab.json: a table of tokens and the ids from 0 on"):
        Tokenizer.load(tmp_path)
