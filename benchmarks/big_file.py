"""A text file of 1 GB: how fast it becomes tokens, on how many cores, in how much memory beside the model.

The text is WikiText-2's validation part, repeated with the lines of each copy in another order. The run is
`transom train` in a process of its own; its highest resident memory is what the kernel counted
(`wait4`), less that of the same command on 2 MB of the text: the model, torch and Python themselves.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .measure import DATA, tell


def write_text(path: Path, n_bytes: int) -> None:
    """Fill a file with shuffled copies of the sample, each of its lines still whole."""
    lines = (DATA / "wikitext-2" / "valid.txt").read_text().splitlines(keepends=True)
    draw, written = random.Random(0), 0
    with path.open("w") as file:
        while written < n_bytes:
            draw.shuffle(lines)
            written += file.write("".join(lines)[: n_bytes - written])


def train_on(path: Path, out: Path) -> tuple[float, float, float, str]:
    """Run `transom train` for two steps: peak MB, wall seconds, processor seconds, what it said."""
    command = [sys.executable, "-m", "transom", "train", str(path), "--steps", "2", "--out", str(out)]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(said)
    return usage.ru_maxrss / 1e3, time.perf_counter() - started, usage.ru_utime + usage.ru_stime, said


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("big_file", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small, big = folder / "small.txt", folder / "big.txt"
        write_text(small, 2_000_000)
        write_text(big, asked.megabytes * 1_000_000)
        base, *_ = train_on(small, folder / "small-run")
        peak, wall, busy, said = train_on(big, folder / "big-run")
    rate = re.search(r"tokenized at ([\d.]+) MB/s", said)
    figures = {
        "megabytes": asked.megabytes, "peak_mb": peak, "peak_mb_small": base, "beyond_mb": peak - base,
        "seconds": wall, "cores_used": busy / wall, "tokenizing_mb_per_s": float(rate[1]) if rate else None,
    }  # fmt: skip
    lines = [
        f"whole run {wall:.0f} s, {busy / wall:.2f} cores busy on average; "
        f"tokenized at {rate[1] if rate else '?'} MB/s",
        f"highest resident memory {peak:,.0f} MB; with 2 MB of text {base:,.0f} MB: "
        f"{peak - base:,.0f} MB more",
    ]
    tell(f"a text file of {asked.megabytes:,} MB", lines, figures)
