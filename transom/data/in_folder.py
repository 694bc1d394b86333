"""A file of a model folder, as it may be read: no link leads out of the folder, and text is UTF-8.

A folder comes from anywhere, and what is read of it may be shown to others. Read next: tokenizer_files.
"""

from __future__ import annotations

from pathlib import Path

from transom.data.documents import printable
from transom.errors import Refused


def inside(folder: Path, name: str) -> Path:
    """`folder/name`, which must not lead out of the folder; the hub's cache may link to its own blobs.

    name: a plain one, or one with a folder below in front, both chosen by us.
    """
    path, home = folder / name, folder.resolve()
    real = path.resolve()
    blobs = home.parents[1] / "blobs" if home.parent.name == "snapshots" else home
    if real.parent not in ((home / name).parent, blobs):
        raise Refused(f"{path}: leads out of the folder, to {real}; copy the file into the folder")
    return path


def read_text(folder: Path, name: str, most: int, too_long: str) -> str | None:
    """The text of a file, or None where there is none. `too_long`: what is said of more than `most` bytes.

    Raises Refused for a link out of the folder, for more bytes, and for bytes that are not UTF-8.
    """
    path = inside(folder, name)
    if not path.is_file():
        return None
    where = printable(path)
    try:
        if path.stat().st_size > most:
            raise Refused(f"{where}: {too_long}")
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise Refused(
            f"{where}: byte {error.start} is not UTF-8; the file is damaged, or of an old encoding"
        ) from None
    except OSError as error:
        raise Refused(f"{where}: cannot be read ({error.strerror})") from None
