"""Labelled text: every layout that is read, and every way in which it can be wrong, with its exact line."""

# ruff: noqa: E501 - a line of the tables is the whole line that a person sees

from __future__ import annotations

import json
import re
import sys
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from transom.data.labelled import Labelled, looks_like_labels, open_labelled
from transom.data.samples import stdlib_files
from transom.data.stdlib_labels import SUBJECTS, stdlib_labels
from transom.errors import Refused

Written = Callable[[str, bytes | str], Path]

ROWS = [("so good", "1"), ("so bad, really", "0"), ("fine", "1"), ("awful", "0"), ("great", "1")]


def examples(path: object, **options: str) -> list[tuple[str, str]]:
    return [example[:2] for example in open_labelled(str(path), **options)]


def refusal(path: object, **options: str) -> str:
    with pytest.raises(Refused) as caught:
        examples(path, **options)
    return str(caught.value)


def table(*header: str, order: tuple[int, ...] = (0, 1), comma: bool = False) -> str:
    cell = (lambda text: f'"{text}"') if comma else str
    rows = [[cell(row[at]) for at in order] for row in ROWS]
    return "".join(
        ("," if comma else "\t").join(row) + "\n" for row in ([list(header)] if header else []) + rows
    )


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("header.tsv", table("text", "label"), {}),
        ("first.tsv", table("label", "sentence", order=(1, 0)), {}),
        ("suffix.csv", table("condition_label", "medical_abstract", order=(1, 0), comma=True), {}),
        ("class.csv", table("Review", "Class", comma=True), {}),
        ("odd.tsv", table("remark", "label"), {}),
        ("bare.tsv", table(), {}),
        ("bare.csv", table(order=(1, 0), comma=True), {}),
        ("wide.tsv", table("id", "text", "label", order=(0, 0, 1)), {}),
        ("named.tsv", table("n", "mood", "words", order=(0, 1, 0)), {"text_field": "words", "label_field": "mood"}),
        ("half.tsv", table("n", "mood", "text", order=(0, 1, 0)), {"label_field": "mood"}),
        ("numbers.csv", table(order=(1, 0, 0), comma=True), {"text_field": "2", "label_field": "1"}),
        ("fast.txt", "".join(f"__label__{label} {text}\n\n" for text, label in ROWS), {}),
        ("rows.jsonl", [{"id": 3, "text": text, "label": int(label)} for text, label in ROWS], {}),
        ("rows.ndjson", [{"question": text, "intent": label} for text, label in ROWS], {}),
        ("own.jsonl", [{"a": text, "b": label} for text, label in ROWS], {"text_field": "a", "label_field": "b"}),
        ("one.jsonl", [{"a": text, "label": label, "z": 1} for text, label in ROWS], {"text_field": "a"}),
    ],
)  # fmt: skip
def test_layouts(written: Written, name: str, content: object, options: dict[str, str]) -> None:
    lines = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)  # type: ignore[attr-defined]
    assert examples(written(name, lines), **options) == ROWS


def test_places_and_notes(written: Written) -> None:
    path = written("a.csv", 'label,text\n1,"two\nlines"\n0,one\n')
    source = open_labelled(str(path))
    assert list(source) == [Labelled("two\nlines", "1", f"{path}:2"), Labelled("one", "0", f"{path}:4")]
    assert source.notes == ("text and label are read from text and label (the first line names the columns)",)
    rows = written("b.jsonl", '{"text": "x", "label": true}\n{"text": "y", "label": 1.5}\n')
    assert [label for _, label in examples(rows)] == ["true", "1.5"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("three.csv", '3,"a title","a text"\n', ":1: which of the 3 columns (3, a title, a text) hold the text and its label? Set --data.field and --data.label, to names or to numbers from 1"),
        ("prose.tsv", "".join(f"text {n}\tother {n}\n" for n in range(9)), ":1: which of the 2 columns (text 0, other 0) hold the text and its label? Set --data.field and --data.label, to names or to numbers from 1"),
        ("headed.csv", "mood,words\n" + "".join(f"{n % 2},a text {n}\n" for n in range(20)), ":1: which of the 2 columns (mood, words) hold the text and its label? Set --data.field and --data.label, to names or to numbers from 1, such as --data.field words --data.label mood"),
        ("phrases.tsv", "".join(f"Go to {n}.\tGeh zu {n}.\n" for n in range(12)), ":1: which of the 2 columns (Go to 0., Geh zu 0.) hold the text and its label? Set --data.field and --data.label, to numbers from 1, for the file seems to have no header, such as --data.field 1 --data.label 2"),
        ("numbered.csv", "Nr;Datum;Anfrage;Bereich\n" + "".join(f"{n};{n % 3}.1.;die Anfrage {n};{'ab'[n % 2]}\n" for n in range(20)), ":1: which of the 4 columns (Nr, Datum, Anfrage, Bereich) hold the text and its label? Set --data.field and --data.label, to names or to numbers from 1, such as --data.field Anfrage --data.label Bereich"),
        ("odd.jsonl", '{"a": "x", "b": "y"}\n', ":1: which of the 2 fields (a, b) hold the text and its label? Set --data.field and --data.label"),
        ("plain.txt", "only text\n", ":1: one column, where a labelled text has two; give a CSV, a TSV or JSON lines with a text and a label, or lines that begin with __label__"),
        ("list.jsonl", '{"text": "x", "label": ["a", "b"]}\n', ":1: the label is neither text nor a number; give one class for each text (or --data.on-error skip)"),
        ("none.tsv", "text\tlabel\nx\ta\ny\t \n", ":3: the label is empty; name the class of this text (or --data.on-error skip)"),
        ("blank.tsv", "text\tlabel\nx\ta\n\tb\n", ":3: the text is empty; fill it in or remove the line (or --data.on-error skip)"),
        ("long.tsv", "text\tlabel\nx\t" + "a" * 101 + "\n", ":2: a label of 101 characters (the limit is 100); is the column right? (or --data.on-error skip)"),
        ("fast.txt", "__label__a x\nno label\n", ":2: the line does not begin with __label__, as the first one does; add its class (or --data.on-error skip)"),
        ("more.txt", "__label__a __label__b x\n", ":1: the line has more than one label; give one class for each text (or --data.on-error skip)"),
    ],
)  # fmt: skip
def test_refusals(written: Written, name: str, content: str, says: str) -> None:
    path = written(name, content)
    assert refusal(path) == f"{path}{says}"


def test_a_column_that_is_not_there(written: Written) -> None:
    path = written("a.tsv", "text\tlabel\nx\ta\n")
    assert refusal(path, label_field="labl").startswith(
        f"{path}:1: no column is named 'labl'; did you mean 'label'?"
    )


def test_what_looks_like_labels() -> None:
    assert looks_like_labels(["a", "b"] * 5) and looks_like_labels([1, 0, 1])
    assert not looks_like_labels([f"text {n}" for n in range(9)])
    assert not looks_like_labels(["a", None, "a", "a"])
    assert not looks_like_labels(["a" * 101, "b" * 101] * 9)


def test_real_files_as_they_are(shared_data: Path) -> None:
    medical = examples(shared_data / "medical_abstracts" / "medical_tc_test.csv")
    assert len(medical) == 2_888 and {label for _, label in medical} == set("12345")
    assert medical[0][0].startswith("Obstructive sleep apnea") and medical[0][1] == "3"
    terms = Counter(label for _, label in examples(shared_data / "unfair_tos" / "data.tsv"))
    assert terms.total() == 3_850 and terms.most_common(1)[0][0] == "Other" and len(terms) == 9
    news = shared_data / "ag_news" / "test.csv"
    assert "hold the text and its label? Set --data.field" in refusal(news)
    assert len(examples(news, text_field="3", label_field="1")) == 7_600


def test_a_data_set_of_the_hub_calls_classes_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hub(list[dict[str, object]]):
        features = {"text": "string", "label": types.SimpleNamespace(names=["neg", "pos"])}  # noqa: RUF012

    rows = Hub({"text": text, "label": int(label)} for text, label in ROWS)
    hub = types.SimpleNamespace(load_dataset=lambda name, configuration, split: rows)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    assert examples("hf:imdb") == [(text, ("neg", "pos")[int(label)]) for text, label in ROWS]
    rows[2]["label"] = -1
    assert refusal("hf:imdb").startswith("hf:imdb:3: the label is neither text nor a number")


def test_docstrings_of_the_standard_library() -> None:
    learned, held_out = stdlib_labels(), stdlib_labels(held_out=True)
    assert not {text for text, _, _ in learned} & {text for text, _, _ in held_out}
    assert 0.07 < len(held_out) / len(learned) < 0.15 and len(learned) > 3_000
    counts = Counter(label for _, label, _ in learned)
    assert set(counts) == set(SUBJECTS) and min(counts.values()) > 100
    both = [*learned, *held_out]
    assert len({text for text, _, _ in both}) == len(both)
    assert all(25 <= len(text) <= 300 and "\n" not in text for text, _, _ in both)
    named = re.compile(r"tkinter|asyncio|unittest|tarfile|imaplib|multiprocessing|\b(http|socket)\.\w")
    assert not [text for text, _, _ in both if named.search(text)]
    root, _ = stdlib_files()
    text, label, where = learned[0]
    assert (root / where.rsplit(":", 1)[0]).is_file() and re.split(r"\.py|/", where)[0] in SUBJECTS[
        label
    ].split()
    source = open_labelled("stdlib-labels")
    assert source.held_out is not None
    assert list(source)[0] == (text, label, where)
    assert [example[:3] for example in source.held_out] == held_out
    assert list(open_labelled("stdlib-labels:held-out")) == list(source.held_out)
