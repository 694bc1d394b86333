"""Marian's source.spm, target.spm and vocab.json, made one tokenizer.json.

A SentencePiece file is a protocol buffer; of it the pieces with their scores and the normalizer are read, and
that is all that a Unigram model is. A piece's id is the one that vocab.json gives it: pieces of the target
alone get scores so low that no source is spelled with them. Several letters in a row for which the source has
no piece are spelled by those of the target, where transformers writes one <unk>. Source:
`sentencepiece_model.proto`, and `MarianTokenizer` of transformers. Read next: tokenizer_files.
"""

from __future__ import annotations

import base64
import json
import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transom.data.documents import printable
from transom.data.in_folder import inside
from transom.errors import Refused

SOURCE, TARGET, VOCAB = "source.spm", "target.spm", "vocab.json"
MOST_BYTES = 64 << 20
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
UNIGRAM = 1
NEVER, HARDLY = -1e6, -1e4
"""Scores of pieces of the target: those of several letters, and those of one, which a source may need for a
letter that it has no piece for."""
NAMES = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SentencePiece:
    """What a SentencePiece file says."""

    pieces: list[tuple[str, float, int]]
    """Text, score and kind of each."""
    model_type: int
    charsmap: bytes
    """How characters are normalized, as the library has compiled it."""
    add_prefix: bool
    """Whether a text begins with a space of its own."""
    remove_spaces: bool
    """Whether spaces around a text, and of several all but one, are left out."""


def read_sentencepiece(data: bytes) -> SentencePiece:
    """Read a SentencePiece file; raises ValueError for bytes that are none."""
    pieces, model_type, normalizer = [], UNIGRAM, {}
    for number, value in _fields(data):
        if number == 1:
            part = dict(_fields(value))
            score = struct.unpack("<f", part[2])[0] if 2 in part else 0.0
            pieces.append((part[1].decode(), score, part.get(3, NORMAL)))
        elif number == 2:
            model_type = dict(_fields(value)).get(3, UNIGRAM)
        elif number == 3:
            normalizer = dict(_fields(value))
    if not pieces:
        raise ValueError("it holds no pieces")
    spaces = (bool(normalizer.get(number, 1)) for number in (3, 4))
    return SentencePiece(pieces, model_type, normalizer.get(2, b""), *spaces)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protocol buffer: number, and an int or the bytes of the value."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
        else:
            size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}.get(kind, -1), at)
            if size < 0 or at + size > len(data):
                raise ValueError(f"no field begins at byte {at}")
            value, at = data[at : at + size], at + size
        yield key >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at
    raise ValueError(f"a number does not end at byte {at}")


def read_marian(folder: Path, config: dict[str, Any], vocab: dict[str, Any]) -> str | None:
    """The tokenizer.json of such a folder, and in `config` what goes with it; None where it is none.

    vocab: vocab.json. Raises Refused where a file is damaged or says what cannot be said in one file.
    """
    if not (folder / SOURCE).is_file():
        return None
    source, target = (_read(folder, name) for name in (SOURCE, TARGET))
    where = printable(folder / VOCAB)
    names = {key: _content(config.get(key)) or usual for key, usual in NAMES.items()}
    if config.get("separate_vocabs"):
        raise Refused(f"{where}: separate_vocabs: source and target share a vocabulary in what is read here")
    if not vocab or sorted(vocab.values()) != list(range(len(vocab))):
        raise Refused(f"{where}: a table of tokens and the ids from 0 on belongs there")
    for key, name in names.items():
        if name not in vocab:
            raise Refused(f"{where}: it has no {printable(name)} ({key})")
    scores = {piece: score for piece, score, kind in source.pieces if kind in (NORMAL, USER, BYTE)}
    if missing := scores.keys() - vocab.keys():
        said = "%s: not in it are %d pieces of %s; words are spelled without them"
        log.warning(said, where, len(missing), SOURCE)
    config |= names | {"tokenizer_class": "PreTrainedTokenizerFast", "sources_only": source != target}
    ordered = sorted(vocab, key=lambda piece: vocab[piece])
    unused = {piece: HARDLY if len(piece) == 1 else NEVER for piece in ordered}
    codes = [piece for piece in ordered if piece.startswith(">>") and piece.endswith("<<")]
    added = [(name, True) for name in names.values()] + [(code, False) for code in codes]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    space = {"type": "Metaspace", "replacement": "▁", "split": True,
             "prepend_scheme": "always" if source.add_prefix else "never"}  # fmt: skip
    steps: list[dict[str, Any]] = []
    if source.charsmap:
        charsmap = base64.b64encode(source.charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if source.remove_spaces:
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    end = {"SpecialToken": {"id": names["eos_token"], "type_id": 0}}
    ends = {"id": names["eos_token"], "ids": [vocab[names["eos_token"]]], "tokens": [names["eos_token"]]}
    text: dict[str, Any] = {"Sequence": {"id": "A", "type_id": 0}}
    spec = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [
            {"id": vocab[content], "content": content, "special": special, **flags}
            for content, special in sorted(added, key=lambda one: vocab[one[0]])
        ],
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": space,
        "post_processor": {
            "type": "TemplateProcessing", "single": [text, end],
            "pair": [text, {"Sequence": {"id": "B", "type_id": 0}}, end],
            "special_tokens": {names["eos_token"]: ends},
        },
        "decoder": space,
        "model": {
            "type": "Unigram", "unk_id": vocab[names["unk_token"]], "byte_fallback": False,
            "vocab": [[piece, scores.get(piece, unused[piece])] for piece in ordered],
        },
    }  # fmt: skip
    return json.dumps(spec, ensure_ascii=False)


def _content(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and content else None


def _read(folder: Path, name: str) -> SentencePiece:
    path = inside(folder, name)
    where = printable(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise Refused(f"{where}: larger than {MOST_BYTES >> 20} MB; this is no SentencePiece file")
        found = read_sentencepiece(path.read_bytes())
    except OSError as error:
        raise Refused(f"{where}: cannot be read ({error.strerror})") from None
    except Refused:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise Refused(f"{where}: not a SentencePiece file ({printable(str(error)[:80])})") from None
    if found.model_type != UNIGRAM or any(kind == BYTE for _, _, kind in found.pieces):
        raise Refused(f"{where}: Unigram models without byte pieces are read, and this is another kind")
    return found
