"""Figures for Prometheus: what was asked, how long it took, what the engines and the event loop are at.

Read next: state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
EVERY = 0.1
"""Seconds between two looks at how late the event loop is."""


class Metrics:
    """The figures of one server, apart from any other in the same process."""

    def __init__(self, models: Mapping[str, Any]) -> None:
        self.registry = CollectorRegistry()
        on = self.registry
        self.answers = Counter(
            "transom_answers", "Answers by route and status.", ["route", "status"], registry=on
        )
        self.seconds = Histogram("transom_answer_seconds", "From request to end of answer.", ["route"],
                                 buckets=SECONDS, registry=on)  # fmt: skip
        self.first = Histogram("transom_first_token_seconds", "From request to first token.", ["model"],
                               buckets=SECONDS, registry=on)  # fmt: skip
        self.tokens = Counter("transom_tokens", "Tokens read and written.", ["model", "kind"], registry=on)
        self.lag = Gauge(
            "transom_loop_lag_seconds", "How late the event loop was when last looked at.", registry=on
        )
        self.most_lag = Gauge("transom_loop_lag_most_seconds", "The latest it has been.", registry=on)
        self.registry.register(Engines(models))  # type: ignore[arg-type]

    def text(self) -> bytes:
        """Return all figures as Prometheus reads them."""
        return generate_latest(self.registry)

    async def watch_loop(self) -> None:
        """Measure for ever how late the loop is."""
        loop, most = asyncio.get_running_loop(), 0.0
        while True:
            due = loop.time() + EVERY
            await asyncio.sleep(EVERY)
            late = max(0.0, loop.time() - due)
            most = max(most, late)
            self.lag.set(late)
            self.most_lag.set(most)


class Engines:
    """What each engine says of itself, asked when the figures are read."""

    def __init__(self, models: Mapping[str, Any]) -> None:
        self.models = models

    def collect(self) -> Iterator[GaugeMetricFamily]:
        figures = GaugeMetricFamily("transom_engine", "Figures of an engine.", labels=["model", "figure"])
        for name, model in self.models.items():
            if model.base is not None:  # its engine is its model's
                continue
            worker = model.worker
            own = {"in_flight": worker.in_flight, "restarts": worker.restarts, "failed": worker.failed}
            for figure, value in {**worker.figures, **own}.items():
                figures.add_metric([name, figure], float(value))
        yield figures
