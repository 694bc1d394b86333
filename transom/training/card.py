"""The model card: what the model is and is for, what it learned from, what that cost, how good it is, what it
is not.

Written as README.md into the model folder, with the header that the Hugging Face hub reads.
"""

from __future__ import annotations

import os
import re
from typing import Any

from .task_facts import TASK_FACTS

WITH_TRANSOM_ONLY = "This model's parts fit no Hugging Face family: only Transom reads the folder."
WITH_SCORES = (
    "`transom export THIS_FOLDER --to sentence-transformers` writes one whose vectors are the scores\n"
    "of the classes, for sentence-transformers."
)
ADAPTER = """```python
from peft import PeftModel

model = PeftModel.from_pretrained(THE_MODEL_IT_GOES_ON, "THIS_FOLDER")
```"""
"""How other tools take an adapter."""


def model_card(ledger: dict[str, Any]) -> str:
    """Write the card from a run's ledger."""
    data, model, cost, result = (ledger[name] for name in ("data", "model", "cost", "result"))
    words, unit = TASK_FACTS[ledger["task"]].card, ledger["unit"]
    library = "transom" if ledger["format"] is None else "transformers"
    begun = f"trained from `{ledger['begun_from']}`" if ledger["begun_from"] else "trained from nothing"
    elsewhere, method = words.elsewhere, ledger["method"]
    if method["name"] == "lora":
        library, elsewhere = "peft", ADAPTER
        begun += (
            f" by\nLoRA of rank {method['rank']}: this folder holds the {method['learned']:,} parameters "
            "that were learned, and goes on that model"
        )
    alone = WITH_TRANSOM_ONLY
    if ledger["task"] == "classify" and ledger["begun_from"]:
        alone = f"{alone}\n{WITH_SCORES}"
    active = model["active_parameters"]
    used = f" ({active:,} of them active for a token)" if active < model["parameters"] else ""
    table = "\n".join(f"| {name} | {nats:.4f} |" for name, nats in result["references"].items())
    measured = f"| **this model** | **{result['loss']:.4f}** |" if result["loss"] is not None else ""
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", begun_from := ledger["begun_from"] or "")
    base_model = f"base_model: {begun_from}\n" if on_hub and not os.path.exists(begun_from) else ""
    classes = f" Its classes: {', '.join(model['labels'])}." if model["labels"] else ""
    return f"""---
library_name: {library}
pipeline_tag: {words.tag}
{base_model}tags: [transom]
---
# {ledger["name"]}

{words.what} of {model["parameters"]:,} parameters{used}, {begun} with Transom on
`{data["source"]}`. It reads at most {model["max_len"]:,} tokens.{classes}

## What it is for

{_purpose(ledger["card"])}

## Data

{_data(data)}; hash `{data["hash"]}`. The model went {cost["epochs"]:.2f} times through what it
learned from.

## Evaluation

{_held_out(result, unit)}

| held-out side | nats per {unit} |
|---|---|
{table}
{measured}

## Trust

{_trust(ledger["task"])}

## Cost

{cost["steps"]:,} steps in {cost["seconds"] / 60:,.1f} minutes on {ledger["hardware"]["name"]}
({ledger["dtype"]["name"]}), {cost["flops"]:.2e} floating-point operations, {cost["watt_hours"]:.3f} Wh
({cost["energy_method"]}), {cost["peak_memory_bytes"] / 1e6:,.0f} MB of memory at the peak.

## Limits

{words.limits}
{_licence(ledger["card"]["license"], ledger["begun_from"])}

## Use

```
{words.use}
```

{elsewhere if ledger["format"] else alone}
"""


def _purpose(card: dict[str, str | None]) -> str:
    """What whoever trained it said that it is for and not for; that nothing was said is said too."""
    use, not_for = (_sentence(card[name]) for name in ("use", "not_for"))
    meant = f"Meant for: {use}" if use else "Whoever trained it has not named a use."
    unfit = f"**It must not be used for: {not_for}**" if not_for else "Uses that it is unfit for: none named."
    return f"{meant}\n\n{unfit}"


def _trust(task: str) -> str:
    """What of bias and made-up answers was measured: nothing while it trained, and what does it."""
    missing = "Not measured while it trained: whether it treats names and groups alike"
    if TASK_FACTS[task].verb == "classify":
        return f"{missing}.\n`transom trust THIS_FOLDER --on LABELLED_TEXTS` does."
    if TASK_FACTS[task].verb in ("generate", "chat"):
        return f"{missing}, and how often it\nmakes things up. `transom trust THIS_FOLDER` does."
    return f"{missing}; `transom trust` does not ask\nmodels of this kind yet."


def _licence(licence: str | None, begun_from: str | None) -> str:
    named = (
        f"The licence of the data: {_sentence(licence)}" if licence else "The data has a licence of its own."
    )
    also = " So do the weights that it began as have theirs." if begun_from else ""
    return f"{named}{also} Look before you publish this model."


def _sentence(text: str | None) -> str:
    """A text as one line that ends with a period, and writes no markup; "" for none."""
    line = re.sub(r"([\\`*_<>\[\]#|])", r"\\\1", " ".join((text or "").split()))
    return line if not line or line.endswith((".", "!", "?")) else f"{line}."


def _data(data: dict[str, Any]) -> str:
    if "documents" in data:
        return (
            f"{data['documents']:,} documents, {data['bytes']:,} bytes, {data['train_tokens']:,} training\n"
            f"and {data['held_out_tokens']:,} held-out tokens"
        )
    return f"{data['examples']:,} examples to learn from, {data['held_out_examples']:,} held out"


def _held_out(result: dict[str, Any], unit: str) -> str:
    if result["loss"] is None:
        return "Not measured yet: the run was not finished when this was written."
    per_byte = f", {result['bits_per_byte']:.4f} bits per byte" if result["bits_per_byte"] is not None else ""
    share = "all" if result["whole"] else "an even sample"
    return (
        f"{result['loss']:.4f} nats per {unit}{per_byte} on {result['tokens_scored']:,} held-out {unit}s "
        f"({share}): {result['sentence']}."
    )
