"""A run that goes through its data again and again: what it is told, what it takes by rule, what it keeps."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from transom.checkpoint.huggingface import load_model
from transom.model.build import Model
from transom.settings import LIMITS, TrainSettings, load
from transom.training.architecture import (
    against_memorising,
    memorises,
    model_config,
    windows_per_step,
)  # fmt: skip
from transom.training.evaluate import Best, Score, kept, score, verdict
from transom.training.folder import RunFolder
from transom.training.forecast import plan
from transom.training.loop import train
from transom.training.objectives import LanguageModelling
from transom.training.parallelism import World
from transom.training.report import Report
from transom.training.state import load_best
from transom.training.tasks import prepare_task

from .conftest import Tiny
from .test_distributed import result, two_ranks

LINES = {"uniform": 8.32, "unigram": 6.0}


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Letters without any order: beyond how frequent they are there is nothing to learn, only to memorise."""
    path = tmp_path_factory.mktemp("noise") / "noise.txt"
    draw = random.Random(0)
    path.write_text("\n".join("".join(draw.choices("abcdefgh ", k=60)) for _ in range(12)))
    return path


MEMORISING = {
    "task": "lm", "steps": 24, "eval_every": 4, "optim__matrix_lr": 0.04, "optim__lr": 0.02, "prompt": "",
    "batch__tokens": 512, "batch__micro": 32, "model__dim": 48, "model__max_len": 16, "model__dropout": 0.0,
    "data__tokenizer": "chars", "data__val_fraction": 0.3, "optim__weight_decay": 0.1,
}  # fmt: skip


def of(text: Path) -> dict[str, str]:
    return {"data__source": str(text), "data__cache": str(text.parent / "tokens")}


def memorising(tiny: Tiny, noise: Path, **more: Any) -> TrainSettings:
    return tiny(**of(noise), **{**MEMORISING, **more})


def weights_of(model: Model) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in model.state_dict().items()}


def test_the_best_weights_are_kept_and_reported_on_rows_that_did_not_choose(tiny: Tiny, noise: Path) -> None:
    settings = memorising(tiny, noise)
    run = train(settings)
    seen = {e["step"]: e["loss"] for e in run.metrics if e["event"] == "held_out"}
    best = load_best(RunFolder(run.folder).best, World())
    assert best is not None and best.step < 24 and seen[24] > 1.05 * seen[best.step]
    assert run.loss == best.score.reporting.loss  # type: ignore[union-attr]
    assert f"those of step {best.step}" in run.sentence and "It memorised" in run.sentence
    assert run.ledger["result"]["step"] == best.step
    sentences = [e["sentence"] for e in run.metrics if e["event"] == "held_out"]
    assert "memorises" in sentences[-1] and "memorises" not in sentences[0]
    # What was told of the weights is what the model folder measures, on the half that did not choose.
    model = load_model(run.model_folder)
    with Report(is_first=False) as silent:
        task = prepare_task(settings, RunFolder(run.folder), World(), silent)
    again = score(LanguageModelling(model), task.eval_set(1000, False), World())
    assert again is not None and again.reporting is not None
    assert again.loss == pytest.approx(best.score.loss, rel=1e-5)
    assert again.reporting.loss == pytest.approx(run.loss, rel=1e-5)


def test_kept_weights_outlast_a_kill_and_a_resume(tiny: Tiny, noise: Path, tmp_path: Path) -> None:
    whole = train(memorising(tiny, noise, save_every=1, keep=100))
    for step in (3, 20):  # before the best and after it
        folder = tmp_path / f"killed-{step}"
        shutil.copytree(whole.folder, folder)
        for path in (folder / "checkpoints").iterdir():
            if int(path.name.removeprefix("step-")) > step:
                shutil.rmtree(path)
        resumed = train(memorising(tiny, noise, out=str(folder), resume=True, save_every=1, keep=100))
        assert resumed.weights_sha256 == whole.weights_sha256
        assert (resumed.loss, resumed.sentence) == (whole.loss, whole.sentence)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_keep_the_same_weights_as_one(tiny: Tiny, noise: Path, tmp_path: Path, kind: str) -> None:
    alone = train(memorising(tiny, noise))
    out = tmp_path / "two"
    both, _ = two_ranks(memorising(tiny, noise, out=str(out), parallel=kind))
    together = result(both[0])
    assert together["loss"] == pytest.approx(alone.loss, rel=1e-3)
    ours, theirs = (weights_of(load_model(folder)) for folder in (alone.model_folder, out / "model"))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-3) for name in ours)


def test_where_the_last_weights_are_the_best_nothing_else_is_kept(tiny: Tiny) -> None:
    run = train(tiny(steps=8, eval_every=4))
    assert run.ledger["cost"]["epochs"] > 1 and run.ledger["result"]["step"] == 8
    assert not RunFolder(run.folder).best.exists()


def test_a_run_that_sees_its_data_once_keeps_nothing(tiny: Tiny) -> None:
    run = train(tiny(steps=1, eval_every=1, batch__tokens=64))
    assert run.ledger["cost"]["epochs"] < 1 and not RunFolder(run.folder).best.exists()


def test_chosen_on_one_half_the_number_of_the_other_is_not_optimistic() -> None:
    """Models that are all equally good, measured with noise: the best seems better where it was chosen."""
    draw = torch.Generator().manual_seed(0)
    chose, reported = [], []
    for _ in range(2000):
        one, other = torch.randn(2, 10, generator=draw)
        best: Best | None = None
        for step in range(10):
            rest = Score(3 + other[step].item(), 10, None)
            new = Score(3.0, 20, None, choosing=10 + one[step].item(), reporting=rest)
            if best is None or Best(step, 2.0, new).beats(best.score):
                best = Best(step, 2.0, new)
        assert best is not None and best.score.reporting is not None
        chose.append(best.score.choosing - 10)
        reported.append(best.score.reporting.loss - 3)
    assert sum(chose) / 2000 < -1.0
    assert abs(sum(reported) / 2000) < 4 / 2000**0.5


def test_words_of_kept_weights() -> None:
    best = Best(87, 5.2, Score(6.10, 200, None, choosing=6.0, reporting=Score(6.2, 100, None)))
    assert kept(best, 7.5, LINES, 0.9) == (
        "below the uniform baseline (8.32): it has begun to learn what is frequent; still above the unigram "
        "baseline (6.00); the weights are those of step 87, 5.2 times through the data, and all later ones "
        "did worse: 7.50 in the end, while it is 0.90 on what it learns from. It memorised; a shorter run "
        "(--epochs 6), more text or pretrained weights (--model.weights) would help"
    )
    assert "memorised" not in kept(best, 6.12, LINES, 5.9), "no worse than one evaluation beside another"
    assert verdict(7.5, LINES, best, 0.9).startswith("risen from 6.10 at step 87, while it is 0.90")
    assert not best.beats(replace(best.score, choosing=5.999)) and not best.beats(None)


def test_what_is_memorised() -> None:
    some = load(TrainSettings, {"task": "lm"})
    assert memorises(some, 2_000_000, 30_000, 4.1)
    assert not memorises(some, 2_000_000, 30_000, 4), "so often is nearly as good as new text"
    assert not memorises(some, 2_000_000, 3_000_000, 30), "more tokens than it could hold"
    assert not memorises(some.with_({"model.weights": "x"}), 2_000_000, 30_000, 30)
    assert not memorises(some.with_({"task": "classify"}), 2_000_000, 30_000, 30), "not measured"
    assert not memorises(some.with_({"task": "translate"}), 2_000_000, 30_000, 12)


def test_what_was_asked_for_stands_before_the_rule() -> None:
    some = load(TrainSettings, {"task": "lm"})
    assert against_memorising(some) == {"optim.weight_decay": 1.0, "epochs": 8.0}
    assert against_memorising(some.with_({"budget": 60})) == {"optim.weight_decay": 1.0}
    assert against_memorising(some.with_({"budget": 60, "optim.weight_decay": 0.1})) == {}
    pairs = some.with_({"task": "translate"})
    assert against_memorising(pairs) == {"model.dropout": 0.2}, "no cap ends its run"
    assert against_memorising(pairs.with_({"model.dropout": 0.0})) == {}


def test_nobody_having_said_how_long_a_run_ends_before_it_memorises(tiny: Tiny, noise: Path) -> None:
    limited = tiny(task="lm", **of(noise), batch__tokens=64, save_every=5).given()
    run = train(load(TrainSettings, {name: limited[name] for name in limited if name not in LIMITS}))
    assert run.ledger["cost"]["epochs"] == pytest.approx(8, rel=0.05)
    kept_settings = load(TrainSettings, file=run.folder / "settings.toml")
    assert (kept_settings.epochs, kept_settings.optim.weight_decay) == (8, 1.0)
    # A resume, which says nothing of it either, goes by what the run was begun with.
    shutil.rmtree(run.folder / "checkpoints" / f"step-{run.step:06d}")
    (run.folder / "metrics.jsonl").write_text("")
    again = train(load(TrainSettings, {"out": str(run.folder), "resume": True}))
    assert (again.step, again.weights_sha256) == (run.step, run.weights_sha256)


def test_little_text_has_small_steps(tiny: Tiny) -> None:
    none = {"batch.tokens": None, "model.max_len": None, "model.dim": None, "model.head_dim": None}
    some = tiny(task="lm").with_(none)
    config = model_config(some.model, 1000)
    sizes = [windows_per_step(some, config, n_tokens=n) * config.max_len for n in (100, 24_000, 60_000, 3e6)]
    assert sizes == [256, 512, 1024, 4096] == [*sizes[:3], windows_per_step(some, config) * config.max_len]
    assert windows_per_step(some.with_({"batch.tokens": 2048}), config, n_tokens=24_000) == 8
    assert windows_per_step(some, config, 4, n_tokens=24_000) == 4, "a window for each process"
    assert windows_per_step(some.with_({"task": "mlm"}), config, n_tokens=24_000) == 16


def test_train_and_plan_say_how_often_the_data_is_gone_through(tiny: Tiny, noise: Path) -> None:
    often = tiny(**of(noise), steps=40, batch__tokens=512)
    heard: list[dict[str, Any]] = []
    run = train(often, on_event=heard.append)
    (said,) = (e["text"] for e in heard if e["event"] == "note" and e["text"].startswith("data: gone"))
    expected = plan(often)
    assert said == f"data: {expected.says_passes}" and expected.says_passes in str(expected)
    passes = run.ledger["cost"]["epochs"]
    assert f"gone through {passes:.2g} times" in said and "--epochs 8" in said and "--model.weights" in said
    assert "tokens with 35,104 parameters" in said and said.endswith("by rule --optim.weight-decay 1")
    assert "memorises" not in plan(tiny(**of(noise), steps=2, batch__tokens=64)).says_passes
