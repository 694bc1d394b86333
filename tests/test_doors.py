"""Every door by which a text comes in: arguments, a file, standard input, Python.

Lines are lines at all of them, what is no text is refused in one line, and what cannot be written is said
before the work.
"""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.server import models
from transom import cli
from transom.__main__ import run
from transom.errors import Refused
from transom.inference.load import load
from transom.server.keys import read_keys
from transom.server_settings import ServerSettings
from transom.settings import TrainSettings
from transom.settings import load as load_settings

MAKERS: dict[str, Callable[[Path], object]] = {
    "translate": models.translator,
    "classify": lambda at: models.encoder(at, "classify"),
    "embed": lambda at: models.encoder(at, "embed"),
    "generate": models.decoder,
}
VERBS = ["translate", "classify", "embed"]
LINES = ["ab", "c\u2028d", "e\x85f", "g\x0ch"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    at = tmp_path_factory.mktemp("doors")
    for verb, make in MAKERS.items():
        make(at / verb)
    return {verb: str(at / verb) for verb in MAKERS}


class Door:
    """A command line run in this process, with bytes on its standard input."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *words: str, stdin: bytes | None = None) -> tuple[int, str, str]:
        source = None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
        self.monkeypatch.setattr(sys, "stdin", source)
        code = run(words)
        said = self.capsys.readouterr()
        return code, said.out, said.err

    def json(self, *words: str, stdin: bytes | None = None) -> list[dict]:
        code, out, err = self(*words, "--json", stdin=stdin)
        assert code == 0, err
        (answers,) = json.loads(out).values()
        return answers

    def refused(self, *words: str, stdin: bytes | None = None) -> str:
        code, out, err = self(*words, stdin=stdin)
        assert (code, out) == (2, "") and err.count("\n") == 1, err
        return err.removeprefix("transom: ").rstrip("\n")


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Door:
    return Door(monkeypatch, capsys)


@pytest.mark.parametrize("verb", VERBS)
def test_all_doors_read_the_same_lines(
    verb: str, folders: dict[str, str], door: Door, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_bytes("\n".join(LINES).encode() + b"\n")
    (tmp_path / "marked.txt").write_bytes("\r\n".join(["\ufeff" + LINES[0], *LINES[1:]]).encode())
    (tmp_path / "a.csv").write_text("label,text\n" + "".join(f"x,{line}\n" for line in LINES))
    expected = door.json(verb, folders[verb], *LINES)
    assert [one["input"] for one in expected] == LINES
    for name in ("a.txt", "marked.txt", "a.csv"):
        assert door.json(verb, folders[verb], "--input", str(tmp_path / name)) == expected
        if name != "a.csv":
            assert door.json(verb, folders[verb], stdin=(tmp_path / name).read_bytes()) == expected


@pytest.mark.parametrize("verb", VERBS)
def test_a_blank_line_has_a_blank_answer_in_its_place(verb: str, folders: dict[str, str], door: Door) -> None:
    first, blank, last, end = door.json(verb, folders[verb], stdin=b"aa\n\nbb\n \n")
    alone = door.json(verb, folders[verb], "aa", "bb")
    assert [first["input"], blank["input"], last["input"], end["input"]] == ["aa", "", "bb", " "]
    if verb == "embed":  # the vector of the frame alone, as in sentence-transformers
        assert np.allclose(
            [first["embedding"], last["embedding"]], [one["embedding"] for one in alone], atol=1e-6
        )
        assert np.linalg.norm(blank["embedding"]) == pytest.approx(1, abs=1e-4)
        return
    assert [first, last] == alone
    _, out, _ = door(verb, folders[verb], stdin=b"aa\n\nbb\n")
    lines = out.removesuffix("\n").split("\n")
    assert len(lines) == 3 and lines[1] == "" and lines[0] and lines[2]
    if verb == "classify":
        assert blank == {"input": "", "label": None, "probabilities": {}, "confidence": 0.0}


@pytest.mark.parametrize("verb", MAKERS)
def test_bytes_that_are_no_text_are_named(verb: str, folders: dict[str, str], door: Door) -> None:
    says = "standard input:2: byte 6 (0xe9) is not UTF-8; convert the file (iconv -f windows-1252 -t utf-8)"
    assert door.refused(verb, folders[verb], stdin=b"ok\ncaf\xe9\n") == says
    says = "character 3 is the byte 0xe9, which is not UTF-8; write it in UTF-8"
    assert door.refused(verb, folders[verb], "caf\udce9") == f"'caf\\udce9': {says}"
    assert door.refused(verb, folders[verb], stdin=None) == (
        "standard input is closed; give a text, or a file to read"
    )
    model = load(folders[verb])
    with pytest.raises(Refused, match="half of a surrogate pair, which is not text; remove it"):
        getattr(model, verb)("a\ud800b")


@pytest.mark.parametrize("verb", [*MAKERS, "look"])
def test_a_file_given_as_a_text_is_asked_about(
    verb: str, folders: dict[str, str], door: Door, tmp_path: Path
) -> None:
    path = tmp_path / "tickets.csv"
    path.write_text("text\na\n")
    folder = folders.get(verb, folders["generate"])
    said = door.refused(
        verb, folder, str(path), *(["--out", str(tmp_path / "x.html")] if verb == "look" else [])
    )
    assert said.startswith(f"{path} is a file, not a text; ")
    if verb in VERBS:
        assert said.endswith("--input reads it")
        assert len(door.json(verb, folder, "--input", str(path))) == 1


def test_what_cannot_be_written_is_said_before_the_work(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worked(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(cli, "_loaded", worked)
    monkeypatch.setattr("transom.inference.load.load", worked)
    monkeypatch.setattr("transom.lab.distance.measure", worked)
    monkeypatch.setattr("transom.lab.cat.generated", worked)
    nowhere = tmp_path / "nowhere" / "x.npy"
    fix = "--out names a file in a folder that exists"
    for words in (
        ["embed", "m", "hi"],
        ["look", "m", "hi"],
        ["lab", "distance"],
        ["lab", "cat"],
        ["lab", "backprop"],
    ):
        said = door.refused(*words, "--out", str(nowhere))
        assert said == f"{nowhere}: there is no folder {nowhere.parent}; {fix}"
    assert (
        door.refused("embed", "m", "hi", "--out", str(tmp_path))
        == f"{tmp_path} is a folder; --out names a file"
    )
    assert list(tmp_path.iterdir()) == []


def test_vectors_are_written_whole(folders: dict[str, str], door: Door, tmp_path: Path) -> None:
    out = tmp_path / "x.npy"
    code, said, _ = door("embed", folders["embed"], "a", "b", "--out", str(out))
    assert code == 0 and said == f"2 vectors of 32 numbers: {out}\n"
    assert np.load(out).shape == (2, 32) and list(tmp_path.iterdir()) == [out]


ROWS = [{"id": "7", "text": "one; two", "label": "x"}, {"id": "8", "text": 'three "four"', "label": "y"}]


@pytest.mark.parametrize("verb", MAKERS)
@pytest.mark.parametrize(("name", "out"), [("a.csv", "b.csv"), ("a.tsv", "b.jsonl"), ("a.jsonl", "b.tsv")])
def test_rows_come_back_with_their_answers(
    verb: str, name: str, out: str, folders: dict[str, str], door: Door, tmp_path: Path
) -> None:
    given, made = tmp_path / name, tmp_path / out
    with open(given, "w", newline="") as file:
        if name.endswith("jsonl"):
            file.writelines(json.dumps(row) + "\n" for row in ROWS)
        else:  # with the separator of a spreadsheet where a comma is a decimal point
            table = csv.DictWriter(file, ROWS[0], delimiter=";" if name == "a.csv" else "\t")
            table.writeheader()
            table.writerows(ROWS)
    words = [verb, folders[verb], "--input", str(given)]
    words += ["--temperature", "0", "--max-tokens", "3"] if verb == "generate" else []
    answers = door.json(*words)
    code, said, _ = door(*words, "--out", str(made))
    assert code == 0 and str(made) in said
    with open(made, newline="") as file:
        rows = (
            [json.loads(line) for line in file]
            if out.endswith("jsonl")
            else list(csv.DictReader(file, delimiter=";" if name == "a.csv" else "\t"))
        )
    for row, answer, before in zip(rows, answers, ROWS, strict=True):
        assert {key: row.pop(key) for key in before} == before
        if verb == "generate":
            assert row == {"completion": answer["text"]} and answer["prompt"] == before["text"]
        elif verb == "translate":
            assert row == {"translation": answer["text"]}
        elif verb == "classify":
            assert row.pop("class") == answer["label"] and row.keys() == {"confidence"}
            assert float(row["confidence"]) == pytest.approx(answer["confidence"], abs=1e-4)
        else:
            vector = row["embedding"] if out.endswith("jsonl") else json.loads(row["embedding"])
            assert np.allclose(vector, answer["embedding"], atol=1e-6)


def test_a_translation_that_the_model_is_unsure_of_is_told(
    door: Door, folders: dict[str, str], tmp_path: Path
) -> None:
    """Beside the answer, on stderr, where the run was evaluated; answers alone stand on stdout."""
    model = tmp_path / "run" / "model"
    shutil.copytree(folders["translate"], model)
    words = ("translate", str(model), "ab", "cd")
    sure = [answer["mean_logprob"] for answer in door.json(*words)]
    _, alone, silent = door(*words)
    assert "unsure" not in silent
    for line, told in ((max(sure) + 1e-6, "unsure of 1 ("), (min(sure) - 1e-6, "")):
        (tmp_path / "run" / "evaluation.json").write_text(json.dumps({"unsure_below": line}))
        code, said, remark = door(*words)
        assert code == 0 and said == alone and (told in remark if told else "unsure" not in remark)


def test_where_answers_cannot_go(door: Door, folders: dict[str, str], tmp_path: Path) -> None:
    rows, model = tmp_path / "a.csv", folders["classify"]
    rows.write_text("text,class\none,x\ntwo,y\n")
    for out, says in {
        rows: f"{rows} holds the rows to answer; --out names another file",
        tmp_path
        / "b.xlsx": f"{tmp_path}/b.xlsx: rows are written as .csv, .tsv, .tab, .jsonl, .parquet; --out"
        " names such a file",
        tmp_path / "b.csv": "the rows have a field 'class' already; rename it, and the answer has room",
    }.items():
        assert door.refused("classify", model, "--input", str(rows), "--out", str(out)) == says
    assert rows.read_text() == "text,class\none,x\ntwo,y\n" and list(tmp_path.iterdir()) == [rows]


def test_a_person_who_is_to_type_is_told(folders: dict[str, str], door: Door) -> None:
    terminal, keyboard = pty.openpty()
    os.write(terminal, b"ab\n\x04")
    with open(keyboard) as stdin:
        door.monkeypatch.setattr(sys, "stdin", stdin)
        assert run(["generate", folders["generate"], "--max-tokens", "2"]) == 0
    os.close(terminal)
    said = door.capsys.readouterr()
    assert said.err == "type your text; Ctrl-D on a line of its own ends it\n" and said.out.startswith("ab")


def test_a_look_takes_the_place_of_no_other(folders: dict[str, str], door: Door, tmp_path: Path) -> None:
    door.monkeypatch.chdir(tmp_path)
    (tmp_path / "look.html").write_text("another")
    code, said, _ = door("look", folders["generate"], "abc")
    assert code == 0 and "look-2.html" in said
    assert (tmp_path / "look.html").read_text() == "another" and (tmp_path / "look-2.html").is_file()


def test_texts_of_several_lines_stay_on_one_line_beside_their_class(
    folders: dict[str, str], door: Door
) -> None:
    _, out, _ = door("classify", folders["classify"], "one\ntwo")
    assert out.endswith("\tone two\n") and out.count("\n") == 1


def test_a_field_needs_a_file_of_records(door: Door, folders: dict[str, str]) -> None:
    said = door.refused("classify", folders["classify"], "a", "--field", "text")
    assert said == "--field names a field of the records in a file; add --input FILE"


@pytest.mark.parametrize("verb", MAKERS)
def test_a_verb_of_another_kind_says_which_is_meant(verb: str, folders: dict[str, str], door: Door) -> None:
    for kind, folder in folders.items():
        if kind != verb:
            said = door.refused(verb, folder, "a")
            assert said.startswith(f"{folder} is a ") and said.endswith(f"; use transom {kind}")


def test_a_byte_order_mark_is_no_part_of_settings_or_keys(tmp_path: Path) -> None:
    settings, file = tmp_path / "a.toml", tmp_path / "keys.txt"
    settings.write_bytes("\ufeffsteps = 3\n".encode())
    assert load_settings(TrainSettings, {}, settings).steps == 3
    file.write_bytes(f"\ufeff{'a' * 16}\r\n# a word\r\n{'b' * 16}\r\n".encode())
    keys, _ = read_keys(ServerSettings(api_key_file=file), {})
    assert keys.tenant(b"a" * 16) and keys.tenant(b"b" * 16) and keys.tenant(b"c" * 16) is None


@pytest.mark.parametrize(("verb", "settings", "learned"), [
    ("classify", 'task = "classify"\n\n[data]\nsource = "{at}/learned.csv"\n', "review,sentiment"),
    ("classify", 'task = "classify"\n\n[data]\nsource = "gone.csv"\nfield = "Review"\n', ""),
    ("translate", 'task = "translate"\n\n[data]\nsource = "{at}/learned.csv"\n', "source,target"),
])  # fmt: skip
def test_a_file_is_read_by_the_field_that_the_run_learned_from(
    verb: str, settings: str, learned: str, folders: dict[str, str], door: Door, tmp_path: Path
) -> None:
    shutil.copytree(folders[verb], tmp_path / "run" / "model")
    (tmp_path / "run" / "settings.toml").write_text(settings.format(at=tmp_path))
    name = learned.partition(",")[0] or "review"
    (tmp_path / "learned.csv").write_text(learned + "\n" + "a b c,x\nd e f,y\n" * 9)
    (tmp_path / "rows.csv").write_text(f"id,{name.title()},note\nx,ab,aa\ny,ba,bb\n")
    answers = door.json(verb, str(tmp_path / "run"), "--input", str(tmp_path / "rows.csv"))
    assert [one["input"] for one in answers] == ["ab", "ba"]
    other = door.json(verb, str(tmp_path / "run"), "--input", str(tmp_path / "rows.csv"), "--field", "note")
    assert [one["input"] for one in other] == ["aa", "bb"]
    says = door.refused(verb, folders[verb], "--input", str(tmp_path / "rows.csv"))
    assert says.endswith(f"has id, {name.title()}, note: name it with --field")
