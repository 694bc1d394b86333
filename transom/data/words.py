"""Encoding large texts word by word: GPT-2's pre-tokenizer in numpy, and every different word encoded once.

The one idea: text repeats its words, so a large text is cut into words by array operations, equal words are
brought together by a 64-bit hash, and only one of each goes to the `tokenizers` library; the ids of the rest
are copied. A hash can be forged, so words of one hash are compared letter by letter. Nothing is kept from one
call to the next, so no caller can change what another one gets. Numpy leaves the interpreter lock, so threads
use all cores. The library itself is the plain twin: it says of every character whether it is a letter, a
digit, space or other, and it encodes alone where most words are new. Read next: tokenizer.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as Backend

Ids = npt.NDArray[np.uint32]
Numbers = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

_LETTER, _DIGIT, _OTHER, _SPACE, _EDGE = 1, 2, 3, 4, 5
_PROBES = (("a", _LETTER), ("1", _DIGIT), ("!", _OTHER))
_LONGEST = 64
_GROUP_CHARACTERS = 1 << 18
_MOSTLY_NEW = 0.4

# Fixed odd multipliers, one for every place in a word: a multilinear hash. Two of a million words share a
# hash by chance with probability 3e-8.
_PLACES = np.random.Generator(np.random.PCG64(2019)).integers(0, 1 << 63, _LONGEST, dtype=np.uint64) * 2 + 1
_EDGE_HASH = 0


def n_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class _Words:
    """The words of a group of texts, joined with one character after each."""

    texts: list[str]
    different: list[str]
    """The different words."""
    which: Numbers
    """For every word its index in `different`."""
    edges: Numbers
    """The words that only end a text."""
    forged: bool
    """Whether two different words have one hash, so that the rest says nothing."""


class WordEncoder:
    """Encodes with a byte-level BPE tokenizer whose pre-tokenizer is GPT-2's; safe from several threads."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._classes = np.zeros(0x110000, dtype=np.uint8)  # of characters met so far; 0: not met
        self._classifying = threading.Lock()

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of every text, as the library gives them."""
        with ThreadPoolExecutor(n_cores()) as threads:
            groups = list(threads.map(self._words, _grouped(texts)))
            known, familiar = _known(groups)
            arrays = self._plain(list(known)[1:])
            flat = np.concatenate([np.empty(0, dtype=np.uint32), *arrays])
            lengths = np.array([0, *map(len, arrays)], dtype=np.int64)
            encoded = threads.map(
                lambda group, by_words: _copied(group, known, flat, lengths) if by_words else None,
                groups,
                familiar,
            )
            result: list[Ids] = []
            for group, ids in zip(groups, encoded, strict=True):
                result += ids if ids is not None else self._plain(group.texts)
            return result

    def _plain(self, texts: Sequence[str]) -> list[Ids]:
        """The library alone."""
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def _words(self, texts: list[str]) -> _Words:
        """Cut a group of texts into words and tell the different ones apart."""
        joined = "\n".join([*texts, ""])
        points = np.frombuffer(joined.encode("utf-32-le"), dtype=np.uint32)
        classes = self._classes[points]
        if not classes.all():
            self._classify(np.unique(points[classes == 0]))
            classes = self._classes[points]
        ends = np.cumsum([len(text) + 1 for text in texts]) - 1
        classes[ends] = _EDGE
        begins = np.flatnonzero(_word_begins(points, classes))
        hashes = _hashes(points, begins, joined)
        edges = np.searchsorted(begins, ends)
        hashes[edges] = _EDGE_HASH
        _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
        bounds = np.append(begins, len(points))
        different = [joined[bounds[word] : bounds[word + 1]] for word in first.tolist()]
        different[which[edges[0]]] = ""
        return _Words(texts, different, which, edges, not _equal(points, bounds, first[which]))

    def _classify(self, points: npt.NDArray[np.uint32]) -> None:
        """Ask the library's own pre-tokenizer what kind of character each of these is."""
        split: Any = self.backend.pre_tokenizer
        with self._classifying:
            for point in points.tolist():
                kinds = [
                    kind for probe, kind in _PROBES if len(split.pre_tokenize_str(probe + chr(point))) == 1
                ]
                self._classes[point] = kinds[0] if kinds else _SPACE


def _known(groups: list[_Words]) -> tuple[dict[str, int], list[bool]]:
    """The words to be encoded, numbered, "" before all; and which groups consist of them.

    A group of mostly new words (a language without spaces, random text) is left to the library.
    """
    known, familiar = {"": 0}, []
    for group in groups:
        fresh = [word for word in group.different if word not in known]
        familiar.append(not group.forged and len(fresh) <= _MOSTLY_NEW * len(group.which))
        if familiar[-1]:
            known.update(zip(fresh, range(len(known), len(known) + len(fresh)), strict=True))
    return known, familiar


def _copied(group: _Words, known: dict[str, int], flat: Ids, lengths: Numbers) -> list[Ids]:
    """Copy the ids of every word of a group, and part them by text."""
    words = np.array([known[word] for word in group.different], dtype=np.int64)[group.which]
    counts = lengths[words]
    written = np.cumsum(counts)
    # ids[j] of word w come from flat[ends[w] - lengths[w] + j]
    offsets = np.repeat(np.cumsum(lengths)[words] - written, counts)
    ids = flat[offsets + np.arange(len(offsets))]
    return np.split(ids, written[group.edges][:-1])


def _equal(points: npt.NDArray[np.uint32], bounds: Numbers, others: Numbers) -> bool:
    """Whether every word has the letters of the other one that is named for it."""
    lengths = np.diff(bounds)
    if not np.array_equal(lengths, lengths[others]):
        return False
    shifts = np.repeat(bounds[others] - bounds[:-1], lengths)
    return np.array_equal(points[np.arange(len(points)) + shifts], points)


def _grouped(texts: Sequence[str]) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(text) + 1
        if size >= _GROUP_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _word_begins(points: npt.NDArray[np.uint32], classes: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Where the words of GPT-2's expression begin; an _EDGE is a word alone, and the text ends before it.

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+
    """
    begins = np.empty(len(points), dtype=np.bool_)
    begins[0] = True
    begins[1:] = classes[1:] != classes[:-1]
    edges = classes == _EDGE
    begins |= edges
    # Space before a visible character: its last character is set apart, and a blank joins the word that
    # follows.
    after = np.flatnonzero(begins[1:] & (classes[:-1] == _SPACE) & ~edges[1:]) + 1
    begins[after - 1] = True
    begins[after] = points[after - 1] != ord(" ")
    # A lone apostrophe that no blank has joined takes the letters of a contraction with it.
    quotes = np.flatnonzero(points[:-2] == ord("'"))
    quotes = quotes[begins[quotes] & (classes[quotes + 1] == _LETTER)]
    one, two = points[quotes + 1], points[quotes + 2]
    short = np.isin(one, [ord(letter) for letter in "stmd"])
    long = np.zeros(len(quotes), dtype=np.bool_)
    for ending in ("re", "ve", "ll"):
        long |= (one == ord(ending[0])) & (two == ord(ending[1])) & (classes[quotes + 2] == _LETTER)
    for chosen, length in ((quotes[short], 1), (quotes[long], 2)):
        begins[chosen + 1] = False
        rest = chosen + 1 + length
        begins[rest] |= classes[rest] == _LETTER
    return begins


def _hashes(points: npt.NDArray[np.uint32], begins: Numbers, text: str) -> Hashes:
    """A 64-bit hash of every word."""
    lengths = np.diff(begins, append=len(points))
    places = np.arange(len(points)) - np.repeat(begins, lengths)
    terms = (points + np.uint64(1)) * _PLACES[np.minimum(places, _LONGEST - 1)]
    terms ^= terms >> np.uint64(32)
    terms *= np.uint64(0x9E3779B97F4A7C15)
    hashes = np.add.reduceat(terms, begins)
    for word in np.flatnonzero(lengths > _LONGEST).tolist():
        data = text[begins[word] : begins[word] + lengths[word]].encode()
        hashes[word] = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
    return hashes
