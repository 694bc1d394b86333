"""docs/map.md names every file of the package and no other, and no room is over its budget of lines."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_map_and_the_tree_agree() -> None:
    page = (ROOT / "docs" / "map.md").read_text(encoding="utf-8")
    sections = re.split(r"^### ", page.partition("## Every file")[2], flags=re.M)[1:]
    on_the_map = set()
    for section in sections:
        room = re.match(r"`(\w+/)`", section)
        on_the_map |= {
            (room[1] if room else "") + name for name in re.findall(r"^\| `(\w+\.py)`", section, re.M)
        }
    package = ROOT / "transom"
    in_the_tree = {str(path.relative_to(package)) for path in package.rglob("*.py")}
    rooms = {f"{room}/__init__.py" for room in {name.split("/")[0] for name in in_the_tree if "/" in name}}
    assert on_the_map == in_the_tree - rooms


def test_paths_in_the_text_are_there() -> None:
    page = (ROOT / "docs" / "map.md").read_text(encoding="utf-8")
    for name in re.findall(r"`(\w+/\w+\.py)`", page):
        assert (ROOT / "transom" / name).is_file(), name


def test_the_page_keeps_to_its_budget() -> None:
    text = (ROOT / "docs" / "map.md").read_text(encoding="utf-8")
    files = [path for path in (ROOT / "transom" / "server" / "page").iterdir() if path.is_file()]
    n_lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
    found = re.search(r"^\| the page \| ([\d,]+) \|$", text, re.M)
    assert found and n_lines <= int(found[1].replace(",", "")), n_lines


def test_rooms_keep_to_their_budgets() -> None:
    page = (ROOT / "docs" / "map.md").read_text(encoding="utf-8").partition("\n## Lines\n")[2]
    table = re.findall(r"^\| (?:`(\w+)/`|(the ground|all)) \| ([\d,]+) \|$", page.partition("\n## ")[0], re.M)
    budgets = {room or name: int(most.replace(",", "")) for room, name, most in table}
    package = ROOT / "transom"
    lines = dict.fromkeys(budgets, 0)
    for path in (path for suffix in ("py", "h", "cpp") for path in package.rglob(f"*.{suffix}")):
        parts = path.relative_to(package).parts
        n_lines = len(path.read_text(encoding="utf-8").splitlines())
        lines[parts[0] if len(parts) > 1 else "the ground"] += n_lines
        lines["all"] += n_lines
    over = {room: f"{lines[room]:,} of {most:,}" for room, most in budgets.items() if lines[room] > most}
    assert not over, f"over the budget of docs/map.md: {over}"
