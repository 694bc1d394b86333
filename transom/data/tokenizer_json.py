"""What a tokenizer.json says: which tokens are control, and how words are split.

The one idea: rules are told from the structure of tokenizer.json, never from a family's name. Read next:
tokenizer.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any

from transom.data.vocabulary import UNKNOWN

_MARKER_SHAPE = re.compile(r"<.*>|\[.*\]")
_NAMED = ("eos_token", "bos_token", "pad_token", "mask_token", "unk_token", "sep_token", "cls_token")


def added_tokens(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The added tokens of a tokenizer.json, which need not speak of any."""
    return spec.get("added_tokens") or []


def mark_control(spec: dict[str, Any], config: dict[str, Any]) -> dict[int, str]:
    """Mark every control token of a tokenizer.json as special, and return them by id.

    Control is what the file calls special and what tokenizer_config.json names (eos_token and so on). Other
    added tokens are words.
    """
    named = {_content(config.get(name)) for name in _NAMED}
    control: dict[int, str] = {}
    for token in added_tokens(spec):
        if token.get("special") or token["content"] in named:
            token["special"] = True
            control[token["id"]] = token["content"]
    return control


def markers(spec: dict[str, Any]) -> dict[int, str]:
    """Added words that look like <...> or [...], by id: <think>, <tool_call>, <url>.

    A text that holds one has its id. In a conversation only the template may write one: there a user who
    writes <tool_call> must not be taken for the model.
    """
    return {
        token["id"]: token["content"]
        for token in added_tokens(spec)
        if not token.get("special") and _MARKER_SHAPE.fullmatch(token["content"])
    }


def hide(spec: dict[str, Any], tokens: Mapping[int, str]) -> dict[str, str]:
    """Give tokens of a tokenizer.json a name that nobody can write; old names to new ones.

    In a Unigram vocabulary a control token is a piece like any other, and a text that spells it would become
    it. Tokenizer and pieces keep their ids; the frame goes, since it names tokens.
    """
    nonce = secrets.token_hex(16)
    names = {text: f"<{nonce}-{number}>" for number, text in tokens.items()}
    for token in added_tokens(spec):
        if token["content"] in names:
            token |= {"content": names[token["content"]], "special": True}
    model = spec["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(text, text): number for text, number in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in model["vocab"]]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    spec |= {"post_processor": None, "truncation": None, "padding": None}
    return names


def cuts_show(spec: dict[str, Any]) -> bool:
    """Whether an added word takes spaces with it, so that a cut beside one is seen in the ids."""
    return any(
        not token.get("special")
        and (token.get("lstrip") or token.get("rstrip") or re.search(r"\s", token["content"]))
        for token in added_tokens(spec)
    )


def vocabulary_kind(spec: dict[str, Any]) -> str:
    """The kind of vocabulary, by what the file says."""
    model = spec["model"]
    if model.get("type") == "BPE" and model.get("unk_token") == UNKNOWN and not model["merges"]:
        return "chars"
    if (spec.get("decoder") or {}).get("type") != "ByteLevel":
        return "other"
    own_words = len(model["vocab"]) - sum(token["content"] in model["vocab"] for token in added_tokens(spec))
    plain = spec.get("normalizer") is None and not _adds_space(spec)
    return "bytes" if own_words == 256 and not model.get("merges") and plain else "bpe"


def _pre_tokenizers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    outer = spec.get("pre_tokenizer") or {}
    return outer.get("pretokenizers", [outer]) if outer else []


def _adds_space(spec: dict[str, Any]) -> bool:
    return any(step.get("add_prefix_space") for step in _pre_tokenizers(spec))


def is_byte_level_regex(spec: dict[str, Any]) -> bool:
    """Whether words are split by the regular expressions of the GPT-2, Llama-3 or Qwen kind, and no space is
    added.
    """
    steps = _pre_tokenizers(spec)
    normalizer = (spec.get("normalizer") or {}).get("type")
    kinds = {step.get("type") for step in steps}
    splits = "Split" in kinds or any(
        step.get("type") == "ByteLevel" and step.get("use_regex", True) for step in steps
    )
    return (
        splits
        and kinds <= {"Split", "ByteLevel", "Digits"}
        and not _adds_space(spec)
        and normalizer in (None, "NFC")
    )


def is_gpt2_rule(spec: dict[str, Any]) -> bool:
    """Whether words are split by GPT-2's own expression and nothing else touches the text."""
    step = spec.get("pre_tokenizer") or {}
    own = step.get("type") == "ByteLevel" and step.get("use_regex", True) and not step.get("add_prefix_space")
    return bool(own) and spec.get("normalizer") is None and not spec["model"].get("dropout")


def _content(token: Any) -> Any:
    """A named token's text, which some files wrap in an object."""
    return token.get("content") if isinstance(token, dict) else token
