"""The files of a tokenizer read together: AutoTokenizer is the oracle, and no link leads out of a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import BertWordPieceTokenizer, normalizers
from tokenizers import Tokenizer as Backend

from transom.data.chat_template import ChatTemplate
from transom.data.tokenizer import Tokenizer, train_tokenizer
from transom.errors import Refused

LATE = ("<|im_start|>", "<|im_end|>")
TEXT = "The crow said: cheese! <|im_start|>"


def flags(content: str, special: bool = True) -> dict[str, Any]:
    return dict(
        content=content,
        lstrip=False,
        rstrip=False,
        normalized=not special,
        single_word=False,
        special=special,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A byte-level tokenizer whose tokenizer.json does not know ChatML's tokens."""
    train_tokenizer("bpe", iter(["The crow and the fox said cheese. " * 20]), 300).save(tmp_path)
    return tmp_path


def edit(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | changes))


def by_decoder(folder: Path, n: int) -> None:
    own = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    table = {str(one["id"]): {k: v for k, v in one.items() if k != "id"} for one in own}
    table |= {str(n + i): flags(content) for i, content in enumerate(LATE)}
    edit(folder, "tokenizer_config.json", added_tokens_decoder=table, eos_token="<|im_end|>")


def by_added_tokens(folder: Path, n: int) -> None:
    edit(folder, "added_tokens.json", **{content: n + i for i, content in enumerate(LATE)})
    edit(
        folder, "special_tokens_map.json", eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )


def by_map(folder: Path, n: int) -> None:
    edit(folder, "special_tokens_map.json", eos_token=flags("<|im_end|>"), pad_token="[PAD]")


def by_list(folder: Path, n: int) -> None:
    edit(folder, "tokenizer_config.json", additional_special_tokens=list(LATE))


def by_name(folder: Path, n: int) -> None:
    edit(folder, "tokenizer_config.json", sep_token="<|im_start|>", eos_token="<|im_end|>", pad_token="crow")


@pytest.mark.parametrize("how", [by_decoder, by_added_tokens, by_map, by_list, by_name])
def test_tokens_that_only_other_files_know_are_those_of_transformers(folder, how):
    from transformers import AutoTokenizer

    how(folder, Tokenizer.load(folder).vocab_size)
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    vocab = theirs.get_vocab()
    assert ours.backend.get_vocab(with_added_tokens=True) == vocab
    assert (ours.eos_id, ours.pad_id) == (theirs.eos_token_id, theirs.pad_token_id)
    assert {vocab[one] for one in theirs.all_special_tokens} <= ours.control_ids
    template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    made = ChatTemplate(template)
    said = [{"role": "user", "content": "the fox"}]
    expected = theirs.apply_chat_template(said, chat_template=template, tokenize=True)["input_ids"]
    if all(content in vocab for content in LATE):
        assert made.render(said, ours).tokens == expected
    made.close()
    ours.save(folder)  # what is written says it all
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == vocab


def test_ids_that_contradict_each_other_are_refused(folder):
    by_decoder(folder, Tokenizer.load(folder).vocab_size + 3)
    with pytest.raises(Refused, match=r"im_start\|> is token \d+ by tokenizer_config.json.* would be"):
        Tokenizer.load(folder)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "added_tokens_decoder must be a table"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"x": {}}},
            "added_tokens_decoder must be a table",
        ),
        ("tokenizer_config.json", {"added_tokens_decoder": {"400": "a"}}, "must be a table"),
        ("added_tokens.json", {"a": "b"}, "a table of tokens and ids"),
    ],
)
def test_tables_that_are_none_are_refused(folder, name, changes, message):
    edit(folder, name, **changes)
    with pytest.raises(Refused, match=message):
        Tokenizer.load(folder)


def bert(folder: Path, normalizer: Any = None, framed: bool = True, **config: Any) -> None:
    """A WordPiece folder of BERT's class."""
    made = BertWordPieceTokenizer(lowercase=True)
    made.train_from_iterator(
        ["äpfel hi Äpfel Hi apfel 世界 the crow"] * 5, vocab_size=120, show_progress=False
    )
    backend = Backend.from_str(made.to_str())
    backend.normalizer = normalizer or normalizers.BertNormalizer(lowercase=True)  # type: ignore[assignment]
    spec = json.loads(backend.to_str())
    if not framed:
        spec["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    names = {name: f"[{name[:-6].upper()}]" for name in ("unk_token", "cls_token", "sep_token", "pad_token")}
    edit(folder, "tokenizer_config.json", tokenizer_class="BertTokenizer", mask_token="[MASK]", **names)
    edit(folder, "tokenizer_config.json", **config)
    edit(folder, "config.json", model_type="bert")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": False, "strip_accents": True},
        {"tokenize_chinese_chars": False},
        {"tokenizer_class": "BertTokenizerFast", "do_lower_case": False},
        {"tokenizer_class": None, "do_lower_case": False},
        {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": False},
    ],
)
@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("framed", [True, False])
def test_the_class_of_bert_makes_normalizer_and_frame(tmp_path, config, lowercase, framed):
    from transformers import AutoTokenizer

    bert(tmp_path, normalizers.BertNormalizer(lowercase=lowercase, strip_accents=lowercase), framed, **config)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.load(tmp_path)
    text = "Äpfel Hi 世界 the CROW"
    assert ours.framed(text) == theirs.encode(text)


@pytest.mark.parametrize("space", [True, False, None])
@pytest.mark.parametrize("name", ["GPT2Tokenizer", "RobertaTokenizer"])
def test_the_leading_space_is_as_the_config_says(folder, space, name):
    from transformers import AutoTokenizer

    said = {} if space is None else {"add_prefix_space": space}
    edit(folder, "tokenizer_config.json", tokenizer_class=name, unk_token="<|unk|>", **said)
    edit(folder, "tokenizer_config.json", cls_token="<s>", sep_token="</s>", mask_token="<mask>")
    edit(folder, "config.json", model_type="gpt2" if name == "GPT2Tokenizer" else "roberta")
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    assert ours.framed("The crow said") == theirs.encode("The crow said")


LINKED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json",
          "added_tokens.json", "additional_chat_templates/tool_use.jinja")  # fmt: skip


@pytest.mark.parametrize("name", LINKED)
def test_no_link_leads_out_of_the_folder(folder, tmp_path_factory, name):
    path, outside = folder / name, tmp_path_factory.mktemp("outside") / "secret"
    outside.write_text(path.read_text() if path.exists() else "{}")
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(outside)
    with pytest.raises(Refused, match="leads out of the folder"):
        Tokenizer.load(folder)
        ChatTemplate.from_folder(folder)


def test_the_links_of_the_hubs_cache_are_followed(folder, tmp_path_factory):
    home = tmp_path_factory.mktemp("hub") / "models--a--b"
    snapshot, blobs = home / "snapshots" / "0123", home / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    for path in sorted(folder.iterdir()):
        os.rename(path, blobs / path.name.replace(".", "-"))
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name.replace('.', '-')}")
    assert Tokenizer.load(snapshot).encode("The crow")
    template = ChatTemplate.from_folder(snapshot)
    assert template is not None and template.text == "{{ messages }}"


def test_a_template_that_is_not_utf8_is_refused(folder):
    (folder / "chat_template.jinja").write_bytes("{{ 'café' }}".encode("latin-1"))
    for read in (Tokenizer.load, ChatTemplate.from_folder):
        with pytest.raises(Refused, match=r"chat_template.jinja: byte 7 is not UTF-8"):
            read(folder)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
def test_json_without_a_bottom_is_refused(folder, name):
    (folder / name).write_text('{"a":' + "[" * 100_000)
    with pytest.raises(Refused, match=f"{name}: JSON nested too deeply"):
        Tokenizer.load(folder)
    if name == "tokenizer_config.json":
        with pytest.raises(Refused, match="nested too deeply"):
            ChatTemplate.from_folder(folder)
