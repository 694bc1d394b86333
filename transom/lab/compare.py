"""`transom compare`: members of the family trained one after the other on the same data, side by side.

Same data, same seed, same tokens in a step, and the same time or the same number of tokens; with `equal` also
the same number of parameters, by choosing each one's width. The data is prepared before the first clock
starts, and every member is checked before the first is trained. Read next: comparison, equal_size.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ..checkpoint.huggingface import load_model
from ..errors import Refused, nearest
from ..hardware import Hardware
from ..model.config import ModelConfig
from ..settings import ALIASES, TrainSettings, load
from ..training import evaluate
from ..training.architecture import CAN, model_config
from ..training.evaluate import Score
from ..training.folder import RunFolder
from ..training.loop import train
from ..training.parallelism import World
from ..training.report import Report
from ..training.run import Run
from ..training.task import Task
from ..training.task_facts import CELLS
from ..training.tasks import choose_task, prepare_task
from ..units import format_time, parse_count, parse_time
from .comparison import Comparison, Outcome
from .equal_size import Equal, count, equal_width

SCORED = 512
"""Held-out rows, at the least, that every member is scored on at the end; all where there are fewer."""
EXPERTS = 8
"""Experts of a member `+experts` when the settings give no number."""
Scores = Callable[[Path], Mapping[str, float]]
"""From a run's folder to scores of the task's own, such as {"BLEU": 41.0}."""


@dataclass(frozen=True)
class Member:
    """One to be trained."""

    name: str
    settings: TrainSettings
    config: ModelConfig


def compare(
    members: Sequence[str],
    settings: Mapping[str, Any],
    *,
    by: Literal["time", "tokens"] = "time",
    budget: str | float,
    out: Path,
    equal: Equal | None = None,
    score: Scores | None = None,
) -> Comparison:
    """Train each of `members` in OUT/MEMBER and return them side by side; writes compare.json, .md and .png.

    members: decoder, lstm, ..., or with `+experts`. settings: as for training, for all of them. budget: a
    time (`5min`) or a number of tokens (`2M`), for each. equal: give all as many parameters (or active
    ones) as the first has, tables that are only looked up left out. Raises `Refused`.
    """
    plans, task = plan_members(members, settings, by, budget, out, equal)
    outcomes: list[Outcome] = []
    for number, member in enumerate(plans):
        with Report(is_first=True) as report:
            report("note", text=f"---- {member.name}, {number + 1} of {len(plans)}")
        fresh_peak()
        run = train(member.settings)
        if run.ledger:
            done = not run.interrupted
            scores = dict(score(run.folder)) if score is not None and done else {}
            quality = final_score(run, task, member.settings) if done else None
            outcomes.append(Outcome.of(member.name, run, count(member.config), quality, scores))
        left = tuple(plan.name for plan in plans[number + 1 :])
        comparison = Comparison(protocol(plans[0], by, budget, equal), task.unit, tuple(outcomes), left)
        comparison.save(out)  # after each, so that what is done is not lost
        if run.interrupted:
            break
    return comparison


def final_score(run: Run, task: Task, settings: TrainSettings) -> Score | None:
    """How good a finished run's model is, on held-out rows that are the same for every member."""
    device = torch.device(Hardware.detect(settings.device).device)
    model = load_model(run.model_folder, device=device)
    objective = task.objective(model, getattr(torch, run.ledger["dtype"]["name"]))
    return evaluate.score(objective, task.eval_set(SCORED, device.type == "cuda"), World(device=device))


def plan_members(
    members: Sequence[str],
    settings: Mapping[str, Any],
    by: Literal["time", "tokens"],
    budget: str | float,
    out: Path,
    equal: Equal | None,
) -> tuple[list[Member], Task]:
    """Everyone's settings, checked, and the task that they share; the data is prepared on the way."""
    check_names(members, out)
    limit = limit_of(by, budget)
    common = load(TrainSettings, {"data.cache": str(out / "data"), **settings, **limit})
    chosen = [_chosen(name, common, out) for name in members]
    tasks = {name: plan.task for name, plan in zip(members, chosen, strict=True)}
    for name, task in tasks.items():
        if task != tasks[members[0]]:
            raise Refused(
                f"{members[0]} would learn {tasks[members[0]]} and {name} {task}: their losses cannot be "
                "compared; name members that learn the same, or say which with --task"
            )

    # The first one is prepared in full: it shows the vocabulary, the labels and the tokens of a step.
    with Report(is_first=True) as report:
        shared = prepare_task(chosen[0], RunFolder(out / members[0]), World(), report)
    if shared.begin is not None:
        raise Refused(
            f"the task is {shared.name}, which goes on from a model that is there, and compare trains from "
            "nothing; train each by itself (transom train --model.weights)"
        )
    first = shared.config
    target = count(first, equal) if equal else 0
    same_step = {"batch.tokens": common.batch.tokens or shared.feed.tokens_per_step}
    plans = []
    for name, plan in zip(members, chosen, strict=True):
        plan = plan.with_(same_step)
        if equal and name != members[0]:
            width = equal_width(lambda dim, plan=plan: config_of(at(plan, dim), first), target, name, equal)
            plan = at(plan, width)
        plans.append(Member(name, plan, config_of(plan, first)))
    return plans, shared


def at(settings: TrainSettings, dim: int) -> TrainSettings:
    """Settings of a model of another width, with heads of about 64 that together are as wide.

    Experts are rounded to 2 and not to 8: nine of them would leap past a size.
    """
    shape, model = {"model.dim": dim}, settings.model
    if model.experts and model.expert_dim is None:
        through = model.active_experts + model.shared_experts
        shape["model.expert_dim"] = max(8, 2 * round((model.ffn_dim or 8 / 3 * dim) / through / 2))
    if settings.model.kind not in CELLS and settings.model.head_dim is None:
        shape["model.head_dim"] = 2 * (dim // max(1, round(dim / 64)) // 2)
    return settings.with_(shape)


def config_of(settings: TrainSettings, first: ModelConfig) -> ModelConfig:
    """The model of some settings, with the vocabulary and the labels of the first member."""
    ids = dict(pad_id=first.pad_id, bos_id=first.bos_id, eos_id=first.eos_id, start_id=first.start_id)
    return model_config(settings.model, first.vocab_size, settings.task, first.labels, **ids)


def check_names(members: Sequence[str], out: Path) -> None:
    """Refuse a comparison of nothing, of the same twice, of strangers, or over another's runs."""
    if len(members) < 2:
        raise Refused(f"{len(members)} member to compare; name two or more, such as lstm decoder")
    known = [*CAN, *ALIASES]
    for number, name in enumerate(members):
        kind, plus, rest = name.partition("+")
        if kind not in known:
            raise Refused(f"'{name}' is not a member of the family{nearest(kind, known)}; it can be "
                          f"{', '.join(CAN)}, or one with +experts")  # fmt: skip
        if plus and rest != "experts":
            raise Refused(f"'{name}': what follows the + can be experts only{nearest(rest, ['experts'])}")
        if name in members[:number]:
            raise Refused(f"{name} is named twice; its two runs would be the same")
        if RunFolder(out / name).holds_a_run:
            raise Refused(f"{out / name} holds a run already; choose another --out")


def limit_of(by: Literal["time", "tokens"], budget: str | float) -> dict[str, float]:
    """The setting that ends each run. Raises `Refused`."""
    try:
        return {"budget": parse_time(budget)} if by == "time" else {"tokens": parse_count(budget)}
    except ValueError as error:
        raise Refused(f"budget: {error}") from None


def _chosen(name: str, common: TrainSettings, out: Path) -> TrainSettings:
    """A member's own settings over the common ones, its task settled."""
    kind, plus, _ = name.partition("+")
    own: dict[str, Any] = {"out": str(out / name), "model.kind": kind}
    own["model.experts"] = (common.model.experts or EXPERTS) if plus else 0
    return choose_task(common.with_(own), Report(is_first=False))


def protocol(first: Member, by: str, budget: str | float, equal: Equal | None) -> str:
    """What was equal, in one sentence."""
    settings = first.settings
    each = format_time(settings.budget) if by == "time" and settings.budget else f"{settings.tokens:,} tokens"
    sizes = {
        None: "",
        "parameters": ", as many parameters that multiply",
        "active": ", as many active parameters that multiply",
    }
    data = "/".join(Path(settings.data.source).parts[-2:])
    return (
        f"{each} for each member{sizes[equal]}, {data} ({settings.task}), seed {settings.seed}, "
        f"{settings.batch.tokens:,} tokens a step"
    )


def fresh_peak() -> None:
    """Give back what the last member held and count peak memory from here, where that can be done."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    counter = Path("/proc/self/clear_refs")  # Linux: 5 sets the process's peak back to what it holds now
    if counter.exists():
        counter.write_text("5")
