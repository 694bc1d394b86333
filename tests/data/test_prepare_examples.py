"""From a source to rows of ids: the split shares no text, over-long text is refused or said, classes are classes."""

# ruff: noqa: E501 - a line of the tables is the whole line that a person sees

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scale import scaled
from transom.data import prepare_examples as preparing
from transom.data.check import Progress
from transom.data.example_split import digest_of, held_out_groups, held_out_of_each, linked
from transom.data.labelled import open_labelled
from transom.data.pairs import open_pairs
from transom.data.prepare_examples import Preparation, PreparedExamples
from transom.data.tokenizer import Tokenizer
from transom.errors import Refused

Written = Callable[[str, bytes | str], Path]


def prepared(
    *sources: object, folder: Any = None, on_progress: Any = None, **options: Any
) -> PreparedExamples:
    return Preparation(*sources, **options).once(folder, on_progress)


def pairs(path: object, validation: object = None, **options: object) -> PreparedExamples:
    other = None if validation is None else open_pairs(str(validation))
    return prepared(open_pairs(str(path)), other, **{"tokenizer": "bytes", **options})


def labelled(path: object, validation: object = None, **options: object) -> PreparedExamples:
    other = None if validation is None else open_labelled(str(validation))
    return prepared(open_labelled(str(path)), other, **{"tokenizer": "bytes", **options})


def same(texts: list[str]) -> Any:
    """For every text its hash."""
    return np.frombuffer(b"".join(map(digest_of, texts)), dtype="<u8")


def refusal(call: Callable[..., object], *args: object, **options: object) -> str:
    with pytest.raises(Refused) as caught:
        call(*args, **options)
    return str(caught.value)


def parallel(n: int, start: int = 0) -> str:
    return "".join(f"the dog {i}\tder Hund {i}\n" for i in range(start, start + n))


def classes(n: int, start: int = 0) -> str:
    return "text\tlabel\n" + "".join(
        f"the dog {i}\t{'abc'[min(2, i % 7)]}\n" for i in range(start, start + n)
    )


# Pairs


def test_rows_are_the_framed_pairs(written: Written) -> None:
    made = pairs(written("a.tsv", parallel(200)), vocab_size=300, tokenizer="bpe")
    tokenizer = made.tokenizer
    for rows, texts in ((made.train, made.train_examples), (made.held_out, made.held_out_examples)):
        assert len(rows) == len(texts) == len(rows.target) > 0
        for at, pair in enumerate(texts):
            assert rows.source[at].tolist() == tokenizer.framed(pair.source)
            assert rows.target[at].tolist() == [*tokenizer.encode(pair.target), tokenizer.eos_id]
            assert rows.n_bytes[at] == len(pair.target.encode())
    assert (made.report.n_train, made.report.n_held_out) == (190, 10) == (len(made.train), len(made.held_out))
    ids = {*made.train.source.flat.tolist(), *made.train.target.flat.tolist()}
    assert tokenizer.pad_id not in ids, "padding is never content"


def test_the_split_depends_on_the_texts_alone(written: Written) -> None:
    rows = parallel(300).splitlines(keepends=True)
    one, other = (
        pairs(written(name, "".join(lines))) for name, lines in (("a.tsv", rows), ("b.tsv", rows[::-1]))
    )
    assert {pair[:2] for pair in one.held_out_examples} == {pair[:2] for pair in other.held_out_examples}
    assert one.data_hash != other.data_hash == pairs(written("c.tsv", "".join(rows[::-1]))).data_hash


PAIRS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=60)


@given(rows=PAIRS)
@settings(max_examples=scaled(150))
def test_linked_pairs_stay_together(rows: list[tuple[int, int]]) -> None:
    one, other = [str(a) for a, _ in rows], [str(b) for _, b in rows]
    groups = linked(same(one), same(other))
    for i in range(len(rows)):
        for j in range(i):
            if rows[i][0] == rows[j][0] or rows[i][1] == rows[j][1]:
                assert groups[i] == groups[j]
    parts = {frozenset(np.flatnonzero(groups == group).tolist()) for group in groups}
    for part in parts:  # no larger than they must be: within a part all are reached from one
        reached: set[int] = set()
        fresh = {next(iter(part))}
        while fresh:
            reached |= fresh
            sides = [{rows[i][side] for i in reached} for side in (0, 1)]
            fresh = {i for i in part - reached if rows[i][0] in sides[0] or rows[i][1] in sides[1]}
        assert reached == part
    again = linked(same(one[::-1]), same(other[::-1]))[::-1]
    assert (again == groups).all()
    held_out = held_out_groups(groups, 0.2)
    assert not set(groups[held_out].tolist()) & set(groups[~held_out].tolist())


def test_no_text_stands_on_both_sides(written: Written) -> None:
    rows = [f"s{i % 150}\tt{i % 100}\n" for i in range(50)] + [f"x{i % 90}\ty{i}\n" for i in range(300)]
    made = pairs(written("a.tsv", "".join(rows)), val_fraction=0.2)
    for side in (0, 1):
        assert not {p[side] for p in made.train_examples} & {p[side] for p in made.held_out_examples}
    assert 50 <= len(made.held_out_examples) <= 75


def test_a_validation_of_its_own(written: Written) -> None:
    path, other = written("a.tsv", parallel(50)), written("b.tsv", parallel(20, start=45))
    made = pairs(path, other)
    assert (len(made.train), len(made.held_out)) == (50, 20)
    assert made.report.split == f"from {other}"
    note = "5 of 20 held-out texts also stand among those to learn from, which flatters the score"
    assert note in made.report.notes and note in str(made.report)
    dates = prepared(open_pairs("dates"))
    assert dates.tokenizer.kind == "chars" and (len(dates.train), len(dates.held_out)) == (50_000, 1_000)
    assert not {p.target for p in dates.train_examples} & {p.target for p in dates.held_out_examples}
    assert dates.report.n_unknown == 0 and dates.tokenizer.vocab_size < 80


def test_over_long_pairs(written: Written) -> None:
    rows = [f"a{i}\tb{i}\n" for i in range(300)]
    rows[7] = "x" * 40 + "\ty\n"
    path = written("a.tsv", "".join(rows))
    made = pairs(path, max_len=20)
    assert len(made.train) + len(made.held_out) == 299
    assert f"left out   1 pair longer than 20 tokens, first at {path}:8" in str(made.report)
    assert made.report.lengths["source"][1] == 41
    rows[3:9] = ["x\t" + "y" * (30 + i) + "\n" for i in range(6)]
    assert refusal(pairs, written("b.tsv", "".join(rows)), max_len=20) == (
        f"{path.with_name('b.tsv')}:4: 2 source and 31 target tokens, the limit is 20; 6 of 300 pairs (2.0%, at "
        "most 1% may) are longer: set --model.max-len to 33, or shorten them"
    )
    assert len(pairs(path.with_name("b.tsv"), max_len=33).train_examples) > 200, (
        "the length it names is enough"
    )


def test_over_long_validation_is_counted_by_itself(written: Written) -> None:
    path = written("a.tsv", parallel(1000))
    other = written("b.tsv", "a\tb\n" + "c\t" + "d" * 30 + "\n")
    assert refusal(pairs, path, other, max_len=25).startswith(
        f"{other}:2: 2 source and 31 target tokens, the limit is 25; 1 of 2 pairs (50.0%, at most 1% may)"
    )


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        ("a\tb\n", {}, "1 pair cannot be split into some to learn from and some to hold out without a text on both sides; give more, or name a file with others as --data.validation"),
        ("a\tb\n" * 9, {}, "9 pairs cannot be split"),
        ("source\ttarget\n", {}, "there is no pair in it; name a file that holds some"),
        (parallel(30), {"val_fraction": 0.7}, "val_fraction is 0.7; it must be above 0 and at most 0.5"),
        (parallel(30), {"tokenizer": "bpee"}, "tokenizer 'bpee' is none of bpe, bytes, chars or a folder that holds one; did you mean 'bpe'?"),
    ],
)  # fmt: skip
def test_pairs_that_are_refused(
    written: Written, content: str, options: dict[str, object], says: str
) -> None:
    assert says in refusal(pairs, written("a.tsv", content), **options)


def test_a_given_tokenizer(written: Written, bpe: Tokenizer) -> None:
    made = pairs(written("a.tsv", parallel(40)), tokenizer=bpe)
    assert made.tokenizer.frame == ((), (bpe.eos_id,)), "a target needs an end"
    assert made.tokenizer.vocab_size == bpe.vocab_size
    framed = bpe.framed_as("text")
    assert pairs(written("a.tsv", parallel(40)), tokenizer=framed).tokenizer is framed
    assert pairs(written("a.tsv", parallel(40)), frame="text").tokenizer.frame == ((256,), (256,))


# Labelled


def test_labelled_rows(written: Written) -> None:
    made = labelled(written("a.tsv", classes(700)), val_fraction=0.1)
    assert made.labels == ("a", "b", "c") and made.tokenizer.mask_id is not None
    for rows, texts in ((made.train, made.train_examples), (made.held_out, made.held_out_examples)):
        assert [made.labels[number] for number in rows.labels.tolist()] == [text.label for text in texts]
        assert [row.tolist() for row in map(rows.text.__getitem__, range(len(rows)))] == [
            made.tokenizer.framed(text.text) for text in texts
        ]
    assert Counter(text.label for text in made.held_out_examples) == {"a": 10, "b": 10, "c": 50}
    assert made.counts == {"a": 90, "b": 90, "c": 450} == Counter(t.label for t in made.train_examples)
    said = str(made.report)
    assert "classes    3: c 71.4%, a 14.3%, b 14.3%" in said
    assert "'c' has 5.0 times the examples of 'a'; who always says 'c' is right 71.4% of the time" in said
    assert made.report.to_dict()["counts"] == made.counts


@given(
    labels=st.lists(st.sampled_from("aaaaaab"), min_size=2, max_size=80),
    texts=st.lists(st.integers(0, 40), min_size=80, max_size=80),
    fraction=st.floats(0.01, 0.5),
)
@settings(max_examples=scaled(150))
def test_no_class_is_held_out_wholly(labels: list[str], texts: list[int], fraction: float) -> None:
    groups = same([str(text) for text in texts[: len(labels)]])
    held_out = held_out_of_each(labels, groups, fraction)
    assert not set(groups[held_out].tolist()) & set(groups[~held_out].tolist())
    assert not held_out.all()
    if len(set(texts[: len(labels)])) == len(labels):
        assert set(np.array(labels)[~held_out].tolist()) == set(labels)
        assert held_out.sum() <= max(1, fraction * len(labels) + len(set(labels)))


def test_contradictions_and_blank_lines_are_said(written: Written) -> None:
    path = written("a.tsv", classes(50) + "the dog 0\tc\n")
    assert f"1 text with more than one label, first at {path}:2: nobody can get them all right" in str(
        labelled(path).report
    )
    even = "text\tlabel\n" + "".join(f"t{i}\t{i % 2}\n" for i in range(60))
    assert "even: the largest class is less than 1.5 times the smallest" in str(
        labelled(written("b.tsv", even)).report
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("text\tlabel\n" + "a\tx\nb\tx\nc\tx\n", ": all 3 texts have the label 'x'; a classifier needs at least two classes"),
        ("text\tlabel\n" + "".join(f"text {i}\tlabel {i}\n" for i in range(40)), ": 40 different labels for 40 texts are no classes; name the right column with --data.label"),
        ("text\tlabel\nsame\ta\nsame\tb\n", ": 2 texts cannot be split into some to learn from and some to hold out without a text on both sides; give more, or name a file with others as --data.validation"),
    ],
)  # fmt: skip
def test_labelled_texts_that_are_refused(written: Written, content: str, says: str) -> None:
    path = written("a.tsv", content)
    assert refusal(labelled, path) == f"{path}{says}"


def test_unknown_labels_of_the_validation(written: Written) -> None:
    path = written("a.tsv", "text\tlabel\n" + "one\tsport\ntwo\tpolitics\n" * 3)
    other = written("b.tsv", "text\tlabel\nthree\tsport\nfour\tpolitcs\n")
    assert refusal(labelled, path, other) == (
        f"{other}:3: the label 'politcs' never occurs in {path}; did you mean 'politics'?"
    )
    far = written("c.tsv", "text\tlabel\nthree\tsport\nfour\tzzz\n")
    assert refusal(labelled, path, far) == (
        f"{far}:3: the label 'zzz' never occurs in {path}; it has politics, sport"
    )
    made = labelled(path, written("d.tsv", "text\tlabel\nthree\tsport\n"))
    assert made.held_out.labels.tolist() == [1] and made.counts == {"politics": 3, "sport": 3}


def test_over_long_texts(written: Written) -> None:
    path = written("a.tsv", "text\tlabel\n" + "short\ta\n" + "long " * 20 + "\tb\n" + "one\ta\ntwo\tb\n")
    assert refusal(labelled, path, max_len=32) == (
        f"{path}:3: 101 text tokens, the limit is 32; 1 of 4 texts (25.0%, at most 1% may) are longer: "
        "set --model.max-len to 101, or shorten them (--data.too-long cut or drop)"
    )


def test_characters_that_were_never_learned_are_said(written: Written) -> None:
    path, other = written("a.tsv", parallel(20)), written("b.tsv", "the dög\tder Hund\n")
    made = pairs(path, other, tokenizer="chars")
    assert made.report.n_unknown == 1
    assert "1 held-out characters never occur in the training text: <|unk|>" in str(made.report)


# Kept and found again


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on nothing may be read or encoded."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("this was prepared before")

    def begin() -> None:
        monkeypatch.setattr(preparing, "survey_examples", refuse)
        monkeypatch.setattr(Tokenizer, "framed_many", refuse)

    return begin


@pytest.mark.parametrize("kind", ["pairs", "classes"])
def test_a_second_call_finds_what_the_first_one_made(
    kind: str, written: Written, tmp_path: Path, no_work: Callable[[], None]
) -> None:
    path = written("a.tsv", parallel(200) if kind == "pairs" else classes(200))
    make = partial(pairs if kind == "pairs" else labelled, path, folder=tmp_path / "cache", tokenizer="chars")
    made = make()
    path.write_text(path.read_text())  # of another time, and the same bytes
    no_work()
    again = make()
    assert (made.reused, again.reused) == (False, True) and again.folder == made.folder
    assert str(again.report) == str(made.report) and again.report.to_dict() == made.report.to_dict()
    assert (again.data_hash, again.labels, again.shown) == (made.data_hash, made.labels, made.shown)
    assert again.tokenizer.hash == made.tokenizer.hash
    for one, other in ((made.train, again.train), (made.held_out, again.held_out)):
        side = "source" if kind == "pairs" else "text"
        assert getattr(one, side).flat.tolist() == getattr(other, side).flat.tolist()
        assert isinstance(getattr(other, side).flat.base, np.memmap)
    assert again.held_out_examples == made.held_out_examples and again.train_examples == made.train_examples
    assert again.shown == again.held_out_examples[0][:2]


def test_whatever_changes_the_rows_makes_them_anew(written: Written, tmp_path: Path) -> None:
    path, cache = written("a.tsv", parallel(200)), tmp_path / "cache"
    made = [pairs(path, folder=cache)]
    for options in ({"val_fraction": 0.1}, {"max_len": 50}, {"tokenizer": "chars"}, {"frame": "text"}):
        made.append(pairs(path, folder=cache, **options))
    state = path.stat()
    path.write_text(path.read_text().replace("dog 7\t", "cat 7\t"))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    made.append(pairs(path, folder=cache))
    assert not any(one.reused for one in made)
    assert len({one.folder for one in made}) == len(made)


def test_a_damaged_file_is_made_again(written: Written, tmp_path: Path) -> None:
    path, cache = written("a.tsv", classes(200)), tmp_path / "cache"
    whole = labelled(path, folder=cache)
    for name in ("train.text.tokens", "held_out.beside.npy", "prepared.json", "tokenizer.json"):
        file = whole.folder / name
        file.write_bytes(file.read_bytes()[:-1] + b"?")
        again = labelled(path, folder=cache)
        assert not again.reused and labelled(path, folder=cache).reused, name
        assert again.train.labels.tolist() == whole.train.labels.tolist()


def test_a_record_nested_too_deeply_is_a_damaged_one(written: Written, tmp_path: Path) -> None:
    path, cache = written("a.tsv", classes(200)), tmp_path / "cache"
    (labelled(path, folder=cache).folder / "prepared.json").write_text("[" * 100_000)
    assert not labelled(path, folder=cache).reused


def test_what_was_prepared_serves_where_nothing_can_be_locked(written: Written, tmp_path: Path) -> None:
    path, cache = written("a.tsv", classes(200)), tmp_path / "cache"
    home = labelled(path, folder=cache).folder
    lock = home.with_name(f".{home.name}.lock")
    lock.unlink(missing_ok=True)
    lock.mkdir()
    assert labelled(path, folder=cache).reused
    shutil.rmtree(home)
    with pytest.raises(Refused, match=r"cannot be written \(Is a directory\)"):
        labelled(path, folder=cache)


def test_rows_do_not_depend_on_the_batches_they_are_encoded_in(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"{'long ' * (i % 9)}{i}\t{'ab'[i % 2]}\n" for i in range(400)]
    path = written("a.tsv", "text\tlabel\n" + "".join(rows))
    made = []
    for size in (1 << 21, 50):
        monkeypatch.setattr("transom.data.prepare._BATCH_CHARACTERS", size)
        made.append(labelled(path, max_len=20, too_long="cut"))
    for part in ("train", "held_out"):
        one, other = (getattr(each, part) for each in made)
        assert one.text.flat.tolist() == other.text.flat.tolist()
        assert one.text.starts.tolist() == other.text.starts.tolist()
        assert one.labels.tolist() == other.labels.tolist()
    assert str(made[0].report) == str(made[1].report)
    cut = made[0].train.text
    assert cut.lengths.max() == 20 and all(cut[row][-1] == 256 for row in range(len(cut)))


def test_text_that_changes_while_it_is_read_is_refused(written: Written, tmp_path: Path) -> None:
    path = written("a.tsv", parallel(200))

    def meddle(progress: Progress) -> None:
        if progress.stage == "check" and progress.done == progress.total:
            path.write_text(parallel(200, start=1))

    with pytest.raises(Refused, match="the text changed while it was being read"):
        pairs(path, folder=tmp_path / "cache", on_progress=meddle)
    assert not [p for p in (tmp_path / "cache").iterdir() if not p.name.endswith(".lock")]


def test_a_temporary_folder_goes_with_what_lies_in_it(written: Written) -> None:
    made = pairs(written("a.tsv", parallel(200)))
    folder = made.folder.parent
    assert folder.is_dir()
    del made
    assert not folder.exists()


def test_multi30k(shared_data: Path) -> None:
    folder = shared_data / "multi30k"
    train, held_out = (
        open_pairs(str(folder / f"{part}.en.gz"), str(folder / f"{part}.de.gz")) for part in ("train", "val")
    )
    made = prepared(train, held_out, vocab_size=4000, max_len=128)
    assert (len(made.train), len(made.held_out)) == (29_000, 1_014)
    assert made.held_out_examples[0].target == "Eine Gruppe von Männern lädt Baumwolle auf einen Lastwagen"
    text = made.train_examples[5].target
    assert made.tokenizer.decode(made.train.target[5].tolist()) == text
    assert "held out   1,014 pairs, from" in str(made.report)
