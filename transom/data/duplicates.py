"""Documents that occur twice, exactly or nearly, found in bounded memory.

Exact: equal SHA-256. Near: the beginnings of the first documents are compared by MinHash in one permutation
with 64 bins (Li, Owen, Zhang 2012) over windows of 16 bytes, ASCII case and line breaks ignored; candidates
share one of 16 bands of 4 bins (locality-sensitive hashing), and count when their estimated Jaccard
similarity is at least 0.7. Read next: check, split.
"""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

COMPARED_DOCUMENTS = 20_000
COMPARED_BYTES = 8 << 10
"""Near duplicates are looked for among this many documents, in this much of each: about 2 s at most."""

_BINS, _BAND = 64, 4
_SHINGLE = 16
_SIMILAR = 0.7
_BATCH_BYTES = 1 << 20
_PLAIN = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ\n\r\t", b"abcdefghijklmnopqrstuvwxyz   ")
_EMPTY = np.uint32(0xFFFFFFFF)


class Duplicates:
    """Gathers documents one by one, then says which belong together."""

    def __init__(self) -> None:
        self.keys = array("Q")
        """The first 8 bytes of every document's hash: equal texts have equal keys."""
        self._compared: dict[int, int] = {}  # key -> row of its signature
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._signatures: list[npt.NDArray[np.uint32]] = []

    def add(self, key: int, head: bytes) -> None:
        """Take in a document by its key and its first bytes (at most COMPARED_BYTES are used)."""
        self.keys.append(key)
        if len(self._compared) >= COMPARED_DOCUMENTS or len(head) < 4 * _SHINGLE or key in self._compared:
            return
        self._compared[key] = len(self._compared)
        self._waiting.append(head[:COMPARED_BYTES].translate(_PLAIN))
        self._waiting_bytes += len(head[:COMPARED_BYTES])
        if self._waiting_bytes > _BATCH_BYTES:
            self._sign()

    @property
    def n_exact(self) -> int:
        """Documents whose very text occurred before."""
        return len(self.keys) - len(np.unique(np.asarray(self.keys)))

    @property
    def n_compared(self) -> int:
        """Different documents that were compared for near duplicates."""
        return len(self._compared)

    def groups(self) -> tuple[Words, int]:
        """A group key for every document, equal for exact and near duplicates, and how many are near
        duplicates.
        """
        keys = np.array(self.keys, dtype=np.uint64)
        if self._waiting:
            self._sign()
        if not self._signatures:
            return keys, 0
        parents = _joined(np.concatenate(self._signatures))
        compared = np.fromiter(self._compared, dtype=np.uint64, count=len(self._compared))
        near = np.flatnonzero(parents != np.arange(len(parents)))
        # Every copy of a near duplicate takes the key of the first document of its group.
        order = near[np.argsort(compared[near])]
        at = np.minimum(np.searchsorted(compared[order], keys), max(len(order) - 1, 0))
        if len(order):
            found = compared[order][at] == keys
            keys[found] = compared[parents[order]][at[found]]
        return keys, len(near)

    def _sign(self) -> None:
        self._signatures.append(signatures(self._waiting))
        self._waiting, self._waiting_bytes = [], 0


def signatures(texts: list[bytes]) -> npt.NDArray[np.uint32]:
    """MinHash signatures (n, 64) of texts of at least 16 bytes each."""
    data = np.frombuffer(b"".join(texts), dtype=np.uint8)
    lengths = np.array([len(text) for text in texts])
    ends = np.cumsum(lengths)
    # Two overlapping views read the 16 bytes that begin at every place as two 64-bit words.
    n = len(data) - _SHINGLE + 1
    low = np.ndarray((n,), dtype="<u8", buffer=data.data, strides=(1,))
    high = np.ndarray((n,), dtype="<u8", buffer=data.data, offset=8, strides=(1,))
    mixed = low * np.uint64(0x9E3779B97F4A7C15) ^ high * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    bins = (mixed >> np.uint64(58)).astype(np.int64)
    values = (mixed >> np.uint64(20)).astype(np.uint32)
    owner = np.repeat(np.arange(len(texts)), lengths)[:n]
    inside = np.arange(n) + _SHINGLE <= ends[owner]  # no window reaches into the next text
    found = np.full(len(texts) * _BINS, _EMPTY, dtype=np.uint32)
    np.minimum.at(found, (owner * _BINS + bins)[inside], values[inside])
    return _filled(found.reshape(len(texts), _BINS))


def _filled(rows: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Give every empty bin the value of the next full one, as short texts leave many empty (Shrivastava, Li
    2014).
    """
    twice = np.concatenate([rows, rows], axis=1)
    places = np.where(twice != _EMPTY, np.arange(2 * _BINS), 2 * _BINS - 1)
    following = np.minimum.accumulate(places[:, ::-1], axis=1)[:, ::-1][:, :_BINS]
    return np.take_along_axis(twice, following, axis=1)


def _joined(rows: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """For every signature the first of its group; candidates share a band and are similar enough."""
    pairs: list[npt.NDArray[np.int64]] = []
    for start in range(0, _BINS, _BAND):
        band = np.zeros(len(rows), dtype=np.uint64)
        for column in range(start, start + _BAND):
            band = (band ^ rows[:, column]) * np.uint64(0x9E3779B97F4A7C15)
            band ^= band >> np.uint64(31)
        order = np.argsort(band, kind="stable")
        same = band[order][1:] == band[order][:-1]
        pairs.append(np.stack([order[:-1][same], order[1:][same]], axis=1))
    candidates = np.unique(np.concatenate(pairs), axis=0)
    similar = np.concatenate(
        [
            (rows[part[:, 0]] == rows[part[:, 1]]).mean(axis=1) >= _SIMILAR
            for part in np.array_split(candidates, 1 + len(candidates) // 65536)
        ]
    )
    parents = list(range(len(rows)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    for first, second in candidates[similar].tolist():
        low, high = sorted((root(first), root(second)))
        parents[high] = low
    return np.array([root(index) for index in range(len(rows))])
