"""Archives of rows: the rows of all members, and nothing that a hostile one asks for; and SQuAD's JSON."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from transom import __main__ as door
from transom.data import archives
from transom.data.conversations import open_conversations
from transom.data.issues import Issues
from transom.data.labelled import open_labelled
from transom.data.rows import rows_of
from transom.errors import Refused

SHARED = Path(__file__).parents[3] / "shared" / "data"
XML = """<?xml version="1.0" encoding="UTF-8"?><Document id="1"><Focus>Gout</Focus><Other><A>1</A></Other>
<QAPairs><QAPair pid="1"><Question>What is gout ?</Question><Answer>A kind of
arthritis.</Answer></QAPair><QAPair><Question>Who gets it ?</Question><Answer/></QAPair></QAPairs>
</Document>"""


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as packed:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    return path


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return path


def read(path: Path) -> list[object]:
    return [row for _, row in rows_of(path, path.name, Issues("error"))]


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar", "a.zip"])
def test_the_rows_of_all_members_are_those_of_the_archive(name: str, tmp_path: Path) -> None:
    small = XML.replace("Question>", "question>").replace("Answer>", "answer>")
    members = {"qa/1.xml": XML.encode(), "qa/2.xml": small.encode(), "LICENSE": b"do what you want",
               "qa/3.jsonl": b'{"Question": "Why?", "Answer": "Because."}\n',
               "qa/4.csv": b"Question,Answer\nHow?,Well.\n", "qa/.hidden.csv": b"x\n"}  # fmt: skip
    path = (zipped if name.endswith("zip") else tar)(tmp_path / name, members)
    arthritis = {"Question": "What is gout ?", "Answer": "A kind of\narthritis."}
    assert read(path) == [arthritis, arthritis, {"Question": "Why?", "Answer": "Because."},
                          {"Question": "How?", "Answer": "Well."}]  # fmt: skip
    talks = list(open_conversations(str(path)))
    assert len(talks) == 4 and talks[2].where == f"{path}:3"


def test_a_table_in_an_archive_teaches_classes(tmp_path: Path) -> None:
    rows = "".join(f"{('Yes', 'No')[i % 2]}\tclause {i} of a contract\n" for i in range(30))
    path = tar(tmp_path / "clauses.tar.gz", {"audit/test.tsv": f"label\ttext\n{rows}".encode()})
    found = list(open_labelled(str(path)))
    assert len(found) == 30 and found[1].label == "No" and found[1].text == "clause 1 of a contract"


@pytest.mark.parametrize("name", ["clauses.tar.gz", "clauses.zip", "clauses.tar"])
def test_a_member_or_a_folder_of_members_can_be_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def table(kind: str) -> bytes:
        rows = "".join(f"{i}\t{('Yes', 'No')[i % 2]}\t{kind} {i} of it\n" for i in range(30))
        return f"index\tanswer\ttext\n{rows}".encode()

    members = {f"./tasks/{kind}/{part}.tsv": table(f"{kind} {part}")
               for kind in ("Audit Rights", "Cap") for part in ("train", "test")}  # fmt: skip
    path = (zipped if name.endswith("zip") else tar)(tmp_path / name, members)
    columns = {"text_field": "text", "label_field": "answer"}
    one = list(open_labelled(f"{path}/tasks/Audit Rights/test.tsv", **columns))
    assert len(one) == 30 and all(item.text.startswith("Audit Rights test ") for item in one)
    assert one[0].where == f"{path}!tasks/Audit Rights/test.tsv:1"
    folder = list(open_labelled(f"{path}/tasks/Cap", **columns))
    assert len(folder) == 60 and all(item.text.startswith("Cap ") for item in folder)
    whole = list(open_labelled(str(path), **columns))
    assert len(whole) == 120
    sources = [open_labelled(f"{path}{at}", **columns) for at in ("", "/tasks/Cap", "/tasks/Audit Rights")]
    assert len({source.fingerprint() for source in sources}) == 3
    for asked, says in (
        ("tasks/Cap/tset.tsv", "'tasks/Cap/tset.tsv' in this archive; did you mean 'tasks/Cap/test.tsv'?"),
        ("nothing", "'nothing' in this archive; it holds tasks/Audit Rights/train.tsv, "),
    ):  # fmt: skip
        assert (
            door.run(["data", "check", f"{path}/{asked}", "--map", "text=text", "--map", "label=answer"]) == 2
        )
        assert f"{path}: there is no {says}" in capsys.readouterr().err
    assert door.run(["data", "check", f"{path}/tasks/Cap/test.tsv", "--map", "label=answer"]) == 0


def test_no_name_and_no_link_of_an_archive_reaches_a_file(tmp_path: Path) -> None:
    row = b'{"prompt": "a", "completion": "b"}\n'
    names = ["../../up.jsonl", "/tmp/absolute.jsonl", "a\0b.jsonl".replace("\0", "\x01"), "x" * 90 + ".jsonl"]
    path = tmp_path / "hostile.tar.gz"
    secret = tmp_path / "secret.jsonl"
    secret.write_bytes(b'{"prompt": "secret", "completion": "secret"}\n')
    with tarfile.open(path, "w:gz") as packed:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(row)
            packed.addfile(info, io.BytesIO(row))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo("link.jsonl")
            info.type, info.linkname = kind, str(secret)
            packed.addfile(info)
    before = sorted(tmp_path.rglob("*"))
    assert read(path) == [json.loads(row)] * len(names)
    assert sorted(tmp_path.rglob("*")) == before and not Path("/tmp/absolute.jsonl").exists()
    assert read(zipped(tmp_path / "hostile.zip", dict.fromkeys(names, row))) == [json.loads(row)] * len(names)


@pytest.mark.parametrize("name", ["bomb.tar.gz", "bomb.zip"])
def test_what_is_made_to_fill_a_disk_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MOST_BYTES", 1 << 20)
    bomb = {f"{i}.jsonl": b"\n" * (1 << 20) for i in range(8)}
    path = (zipped if name.endswith("zip") else tar)(tmp_path / name, bomb)
    with pytest.raises(Refused, match=f"{name}: unpacks to more than 50 times its size"):
        read(path)


def test_broken_archives_are_refused_in_one_line(tmp_path: Path) -> None:
    def packed(name: str, content: bytes) -> bytes:
        return tar(tmp_path / "some.tar.gz", {name: content}).read_bytes()

    whole = packed("a.jsonl", b'{"prompt": "a", "completion": "b"}\n' * 5000)
    entities = b'<!DOCTYPE a [<!ENTITY b "bbbb">]><a><b>&b;</b><c>d</c></a>'
    broken = {
        "cut.tar.gz": (whole[: len(whole) // 2], "not a whole archive"),
        "none.tar.gz": (b"no archive at all", "not a whole archive"),
        "text.tar.gz": (gzip.compress(b"no archive, but long enough to be read" * 40), "not a whole archive"),
        "none.zip": (b"PK no archive", "not a whole archive"),
        "empty.tar.gz": (packed("readme.txt", b"x"), "no file in this archive"),
        "entities.tar.gz": (packed("a.xml", entities), "declares entities"),
        "xml.tar.gz": (packed("a.xml", b"<a><b>"), "not XML that can be read"),
        "json.tar.gz": (packed("d/a.jsonl", b"{\n"), "json.tar.gz!d/a.jsonl:1"),
    }  # fmt: skip
    for name, (content, says) in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Refused, match=says) as refused:
            read(tmp_path / name)
        assert "\n" not in str(refused.value)


def test_squad_is_questions_on_a_passage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [{"question": f"How many? {i}", "answers": [{"text": "308"}] * (i != 3)} for i in range(5)]
    squad = {
        "version": "1.1",
        "data": [{"title": "T", "paragraphs": [{"context": "It was 308.", "qas": asked}]}],
    }
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(squad, indent=2))
    talks = list(open_conversations(str(path)))
    assert len(talks) == 4
    said = json.loads(talks[0].talk)["messages"]
    assert said[0]["content"] == "How many? 0\n\nIt was 308." and said[1]["content"] == "308"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"qas": asked}]}]}))
    assert door.run(["data", "check", str(path)]) == 2
    assert "begins like a SQuAD file and is none (no 'context')" in capsys.readouterr().err


@pytest.mark.heavy
@pytest.mark.skipif(not SHARED.is_dir(), reason="the public data sets of ../shared are not here")
def test_public_sets_are_taken_as_they_lie() -> None:
    n = sum(1 for _ in open_conversations(str(SHARED / "medquad" / "MedQuAD_with_answers.tar.gz")))
    assert 16_000 < n < 17_000
    assert sum(1 for _ in open_conversations(str(SHARED / "xquad" / "xquad.en.json"))) == 1190
    columns = {"prompt": "QUESTION", "input": "CONTEXTS", "completion": "final_decision"}
    asked = open_conversations(str(SHARED / "pubmedqa" / "ori_pqal.json"), fields=columns)
    assert sum(1 for _ in asked) == 1000
    clauses = open_labelled(str(SHARED / "cuad_clauses" / "legalbench_CUAD_test.tar.gz"))
    assert {one.label for one in clauses} == {"Yes", "No"}


def test_two_columns_of_one_name_are_refused_in_an_archive_too(tmp_path: Path) -> None:
    path = zipped(tmp_path / "twins.zip", {"a.csv": b"text,text\n1,2\n"})
    with pytest.raises(Refused, match="twins.zip!a.csv:1: 2 columns are named 'text'; rename one"):
        read(path)
