"""How many examples a property test draws: all of them in CI, a quarter where a person waits.

`TRANSOM_TESTS=all`, which `.ci/run` sets, draws all and runs what is marked `slow` too.
"""

from __future__ import annotations

import os

ALL = os.environ.get("TRANSOM_TESTS") == "all"
SHARE = 1.0 if ALL else 0.25
LEAST = 5


def scaled(n: int) -> int:
    """Say how many of `n` examples are drawn in this run."""
    return max(min(n, LEAST), round(n * SHARE))
