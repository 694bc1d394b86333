"""Find, check and load the kernels: one shared library for each level of CPU; the best that runs is taken.

`TRANSOM_NATIVE=0` turns them off; a level's name asks for that one. Read next: abi, build.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from transom.errors import Refused

from .abi import ABI, declare

LEVELS = ("scalar", "avx2", "avx512", "amx")
"""What a library is compiled for, the slowest first; scalar is for tests: PyTorch is faster than it."""
WORDS = {
    "scalar": "plain C++",
    "avx2": "AVX2",
    "avx512": "AVX-512 with bfloat16",
    "amx": "AMX tiles",
}
HOME = Path(__file__).with_name("_lib")
SWITCH = "TRANSOM_NATIVE"
COMPILE = "python -m transom.native.build"


class Unavailable(Exception):
    """The kernels cannot be had; the text says why."""


@dataclass(frozen=True)
class Library:
    """The functions of `src/transom.h`, compiled for one level."""

    level: str
    functions: ctypes.CDLL


def path_of(level: str, home: Path | None = None) -> Path:
    """Return where the library of a level lies, compiled or not."""
    return (home or HOME) / f"libtransom_{level}.so"


@functools.cache
def load(level: str, home: Path | None = None) -> Library:
    """Load the library of a level; raises Unavailable."""
    path = path_of(level, home)
    if not path.exists():
        raise Unavailable(f"not compiled ({COMPILE})")
    if _cut_short(path):
        raise Unavailable(f"{path.name} is cut short; {COMPILE}")
    try:
        functions = ctypes.CDLL(str(path))
        functions.transom_abi.restype = ctypes.c_int32
        found = functions.transom_abi()
    except (OSError, AttributeError) as error:
        raise Unavailable(f"{path.name} cannot be loaded: {error}; {COMPILE}") from None
    if found != ABI:
        raise Unavailable(f"{path.name} is of another version ({found}, not {ABI}); {COMPILE}")
    try:
        declare(functions)
    except AttributeError as error:
        raise Unavailable(f"{path.name} lacks a function: {error}; {COMPILE}") from None
    if functions.transom_prepare() != 0:
        raise Unavailable(f"the system does not let this process use {WORDS[level]}")
    return Library(level, functions)


def _cut_short(path: Path) -> bool:
    """Whether a library of Linux ends before its table of sections, the last thing in it: to load one that
    does kills the process.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if len(head) < 64 or head[:5] != b"\x7fELF\x02":
        return False
    (table,) = struct.unpack_from("<Q", head, 40)
    size, n = struct.unpack_from("<HH", head, 58)
    return path.stat().st_size < table + size * n


def cpu_level() -> str:
    """Return the best level that this CPU runs; raises Unavailable where nothing is compiled."""
    functions = load("scalar").functions
    functions.transom_cpu_level.restype = ctypes.c_int32
    return LEVELS[functions.transom_cpu_level()]


def best() -> Library:
    """Return the library to run with; raises Unavailable, and Refused for a wrong TRANSOM_NATIVE."""
    asked = os.environ.get(SWITCH, "")
    if asked == "0":
        raise Unavailable(f"turned off ({SWITCH}=0)")
    if asked and asked not in LEVELS:
        raise Refused(f"{SWITCH} is '{asked}'; it must be 0 (off), {', '.join(LEVELS)}, or not set")
    runs = cpu_level()
    if asked:
        if LEVELS.index(asked) > LEVELS.index(runs):
            raise Unavailable(f"{SWITCH} asks for {asked}, and this CPU has no {WORDS[asked]}")
        return load(asked)
    if runs == "scalar":
        raise Unavailable(f"this CPU has no {WORDS['avx2']}")
    # The compiler may not have known the best one.
    compiled = [level for level in LEVELS[1 : LEVELS.index(runs) + 1] if path_of(level).exists()]
    return load(compiled[-1] if compiled else runs)
