"""Count what there is to read: the path of a token through the model, and the lines of every room.

A plain GPT reads a row on the `meta` device, where nothing is computed and no device's own kernels are
chosen; every function of the package that runs on the way from ids to the attention kernel and back is
counted whole, by its statements: no signature, docstring, comment or blank line.
"""

from __future__ import annotations

import ast
import sys
import tokenize
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch

import transom
from transom.model.build import build
from transom.model.config import ModelConfig

PACKAGE = Path(transom.__file__).parent
GPT = ModelConfig(
    vocab_size=64, dim=32, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=8, ffn_dim=64, max_len=16
)


class Function(NamedTuple):
    """A function on the path: where it stands, and the lines of its statements."""

    file: str
    name: str
    n_lines: int


def path_of_a_token() -> list[Function]:
    """The functions that turn token ids into hidden states, in the order in which they first run."""
    with torch.device("meta"):
        model, tokens = build(GPT).eval(), torch.zeros(1, 8, dtype=torch.int64)
    ran: dict[CodeType, None] = {}

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and Path(frame.f_code.co_filename).is_relative_to(PACKAGE):
            ran[frame.f_code] = None

    with torch.no_grad():
        sys.setprofile(note)
        try:
            model(tokens)
        finally:
            sys.setprofile(None)
    found = []
    for code in ran:
        if not code.co_name.startswith("<"):  # a comprehension counts with the function that holds it
            file = Path(code.co_filename)
            found.append(
                Function(str(file.relative_to(PACKAGE)), code.co_qualname, len(_statements(file, code)))
            )
    return found


def _statements(file: Path, code: CodeType) -> set[int]:
    """The numbers of the lines that the statements of a function stand on."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            if first == code.co_firstlineno:
                body = node.body[ast.get_docstring(node) is not None :]
                within = {n for one in body for n in range(one.lineno, (one.end_lineno or one.lineno) + 1)}
                return within & _code_lines(file)
    raise LookupError(f"{file}: no function {code.co_name} at line {code.co_firstlineno}")


def _code_lines(file: Path) -> set[int]:
    """The numbers of the lines with anything on them but a comment."""
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    with file.open("rb") as stream:
        tokens = [t for t in tokenize.tokenize(stream.readline) if t.type not in skip and t.string]
    return {n for token in tokens for n in range(token.start[0], token.end[0] + 1)}


def lines_by_room() -> Counter[str]:
    """The lines of Python of each room; files beside the rooms count as the room `.`."""
    rooms = Counter[str]()
    for file in PACKAGE.rglob("*.py"):
        rooms[str(file.relative_to(PACKAGE).parent).split("/")[0]] += len(file.read_text().splitlines())
    return rooms


def main(options: list[str]) -> None:
    """Print the path, function by function, and the rooms."""
    path = path_of_a_token()
    for one in path:
        print(f"{one.n_lines:6} {one.file:26} {one.name}")
    print(f"{sum(one.n_lines for one in path):6} lines in {len({one.file for one in path})} files:"
          " from token ids through the attention kernel to hidden states")  # fmt: skip
    rooms = lines_by_room()
    for room, n_lines in rooms.most_common():
        print(f"{n_lines:6} {room}")
    print(f"{rooms.total():6} lines of Python in {PACKAGE.name}")
