"""Learning-rate schedules: pure functions of how far a run has come.

`position` is the fraction of the run that is behind it, from 0 to 1, whether a run is bounded by steps,
tokens or time; so a schedule knows nothing of any of them, and always ends at exactly zero.
Sources: cosine, Loshchilov & Hutter 2017; warm-up-stable-decay, Hu et al. 2024 (MiniCPM).
"""

from __future__ import annotations

import math
from collections.abc import Callable


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
