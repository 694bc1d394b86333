"""What a verb leaves: files, asked about before the work and written whole or not at all; and terminal text.

Where a file cannot be written is known before an hour is spent on what was to stand in it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import Refused, nearest_path


def writable(path: str | os.PathLike[str], option: str = "--out") -> Path:
    """The path of a file to be written, which `option` names.

    Raises Refused where there can be none, before any work is done.
    """
    path = Path(path)
    name, folder = _shown(path), path.parent
    if path.is_dir():
        raise Refused(f"{name} is a folder; {option} names a file")
    if not folder.is_dir():
        fix = f"{option} names a file in a folder that exists{nearest_path(folder, Path.is_dir)}"
        raise Refused(f"{name}: there is no folder {_shown(folder)}; {fix}")
    if not os.access(folder, os.W_OK):
        raise Refused(f"{name}: no permission to write in {_shown(folder)}")
    return path


def unused(name: str) -> Path:
    """A file of this name, or of the next one that nothing has: look.html, look-2.html, look-3.html."""
    path, n = Path(name), 1
    while path.exists():
        n += 1
        path = Path(name).with_stem(f"{Path(name).stem}-{n}")
    return path


@contextmanager
def whole_file(path: str | os.PathLike[str], option: str = "--out") -> Iterator[Path]:
    """Give a hidden file beside `path` to write; when the block ends without error it becomes `path`.

    Raises Refused where it cannot be written; then, and after an error, what was there before stays.
    """
    path = writable(path, option)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise Refused(f"{_shown(path)}: cannot be written ({error.strerror or error})") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike[str], content: str | bytes, option: str = "--out") -> Path:
    """Write a file so that there is either all of it or what was there before. Raises Refused if it fails."""
    with whole_file(path, option) as temporary:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Path(path)


def for_terminal(text: str) -> str:
    """A text for stdout: what a model writes must not steer a terminal, but a file gets it as it is."""
    if not sys.stdout.isatty():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _shown(path: Path) -> str:
    """A name that can be printed, whatever bytes it is made of."""
    return ascii(str(path))[1:-1] if not str(path).isprintable() else str(path)
