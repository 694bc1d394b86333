"""From text to token files: nothing is lost, the split never overlaps, the same call finds its work again."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.data.conftest import NASTY
from tests.data.test_check import words
from tests.data.token_files import write_tokens
from transom.data import ngram_baselines as counting
from transom.data import prepare as preparing
from transom.data.check import Progress
from transom.data.ngram_baselines import NgramBaselines, count_baselines
from transom.data.order import Windows
from transom.data.prepare import Corpus, prepare
from transom.data.sources import open_source
from transom.data.tokenizer import Tokenizer
from transom.data.tokens import TokenFile
from transom.errors import Refused

Written = Callable[[str, bytes | str], Path]


def documents_of(file: TokenFile, tokenizer: Tokenizer) -> list[str]:
    bounds = [*file.starts.tolist(), file.n_tokens]
    texts = []
    for start, end in zip(bounds, bounds[1:], strict=False):
        assert file.tokens[start] == tokenizer.eos_id
        texts.append(tokenizer.decode(file.tokens[start + 1 : end].tolist()))
    return texts


def rows(written: Written, texts: list[str]) -> Path:
    return written("rows.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))


def made(path: Path, folder: Path, **options: object) -> Corpus:
    return prepare(open_source(path), folder=folder, **{"vocab_size": 300, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bpe", "bytes", "chars"])
def test_every_document_lands_whole_on_one_side(kind: str, written: Written, tmp_path: Path) -> None:
    texts = [f"{words(n)} {NASTY[n : n + 3 * n]}" for n in range(60)]
    corpus = made(rows(written, texts), tmp_path / "cache", tokenizer=kind, val_fraction=0.2)
    train = documents_of(corpus.train, corpus.tokenizer)
    held_out = documents_of(corpus.held_out, corpus.tokenizer)
    if corpus.tokenizer.unknown_id is None:
        assert Counter(train + held_out) == Counter(texts)
        assert [text for text in texts if text in set(train)] == train, "in their order"
    n_bytes = sum(len(text.encode()) for text in texts)
    assert corpus.train.n_bytes + corpus.held_out.n_bytes == n_bytes == corpus.report.n_bytes
    assert 0.1 < corpus.held_out.n_bytes / n_bytes < 0.3
    assert not set(train) & set(held_out)
    assert corpus.train.tokenizer_hash == corpus.tokenizer.hash
    assert corpus.train.data_hash == corpus.data_hash == corpus.held_out.data_hash


def test_copies_stay_together(written: Written, tmp_path: Path) -> None:
    texts = [words(seed % 25) + (" end" if seed > 50 else "") for seed in range(75)]
    corpus = made(rows(written, texts), tmp_path / "cache", val_fraction=0.3)
    train = {text.removesuffix(" end") for text in documents_of(corpus.train, corpus.tokenizer)}
    held_out = {text.removesuffix(" end") for text in documents_of(corpus.held_out, corpus.tokenizer)}
    assert held_out and not train & held_out
    assert corpus.report.n_exact_duplicates > 20 and corpus.report.n_near_duplicates > 20


def test_a_side_follows_the_text_and_not_the_order(written: Written, tmp_path: Path) -> None:
    texts = [words(seed) for seed in range(40)]
    sides = []
    for order in (texts, texts[::-1]):
        corpus = made(rows(written, order), tmp_path / "cache", val_fraction=0.2)
        sides.append(set(documents_of(corpus.held_out, corpus.tokenizer)))
    assert sides[0] == sides[1]


def test_few_documents_hold_out_their_ends(written: Written, tmp_path: Path) -> None:
    texts = [words(seed, 400).replace(" ", "\n", 50) for seed in range(3)]
    corpus = made(rows(written, texts), tmp_path / "cache", val_fraction=0.1)
    train, held_out = (documents_of(file, corpus.tokenizer) for file in (corpus.train, corpus.held_out))
    assert [a + b for a, b in zip(train, held_out, strict=True)] == texts
    assert all(0.05 < len(b) / (len(a) + len(b)) < 0.15 for a, b in zip(train, held_out, strict=True))
    assert "the last 10% of each of the 3 documents" in str(corpus.report)


def test_long_documents_encode_as_the_whole(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transom.data.documents.PART_CHARACTERS", 50)
    monkeypatch.setattr(preparing, "_BATCH_CHARACTERS", 300)
    corpus = made(written("a.txt", NASTY), tmp_path / "cache", val_fraction=0.1)
    texts = [documents_of(file, corpus.tokenizer)[0] for file in (corpus.train, corpus.held_out)]
    assert "".join(texts) == NASTY
    for file, text in zip((corpus.train, corpus.held_out), texts, strict=True):
        assert file.tokens[1:].tolist() == corpus.tokenizer.encode(text)


def test_the_same_call_returns_at_once(written: Written, tmp_path: Path) -> None:
    path, cache = rows(written, [words(seed) for seed in range(40)]), tmp_path / "cache"
    seen: list[Progress] = []
    first = made(path, cache, on_progress=seen.append)
    assert [p.stage for p in seen if p.done == p.total][-1] == "tokens" and not first.reused
    again = made(path, cache, on_progress=lambda progress: pytest.fail(f"worked again: {progress}"))
    assert again.reused and again.data_hash == first.data_hash
    assert again.references == first.references and str(again.report) == str(first.report)
    assert np.array_equal(again.train.tokens, first.train.tokens)

    for change in ({"vocab_size": 301}, {"val_fraction": 0.3}, {"tokenizer": "bytes"}):
        assert not made(path, cache, **change).reused
    os.utime(path, (1, 1))
    touched = made(path, cache)
    assert not touched.reused and touched.data_hash == first.data_hash
    assert [entry.name for entry in cache.iterdir() if entry.name.startswith(".tmp")] == []


@pytest.mark.parametrize("name", ["train.tokens", "held_out.tokens", "tokenizer.json", "prepared.json"])
def test_a_damaged_cache_is_made_again(name: str, written: Written, tmp_path: Path) -> None:
    path, cache = rows(written, [words(seed) for seed in range(40)]), tmp_path / "cache"
    first = made(path, cache)
    good = first.train.tokens.tolist()
    data = bytearray((first.folder / name).read_bytes())
    data[-3] ^= 1
    (first.folder / name).write_bytes(data)
    again = made(path, cache)
    assert name == "prepared.json" or not again.reused
    assert again.train.tokens.tolist() == good
    (first.folder / name).unlink()
    assert not made(path, cache).reused


def test_text_that_changes_while_it_is_read_is_refused(written: Written, tmp_path: Path) -> None:
    path = rows(written, [words(seed) for seed in range(40)])

    def meddle(progress: Progress) -> None:
        if progress.stage == "check" and progress.done == progress.total:
            rows(written, [words(seed) for seed in range(1, 41)])

    with pytest.raises(Refused, match="the text changed while it was being read"):
        made(path, tmp_path / "cache", on_progress=meddle)
    assert not [p for p in (tmp_path / "cache").iterdir() if not p.name.endswith(".lock")]


def test_killed_at_any_time_leaves_nothing_half(written: Written, tmp_path: Path) -> None:
    path, cache = rows(written, [words(seed, 400) for seed in range(300)]), tmp_path / "cache"
    code = (
        "import sys; from pathlib import Path; from transom.data.sources import open_source;"
        "from transom.data.prepare import prepare; print('go', flush=True);"
        "prepare(open_source(sys.argv[1]), folder=Path(sys.argv[2]), vocab_size=300)"
    )
    for delay in (0.05, 0.15, 0.3):
        run = subprocess.Popen(
            [sys.executable, "-c", code, str(path), str(cache)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert run.stdout is not None
        run.stdout.readline()
        time.sleep(delay)
        run.send_signal(signal.SIGKILL)
        run.wait()
        run.stdout.close()
        for home in cache.glob("[!.]*"):
            TokenFile.open(home / "train.tokens").verify()
    corpus = made(path, cache)
    assert len(documents_of(corpus.train, corpus.tokenizer)) > 200
    assert not list(cache.glob(".tmp-*"))


def test_two_processes_share_the_work(written: Written, tmp_path: Path) -> None:
    path, cache = rows(written, [words(seed, 400) for seed in range(100)]), tmp_path / "cache"
    code = (
        "import sys; from pathlib import Path; from transom.data.sources import open_source;"
        "from transom.data.prepare import prepare;"
        "print(prepare(open_source(sys.argv[1]), folder=Path(sys.argv[2]), vocab_size=300).reused)"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path), str(cache)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for _ in range(2)
    ]
    assert sorted(run.communicate()[0].strip() for run in runs) == ["False", "True"]


def test_refusals(written: Written, tmp_path: Path) -> None:
    path = rows(written, [words(seed) for seed in range(40)])
    for options, says in (
        ({"tokenizer": "bpee"}, "tokenizer 'bpee' is none of bpe, bytes, chars .* did you mean 'bpe'"),
        ({"tokenizer": tmp_path}, "tokenizer.json: no such file"),
        ({"val_fraction": 0.0}, "val_fraction is 0.0; it must be above 0"),
        ({"val_fraction": 0.9}, "at most 0.5"),
        ({"vocab_size": 100}, "vocab_size is 100; bpe needs at least 258"),
    ):
        with pytest.raises(Refused, match=says):
            made(path, tmp_path / "cache", **options)
    with pytest.raises(Refused, match="too little text to"):
        made(written("tiny.txt", "x"), tmp_path / "cache")
    with pytest.raises(Refused, match="copies of each other"):
        made(rows(written, [words(1)] * 30), tmp_path / "cache")
    written("file", "not a folder")
    with pytest.raises(Refused, match="cannot be written"):
        made(rows(written, [words(s) for s in range(40)]), tmp_path / "file" / "cache")


def test_a_small_text_yields_a_small_vocabulary_and_says_so(written: Written, tmp_path: Path) -> None:
    corpus = made(rows(written, ["tiny words " * 5] * 9 + ["other"]), tmp_path / "cache", vocab_size=4096)
    assert corpus.tokenizer.vocab_size < 300
    assert "the text yields a vocabulary of" in str(corpus.report)


def test_the_vocabulary_is_learned_from_training_text_only(written: Written, tmp_path: Path) -> None:
    corpus = made(written("a.txt", "abcdefgh " * 500 + "XYZ"), tmp_path / "cache", tokenizer="chars")
    assert "<|unk|>" in str(corpus.report) and corpus.report.tokens["n_unknown"] == 3


def test_a_large_text_gives_a_spread_sample(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "SAMPLE_BYTES", 100_000)
    taken: list[str] = []

    def keep(kind: str, texts: object, size: int, *, frame: str) -> Tokenizer:
        taken.extend(texts)  # type: ignore[arg-type]
        return original(kind, iter(taken), size, frame=frame)

    original = preparing.train_tokenizer
    monkeypatch.setattr(preparing, "train_tokenizer", keep)
    text = "".join(f"{n:06d} line of text\n" for n in range(60_000))
    corpus = made(written("a.txt", text), tmp_path / "cache")
    numbers = [
        int(line[:6]) for part in taken for line in part.splitlines() if line[:6].isdigit() and len(line) > 15
    ]
    assert 80_000 < sum(map(len, taken)) < 130_000
    assert min(numbers) < 2_000 and max(numbers) > 35_000
    assert "the vocabulary was learned from" in str(corpus.report)


def test_a_foreign_tokenizer(written: Written, tmp_path: Path, bpe: Tokenizer) -> None:
    (tmp_path / "foreign").mkdir()
    bpe.save(tmp_path / "foreign")
    path = rows(written, [words(seed) for seed in range(40)])
    corpus = made(path, tmp_path / "cache", tokenizer=tmp_path / "foreign")
    assert corpus.tokenizer.hash == bpe.hash
    assert made(path, tmp_path / "cache", tokenizer=bpe).reused


# Reference lines


def file_of(path: Path, documents: list[list[int]], vocab_size: int) -> TokenFile:
    arrays = [np.array(ids) for ids in documents]
    lengths = np.ones(vocab_size, dtype=np.uint16)
    return write_tokens(path, arrays, eos_id=0, bytes_per_token=lengths)


def discounts(counts: list[int]) -> list[float]:
    """Chen and Goodman 1999, equation 17."""
    n1, n2, n3, n4 = (sum(count == n for count in counts) for n in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2)
    return [0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]


def by_hand(train: list[int], held_out: list[int], vocab_size: int) -> tuple[float, float, float]:
    single, pairs = Counter(train), Counter(zip(train, train[1:], strict=False))
    follows = Counter(second for _, second in pairs)
    of_pairs, of_follows = discounts(list(pairs.values())), discounts(list(follows.values()))

    def continuing(token: int) -> float:
        rest = sum(of_follows[min(n, 3)] for n in follows.values()) / len(pairs)
        own = follows[token] - of_follows[min(follows[token], 3)]
        return own / len(pairs) + rest / vocab_size

    def after(first: int, second: int) -> float:
        counts = {pair: n for pair, n in pairs.items() if pair[0] == first}
        if not counts:
            return continuing(second)
        own = pairs[first, second] - of_pairs[min(pairs[first, second], 3)]
        rest = sum(of_pairs[min(n, 3)] for n in counts.values())
        return (own + rest * continuing(second)) / sum(counts.values())

    nats = [0.0, 0.0]
    for first, second in zip(held_out, held_out[1:], strict=False):
        unigram = (single[second] + 1) / (len(train) + vocab_size)
        nats = [nats[0] - math.log(unigram), nats[1] - math.log(after(first, second))]
    n = len(held_out) - 1
    return math.log(vocab_size), nats[0] / n, nats[1] / n


@pytest.mark.parametrize("dense", [True, False])
def test_reference_lines_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dense: bool) -> None:
    monkeypatch.setattr(counting, "DENSE_PAIRS", 1 << 26 if dense else 0)
    monkeypatch.setattr("transom.data.tokens._CHUNK_TOKENS", 97)
    numbers = np.random.default_rng(0)
    chain = np.minimum(numbers.zipf(1.3, size=3000), 399).tolist()
    train = file_of(tmp_path / "t.tokens", [chain[:300], chain[300:]], 400)
    held_out = file_of(tmp_path / "h.tokens", [numbers.integers(1, 400, size=200).tolist()], 400)
    lines = count_baselines(train, held_out)
    expected = by_hand(train.tokens.tolist(), held_out.tokens.tolist(), 400)
    found = (lines.uniform, lines.unigram, lines.bigram)
    assert [line.nats_per_token for line in found] == pytest.approx(expected)
    assert lines.bigram.bits_per_byte == pytest.approx(expected[2] / math.log(2))
    assert lines.n_counted == train.n_tokens
    assert NgramBaselines.from_dict(json.loads(json.dumps(lines.to_dict()))) == lines


def test_a_bigram_is_a_distribution(tmp_path: Path) -> None:
    train = file_of(tmp_path / "t.tokens", [[1, 2, 1, 2, 3, 1, 1, 2, 4, 4]], 6)
    for first in range(6):
        total = 0.0
        for second in range(6):
            held_out = file_of(tmp_path / "h.tokens", [[first, second]], 6)
            opening = count_baselines(train, file_of(tmp_path / "o.tokens", [[first]], 6))
            lines = count_baselines(train, held_out)
            total += math.exp(-(2 * lines.bigram.nats_per_token - opening.bigram.nats_per_token))
        assert total == pytest.approx(1.0)


def test_a_large_vocabulary_is_counted_on_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "DENSE_PAIRS", 0)
    monkeypatch.setattr(counting, "SPARSE_TOKENS", 300)
    monkeypatch.setattr("transom.data.tokens._CHUNK_TOKENS", 100)
    train = file_of(tmp_path / "t.tokens", [[n % 17 + 1 for n in range(999)]], 20)
    lines = count_baselines(train, train)
    assert 200 <= lines.n_counted <= 400
    assert lines.bigram.nats_per_token < 0.5 < lines.unigram.nats_per_token


# Real data


def test_real_text(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "tinyshakespeare" / "input.txt"
    corpus = prepare(open_source(path), folder=tmp_path, tokenizer="chars", val_fraction=0.1)
    assert corpus.tokenizer.vocab_size == 65 + 3 and corpus.report.tokens["n_unknown"] == 0
    assert corpus.train.n_tokens + corpus.held_out.n_tokens == 1_115_394 + 2
    lines = corpus.references
    assert 2.4 < lines.bigram.nats_per_token < 2.6 < 3.2 < lines.unigram.nats_per_token < 3.5
    assert lines.uniform.nats_per_token == pytest.approx(math.log(68))
    batches = list(Windows(corpus.held_out, 64).eval_batches(32))
    assert sum(batch.n_bytes for batch in batches) == corpus.held_out.n_bytes


def test_real_records(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "medical_abstracts" / "medical_tc_test.csv"
    corpus = prepare(open_source(path, field="medical_abstract"), folder=tmp_path, vocab_size=1000)
    held_out = set(documents_of(corpus.held_out, corpus.tokenizer))
    assert 100 < len(held_out) < 200
    assert not held_out & set(documents_of(corpus.train, corpus.tokenizer))
