"""Times, counts and intervals as people write them: `10min`, `1.5M`, `100 steps`.

Read next: settings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TIME_UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "hour": 3600, "d": 86400, "day": 86400}
COUNT_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}


def counted(n: int, noun: str) -> str:
    """3 pairs, 1 pair."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def parse_time(value: Any) -> float:
    """Seconds in `90s`, `10min`, `2h` or `1h30min`; a bare number from Python or TOML is seconds already."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    else:
        text = str(value).strip().lower().replace(" ", "")
        parts = re.findall(r"(\d+(?:\.\d+)?)([a-z]+)", text)
        if "".join(number + unit for number, unit in parts) != text or not parts:
            raise ValueError(f"'{value}' is not a time; write it with its unit, such as 90s, 10min or 2h")
        units = [TIME_UNITS.get(unit) or TIME_UNITS.get(unit.rstrip("s")) for _, unit in parts]
        if None in units:
            raise ValueError(f"'{value}' has a unit that is not known; use s, min, h or d")
        seconds = sum(float(number) * (unit or 0) for (number, _), unit in zip(parts, units, strict=True))
    if not 0 < seconds < math.inf:
        raise ValueError(f"'{value}' is not a time; it must be above zero")
    return seconds


def format_time(seconds: float) -> str:
    """The shortest exact form that `parse_time` reads back: 600.0 -> `10min`."""
    for unit in ("d", "h", "min"):
        if seconds >= TIME_UNITS[unit] and seconds % TIME_UNITS[unit] == 0:
            return f"{int(seconds // TIME_UNITS[unit])}{unit}"
    return f"{int(seconds)}s" if seconds == int(seconds) else f"{seconds}s"


def parse_count(value: Any) -> int:
    """A whole number, also written `4k`, `1.5M` or `0.5B` (thousands, millions, billions; not 1,024)."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
    else:
        text = str(value).strip().lower().replace("_", "")
        match = re.fullmatch(r"([-+]?\d+(?:\.\d+)?)([kmbgt]?)", text)
        if match is None:
            raise ValueError(f"'{value}' is not a count; write a whole number, or 4k, 1.5M, 0.5B")
        # round() mends what binary fractions do to the last digit: 1.1 * 1000 is 1100.0000000000002
        number = round(float(match[1]) * COUNT_UNITS[match[2]], 6)
    if not math.isfinite(number) or number != int(number):
        raise ValueError(f"'{value}' is not a whole number")
    return int(number)


@dataclass(frozen=True)
class Every:
    """How often something happens: after so many optimizer steps, or after so many seconds."""

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, value: Any) -> Every:
        """`100` or `100 steps` is a number of steps, `2min` a time."""
        if isinstance(value, Every):
            return value
        if isinstance(value, Mapping):
            return cls(**value)
        match = re.fullmatch(r"(\d+)\s*(steps?)?", str(value).strip())
        if match is None:
            return cls(seconds=parse_time(value))
        if int(match[1]) < 1:
            raise ValueError(f"'{value}' is not an interval; it must be at least one step")
        return cls(steps=int(match[1]))

    def due(self, steps: int, seconds: float) -> bool:
        """Whether it is time again, so many steps and seconds after it last happened."""
        return steps >= self.steps if self.steps is not None else seconds >= (self.seconds or 0)

    def __str__(self) -> str:
        return f"{self.steps} steps" if self.steps is not None else format_time(self.seconds or 0)
