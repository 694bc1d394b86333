"""What every store has to do alike: a folder, and a real PostgreSQL with pgvector."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.scale import scaled
from transom.errors import Refused
from transom.retrieval.ask import ask
from transom.retrieval.chunks import Chunk
from transom.retrieval.indexing import index
from transom.retrieval.migrate import migrate
from transom.retrieval.places import create_store, exists, open_store, shown, writing
from transom.retrieval.search import KnowledgeBase, terms
from transom.retrieval.store import Changes, Document, File, Indexed, Passage, Store

HERE = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
DIM = 8
TEXTS = {
    "plain.txt": ("text", "Ünï says:\r\nthe boiler stands in the cellar. The boilers are serviced.\r\n"),
    "guide.md": ("markdown", "# Guide\n\n## Alarm\n\nThe alarm code is 4711. Nobody runs.\n\n## Running\n\nA"
                 " runner was running; is_dir and dir.is are two things."),
    "pages.pdf": ("pdf", "The pump is red.\f\fThe valve is blue, the boiler's too; the valve of the boiler."),
    "hindi.txt": ("text", "नमस्ते दुनिया। café CAFÉ cafe\u0301 naïve, 世界 and 42 boilers. 锅炉由王师傅维修。"),
}  # fmt: skip
QUESTIONS = (
    *(
        "boiler",
        "where is the alarm code",
        "valve of the boiler",
        "is_dir",
        "runs",
        "cafe",
        "दुनिया",
        "世界",
        "锅炉由谁维修",
        "42",
    ),
    *("4711 or red", "unknown", "dir is", "NAÏVE boiler boilers", "' OR 1=1 --", "a\x00b", "%s %(k)s"),
)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a database of its own."""
    pytest.importorskip("psycopg")
    pgserver = pytest.importorskip("pgserver")
    server = pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(params=["folder", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for a new store of each kind."""
    if request.param == "folder":
        return str(tmp_path / "kb")
    return elsewhere(request.getfixturevalue("database"), tmp_path)


def elsewhere(database: str, tmp_path: Path) -> str:
    return f"{database}#{tmp_path.name}"


def cut(text: str, n: int = 2) -> list[Chunk]:
    """A text in n chunks."""
    at = [len(text) * i // n for i in range(n + 1)]
    return [Chunk(at[i], at[i + 1], f"Part {i}") for i in range(n)]


def file_of(name: str, kind: str, text: str, labels: tuple[str, ...] = (), vectors: bool = True) -> Any:
    """A file of one document, as `write` takes it; its vectors follow from its name."""
    own = cut(text)
    rng = np.random.default_rng(sum(name.encode()))
    made = rng.standard_normal((len(own), DIM)).astype(np.float32) if vectors else None
    document = Document(name, name, text, kind, name.title(), labels)
    return File(name, "/docs", f"sha of {name}"), [Indexed(document, own, made)]


def filled(place: str) -> Store:
    store = create_store(place, {"name": "tiny", "sha256": "0", "dim": DIM})
    store.write(Changes(added=[file_of(name, *one) for name, one in TEXTS.items()]))
    store.write(
        Changes(added=[file_of("secret.txt", "text", "The boiler's secret is out.", ("hr", "board"))])
    )
    return store


def found(store: Store, labels: Any = None) -> tuple[list[list[Passage]], Any]:
    """What is found by words and by vectors for every question, and the scores, to be held within 1e-5."""
    vector = np.random.default_rng(0).standard_normal(DIM).astype(np.float32)
    hits = [store.lexical(terms(question), 20, labels) for question in QUESTIONS]
    hits.append(store.dense(vector, 20, labels))
    scores = [score for some in hits for _, score in some]
    return [store.fetch([id for id, _ in some]) for some in hits], pytest.approx(scores, abs=1e-5)


def same(one: Any, other: Any) -> bool:
    return one[0] == other[0] and one[1].expected == other[1]


def test_it_keeps_what_it_was_given(place: str) -> None:
    store = filled(place)
    for name, (kind, text) in TEXTS.items():
        assert store.document(name) == Document(name, name, text, kind, name.title())
        file, documents = file_of(name, kind, text)
        assert store.files()[name] == File(file.name, file.root, file.sha256, 2)
        [kept] = store.indexed(name)
        assert (kept.document, list(kept.chunks)) == (documents[0].document, list(documents[0].chunks))
        assert kept.vectors is not None and documents[0].vectors is not None
        assert kept.vectors.tolist() == documents[0].vectors.astype(np.float16).tolist()
    stats = store.stats
    assert (stats.n_documents, stats.n_chunks, stats.labels) == (5, 10, {"board": 1, "hr": 1})
    assert stats.n_bytes > 1000 and store.info["embedder"]["name"] == "tiny" and store.calibration is None
    assert [*store.files()] == [*TEXTS, "secret.txt"]


def test_a_database_finds_what_a_folder_finds(database: str, tmp_path: Path) -> None:
    folder, tables = filled(str(tmp_path / "kb")), filled(elsewhere(database, tmp_path))
    for labels in (None, [], ["hr"], ["nobody", "board"]):
        assert same(found(folder, labels), found(tables, labels))
    for store in (folder, tables):  # what is taken out no longer counts in the weights of the words
        store.write(
            Changes(removed=["plain.txt"], added=[file_of("guide.md", "text", "A guide to boilers.")])
        )
    assert same(found(folder), found(tables)) and len(found(folder)[0][0]) > 3
    assert "secret" not in str(found(tables, []))


WRITING = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=2)


@settings(max_examples=scaled(30), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(WRITING, min_size=1, max_size=4), data=st.data())
def test_any_text_is_found_alike(texts: list[str], data: st.DataObject, database: str,
                                 tmp_path_factory: pytest.TempPathFactory) -> None:  # fmt: skip
    place = tmp_path_factory.mktemp("any")
    stores = [create_store(where, None) for where in (str(place / "kb"), elsewhere(database, place))]
    files = [file_of(f"{i}.txt", "text", text, vectors=False) for i, text in enumerate(texts)]
    at = data.draw(st.integers(0, len(texts) - 1))
    question = data.draw(st.one_of(st.just(texts[at]), st.text(min_size=1)))
    results = []
    for store in stores:
        store.write(Changes(added=files))
        hits = store.lexical(terms(question), 50)
        results.append((store.fetch([id for id, _ in hits]), [round(score, 5) for _, score in hits]))
        store.close()
    assert sorted(map(str, results[0][0])) == sorted(map(str, results[1][0]))
    assert results[0][1] == results[1][1]


def test_what_is_open_keeps_its_generation(place: str) -> None:
    writer = filled(place)
    reader = open_store(place)
    before = found(reader)
    writer.write(Changes(removed=["guide.md"], calibration={"threshold": 0.7, "promise": "few"}))
    assert same(found(reader), before) and not reader.is_current and writer.is_current
    assert reader.document("guide.md") is not None and reader.calibration is None
    newer = open_store(place)
    assert newer.document("guide.md") is None and newer.calibration == {"threshold": 0.7, "promise": "few"}
    newer.write(Changes(removed=["pages.pdf"], calibration={"threshold": 0.8, "promise": "fewer"}))
    both = open_store(place)  # what is changed together is of one generation
    assert both.calibration == {"threshold": 0.8, "promise": "fewer"} and "pages.pdf" not in both.files()
    both.write(Changes(removed=["hindi.txt"]))
    assert open_store(place).calibration == {"threshold": 0.8, "promise": "fewer"}
    with pytest.raises(Refused, match="another process wrote to it meanwhile"):
        reader.write(Changes(removed=["plain.txt"]))
    assert open_store(place).document("plain.txt") is not None


def test_a_write_that_fails_leaves_everything_as_it_was(place: str) -> None:
    store = filled(place)
    before = found(store)
    twice = [file_of("new.txt", "text", "Something new."), file_of("new.txt", "text", "Something new.")]
    twice[1] = (File("other.txt", "/docs", "x"), twice[1][1])  # one name, two files
    with pytest.raises(Exception, match=r"(?i)unique"):
        store.write(Changes(removed=["plain.txt"], added=twice))
    assert same(found(open_store(place)), before)
    store.write(Changes(removed=["plain.txt"]))  # and goes on


WRITER = """
import sys
from transom.retrieval.places import open_store
from transom.retrieval.store import Changes
from tests.retrieval.test_stores import file_of
store = open_store(sys.argv[1])
for i in range(1000):
    store.write(Changes(added=[file_of(f"{i}.txt", "text", f"mark{i} one. " * 50 + f"mark{i} two.")]))
    print(i, flush=True)
"""


@pytest.mark.parametrize(
    "wait", [0.0, *(pytest.param(w, marks=pytest.mark.heavy) for w in (0.004, 0.013, 0.031))]
)
def test_a_killed_writer_leaves_whole_files(place: str, wait: float) -> None:
    create_store(place, {"name": "tiny", "sha256": "0", "dim": DIM}).close()
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, place], stdout=subprocess.PIPE, text=True, env=HERE
    )
    assert process.stdout is not None
    for _ in range(4):
        line = process.stdout.readline()
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    said = [line, *process.communicate()[0].splitlines()]
    store = open_store(place)
    names = [*store.files()]
    assert len(names) >= int(said[-1]) + 1 and names == [f"{i}.txt" for i in range(len(names))]
    for name in names:
        document = store.document(name)
        assert (
            document is not None
            and document.text.endswith("two.")
            and len(store.indexed(name)[0].chunks) == 2
        )
    with writing(place):  # the dead one holds no lock
        store.write(Changes(removed=names[:1]))


def test_only_one_writes(place: str) -> None:
    filled(place)
    with writing(place), pytest.raises(Refused, match="another process is writing to it"), writing(place):
        pass
    with writing(place):
        pass


def test_an_answer_is_cited_alike_and_back_again(database: str, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for name, (kind, text) in TEXTS.items():
        (docs / name.replace(".pdf", ".txt2")).write_bytes(text.replace("\f", "\n").encode())
        assert kind
    (docs / "more.md").write_bytes(
        "# Leave\r\n\r\nEverybody has 25 days of leave. Ask Zoë first.\r\n".encode()
    )
    first, tables, back = str(tmp_path / "kb"), elsewhere(database, tmp_path), str(tmp_path / "back")
    index([docs], first, labels=["staff"])
    moved = migrate(first, tables)
    assert (moved.n_documents, moved.n_files) == (5, 5) and "holds what" in str(moved)
    migrate(tables, back)
    told = []
    for one in (first, tables, back):
        base = KnowledgeBase.open(one)
        answers = [ask(base, question, labels=["staff"]).to_dict()
                   for question in ("How many days of leave?", "Where's the boiler?", "Who?")]  # fmt: skip
        said = json.dumps(answers, sort_keys=True).replace(base.name, "KB")
        told.append(json.loads(said, parse_float=lambda _: None))  # scores differ in the last digit
    assert told[0] == told[1] == told[2] and "25 days" in str(told[0])
    assert index([docs], tables).n_documents == 5  # what came from elsewhere is followed like one's own
    assert {one.status for one in index([docs], tables, labels=["staff"]).outcomes} >= {"read"}


def test_a_migration_goes_on_and_refuses_what_is_other(place: str, tmp_path: Path) -> None:
    source = filled(str(tmp_path / "source"))
    target = create_store(place, source.info["embedder"])
    [name, *_] = source.files()
    target.write(Changes(added=[(source.files()[name], source.indexed(name))]))
    target.close()
    assert migrate(source.place, place).n_chunks == 10
    assert migrate(source.place, place).n_files == 5  # again: nothing to do
    source.write(Changes(removed=["guide.md"]))
    with pytest.raises(Refused, match=r"holds guide\.md, which .* does not hold so"):
        migrate(source.place, place)
    bare = create_store(str(tmp_path / "bare"), None)
    with pytest.raises(Refused, match="made with another encoder"):
        migrate(bare.place, place)


def test_where_there_is_none(place: str) -> None:
    assert not exists(place)
    with pytest.raises(Refused, match="no such knowledge base"):
        open_store(place)
    filled(place)
    assert exists(place)


def test_an_address_that_does_not_answer_is_one_line_without_its_password(
    database: str, tmp_path: Path
) -> None:
    with pytest.raises(Refused) as refused:
        open_store("postgresql://eva:secret@127.0.0.1:1/docs#kb")
    said = str(refused.value)
    assert (
        "secret" not in said
        and said.startswith("postgresql://eva@127.0.0.1:1/docs#kb: ")
        and "\n" not in said
    )
    assert (
        shown("postgresql://eva:secret@host:5/docs?sslmode=require") == "postgresql://eva@host:5/docs#transom"
    )
    import psycopg

    with psycopg.connect(database, autocommit=True) as other:
        other.execute(f'CREATE SCHEMA "{tmp_path.name}"')
    with pytest.raises(Refused, match="the schema is there and is no knowledge base"):
        create_store(elsewhere(database, tmp_path), None)


def test_a_lost_connection_is_said_and_then_made_anew(database: str, tmp_path: Path) -> None:
    import psycopg

    filled(elsewhere(database, tmp_path)).close()
    base = KnowledgeBase(open_store(elsewhere(database, tmp_path)), None)
    with psycopg.connect(database, autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid != pg_backend_pid()"
            " AND backend_type = 'client backend'"
        )
    with pytest.raises(Refused, match="terminating connection"):
        base.search("boiler")
    assert base.current().search("boiler")
