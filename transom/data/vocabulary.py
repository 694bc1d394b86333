"""How tokens spell text: the byte alphabet of GPT-2, and the making of the three kinds of vocabulary.

The one idea: byte-level BPE writes each of the 256 bytes as one printable character, so every text can be
spelled and no token is ever unknown (Radford et al. 2019). The pre-tokenizer is GPT-2's regular expression,
which llama.cpp knows as "gpt-2". Read next: tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from transom.data.documents import clean_cut
from transom.errors import Refused, nearest

END, PAD, UNKNOWN, MASK = "<|endoftext|>", "<|pad|>", "<|unk|>", "<|mask|>"
KINDS = ("bpe", "bytes", "chars")
FRAMES = ("text", "target")
"""What stands around a text: encoders see where it begins and ends, decoders where it ends."""
SMALLEST_BPE = 256 + 2
BPE_SIZES: dict[float, int] = {200_000: 1024, math.inf: 4096}
"""By the bytes of a text, up to so many: the entries of a vocabulary whose size nobody gave. Nano,
4 passes, held-out bits per byte: 100 kB of prose, two seeds, 4,096 2.345 and 2.394, 1,024 2.314 and
2.332; 300 kB, one seed, 4,096 1.880, 1,024 1.960 (2026-11-28)."""

_SLICE = 1 << 16  # the trainer holds 256 slices at a time


def _byte_letters() -> dict[int, str]:
    """Byte -> the printable character that stands for it in byte-level vocabularies."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


BYTE_LETTERS = _byte_letters()
LETTER_BYTES = {letter: byte for byte, letter in BYTE_LETTERS.items()}


def bpe_size(n_bytes: float = math.inf) -> int:
    """How many entries BPE learns from a text of so many bytes where nobody says."""
    return next(size for most, size in BPE_SIZES.items() if n_bytes <= most)


def spelled_bytes(token: str) -> bytes:
    """The bytes that a token of a byte-level vocabulary stands for."""
    try:
        return bytes(LETTER_BYTES[letter] for letter in token)
    except KeyError:  # an added token is written as itself
        return token.encode("utf-8", "replace")


def train_backend(kind: str, texts: Iterable[str], vocab_size: int) -> Backend:
    """Make a vocabulary of a kind from texts; special tokens included, its size is at most `vocab_size`.

    `bytes` has always 258 tokens and `chars` as many as the texts have characters, and three. Raises Refused.
    """
    if kind == "bpe":
        return _bpe(texts, vocab_size)
    if kind == "bytes":
        return _byte_level({BYTE_LETTERS[byte]: byte for byte in range(256)}, specials=(END, PAD))
    if kind == "chars":
        return _characters(texts)
    raise Refused(f"tokenizer '{kind}' is unknown; it is bpe, bytes, chars or a folder{nearest(kind, KINDS)}")


def framed_backend(backend: Backend, frame: str, end: str, *, with_mask: bool) -> None:
    """Let a tokenizer put its end token around every text as `frame` says, and add a mask for encoders."""
    if frame == "text" and with_mask:
        backend.add_special_tokens(_special(MASK))
    number = backend.token_to_id(end)
    opening = [end] if frame == "text" else []
    single, pair = [*opening, "$A", end], [*opening, "$A", end, "$B:1", f"{end}:1"]
    backend.post_processor = processors.TemplateProcessing(single, pair, [(end, number)])


def _special(*tokens: str) -> list[AddedToken]:
    return [AddedToken(token, special=True, normalized=False) for token in tokens]


def _byte_level(vocab: dict[str, int], specials: tuple[str, ...]) -> Backend:
    backend = Backend(models.BPE(vocab=vocab, merges=[]) if vocab else models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    if specials:
        backend.add_special_tokens(_special(*specials))
    return backend


def _bpe(texts: Iterable[str], vocab_size: int) -> Backend:
    if vocab_size < SMALLEST_BPE:
        raise Refused(
            f"vocab_size is {vocab_size}; bpe needs at least {SMALLEST_BPE} (256 bytes and 2 special tokens)"
        )
    backend = _byte_level({}, specials=())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=_special(END, PAD),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_slices(texts), trainer)
    return backend


def _slices(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        at = 0
        while len(text) - at > _SLICE:
            end = clean_cut(text, at + _SLICE, at) or at + _SLICE
            yield text[at:end]
            at = end
        yield text[at:]


def _characters(texts: Iterable[str]) -> Backend:
    seen: set[str] = set()
    for text in texts:
        seen.update(text)
    vocab = {token: number for number, token in enumerate([END, PAD, UNKNOWN, *sorted(seen)])}
    backend = Backend(models.BPE(vocab=vocab, merges=[], unk_token=UNKNOWN, fuse_unk=False))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(_special(END, PAD, UNKNOWN))
    return backend
