"""JSON from outside, read strictly: one object, UTF-8, no key twice, no NaN, not endless, not endlessly deep.

Python's own parser takes the last of two equal keys and reads NaN; a file that means two things to two
readers is how hostile folders get past a check. Read next: manifest, tensors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transom.errors import Refused

LIMIT = 16 * 2**20
"""Bytes of JSON that are read at most; the index of 50,000 tensors needs about 5 MB."""


def read_json(path: Path, kind: type[Any] = dict) -> Any:
    """The object (or the list) in a JSON file; raises Refused naming the file and what is wrong with it."""
    try:
        size = path.stat().st_size
        if size > LIMIT:
            raise Refused(f"{path}: {size:,} bytes of JSON; at most {LIMIT:,} are read")
        return parse_json(path.read_bytes(), str(path), kind)
    except FileNotFoundError:
        raise Refused(f"{path}: no such file; a model folder holds one") from None
    except OSError as error:
        raise Refused(f"{path}: cannot be read ({error.strerror})") from None


def parse_json(data: bytes, where: str, kind: type[Any] = dict) -> Any:
    """The object (or the list) that `data` spells; raises Refused with `where` in front."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_no_key_twice, parse_constant=_no_nan)
    except UnicodeDecodeError as error:
        raise Refused(f"{where}: not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise Refused(f"{where}:{error.lineno}:{error.colno}: not JSON ({error.msg})") from None
    except RecursionError:
        raise Refused(f"{where}: JSON nested too deeply") from None
    except ValueError as error:  # a key twice, NaN, or a number of thousands of digits
        raise Refused(f"{where}: {str(error).split(';')[0]}") from None
    if not isinstance(value, kind):
        wanted = "an object" if kind is dict else "a list"
        raise Refused(f"{where}: holds a JSON {type(value).__name__}, not {wanted}")
    return value


def write_json(path: Path, value: dict[str, Any] | list[Any]) -> None:
    """Write an object or a list the way people read it: indented, keys as given, a newline at the end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"the key {twice[:80]!r} stands there twice")
    return found


def _no_nan(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")
