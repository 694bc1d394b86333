"""Finding, checking and building the kernels."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.native.kernels import levels, library
from transom.errors import Refused
from transom.native import build as building
from transom.native import library as finding
from transom.native.library import LEVELS, Unavailable, best, load, path_of

ROOT = Path(__file__).parents[2]
COMPILER = building.compiler()
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on this machine")


def test_the_best_level_of_this_machine_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    library("scalar")
    monkeypatch.delenv("TRANSOM_NATIVE", raising=False)
    if len(levels()) == 1:
        with pytest.raises(Unavailable, match="no AVX2"):
            best()
        return
    assert best().level == levels()[-1]
    for level in levels():
        monkeypatch.setenv("TRANSOM_NATIVE", level)
        assert best().level == level and best().functions.transom_level() == level.encode()


def test_where_the_best_level_was_not_compiled_the_next_one_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library("avx2")
    monkeypatch.delenv("TRANSOM_NATIVE", raising=False)
    monkeypatch.setattr(finding, "cpu_level", lambda: "amx")
    missing = {"amx", "avx512"}
    monkeypatch.setattr(
        finding, "path_of", lambda level, home=None: path_of(level, tmp_path if level in missing else home)
    )
    assert best().level == "avx2"


def test_a_wish_that_means_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSOM_NATIVE", "yes")
    with pytest.raises(
        Refused, match="TRANSOM_NATIVE is 'yes'; it must be 0 \\(off\\), scalar, avx2, avx512, amx"
    ):
        best()


def test_where_nothing_is_compiled_it_says_how(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="not compiled \\(python -m transom.native.build\\)"):
        load("scalar", tmp_path)
    path_of("scalar", tmp_path).write_bytes(b"no library")
    with pytest.raises(Unavailable, match="cannot be loaded.*python -m transom.native.build"):
        load("scalar", tmp_path)


def test_a_library_cut_short_is_told_and_not_loaded(tmp_path: Path) -> None:
    """To load one ends the process by SIGBUS."""
    library("scalar")
    whole = path_of("scalar").read_bytes()
    assert load("scalar").functions
    for share in (0.02, 0.5, 0.99):
        path_of("scalar", tmp_path).write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(Unavailable, match="is cut short; python -m transom.native.build"):
            load("scalar", tmp_path)


@needs_compiler
def test_a_library_of_another_version_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "other.cpp"
    source.write_text('extern "C" int transom_abi() { return 999; }')
    assert COMPILER is not None
    subprocess.run([COMPILER, "-shared", "-fPIC", source, "-o", path_of("scalar", tmp_path)], check=True)
    with pytest.raises(Unavailable, match="another version \\(999, not"):
        load("scalar", tmp_path)


def test_without_a_compiler_it_says_so_in_a_line(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path)}
    environment.pop("CXX", None)
    run = subprocess.run([sys.executable, "-m", "transom.native.build"], cwd=ROOT, env=environment,
                         capture_output=True, text=True, check=False)  # fmt: skip
    assert (
        run.returncode == 1 and run.stderr == "native: no C++ compiler was found (CXX, c++, g++, clang++)\n"
    )


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process whose kernels have sanitizers, and end it at the first fault."""
    home = tmp_path_factory.mktemp("checked")
    assert building.build(home, checked=True)[0] == LEVELS[0]
    runtime = subprocess.run(
        [str(COMPILER), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(runtime).exists():
        pytest.skip("the compiler has no AddressSanitizer")
    return {
        **os.environ,
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0",
        "TRANSOM_TEST_KERNELS": str(home),
    }


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    "file",
    [
        "test_ops.py", "test_sampling.py", "test_runner.py", "test_recurrence.py", "test_encoder.py",
        "test_experts.py", "test_encoder_decoder.py",
    ],
)  # fmt: skip
def test_nothing_outside_of_what_was_allocated_is_touched(checked: dict[str, str], file: str) -> None:
    """The tests of ops and of models once more, with sanitizers."""
    without = ["-k", "not transformers and not pytorch and not anew"] if file == "test_experts.py" else []
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/native/{file}", *without],
        cwd=ROOT, env=checked, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]


@needs_compiler
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
def test_what_lies_there_as_it_would_be_made_is_not_made_again(tmp_path, monkeypatch):
    source, home = tmp_path / "src", tmp_path / "lib"
    source.mkdir()
    (source / "cpu.cpp").write_text("")
    (source / "plan.cpp").write_text('#include "one.h"\nextern "C" int one() { return ONE; }')
    (source / "one.h").write_text("#define ONE 1")
    monkeypatch.setattr(building, "SOURCE", source)
    found = building.build(home)

    def made() -> list[int]:
        return [path_of(level, home).stat().st_mtime_ns for level in found]

    before = made()
    assert building.build(home) == found
    assert made() == before
    path_of("scalar", home).write_bytes(b"cut short")
    assert building.build(home) == found
    assert made()[0] != before[0]
    assert made()[1:] == before[1:]
    (source / "one.h").write_text("#define ONE 2")
    assert building.build(home) == found
    assert not set(made()) & set(before)
    assert ctypes.CDLL(str(path_of("scalar", home))).one() == 2
    if len(found) > 1:
        monkeypatch.setitem(building.FLAGS, found[-1], ["-no-such-flag"])
        assert building.build(home) == found[:-1]
        assert not path_of(found[-1], home).exists()  # the old one would be taken before a new lower one
    (source / "one.h").write_text("#define ONE no")
    with pytest.raises(RuntimeError, match="does not compile the kernels"):
        building.build(home)


@pytest.mark.slow
@pytest.mark.skipif(len(levels()) < 2, reason="this CPU runs nothing by kernels")
def test_five_minutes_of_two_engines_and_an_encoder_with_sanitizers(checked: dict[str, str]) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.native.soak", "300", checked["TRANSOM_TEST_KERNELS"]],
        cwd=ROOT, env=checked, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]


@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif("avx512" not in levels(), reason="the rest of the AMX level needs AVX-512")
def test_kernels_of_tiles_are_right_where_tiles_are_memory(tmp_path: Path) -> None:
    """The tests of ops once more on the AMX level, whose instructions `tiles.h` does in memory."""
    shutil.copy(path_of("scalar"), path_of("scalar", tmp_path))
    tiles = f'-DTRANSOM_TILES="{Path(__file__).with_name("tiles.h")}"'
    flags = [*building.COMMON, "-O1", *building.FLAGS["amx"], tiles, "-I", str(building.SOURCE)]
    sources = [str(building.SOURCE / "plan.cpp"), "-o", str(path_of("avx512", tmp_path))]
    assert COMPILER is not None
    subprocess.run([COMPILER, *flags, *sources], check=True)
    environment = {**os.environ, "TRANSOM_TEST_KERNELS": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/native/test_ops.py",
         "tests/native/test_experts.py", "-k", "avx512 or levels"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]


REGIONS = """
#include "threads.h"
#include <cstdio>

// Regions of 40 ops of 7 pieces: every op reads what all pieces of the one before wrote.
int main() {
    auto& threads = *new transom::Threads; // as in the library: never ended
    for (int n = 1; n <= 4; n++)
        for (int region = 0; region < 300; region++) {
            long rows[41][7] = {};
            transom::Pieces ops[40];
            for (auto& op : ops) op.reset();
            threads.run(n, [&](int) {
                for (int i = 0; i < 40; i++)
                    ops[i].share(7, [&](int64_t piece) {
                        long sum = 1;
                        for (long x : rows[i]) sum = (sum + x) % 1000003;
                        rows[i + 1][piece] = sum + piece;
                    });
            });
            long expected[7] = {};
            for (int i = 0; i < 40; i++) {
                long sum = 1;
                for (long x : expected) sum = (sum + x) % 1000003;
                for (long piece = 0; piece < 7; piece++) expected[piece] = sum + piece;
            }
            for (int piece = 0; piece < 7; piece++)
                if (rows[40][piece] != expected[piece]) return std::puts("a piece was lost"), 1;
        }
}
"""


@needs_compiler
@pytest.mark.heavy
@pytest.mark.parametrize("flags", [["-O2"], ["-O1", "-g", "-fsanitize=thread", "-Wno-tsan"]])
def test_threads_share_pieces_without_a_race(tmp_path: Path, flags: list[str]) -> None:
    (tmp_path / "regions.cpp").write_text(REGIONS)
    assert COMPILER is not None
    paths = [f"-I{building.SOURCE}", "regions.cpp", "-o", "regions"]
    command = [COMPILER, "-std=c++20", "-pthread", *flags, *paths]
    compiled = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    if compiled.returncode and "tsan" in compiled.stderr:
        pytest.skip("the compiler has no ThreadSanitizer")
    assert compiled.returncode == 0, compiled.stderr
    environment = {**os.environ, "TSAN_OPTIONS": "report_thread_leaks=0"}
    ran = subprocess.run([tmp_path / "regions"], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]
