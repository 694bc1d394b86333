"""The check before anything is spent: what it counts, what it says, what it costs."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from transom.data import check as checking
from transom.data import duplicates
from transom.data.check import Progress, check, survey
from transom.data.duplicates import Duplicates
from transom.data.sources import open_source
from transom.errors import Refused

Written = Callable[[str, bytes | str], Path]


def words(seed: int, n: int = 200) -> str:
    numbers = random.Random(seed)
    return " ".join("".join(numbers.choices("abcdefghij", k=numbers.randint(2, 9))) for _ in range(n))


def test_it_counts(written: Written) -> None:
    written("d/a.txt", "\ufeffone\r\ntwo\r\n" + "é" * 50 + "\n")
    written("d/b.txt", "copy " * 30)
    written("d/c.txt", "copy " * 30)
    written("d/e.txt", "")
    root = written("d/p.png", "x").parent
    report = check(open_source(root))
    assert (report.n_documents, report.n_empty, report.n_exact_duplicates) == (3, 1, 1)
    assert report.n_bytes == 111 + 300 and report.n_characters == 61 + 300
    assert (report.n_bom, report.n_crlf, report.longest_line) == (1, 2, 150)
    assert report.longest_line_at.endswith("b.txt") and report.left_out == {"binary files": 1}
    assert not report.faults
    text = str(report)
    for part in ("361 characters in 3 documents", "1 documents occur more than once", "none: valid UTF-8"):
        assert part in text
    assert "2 end in CR LF" in text and "nothing: long text runs on" in text
    json.dumps(report.to_dict())


def test_it_says_what_was_mended(written: Written) -> None:
    path = written("a.txt", b"ok\n" * 500 + b"caf\xe9\n")
    report = check(open_source(path, on_error="replace"))
    assert report.n_replaced == 1
    assert f"bad UTF-8 1 time (first at {path}:501): 1 character replaced" in str(report)
    report = check(open_source(path, on_error="skip"))
    assert report.n_skipped_bytes == 5 and "5 bytes skipped" in str(report)
    with pytest.raises(Refused, match=r"would be skipped, the limit is 1%"):
        check(open_source(written("b.txt", b"ok\ncaf\xe9\n"), on_error="skip"))


def test_nothing_to_read_is_refused(written: Written) -> None:
    with pytest.raises(Refused, match=r"there is no text in it \(1 empty\)"):
        check(open_source(written("a.txt", b"\xef\xbb\xbf")))
    with pytest.raises(Refused, match="there is no text in it"):
        check(open_source(written("a.jsonl", b"\n\n")))


@pytest.mark.parametrize("chunk", [3, 64, 1 << 19])
def test_lines_and_crlf_across_chunks(written: Written, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr("transom.data.textfile.CHUNK_BYTES", chunk)
    monkeypatch.setattr("transom.data.documents.PART_CHARACTERS", max(chunk // 2, 2))
    report = check(open_source(written("a.txt", "ab\r\n" * 40 + "x" * 99 + "\r\n\r\n" + "y" * 7)))
    assert (report.n_crlf, report.longest_line) == (42, 100)


def test_the_data_hash_knows_text_and_boundaries(written: Written) -> None:
    def data_hash(*texts: str) -> str:
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        return survey(open_source(written("h.jsonl", lines))).data_hash

    one = data_hash("ab", "c")
    assert one == data_hash("ab", "c")
    assert len({one, data_hash("a", "bc"), data_hash("abc"), data_hash("c", "ab")}) == 4
    written("f/1.txt", "ab")
    path = written("f/2.md", b"\xef\xbb\xbfc")
    assert survey(open_source(path.parent)).data_hash == one, "whatever the files are called"


def test_near_duplicates_are_found_and_others_are_not() -> None:
    texts = [words(seed) for seed in range(60)]
    texts += [text.replace(" a", " b", 1) + " end" for text in texts[:10]]  # nearly the same
    texts += [texts[3].upper().replace(" ", "\n")]  # case and line breaks do not count
    texts += [texts[5], "short", "short"]  # exactly the same
    gathered = Duplicates()
    for text in texts:
        gathered.add(hash(text) & (1 << 64) - 1, text.encode())
    groups, n_near = gathered.groups()
    assert n_near == 11 and gathered.n_exact == 2
    assert groups[60:70].tolist() == groups[:10].tolist()
    assert groups[70] == groups[3] and groups[71] == groups[5] and groups[72] == groups[73]
    assert len(np.unique(groups[:60])) == 60


def test_near_duplicates_are_bounded_and_the_report_says_so(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "COMPARED_DOCUMENTS", 5)
    lines = "".join(json.dumps({"text": words(seed)}) + "\n" for seed in range(9))
    report = check(open_source(written("a.jsonl", lines)))
    assert report.n_compared == 5 and "of 5 documents compared" in str(report)


def test_progress_ends_at_the_whole(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking.time, "perf_counter", iter(range(10**6)).__next__)
    seen: list[Progress] = []
    check(open_source(written("a.txt", "line of text\n" * 100_000)), on_progress=seen.append)
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert seen[-1].done == seen[-1].total == 1_300_000 and seen[0].total == 1_300_000
    assert all(p.stage == "check" and p.mb_per_s > 0 for p in seen)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_line_of_100_mb_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    with open(path, "wb") as file:
        for _ in range(100):
            file.write(b"abcdefg " * 125_000)
    code = (
        "import sys; from transom.data.check import check; from transom.data.sources import open_source;"
        "report = check(open_source(sys.argv[1])); print(report);"
        "peak = [row for row in open('/proc/self/status') if row.startswith('VmHWM')][0].split()[1];"
        "print(report.longest_line, int(peak) // 1024)"
    )
    root = str(Path(__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, cwd=root
    )
    longest, megabytes = map(int, run.stdout.splitlines()[-1].split())
    assert longest == 100_000_000 and megabytes < 200
    assert "unusually long, is it text?" in run.stdout


def test_real_text(shared_data: Path) -> None:
    report = check(open_source(shared_data / "bbq" / "Age.jsonl", field="context"))
    assert report.n_documents == 3680 and report.n_exact_duplicates == 1840
    report = check(open_source(shared_data / "tinyshakespeare" / "input.txt"))
    assert report.n_characters == report.n_bytes == 1_115_394
