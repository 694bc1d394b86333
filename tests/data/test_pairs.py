"""Parallel text: every layout that is read, and every way in which it can be wrong, with its exact line."""

# ruff: noqa: E501 - a line of the tables is the whole line that a person sees

from __future__ import annotations

import gzip
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from transom.data.issues import Issues
from transom.data.pairs import Pair, open_pairs
from transom.errors import Refused

Written = Callable[[str, bytes | str], Path]


def texts(*args: object, **options: object) -> list[tuple[str, str]]:
    return [pair[:2] for pair in open_pairs(*map(str, args), **options)]  # type: ignore[arg-type]


def refusal(*args: object, **options: object) -> str:
    with pytest.raises(Refused) as caught:
        texts(*args, **options)
    return str(caught.value)


TWO = [("A man.", "Ein Mann."), ("Two dogs.", "Zwei Hunde.")]


def test_two_aligned_files(written: Written) -> None:
    one = written("a.en", "A man.\r\nTwo dogs.\n")
    other = written("a.de.gz", gzip.compress(b"Ein Mann.\nZwei Hunde."))  # no newline at the end
    source = open_pairs(str(one), str(other))
    assert list(source) == list(source) == [Pair(*pair, f"{one}:{n}") for n, pair in enumerate(TWO, 1)]
    assert source.name == f"{one} and {other}"


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("bare.tsv", "A man.\tEin Mann.\nTwo dogs.\tZwei Hunde.\n", {}),
        ("header.tsv", "source\ttarget\nA man.\tEin Mann.\nTwo dogs.\tZwei Hunde.\n", {}),
        ("swapped.tsv", "target\tid\tsource\nEin Mann.\t1\tA man.\nZwei Hunde.\t2\tTwo dogs.\n", {}),
        ("languages.tsv", "en\tde-AT\n A man.\tEin Mann. \nTwo dogs.\tZwei Hunde.\n", {}),
        ("any.txt", "A man.\tEin Mann.\n\nTwo dogs.\tZwei Hunde.\n", {}),
        (
            "three.tsv",
            "A man.\tEin Mann.\tCC0\nTwo dogs.\tZwei Hunde.\tCC0\n",
            {"fields": ("1", "2")},
        ),
        ("named.csv", 'German,English\n"Ein Mann.",A man.\nZwei Hunde.,"Two dogs."\n', {"fields": ("English", "German")}),
        ("two.csv", "src,tgt\nA man.,Ein Mann.\nTwo dogs.,Zwei Hunde.\n", {}),
        ("plain.jsonl", [{"source": s, "target": t, "id": 1} for s, t in TWO], {}),
        ("nested.jsonl", [{"id": 1, "translation": {"en": s, "de": t}} for s, t in TWO], {}),
        ("codes.jsonl", [{"en": s, "de": t} for s, t in TWO], {}),
        ("fields.jsonl", [{"q": s, "a": t} for s, t in TWO], {"fields": ("q", "a")}),
        (
            "many.jsonl",
            [{"translation": {"de": t, "fr": "", "en": s}} for s, t in TWO],
            {"fields": ("en", "de")},
        ),
    ],
)  # fmt: skip
def test_layouts(written: Written, name: str, content: object, options: dict[str, object]) -> None:
    lines = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)  # type: ignore[attr-defined]
    assert texts(written(name, lines), **options) == TWO


def test_places_and_fingerprints(written: Written) -> None:
    path = written("a.tsv", "en\tde\n\nA man.\tEin Mann.\n")
    source = open_pairs(str(path))
    assert [pair.where for pair in source] == [f"{path}:3"]
    assert source.notes == ("pairs are read from en and de (the first line names the columns)",)
    before = source.fingerprint()
    assert open_pairs(str(path)).fingerprint() == before
    assert open_pairs(str(path), on_error="skip").fingerprint() != before
    path.write_text("en\tde\nA man.\tEin Mann!!\n")
    assert source.fingerprint() != before


def test_misaligned_files(written: Written) -> None:
    one, other = written("a.en", "x\n" * 1200), written("a.de", "y\n" * 1199)
    line = "aligned files have equally many, line n of one being the translation of line n of the other; find where a line was lost or added"
    assert refusal(one, other) == f"{one} has 1,200 lines and {other} has 1,199: {line}"
    assert refusal(other, one, on_error="skip") == f"{other} has 1,199 lines and {one} has 1,200: {line}"


def test_a_blank_line_at_the_end_of_both_is_no_pair(written: Written) -> None:
    issues = Issues()
    source = open_pairs(str(written("a", "x\n\n")), str(written("b", "y\n \n")))
    assert len(list(source.examples(issues))) == 1 and issues.n_empty == 1
    assert "has 2 lines and" in refusal(written("a", "x\n\n"), written("b", "y\n"))


def test_empty_sides(written: Written) -> None:
    one, other = written("a.en", "x\ny\nz\n"), written("a.de", "x\n \nz\n")
    assert refusal(one, other) == (
        f"{other}:2: the target side is empty while the other is not; fill it in or remove the pair (or "
        "--data.on-error skip)"
    )
    assert refusal(other, one).startswith(f"{other}:2: the source side is empty while the other is not;")
    tsv = written("a.tsv", "x\ty\nz\t\n")
    assert refusal(tsv).startswith(f"{tsv}:2: the target side is empty")
    assert refusal(tsv, on_error="skip") == (
        f"1 of 2 records (50.0%) would be skipped, the limit is 1% (empty sides, first at {tsv}:2): mend the "
        "text, or --data.on-error replace for bad bytes"
    )
    many = written("many.tsv", "x\ty\n" * 150 + "z\t\n")
    issues = Issues()
    assert len(list(open_pairs(str(many), on_error="skip").examples(issues))) == 150
    assert issues.n_skipped_records == 1 and issues.faults["empty sides"].first == f"{many}:151"


def test_a_skipped_line_takes_its_partner_with_it(written: Written) -> None:
    lines = [f"line {n}".encode() for n in range(300)]
    broken = [*lines[:7], b"\xff\xfe!", *lines[8:]]
    one, other = written("a.en", b"\n".join(broken)), written("a.de", b"\n".join(lines))
    assert refusal(one, other).startswith(f"{one}:8: byte 49 (0xff) is not UTF-8")
    for pairs in (texts(one, other, on_error="skip"), texts(other, one, on_error="skip")):
        assert pairs == [(line.decode(), line.decode()) for line in [*lines[:7], *lines[8:]]]
    assert texts(one, other, on_error="replace")[7] == ("\ufffd\ufffd!", "line 7")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.en", "A man.\n", ": one column of text, where pairs have two sides; name the file of the other side as --data.target, or give a TSV, a CSV or JSON lines"),
        ("one.tsv", "A man.\n", ":1: which of 1 column (A man.) are source and target? Set --data.field and --data.target-field, to names or to numbers from 1"),
        ("three.tsv", "a\tb\tc\n", ":1: which of 3 columns (a, b, c) are source and target? Set --data.field and --data.target-field, to names or to numbers from 1"),
        ("names.csv", "a,b\nx,y\n", ":1: which of 2 columns (a, b) are source and target? Set --data.field and --data.target-field, to names or to numbers from 1"),
        ("odd.jsonl", '{"q": "x", "a": "y"}\n', ":1: which of 2 fields (q, a) are source and target? Set --data.field and --data.target-field"),
        ("empty.tsv", "\n", ": there is no row in it; name a file that holds some"),
        ("width.tsv", "a\tb\nc\td\te\n", ":2: the row has 3 columns where the first has 2; write c\\td e (or --data.on-error skip)"),
        ("open.csv", 'source,target\n"a,b\n', ":2: not valid CSV (unexpected end of data); is a quote left open? write a,b"),
        ("number.jsonl", '{"source": 3, "target": "y"}\n', ":1: field 'source' is a number, not text (or --data.on-error skip)"),
        ("lacks.jsonl", '{"source": "x", "target": "y"}\n{"source": "x", "tarhet": "y"}\n', ":2: the record has no field 'target'; did you mean 'tarhet'? (or --data.on-error skip)"),
        ("list.jsonl", "[1]\n", ':1: the record is a list, not an object such as {"text": "..."} (or --data.on-error skip)'),
        ("half.jsonl", '{"source": "\\ud800", "target": "y"}\n', ":1: field 'source' holds half of a surrogate pair, which text does not hold; remove it (or --data.on-error skip or replace)"),
        ("utf16.tsv", "a\tb".encode("utf-16"), ":1: byte 0: this is UTF-16, not UTF-8; convert it with `iconv -f utf-16 -t utf-8` (or --data.on-error skip)"),
    ],
)  # fmt: skip
def test_refusals(written: Written, name: str, content: str | bytes, says: str) -> None:
    path = written(name, content)
    assert refusal(path) == f"{path}{says}"


def test_fields_that_are_not_there(written: Written) -> None:
    path = written("a.tsv", "en\tde\tfr\nx\ty\tz\n")
    assert refusal(path, fields=("en", "es")) == (
        f"{path}:1: no column is named 'es'; it has en, de, fr; a table without a header takes column "
        "numbers from 1"
    )
    assert refusal(path, fields=("1", "4")) == f"{path}:1: there is no column 4; the rows have 3"
    rows = written("a.jsonl", '{"en": "x", "de": "y"}\n')
    assert refusal(rows, fields=("en", "xx")) == f"{rows}:1: the record has no field 'xx'; it has en, de"


def test_files_that_are_not_there(written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written("train.en", "x\n")
    missing = tmp_path / "train.dee"
    assert refusal(path, missing) == f"{missing}: no such file or folder; did you mean '{path}'?"
    assert refusal(tmp_path) == (
        f"{tmp_path}: a folder, not a file; give two aligned files, a TSV, a CSV or JSON lines"
    )
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=lambda *_, **__: []))
    assert (
        refusal("hf:wmt14", path)
        == f"hf:wmt14 and {path}: a data set of the hub has both sides; leave out --data.target"
    )
    assert refusal(path, path, on_error="ignore").startswith("on_error is 'ignore'; it is one of")


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": n, "translation": {"en": one, "de": other}} for n, (one, other) in enumerate(TWO)]
    hub = types.SimpleNamespace(load_dataset=lambda name, configuration, split: rows)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    source = open_pairs("hf:wmt14:de-en")
    assert list(source) == [Pair(*pair, f"hf:wmt14:de-en:{n}") for n, pair in enumerate(TWO, 1)]
    before = source.fingerprint()
    rows.pop()
    assert open_pairs("hf:wmt14:de-en").fingerprint() != before


def test_multi30k_as_it_is(shared_data: Path) -> None:
    folder = shared_data / "multi30k"
    pairs = texts(folder / "train.en.gz", folder / "train.de.gz")
    assert len(pairs) == 29_000
    assert pairs[0] == (
        "Two young, White males are outside near many bushes.",
        "Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.",
    )
    assert "has 29,000 lines and" in refusal(folder / "train.en.gz", folder / "val.de.gz")
