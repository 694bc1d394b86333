"""What a run would cost, before it costs it: parameters, memory, tokens, time, energy, with the formulas.

`plan(settings)` prepares the data as `train` does and times a piece of a step, because a share of the peak
that holds on one machine is wrong by half on the next. The ledger of the run grades the forecast afterwards.
Read next: ledger.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..errors import Refused
from ..hardware import DtypeChoice, Hardware, resident_memory
from ..model.build import Model
from ..model.config import ModelConfig
from ..model.initialize import is_matrix
from ..model.lora import frozen_matrices, hold_frozen
from ..model.losses import run_rows
from ..settings import TrainSettings
from ..units import counted
from .architecture import (
    ENOUGH,
    MOST_PASSES,
    against_memorising,
    by_evidence,
    longest_row,
    memorises,
    optimizer,
    rates,
    without_storage,
)
from .budget import Budget
from .folder import RunFolder
from .micro_batch import MicroBatch, find_micro_batch
from .parallelism import World
from .pretrained import with_adapters
from .report import Report
from .task import Feed
from .tasks import choose_task, prepare_task

OVERHEAD_SHARE = 0.06
"""Of a run's time: evaluations, samples, saves, as measured on runs of some minutes."""

FIXED_SECONDS = 2.0
"""Of a run, however short: measuring the machine, the first and the last save."""

ASSUMED_SHARE = 0.35
"""Of the peak that training reaches, where nothing was measured."""


@dataclass(frozen=True)
class Forecast:
    """What a run is expected to take. It prints itself. Bytes, seconds, watt-hours."""

    parameters: int
    """Numbers in the weights."""
    learned: int
    """Of them; the others are frozen."""
    base_bytes: int
    """Python, PyTorch and its kernels, and what is held of the data; 0 where memory of a GPU is meant."""
    weights_bytes: int
    """Four for each parameter; frozen matrices as wide as the arithmetic."""
    gradient_bytes: int
    """Of the learned parameters."""
    optimizer_bytes: int
    """What the optimizer keeps for each of them."""
    activation_bytes: int
    """What the forward pass of one micro-batch keeps for the backward pass."""
    tokens_per_step: int
    """Of one optimizer step, over all processes."""
    micro_windows: int
    """Rows that go through the model at once."""
    steps: int
    """Optimizer steps of the run."""
    tokens: int
    """Tokens that it learns from, those read several times counted each time."""
    passes: float
    """How often the run goes through what it learns from."""
    tokens_per_second: float
    """Of training, without what stands between the steps."""
    seconds: float
    """Time of the whole run."""
    flops: float
    """Floating-point operations of all steps."""
    watt_hours: float
    """Energy, at the power that `reason` names."""
    measured: bool
    """Whether the speed was timed on this machine (else assumed as a share of its peak)."""
    reason: str
    """How dtype, speed and energy were come by."""
    rates: str = ""
    """The peak learning rates, in words."""
    enough: float | None = None
    """Passes after which a model from nothing memorises so little data, where the run makes more."""
    most: float | None = None
    """Passes of a shorter run that would do better, where this one makes more."""
    by_rule: dict[str, float] = field(default_factory=dict)
    """The settings that follow from that, by dotted name."""

    @property
    def memory_bytes(self) -> int:
        """The sum of the five."""
        kept = self.weights_bytes + self.gradient_bytes + self.optimizer_bytes
        return self.base_bytes + kept + self.activation_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "memory_bytes": self.memory_bytes}

    @property
    def says_passes(self) -> str:
        """How often the run goes through the data, and what that means."""
        words = f"gone through {self.passes:,.2g} times"
        if self.enough is None:
            return words
        tokens = f"{self.tokens / self.passes:,.0f} tokens with {self.parameters:,} parameters"
        shorter = f" or a shorter run (--epochs {self.most:g})" if self.most else ""
        words += (
            f", {tokens}: a model from nothing memorises so little after some {self.enough:g}; more data, "
            f"pretrained weights (--model.weights){shorter} may do better"
        )
        rules = [f"--{name.replace('_', '-')} {value:g}" for name, value in self.by_rule.items()]
        return f"{words}; by rule {', '.join(rules)}" if rules else words

    def __str__(self) -> str:
        mb = {name: size / 1e6 for name, size in self.to_dict().items() if name.endswith("_bytes")}
        how = "measured" if self.measured else "assumed"
        weights = "(4 bytes each)" if self.learned == self.parameters else "(4 bytes each that learns)"
        return "\n".join([
            f"parameters  {self.parameters / 1e6:,.2f} million"
            + (f", {self.learned / 1e6:,.2f} of them learned" if self.learned < self.parameters else ""),
            f"memory      {mb['memory_bytes']:,.0f} MB = the program {mb['base_bytes']:,.0f}"
            f" + weights {mb['weights_bytes']:,.0f} {weights} + gradients {mb['gradient_bytes']:,.0f}"
            f" (4) + optimizer {mb['optimizer_bytes']:,.0f} (Muon 4, AdamW 8)"
            f" + activations {mb['activation_bytes']:,.0f} (micro-batch of {self.micro_windows} windows)",
            f"tokens      {self.tokens / 1e6:,.2f} million, "
            f"{counted(self.steps, 'step')} of {self.tokens_per_step:,}",
            f"data        {self.says_passes}",
            f"rates       {self.rates}",
            f"speed       {self.tokens_per_second:,.0f} tokens/s, {how}",
            f"time        {self.seconds / 60:,.1f} min, {self.flops:.2e} floating-point operations",
            f"energy      {self.watt_hours:,.2f} Wh",
            f"            {self.reason}",
        ])  # fmt: skip


def refuse_what_cannot_fit(
    settings: TrainSettings, config: ModelConfig, hardware: Hardware, dtype: torch.dtype, processes: int = 1
) -> None:
    """Raise `Refused` when not even one window at a time fits: said before a weight is made.

    processes: how many share this machine's memory, each with weights of its own.
    """
    model = with_adapters(without_storage(config), settings)
    kept, length = sum(state_bytes(settings, model, dtype)), longest_row(settings, config)
    needed = kept + activation_bytes(config, length, dtype, settings.batch.checkpoint_activations)
    if processes * needed > hardware.memory:
        raise Refused(
            f"this model would take {processes * needed / 1e9:,.1f} GB to train, one window of "
            f"{length:,} tokens at a time ({kept / 1e9:,.1f} GB of it weights, gradients and "
            f"optimizer), and {hardware.memory / 1e9:,.1f} GB are free; choose a smaller --model.size, "
            "--model.dim or --model.max-len"
        )


def state_bytes(
    settings: TrainSettings, model: Model, dtype: torch.dtype = torch.float32
) -> tuple[int, int, int]:
    """Count the bytes of weights, gradients, and the optimizer's averages (Muon one, AdamW two): 4 for each
    number that learns. What is frozen has no more than itself, its matrices in `dtype` (`hold_frozen`).
    """
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    count = sum(p.numel() for p in learning.values())
    matrices = sum(p.numel() for name, p in learning.items() if is_matrix(name, p))
    held = sum(layer.weight.numel() for layer in frozen_matrices(model))
    weights = 4 * (model.n_parameters - held) + torch.empty(0, dtype=dtype).element_size() * held
    return weights, 4 * count, 8 * count - (4 * matrices if settings.optim.name != "adamw" else 0)


def plan(settings: TrainSettings, *, measure: bool = True) -> Forecast:
    """Forecast the run that `train` would make of these settings: same data, same model, same refusals.

    The data is read and made tokens, in a temporary folder unless data.cache names one; nothing is learned.
    measure: time a trial here; without it the speed is assumed from the machine's measured peak. Raises
    `Refused`.
    """
    hardware = Hardware.detect(settings.device)
    choice = hardware.choose_dtype(settings.dtype)
    with TemporaryDirectory() as place, Report(is_first=False) as silent:
        settings = choose_task(settings, silent)
        task = prepare_task(settings, RunFolder(Path(place)), World(), silent)
        feed, config = task.feed, task.config
        by_rule = {"optim.name": optimizer(settings), **by_evidence(settings, task.facts.get("examples"))}
        settings = settings.with_(by_rule)
        refuse_what_cannot_fit(settings, config, hardware, choice.dtype)
        base_bytes = resident_memory()
        micro = MicroBatch(min(settings.batch.micro or 4, feed.n_rows), "not measured")
        if measure:
            model = task.build(settings.seed)
            hold_frozen(model, choice.dtype)
            model.to(hardware.device)
            less = model.checkpoint_activations = settings.batch.checkpoint_activations
            micro = find_micro_batch(
                task.objective(model, choice.dtype), feed.n_rows, feed.row_length, feed.trial,
                torch.device(hardware.device),
                bytes_of=lambda n: activation_bytes(config, n * feed.row_length, choice.dtype, less),
                free_bytes=hardware.memory, seconds=4.0, only=settings.batch.micro,
            )  # fmt: skip
        return expect(settings, config, hardware, choice, feed, micro, World(), base_bytes)[2]


def expect(
    settings: TrainSettings,
    config: ModelConfig,
    hardware: Hardware,
    choice: DtypeChoice,
    feed: Feed,
    micro: MicroBatch,
    world: World,
    base_bytes: int = 0,
) -> tuple[TrainSettings, Budget, Forecast]:
    """Forecast a run: its settings, with what follows where it memorises, its bound, what it takes."""

    def foreseen() -> tuple[Budget, Forecast]:
        budget = Budget.of(settings, feed.tokens_per_step, feed.steps_per_epoch)
        return budget, forecast(
            settings, config, hardware, choice, feed, budget, micro, world.size, base_bytes
        )

    budget, expected = foreseen()
    by_rule = world.on_rank_zero(lambda: against_memorising(settings) if expected.enough else {})
    if by_rule:
        settings = settings.with_(by_rule)
        budget, expected = foreseen()
        expected = replace(expected, by_rule=by_rule)
    return settings, budget, expected


def forecast(
    settings: TrainSettings,
    config: ModelConfig,
    hardware: Hardware,
    choice: DtypeChoice,
    feed: Feed,
    budget: Budget,
    micro: MicroBatch,
    world_size: int = 1,
    base_bytes: int = 0,
) -> Forecast:
    """Do the arithmetic of a forecast.

    feed: the rows of a step, over all ranks. base_bytes: what the process held before any weight.
    """
    model = with_adapters(without_storage(config), settings)
    tokens_per_step, length = feed.tokens_per_step, feed.row_length
    flops_per_token = model.flops_per_token(length)
    weights, gradients, averages = state_bytes(settings, model, choice.dtype)
    lora = settings.method == "lora"
    peak = rates(settings.optim, config, settings.task, bool(settings.model.weights), lora)

    # How fast: as a trial of a micro-batch was, else by a share of the machine's peak.
    if micro.seconds_per_window is None:
        speed = ASSUMED_SHARE * hardware.peak_flops(choice.dtype) / flops_per_token
    else:
        speed = tokens_per_step / feed.n_rows / micro.seconds_per_window
        if settings.optim.name != "adamw":
            speed /= 1 + 4 * config.dim / tokens_per_step  # Newton-Schulz beside the step (see optimizers)
    speed *= world_size

    # How long: steps give the time, or time gives the steps.
    if budget.steps is not None:
        steps = budget.steps
        seconds = FIXED_SECONDS + steps * tokens_per_step / speed * (1 + OVERHEAD_SHARE)
    else:
        assert budget.time is not None
        seconds = budget.time
        steps = max(1, int(seconds * (1 - OVERHEAD_SHARE) * speed / tokens_per_step))
    watts, how = hardware.watts()

    # How often through the data, and whether that is more than teaches.
    passes = steps / feed.steps_per_epoch
    n_tokens, enough, most = feed.steps_per_epoch * tokens_per_step, None, None
    if memorises(settings, model.n_parameters, n_tokens, passes):
        enough = ENOUGH[settings.task]
        most = MOST_PASSES.get(settings.task, enough)
    return Forecast(
        parameters=model.n_parameters,
        learned=sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        base_bytes=0 if hardware.device.startswith("cuda") else base_bytes,
        weights_bytes=weights,
        gradient_bytes=gradients,
        optimizer_bytes=averages,
        activation_bytes=activation_bytes(
            config, micro.windows * length, choice.dtype, settings.batch.checkpoint_activations
        ),
        tokens_per_step=tokens_per_step,
        micro_windows=micro.windows,
        steps=steps,
        tokens=steps * tokens_per_step,
        passes=passes,
        tokens_per_second=speed,
        seconds=seconds,
        flops=steps * tokens_per_step * flops_per_token,
        watt_hours=watts * seconds / 3600,
        measured=micro.seconds_per_window is not None,
        reason=f"{choice.reason}; energy: {watts:.0f} W, {how}",
        rates=peak.in_words(settings.optim),
        enough=enough,
        most=most if most is not None and round(passes, 1) > most else None,  # whole steps are a little more
    )


def activation_bytes(config: ModelConfig, tokens: int, dtype: torch.dtype, checkpointing: bool) -> int:
    """Return what a micro-batch of so many tokens keeps for its backward pass.

    Per token and layer, in numbers: 6 D (norms, their input and output, branch results), 3 H K + 4 G K
    (queries and keys before and after rotation, values, mixed), 4 F gated or 2 F plain; with checkpointing D
    alone, plus one layer in full. Besides: weights cast to `dtype` once, embeddings, and the runs of logits
    of the loss.
    """
    wide, narrow = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    inner = config.ffn_dim
    if config.experts is not None:
        inner = config.experts.ffn_dim * (config.experts.n_active + config.experts.n_shared)
    per_layer = 6 * config.dim + 3 * wide + 4 * narrow + (4 if config.gated else 2) * inner
    n_layers = config.n_layers + (config.n_encoder_layers or 0)
    numbers = n_layers * (config.dim if checkpointing else per_layer) + 3 * config.dim
    numbers += per_layer if checkpointing else 0
    size = torch.empty(0, dtype=dtype).element_size()
    matrices = n_layers * (config.dim * (2 * wide + 2 * narrow + (3 if config.gated else 2) * config.ffn_dim))
    cast = size * matrices if dtype != torch.float32 else 0
    head = config.vocab_size * config.dim * (size + 4)
    logits = 3 * 4 * config.vocab_size * min(tokens, run_rows(config.vocab_size, config.dim))
    return tokens * numbers * size + cast + head + logits
