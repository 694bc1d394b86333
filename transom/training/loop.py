"""The training loop: from settings to a trained model in a folder, top to bottom.

A task gives data, model and objective; the model is new or brought back; and then step after step: a batch
that is a pure function of (seed, step), the gradient of its mean loss, one update. Everything else
(evaluations, samples, checkpoints) happens between two steps, so that a run can stop after any step and go on
with the same bits. Read next: task, gradient, recorder, state, parallelism.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .. import hardware as machine
from ..data.sources import open_source
from ..hardware import Hardware
from ..model.experts import routers
from ..model.layers import set_dropout
from ..model.lora import hold_frozen
from ..settings import TrainSettings
from . import ledger, state
from .architecture import by_evidence, optimizer, phases, rates, settle
from .budget import SCHEDULES, Clock
from .folder import open_folder
from .forecast import activation_bytes, expect, refuse_what_cannot_fit, state_bytes
from .gradient import clip, take_gradient
from .micro_batch import MicroBatch, find_micro_batch, halve
from .more_time import finished, go_on_from, refuse_limit
from .non_finite import Skips, judge
from .optimizers import Optimizers
from .parallelism import World, together
from .parts import RunParts
from .pretrained import base_hash
from .recorder import Recorder
from .report import Event, Report, check_followers
from .routing import forget, rebalance
from .run import Run
from .saver import Saver
from .signals import Interrupted, StopSignals
from .task import Task
from .tasks import choose_task, prepare_task


def train(settings: TrainSettings, *, on_event: Callable[[Event], None] | None = None) -> Run:
    """Train a model as `settings` say and return the run; `on_event` hears every event of metrics.jsonl.

    Bounded by steps or tokens, a run is reproducible: stopped after any step and resumed with as many
    processes, it ends with the same bits. Bounded by time it is not, since speed decides how many steps there
    are; its schedule still ends at zero. SIGINT and SIGTERM finish the step, save, and return a Run that is
    `interrupted`. Raises `Refused`; `NotSaved`, which is one, when the last save failed.
    """
    clock = Clock()
    check_followers(settings.log)
    if settings.general is not None:
        open_source(settings.general)  # read when all is learned, and refused before
    hardware = Hardware.detect(settings.device)
    machine.keep_memory()
    with ExitStack() as stack:
        if settings.deterministic:
            stack.enter_context(deterministic())
        stopping = stack.enter_context(StopSignals())
        world = stack.enter_context(together(settings.parallel, hardware.device))
        if world.size > 1:  # alone, a caller's choice of threads stands
            machine.use_threads(world.local_size)
            stopping.quiet = True
        folder, resuming = open_folder(settings, world, stack)
        if resuming:  # what is not said again is as it was
            settings = settings.with_({"out": str(folder.path), "resume": True})
        report = stack.enter_context(Report(world.is_first, on_event, settings.quiet))
        if resuming and (run := finished(folder, settings, report)):
            return run

        # Where the run stands: at its beginning, or at its newest checkpoint that is whole.
        checkpoint = state.newest(folder.checkpoints, world, report) if resuming else None
        position = state.load_position(checkpoint) if checkpoint else state.Position()
        if checkpoint:
            refuse_limit(folder, checkpoint, position, settings)

        # What is to be learned. Data becomes tokens, once; the other ranks open what rank 0 prepared.
        try:
            with stopping.at_once():
                settings = choose_task(settings, report)
                task = prepare_task(settings, folder, world, report)
        except Interrupted:
            return Run.of_nothing(folder.path, settings.prompt or "")

        # How long, and how fast. What the settings leave to a rule is settled here.
        config, feed = task.config, task.feed
        by_rule = {"optim.name": optimizer(settings), **phases(settings, config)}
        by_rule |= by_evidence(settings, task.facts.get("examples"))
        settings = settings.with_(by_rule)
        lora = settings.method == "lora"
        peak_rates = rates(settings.optim, config, settings.task, bool(settings.model.weights), lora)

        # On what it runs, and from which checkpoint it goes on.
        choice = hardware.choose_dtype(position.dtype if checkpoint else settings.dtype)
        refuse_what_cannot_fit(settings, config, hardware, choice.dtype, world.local_size)
        step_tokens = settings.batch.tokens or feed.tokens_per_step
        settled = settle(settings, config, peak_rates, step_tokens, choice.name)
        base = base_hash(settings)
        if checkpoint:
            state.check_unchanged(position, settled, task.data_hash, task.tokenizer.hash, base)
            checkpoint, position = go_on_from(folder, checkpoint, position, settled, feed, world, report)
            clock = Clock(position.elapsed)
        position.versions = ledger.versions()
        position.data_hash, position.tokenizer_hash = task.data_hash, task.tokenizer.hash
        position.base_hash = base
        position.world_size, position.dtype = world.size, choice.name

        # The model, what it minimises, and both spread over the ranks.
        base_bytes = machine.resident_memory()
        model = task.build(settings.seed)
        hold_frozen(model, choice.dtype)
        model.to(world.device)
        model.checkpoint_activations = settings.batch.checkpoint_activations
        objective = task.objective(model, choice.dtype)
        try:
            with stopping.at_once():
                if task.begin is not None:
                    task.begin(objective, world)
        except Interrupted:
            return Run.of_nothing(folder.path, settings.prompt or "")
        if checkpoint:
            state.load_weights(checkpoint, model)
        share = max(1, feed.n_rows // world.size)
        micro = choose_micro_batch(objective, task, settings, position, share, hardware, world)
        settings, budget, expected = expect(
            settings, config, hardware, choice, feed, micro, world, base_bytes
        )
        settled = settled.with_(expected.by_rule)
        position.settings = settled.identity()
        set_dropout(model, settled.model.dropout or 0.0)
        layers = model.blocks()
        if settings.compile == "on" or (settings.compile == "auto" and world.device.type == "cuda"):
            for layer in layers:  # one layer is compiled, the others share its code
                layer.compile()
        spread = world.wrap(objective, layers)
        optimizers = Optimizers(model, settings.optim, peak_rates, choice.dtype)
        if checkpoint:
            state.load_optimizer(checkpoint, optimizers)

        # What is recorded and saved between steps; from here on the run's folder is written.
        skips = Skips(position.skipped)
        run = RunParts(
            settings=settled, folder=folder, task=task, model=model, objective=spread, optimizers=optimizers,
            rates=peak_rates, world=world, report=report, position=position, budget=budget, clock=clock,
            energy=machine.EnergyMeter(hardware, position.joules), stopping=stopping, hardware=hardware,
            choice=choice, expected=expected,
        )  # fmt: skip
        saver = Saver(run)
        recorder = Recorder(run, saver, micro, checkpoint)

        # Step after step, until the budget is used up or somebody asks to stop.
        schedule = SCHEDULES[settings.optim.schedule]
        named, routed = dict(model.named_parameters()), routers(model)
        model.train()
        stack.enter_context(no_collector())
        if not checkpoint:  # the schedule begins now, however long the data took
            clock.forgive(budget, report)
            position.began = world.on_rank_zero(clock.elapsed)
            position.step_seconds = share * (micro.seconds_per_window or 0.0)
        budget = replace(budget, began=position.began, since=position.since)
        while True:
            # All ranks agree on the targets of the step, on the time (rank 0's), and on whether to go on.
            batch = feed.batch(position.step, world.rank, world.size)
            own = recorder.clocks() if world.is_first else [0.0, 0.0, 0.0]
            said = [batch.n_targets, len(batch.tokens), float(stopping.requested), *own]
            n_targets, n_rows, asked, *clocks = world.sum(said)
            position.elapsed, position.step_seconds, _ = clocks
            if asked or budget.over(position.step, *clocks):
                break

            # Where the step stands in the run; before the rate falls a checkpoint is kept (more_time).
            place = budget.position(position.step, *clocks)
            fall = budget.cooldown(settings.optim.cooldown or 0.0)
            if place > 1 - fall and position.full_rate is None and settings.optim.schedule == "wsd":
                saver.keep_full_rate()
            started = time.perf_counter()

            # The gradient of the step's mean loss. Broken numbers are met before they can reach a weight.
            most = -(-int(n_rows) // world.size)  # rows of a rank: may be more or fewer than usual
            rows = -(-most * micro.windows // share)
            parts: list[Any] = [part.to(world.device) for part in batch.split(rows)]
            parts += [None] * (-(-most // rows) - len(parts))  # as many passes on every rank
            step = (spread, parts, int(n_targets), named, world, settings.seed, position.step, task.divisor)
            forget(routed)
            try:
                gradient = take_gradient(*step)
            except torch.OutOfMemoryError:
                recorder.micro = micro = halve(micro, spread, world)
                position.micro = micro.windows
                report("note", position.step, text=f"out of memory: {micro.reason}; the step is the same")
                continue  # the same step, in smaller pieces
            if not gradient.is_finite:
                forget(routed)
                broken, gradient = gradient, take_gradient(*step)
                judge(broken, gradient, skips, run, micro.windows)

            # The update.
            optim = settings.optim
            rise = budget.warmup(optim.warmup or 0.0, optim.warmup_steps or 0, *clocks[1:])
            factor = schedule(place, rise, fall)
            if gradient.is_finite:
                clip(named, gradient.norm, settings.optim.clip)
                optimizers.set_factor(factor)
                optimizers.step()
            load = rebalance(routed, world)
            position.step += 1
            position.tokens += feed.tokens_per_step

            recorder.after_step(gradient, place, factor, time.perf_counter() - started, load)

        return recorder.end(interrupted=bool(asked))


def choose_micro_batch(
    objective: nn.Module,
    task: Task,
    settings: TrainSettings,
    position: state.Position,
    share: int,
    hardware: Hardware,
    world: World,
) -> MicroBatch:
    """Choose the micro-batch out of this rank's `share` of rows: the run's own when it is resumed."""
    config, feed = task.config, task.feed
    dtype: Any = objective.dtype
    kept = sum(state_bytes(settings, objective.model, dtype))  # type: ignore[arg-type]
    found = find_micro_batch(
        objective, share, feed.row_length, feed.trial, world.device,
        bytes_of=lambda n: activation_bytes(
            config, n * feed.row_length, dtype, settings.batch.checkpoint_activations
        ),
        free_bytes=hardware.memory // world.local_size - kept,
        seconds=6.0 if settings.budget is None else min(6.0, 0.03 * settings.budget),
        only=position.micro or settings.batch.micro,
    )  # fmt: skip
    agreed = world.on_rank_zero(lambda: [found.windows, found.reason, found.seconds_per_window])
    position.micro = agreed[0]
    return MicroBatch(*agreed, measured=found.measured)


@contextmanager
def deterministic() -> Iterator[None]:
    """Let only operations run that give the same bits every time; slower on a GPU."""
    was_on = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on)


@contextmanager
def no_collector() -> Iterator[None]:
    """Collect cycles by hand (at every save) instead of in the middle of a step."""
    was_on, was_frozen = gc.isenabled(), gc.get_freeze_count() > 0
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        if not was_frozen:  # else what a caller froze would be looked at again
            gc.unfreeze()
        if was_on:
            gc.enable()
