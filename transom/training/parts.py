"""The parts of a run, once all is settled: what the loop, the recorder and the saver work with.

What happens with them stands in `loop`, `recorder` and `saver`. Read next: recorder.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..checkpoint.families import family_for
from ..hardware import DtypeChoice, EnergyMeter, Hardware
from ..model.build import Model
from ..settings import TrainSettings
from ..units import counted
from .budget import Budget, Clock
from .folder import RunFolder
from .forecast import Forecast
from .micro_batch import MicroBatch
from .optimizers import Optimizers, Rates
from .parallelism import World
from .report import Report
from .signals import StopSignals
from .state import Position
from .task import Task


@dataclass(frozen=True)
class RunParts:
    """Everything that a run is made of, from its first step to its end."""

    settings: TrainSettings
    """Every rule replaced by what it gave."""
    folder: RunFolder
    task: Task
    model: Model
    objective: nn.Module
    """As spread over the ranks."""
    optimizers: Optimizers
    rates: Rates
    world: World
    report: Report
    position: Position
    """The one part that moves: where the run stands."""
    budget: Budget
    clock: Clock
    energy: EnergyMeter
    stopping: StopSignals
    hardware: Hardware
    choice: DtypeChoice
    expected: Forecast

    @property
    def passes(self) -> float:
        """How often the run has gone through its data."""
        return self.position.step / self.task.feed.steps_per_epoch

    @property
    def architecture(self) -> str | None:
        """The Hugging Face architecture that the model is written as, or None for Transom's own format."""
        family = family_for(self.model.config)
        return None if family is None else family.architecture_of(self.model.config)

    def in_words(self, micro: MicroBatch) -> list[str]:
        """Say before the work what is about to happen, a line for each thing."""
        config, expected, n_parameters = self.model.config, self.expected, self.model.n_parameters
        layers = counted(config.n_layers, "layer")
        if config.n_encoder_layers is not None:
            read = counted(config.n_encoder_layers, "layer")
            layers = f"{read} that read and {config.n_layers} that write,"
        active = self.model.n_active_parameters
        used = f" ({active:,} active)" if active < n_parameters else ""
        written = (
            "Transom's own; no Hugging Face family has all these parts, so transformers will not read it"
        )
        if self.architecture is not None:
            written = f"{self.architecture}, which transformers and what follows it read"
        if self.settings.method == "lora":
            learned = (
                f", {expected.learned:,} of them learned beside them (LoRA of rank {self.settings.lora.rank})"
            )
            used += learned
            written = "a PEFT adapter, which PEFT and vLLM read"
        ranks = f", {self.world.size} processes ({self.world.kind})" if self.world.size > 1 else ""
        baselines = ", ".join(f"{name} {nats:.2f}" for name, nats in self.task.baselines.items()) or "none"
        return [
            f"run: {self.folder.path}",
            f"model: {config.cell or config.kind} of {n_parameters:,} parameters{used}, {layers} "
            f"of {config.dim}, context {config.max_len}, vocabulary {config.vocab_size:,}",
            f"format: {written}",
            f"arithmetic: {self.choice.reason}{ranks}",
            f"step: {expected.tokens_per_step:,} tokens, {micro.windows} rows at a time ({micro.reason})",
            f"rates: {self.rates.in_words(self.settings.optim)}",
            f"expected: {expected.steps:,} steps, {expected.tokens / 1e6:,.1f}M tokens, "
            f"{expected.seconds / 60:,.1f} min, {expected.memory_bytes / 1e6:,.0f} MB",
            f"data: {expected.says_passes}",
            f"baselines: {baselines} nats per {self.task.unit}",
        ]
