"""Compile the kernels: `python -m transom.native.build`; `pip install .` does it where there is a compiler.

One source, one shared library for each level, each with its own flags. Nothing but a C++20 compiler is
needed, no headers of Python: the library has a C ABI. Standard library alone, so that the build hook of a
wheel can run this file by itself. Read next: library.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCE = Path(__file__).with_name("src")
HOME = Path(__file__).with_name("_lib")

# No -ffast-math: in a shared library it turns denormals off for the whole process, and it reorders sums.
COMMON = ["-std=c++20", "-O3", "-fPIC", "-shared", "-pthread", "-fno-math-errno", "-fno-trapping-math"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-psabi"]
AVX512 = ["-DTRANSOM_AVX512", "-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16"]
FLAGS = {
    "scalar": ["-O1"],
    "avx2": ["-DTRANSOM_AVX2", "-mavx2", "-mfma", "-mf16c", "-mbmi2"],
    "avx512": AVX512,
    "amx": [*AVX512, "-DTRANSOM_AMX"],
}
"""By level. The scalar library also tells which level the CPU has, so it must run everywhere; only tests
compute with it, and so it is compiled in a third of the time."""
CHECKED = ["-O1", "-g", "-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
"""A build that stops at the first access outside of what was allocated; for tests."""


def compiler() -> str | None:
    """Return the C++ compiler of this machine: $CXX, else the first of c++, g++ and clang++."""
    asked = os.environ.get("CXX")
    return next(
        (found for name in filter(None, (asked, "c++", "g++", "clang++")) if (found := shutil.which(name))),
        None,
    )


def levels() -> list[str]:
    """Return the levels that are compiled for this machine's kind of CPU."""
    return (
        list(FLAGS) if platform.machine() in ("x86_64", "AMD64") and sys.platform == "linux" else ["scalar"]
    )


def build(home: Path = HOME, *, checked: bool = False, extra: tuple[str, ...] = ()) -> list[str]:
    """Compile all levels into `home`, side by side; returns those that are there. Raises OSError without a
    compiler, and RuntimeError with what the compiler said if not even the scalar level compiles.

    A level that the compiler does not know (gcc before 11 has no AMX) is left out, and one that lies there as
    it would be made again is left as it is. checked: with sanitizers.
    """
    command = compiler()
    if command is None:
        raise OSError("no C++ compiler was found (CXX, c++, g++, clang++)")
    home.mkdir(parents=True, exist_ok=True)
    flags = [*COMMON, *WARNINGS, *(CHECKED if checked else []), *extra]
    asked, sources = levels(), _digest_of(*sorted(SOURCE.iterdir()))
    version = subprocess.run([command, "--version"], capture_output=True, check=False).stdout
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        said = pool.map(
            lambda level: _compile([command, *flags, *FLAGS[level]], level, f"{sources}{version}", home),
            asked,
        )
        failed = dict(zip(asked, said, strict=True))
    if failed["scalar"]:
        raise RuntimeError(f"{command} does not compile the kernels:\n{failed['scalar'][-2000:]}")
    return [level for level, why in failed.items() if not why]


def _compile(command: list[str], level: str, of: str, home: Path) -> str:
    """Compile a level unless it is there; returns what the compiler said where it failed, else ''.

    of: what tells these sources and this compiler from others.
    """
    library, seal = home / f"libtransom_{level}.so", home / f"{level}.made_of"
    sources = [SOURCE / "plan.cpp", *([SOURCE / "cpu.cpp"] if level == "scalar" else [])]
    line = [*command, *map(str, sources)]
    made_of = hashlib.sha256("\n".join([*line, of]).encode()).hexdigest()
    if library.exists() and seal.exists() and seal.read_text() == made_of + _digest_of(library):
        return ""
    # Into another file first: a process that runs the old library goes on running it.
    with tempfile.NamedTemporaryFile(dir=home, suffix=".so", delete=False) as file:
        made = Path(file.name)
    run = subprocess.run([*line, "-o", str(made)], capture_output=True, text=True, check=False)
    if run.returncode != 0:
        made.unlink()
        library.unlink(missing_ok=True)  # of other sources, and it would stand before one of a lower level
        return run.stderr or f"exit status {run.returncode}"
    made.chmod(0o755)
    made.replace(library)
    seal.write_text(made_of + _digest_of(library))
    return ""


def _digest_of(*files: Path) -> str:
    """What tells files of these names and bytes from others."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def main() -> int:
    """Compile, and say what was made."""
    try:
        made = build()
    except (OSError, RuntimeError) as error:
        print(f"native: {error}", file=sys.stderr)
        return 1
    print(f"native: compiled {', '.join(made)} into {HOME}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
