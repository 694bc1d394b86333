"""The model card: what the model is, what it learned from, what that cost, how good it is, what it is not.

Written as README.md into the model folder, with the header that the Hugging Face hub reads.
"""

from __future__ import annotations

from typing import Any

WITHOUT_TRANSOM = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")
tokens = model.generate(**tokenizer("Once upon a time", return_tensors="pt"), max_new_tokens=50)
print(tokenizer.decode(tokens[0]))
```"""
WITH_TRANSOM_ONLY = "This model's parts fit no Hugging Face family: only Transom reads the folder."


def model_card(ledger: dict[str, Any]) -> str:
    """The card, from a run's ledger."""
    data, model, cost, result = (ledger[name] for name in ("data", "model", "cost", "result"))
    lines = result["references"]
    held_out = (
        f"{result['loss']:.4f} nats per token, {result['bits_per_byte']:.4f} bits per byte on "
        f"{result['tokens_scored']:,} held-out tokens ({'all' if result['whole'] else 'an even sample'}): "
        f"{result['sentence']}."
        if result["loss"] is not None
        else "Not measured yet: the run was not finished when this was written."
    )
    table = "\n".join(f"| {name} | {nats:.4f} |" for name, nats in lines.items())
    measured = f"| **this model** | **{result['loss']:.4f}** |" if result["loss"] is not None else ""
    library = "transom" if ledger["format"] is None else "transformers"
    return f"""---
library_name: {library}
pipeline_tag: text-generation
tags: [transom]
---
# {ledger["name"]}

A language model of {model["parameters"]:,} parameters, trained from nothing with Transom on
`{data["source"]}`. It reads at most {model["max_len"]:,} tokens.

## Data

{data["documents"]:,} documents, {data["bytes"]:,} bytes, {data["train_tokens"]:,} training and
{data["held_out_tokens"]:,} held-out tokens; hash `{data["hash"]}`. The model saw {cost["tokens"]:,} tokens
({cost["epochs"]:.2f} times the training text).

## Evaluation

{held_out}

| held-out text | nats per token |
|---|---|
{table}
{measured}

## Cost

{cost["steps"]:,} steps in {cost["seconds"] / 60:,.1f} minutes on {ledger["hardware"]["name"]}
({ledger["dtype"]["name"]}), {cost["flops"]:.2e} floating-point operations, {cost["watt_hours"]:.3f} Wh
({cost["energy_method"]}), {cost["peak_memory_bytes"] / 1e6:,.0f} MB of memory at the peak.

## Limits

It continues text like the text it learned from; it was not tuned to follow instructions or to tell the
truth, and repeats what its data holds, mistakes and prejudices included. Nothing was filtered out.
The data's own licence applies to the data; look at it before you publish this model.

## Use

```
transom generate THIS_FOLDER "Once upon a time"
```

{WITHOUT_TRANSOM if ledger["format"] else WITH_TRANSOM_ONLY}
"""
