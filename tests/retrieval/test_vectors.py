"""Search among vectors: against NumPy in float64, with ties, labels, and the int8 copy of large folders."""

from pathlib import Path

import numpy as np
import pytest

from transom.retrieval import vectors
from transom.retrieval.vectors import Vectors, write_vectors


def written(folder: Path, rows: np.ndarray) -> Vectors:
    write_vectors(folder, iter(np.array_split(rows, 3)), *rows.shape)
    return Vectors(folder)


def unit(rng: np.random.Generator, n: int, width: int) -> np.ndarray:
    rows = rng.standard_normal((n, width), np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def expected(rows: np.ndarray, query: np.ndarray, k: int, seen: np.ndarray | None = None) -> list[int]:
    scores = rows.astype(np.float16).astype(np.float64) @ query.astype(np.float64)
    if seen is not None:
        scores[~seen] = -np.inf
    order = np.lexsort((np.arange(len(scores)), -scores))[:k]
    return [int(row) for row in order if scores[row] > -np.inf]


@pytest.mark.parametrize("n", [1, 9, 1023, 1025, 3000])
@pytest.mark.parametrize("k", [1, 10, 5000])
def test_the_best_are_those_of_float64(tmp_path: Path, n: int, k: int):
    rng = np.random.default_rng(n)
    rows, query = unit(rng, n, 24), unit(rng, 1, 24)[0]
    base = written(tmp_path, rows)
    assert [row for row, _ in base.best(query, k)] == expected(rows, query, k)
    seen = rng.random(n) < 0.4
    assert [row for row, _ in base.best(query, k, seen)] == expected(rows, query, k, seen)
    assert base.best(query, k, np.zeros(n, bool)) == []


def test_of_equal_rows_the_earlier_come_first_and_no_more_than_asked(tmp_path: Path):
    rng = np.random.default_rng(0)
    rows = unit(rng, 4, 8)[np.arange(2000) % 4]  # each of four rows 500 times
    found = written(tmp_path, rows).best(rows[2], 7)
    assert [row for row, _ in found] == [2, 6, 10, 14, 18, 22, 26]


def test_the_int8_copy_finds_what_the_vectors_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The scan only chooses whom to score: found rows and their scores are those of the vectors."""
    rng = np.random.default_rng(1)
    centres = unit(rng, 40, 48)
    rows = centres[rng.integers(40, size=6000)] + 0.1 * rng.standard_normal((6000, 48), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[17] = 0  # an empty chunk
    (tmp_path / "plain").mkdir()
    (tmp_path / "scanned").mkdir()
    plain = written(tmp_path / "plain", rows)
    monkeypatch.setattr(vectors, "SCANNED", 5000)
    scanned = written(tmp_path / "scanned", rows)
    assert (tmp_path / "scanned" / vectors.SCAN).exists() and not (tmp_path / "plain" / vectors.SCAN).exists()
    seen = rng.random(6000) < 0.5
    for query in rows[rng.integers(100, 6000, size=30)]:
        assert scanned.best(query, 10) == plain.best(query, 10)
        assert scanned.best(query, 10, seen) == plain.best(query, 10, seen)
    few = np.zeros(6000, bool)
    few[[3, 4000]] = True
    assert {row for row, _ in scanned.best(rows[3], 10, few)} == {3, 4000}
