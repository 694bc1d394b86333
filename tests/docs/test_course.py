"""The notebooks of docs/course run as they stand, and what is committed is what a reader should have."""

from __future__ import annotations

import json
import os
import re
import resource
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COURSE = Path(__file__).parents[2] / "docs" / "course"
NOTEBOOKS = sorted(COURSE.glob("*.ipynb"))
SECONDS = 360
"""Of a processor, what a whole notebook may take; a machine that is busy or paused is no fault of it.
One took 181 on the slowest machine tried (float32 at 75 GFLOP/s a core)."""
LARGEST = 250_000
"""Bytes of a committed notebook."""
OF_A_MACHINE = re.compile(
    r"(?<![\w.])/(?:home|root|tmp|Users|work|usr|opt|var|mnt|private)/[\w.]|[A-Z]:\\\\Users"
)
"""A path that is somebody's own."""

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.heavy
@each
def test_it_runs_from_top_to_bottom(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    nbclient.NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < SECONDS
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", ()):
            assert output.get("name") != "stderr", f"cell {number} says on stderr: {output['text']}"


@each
def test_what_is_committed_was_run_and_is_nobodys_own(path: Path) -> None:
    notebook, text = read(path), path.read_text(encoding="utf-8")
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), "run it in one go"
    assert any(cell["outputs"] for cell in cells)
    for number, cell in enumerate(notebook["cells"]):
        assert "execution" not in cell["metadata"], f"cell {number} says when it ran"
        for output in cell.get("outputs", ()):
            assert output["output_type"] != "error" and output.get("name") != "stderr", f"cell {number}"
    assert path.stat().st_size <= LARGEST
    assert set(notebook["metadata"].get("kernelspec", {"name": "python3"})["name"].split()) == {"python3"}
    name = os.uname().nodename  # one such as `build` may stand in any text
    named = re.search(rf"\b{re.escape(name)}\b", text) if re.search(r"[\d-]", name) else None
    found = OF_A_MACHINE.search(text) or named
    assert not found, f"of one machine: {text[max(0, found.start() - 40) : found.end() + 40]!r}"


@each
def test_its_links_lead_somewhere(path: Path) -> None:
    words = "\n".join("".join(c["source"]) for c in read(path)["cells"] if c["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^)\s]+)\)", words)
    assert links
    for link in links:
        parts = urlsplit(link)
        if not parts.scheme:
            there = path.parent / unquote(parts.path) if parts.path else path
            assert there.exists(), link
            assert not parts.fragment or parts.fragment in anchors(there), link


def anchors(page: Path) -> set[str]:
    """What a code host calls the headings of a page or a notebook."""
    cells = read(page)["cells"] if page.suffix == ".ipynb" else []
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    text = text or page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_index_names_every_notebook() -> None:
    index = (COURSE / "README.md").read_text(encoding="utf-8")
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        assert f"]({path.name})" in index, path.name
