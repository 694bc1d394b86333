"""Text that is always at hand: the standard library that this Python carries, its source code and its prose.

About ten megabytes of readable code, in sorted order, without tests, bundled packages and generated tables.
It differs between Python versions, so its data hash does too. Read next: sources.
"""

from __future__ import annotations

import ast
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from transom.errors import Refused

STDLIB = "stdlib"

_SHORTEST_PROSE = 200

# Not the library itself: tests, other people's packages, demos, and tables written by machines.
_LEFT_OUT = frozenset(
    re.findall(
        r"\S+",
        "__phello__ __pycache__ config dist-packages encodings ensurepip idle_test idlelib lib-dynload "
        "lib2to3 pydoc_data site-packages test tests turtledemo",
    )
)


def stdlib_files() -> tuple[Path, list[Path]]:
    """The folder of the standard library and its sources in sorted order; Refused where there are none."""
    root = Path(sysconfig.get_path("stdlib"))
    files: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT and "-" not in name)
        # _sysconfigdata_*.py records how this one machine was built.
        sources = [name for name in names if name.endswith(".py") and not name.startswith("_sysconfigdata")]
        files += [Path(folder, name) for name in sources]
    if not files:
        raise Refused(
            f"this Python carries no source of its standard library in {root}; name a text file or folder"
        )
    return root, sorted(files, key=lambda path: path.relative_to(root).as_posix())


def stdlib_prose(n_characters: int) -> Iterator[tuple[str, str]]:
    """(text, module) of what every fourth module says of itself at its head, until there are so many
    characters: English about code, which most language models have read.
    """
    root, files = stdlib_files()
    for path in files[::4]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old spellings in the library are not ours to report
            text = ast.get_docstring(ast.parse(path.read_bytes())) or ""
        if len(text) >= _SHORTEST_PROSE and n_characters > 0:
            n_characters -= len(text)
            yield text, f"{STDLIB}/{path.relative_to(root).as_posix()}"
