"""Text that is always at hand: the source code of the standard library that this Python carries.

About ten megabytes of readable code, in sorted order, without tests, bundled packages and generated tables.
It differs between Python versions, so its data hash does too. Read next: sources.
"""

from __future__ import annotations

import os
import re
import sysconfig
from pathlib import Path

from transom.errors import Refused

STDLIB = "stdlib"

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
