"""The files of a tokenizer read together: what tokenizer.json leaves to the others is obeyed too.

`transformers` adds tokens that only tokenizer_config.json, added_tokens.json or special_tokens_map.json know,
and the class that a folder names changes how text is normalized, spaced and framed. Here that is written into
the one tokenizer.json that everything else reads. Source: `tokenization_utils_tokenizers.py` and the
tokenizers of BERT, GPT-2, RoBERTa and T5 in transformers 5. Read next: tokenizer_json,
gguf_tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from transom.data import gguf_tokenizer
from transom.data.documents import printable
from transom.data.gguf_file import is_gguf, read_gguf
from transom.data.in_folder import read_text
from transom.data.marian_files import read_marian
from transom.data.tokenizer_json import added_tokens
from transom.errors import Refused

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
MOST_BYTES = 256 << 20
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
OF_MODEL = {
    "bert": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "gpt2": "GPT2Tokenizer",
    "t5": "T5Tokenizer",
}
"""model_type -> the class of a folder that names none."""
FRAMES = {
    "BertTokenizer": ({"cls_token": "[CLS]"}, {"sep_token": "[SEP]"}),
    "RobertaTokenizer": ({"cls_token": "<s>"}, {"sep_token": "</s>"}),
    "T5Tokenizer": ({}, {"eos_token": "</s>"}),
}
"""Class -> what it puts before and after a text: the key that names the token, and what it is called else."""
CHANGED = ("normalizer", "pre_tokenizer", "post_processor")

Late = dict[str, tuple[int | None, AddedToken]]
"""Tokens by what they are spelled: the id that one is said to have, if any, and the token."""


def read_tokenizer(folder: Path) -> tuple[str, dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json of a folder, each with what its other files say.

    The first is the file's own text where the others say nothing new; a GGUF file stands for both. Raises
    Refused where it is missing or broken, and where two files contradict each other.
    """
    if is_gguf(folder):
        return gguf_tokenizer.read_tokenizer(read_gguf(folder))
    where = printable(folder / TOKENIZER)
    too_long = f"larger than {MOST_BYTES >> 20} MB; this is no tokenizer"
    text = read_text(folder, TOKENIZER, MOST_BYTES, too_long)
    config, late = special_tokens(folder), late_tokens(folder)
    if text is None:
        text, late = read_marian(folder, config, json_object(folder, "vocab.json")), {}
    if text is None:
        raise Refused(
            f"{where}: no such file; a model folder needs one (transformers writes it with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...))"
        )
    try:
        spec = json.loads(text)
        known = {token["content"] for token in added_tokens(spec)}
        late = {content: token for content, token in late.items() if content not in known}
        if late:
            text = _with_tokens(text, late, where)
            spec = json.loads(text)
        lower = json_object(folder, "sentence_bert_config.json").get("do_lower_case") is True
        changed = obey_class(spec, config, json_object(folder, "config.json").get("model_type"))
        if changed | (lower and lower_case(spec)):
            text = json.dumps(spec, ensure_ascii=False)
    except Refused:
        raise
    except Exception as error:  # the Rust library raises bare Exception
        raise Refused(f"{where}: not a readable tokenizer ({printable(str(error)[:200])})") from None
    return text, config


def special_tokens(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with special tokens it does not name taken from the folder's other files."""
    config = json_object(folder, CONFIG)
    names = ("eos_token", "bos_token", "pad_token", "mask_token")
    template = read_text(folder, "chat_template.jinja", MOST_BYTES, "too long for a chat template")
    if template is not None:
        config.setdefault("chat_template", template)
    fallback = json_object(folder, "special_tokens_map.json")
    older = "added_tokens_decoder" not in config  # then the map goes before what the config says
    for name in names:
        if fallback.get(name) and (older or not config.get(name)):
            config[name] = fallback[name]
    for file in ("generation_config.json", "config.json"):
        ids = json_object(folder, file)
        for name in names:
            if not config.get(name) and ids.get(f"{name}_id") is not None:
                config.setdefault(f"{name}_id", ids[f"{name}_id"])
    return config


def late_tokens(folder: Path) -> Late:
    """The added tokens of a folder besides those of tokenizer.json, in the order in which they are added.

    These are `added_tokens_decoder` of tokenizer_config.json, or without it added_tokens.json; then the
    special tokens that the config or special_tokens_map.json names.
    """
    config = json_object(folder, CONFIG)
    named, more = {name: config.get(name) for name in NAMED}, _more(config)
    found: Late = {}
    if config.get("added_tokens_decoder") is None:
        other = json_object(folder, "special_tokens_map.json")
        named |= {name: other[name] for name in NAMED if other.get(name)}
        more = _more(other) or more
        special = {_content(token) for token in (*named.values(), *more)}
        numbers = json_object(folder, "added_tokens.json")
        if not all(type(number) is int for number in numbers.values()):
            raise Refused(
                f"{printable(folder / 'added_tokens.json')}: a table of tokens and ids belongs there"
            )
        for content in sorted(numbers, key=lambda content: numbers[content]):
            token = AddedToken(content, normalized=content not in special, special=content in special)
            found[content] = numbers[content], token
    else:
        try:
            decoder = {int(number): token for number, token in config["added_tokens_decoder"].items()}
            found = {decoder[n]["content"]: (n, AddedToken(**decoder[n])) for n in sorted(decoder)}
        except (AttributeError, KeyError, TypeError, ValueError):
            where = printable(folder / CONFIG)
            raise Refused(f"{where}: added_tokens_decoder must be a table of ids and tokens") from None
    for token in (*named.values(), *more):
        content = _content(token)
        if content is not None:
            found.setdefault(content, (None, AddedToken(content, special=True)))
    return found


def _more(config: dict[str, Any]) -> list[Any]:
    """Special tokens without a name of their own, by either name of their list."""
    more = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    return list(more.values()) if isinstance(more, dict) else more if isinstance(more, list) else []


def _content(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and content else None


def _with_tokens(text: str, late: Late, where: str) -> str:
    """A tokenizer.json with these tokens besides; raises Refused where one would get another id."""
    backend = Backend.from_str(text)
    backend.add_tokens([token for _, token in late.values()])
    for content, (number, _) in late.items():
        given = backend.token_to_id(content)
        if number is not None and given != number:
            raise Refused(
                f"{where}: {printable(content)} is token {number} by tokenizer_config.json or"
                f" added_tokens.json, and would be {given} by this file; save the tokenizer anew"
            )
    return backend.to_str()


def obey_class(spec: dict[str, Any], config: dict[str, Any], model_type: Any) -> bool:
    """Change a tokenizer.json as the class that a folder names changes it; whether anything was changed.

    BERT's class makes the normalizer, GPT-2's and RoBERTa's the leading space from tokenizer_config.json; and
    a class frames texts in its own way where tokenizer.json does not say how.
    """
    name = config.get("tokenizer_class") or OF_MODEL.get(str(model_type))
    name = str(name).removesuffix("Fast")
    before = json.dumps([spec.get(part) for part in CHANGED])
    if name == "BertTokenizer" and spec["model"].get("type") == "WordPiece":
        spec["normalizer"] = {
            "type": "BertNormalizer",
            "clean_text": (spec.get("normalizer") or {}).get("clean_text", True),
            "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
            "strip_accents": config.get("strip_accents"),
            "lowercase": config.get("do_lower_case", True),
        }
    step = spec.get("pre_tokenizer") or {}
    if name in ("GPT2Tokenizer", "RobertaTokenizer") and step.get("type") == "ByteLevel":
        step["add_prefix_space"] = bool(config.get("add_prefix_space", False))
    if spec.get("post_processor") is None and name in FRAMES:
        spec["post_processor"] = _frame(spec, config, *FRAMES[name])
    return before != json.dumps([spec.get(part) for part in CHANGED])


def lower_case(spec: dict[str, Any]) -> bool:
    """Have text lower-cased first, as sentence-transformers does where its folder says so; False: it is."""
    normalizer: dict[str, Any] = spec.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    if any(step["type"] == "Lowercase" or step.get("lowercase") is True for step in steps):
        return False
    spec["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *steps]}
    return True


def _frame(
    spec: dict[str, Any], config: dict[str, Any], before: dict[str, str], after: dict[str, str]
) -> dict[str, Any] | None:
    """The post-processor that puts named tokens around a text; None where the vocabulary lacks one."""
    first, last = (
        [_content(config.get(key)) or usual for key, usual in tokens.items()] for tokens in (before, after)
    )
    ids = {token["content"]: token["id"] for token in added_tokens(spec)} | _pieces(spec)
    if not all(name in ids for name in first + last):
        return None

    def around(kind: int, *texts: str) -> Iterable[dict[str, Any]]:
        yield from ({"SpecialToken": {"id": name, "type_id": kind}} for name in texts)

    single = [*around(0, *first), {"Sequence": {"id": "A", "type_id": 0}}, *around(0, *last)]
    return {
        "type": "TemplateProcessing", "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}, *around(1, *last)],
        "special_tokens": {n: {"id": n, "ids": [ids[n]], "tokens": [n]} for n in first + last},
    }  # fmt: skip


def _pieces(spec: dict[str, Any]) -> dict[str, int]:
    vocab = spec["model"]["vocab"]
    return vocab if isinstance(vocab, dict) else {piece: number for number, (piece, _) in enumerate(vocab)}


def json_object(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of a folder; empty where there is no such file. Raises Refused."""
    text = read_text(folder, name, MOST_BYTES, "too long")
    where = printable(folder / name)
    try:
        value = {} if text is None else json.loads(text)
    except RecursionError:
        raise Refused(f"{where}: JSON nested too deeply") from None
    except ValueError as error:
        raise Refused(f"{where}: not valid JSON ({printable(str(error)[:120])})") from None
    if not isinstance(value, dict):
        raise Refused(f"{where}: holds no JSON object")
    return value
