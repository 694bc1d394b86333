"""Text to ids and back: our face of a `tokenizers.Tokenizer`, for the three kinds made here and for foreign
folders.

The one idea: content is never control. Control tokens exist as ids only; a text that spells one is encoded
like any other text, and decoding writes nothing for them. Added tokens that are not special, such as <url> or
<tool_call>, are words: read and written as `transformers` reads and writes them. Read next: vocabulary,
tokenizer_files, tokenizer_json, decoding, words, tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as Backend

from transom.data.decoding import Spelling, StreamDecoder
from transom.data.documents import PART_CHARACTERS, in_parts, printable
from transom.data.gguf_file import is_gguf
from transom.data.tokenizer_files import read_tokenizer
from transom.data.tokenizer_json import (
    added_tokens,
    cuts_show,
    hide,
    is_byte_level_regex,
    is_gpt2_rule,
    mark_control,
    markers,
    vocabulary_kind,
)
from transom.data.vocabulary import (
    END,
    KINDS,
    MASK,
    PAD,
    UNKNOWN,
    framed_backend,
    spelled_bytes,
    train_backend,
)
from transom.data.words import WordEncoder
from transom.errors import Refused, nearest

Ids = npt.NDArray[np.uint32]

_LARGE_CHARACTERS = 1 << 16
_REPLACEMENT = "\ufffd".encode()


class Tokenizer:
    """A vocabulary with its rules: text to ids and back, and the ids of its control tokens."""

    def __init__(self, json_text: str, config: dict[str, Any], where: str = "tokenizer.json") -> None:
        self.json_text = json_text
        self.config = config
        """tokenizer_config.json as it was read or will be written."""
        self.hash = hashlib.sha256(json_text.encode("utf-8", "surrogatepass")).hexdigest()
        try:
            spec = json.loads(json_text)
            self.control = mark_control(spec, config)
            """Control tokens by id: no text becomes one, and they write nothing."""
            self._markers = markers(spec)
            self.backend = Backend.from_str(json.dumps(spec))
        except Exception as error:  # the Rust library raises bare Exception
            raise Refused(f"{where}: not a readable tokenizer ({printable(str(error)[:200])})") from None
        # The switch that keeps content from becoming control: special tokens in a text are spelled out.
        self.backend.encode_special_tokens = True
        self.backend.no_truncation()
        self.backend.no_padding()
        self.kind = vocabulary_kind(spec)
        """`bpe` (byte-level), `bytes`, `chars`, or `other` for foreign rules such as SentencePiece."""
        self.cuts_cleanly = not cuts_show(spec) and (
            self.kind in ("bytes", "chars") or is_byte_level_regex(spec)
        )
        """Whether parts of a document, encoded alone, give the ids of the whole (see documents)."""
        self._own_rules = len(self.control) == len(added_tokens(spec))  # no added word is to be found
        self._by_words = self._own_rules and self.kind == "bpe" and is_gpt2_rule(spec)
        self.vocab_size = 1 + max(self.backend.get_vocab(with_added_tokens=True).values())
        self.eos_id = self._special("eos_token")
        self.bos_id = self._special("bos_token")
        self.pad_id = self._special("pad_token")
        self.mask_id = self._special("mask_token")
        """The token that hides another in masked language modelling; None where the folder has none."""
        self.unknown_id = self.backend.token_to_id(UNKNOWN) if self.kind == "chars" else None

    def _special(self, name: str) -> int | None:
        token = self.config.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        number = (
            self.backend.token_to_id(content) if isinstance(content, str) else self.config.get(f"{name}_id")
        )
        number = number[0] if isinstance(number, list) and number else number
        return number if isinstance(number, int) else None

    # Text to ids

    def encode(self, text: str) -> list[int]:
        """The ids of a text; text that spells a control token is ordinary text. Raises Refused for lone
        surrogates.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            says = f"character {error.start} is half of a surrogate pair, which is not text; remove it"
            raise Refused(f"text: {says}") from None
        if self.cuts_cleanly and len(text) > 2 * PART_CHARACTERS:
            return np.concatenate(self.encode_arrays(list(in_parts([text])))).tolist()
        return self.encode_arrays([text])[0].tolist()

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of every text, on all cores."""
        return [ids.tolist() for ids in self.encode_arrays(texts)]

    def encode_arrays(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of every text as arrays, on all cores; the way large amounts are encoded."""
        if self.kind == "bytes" and self._own_rules:
            return [self._byte_ids[np.frombuffer(text.encode(), dtype=np.uint8)] for text in texts]
        if self.kind == "chars" and self._own_rules:
            return [self._character_ids(text) for text in texts]
        if self._by_words and sum(map(len, texts)) > _LARGE_CHARACTERS:
            return self._words.encode(texts)
        encodings = self._of_content.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    @cached_property
    def _of_content(self) -> Backend:
        """What texts are encoded with: the backend, or a copy whose control tokens no text can spell."""
        unknown = json.loads(self.json_text)["model"].get("unk_id")
        for number, text in self.control.items():
            if number != unknown and number in self.backend.encode(text, add_special_tokens=False).ids:
                spec = json.loads(self.json_text)
                hide(spec, self.control)
                return Backend.from_str(json.dumps(spec))
        return self.backend

    # Framing: control tokens around a text

    def framed(self, text: str) -> list[int]:
        """The ids of a text with what the folder's post-processor puts around it; content stays content."""
        return self.framed_many([text])[0].tolist()

    def framed_many(self, texts: Sequence[str]) -> list[Ids]:
        """The framed ids of every text as arrays, on all cores."""
        before, after = (np.array(ids, dtype=np.uint32) for ids in self.frame)
        if not (len(before) or len(after)):
            return self.encode_arrays(texts)
        return [np.concatenate([before, ids, after]) for ids in self.encode_arrays(texts)]

    @property
    def control_ids(self) -> frozenset[int]:
        """The ids of control tokens."""
        return frozenset(self.control)

    @property
    def reserved(self) -> dict[int, str]:
        """Control tokens and markers such as <think> or <tool_call>: what in a conversation only the template
        writes.
        """
        return self.control | self._markers

    @cached_property
    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The control tokens before and after every framed text, read off a probe."""
        for probe in ("a", "1", "."):
            encoding = self.backend.encode(probe, add_special_tokens=True)
            inside = [at for at, added in enumerate(encoding.special_tokens_mask) if not added]
            if inside:
                return tuple(encoding.ids[: inside[0]]), tuple(encoding.ids[inside[-1] + 1 :])
        return tuple(self.backend.encode("", add_special_tokens=True).ids), ()

    def framed_pairs(
        self, first: Sequence[str], second: Sequence[str], max_len: int
    ) -> list[tuple[Ids, Ids]]:
        """Two texts in a row as the folder frames them: the ids of each pair, and each id's segment (0 or 1).

        Of more than `max_len` ids the second text loses its end, and the first what is over half of them.
        """
        frame = self._pair_frame
        room = max_len - sum(place is None for _, _, place in frame)
        found = []
        for one, other in zip(self.encode_arrays(first), self.encode_arrays(second), strict=True):
            one = one[: room if len(one) + len(other) <= room else max(room // 2, room - len(other))]
            texts = (one, other[: room - len(one)])
            parts = [np.array([id], np.uint32) if place is None else texts[place] for id, _, place in frame]
            sides = [
                np.full(len(part), side, np.uint32) for part, (_, side, _) in zip(parts, frame, strict=True)
            ]
            found.append((np.concatenate(parts), np.concatenate(sides)))
        return found

    @cached_property
    def _pair_frame(self) -> list[tuple[int, int, int | None]]:
        """Id, segment and place in a framed pair; None is a control token, a number which text."""
        probe = self.backend.encode("a", "a", add_special_tokens=True)
        parts = list(zip(probe.ids, probe.type_ids, probe.sequence_ids, strict=True))
        places = [place for _, _, place in parts]
        return [part for at, part in enumerate(parts) if part[2] is None or part[2] not in places[:at]]

    def framed_as(self, frame: str) -> Tokenizer:
        """This vocabulary with another frame: `text` (end x end, with a mask token) or `target` (x end)."""
        backend = Backend.from_str(self.json_text)
        end = next(token for token, number in backend.get_vocab().items() if number == self.eos_id)
        framed_backend(backend, frame, end, with_mask=self.mask_id is None)
        config = {"mask_token": MASK, **self.config} if frame == "text" else self.config
        return Tokenizer(backend.to_str(pretty=True), config)

    @cached_property
    def _words(self) -> WordEncoder:
        return WordEncoder(self.backend)

    @cached_property
    def _byte_ids(self) -> Ids:
        table = np.zeros(256, dtype=np.uint32)
        for number, data in enumerate(self.spelling.within):
            if len(data) == 1:
                table[data[0]] = number
        return table

    def _character_ids(self, text: str) -> Ids:
        points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        table = self._point_ids
        assert self.unknown_id is not None
        ids = np.full(len(points), self.unknown_id, dtype=np.uint32)
        known = points < len(table)
        ids[known] = table[points[known]]
        return ids

    @cached_property
    def _point_ids(self) -> Ids:
        assert self.unknown_id is not None
        vocab = self.backend.get_vocab(with_added_tokens=False)
        points = {ord(token): number for token, number in vocab.items() if len(token) == 1}
        table = np.full(1 + max(points, default=0), self.unknown_id, dtype=np.uint32)
        for point, number in points.items():
            table[point] = number
        return table

    # Ids to text

    def decode(self, ids: Iterable[int], *, after: Iterable[int] = (), spaced: bool = False) -> str:
        """The text of ids; control tokens write nothing, bytes that are not UTF-8 become U+FFFD.

        after, spaced: as for `decoder`.
        """
        decoder = self.decoder(after, spaced=spaced)
        return "".join([*map(decoder.push, ids), decoder.finish()])

    def decoder(
        self,
        after: Iterable[int] = (),
        *,
        spaced: bool = False,
        markers: Mapping[int, str] = MappingProxyType({}),
    ) -> StreamDecoder:
        """A decoder for ids that come one by one, as a text of its own or going on from what `after` writes.

        spaced: the space before the first word is written already (`encode_prompt`). markers: control tokens
        that are written all the same.
        """
        begun = any(map(self.spelling.speaks, after))
        return StreamDecoder(self.spelling, begun=begun, spaced=spaced, markers=markers)

    def encode_prompt(self, text: str) -> tuple[list[int], frozenset[int] | None]:
        """Text to be gone on from: its ids, and the tokens that may come first (None: any).

        Byte-level tokenizers and SentencePiece put the space before a word into the word's token, so a model
        has hardly ever seen a word after a lone space, and goes astray after `def `. A lone space at the end
        is therefore taken back, and the first new token must begin with one (token healing; the idea is
        guidance's).
        """
        ids = self.encode(text)
        table = self.spelling.within if len(ids) > 1 else self.spelling.first
        if not ids or table[ids[-1]] != b" " or len(self._with_a_space) == 1:
            return ids, None
        return ids[:-1], self._with_a_space

    @cached_property
    def _with_a_space(self) -> frozenset[int]:
        return frozenset(i for i, data in enumerate(self.spelling.within) if data.startswith(b" "))

    def token_bytes(self, number: int) -> bytes:
        """The bytes that one token writes within a text: none for control and for what is no token."""
        return self.spelling.within[number] if 0 <= number < self.vocab_size else b""

    def token(self, number: int) -> str:
        """One token for people to read: its text, a control token's name, or bytes as <0xE2 0x82>.

        No two have one name: of those that write the same, one is called as it stands in the vocabulary.
        """
        return self._names[number] if 0 <= number < self.vocab_size else f"<{number}>"

    @cached_property
    def _names(self) -> list[str]:
        names: dict[str, None] = {}
        for number, data in enumerate(self.spelling.within):
            own = self.backend.id_to_token(number) or ""
            candidates = (self.control.get(number) or _readable(data), own, f"{own}<{number}>")
            names[next(name for name in candidates if name and name not in names)] = None
        return list(names)

    @cached_property
    def spelling(self) -> Spelling:
        """For every id the bytes it writes."""
        vocab = self.backend.get_vocab(with_added_tokens=True).items()
        tokens = {number: token for token, number in vocab if number not in self.control}
        if self.kind == "other":
            return Spelling.of_rules(self.backend, tokens, self.vocab_size)
        spelled = str.encode if self.kind == "chars" else spelled_bytes
        table = [spelled(tokens[number]) if number in tokens else b"" for number in range(self.vocab_size)]
        if self.unknown_id is not None:
            table[self.unknown_id] = _REPLACEMENT
        return Spelling(table, table, frozenset(range(self.vocab_size)) - tokens.keys())

    @cached_property
    def bytes_per_token(self) -> npt.NDArray[np.uint16]:
        """For every id how many bytes it writes within a text (V,), the space before a word included."""
        return np.array([min(len(data), 65535) for data in self.spelling.within], dtype=np.uint16)

    # On disk

    def save(self, folder: str | Path, *, max_length: int | None = None) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers.AutoTokenizer reads, into a
        folder.
        """
        config = dict(self.config)
        if max_length is not None:
            config["model_max_length"] = max_length
        folder = Path(folder)
        (folder / "tokenizer.json").write_bytes(self.json_text.encode("utf-8", "surrogatepass"))
        (folder / "tokenizer_config.json").write_text(
            json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8"
        )

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read the tokenizer of a model folder, ours or foreign, or of a GGUF file. Raises Refused where it
        is missing or broken.
        """
        folder = Path(folder)
        text, config = read_tokenizer(folder)
        return cls(text, config, printable(folder if is_gguf(folder) else folder / "tokenizer.json"))


def _readable(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "<" + " ".join(f"0x{byte:02X}" for byte in data) + ">"


def train_tokenizer(kind: str, texts: Iterator[str], vocab_size: int, *, frame: str = "") -> Tokenizer:
    """Make a tokenizer from texts: `bpe` of at most `vocab_size` tokens, `bytes` (258), or `chars`.

    `frame` is what stands around a framed text: nothing, `text` (encoders: end x end, and one token more for
    the mask) or `target` (encoder-decoders: x end). Raises Refused.
    """
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
    }
    if kind == "chars":
        config["unk_token"] = UNKNOWN
    n_masks = 1 if frame == "text" else 0
    tokenizer = Tokenizer(train_backend(kind, texts, vocab_size - n_masks).to_str(pretty=True), config)
    return tokenizer.framed_as(frame) if frame else tokenizer


def tokenizer_named(spec: str | Path | Tokenizer, *, ends: bool = True) -> Tokenizer | None:
    """The tokenizer that a setting names: a folder's, or None for a kind that is yet to be made.

    Raises Refused when it is neither, or, where texts are to end (`ends`), names no end-of-text token.
    """
    if isinstance(spec, Tokenizer):
        known = spec
    elif str(spec) in KINDS:
        return None
    elif Path(spec).is_dir() or is_gguf(Path(spec)):
        known = Tokenizer.load(spec)
    else:
        names = f"{', '.join(KINDS)} or a folder that holds one"
        raise Refused(f"tokenizer '{printable(spec)}' is none of {names}{nearest(str(spec), KINDS)}")
    if ends and known.eos_id is None:
        raise Refused(
            "the tokenizer names no end-of-text token (eos_token in tokenizer_config.json); add one"
        )
    return known
