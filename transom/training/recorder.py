"""What is recorded of a run between its steps: evaluations, samples, probes, the figure, the end.

Nothing here moves a weight or draws from the random numbers of training, so when it happens changes no
result. With a time budget it all counts: time for the last evaluation and save is kept in reserve. Read next:
evaluate, saver, ledger.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.folder import NotSaved
from ..errors import Refused
from ..hardware import peak_memory, resident_memory
from ..output import write_whole
from . import evaluate, ledger, probes, state
from .evaluate import Best, Score
from .figure import draw_loss
from .gradient import Gradient
from .micro_batch import MicroBatch
from .more_time import soon
from .parts import RunParts
from .report import history
from .routing import MEMORY, judge_load
from .run import Run
from .saver import Saver
from .state import TIMES
from .task import EvalSet

EVALUATION_SHARE = 0.005
"""Of a run's work, spent on one evaluation; the one at the end may take `LAST_SHARE`."""
LAST_SHARE = 0.05
ROWS_SCORED = (16, 1024)
"""At least and at most, in one evaluation along the way."""
A_DOUBLING = 4
"""Evaluations for each doubling of the passes through the data, besides: a small text is memorised early."""
DRAW_SECONDS = 30.0
"""At least so long between two drawings of loss.png; one takes 0.2 s."""


class Recorder:
    """Evaluates, samples and looks inside when it is due, and writes down what came of it."""

    def __init__(self, run: RunParts, saver: Saver, micro: MicroBatch, checkpoint: Path | None) -> None:
        """Choose what is scored, and say what is about to happen."""
        self.run, self.saver, self.micro = run, saver, micro
        self.score: Score | None = None
        self.sentence = ""
        """What that says, in words."""
        self.written = "", ""
        """What the model was given last, and what it made of it."""
        self.best = state.load_best(run.folder.best, run.world)
        """The best result so far of a run that sees its data again, and whose weights they are."""
        self._lately: Score | None = None
        """The last result along the way."""
        self._measured = self._sampled = -1
        """The steps of that and of the last sample."""
        self._load: torch.Tensor | None = None
        self._drawn = time.monotonic()

        # So many held-out rows that scoring them costs a small share of the run; a row that is scored costs a
        # third of one learned from.
        on_gpu = run.world.device.type == "cuda"
        trained = run.world.on_rank_zero(lambda: run.expected.steps) * run.task.feed.n_rows
        low, high = ROWS_SCORED
        wanted = min(high, max(low, round(3 * EVALUATION_SHARE * trained)))
        self._along = run.task.eval_set(wanted, on_gpu)
        self._at_end = run.task.eval_set(max(wanted, round(3 * LAST_SHARE * trained)), on_gpu)
        self._row_seconds = (micro.seconds_per_window or 0.0) / 3 / run.world.size
        self._announce(checkpoint)

    def _announce(self, checkpoint: Path | None) -> None:
        """Report the start, or what is gone on with."""
        run, step = self.run, self.run.position.step
        run.report(
            "start", step, parameters=run.model.n_parameters, dtype=run.choice.name,
            micro_windows=self.micro.windows, tokens_per_step=run.expected.tokens_per_step,
            references=run.task.baselines, forecast=run.expected.to_dict(), world_size=run.world.size,
            parallel=run.world.kind,
        )  # fmt: skip
        for text in run.in_words(self.micro):
            run.report("note", step, text=text)
        if checkpoint is not None:
            text = f"resuming after step {step:,} ({checkpoint})"
            run.report("resume", step, elapsed=run.position.elapsed, text=text)

    # ---- between two steps

    @property
    def reserve(self) -> float:
        """Seconds to keep for the end, when time is the bound: the last save, and the last evaluations, along
        the way once more, to choose, and at the end.
        """
        n_rows = self._along.n_rows + self._at_end.n_rows
        seconds = 1.1 * (self._row_seconds * n_rows + self.saver.seconds) + 0.5
        return seconds if self.run.budget.time is None else min(seconds, 0.3 * self.run.budget.time)

    def clocks(self) -> list[float]:
        """Seconds: elapsed, of a step, and to keep in reserve."""
        return [self.run.clock.elapsed(), self.run.position.step_seconds, self.reserve]

    def after_step(
        self, gradient: Gradient, place: float, factor: float, took: float, load: torch.Tensor | None = None
    ) -> None:
        """Report a step, `place` (0 to 1) into the run, that took `took` seconds; then do what is due.

        factor: of the peak learning rates. load (layers, E): tokens per expert of this step.
        """
        self._report_step(gradient, place, factor, took, load)
        position, settings = self.run.position, self.run.settings

        # Evaluations come evenly, and more often early where little text is gone through again and again.
        regular = position.due("held_out", settings.eval_every, place)
        doublings = math.log2(max(1, self.run.passes))
        besides = settings.eval_every is None and position.due("passes", None, A_DOUBLING * doublings / TIMES)
        if regular or besides:
            self._evaluate(self._along)
            self._keep_best()
        if regular and settings.sample_every is None:
            self._sample()
        if settings.sample_every is not None and position.due("sample", settings.sample_every, place):
            self._sample()
        if position.due("inside", None, place) or position.step == 1:
            self._look()
        if position.due("save", settings.save_every, place):
            self.saver.save(self.chosen, self.facts())
            if time.monotonic() - self._drawn > DRAW_SECONDS:
                self._draw()

    def _report_step(
        self, gradient: Gradient, place: float, factor: float, took: float, load: torch.Tensor | None
    ) -> None:
        """Report what a step did, and how fast; keep the running averages."""
        run, position, routing = self.run, self.run.position, {}
        if load is not None:
            self._load = load if self._load is None else MEMORY * self._load + load
            routing = {"load": judge_load(load).to_dict(), "load_lately": judge_load(self._load).to_dict()}
        average = position.step_seconds
        position.step_seconds = 0.9 * average + 0.1 * took if average else took
        if not gradient.is_finite:
            return
        before = gradient.loss if position.learned is None else position.learned
        position.learned = 0.9 * before + 0.1 * gradient.loss
        elapsed, speed = position.elapsed + took, run.expected.tokens_per_step / position.step_seconds
        flops = speed * run.model.flops_per_token(run.task.feed.row_length)
        peak = run.hardware.peak_flops(run.choice.dtype) * run.world.size
        run.report(
            "step", position.step, loss=gradient.loss, grad_norm=gradient.norm, position=place,
            lr=run.rates.lr * factor, matrix_lr=run.rates.matrix_lr * factor,
            tokens=position.tokens, elapsed=elapsed, seconds=took, tokens_per_second=speed,
            flops_per_second=flops, share_of_peak=flops / peak, resident=resident_memory(),
            left=run.budget.left(position.step, elapsed, position.step_seconds), **routing,
        )  # fmt: skip

    def _evaluate(self, eval_set: EvalSet) -> None:
        """Score held-out rows, and say what the result means."""
        run, started = self.run, time.monotonic()
        score = evaluate.score(run.objective, eval_set, run.world, lambda: run.stopping.requested)
        if score is None:  # a signal came: saving is more urgent
            return
        self.score = score
        meaning = evaluate.verdict(score.loss, run.task.baselines, self.best, run.position.learned)
        self.sentence = f"{meaning}{score.says}"
        if eval_set is self._along:
            self._lately, self._measured = score, run.position.step
        took = time.monotonic() - started
        self._row_seconds = took / eval_set.n_rows
        run.report("held_out", run.position.step, **score.to_dict(), whole=eval_set.whole, seconds=took,
                   unit=run.task.unit, sentence=self.sentence, tokens=run.position.tokens,
                   elapsed=run.clock.elapsed())  # fmt: skip

    def _keep_best(self) -> None:
        """Write the weights down where they are clearly the best so far, and the run sees its data again."""
        score = self._lately
        if score is None or score.reporting is None or self.run.passes <= 1:
            return  # nothing can be chosen, or nothing was seen twice
        best = Best(self.run.position.step, self.run.passes, score)
        if (self.best is None or best.beats(self.best.score)) and self.saver.keep_best(best):
            self.best = best

    @property
    def chosen(self) -> Best | None:
        """Whose weights the model folder gets: the best ones, or, None, the last."""
        return self.best if self.best is not None and self.best.beats(self._lately) else None

    def _look(self) -> None:
        """Note what goes on inside, over the same rows each time; under FSDP2 no rank holds a whole model."""
        run = self.run
        if run.world.kind == "fsdp" or not run.world.is_first:
            return
        try:
            batch = run.task.feed.batch(0)
            found = probes.figures_of(run.objective, batch, run.world.device, self.micro.windows)
        except Refused as refused:
            run.report("note", run.position.step, text=f"not looked inside: {refused}")
            return
        if found:
            run.report("inside", run.position.step, tokens=run.position.tokens, **found)

    def _sample(self) -> None:
        """Let the model write; under FSDP2 no rank holds a whole model, so it stays silent."""
        run, write = self.run, self.run.task.write
        if run.world.kind == "fsdp" or write is None:
            return
        given, made = run.world.on_rank_zero(lambda: list(write(run.model)))
        self.written, self._sampled = (given, made), run.position.step
        run.report("sample", run.position.step, prompt=given, text=made)

    def _draw(self) -> None:
        """Bring loss.png and ledger.json up to date."""
        run, self._drawn = self.run, time.monotonic()
        if not run.world.is_first or run.report.metrics is None or run.report.metrics.broken:
            return
        title = f"{run.folder.path.name}: {run.model.n_parameters:,} parameters"
        try:
            events = history(run.folder.metrics)
            draw_loss(events, run.task.baselines, title, run.folder.figure, run.task.unit)
            write_whole(run.folder.ledger, json.dumps(ledger.account(self.facts()), indent=1) + "\n")
        except Refused as error:
            run.report("note", run.position.step, text=f"warning: {error}; the figure is not up to date")

    def facts(self) -> ledger.RunFacts:
        """Collect what the run's account is written from, as it stands."""
        run, chosen = self.run, self.chosen
        return ledger.RunFacts(
            run, self.micro, run.clock.elapsed(), run.energy.joules(), peak_memory(run.world.device),
            score=self.score, sentence=self.sentence, whole=chosen is None and self._at_end.whole,
            weights_step=chosen.step if chosen else run.position.step,
        )  # fmt: skip

    # ---- the end

    def end(self, interrupted: bool) -> Run:
        """Save, evaluate once more and write everything down. Raises `NotSaved` when the last save failed."""
        run, saver, position = self.run, self.saver, self.run.position
        weights, saved = saver.checkpoint()  # first: what follows may be killed

        # Whether the last weights are the best; and, unless those of before are chosen, what they are worth.
        if not interrupted:
            if self.best is not None and self._measured < position.step:
                self._evaluate(self._along)
            just_measured, n_rows = self._measured == position.step, self._at_end.n_rows
            if self.chosen is None and not (just_measured and self._along.n_rows == n_rows):
                self._evaluate(self._at_end)
            if self.best is not None and self.chosen is None:
                saver.forget_best()
        self._choose()

        # The last sample is of the chosen weights, and the model folder holds them.
        if not interrupted and (self.chosen or self._sampled < position.step):
            self._sample()
        if saved:
            saver.write_model(weights, self.chosen, self.facts())

        score, seconds = self.score, run.clock.elapsed()
        result: dict[str, Any] = {
            "loss": score.loss if score else None, "bits_per_byte": score.bits_per_byte if score else None,
            "sentence": self.sentence, "tokens": position.tokens, "weights_sha256": saver.fingerprint,
        }  # fmt: skip
        run.report("end", position.step, interrupted=interrupted, elapsed=seconds, unit=run.task.unit,
                   unsaved=saver.unsaved, **result)  # fmt: skip
        self._draw()
        if saver.unsaved:
            raise NotSaved(saver.unsaved)
        return Run(
            folder=run.folder.path, step=position.step, **result, references=run.task.baselines,
            prompt=self.written[0], sample=self.written[1], task=run.task.name, unit=run.task.unit,
            seconds=seconds, interrupted=interrupted,
            soon=soon(run.settings, run.budget, position, self.reserve) if interrupted else "",
        )  # fmt: skip

    def _choose(self) -> None:
        """Take the best weights for the result, where the last evaluation was clearly worse."""
        best, run = self.chosen, self.run
        if best is None or self._lately is None:
            return
        self.score = best.score.reporting
        self.sentence = evaluate.kept(best, self._lately.loss, run.task.baselines, run.position.learned)
        if run.world.is_first and run.world.kind != "fsdp":  # to write the last sample
            state.load_weights(run.folder.best, run.model)
