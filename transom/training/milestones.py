"""What happens between the steps of a run: evaluations, samples, checkpoints, and the end.

Nothing here moves a weight or draws from the random numbers of training, so when it happens changes no
result. With a time budget it all counts: time for the last evaluation and save is kept in reserve. Read next:
held_out, state, ledger.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint.families import family_for
from ..checkpoint.folder import NotSaved, commit, recover, remove, sweep
from ..checkpoint.huggingface import save_model
from ..checkpoint.tensors import load_tensors
from ..errors import Refused
from ..hardware import DtypeChoice, EnergyMeter, Hardware
from ..model.build import Model
from ..settings import TrainSettings
from ..units import Every, format_time
from . import evaluate, ledger, memory, non_finite, probes, state
from .budget import Budget, Clock
from .card import model_card
from .evaluate import Best, Score
from .figure import draw_loss
from .folder import RunFolder
from .forecast import Forecast
from .gradient import Gradient
from .metrics import Metrics, history
from .micro_batch import MicroBatch
from .optimizers import Optimizers, Rates
from .parallelism import World
from .report import Report
from .routing import MEMORY, judge_load
from .run import Run
from .signals import StopSignals
from .task import EvalSet, Task

TIMES = 10
"""How often a run is evaluated when nothing else is said; the last time at its end."""
EVALUATION_SHARE = 0.005
"""Of a run's work, spent on one evaluation; the one at the end may take `LAST_SHARE`."""
LAST_SHARE = 0.05
ROWS_SCORED = (16, 1024)
"""At least and at most, in one evaluation along the way."""

A_DOUBLING = 4
"""Evaluations for each doubling of the passes through the data, besides: a small text is memorised early."""

DRAW_SECONDS = 30.0
"""At least so long between two drawings of loss.png; one takes 0.2 s."""


@dataclass
class Milestones:
    """All parts of a run, and what is done with them between two steps."""

    settings: TrainSettings
    folder: RunFolder
    task: Task
    model: Model
    optimizers: Optimizers
    objective: nn.Module
    """As spread over the ranks."""
    world: World
    report: Report
    position: state.Position
    budget: Budget
    clock: Clock
    stopping: StopSignals
    hardware: Hardware
    choice: DtypeChoice
    micro: MicroBatch
    expected: Forecast
    rates: Rates

    reserve: float = 0.0
    """Seconds to keep for the last evaluation and save, when time is the bound."""
    score: Score | None = None
    sentence: str = ""
    """What that says, in words."""
    written: tuple[str, str] = ("", "")
    """What the model was given last, and what it made of it."""
    unsaved: str | None = None
    """Why the last save failed, or None."""
    fingerprint: str = ""
    best: Best | None = None
    """The best result so far of a run that sees its data again, and whose weights they are."""
    _lately: Score | None = None
    """The last result along the way."""
    _measured: int = -1
    """The step it is of."""
    _sampled: int = -1
    """The step of the last sample."""
    _along: EvalSet = field(init=False)
    at_end: EvalSet = field(init=False)
    _load: torch.Tensor | None = None
    _evaluation_seconds: float = 0.0
    _save_seconds: float = 0.0
    _joules_before: float = 0.0
    _drawn: float = field(default_factory=time.monotonic)
    energy: EnergyMeter = field(init=False)

    @property
    def baselines(self) -> dict[str, float]:
        """What something simpler reaches on the held-out side, by name."""
        return self.task.baselines

    # ---- before the first step

    def begin(self, checkpoint: Path | None) -> None:
        """Open the run's files, choose what is scored, and say what is about to happen."""
        if self.world.is_first:
            self.folder.path.mkdir(parents=True, exist_ok=True)
            recover(self.folder.model)
            recover(self.folder.best)
            sweep(self.folder.path)
            self.folder.settings.write_text(self.settings.to_toml())
            self.report.write_to(Metrics(self.folder.path, list(self.settings.log), self.settings.to_dict()))
        self.best = state.load_best(self.folder.best, self.world)
        self.energy = EnergyMeter(self.hardware)
        self._joules_before = self.position.joules
        self._choose_held_out()
        config, lines = self.model.config, self.baselines
        layers = f"{config.n_layers} layers"
        if config.n_encoder_layers is not None:
            layers = f"{config.n_encoder_layers} layers that read and {config.n_layers} that write,"
        active = self.model.n_active_parameters
        used = f" ({active:,} active)" if active < self.model.n_parameters else ""
        self.report(
            "start", self.position.step, parameters=self.model.n_parameters, dtype=self.choice.name,
            micro_windows=self.micro.windows, tokens_per_step=self.expected.tokens_per_step, references=lines,
            forecast=self.expected.to_dict(), world_size=self.world.size, parallel=self.world.kind,
        )  # fmt: skip
        shares = f", {self.world.size} processes ({self.world.kind})" if self.world.size > 1 else ""
        for text in (
            f"run: {self.folder.path}",
            f"model: {config.cell or config.kind} of {self.model.n_parameters:,} parameters{used}, {layers} "
            f"of {config.dim}, context {config.max_len}, vocabulary {config.vocab_size:,}",
            f"format: {self._format()}",
            f"arithmetic: {self.choice.reason}{shares}",
            f"step: {self.expected.tokens_per_step:,} tokens, {self.micro.windows} rows at a time "
            f"({self.micro.reason})",
            f"expected: {self.expected.steps:,} steps, {self.expected.tokens / 1e6:,.1f}M tokens, "
            f"{self.expected.seconds / 60:,.1f} min, {self.expected.memory_bytes / 1e6:,.0f} MB",
            f"data: {self.expected.says_passes}",
            "baselines: "
            + (", ".join(f"{name} {nats:.2f}" for name, nats in lines.items()) or "none")
            + f" nats per {self.task.unit}",
        ):
            self.report("note", self.position.step, text=text)
        if checkpoint is not None:
            text = f"resuming after step {self.position.step:,} ({checkpoint})"
            self.report("resume", self.position.step, elapsed=self.position.elapsed, text=text)
        self._restart_clock_if_spent(checkpoint)

    def _format(self) -> str:
        """As what the model folder will be written, said before the work and not after it."""
        architecture = self.architecture
        if architecture is None:
            return (
                "Transom's own; no Hugging Face family has all these parts, so transformers will not read it"
            )
        return f"{architecture}, which transformers and what follows it read"

    @property
    def architecture(self) -> str | None:
        """The Hugging Face architecture that the model is written as, or None for Transom's own format."""
        family = family_for(self.model.config)
        return None if family is None else family.architecture_of(self.model.config)

    def _choose_held_out(self) -> None:
        """Which held-out rows are scored along the way and at the end.

        So many that it costs a small share of the run; a row that is scored costs a third of one learned
        from.
        """
        feed, on_gpu = self.task.feed, self.world.device.type == "cuda"
        trained = self.world.on_rank_zero(lambda: self.expected.steps) * feed.n_rows
        low, high = ROWS_SCORED
        wanted = min(high, max(low, round(3 * EVALUATION_SHARE * trained)))
        self._along = self.task.eval_set(wanted, on_gpu)
        self.at_end = self.task.eval_set(max(wanted, round(3 * LAST_SHARE * trained)), on_gpu)
        per_row = (self.micro.seconds_per_window or 0.0) / 3 / self.world.size
        self._evaluation_seconds = self._rows_at_end * per_row
        self._save_seconds = 0.1 + 12 * self.model.n_parameters / 300e6
        self._keep_in_reserve()

    @property
    def _rows_at_end(self) -> int:
        """Of the last evaluations: along the way once more, to choose, and at the end."""
        return self._along.n_rows + self.at_end.n_rows

    @property
    def passes(self) -> float:
        """How often the run has gone through its data."""
        return self.position.step / self.task.feed.steps_per_epoch

    def _keep_in_reserve(self) -> None:
        self.reserve = 1.1 * (self._evaluation_seconds + self._save_seconds) + 0.5
        if self.budget.time is not None:
            self.reserve = min(self.reserve, 0.3 * self.budget.time)

    def _restart_clock_if_spent(self, checkpoint: Path | None) -> None:
        """Preparing belongs to the budget, unless it left less than half of it."""
        spent = self.clock.elapsed()
        if checkpoint is None and self.budget.time is not None and spent > 0.5 * self.budget.time:
            self.clock.restart()
            self.report("note", text=f"preparing took {spent:.0f} s of a budget of {self.budget.time:.0f} s; "
                        "the budget counts from now on, and the prepared data is kept")  # fmt: skip

    # ---- between two steps

    def clocks(self) -> list[float]:
        """Seconds: elapsed, of a step, and to keep in reserve."""
        return [self.clock.elapsed(), self.position.step_seconds, self.reserve]

    def steps(
        self, gradient: Gradient, place: float, factor: float, took: float, load: torch.Tensor | None = None
    ) -> None:
        """Report a step, `place` (0 to 1) into the run, that took `took` seconds; then do what is due.

        load (layers, E): tokens per expert of this step.
        """
        position, settings, routing = self.position, self.settings, {}
        if load is not None:
            self._load = load if self._load is None else MEMORY * self._load + load
            routing = {"load": judge_load(load).to_dict(), "load_lately": judge_load(self._load).to_dict()}
        average = position.step_seconds
        position.step_seconds = 0.9 * average + 0.1 * took if average else took
        if gradient.is_finite:
            before = gradient.loss if position.learned is None else position.learned
            position.learned = 0.9 * before + 0.1 * gradient.loss
            elapsed, speed = position.elapsed + took, self.expected.tokens_per_step / position.step_seconds
            flops = speed * self.model.flops_per_token(self.task.feed.row_length)
            peak = self.hardware.peak_flops(self.choice.dtype) * self.world.size
            self.report(
                "step", position.step, loss=gradient.loss, grad_norm=gradient.norm, position=place,
                lr=self.rates.lr * factor, matrix_lr=self.rates.matrix_lr * factor,
                tokens=position.tokens, elapsed=elapsed, seconds=took, tokens_per_second=speed,
                flops_per_second=flops, share_of_peak=flops / peak, resident=memory.resident(),
                left=self.budget.left(position.step, elapsed, position.step_seconds), **routing,
            )  # fmt: skip
        regular, doublings = self._due("held_out", settings.eval_every, place), math.log2(max(1, self.passes))
        besides = settings.eval_every is None and self._due("passes", None, A_DOUBLING * doublings / TIMES)
        if regular or besides:
            self._evaluate(self._along)
            self._keep()
        if regular and settings.sample_every is None:
            self._sample()
        if settings.sample_every is not None and self._due("sample", settings.sample_every, place):
            self._sample()
        if self._due("inside", None, place) or position.step == 1:
            self._look()
        if self._due("save", settings.save_every, place):
            self._save()

    def _due(self, what: str, every: Every | None, place: float) -> bool:
        step, elapsed, before = self.position.marks.get(what, [0, 0.0, 0.0])
        if every is None:
            due = int(place * TIMES) > int(before * TIMES)
        else:
            due = every.due(int(self.position.step - step), self.position.elapsed - elapsed)
        if due:
            self.position.marks[what] = [self.position.step, self.position.elapsed, place]
        return due

    def _evaluate(self, scored: EvalSet) -> None:
        started = time.monotonic()
        score = evaluate.score(self.objective, scored, self.world, lambda: self.stopping.requested)
        if score is None:  # a signal came: saving is more urgent
            return
        self.score = score
        self.sentence = evaluate.verdict(score.loss, self.baselines, self.best, self.position.learned)
        if scored is self._along:
            self._lately, self._measured = score, self.position.step
        took = time.monotonic() - started
        self._evaluation_seconds = took * self._rows_at_end / scored.n_rows
        self._keep_in_reserve()
        self.report("held_out", self.position.step, **score.to_dict(), whole=scored.whole, seconds=took,
                    unit=self.task.unit,
                    sentence=self.sentence,
                    tokens=self.position.tokens, elapsed=self.clock.elapsed())  # fmt: skip

    def _keep(self) -> None:
        """Write the weights down where they are clearly the best so far, and the run sees its data again."""
        score = self._lately
        if score is None or score.reporting is None or self.passes <= 1:
            return  # nothing can be chosen, or nothing was seen twice
        best = Best(self.position.step, self.passes, score)
        if self.best is None or best.beats(self.best.score):
            weights = state.gather_model(self.model, self.world)
            if self._commit(lambda: state.save_best(self.folder.best, weights, best)):
                self.best = best

    def _choose(self) -> None:
        """Take the best weights for the result, where the last evaluation was clearly worse."""
        best = self.chosen
        if best is None or self._lately is None:
            return
        self.score = best.score.reporting
        self.sentence = evaluate.kept(best, self._lately.loss, self.baselines, self.position.learned)
        if self.world.is_first and self.world.kind != "fsdp":  # to write the last sample
            state.load_weights(self.folder.best, self.model)

    @property
    def _just_measured(self) -> bool:
        """Whether the last evaluation along the way is of these very weights."""
        return self._measured == self.position.step

    @property
    def chosen(self) -> Best | None:
        """Whose weights the model folder gets: the best ones, or, None, the last."""
        return self.best if self.best is not None and self.best.beats(self._lately) else None

    def _look(self) -> None:
        """Note what goes on inside, over the same rows each time; under FSDP2 no rank holds a whole model."""
        if self.world.kind == "fsdp" or not self.world.is_first:
            return
        try:
            found = probes.figures_of(self.objective, self.task.feed.batch(0), self.world.device)
        except Refused as refused:
            self.report("note", self.position.step, text=f"not looked inside: {refused}")
            return
        if found:
            self.report("inside", self.position.step, tokens=self.position.tokens, **found)

    def _sample(self) -> None:
        """Let the model write; under FSDP2 no rank holds a whole model, so it stays silent."""
        write = self.task.write
        if self.world.kind == "fsdp" or write is None:
            return
        given, made = self.world.on_rank_zero(lambda: list(write(self.model)))
        self.written, self._sampled = (given, made), self.position.step
        self.report("sample", self.position.step, prompt=given, text=made)

    def judge(self, broken: Gradient, again: Gradient, skips: non_finite.Skips) -> None:
        """Deal with a step whose loss or gradient was not finite, and that was run `again`."""
        step = self.position.step
        cause = next((n for n in reversed(broken.norms) if not broken.norms[n] < float("inf")), "the loss")
        what = f"step {step + 1}: not finite (loss {broken.loss}, first at {cause})"
        if again.is_finite:
            self.report(
                "note", step, text=f"{what}; run again it was: suspect the machine's memory or processor"
            )
            return
        may_go_on = skips.add(step)
        self.position.skipped = skips.steps
        text = f"{what}, again when repeated; the step is skipped, no weight was changed"
        self.report("skip", step, loss=broken.loss, grad_norm=broken.norm, cause=cause, text=text)
        if not may_go_on:
            bundle = self._bundle(broken)
            raise Refused(
                f"{what}, {len(skips.steps)} steps skipped: training has broken down. {bundle} holds what "
                f"reproduces it; the checkpoints before it are intact. Start again with a lower --optim.lr "
                f"or with --dtype float32"
            )

    def _bundle(self, broken: Gradient) -> Path:
        weights = state.gather(self.model, self.optimizers, self.world).model
        path = self.folder.faults / f"step-{self.position.step:06d}"
        whole = self.task.feed.batch(self.position.step)
        evidence = non_finite.Evidence(
            step=self.position.step, seed=self.settings.seed, rank=0, dtype=self.choice.name,
            window_ids=whole.ids.tolist(), micro_windows=self.micro.windows, n_targets=whole.n_targets,
            loss=broken.loss, grad_norms=broken.norms, repeated=True, task=self.task.name,
        )  # fmt: skip
        self.world.on_rank_zero(lambda: non_finite.write_bundle(path, evidence, self.model, weights, whole))
        return path

    def halve_micro_batch(self) -> MicroBatch:
        """After the device ran out of memory: half as many windows at a time from now on."""
        windows = self.micro.windows
        if self.world.size > 1 or windows == 1:
            raise Refused(
                f"out of memory with {windows} windows at a time; start again with a smaller --batch.micro, "
                f"model.max_len or model.size, or with --batch.checkpoint-activations"
            )
        self.optimizers.zero_grad()
        if self.world.device.type == "cuda":
            torch.cuda.empty_cache()
        self.micro = MicroBatch(windows // 2, f"{windows} ran out of memory", self.micro.seconds_per_window)
        self.position.micro = self.micro.windows
        text = f"out of memory: {windows // 2} windows at a time instead of {windows}; the step is the same"
        self.report("note", self.position.step, text=text)
        return self.micro

    # ---- saving

    def keep_full_rate(self) -> None:
        """Save before the rate falls: from here the run can be given another limit."""
        self.position.full_rate = self.position.step
        weights = state.gather(self.model, self.optimizers, self.world)
        self._commit(lambda: self._write_checkpoint(weights))

    def _save(self) -> None:
        """Commit a checkpoint and the model folder, so that a run killed later leaves a model that can be
        used."""
        started = time.monotonic()
        gc.collect()
        weights = state.gather(self.model, self.optimizers, self.world)
        self.unsaved = None
        if self._commit(lambda: self._write_checkpoint(weights)):
            self._commit(lambda: self._write_model(weights))
        self._save_seconds = time.monotonic() - started
        self._keep_in_reserve()
        if time.monotonic() - self._drawn > DRAW_SECONDS:
            self._draw()

    def _commit(self, write: Callable[[], Path]) -> bool:
        """Let rank 0 write; False when it could not: a full disk costs this save, never the run."""

        def attempt() -> list[str | None]:
            try:
                return [str(write()), None]
            except (NotSaved, OSError) as error:
                return [None, str(error)]

        started = time.monotonic()
        path, failure = self.world.on_rank_zero(attempt)
        facts = {"elapsed": self.clock.elapsed(), "seconds": time.monotonic() - started}
        if failure is None:
            self.report("save", self.position.step, path=path, **facts)
            return True
        self.unsaved = failure
        text = f"WARNING: {failure}. Training goes on; the next save tries again"
        self.report("save_failed", self.position.step, text=text, **facts)
        return False

    def _write_checkpoint(self, weights: state.Weights) -> Path:
        self.position.joules = self.joules()
        self.position.elapsed = self.clock.elapsed()
        return state.save(self.folder.checkpoints, weights, self.position, self.settings.keep)

    def _write_model(self, weights: state.Weights) -> Path:
        model = load_tensors(self.folder.best / state.WEIGHTS) if self.chosen else weights.model
        self.fingerprint = state.fingerprint(model)
        card = model_card(ledger.account(self))
        with commit(self.folder.model) as folder:
            save_model(folder, self.model, self.task.tokenizer, self.task.generation, card, weights=model)
        return self.folder.model

    def _draw(self) -> None:
        """Bring loss.png and ledger.json up to date."""
        self._drawn = time.monotonic()
        if self.world.is_first and self.report.metrics is not None and not self.report.metrics.broken:
            title = f"{self.folder.path.name}: {self.model.n_parameters:,} parameters"
            try:
                draw_loss(
                    history(self.folder.metrics), self.baselines, title, self.folder.figure, self.task.unit
                )
                ledger.write(self.folder.ledger, ledger.account(self))
            except OSError as error:
                self.report(
                    "note", self.position.step, text=f"warning: {error}; the figure is not up to date"
                )

    def joules(self) -> float:
        """Energy that the run has taken, those before its resumes included."""
        return self._joules_before + self.energy.joules()

    # ---- the end

    def end(self, interrupted: bool) -> Run:
        """Save, evaluate once more and write everything down. Raises `NotSaved` when the last save failed."""
        gc.collect()
        weights = state.gather(self.model, self.optimizers, self.world)
        self.unsaved = None
        saved = self._commit(lambda: self._write_checkpoint(weights))  # first: what follows may be killed
        if not interrupted:
            if self.best is not None and not self._just_measured:
                self._evaluate(self._along)  # whether the last weights are the best
            if self.chosen is None and not (self._just_measured and self._along.n_rows == self.at_end.n_rows):
                self._evaluate(self.at_end)
            if self.best is not None and self.chosen is None and self.world.is_first:
                remove(self.folder.best)
        self._choose()
        if not interrupted and (self.chosen or self._sampled < self.position.step):
            self._sample()
        if saved:
            self._commit(lambda: self._write_model(weights))
        score, seconds = self.score, self.clock.elapsed()
        result: dict[str, Any] = {
            "loss": score.loss if score else None, "bits_per_byte": score.bits_per_byte if score else None,
            "sentence": self.sentence, "tokens": self.position.tokens, "weights_sha256": self.fingerprint,
        }  # fmt: skip
        self.report("end", self.position.step, interrupted=interrupted, elapsed=seconds, unit=self.task.unit,
                    unsaved=self.unsaved, **result)  # fmt: skip
        self._draw()
        if self.unsaved:
            raise NotSaved(self.unsaved)
        return Run(
            folder=self.folder.path, step=self.position.step, **result, references=self.baselines,
            prompt=self.written[0], sample=self.written[1], task=self.task.name, unit=self.task.unit,
            seconds=seconds, interrupted=interrupted,
            soon=self._soon() if interrupted else "",
        )  # fmt: skip

    def _soon(self) -> str:
        """The limit that ends a run after a tenth more, where its rate has not fallen yet.

        Tiny Shakespeare, 96 wide, stopped at step 150 of 400, means of 3 seeds (2026-11-29), held-out nats:
        4.32; after 15 more steps at the full rate 4.30, after 15 in which it falls 4.05.
        """
        position, budget = self.position, self.budget
        if position.full_rate is not None or self.settings.optim.schedule != "wsd":
            return ""
        if budget.steps is not None:
            steps = position.step + math.ceil(position.step / 10)
            return f"--steps {steps}" if steps < budget.steps else ""
        seconds = 5 * math.ceil((1.1 * position.elapsed + self.reserve) / 5)
        return f"--budget {format_time(seconds)}" if seconds < (budget.time or 0) else ""
