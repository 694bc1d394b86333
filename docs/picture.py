"""The picture in the README: the words that `make demo` printed, drawn as a terminal.

    python docs/picture.py [BUDGET]     runs the demo for 3min, or as long as said, and writes docs/demo.svg

The output is taken from pipes, so it is the plain form of the display; lines are cut at the width of the
picture and nothing else is changed.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 104
HERE = Path(__file__).parent
STYLES = {
    "held-out": "bold green",
    "sample": "cyan",
    "step ": "white",
    "trained": "bold",
    "baselines:": "yellow",
}
"""How a line is coloured, by its beginning."""


def main(budget: str) -> None:
    """Run the demo and draw it."""
    console = Console(record=True, width=WIDTH, file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        for command in (
            f"transom train stdlib --budget {budget} --out runs/demo",
            'transom generate runs/demo "def " --max-tokens 80 --seed 1',
        ):
            console.print(Text(f"$ {command}", style="bold magenta"))
            ran = subprocess.run(
                [sys.executable, "-m", "transom", *shlex.split(command)[1:]],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True, cwd=folder,
            )  # fmt: skip
            for line in ran.stdout.splitlines():
                style = next((style for start, style in STYLES.items() if line.startswith(start)), "")
                console.print(Text(line, style=style), no_wrap=True, overflow="ellipsis")
    picture = re.sub(
        r"@font-face \{.*?\}", "", console.export_svg(title="make demo"), flags=re.S
    )  # no web fonts
    (HERE / "demo.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["3min"]))
