"""What the benchmarks take from the package is there: most of them need libraries that no test installs."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

HOME = Path(__file__).parents[1] / "benchmarks"


def there(place: str, name: str) -> bool:
    held = importlib.import_module(place)
    inside = hasattr(held, "__path__") and importlib.util.find_spec(f"{place}.{name}")
    return hasattr(held, name) or bool(inside)


@pytest.mark.parametrize("path", sorted(HOME.glob("*.py")), ids=lambda path: path.stem)
def test_every_name_that_a_benchmark_imports_of_ours_is_there(path: Path) -> None:
    imports = [
        (statement.module, alias.name)
        for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(statement, ast.ImportFrom) and statement.module and not statement.level
        for alias in statement.names
    ]
    ours = [(place, name) for place, name in imports if place.split(".")[0] in ("transom", "tests")]
    assert not [f"{place}.{name}" for place, name in ours if not there(place, name)]
