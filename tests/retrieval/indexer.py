"""A program that indexes and dies, for test_index.

    indexer.py points FOLDER    die at the k-th step of the file system, for every k
    indexer.py kills FOLDER N   be killed N times at random moments

What is looked for after each death: every document whole, of one generation, and nothing lost of which it
had been said that it is kept. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from tests.checkpoint.saver import Crash, forked
from transom.retrieval import indexing
from transom.retrieval.folder_store import FolderStore
from transom.retrieval.indexing import index
from transom.retrieval.search import KnowledgeBase

N_FILES, PARTS = 6, 3


def write_documents(docs: Path, generation: int, n: int) -> None:
    """Files of three chunks, each of which names its file and its generation."""
    docs.mkdir(exist_ok=True)
    for i in range(n):
        parts = [f"# Part {part}\n\nmark{i} of{generation} stands here, {part}." for part in range(PARTS)]
        (docs / f"{i}.md").write_text("\n\n".join(parts))


def generations(kb: Path) -> dict[str, int]:
    """The generation of each document of an index, each of which has to be all there."""
    store, found = FolderStore(kb), {}
    base = KnowledgeBase(store, None)
    for name in store.files():
        document = store.document(name)
        assert document is not None
        own = {
            int(word[2:]) for word in document.text.split() if word.startswith("of") and word[2:].isdigit()
        }
        hits = [hit.passage for hit in base.search(f"mark{Path(name).stem}", 50)]
        assert len(own) == 1 and len(hits) == PARTS, (name, own, len(hits))
        assert all(hit.document == name and hit.text in document.text for hit in hits)
        found[name] = own.pop()
    store.close()
    return found


def follow(place: Path, generation: int, n: int, acknowledge: Callable[[str, int], object]) -> None:
    """Write a generation of the documents and index it, one file a batch; tell of every one that is kept."""

    def tell(said: str) -> None:
        acknowledge(said.partition("docs/")[2].partition(".md")[0], generation)

    write_documents(place / "docs", generation, n)
    index([place / "docs"], place / "kb", embedder="none", tell=tell)


def points(place: Path) -> dict[str, object]:
    """Crash at every point of three generations; how many points there were."""
    k = 0
    while True:
        crash = Crash(k)
        write_documents(place / "docs", 1, 2)

        def action(acknowledge: Callable[[str, int], object], crash: Crash = crash) -> None:
            crash.install()
            for generation in (1, 2):
                follow(place, generation, 2, acknowledge)

        code, acknowledged = forked(action)
        assert code in (0, 9), code
        if code == 0:
            assert generations(place / "kb") == {"docs/0.md": 2, "docs/1.md": 2}
            return {"points": k}
        if (place / "kb").exists() or acknowledged:
            found = generations(place / "kb")
            assert all(found[f"docs/{name}.md"] >= of for name, of in acknowledged.items())
        index([place / "docs"], place / "kb", embedder="none")  # and it goes on
        assert len(generations(place / "kb")) == 2
        assert sorted(path.name for path in place.iterdir()) == [".kb.lock", "docs", "kb"]
        shutil.rmtree(place)
        place.mkdir()
        k += 1


def run_on(place: Path, generation: int, writer: int) -> NoReturn:
    """Index one generation after the other, for ever."""
    while True:
        generation += 1
        follow(place, generation, N_FILES, lambda *said: os.write(writer, "{} {}\n".format(*said).encode()))


def kills(place: Path, n: int) -> dict[str, object]:
    """Kill a process that indexes in a loop, at random moments; what it had said, and what was lost."""
    dice, said, lost, generation = random.Random(0), 0, 0, 0
    follow(place, generation, N_FILES, lambda *_: None)
    for _ in range(n):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            run_on(place, generation, writer)
        os.close(writer)
        with open(reader, encoding="ascii") as pipe:  # at any moment of a batch, however fast the machine is
            began = time.monotonic()
            lines = [pipe.readline() for _ in range(dice.randrange(1, 2 * N_FILES))]
            time.sleep(dice.random() * (time.monotonic() - began) / len(lines))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kept = dict(line.split() for line in [*lines, *pipe] if line.endswith("\n"))
        found = generations(place / "kb")
        assert len(found) == N_FILES
        said += len(kept)
        lost += sum(found[f"docs/{name}.md"] < int(of) for name, of in kept.items())
        generation = max(found.values())
    return {"kills": n, "said": said, "lost": lost, "generation": generation}


if __name__ == "__main__":
    mode, place = sys.argv[1], Path(sys.argv[2])
    indexing.EVERY = indexing.COSTS = 0.0
    indexing.AT_ONCE = 1
    place.mkdir(exist_ok=True)
    os.fsync = lambda handle: None
    outcome = points(place) if mode == "points" else kills(place, int(sys.argv[3]))
    print(json.dumps(outcome))
