"""Files as people have them, from spreadsheets, pandas, other systems: each is read as it is meant, or refused
by name. The files of `../shared/cases` are read where they are there; each has a twin here that always is.
"""

# ruff: noqa: E501 - a line of the tables is the whole line that a person sees
from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.data.check import check
from transom.data.documents import MARKER, divided
from transom.data.issues import Issues
from transom.data.labelled import open_labelled
from transom.data.lines import rows_to_answer
from transom.data.pairs import open_pairs
from transom.data.prepare_examples import Preparation
from transom.data.rows import rows_of
from transom.data.sources import open_source
from transom.data.task_guess import guess_task
from transom.errors import Refused

Written = Callable[[str, bytes | str], Path]


def labelled(path: Path, **options: str) -> list[tuple[str, str]]:
    return [example[:2] for example in open_labelled(str(path), **options)]


def texts(path: Path, field: str | None = None) -> list[str]:
    return [document.text() for document in open_source(path, field=field).documents()]


def texts_of(path: Path | None, field: str | None = None) -> list[str]:
    return [text for _, text in rows_to_answer(path, field)]


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(Refused) as caught:
        call()
    return str(caught.value)


# ------------------------------------------------------------------------------------------- files that were seen

WORDS = [
    "plot",
    "boring",
    "actor",
    "good",
    "nice",
    "film",
    "music",
    "very",
    "bad",
    "slow",
    "fast",
    "of",
    "a",
    "the",
    "and",
    "with",
]
TWINS: dict[str, str | bytes] = {
    "blank_line.txt": "aa\n\nbb\n",
    "line_separators.txt": "ab\nc\u2028d\ne\x85f\ng\x0ch\n",
    "with_bom.txt": "\ufeffab\ncd\n",
    "without_bom.txt": "ab\ncd\n",
    "windows1252.txt": "He said “hi” € 5\n".encode("cp1252") * 3,
    "semicolon.csv": "text;label\r\n" + "".join(f"Gut, sehr {n};pos\r\nschlecht {n};neg\r\n" for n in range(1, 9)),
    "semicolon_sep.csv": "sep=;\r\ntext;label\r\n"
    + "".join(f"Gut, sehr {n};pos\r\nschlecht {n};neg\r\n" for n in range(1, 9)),
    "quoted.tsv": "text\tlabel\n" + "".join(
        f'"He said ""hi"" {n}"\tpos\n' if n % 2 else f"plain {n}\tneg\n" for n in range(40)
    ),
    "label_nan.jsonl": "".join(f'{{"text": "t{n}", "label": "{"ab"[n % 2]}"}}\n' for n in range(20))
    + '{"text": "x", "label": NaN}\n',
    "header_with_space.csv": "Review Text,Label\n"
    + "".join(f"{' '.join(WORDS[n % 9 : n % 9 + 5])} {n},{('neg', 'pos')[n % 2]}\n" for n in range(40)),
    "stories_endoftext.txt": f"{MARKER}\n".join(f"Tom had {n} red balls.\nThe dog ran.\n" for n in range(50)),
}  # fmt: skip


@pytest.fixture(params=["twin", "file"])
def case(
    request: pytest.FixtureRequest, written: Written, shared_cases: Path | None
) -> Callable[[str], Path]:
    """A file by name: as it was seen, or its twin."""

    def find(name: str) -> Path:
        if request.param == "twin":
            return written(name, TWINS[name])
        if shared_cases is None:
            pytest.skip("no folder of cases (../shared/cases) beside this repository")
        return shared_cases / name

    return find


def test_a_blank_line_keeps_its_place(case) -> None:
    assert texts_of(case("blank_line.txt")) == ["aa", "", "bb"]


def test_a_line_ends_in_a_line_feed_and_nothing_else(case) -> None:
    assert texts_of(case("line_separators.txt")) == ["ab", "c\u2028d", "e\x85f", "g\x0ch"]


def test_a_byte_order_mark_is_no_text(case) -> None:
    assert texts_of(case("with_bom.txt")) == texts_of(case("without_bom.txt")) == ["ab", "cd"]


def test_windows_1252_is_called_so(case, written: Written) -> None:
    path = case("windows1252.txt")
    says = ":1: byte 8 (0x93) is not UTF-8; convert the file (iconv -f windows-1252 -t utf-8)"
    assert refusal(lambda: texts(path)) == f"{path}{says} (or --data.on-error skip or replace)"
    assert refusal(lambda: texts_of(path)) == f"{path}{says}"
    # What it says works; what others say leaves control characters, which are noticed.
    good = written("good.txt", path.read_bytes().decode("cp1252"))
    assert check(open_source(good)).notes == []
    bad = written("bad.txt", path.read_bytes().decode("latin1"))
    n = path.read_bytes().count(b"\n") * 3
    assert check(open_source(bad)).notes == [
        f"{n} control characters from U+0080 to U+009F (first at {bad}:1): Windows-1252 that was read as Latin-1? "
        "Convert the first file again (iconv -f windows-1252)"
    ]


@pytest.mark.parametrize("name", ["semicolon.csv", "semicolon_sep.csv"])
def test_semicolons_stand_between_cells(case, name: str) -> None:
    path = case(name)
    read = labelled(path)
    assert read == [("Gut, sehr 1", "pos"), ("schlecht 1", "neg"), *read[2:]] and len(read) == 16
    assert "the cells are separated by semicolons" in open_labelled(str(path)).notes
    assert guess_task(str(path))[0] == "classify"
    assert texts(path) == [text for text, _ in read]
    assert check(open_source(path)).notes == ["the cells are separated by semicolons"]
    assert texts_of(path) == [text for text, _ in read]


def test_quotes_of_a_tsv_belong_to_the_table(case) -> None:
    read = labelled(case("quoted.tsv"))
    assert read == [
        (f'He said "hi" {n}', "pos") if n % 2 else (f"plain {n}", "neg") for n in range(40)
    ]  # fmt: skip


def test_nan_is_no_label(case) -> None:
    path = case("label_nan.jsonl")
    says = "the label is neither text nor a number; give one class for each text (or --data.on-error skip)"
    assert refusal(lambda: labelled(path)) == f"{path}:21: {says}"


@pytest.mark.parametrize(
    "fields", [{}, {"text_field": "1", "label_field": "2"}, {"text_field": "Review Text"}]
)
def test_a_header_is_no_example(case, fields: dict[str, str]) -> None:
    read = labelled(case("header_with_space.csv"), **fields)
    assert len(read) == 40 and {label for _, label in read} == {"neg", "pos"}


def test_a_marker_line_divides_documents(case) -> None:
    source = open_source(case("stories_endoftext.txt"))
    read = [document.text() for document in source.documents()]
    assert len(read) == 50 and not any(MARKER in text for text in read)
    assert read[3].startswith("Tom had 3 red balls.\nThe dog") and read[3].endswith(".\n")
    report = check(source)
    assert report.n_documents == 50
    assert report.notes == [f"49 lines {MARKER} between documents, which are no text"]


@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_parquet_and_json_hold_texts_with_labels_and_pairs(
    kind: str, tmp_path: Path, shared_cases: Path | None
) -> None:
    def write(name: str, rows: list[dict[str, object]]) -> Path:
        path = tmp_path / f"{name}.{kind}"
        if kind == "json":
            path.write_text(json.dumps(rows, indent=1))
        else:
            arrow = pytest.importorskip("pyarrow")
            pytest.importorskip("pyarrow.parquet").write_table(arrow.Table.from_pylist(rows), path)
        return path

    rows: list[dict[str, object]] = [{"id": n, "text": f"t {n}", "label": "ab"[n % 2]} for n in range(40)]
    paths = [write("labelled", rows)]
    if kind == "parquet" and shared_cases is not None:
        paths.append(shared_cases / "labelled.parquet")
    for path in paths:
        assert labelled(path) == [(row["text"], row["label"]) for row in rows]
        assert guess_task(str(path))[0] == "classify"
        assert texts_of(path) == texts(path) == [row["text"] for row in rows]
    sides = write("sides", [{"source": f"one {n}", "target": f"other {n}"} for n in range(3)])
    assert [pair[:2] for pair in open_pairs(str(sides))] == [(f"one {n}", f"other {n}") for n in range(3)]
    assert guess_task(str(sides))[0] == "translate"
    numbers = write("numbers", [{"text": f"t{n}", "label": float(n % 2)} for n in range(4)])
    assert labelled(numbers) == [("t0", "0"), ("t1", "1"), ("t2", "0"), ("t3", "1")]


# --------------------------------------------------------------------------------------------------------- tables

CELLS = st.text(st.sampled_from('ab ";,|\t\n'), max_size=6)


@given(
    rows=st.integers(2, 3).flatmap(lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n), min_size=1, max_size=6)),
    separator=st.sampled_from(",;|"),
)  # fmt: skip
def test_a_named_separator_is_read_as_the_csv_module_does(
    rows: list[list[str]], separator: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = io.StringIO()
    csv.writer(made, delimiter=separator).writerows(rows)
    path = tmp_path_factory.getbasetemp() / "named.csv"
    path.write_bytes(f"sep={separator}\r\n{made.getvalue()}".encode())
    expected = list(csv.reader(io.StringIO(made.getvalue(), newline=""), delimiter=separator))
    assert [row for _, row in rows_of(path, "x", Issues())] == expected == rows


@given(
    # A line break and a tab in one cell make two lines that are rows each by itself.
    rows=st.lists(
        st.tuples(CELLS, CELLS).filter(lambda row: all(len({*cell} & {*"\t\n"}) < 2 for cell in row)),
        max_size=6,
    ),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_what_a_writer_of_tsv_quotes_is_read_back(
    rows: list[tuple[str, str]], quoting: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = io.StringIO()
    writer = csv.writer(made, delimiter="\t", quoting=quoting, lineterminator="\n")  # type: ignore[arg-type]
    writer.writerows([("text", "label"), *rows])
    path = tmp_path_factory.getbasetemp() / "quoted.tsv"
    path.write_bytes(made.getvalue().encode())
    read = [tuple(row) for _, row in rows_of(path, "x", Issues())]
    assert read == [("text", "label"), *rows]


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("lone.tsv", 'a "b" c\tx\n"Go," he said\ty\n"Run!"\t"z\n5"\t6"\n', [['a "b" c', "x"], ['"Go," he said', "y"], ['"Run!"', '"z'], ['5"', '6"']]),
        ("all.tsv", '"a"\t"b"\n"c"\t"d ""e"""\n', [["a", "b"], ["c", 'd "e"']]),
        ("break.tsv", 'a\tb\n"c\nd ""e"""\tf\ng\t"h\n\ni"\n', [["a", "b"], ['c\nd "e"', "f"], ["g", "h\n\ni"]]),
        ("tab.tsv", 'a\tb\n"c\td"\te\n', [["a", "b"], ["c\td", "e"]]),
        ("nothing.tsv", 'a\tb\n""\tc\n', [["a", "b"], ["", "c"]]),
        ("bars.csv", "text|label\na, b|c\nd|e\n", [["text", "label"], ["a, b", "c"], ["d", "e"]]),
        ("tabs.csv", "text\tlabel\na, b\tc\nd\te\n", [["text", "label"], ["a, b", "c"], ["d", "e"]]),
        ("commas.csv", "text,label\na;b,c\nd;e,f\n", [["text", "label"], ["a;b", "c"], ["d;e", "f"]]),
        ("one.csv", "text\nhello; you\nbye; now\n", [["text"], ["hello; you"], ["bye; now"]]),
        ("mark.csv", "\ufeff\"text\",label\na,b\n", [["text", "label"], ["a", "b"]]),
        ("separators.csv", "text,label\na\u2028b\x85c\x0cd,e\n", [["text", "label"], ["a\u2028b\x85c\x0cd", "e"]]),
    ],
)  # fmt: skip
def test_cells(written: Written, name: str, content: str, read: list[list[str]]) -> None:
    assert [row for _, row in rows_of(written(name, content), name, Issues())] == read


def test_a_long_table_needs_no_more_than_its_beginning_to_tell_the_separator(written: Written) -> None:
    rows = [[f"Gut, sehr {n} " + "x" * 90, "pos"] for n in range(2000)]
    path = written("long.csv", "text;label\n" + "".join(";".join(row) + "\n" for row in rows))
    assert [row for _, row in rows_of(path, "x", Issues())][1:] == rows


# ------------------------------------------------------------------------------------------- what nobody can mean


@pytest.mark.parametrize(
    ("name", "content", "fields", "says"),
    [
        ("two.json", '[{"text": "a"}]\n[{"text": "b"}]\n', None, ":2: the JSON array ends before the file does; make one array of all, or write one object a line (.jsonl)"),
        ("rest.json", '[{"text": "a"}]\n\n x', None, ":3: the JSON array ends before the file does; make one array of all, or write one object a line (.jsonl)"),
        ("twins.csv", "text,text\na,b\n", None, ":1: 2 columns are named 'text'; rename one"),
        ("twins.csv", "id,text,text\n1,a,b\n", "text", ":1: 2 columns are named 'text'; rename one"),
    ],
)  # fmt: skip
def test_refused(written: Written, name: str, content: str, fields: str | None, says: str) -> None:
    path = written(name, content)
    assert refusal(lambda: texts(path, fields)) == f"{path}{says}"


def test_two_columns_of_one_name_are_refused_for_every_task(written: Written) -> None:
    path = written("twins.csv", "text,label,label\na,b,c\n")
    says = f"{path}:1: 2 columns are named 'label'; rename one"
    assert refusal(lambda: labelled(path, text_field="text", label_field="label")) == says
    assert refusal(lambda: labelled(path, label_field="label")) == says
    assert refusal(lambda: labelled(written("more.csv", "text,text,label\na,b,c\n"))).endswith(
        "2 columns are named 'text'; rename one"
    )
    sides = written("sides.csv", "source,source,target\na,b,c\n")
    assert (
        refusal(lambda: list(open_pairs(str(sides))))
        == f"{sides}:1: 2 columns are named 'source'; rename one"
    )
    assert texts(written("else.csv", "n,text,n\n1,a,2\n"), "text") == ["a"]  # nobody asks for n
    arrow = pytest.importorskip("pyarrow")
    twins = path.with_name("twins.parquet")
    table = arrow.Table.from_arrays([arrow.array(["a"]), arrow.array(["b"])], names=["text", "text"])
    pytest.importorskip("pyarrow.parquet").write_table(table, twins)
    assert refusal(lambda: texts(twins)) == f"{twins}:1: 2 columns are named 'text'; rename one"


@pytest.mark.parametrize(
    ("name", "content", "fields", "says"),
    [
        ("mac.csv", "text,label\rone,a\rtwo,b\r", {}, ": its lines end in CR alone; write LF instead (tr '\\r' '\\n')"),
        ("mac.tsv", "text\tlabel\rone\ta\r", {}, ": its lines end in CR alone; write LF instead (tr '\\r' '\\n')"),
        ("half.jsonl", '{"text": "x", "label": "a\\ud800"}\n', {}, ":1: field 'label' holds half of a surrogate pair, which text does not hold; remove it (or --data.on-error skip or replace)"),
        ("twice.csv", "text,label\none,a\n", dict(text_field="text", label_field="text"), ": 'text' is named for both values of a row; name two columns"),
        ("power.csv", "text,label\none,a\n", dict(text_field="\u00b2", label_field="1"), ":1: no column is named '\u00b2'; it has text, label; a table without a header takes column numbers from 1"),
        ("many.csv", "text,label\none,a\n", dict(text_field="9" * 5000, label_field="1"), ":1: no column is named '" + "9" * 5000 + "'; it has text, label; a table without a header takes column numbers from 1"),
    ],
)  # fmt: skip
def test_labelled_refused(
    written: Written, name: str, content: str, fields: dict[str, str], says: str
) -> None:
    path = written(name, content)
    assert refusal(lambda: labelled(path, **fields)) == f"{path}{says}"


def test_half_a_character_of_a_label_is_replaced_as_that_of_a_text_is(written: Written) -> None:
    path = written("half.jsonl", '{"text": "x", "label": "a\\ud800"}\n')
    assert labelled(path, on_error="replace") == [("x", "a\ufffd")]


def test_parquet_that_holds_no_text_is_named_by_its_row(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    write = pytest.importorskip("pyarrow.parquet").write_table
    path = tmp_path / "a.parquet"
    rows = [b"good", b"\xff\xfe", *[b"more"] * 200]
    bad = arrow.Array.from_buffers(arrow.string(), len(rows), arrow.array(rows, arrow.binary()).buffers())
    write(arrow.table({"text": bad, "label": ["a", "b"] * 101}), path)
    assert refusal(lambda: labelled(path)) == (
        f"{path}:2: byte 0xff of a text is not UTF-8; write the file again (or --data.on-error skip)"
    )
    assert len(labelled(path, on_error="skip")) == len(rows) - 1
    write(arrow.table({"text": rows, "label": ["a", "b"] * 101}), path)
    assert refusal(lambda: labelled(path)).startswith(f"{path}:1: field 'text' is bytes, not text")


def test_white_space_after_an_array_is_nothing(written: Written) -> None:
    assert texts(written("a.json", '[{"text": "a"}] \r\n\n')) == ["a"]
    long = json.dumps([{"text": "x" * 1000}] * 1000)  # more than one chunk
    assert len(texts(written("b.json", long))) == 1000
    path = written("c.json", long + long)
    assert refusal(lambda: texts(path)).startswith(f"{path}:1: the JSON array ends before the file does")


@pytest.mark.parametrize(
    ("value", "label"), [("1", "1"), ("1.0", "1"), ("1.5", "1.5"), ("-2.0", "-2"), ("1e300", "1e+300"), ("true", "true"),
                         ("NaN", None), ("Infinity", None), ("-Infinity", None), ("null", None)],
)  # fmt: skip
def test_numbers_as_labels(written: Written, value: str, label: str | None) -> None:
    path = written("n.jsonl", f'{{"text": "a", "label": {value}}}\n')
    if label is None:
        assert refusal(lambda: labelled(path)).startswith(f"{path}:1: the label is neither text nor a number")
    else:
        assert labelled(path) == [("a", label)]


def test_words_for_nothing_are_classes_with_a_note(written: Written) -> None:
    rows = "".join(f"text {n},{('NA', 'good')[n % 2]}\n" for n in range(40))
    made = Preparation(open_labelled(str(written("na.csv", "text,label\n" + rows))), tokenizer="bytes").once(
        None
    )
    assert made.labels == ("NA", "good")
    assert (
        "'NA' is taken for a class; where it says that there is none, remove those rows" in made.report.notes
    )


def test_a_first_line_that_may_be_a_header_is_said(written: Written) -> None:
    path = written("unknown.csv", "Remark,Mood\n" + "".join(f"a text {n},{n % 2}\n" for n in range(20)))
    source = open_labelled(str(path), text_field="1", label_field="2")
    note = "the first line is read as an example; if it names the columns, name them as it does"
    assert len(list(source)) == 21 and note in source.notes
    # A class that is called like a column is an example all the same, since it is met again.
    own = written("own.csv", "".join(f"a text {n},{('topic', 'question')[n % 2]}\n" for n in range(20)))
    assert len(labelled(own, text_field="1", label_field="2")) == 20
    spoken = written("spoken.csv", "Hello,happy\nWorse,sad\nBetter,happy\nBad,sad\n")
    assert labelled(spoken)[0] == ("Hello", "happy")  # `happy` ends in y, and is no name of a column
    sides = written("sides.tsv", "Source\tTarget\na b\tc d\n")
    assert [pair[:2] for pair in open_pairs(str(sides), fields=("1", "2"))] == [("a b", "c d")]
    assert texts(written("numbered.csv", "id,Text\n1,a\n2,b\n"), "2") == ["a", "b"]


# ----------------------------------------------------------------------------------------------------- documents


def plain(text: str) -> list[str]:
    """The documents of a text, by lines."""
    found = [""]
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        if re.fullmatch(r"<\|endoftext\|>[ \t]*(\r?\n)?", line):
            found.append("")
        else:
            found[-1] += line
    return found


@given(
    parts=st.lists(st.sampled_from([MARKER, "<|endof", "text|>", "\n", "\r\n", " ", "a", "é\n"]), max_size=12),
    cuts=st.lists(st.integers(0, 60), max_size=6),
)  # fmt: skip
def test_documents_do_not_depend_on_where_the_stream_is_cut(parts: list[str], cuts: list[int]) -> None:
    text = "".join(parts)
    ends = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in zip(ends, ends[1:], strict=False)]
    found = [(line, "".join(stream)) for line, stream in divided(iter(pieces))]
    expected = plain(text)
    assert [one for _, one in found if one] == [one for one in expected if one]
    lines = text.split("\n")
    for line, one in found:
        assert not one or lines[line - 1].startswith(one.partition("\n")[0])


def test_a_marker_inside_of_a_line_is_said(written: Written) -> None:
    report = check(open_source(written("a.txt", f"one{MARKER}two\nthree {MARKER}\n")))
    assert report.n_documents == 1
    says = f"{MARKER} stands 2 times inside of lines, where it is read as letters"
    assert report.notes == [f"{says}; on a line of its own it divides documents"]


def test_blank_documents_are_none(written: Written) -> None:
    path = written("a.txt", f"{MARKER}\n\n{MARKER}\na\n{MARKER}\n \n{MARKER}\n")
    assert texts(path) == ["a\n"]
    assert [document.line for document in open_source(path).documents()] == [4]


# ---------------------------------------------------------------------------------------------------- other doors


def test_control_characters_of_examples_are_noticed(written: Written) -> None:
    rows = "".join(f"text {n}\x93,{'ab'[n % 2]}\n" for n in range(40))
    made = Preparation(open_labelled(str(written("c.csv", "text,label\n" + rows))), tokenizer="bytes").once(
        None
    )
    assert any(
        note.startswith("40 control characters from U+0080 to U+009F (first at") for note in made.report.notes
    )


def test_one_field_of_records_is_asked_for_by_the_verbs_own_name(written: Written) -> None:
    path = written("a.csv", 'Subject,Team\nhelp,ops\n\n"",it\n')
    assert (
        refusal(lambda: texts_of(path))
        == f"{path}:2: which field holds the text? The record has Subject, Team: name it with --field"
    )
    assert texts_of(path, "Subject") == ["help", ""]
    plain_text = written("a.txt", "x\n")
    assert (
        refusal(lambda: texts_of(plain_text, "Subject"))
        == f"{plain_text}: a text file has no field 'Subject'; leave out --field"
    )
    for name, content in (("b.txt", ""), ("c.txt", "\n\r\n")):
        empty = written(name, content)
        assert refusal(lambda empty=empty: texts_of(empty)) == f"{empty}: there is no text in it"
    assert texts_of(written("d.txt", "a\r\nb\rc\n\nd")) == ["a", "b\rc", "", "d"]


def test_counts_stay_what_they_are(written: Written) -> None:
    """An unequal table is refused where it is, in the separator that was seen."""
    path = written("uneven.csv", "text;label\na;b\nc;d;e\n")
    assert refusal(lambda: labelled(path)).startswith(f"{path}:")
    rows = "".join(f"kurz {n};a\n" for n in range(9))  # one row too wide says nothing against the separator
    path = written("semicolons.csv", f"text;label\n{rows}a; b;c, d\n")
    says = ':11: the row has 3 columns where the first has 2; write a;" b;c, d" (or --data.on-error skip)'
    assert refusal(lambda: labelled(path)) == f"{path}{says}"
    assert Counter(label for _, label in labelled(written("even.csv", "text;label\na;b\nc;d\n"))) == {
        "b": 1,
        "d": 1,
    }
