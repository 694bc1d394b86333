"""Which task a run has, and its preparation: from a task's name to the function that makes it.

What nobody said is guessed from the shape of the data, and said aloud. Read next: task_facts, text_task,
example_tasks.
"""

from __future__ import annotations

from collections.abc import Callable

from ..data.formats import ELSEWHERE, named_fields
from ..data.sources import open_source
from ..data.task_guess import (
    commands_for,
    guess_task,
    holds_rows,
    refuse_hidden_rows,
    text_field_of_input,
    unmapped,
)
from ..errors import Refused
from ..settings import LIMITS, PreferenceSettings, TrainSettings
from .architecture import member
from .conversation_task import conversation_task
from .example_tasks import classify_task, embed_task, translate_task
from .folder import RunFolder
from .parallelism import World
from .preference_task import preference_task
from .pretrained import adapters_suit, is_on_adapter, merge_command, refuse_method, refuse_rates
from .report import Report
from .task import Task
from .task_facts import TASK_FACTS
from .text_task import text_task

TASKS: dict[str, Callable[[TrainSettings, RunFolder, World, Report], Task]] = {
    "lm": text_task,
    "mlm": text_task,
    "sft": conversation_task,
    "preference": preference_task,
    "translate": translate_task,
    "classify": classify_task,
    "embed": embed_task,
}
DEFAULT_BUDGET = 180.0
"""Seconds that these small sets are learned for when no limit is named: enough for 99% of unseen dates."""
OF_MEMBER = {"encoder": "mlm", "encoder-decoder": "translate"}
"""What a member of the family learns on running text; all others predict the next token."""


def choose_task(settings: TrainSettings, report: Report) -> TrainSettings:
    """Settings whose task and data are named: as asked for, else guessed from the data, which is said.

    Raises `Refused` when the model asked for cannot learn it.
    """
    columns = named_fields(settings.data.map)
    settings = settings.with_({
        f"data.{ELSEWHERE[field]}": column for field, column in columns.items() if field in ELSEWHERE
    })  # fmt: skip
    data, kind = settings.data, settings.model.kind
    named = "source" in data.given()
    if settings.task == "auto" and not named:
        task = OF_MEMBER.get(kind or "", "lm")
        settings = settings.with_({"task": task})
    elif settings.task == "auto":
        task, why = guess_task(data.source, data.target, columns)
        if task == "lm" and holds_rows(data.source):  # what a person named says what is meant
            named_for = {"classify": data.label, "translate": data.target_field}
            meant = [(one, column) for one, column in named_for.items() if column is not None]
            task, why = (meant[0][0], f"its column {meant[0][1]} is named") if meant else (task, why)
        if task == "lm" and (says := unmapped(data.source, columns)):
            raise Refused(says)
        if task == "lm":
            refuse_hidden_rows(data.source)
        if task == "embed" and data.field is None:  # contrastive pairs: their first two columns
            settings = settings.with_({
                "data.field": columns.get("anchor", "anchor"),
                "data.target_field": columns.get("positive", "positive"),
            })  # fmt: skip
        if task == "lm" and data.source != "-" and not data.source.startswith("hf:"):
            open_source(
                data.source, field=data.field, on_error=data.on_error
            )  # refuses before a word is said
        if task == "lm" and data.field is None and (commands := commands_for(data.source)):
            ways = "; ".join(f"to learn {what}: {command}" for what, command in commands)
            raise Refused(
                f"{data.source}: no name of a column says what it holds; {ways}; "
                "to learn running text: --data.field NAME"
            )
        if task == "lm" and data.field is None and data.source == "-" and (name := text_field_of_input()):
            settings = settings.with_({"data.field": name})
        if task == "lm" and kind == "encoder":
            task, why = "mlm", f"{why}; an encoder learns it by filling masks"
        settings = settings.with_({"task": task})
        report("note", text=f"task: {task} ({why}); --task says otherwise")
    facts = TASK_FACTS[settings.task]
    for name in (name for other in TASK_FACTS.values() for name in other.data):
        if getattr(data, name) is not None and name not in facts.data:
            tasks = [task for task, other in TASK_FACTS.items() if name in other.data]
            raise Refused(
                f"--data.{name.replace('_', '-')} is set, but the task is {settings.task}; it is for "
                f"{', '.join(tasks)}"
            )
    if settings.preference != PreferenceSettings() and settings.task != "preference":
        raise Refused(f"preference is set, but the task is {settings.task}; add --task preference")
    if not named and facts.example_set is not None:
        settings = settings.with_({"data.source": facts.example_set})
    small = any(settings.data.source == other.example_set for other in TASK_FACTS.values())
    if small and not any(limit in settings.given() for limit in LIMITS):
        settings = settings.with_({"budget": DEFAULT_BUDGET})
    if not settings.model.weights:
        member(settings.model, settings.task)
    weights = settings.model.weights
    if settings.recipe == "evidence" and "method" not in settings.given() and adapters_suit(settings):
        settings = settings.with_({"method": "lora"})
        report("note", text=f"method: LoRA of rank {settings.lora.rank} beside the weights of "
               f"{weights}; --method full learns all of them")  # fmt: skip
    elif settings.recipe == "evidence" and "method" not in settings.given() and is_on_adapter(settings):
        report("note", text=f"method: all weights, for {weights} is an adapter itself; to learn by LoRA, "
               f"merge it first: {merge_command(settings)}")  # fmt: skip
    refuse_method(settings)
    return settings


def prepare_task(settings: TrainSettings, folder: RunFolder, world: World, report: Report) -> Task:
    """Everything that the loop needs to learn the task of some settings. Raises `Refused`."""
    task = TASKS[settings.task](settings, folder, world, report)
    refuse_rates(settings, task.config)
    return task
