"""How long a run lasts, as one position from 0 to 1: a number of steps or an amount of time; its rate there.

The position is all that a schedule knows. Steps (and tokens, which are turned into steps) are reproducible to
the bit. Time is not: the position is then the share that has passed of the time for steps, measured, so that
the learning rate reaches zero when the time is up, whatever the speed of the machine. Preparing takes from
that time, but the schedule begins with the first step.
Sources: cosine, Loshchilov & Hutter 2017; warm-up-stable-decay, Hu et al. 2024 (MiniCPM).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..settings import TrainSettings
from .report import Report

WARMUP_STEPS = 30
"""Averages of gradients need about so many before they can be believed (AdamW's second forgets over 20)."""
SHORT_WARMUP = 0.1
"""Of a run at most, for the sake of so many steps."""


@dataclass(frozen=True)
class Budget:
    """The bound of a run: exactly one of `steps` and `time` (seconds)."""

    steps: int | None = None
    time: float | None = None
    began: float = 0.0
    """With `time`: the seconds that had passed before the first step."""
    since: float = 0.0
    """Where in it a run stood that was given it in the place of another (`more_time`), its warm-up over."""

    @classmethod
    def of(cls, settings: TrainSettings, tokens_per_step: int, steps_per_epoch: float) -> Budget:
        """Make it of the one of budget, steps, tokens and epochs that is set."""
        if settings.tokens is not None:
            return cls(steps=math.ceil(settings.tokens / tokens_per_step))
        if settings.epochs is not None:
            return cls(steps=max(1, round(settings.epochs * steps_per_epoch)))
        return cls(steps=settings.steps) if settings.steps is not None else cls(time=settings.budget)

    def position(self, step: int, elapsed: float, step_seconds: float = 0.0, reserve: float = 0.0) -> float:
        """Tell where the middle of step number `step` stands in the run, from 0 to 1.

        The middle, so that neither the first nor the last step is taken with a learning rate of zero.
        elapsed, step_seconds, reserve (kept for the last evaluation and save): seconds, used with a time
        budget.
        """
        if self.steps is not None:
            return min(1.0, (step + 0.5) / self.steps)
        return min(1.0, (elapsed - self.began + step_seconds / 2) / max(self._for_steps(reserve), 1e-9))

    def warmup(self, share: float, n_steps: int, step_seconds: float = 0.0, reserve: float = 0.0) -> float:
        """Return the share of the run in which the rate rises: `share`, but `n_steps` at least, for which a
        run that is short of steps gives up to a tenth. What has risen does not rise again.
        """
        if self.steps is not None:
            least = n_steps / self.steps
        else:
            least = n_steps * step_seconds / max(self._for_steps(reserve), 1e-9)
        rise = max(share, min(least, SHORT_WARMUP))
        return min(rise, self.since) if self.since else rise

    def cooldown(self, share: float) -> float:
        """Return the share of the run in which the rate falls: `share`, but none of what was over before."""
        return min(share, 1 - self.since)

    def _for_steps(self, reserve: float) -> float:
        """Return the seconds between the first step and what is kept for the end."""
        assert self.time is not None
        return self.time - reserve - self.began

    def over(self, step: int, elapsed: float, step_seconds: float = 0.0, reserve: float = 0.0) -> bool:
        """Tell whether no further step fits: by count, or because most of it would lie after the end."""
        if self.steps is not None:
            return step >= self.steps
        # With time, at least one step is taken: a model that never learned would be of no use to anybody.
        return step > 0 and self.position(step, elapsed, step_seconds, reserve) >= 1

    def left(self, step: int, elapsed: float, step_seconds: float) -> float:
        """Return the seconds that the run still needs, as far as can be said now."""
        if self.time is not None:
            return max(0.0, self.time - elapsed)
        assert self.steps is not None
        return (self.steps - step) * step_seconds


class Clock:
    """Seconds that a run has taken, those before its resumes included."""

    def __init__(self, spent: float = 0.0) -> None:
        self._spent, self._start = spent, time.monotonic()

    def elapsed(self) -> float:
        return self._spent + time.monotonic() - self._start

    def forgive(self, budget: Budget, report: Report) -> None:
        """Count from now on where preparing, which belongs to the budget, left less than half of it."""
        spent = self.elapsed()
        if budget.time is not None and spent > 0.5 * budget.time:
            self._spent, self._start = 0.0, time.monotonic()
            report("note", text=f"preparing took {spent:.0f} s of a budget of {budget.time:.0f} s; "
                   "the budget counts from now on, and the prepared data is kept")  # fmt: skip


def cosine(position: float, warmup: float, cooldown: float) -> float:
    """Rise linearly to 1 over `warmup`, then fall to 0 along half a cosine (`cooldown` is not used)."""
    if position < warmup:
        return position / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (position - warmup) / (1 - warmup)) if position < 1 else 0.0


def warmup_stable_decay(position: float, warmup: float, cooldown: float) -> float:
    """Rise linearly to 1 over `warmup`, stay, and fall linearly to 0 over the last `cooldown` of the run."""
    rise = position / warmup if warmup else 1.0
    fall = (1 - position) / cooldown if cooldown else float(position < 1)
    return max(0.0, min(1.0, rise, fall))


SCHEDULES: dict[str, Callable[[float, float, float], float]] = {"wsd": warmup_stable_decay, "cosine": cosine}
"""By the name of the setting `optim.schedule`: factor = schedule(position, warmup, cooldown)."""
