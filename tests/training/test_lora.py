"""LoRA as a method of a run: what is saved, an exact resume, the rule of its rate, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import transom
from transom.checkpoint.folder import commit
from transom.checkpoint.huggingface import load_model, save_model
from transom.data.tokenizer import Tokenizer
from transom.errors import Refused
from transom.settings import TrainSettings, load
from transom.training.forecast import plan
from transom.training.loop import train
from transom.training.report import Report
from transom.training.tasks import choose_task

from .conftest import Tiny, until

FULL = {"method": "full", **dict.fromkeys(("lora__rank", "lora__alpha", "lora__dropout"), "left out")}
LORA = {"method": "lora", "lora__rank": 4, "lora__alpha": 8}


@pytest.fixture
def base(tiny: Tiny, tmp_path: Path) -> Path:
    return train(tiny(steps=2, out=str(tmp_path / "base"))).model_folder


@pytest.fixture
def lora(tiny: Tiny, base: Path) -> Any:
    """Settings of a tiny LoRA run on that model, whose shape is not said again."""

    def make(**changes: Any) -> Any:
        shape = dict(model__dim=None, model__n_layers=None, model__head_dim=None)
        given = {"steps": 6, **shape, **LORA, "model__weights": str(base), "model__dropout": 0.1,
                       "lora__dropout": 0.1, **changes}  # fmt: skip
        return tiny(**{name: value for name, value in given.items() if value != "left out"})

    return make


def test_a_run_leaves_an_adapter_that_reads_as_a_model(lora: Any, base: Path) -> None:
    run = train(lora(lora__targets="q_proj,v_proj,down_proj", optim__lr=0.01))
    held = sorted(path.name for path in run.model_folder.iterdir())
    assert held == ["README.md", "adapter_config.json", "adapter_model.safetensors", "manifest.json",
                    "tokenizer.json", "tokenizer_config.json"]  # fmt: skip
    config = json.loads((run.model_folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base.resolve())
    assert config["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    # Checkpoints hold what learned, and nothing else.
    weights = load_file(run.folder / "checkpoints" / "step-000006" / "weights.safetensors")
    assert {name.rpartition(".")[2] for name in weights} == {"lora_A", "lora_B"}
    assert len(weights) == 2 * 3 * 2
    # Loaded, it is the base and what was learned; merged on request.
    beside, merged = transom.load(run.folder), transom.load(run.folder, merge=True)
    ids = [1, 2, 3, 4, 5]
    change = (beside.logits(ids) - transom.load(base).logits(ids)).abs().max()
    assert change > 1e-3
    torch.testing.assert_close(merged.logits(ids), beside.logits(ids), rtol=0, atol=1e-5)
    said, learned = run.ledger["method"], sum(weight.numel() for weight in weights.values())
    assert (said["name"], said["rank"], said["learned"]) == ("lora", 4, learned)
    assert "LoRA of rank 4" in (run.model_folder / "README.md").read_text()


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.heavy)])
def test_resume_from_a_step_gives_the_same_bits(lora: Any, tmp_path: Path, dtype: str) -> None:
    hard = {"save_every": 1, "keep": 100, "dtype": dtype, "lora__dora": dtype == "bfloat16"}
    whole = train(lora(**hard))
    folder = until(whole.folder, 3, tmp_path / "killed")
    resumed = train(lora(**hard, out=str(folder), resume=True))
    assert resumed.weights_sha256 == whole.weights_sha256


def test_resuming_on_other_weights_is_refused(lora: Any, base: Path, tmp_path: Path) -> None:
    whole = train(lora(save_every=2, steps=4))
    folder = until(whole.folder, 2, tmp_path / "killed")
    model, tokenizer = load_model(base), Tokenizer.load(base)
    model.embed.weight.data += 1e-3
    with commit(base) as place:
        save_model(place, model, tokenizer)
    with pytest.raises(Refused, match="does not hold the weights that this run began with"):
        train(lora(save_every=2, steps=4, out=str(folder), resume=True))


def test_the_rate_and_the_optimizer_by_rule(lora: Any) -> None:
    run = train(lora(steps=1))
    settled = (run.folder / "settings.toml").read_text()
    assert 'name = "adamw"' in settled and "lr = 0.0002" in settled


def test_a_plan_counts_what_learns(lora: Any) -> None:
    part, whole = plan(lora(), measure=False), plan(lora(**FULL), measure=False)
    assert part.learned < 0.4 * whole.learned == 0.4 * whole.parameters
    assert part.gradient_bytes == 4 * part.learned and part.optimizer_bytes == 8 * part.learned
    assert "of them learned" in str(part)
    short = plan(lora(dtype="bfloat16"), measure=False)
    assert short.weights_bytes < part.weights_bytes  # frozen matrices in two bytes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__weights": None}, "name one by --model.weights"),
        ({"lora__targets": "q_proj,c_attn"}, "'c_attn', .* it has down_proj, gate_proj, k_proj, .*`all`"),
        ({"lora__targets": "qproj"}, "did you mean 'q_proj'"),
        ({"lora__targets": "q_proj", "lora__rank": 33}, "set at most 32, or --method full"),
        ({"method": "full"}, "add --method lora"),
    ],
)
def test_what_cannot_hold_is_refused_in_a_line(lora: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said):
        train(lora(**changes))


def test_an_adapter_is_gone_on_from_in_full_but_not_by_another(lora: Any) -> None:
    first = train(lora(optim__lr=0.01))
    out = str(first.folder) + "-more"
    merge = f"transom export {first.folder} --to hf --out run-merged"
    with pytest.raises(Refused, match=f"an adapter itself.* merge it first \\({re.escape(merge)}\\)"):
        train(lora(model__weights=str(first.folder), out=out))
    asked = lora(model__weights=str(first.folder), out=out, recipe="evidence", **FULL)
    notes: list[str] = []
    with Report(True, lambda event: notes.append(str(event.get("text")))) as report:
        given = {name: value for name, value in asked.given().items() if name != "method"}
        assert choose_task(load(TrainSettings, given), report).method == "full"
    assert f"to learn by LoRA, merge it first: {merge}" in "\n".join(notes)
    more = train(lora(model__weights=str(first.folder), steps=1, out=out, **FULL))
    assert (more.model_folder / "config.json").exists()
    merged = load_model(first.model_folder)
    again = load_model(more.model_folder)
    assert (merged.layers[0].attn.q_proj.weight - again.layers[0].attn.q_proj.weight).abs().max() < 1e-3
