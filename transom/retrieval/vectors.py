"""Vectors of chunks in a file that is mapped, never loaded: written in blocks, searched exactly.

Scores are products of float16 vectors, in float32. Above `SCANNED` rows an int8 copy is scanned, and the best
of it are scored again by the vectors themselves. Measured on one core (Xeon with AMX, torch 2.13, 200,000
rows of 384): 120 ms by float16 blocks, 48 ms by int8. Read next: folder_store.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FILE, SCAN, SCALES = "vectors.npy", "scan.npy", "scales.npy"
SCANNED = 50_000
"""Rows above which the int8 copy is made and scanned."""
RESCORED = 1000
"""Of the scan, at least so many are scored exactly."""
BLOCK = 1024
"""Rows at a time; more are slower, as the block leaves the cache."""
COPIED = 16_384
"""Rows that are written at a time."""

Rows = NDArray[np.float16]


class Vectors:
    """The vectors of a folder: row i belongs to the i-th chunk by id."""

    def __init__(self, folder: Path) -> None:
        self.rows: Rows = _mapped(folder / FILE)  # type: ignore[assignment]
        self._rows = torch.from_numpy(self.rows)
        self._scan = self._scales = None
        if (folder / SCAN).exists():
            self._scan = torch.from_numpy(_mapped(folder / SCAN))
            self._scales = torch.from_numpy(np.load(folder / SCALES, allow_pickle=False))

    def best(
        self, vector: NDArray[np.float32], k: int, seen: NDArray[np.bool_] | None = None
    ) -> list[tuple[int, float]]:
        """The k rows with the highest product with a vector (D,), of those that are `seen` (None: all)."""
        query = torch.from_numpy(np.ascontiguousarray(vector, np.float32))
        if self._scan is None:
            places = None
            scores = torch.cat([block.float() @ query for block in self._rows.split(BLOCK)])
        else:
            scores = self._scanned(query)
            scores = scores if seen is None else scores.masked_fill(~torch.from_numpy(seen), -torch.inf)
            places = scores.topk(min(len(scores), max(RESCORED, 4 * k))).indices.sort().values
            scores = self._rows[places].float() @ query
            seen = None if seen is None else seen[places.numpy()]
        if seen is not None:
            scores = scores.masked_fill(~torch.from_numpy(seen), -torch.inf)
        # Only what reaches the k-th score is sorted, all of its ties too: of those the earlier chunk counts.
        floor = scores.topk(min(k, len(scores))).values[-1:]
        best = ((scores >= floor) & (scores > -torch.inf)).nonzero()[:, 0]
        best = best[scores[best].sort(descending=True, stable=True).indices[:k]]
        found = best if places is None else places[best]
        return list(zip(found.tolist(), scores[best].tolist(), strict=True))

    def _scanned(self, query: Tensor) -> Tensor:
        """About the scores of all rows, by whole numbers."""
        assert self._scan is not None and self._scales is not None
        scale = query.abs().max().clamp_min(1e-12) / 127
        whole = (query / scale).round().to(torch.int8)[:, None].repeat(1, 8).contiguous()
        return torch._int_mm(self._scan, whole)[:, 0].float() * self._scales * scale  # type: ignore[reportPrivateImportUsage]


def write_vectors(folder: Path, blocks: Iterable[NDArray[np.floating]], n: int, dim: int) -> None:
    """Write n rows of D that come in blocks; with them the copy for the scan where there are many."""
    rows = np.lib.format.open_memmap(folder / FILE, "w+", np.float16, (n, dim))
    many = n > SCANNED
    if many:
        scan = np.lib.format.open_memmap(folder / SCAN, "w+", np.int8, (n, dim))
        scales = np.empty(n, np.float32)
    at = 0
    for block in blocks:
        for part in np.array_split(block, max(1, -(-len(block) // COPIED))):
            end = at + len(part)
            rows[at:end] = part
            if many:
                wide = rows[at:end].astype(np.float32)
                scales[at:end] = np.abs(wide).max(axis=1).clip(1e-12) / 127
                scan[at:end] = np.rint(wide / scales[at:end, None])
            at = end
    if at != n:
        raise ValueError(f"{at} vectors for {n} chunks")
    rows.flush()
    if many:
        scan.flush()
        np.save(folder / SCALES, scales)


def _mapped(file: Path) -> NDArray[np.generic]:
    """An array over a file. Mapped as if it could be written to, which torch asks for; nothing is written."""
    return np.load(file, mmap_mode="c", allow_pickle=False)
