"""The README: its commands run as they stand, its Python too, and what it links to is there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from transom.__main__ import app, run, spelled_out

ROOT = Path(__file__).parents[1]
SHORTER = {"10min": "2s", "1h": "4s", "3min": "3s", "2min": "2s", "100": "8"}
"""What the README spends, and what the test does."""

HERE = ("runs/notes", "runs/dates", "runs/family", "lab ")
"""Where the commands work that need neither a network nor data of one's own."""
STAY = ("serve", "chat")
"""Verbs that do not end by themselves; tests/server and tests/chat run them."""

README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
RECIPES = (ROOT / "docs" / "fine-tuning.md").read_text(encoding="utf-8")


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.M | re.S)


def commands(page: str = README) -> list[list[str]]:
    """Every `transom ...` of the bash blocks, torchrun's included, without its comment."""
    text = "\n".join(blocks("bash", page)).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [line[line.index("transom") :] for line in lines if "transom" in line]


@pytest.mark.parametrize("command", commands() + commands(GUIDE) + commands(RECIPES), ids=" ".join)
def test_every_command_is_one_that_transom_knows(command: list[str]) -> None:
    app.parse_args(spelled_out(command[1:]), exit_on_error=False, print_error=False)


def test_every_make_target_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = re.findall(r"\bmake (\w+)", README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_every_link_leads_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target, place in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", page.read_text(encoding="utf-8")):
            there = page.parent / target if target else page
            assert there.exists() and (not place or place in anchors(there)), f"{page.name}: {target}#{place}"


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands ran, as written but for a few seconds where the README says minutes."""
    folder = tmp_path_factory.mktemp("readme")
    notes = folder / "notes"
    notes.mkdir()
    for number in range(30):
        (notes / f"{number}.md").write_text(f"Once upon a time there were {number} cats on a mat.\n" * 40)
    with pytest.MonkeyPatch.context() as here:
        here.chdir(folder)
        here.setenv("HF_HUB_OFFLINE", "1")
        for command in commands():
            if command[1] in STAY or "1h" in command:  # more time for a run: training/test_more_time
                continue
            if any(place in " ".join(command) for place in HERE) or command[1] == "plan":
                assert run([SHORTER.get(word, word) for word in command[1:]]) == 0
    return folder


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("block", "shown"), [(0, "Once upon a time"), (2, "torch.Size"), (3, "torch.Size")], ids=str
)
def test_the_commands_and_the_python_run(ran: Path, block: int, shown: str) -> None:
    """As written, on the runs that the commands left."""
    code = blocks("python")[block]
    if block == 3:
        code = re.sub("10min|50", lambda found: SHORTER.get(found[0], "5"), code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ran, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
