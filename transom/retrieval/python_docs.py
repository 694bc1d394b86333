"""What Python's standard library says of itself, as documents that are always at hand: its docstrings.

A module is a document: each public class and function a heading with its signature, and what it says below.
Read next: documents.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path

from transom.data.samples import stdlib_files

NAME = "python"
"""What citations call it."""
SHORTEST = 40
"""Characters of a docstring below which it says no more than its name."""


def files() -> list[tuple[str, Path]]:
    """The public modules by the names of their documents: `python/json/decoder.py`."""
    root, paths = stdlib_files()
    named = [(path.relative_to(root).as_posix(), path) for path in paths]
    return [
        (f"{NAME}/{name}", path) for name, path in named if "/_" not in f"/{name}".replace("/__init__", "")
    ]


def text_of(path: Path, name: str) -> str:
    """The docstrings of a module in the order of its source; "" where it has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old spellings in the library are not ours to report
        tree = ast.parse(path.read_bytes())
    module = name.removeprefix(f"{NAME}/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    said = list(_said(tree, module, 1))
    return "\n\n".join(said) if any(not one.startswith("#") for one in said) else ""


def _said(node: ast.AST, name: str, level: int) -> Iterator[str]:
    doc = ast.get_docstring(node) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) else None
    if level == 1 or (doc and len(doc) >= SHORTEST):
        yield f"{'#' * level} {name}{_arguments(node)}"
        if doc:
            yield doc
    for inner in getattr(node, "body", ()):
        if (
            isinstance(inner, (ast.ClassDef, ast.FunctionDef))
            and not inner.name.startswith("_")
            and level < 4
        ):
            yield from _said(inner, f"{name}.{inner.name}", level + 1)


def _arguments(node: ast.AST) -> str:
    if not isinstance(node, ast.FunctionDef):
        return ""
    return f"({ast.unparse(node.args)})"
