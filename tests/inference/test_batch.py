"""Rows from file to file: shards that survive kills, the same answers whoever computes them, bad rows."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.inference import batcher
from tests.scale import scaled
from tests.server import models
from transom.__main__ import run
from transom.errors import Refused
from transom.inference import batch as batch_module
from transom.inference.answers import TextInput
from transom.inference.batch import Batch
from transom.inference.load import load

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
WORDS = ("the", "crow", "and", "the", "fox", "said", "he", "cheese", "one", "two", "three", "four")
ROOT = Path(__file__).parents[2]
HERE = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
Say = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    at = tmp_path_factory.mktemp("batch")
    models.translator(at / "translate")
    models.decoder(at / "generate")
    models.encoder(at / "classify", "classify")
    models.encoder(at / "embed", "embed")
    return {verb: str(at / verb) for verb in ("translate", "generate", "classify", "embed")}


def texts(n: int) -> list[str]:
    return [" ".join(WORDS[(i * 7 + k) % len(WORDS)] for k in range(1 + i % 6)) for i in range(n)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def place(tmp_path: Path, n: int) -> Path:
    """A folder for batcher."""
    models.translator(tmp_path / "model")
    write(tmp_path / "rows.jsonl", [{"id": i, "text": text} for i, text in enumerate(texts(n))])
    return tmp_path


def batched(*words: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.inference.batcher", *map(str, words)]
    done = subprocess.run(command, env=HERE, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_crash_at_any_point_changes_nothing_in_the_end(tmp_path: Path) -> None:
    done = batched("points", place(tmp_path, 3 * batcher.ROWS - 2))
    assert done["points"] > 15 and done["different"] == 1


def test_a_run_that_is_killed_again_and_again_writes_the_same(tmp_path: Path) -> None:
    n_kills = scaled(100)
    folder = place(tmp_path, batcher.ROWS * (2 * n_kills + 4) - 3)
    done = batched("kills", folder, n_kills)
    assert done["again"] == 0 and done["left"] == sorted(done["left"]) and done["left"][-1] >= n_kills
    assert len(done["left"]) > n_kills // 4
    assert done["told"][0].startswith(f"going on: {done['left'][-1] * batcher.ROWS:,} of {done['rows']:,}")
    batcher.job(folder, "whole.jsonl").run()
    assert (folder / "whole.jsonl").read_bytes() == (folder / "out.jsonl").read_bytes()
    assert not [path for path in folder.iterdir() if path.name.endswith(".parts")]


@pytest.mark.heavy
@pytest.mark.distributed
def test_a_ray_cluster_with_a_worker_killed_writes_what_one_process_does(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    folder = place(tmp_path, 4 * batcher.OF_RAY + 7)
    done = batched("ray", folder)
    assert done["kept"] >= 1 and re.match(r"a worker died over rows [\d,]+ and on \(", done["refused"])
    batcher.job(folder, "here.jsonl", batcher.OF_RAY).run()
    here = (folder / "here.jsonl").read_bytes()
    assert here == (folder / "one.jsonl").read_bytes() == (folder / "all.jsonl").read_bytes()


@pytest.mark.distributed
def test_processes_write_what_one_does_and_end_with_a_killed_command(
    folders: dict[str, str], tmp_path: Path
) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"text": text} for text in texts(200)])
    out = tmp_path / "out.csv"
    again: dict[str, Any] = dict(settings={}, deterministic=True, n_rows=20)
    Batch("embed", folders["embed"], rows, tmp_path / "one.csv", workers=1, **again).run()
    program = (
        "import sys; from pathlib import Path; from transom.inference.batch import Batch\n"
        "if __name__ == '__main__':\n"
        "    model, rows, out = sys.argv[1:]\n"
        "    Batch('embed', model, Path(rows), Path(out), settings={}, deterministic=True, n_rows=20,"
        " workers=2).run()\n"
    )
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, tmp_path / "program.py", folders["embed"], rows, out]
    started = subprocess.Popen(command, env=HERE)
    while not list(tmp_path.glob("out.csv.parts/0*.jsonl")):
        assert started.poll() is None
        time.sleep(0.002)
    workers = [pid for pid in batcher.below(started.pid) if "spawn_main" in batcher.command(pid)]
    started.kill()
    started.wait()
    assert len(workers) == 2
    until = time.monotonic() + 20
    while any("spawn_main" in batcher.command(pid) for pid in workers) and time.monotonic() < until:
        time.sleep(0.02)
    assert time.monotonic() < until
    assert subprocess.run(command, env=HERE).returncode == 0
    assert out.read_bytes() == (tmp_path / "one.csv").read_bytes()


@pytest.mark.parametrize("verb", ["translate", "generate", "classify", "embed"])
def test_every_row_has_the_answer_of_python(verb: str, folders: dict[str, str], tmp_path: Path) -> None:
    """Whatever kind of file it comes from and goes to; shards change floats by rounding at most."""
    settings: dict[str, Any] = dict(max_tokens=6, temperature=0.9, seed=5) if verb == "generate" else {}
    asked, loaded = texts(30), load(folders[verb])
    expected = getattr(loaded, verb)(asked, **settings)
    rows = [{"n": i, "text": text} for i, text in enumerate(asked)]
    write(tmp_path / "in.jsonl", rows)
    parquet.write_table(arrow.Table.from_pylist(rows, arrow.schema(
        [("n", arrow.int16()), ("text", arrow.string())])), tmp_path / "in.parquet")  # fmt: skip
    for source, target in (
        ("in.jsonl", "out.parquet"),
        ("in.parquet", "out.jsonl"),
        ("in.parquet", "out.tsv"),
    ):
        out = tmp_path / target
        Batch(
            verb, folders[verb], tmp_path / source, out, settings=settings, field="text", n_rows=7, workers=1
        ).run()
        if target == "out.parquet":
            table = parquet.read_table(out)
            assert table.schema.field("n").type == arrow.int64()
            if verb == "embed":
                assert table.schema.field("embedding").type == arrow.list_(arrow.float32())
            found = table.to_pylist()
        elif target == "out.tsv":
            with open(out, newline="") as file:
                found = list(csv.DictReader(file, delimiter="\t"))
        else:
            found = lines(out)
        assert [(int(row["n"]), row["text"]) for row in found] == list(enumerate(asked))
        assert {"error"}.isdisjoint(found[0])
        for row, answer in zip(found, expected, strict=True):
            if verb == "embed":
                vector = json.loads(row["embedding"]) if target == "out.tsv" else row["embedding"]
                assert vector == pytest.approx(answer.tolist(), abs=1e-6)
            elif verb == "classify":
                assert row["class"] == answer.label
                assert float(row["confidence"]) == pytest.approx(answer.confidence, abs=1e-4)
            else:
                assert row["completion" if verb == "generate" else "translation"] == answer.text


def test_types_of_a_parquet_file_are_kept(folders: dict[str, str], tmp_path: Path) -> None:
    schema = arrow.schema([("n", arrow.int16()), ("text", arrow.string()), ("day", arrow.date32())])
    table = arrow.table({"n": [1, None], "text": ["crow", "fox"], "day": [0, 1]}, schema)
    parquet.write_table(table, tmp_path / "in.parquet")
    out = tmp_path / "out.parquet"
    Batch("classify", folders["classify"], tmp_path / "in.parquet", out, settings={}).run()
    found = parquet.read_table(out)
    assert found.select(table.column_names) == table
    assert found.schema.names == ["n", "text", "day", "class", "confidence"]


BAD: list[dict[str, Any]] = [
    {"id": 0, "text": "crow"},
    {"id": 1, "txt": "fox"},
    {"id": 2, "text": None},
    {"id": 3, "text": "fox " * 100},
    {"id": 4, "text": ""},
    {"id": 5, "text": "half \ud800", "more": "\udfff"},
    {"id": 6, "text": "the fox"},
]
REASONS = {
    1: "the record has no field 'text'; did you mean 'txt'?",
    2: "field 'text' is null, not text",
    3: " tokens; this model reads at most 64: shorten it by ",
    5: "field 'text' holds half of a surrogate pair, which text does not hold; remove it",
}


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("n_rows", [1, 3, 50])
def test_a_bad_row_stands_in_its_place_with_its_reason(
    kind: str, n_rows: int, folders: dict[str, str], tmp_path: Path
) -> None:
    held = BAD if kind == ".jsonl" else [row | {"more": ""} for row in BAD]  # Parquet has no halves
    held = [row if kind == ".jsonl" or row["id"] != 5 else row | {"text": "NUL \0"} for row in held]
    rows, out = write(tmp_path / "rows.jsonl", held), tmp_path / f"out{kind}"
    written = Batch("classify", folders["classify"], rows, out, settings={}, n_rows=n_rows, workers=1).run()
    assert [line for line, _ in written.unanswered] == [id + 1 for id in REASONS]
    if kind == ".jsonl":
        found = lines(out)
        assert [{key: row[key] for key in own} for row, own in zip(found, held, strict=True)] == held
    elif kind == ".csv":
        with open(out, newline="") as file:
            found = list(csv.DictReader(file))
    else:
        found = parquet.read_table(out).to_pylist()
    assert [int(row["id"]) for row in found] == list(range(len(BAD)))
    for id, row in enumerate(found):
        if id in REASONS and not (kind != ".jsonl" and id == 5):
            assert REASONS[id] in row["error"] and not row.get("class")
        elif id != 5:
            assert not row.get("error") and (row["class"] in models.LABELS or id == 4)


def test_the_command_line_counts_bad_rows(folders: dict[str, str], tmp_path: Path, capsys: Say) -> None:
    rows, out = write(tmp_path / "rows.jsonl", BAD), tmp_path / "out.jsonl"
    words = ["classify", folders["classify"], "--input", str(rows), "--out", str(out)]
    assert run(words) == 1
    said = capsys.readouterr().out
    assert said.startswith(f"7 rows: {out}\n4 without an answer; the column 'error' says why:\n")
    assert f"  {rows}:2: the record has no field" in said and said.endswith("  and 1 more\n")
    assert run([*words, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == 7 and [one["line"] for one in told["unanswered"]] == [2, 3, 4, 6]
    assert run([*words, "--cut", "--json"]) == 1
    assert [one["line"] for one in json.loads(capsys.readouterr().out)["unanswered"]] == [2, 3, 6]


WRONG: dict[str, tuple[str, str]] = {
    "broken.jsonl": ('{"text": "a"}\n{"text": "b"\n', "{at}:2: not a JSON object on one line"),
    "wide.csv": ("text,n\na,1\nb,2,3\n", "{at}:3: the row has 3 columns where the first has 2"),
    "which.jsonl": ('{"a": "x", "b": "y"}\n', "{at}:1: which field holds the text? The record has a, b"),
    "empty.jsonl": ('{"text": " "}\n', "{at}: there is no text in it"),
    "taken.jsonl": ('{"text": "a"}\n{"text": "b", "class": 1}\n', "the rows have a field 'class' already"),
    "error.jsonl": ('{"text": "a", "error": 1}\n', "the rows have a field 'error' already"),
    "mixed.jsonl": ('{"text": "a", "n": 1}\n{"text": "b", "n": "x"}\n', "a column of Parquet has one type ("),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_row_or_has_no_room_is_said_before_the_work(
    name: str, folders: dict[str, str], tmp_path: Path, capsys: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transom.inference.shard.load", None)
    content, says = WRONG[name]
    (tmp_path / name).write_text(content)
    out = tmp_path / "out.parquet"
    assert run(["classify", folders["classify"], "--input", str(tmp_path / name), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert says.format(at=tmp_path / name) in said and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_settings_and_models_that_do_not_fit_leave_nothing(
    folders: dict[str, str], tmp_path: Path, capsys: Say
) -> None:
    rows, out = write(tmp_path / "rows.jsonl", [{"text": "crow"}]), tmp_path / "out.jsonl"
    ends = ["--input", str(rows), "--out", str(out)]
    for words, says in (
        (["classify", folders["classify"], "--temperature", "0"], "temperature is 0.0"),
        (["generate", folders["generate"], "--temperature", "-1"], "temperature"),
        (["translate", folders["translate"], "--beam", "100"], "beam is 100"),
        (["classify", folders["embed"]], f"{folders['embed']} is a Embedder; use transom embed"),
        (["classify", folders["classify"], "--workers", "0"], "--workers 0: at least one has to work"),
        (["embed", folders["embed"], "--ray", "127.0.0.1:9"], "--ray 127.0.0.1:9: no Ray cluster there ("),
        (["embed", folders["embed"], "--ray", "nonsense"], "--ray nonsense: no Ray cluster there ("),
    ):
        if "--ray" in words:
            pytest.importorskip("ray")
        assert run([*words, *ends]) == 2
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1, said
        assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    assert run(["embed", folders["embed"], "crow", "--workers", "2"]) == 2
    assert "are about rows of a file; add --input FILE" in capsys.readouterr().err


def test_ray_that_is_not_installed(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"text": "crow"}])
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Refused, match=r"^--ray needs Ray: pip install 'transom\[ray\]'$"):
        Batch("embed", folders["embed"], rows, tmp_path / "out.jsonl", settings={}).run(ray="local")


@pytest.fixture
def half_done(folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with rows.jsonl and out.jsonl.parts, in which one shard of three is done."""
    rows = write(tmp_path / "rows.jsonl", [{"text": text} for text in texts(12)])
    real, n = batch_module.write_whole, 0

    def failing(path: Path, content: Any) -> Path:
        nonlocal n
        n += path.suffix == ".jsonl"
        if n == 2:
            raise KeyboardInterrupt
        return real(path, content)

    with monkeypatch.context() as broken:
        broken.setattr(batch_module, "write_whole", failing)
        how: dict[str, Any] = dict(settings={}, n_rows=4, workers=1)
        with pytest.raises(KeyboardInterrupt):
            Batch("classify", folders["classify"], rows, tmp_path / "out.jsonl", **how).run()
    assert len(list(tmp_path.glob("out.jsonl.parts/0*.jsonl"))) == 1
    return tmp_path


def test_another_job_under_the_same_name_is_refused(half_done: Path, folders: dict[str, str]) -> None:
    rows, out = half_done / "rows.jsonl", half_done / "out.jsonl"
    other = write(half_done / "other.jsonl", [{"text": "crow"}])
    for changed, says in (
        (dict(file=other), "input"),
        (dict(settings={"cut": True}), "settings"),
        (dict(verb="embed", model=folders["embed"]), "verb and weights of the model"),
        (dict(dtype="bfloat16"), "dtype asked"),
        (dict(weights="int8"), "--weights"),
        (dict(deterministic=True), "deterministic"),
        (dict(n_rows=5), "rows of a shard"),
    ):
        asked: dict[str, Any] = dict(
            verb="classify", model=folders["classify"], file=rows, settings={}, n_rows=4
        )
        asked |= changed
        fix = "give the same command as then, name another --out, or delete that folder to begin anew"
        with pytest.raises(Refused) as refused:
            Batch(asked.pop("verb"), asked.pop("model"), asked.pop("file"), out, **asked).run()
        wrote = f"{out}.parts holds what an unfinished run wrote with other {says}; {fix}"
        assert str(refused.value) == wrote
    told: list[str] = []
    same = Batch("classify", folders["classify"], rows, out, settings={}, n_rows=4, workers=2)
    assert same.run(tell=told.append).n_rows == 12 and told[0] == "going on: 4 of 12 rows are done"
    assert not (half_done / "out.jsonl.parts").exists()


def test_two_at_once_and_a_file_that_changes(half_done: Path, folders: dict[str, str]) -> None:
    rows, out = half_done / "rows.jsonl", half_done / "out.jsonl"
    same = Batch("classify", folders["classify"], rows, out, settings={}, n_rows=4)
    with FileLock(half_done / "out.jsonl.parts" / ".lock"), pytest.raises(Refused, match="another process"):
        same.run()
    os.utime(rows, (1, 1))
    with pytest.raises(Refused, match="it was changed while it was read; give the command again"):
        same.run()
    assert not out.exists() and Batch("classify", folders["classify"], rows, out, settings={}, n_rows=4).run()


def test_a_worker_that_dies_is_told_and_what_is_done_is_kept(folders: dict[str, str], tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"text": text} for text in texts(40)])
    how: dict[str, Any] = dict(settings={}, deterministic=True, n_rows=4)
    killed: list[int] = []

    def kill(_: str) -> None:
        killed.extend(pid for pid in batcher.below(os.getpid()) if "spawn_main" in batcher.command(pid))
        for pid in killed:
            os.kill(pid, signal.SIGKILL)

    out = tmp_path / "out.jsonl"
    with pytest.MonkeyPatch.context() as quick:
        quick.setattr(batch_module, "TELL_EVERY", 0.0)
        with pytest.raises(Refused, match=r"a worker died over rows [\d,]+ and on .*; what is done is kept"):
            Batch("embed", folders["embed"], rows, out, workers=2, **how).run(tell=kill)
    assert killed and list(tmp_path.glob("out.jsonl.parts/0*.jsonl")) and not out.exists()
    Batch("embed", folders["embed"], rows, out, workers=1, **how).run()
    Batch("embed", folders["embed"], rows, tmp_path / "whole.jsonl", workers=1, **how).run()
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_model_that_is_another_one_at_a_worker_is_refused(folders: dict[str, str], tmp_path: Path) -> None:
    from transom.inference.shard import answers

    rows = write(tmp_path / "rows.jsonl", [{"text": "crow"}])
    batch = Batch("embed", folders["embed"], rows, tmp_path / "out.jsonl", settings={})
    for changed, says in (
        (dict(fingerprint="0"), "finds other weights there"),
        (dict(version="0"), "this is 0;"),
    ):
        made = answers(replace(batch.job, **changed), ["crow"])
        assert isinstance(made, Refused) and says in str(made)


def test_rows_that_are_answered_in_one_go_keep_the_separator_of_their_file(tmp_path: Path) -> None:
    file, out = tmp_path / "rows.csv", tmp_path / "out.csv"
    file.write_text("id;text\n1;Hello, you\n2;Bye\n", encoding="utf-8")
    asked = TextInput((), file, "text", out, model="m")
    asked.write([{"completion": "a"}, {"completion": "b"}])
    assert out.read_text(encoding="utf-8") == "id;text;completion\n1;Hello, you;a\n2;Bye;b\n"
