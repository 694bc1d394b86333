"""Every kind of source, and every way in which text can be wrong: the place is named, the policy is kept."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scale import scaled
from transom.data import textfile
from transom.data.issues import Issues
from transom.data.samples import stdlib_files, stdlib_prose
from transom.data.sources import open_source
from transom.errors import Refused

Written = Callable[[str, bytes | str], Path]


def texts(spec: object, issues: Issues | None = None, **options: str) -> list[str]:
    return [document.text() for document in open_source(spec, **options).documents(issues)]  # type: ignore[arg-type]


def refusal(spec: object, **options: str) -> str:
    with pytest.raises(Refused) as caught:
        texts(spec, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What is read


def test_a_text_file_is_one_document(written: Written) -> None:
    path = written("a.txt", "one\n\ntwo\n")
    assert texts(path) == ["one\n\ntwo\n"]
    assert open_source(path).n_bytes == 9


def test_a_folder_gives_text_files_by_path_and_counts_the_rest(written: Written, tmp_path: Path) -> None:
    for name in ("b.md", "a/z.py", "a.txt", "c.unknown"):
        written(name, name)
    for name in (".git/config", "__pycache__/x.py", "node_modules/m/i.js", ".hidden", "p.png", "rows.jsonl"):
        written(name, "x")
    written("blob", b"\x7fELF\0\0")
    written("empty.txt", b"")
    issues = Issues()
    source = open_source(tmp_path)
    read = [(d.where.removeprefix(f"{tmp_path}/"), d.text()) for d in source.documents(issues)]
    assert read == [(name, name) for name in ("a/z.py", "a.txt", "b.md", "c.unknown")]
    assert issues.n_empty == 1
    assert source.left_out["binary files"] == 2
    assert source.left_out["hidden and installed folders"] == 3
    assert source.left_out["hidden files"] == 1
    assert any(reason.startswith("data files") for reason in source.left_out)


def test_a_run_and_a_model_are_no_text(written: Written, tmp_path: Path) -> None:
    written("notes.txt", "x")
    for name in ("settings.toml", "metrics.jsonl", "model/config.json", "model/model.safetensors"):
        written(f"runs/a/{name}", "y")
    source = open_source(tmp_path)
    assert texts(tmp_path) == ["x"] and source.left_out == {"runs of Transom": 1}
    for part in ("runs/a", "runs/a/model"):
        assert f"transom train DATA --model.weights {tmp_path}/{part}" in refusal(tmp_path / part)


def test_a_folder_with_a_field_gives_its_records(written: Written, tmp_path: Path) -> None:
    written("b.jsonl", '{"t": "three"}\n')
    written("a.json", '[{"t": "one"}, {"t": "two"}]')
    written("readme.md", "not a record")
    assert texts(tmp_path, field="t") == ["one", "two", "three"]


def test_several_paths_follow_one_another(written: Written) -> None:
    assert texts([str(written("b.txt", "b")), str(written("a.txt", "a"))]) == ["b", "a"]


def test_gzip_by_extension(written: Written) -> None:
    assert texts(written("a.txt.gz", gzip.compress("süß\n".encode()))) == ["süß\n"]
    assert texts(written("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n'))) == ["x"]
    cut = written("cut.txt.gz", gzip.compress(os.urandom(9000))[:4000])
    assert "not a whole gzip file" in refusal(cut)


def test_json_lines_json_arrays_csv_tsv(written: Written) -> None:
    rows = [{"id": n, "text": f"text {n}\nline", "n": None} for n in range(3)]
    expected = [row["text"] for row in rows]
    lines = "\n".join(json.dumps(row) for row in rows)
    assert texts(written("a.jsonl", "\n \n" + lines + "\n\n")) == expected
    assert texts(written("a.json", json.dumps(rows))) == expected
    assert texts(written("b.json", json.dumps(rows, indent=2))) == expected
    assert texts(written("c.json", lines)) == expected
    assert texts(written("d.json", "[]")) == []
    assert texts(written("a.csv", 'id,text\n1,"a, ""b""\nc"\n\n2,d\n')) == ['a, "b"\nc', "d"]
    assert texts(written("b.csv", "only\nx\ny\n")) == ["x", "y"]
    assert texts(written("c.csv", '"3","x"\n"4","y"\n'), field="2") == ["x", "y"]
    assert texts(written("a.tsv", 'label\ttext\n1\tan "odd quote\n')) == ['an "odd quote']


def test_json_arrays_of_any_layout_and_chunking(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textfile, "CHUNK_BYTES", 7)
    rows = [{"text": 'br]ack{et "q" é😀'}, {"text": "x" * 50}, {"text": "[1, 2]"}]
    for indent in (None, 0, 3):
        path = written("a.json", "  \n" + json.dumps(rows, indent=indent, ensure_ascii=False) + "\n")
        documents = list(open_source(path).documents())
        assert [d.line for d in documents] == ([2, 2, 2] if indent is None else [3, 6, 9])


def test_parquet(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"text": ["a", "", "c"], "n": [1, 2, 3]}), path)
    assert texts(path) == ["a", "c"]
    assert "field 'n' is a number" in refusal(path, field="n")
    path.write_bytes(path.read_bytes()[:-9])
    assert "not a readable Parquet file" in refusal(path)


def test_missing_extras_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert "pip install 'transom[data]'" in refusal(tmp_path / "a.parquet")
    assert "pip install 'transom[data]'" in refusal("hf:owner/name")


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def load_dataset(name: str, configuration: str | None, split: str) -> list[dict[str, str]]:
        asked.append((name, configuration, split))
        if name == "gone":
            raise RuntimeError("no such data set\nat all")
        return [{"text": "a"}, {"text": "b"}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert texts("hf:owner/name:en") == ["a", "b"]
    assert asked == [("owner/name", "en", "train")]
    assert "no such data set" in refusal("hf:gone")


def test_standard_input_can_be_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    prints = []
    for _ in range(2):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello\n")))
        source = open_source("-")
        assert [[d.text() for d in source.documents()] for _ in range(2)] == [["hello\n"], ["hello\n"]]
        prints.append(source.fingerprint())
    assert prints[0] == prints[1]
    spooled = source.entries[0].file.path
    assert spooled.exists()
    del source
    assert not spooled.exists()


def test_the_standard_library() -> None:
    root, files = stdlib_files()
    names = [path.relative_to(root).as_posix() for path in files]
    assert names == sorted(names) and "json/decoder.py" in names
    assert not any(part in ("test", "tests", "site-packages") for name in names for part in name.split("/"))
    source = open_source("stdlib")
    documents = source.documents()
    first = next(documents)
    assert first.where == f"stdlib/{names[0]}" and first.text()


def test_without_sources_of_the_standard_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "python311.zip"))
    assert "carries no source" in refusal("stdlib")


# What is refused, and where


WRONG = {
    "latin1.txt": (b"one\ntwo caf\xe9\n", ":2: byte 11 (0xe9) is not UTF-8"),
    "cut.txt": ("abc é".encode()[:-1], ":1: byte 4 (0xc3) is not UTF-8"),
    "overlong.txt": (b"a\xc0\x80b", ":1: byte 1 (0xc0) is not UTF-8"),
    "surrogate.txt": (b"ok\n\xed\xa0\x80", ":2: byte 3 (0xed) is not UTF-8"),
    "late-nul.txt": (b"a" * 9000 + b"\n\0", ":2: byte 9001 is NUL"),
    "utf16.txt": ("\ufeffhi".encode("utf-16-le"), "this is UTF-16, not UTF-8"),
    "utf16be.txt": ("\ufeffhi".encode("utf-16-be"), "this is UTF-16, not UTF-8"),
    "utf32.txt": ("\ufeffhi".encode("utf-32-le"), "this is UTF-32, not UTF-8"),
    "a.jsonl": (b'{"text": "x"}\n["x"]\n', ":2: the record is a list, not an object"),
    "b.jsonl": (
        b'{"text": "x"}\n\n{"txet": "x"}\n',
        ":3: the record has no field 'text'; did you mean 'txet'?",
    ),
    "c.jsonl": (b'{"text": 3}\n', ":1: field 'text' is a number, not text"),
    "d.jsonl": (b'{"text": null}\n', ":1: field 'text' is null"),
    "e.jsonl": (b'{"text": "x"\n', ":1: not a JSON object on one line"),
    "f.jsonl": (b'{"text": "x"}\n{"text": "\xff"}\n', ":2: byte 24 (0xff) is not UTF-8"),
    "g.jsonl": (b'{"text": "\\ud800"}\n', "holds half of a surrogate pair"),
    "h.jsonl": (b'{"text": "\\u0000"}\n', "field 'text' holds NUL"),
    "i.jsonl": (b'{"a": "x", "b": "y"}\n', ":1: which field holds the text? The record has a, b"),
    "j.jsonl": (b"[" * 100_000 + b"\n", "nested too deeply"),
    "k.jsonl": (b'{"text": ' + b"9" * 5000 + b"}\n", "a number is too long"),
    "l.jsonl": (b'{"text": "' + b"x" * (8 << 20) + b'"}\n', ":1: the record is longer than 8 MB"),
    "a.json": (b'[{"text": "x"}, {"text": ', "the JSON array breaks off here"),
    "b.json": (b'[{"text": "x"}, 3]', ":1: the record is a number"),
    "a.csv": (b"id,text\n1,x\n2,y,z\n", ":3: the row has 3 columns where the first has 2"),
    "b.csv": (b'id,text\n1,"x\n2,y\n', "is a quote left open?"),
    "c.csv": (b"a,b\n1,2\n", ":2: which field holds the text?"),
    "image.png": (b"\x89PNG", "not a text file"),
    "blob": (b"\x7fELF\0\0", ":1: byte 4 is NUL"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_text_is_refused_with_its_place(name: str, written: Written) -> None:
    content, says = WRONG[name]
    path = written(name, content)
    message = refusal(path)
    assert message.startswith(str(path)) and says in message


def test_wrong_names(tmp_path: Path, written: Written) -> None:
    written("notes.txt", "x")
    assert f"no such file or folder; did you mean '{tmp_path}/notes.txt'?" in refusal(tmp_path / "note.txt")
    assert refusal(tmp_path / "poem.txt").endswith("no such file or folder")  # alike in nothing but its end
    assert "does not fetch addresses" in refusal("https://example.org/a.txt")
    assert "no text files in this folder" in refusal(written("e/a.png", "x").parent)
    assert "no data is named" in refusal([])
    assert refusal("x" * 300).endswith("cannot be read (File name too long)")
    (tmp_path / "loop").symlink_to("loop")
    assert refusal(tmp_path / "loop").endswith("cannot be read (Too many levels of symbolic links)")
    (tmp_path / "loop").unlink()
    assert "did you mean 'skip'?" in refusal(tmp_path, on_error="skipp")
    os.mkfifo(tmp_path / "pipe")
    assert "neither a file nor a folder; a pipe can be read once only" in refusal(tmp_path / "pipe")
    assert texts(tmp_path) == ["x"], "a pipe inside a folder is left out"


def test_a_forged_file_name_stays_on_one_line(written: Written) -> None:
    message = refusal(written("a\nFORGED \x1b[31m.txt", b"\xff"))
    assert "a\\nFORGED \\x1b[31m.txt:1: byte 0" in message


# What is mended or skipped


def test_byte_order_mark_is_dropped_and_line_ends_are_kept(written: Written) -> None:
    issues = Issues()
    assert texts(written("a.txt", b"\xef\xbb\xbfa\r\nb\rc\n"), issues) == ["a\r\nb\rc\n"]
    assert issues.n_bom == 1
    assert texts(written("a.jsonl", b'\xef\xbb\xbf{"text": "x"}\r\n')) == ["x"]


def test_replace_writes_replacement_characters(written: Written) -> None:
    issues = Issues()
    path = written("a.txt", b"caf\xe9 \xef\xbf\xbd ok\0\n")
    assert texts(path, issues, on_error="replace") == ["caf\ufffd \ufffd ok\ufffd\n"]
    assert issues.n_replaced == 2 and issues.faults["bad UTF-8"].first == f"{path}:1"
    rows = written("a.jsonl", b'{"text": "\xff"}\n{"text": "\\ud800 \\u0000"}\n')
    assert texts(rows, on_error="replace") == ["\ufffd", "\ufffd \ufffd"]
    assert "not an object" in refusal(written("b.jsonl", b"3\n"), on_error="replace")


def test_skip_leaves_out_lines_and_records(written: Written) -> None:
    issues = Issues()
    lines = [b"line %d\n" % n for n in range(2000)]
    lines[700] = b"bad \xff\n"
    lines[900] = b"bad \0\n"
    good = b"".join(line for line in lines if not line.startswith(b"bad")).decode()
    assert texts(written("a.txt", b"".join(lines)), issues, on_error="skip") == [good]
    assert issues.n_skipped_bytes == 12 and issues.faults["bad UTF-8"].first.endswith(":701")
    issues.refuse_if_much_was_skipped()

    issues = Issues()
    rows = written("a.jsonl", b'{"text": "a"}\n3\n{"text": "\xff"}\n{"text": "b"}\n')
    assert texts(rows, issues, on_error="skip") == ["a", "b"]
    assert (issues.n_records, issues.n_skipped_records) == (4, 2)
    with pytest.raises(Refused, match=r"2 of 4 records \(50.0%\) would be skipped, the limit is 1%"):
        issues.refuse_if_much_was_skipped()


@given(data=st.binary(max_size=200), size=st.integers(1, 40), policy=st.sampled_from(["skip", "replace"]))
@settings(max_examples=scaled(400))
def test_any_bytes_are_read_the_same_in_any_chunks(data: bytes, size: int, policy: str) -> None:
    def read(chunk: int) -> tuple[str | None, Issues]:
        issues = Issues(policy=policy)  # type: ignore[arg-type]
        before, textfile.CHUNK_BYTES = textfile.CHUNK_BYTES, chunk
        try:
            return "".join(textfile.read_text(io.BytesIO(data), "x", issues)), issues
        except (textfile.SkippedFile, Refused):
            return None, issues
        finally:
            textfile.CHUNK_BYTES = before

    whole, once = read(1000)
    cut, twice = read(max(size, 4))
    if policy == "replace" and whole is not None:
        assert whole == data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").replace("\0", "\ufffd")
        assert cut == whole and once.n_replaced == twice.n_replaced
    elif whole is not None:
        assert whole.encode().count(b"\0") == 0
        assert once.n_bytes == twice.n_bytes == len(data)


def test_the_fingerprint_follows_the_files(written: Written, tmp_path: Path) -> None:
    path = written("d/a.txt", "one")
    before = open_source(path.parent).fingerprint()
    assert open_source(path.parent).fingerprint() == before
    path.write_text("one more")
    grown = open_source(path.parent).fingerprint()
    written("d/b.txt", "x")
    assert len({before, grown, open_source(path.parent).fingerprint()}) == 3


def test_importing_sources_is_cheap() -> None:
    code = "import sys, transom.data.sources; print({'torch', 'tokenizers', 'pyarrow'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


# Real data


REAL = [
    ("tinyshakespeare/input.txt", None, 1, 1_115_394),
    ("wikitext-2/valid.txt", None, 1, 1_120_192),
    ("multi30k/val.de.gz", None, 1, None),
    ("ag_news/test.csv", "3", 7_600, None),
    ("medical_abstracts/medical_tc_test.csv", "medical_abstract", 2_888, None),
    ("alpaca/alpaca_5000.json", "output", 4_998, None),
    ("alpaca/seed_tasks.jsonl", "instruction", 175, None),
    ("unfair_tos/data.tsv", None, 3_850, None),
    ("halueval/general_data.json", "user_query", 4_507, None),
]


@pytest.mark.parametrize(("name", "field", "n_documents", "n_characters"), REAL)
def test_real_data(
    shared_data: Path, name: str, field: str | None, n_documents: int, n_characters: int | None
) -> None:
    lengths = [len(d.text()) for d in open_source(shared_data / name, field=field).documents()]
    assert len(lengths) == n_documents
    assert n_characters is None or sum(lengths) == n_characters


def test_real_latin1_is_named(shared_data: Path) -> None:
    path = shared_data / "trec" / "TREC.train"
    assert f"{path}:66: byte 3695 (0xf0) is not UTF-8; convert the file (iconv" in refusal(path)
    assert len(texts(path, on_error="skip")[0].splitlines()) == 5_451


def test_the_library_has_prose_of_its_own() -> None:
    found = list(stdlib_prose(5000))
    assert 5000 <= sum(len(text) for text, _ in found) < 30_000
    assert all(len(text) >= 200 and where.startswith("stdlib/") for text, where in found)
    assert found == list(stdlib_prose(5000))
