"""The tokenizer in a GGUF file's metadata as the tokenizer.json that it stands for, and the other way.

Two kinds are there: `gpt2`, byte-level BPE whose rule for words has a name (`tokenizer.ggml.pre`), and
`llama`, SentencePiece's BPE, which merges what has the best score. Control is what the file calls control:
text that spells such a token stays text. Source: llama-vocab.cpp of llama.cpp, where each name of a rule
stands for the regular expressions here; convert_slow_tokenizer.py of transformers for merges out of scores.
Read next: gguf_file, tokenizer_files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transom.data.documents import printable
from transom.data.gguf_file import GGUFFile
from transom.data.tokenizer_json import added_tokens
from transom.errors import Refused, nearest

if TYPE_CHECKING:
    from transom.data.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of a token in `tokenizer.ggml.token_type`."""
IDS = {"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "mask": "mask"}
"""What tokenizer_config.json calls a token -> what GGUF does (its spelling)."""
ENDS = ("eos", "eot", "eom")
"""Tokens that end a text."""
SPACE = "\u2581"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Words:
    """How text is split into words before merging, and what else the name of a rule brings with it."""

    splits: tuple[str, ...]
    """Regular expressions, one after the other, each within the pieces of the last."""
    byte_level: bool = False
    """The last split is GPT-2's own expression, which the byte-level step has built in."""
    digits: bool = False
    """The first split takes every digit alone."""
    whole_words: bool = False
    """A word that is a token is taken as it is, whatever the merges."""
    begins: bool = False
    """The begin token is put before a text where the file does not say."""

    def steps(self) -> list[dict[str, Any]]:
        """The pre-tokenizers of a tokenizer.json."""
        splits = [
            {"type": "Split", "pattern": {"Regex": one}, "behavior": "Isolated", "invert": False}
            for one in self.splits
        ]
        digits = [{"type": "Digits", "individual_digits": True}] if self.digits else []
        last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        return [*digits, *splits, {**last, "use_regex": self.byte_level}]


CASED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
GPT2 = Words((), byte_level=True)
SMOLLM = Words((), byte_level=True, digits=True)
LLAMA3 = Words((CASED + r"\p{N}{1,3}" + REST,))
QWEN2 = Words((CASED + r"\p{N}" + REST,))
TEKKEN = Words(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    whole_words=True,
    begins=True,
)
LLAMA3_WHOLE = Words(LLAMA3.splits, whole_words=True, begins=True)
WORDS: dict[str, Words] = {
    "gpt-2": GPT2,
    "smollm": SMOLLM,
    "llama-bpe": LLAMA3_WHOLE,
    "qwen2": QWEN2,
    "tekken": TEKKEN,
    "dbrx": LLAMA3,
    "default": Words(
        (
            r"[\p{P}\$\+<=>\^~\|]+",
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
            r"\p{N}+",
            r"[0-9][0-9][0-9]",
        )
    ),
    "deepseek-coder": Words((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
    "seed-coder": Words(
        (CASED + r"\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",),
    ),
    **dict.fromkeys(("phi-2", "gigachat", "a.x-4.0", "mellum", "trillion", "granite-docling"), GPT2),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), SMOLLM),
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0", "lfm2"), LLAMA3_WHOLE),
    **dict.fromkeys(("deepseek-r1-qwen", "megrez", "kormo", "stablelm2"), QWEN2),
    "smaug-bpe": LLAMA3,
}
"""Name of a rule -> the rule; where several are one, the first is written."""


# --- in -----------------------------------------------------------------------------------------------------


def read_tokenizer(file: GGUFFile) -> tuple[str, dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json of a file; raises Refused, naming the key."""
    vocabulary = _Vocabulary(file)
    return json.dumps(vocabulary.spec(), ensure_ascii=False), vocabulary.config()


def end_ids(file: GGUFFile) -> list[int]:
    """The tokens that end a text, as far as the file names them."""
    said = [file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ENDS]
    return list(dict.fromkeys(one for one in said if type(one) is int))


def chat_templates(file: GGUFFile) -> str | list[dict[str, str]] | None:
    """The chat template, or several by name, as tokenizer_config.json spells them."""
    one, names = file.metadata.get("tokenizer.chat_template"), file.metadata.get("tokenizer.chat_templates")
    if not isinstance(names, list):
        return one if isinstance(one, str) else None
    texts = {"default": one} | {name: file.metadata.get(f"tokenizer.chat_template.{name}") for name in names}
    return [{"name": name, "template": text} for name, text in texts.items() if isinstance(text, str)]


class _Vocabulary:
    """The lists of one file, checked against each other."""

    def __init__(self, file: GGUFFile) -> None:
        self.file, self.said = file, file.metadata
        self.model = self.get("model", str, "")
        if self.model not in ("gpt2", "llama"):
            raise self.refuse("model", "gpt2 (byte-level BPE) and llama (SentencePiece) are read")
        empty = (one or f"[EMPTY_{number}]" for number, one in enumerate(self.list("tokens", str)))
        self.tokens: list[str] = list(empty)
        if not self.tokens:
            raise self.refuse("tokens", "a list of tokens belongs there")
        if len(set(self.tokens)) < len(self.tokens):
            raise Refused(f"{self.where}: tokenizer.ggml.tokens holds a token twice")
        kinds = self.list("token_type", int) or [NORMAL] * len(self.tokens)
        if len(kinds) != len(self.tokens):
            raise Refused(
                f"{self.where}: tokenizer.ggml.token_type has {len(kinds):,} entries for "
                f"{len(self.tokens):,} tokens"
            )
        self.kinds = kinds
        name = self.get("pre", str, "default")
        if self.model == "gpt2" and name not in WORDS:
            raise self.refuse("pre", f"read are {', '.join(WORDS)}{nearest(name, WORDS)}")
        self.words = WORDS[name] if self.model == "gpt2" else Words((), begins=True)
        usual = {"bos": 1, "eos": 2, "unk": 0} if self.model == "llama" else {}
        self.ids = {name: self.id(of, usual.get(name)) for name, of in IDS.items()}

    @property
    def where(self) -> str:
        return printable(self.file.path)

    def refuse(self, key: str, why: str) -> Refused:
        value = self.said.get(f"tokenizer.ggml.{key}")
        found = f"is {printable(str(value)[:80])!r}" if value is not None else "is not there"
        return Refused(f"{self.where}: tokenizer.ggml.{key} {found}; {why}")

    def get(self, key: str, kind: type, default: Any) -> Any:
        value = self.said.get(f"tokenizer.ggml.{key}", default)
        if value is not None and type(value) is not kind:
            raise self.refuse(key, f"a {kind.__name__} belongs there")
        return value

    def list(self, key: str, kind: type) -> list[Any]:
        values = self.get(key, list, [])
        if not all(type(value) is kind for value in values):
            raise Refused(f"{self.where}: tokenizer.ggml.{key} is no list of {kind.__name__}")
        return values

    def id(self, name: str, default: int | None = None) -> int | None:
        key = f"{name}_token_id"
        if name == "seperator" and "tokenizer.ggml.separator_token_id" in self.said:
            key = "separator_token_id"
        value = self.get(key, int, default)
        return value if value is not None and 0 <= value < len(self.tokens) else None

    # Their parts in a tokenizer.json

    def spec(self) -> dict[str, Any]:
        vocab = {
            token: number
            for number, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if kind != UNUSED
        }
        model = {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": self.words.whole_words, "vocab": vocab,
        }  # fmt: skip
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        parts: dict[str, Any] = {"normalizer": None, "decoder": byte_level}
        if self.model == "gpt2":
            steps = self.words.steps()
            sequence = {"type": "Sequence", "pretokenizers": steps}
            parts["pre_tokenizer"] = steps[0] if len(steps) == 1 else sequence
            merges = self.merges()
        else:
            unknown = self.ids["unk"]
            model |= {"byte_fallback": True, "fuse_unk": True}
            model["unk_token"] = None if unknown is None else self.tokens[unknown]
            parts = {"pre_tokenizer": None, **self.spaces()}
            merges = list(self.merges_of_scores())
        added = [
            {
                "id": number, "content": self.tokens[number], "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False, "special": kind != USER_DEFINED,
            }
            for number, kind in enumerate(self.kinds)
            if kind in (CONTROL, UNKNOWN, USER_DEFINED)
        ]  # fmt: skip
        return {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **parts,
            "post_processor": self.frame(), "model": {**model, "merges": merges},
        }  # fmt: skip

    def merges(self) -> list[list[str]]:
        """Pairs, best first. A space parts them, and may not be a part's first character's place."""
        pairs = []
        for merge in self.list("merges", str):
            place = merge.find(" ", 1)
            if place < 0 or place == len(merge) - 1:
                raise Refused(
                    f"{self.where}: tokenizer.ggml.merges holds {printable(merge[:40])!r}, no two parts"
                )
            pairs.append([merge[:place], merge[place + 1 :]])
        return pairs

    def merges_of_scores(self) -> Iterator[list[str]]:
        """Every way to join two tokens to a third, the one with the best score first."""
        scores = self.list("scores", float)
        if len(scores) != len(self.tokens):
            raise self.refuse("scores", f"a score for each of the {len(self.tokens):,} tokens belongs there")
        numbers = {
            token: number
            for number, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if kind in (NORMAL, USER_DEFINED)
        }
        found = []
        for token, number in numbers.items():
            for place in range(1, len(token)):
                left, right = numbers.get(token[:place]), numbers.get(token[place:])
                if left is not None and right is not None:
                    found.append((-scores[number], -place, left, right))
        for *_, left, right in sorted(found):
            yield [self.tokens[left], self.tokens[right]]

    def spaces(self) -> dict[str, Any]:
        """How SentencePiece writes spaces: as a letter, and one more before a text."""
        shown = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
        before = self.get("add_space_prefix", bool, True)
        prepend = [{"type": "Prepend", "prepend": SPACE}] if before else []
        strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if before else []
        decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
        return {
            "normalizer": {"type": "Sequence", "normalizers": [*prepend, shown]},
            "decoder": {"type": "Sequence", "decoders": decoders},
        }

    def frame(self) -> dict[str, Any] | None:
        """What stands around a text: the begin token, the end token, or nothing."""
        if self.get("add_sep_token", bool, False):
            raise self.refuse("add_sep_token", "only False is computed")
        wanted = (
            ("bos", self.get("add_bos_token", bool, self.words.begins)),
            ("eos", self.get("add_eos_token", bool, False)),
        )
        first, last = ([self.ids[name]] if asked and self.ids[name] is not None else []
                       for name, asked in wanted)  # fmt: skip
        if not first and not last:
            return None

        def around(ids: list[Any], kind: int) -> list[dict[str, Any]]:
            return [{"SpecialToken": {"id": self.tokens[one], "type_id": kind}} for one in ids]

        def framed(name: str, kind: int) -> list[dict[str, Any]]:
            text = {"Sequence": {"id": name, "type_id": kind}}
            return [*around(first, kind), text, *around(last, kind)]

        named = {self.tokens[one]: one for one in (*first, *last) if one is not None}
        return {
            "type": "TemplateProcessing", "single": framed("A", 0), "pair": framed("A", 0) + framed("B", 1),
            "special_tokens": {name: {"id": name, "ids": [one], "tokens": [name]}
                               for name, one in named.items()},
        }  # fmt: skip

    def config(self) -> dict[str, Any]:
        named = {f"{name}_token": self.tokens[one] for name, one in self.ids.items() if one is not None}
        template = chat_templates(self.file)
        length = self.said.get(f"{self.file.architecture}.context_length")
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **named,
            **({} if template is None else {"chat_template": template}),
            **({"model_max_length": length} if type(length) is int else {}),
            "clean_up_tokenization_spaces": False,
        }


# --- out ----------------------------------------------------------------------------------------------------


def tokenizer_metadata(tokenizer: Tokenizer, vocab_size: int, ends: Collection[int] = ()) -> dict[str, Any]:
    """The keys of GGUF for a tokenizer, filled up to the rows of a model's table of embeddings.

    ends: tokens that end a text; GGUF has room for the end token and two more. Raises Refused where llama.cpp
    has no rule that cuts texts into the same tokens.
    """
    spec = json.loads(tokenizer.json_text)
    bare = [f"[PAD{number}]" for number in range(vocab_size)]
    tokens, kinds = bare, [UNUSED] * vocab_size
    added = {token["id"] for token in added_tokens(spec)}
    for token, number in tokenizer.backend.get_vocab(with_added_tokens=True).items():
        if number < vocab_size:  # control beyond the model is nothing that a text becomes
            own = CONTROL if number in tokenizer.control else USER_DEFINED if number in added else NORMAL
            tokens[number], kinds[number] = token, own
    if tokenizer.kind in ("bpe", "bytes"):
        said = {"model": "gpt2", "pre": _words_of(spec), "tokens": tokens, "token_type": kinds}
        said["merges"] = [" ".join(pair) for pair in _pairs(spec)]
    elif _is_sentencepiece(spec):
        said = {"model": "llama", "pre": "default", **_scored(spec, tokens, kinds)}
    else:
        raise Refused(
            f"a tokenizer of kind '{tokenizer.kind}' has no counterpart in GGUF, which knows byte-level BPE "
            "and SentencePiece's; train with --data.tokenizer bpe or bytes, or write --to hf"
        )
    before, after = tokenizer.frame
    for name, of in IDS.items():
        number = getattr(tokenizer, f"{name}_id", None)
        if number is not None and number < vocab_size:
            said[f"{of}_token_id"] = number
    others = sorted(one for one in ends if one != tokenizer.eos_id)
    said |= {f"{name}_token_id": one for name, one in zip(ENDS[1:], others, strict=False)}
    said |= {"add_bos_token": before == (tokenizer.bos_id,), "add_eos_token": after == (tokenizer.eos_id,)}
    found = {f"tokenizer.ggml.{key}": value for key, value in said.items()}
    template = tokenizer.config.get("chat_template")
    if isinstance(template, list):
        template = next((one["template"] for one in template if one["name"] == "default"), None)
    return found | ({} if template is None else {"tokenizer.chat_template": template})


def _words_of(spec: Mapping[str, Any]) -> str:
    """The name of the rule that splits words as a tokenizer.json does."""
    step = spec.get("pre_tokenizer") or {}
    steps = [_essence(one) for one in step.get("pretokenizers", [step])]
    whole, normalizer = bool(spec["model"].get("ignore_merges")), (spec.get("normalizer") or {}).get("type")
    for name, words in WORDS.items():
        same = [_essence(one) for one in words.steps()] == steps and words.whole_words == whole
        if same and (normalizer is None or normalizer == "NFC" and words is QWEN2):
            return name
    raise Refused(
        "the tokenizer splits words by a rule that llama.cpp has no name for; it is not written as GGUF"
    )


def _essence(step: Mapping[str, Any]) -> dict[str, Any]:
    """What of a pre-tokenizer decides its pieces; the rest may be left out, or said."""
    told = {"invert": False, "add_prefix_space": False, "use_regex": True} | dict(step)
    return {key: value for key, value in told.items() if key != "trim_offsets"}


def _pairs(spec: Mapping[str, Any]) -> list[list[str]]:
    """The merges, which older files spell with a space between the parts."""
    return [one.split(" ") if isinstance(one, str) else one for one in spec["model"]["merges"]]


def _is_sentencepiece(spec: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json is what `_Vocabulary.spec` makes of SentencePiece's BPE."""
    kinds = [one["type"] for one in (spec.get("normalizer") or {}).get("normalizers", [])]
    model = spec["model"]
    return (
        model.get("type") == "BPE" and bool(model.get("byte_fallback")) and spec.get("pre_tokenizer") is None
        and kinds in (["Prepend", "Replace"], ["Replace"])
    )  # fmt: skip


def _scored(spec: Mapping[str, Any], tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    """SentencePiece's lists: the earlier a merge, the better the score of what it makes."""
    scores = dict[str, float]()
    for rank, (left, right) in enumerate(_pairs(spec)):
        scores.setdefault(left + right, -float(rank))
    unknown = spec["model"].get("unk_token")
    for number, token in enumerate(tokens):
        if _BYTE.fullmatch(token) and kinds[number] == NORMAL:
            kinds[number] = BYTE
        elif token == unknown:
            kinds[number] = UNKNOWN
    least = -float(len(scores) + 1)
    return {
        "tokens": tokens, "token_type": kinds, "scores": [scores.get(token, least) for token in tokens],
        "add_space_prefix": len(spec["normalizer"]["normalizers"]) == 2,
    }  # fmt: skip
