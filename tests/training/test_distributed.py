"""Two processes equal one; a lost one ends the other, soon and with one message."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from transom.settings import TrainSettings
from transom.training.loop import train

from .conftest import Tiny


class Done(NamedTuple):
    """A process that ended."""

    code: int
    stdout: str
    stderr: str


pytestmark = pytest.mark.distributed
HERE = Path(__file__).parent


def said_to_ranks(settings: TrainSettings, **faults: Any) -> str:
    return json.dumps({"settings": settings.to_dict(), **faults})


def environment(**more: object) -> dict[str, str]:
    base = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    return {**base, **{name: str(value) for name, value in more.items()}}


def two_ranks(settings: TrainSettings, *, timeout: float = 20, **faults: Any) -> tuple[list[Done], float]:
    """Two processes without a launcher; returns both, and the seconds until the first rank ended."""
    from tests.training import ranks

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started, text = time.monotonic(), said_to_ranks(settings, **faults)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"rank-{rank}") for rank in range(2)]
        processes = [
            ranks.start(text, environment(
                RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, LOCAL_WORLD_SIZE=2, MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port, TRANSOM_RANK_TIMEOUT=timeout), path)
            for rank, path in enumerate(paths)
        ]  # fmt: skip
        processes[0].join(120)
        took = time.monotonic() - started
        if faults.get("fault") == "SIGSTOP":
            processes[1].kill()
        processes[1].join(60)
        for process in processes:
            assert process.exitcode is not None, process.kill()
        return [
            Done(process.exitcode or 0, *(Path(f"{path}{end}").read_text() for end in (".out", ".err")))
            for process, path in zip(processes, paths, strict=True)
        ], took


def torchrun(
    settings: TrainSettings, *, restarts: int = 0, timeout: float = 20, **faults: Any
) -> tuple[Done, float]:
    """The same under torchrun; returns what it said and the seconds it took."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--max-restarts", str(restarts)]
    command = [*launcher, str(HERE / "ranks.py"), said_to_ranks(settings, **faults)]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=150,
                          env=environment(TRANSOM_RANK_TIMEOUT=timeout))  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr), time.monotonic() - started


def result(done: Done) -> dict[str, Any]:
    found = re.search(r"RESULT (.*)", done.stdout)
    assert done.code == 0 and found, done.stderr[-3000:]
    return json.loads(found[1])


def own_lines(*all_done: Done) -> list[str]:
    return [line for done in all_done for line in done.stderr.splitlines() if line.startswith("transom:")]


def losses(events: list[dict[str, Any]], kind: str = "step") -> list[float]:
    return [event["loss"] for event in events if event["event"] == kind]


@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp", marks=pytest.mark.heavy)])
def test_two_ranks_equal_one(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    alone = train(tiny(steps=8, eval_every=3))
    both, _ = two_ranks(tiny(steps=8, eval_every=3, out=str(tmp_path / "two"), parallel=kind))
    together = result(both[0])
    assert together["step"] == 8
    assert losses(together["events"]) == pytest.approx(losses(alone.metrics), rel=1e-5)
    scores = losses(alone.metrics, "held_out")
    assert losses(together["events"], "held_out") == pytest.approx(scores, rel=1e-5)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp", marks=pytest.mark.heavy)])
def test_two_ranks_learn_the_adapter_that_one_does(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    base = train(tiny(steps=2, out=str(tmp_path / "base"))).model_folder
    shape = dict(model__dim=None, model__n_layers=None, model__head_dim=None)
    asked = dict(steps=4, method="lora", lora__rank=4, model__weights=str(base), optim__lr=0.01, **shape)
    alone = train(tiny(**asked, out=str(tmp_path / "one")))
    both, _ = two_ranks(tiny(**asked, out=str(tmp_path / "two"), parallel=kind))
    assert result(both[0])["loss"] == pytest.approx(alone.loss, abs=1e-5)
    one, two = (load_file(tmp_path / name / "model" / "adapter_model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "sides"), [("ddp", 2), ("fsdp", 2), ("ddp", 3)])
def test_two_ranks_bring_together_what_one_does(tiny: Tiny, tmp_path: Path, kind: str, sides: int) -> None:
    """Every pair of a step is a negative, on whichever rank, and those of triples are everyone's; odd steps
    leave the ranks unequal shares.
    """
    source = tmp_path / "pairs.tsv"
    rows = [
        [f"{'abcdefgh'[n % 8] * (3 + n % 5)} {n}", f"{n} {'stuvwxyz'[n % 8] * (2 + n % 7)}", f"{n + 1} st"]
        for n in range(90)
    ]
    names = ["source", "target"] if sides == 2 else ["anchor", "positive", "negative"]
    source.write_text("".join("\t".join(row[:sides]) + "\n" for row in [names, *rows]))
    settings = dict(data__source=str(source), data__cache=None, task="embed", steps=6, batch__tokens=300,
                    data__tokenizer="chars", batch__micro=3, eval_every=3)  # fmt: skip
    alone = train(tiny(**settings))
    both, _ = two_ranks(tiny(**settings, out=str(tmp_path / "two"), parallel=kind))
    together = result(both[0])
    assert losses(together["events"]) == pytest.approx(losses(alone.metrics), rel=1e-4)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_learn_the_answers_that_one_does(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    """Steps have odd numbers of conversations of unequal lengths: the ranks' rows and targets differ."""
    source = tmp_path / "talks.jsonl"
    rows = [{"prompt": f"Say {n}", "completion": " ".join(["ab", "cde"][n % 2] for _ in range(1 + n % 9))}
            for n in range(90)]  # fmt: skip
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = dict(data__source=str(source), data__cache=None, steps=6, batch__tokens=None, batch__texts=7,
                    model__max_len=96, eval_every=3, prompt="")  # fmt: skip
    alone = train(tiny(**settings))
    assert alone.task == "sft"
    both, _ = two_ranks(tiny(**settings, out=str(tmp_path / "two"), parallel=kind))
    together = result(both[0])
    for event in ("step", "held_out"):
        assert losses(together["events"], event) == pytest.approx(losses(alone.metrics, event), rel=1e-5)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_learn_the_preferences_that_one_does(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    """DPO with steps of seven pairs, four on one rank and three on the other: the reference is shared too."""
    source = tmp_path / "preferences.jsonl"
    rows = [{"prompt": f"Say {n}", "chosen": "ab " * (1 + n % 9), "rejected": f"No, {'c' * (n % 5)}!"}
            for n in range(60)]  # fmt: skip
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = dict(data__source=str(source), data__cache=None, steps=6, batch__tokens=None, batch__texts=7,
                    model__max_len=64, eval_every=3, prompt="", optim__lr=1e-3)  # fmt: skip
    alone = train(tiny(**settings, out=str(tmp_path / "one")))
    assert alone.task == "preference"
    both, _ = two_ranks(tiny(**settings, out=str(tmp_path / "two"), parallel=kind))
    together = result(both[0])
    for event in ("step", "held_out"):
        assert losses(together["events"], event) == pytest.approx(losses(alone.metrics, event), abs=1e-5)
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-5)


@pytest.mark.heavy
def test_sharded_ranks_resume_with_the_same_bits_and_one_process_goes_on(tiny: Tiny, tmp_path: Path) -> None:
    settings = {"steps": 6, "save_every": 3, "keep": 9, "model__dropout": 0.1, "parallel": "fsdp"}
    whole = result(two_ranks(tiny(**settings, out=str(tmp_path / "whole")))[0][0])
    shutil.rmtree(tmp_path / "whole/checkpoints/step-000006")
    again = result(two_ranks(tiny(**settings, out=str(tmp_path / "whole"), resume=True))[0][0])
    assert again["weights_sha256"] == whole["weights_sha256"]
    # And with one process: the same windows in the same order, equal but for rounding.
    shutil.rmtree(tmp_path / "whole/checkpoints/step-000006")
    alone = train(tiny(**{**settings, "parallel": "auto"}, out=str(tmp_path / "whole"), resume=True))
    assert alone.step == 6


def test_a_batch_that_cannot_be_shared_is_refused_once(tiny: Tiny) -> None:
    both, _ = two_ranks(tiny(batch__tokens=32 * 7))
    lines = own_lines(*both)
    assert [done.code for done in both] == [2, 2] and len(lines) == 1, lines
    assert "7 windows of 32 tokens, which 2 processes cannot share" in lines[0]


@pytest.mark.parametrize("fault", ["SIGKILL", pytest.param("SIGSTOP", marks=pytest.mark.heavy)])
def test_a_lost_rank_ends_the_other_with_one_message(tiny: Tiny, fault: str) -> None:
    both, took = two_ranks(tiny(steps=50), timeout=5, fault=fault, at=3)
    lines = own_lines(*both)
    assert both[0].code == 1 and took < 60
    assert len(lines) == 1 and "lost rank 1 (pid" in lines[0], lines


def test_an_error_of_one_rank_is_the_only_one_said(tiny: Tiny) -> None:
    both, _ = two_ranks(tiny(steps=50), fault="raise", at=3)
    assert [done.code for done in both] == [1, 1]
    assert own_lines(*both) == []
    assert both[1].stderr.count("ValueError: a fault of rank 1") == 1
    assert "Traceback" not in both[0].stderr


@pytest.mark.heavy
def test_a_restart_resumes_and_ends_with_the_same_bits(tiny: Tiny, tmp_path: Path) -> None:
    whole = result(two_ranks(tiny(steps=8, save_every=2))[0][0])
    settings = tiny(steps=8, save_every=2, out=str(tmp_path / "killed"))
    done, _ = torchrun(settings, restarts=1, fault="SIGKILL", at=5, once=True)
    restarted = result(done)
    assert restarted["weights_sha256"] == whole["weights_sha256"]
    assert [e["step"] for e in restarted["events"] if e["event"] == "resume"] == [5]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["SIGKILL", "SIGSTOP"])
def test_under_torchrun_all_is_over_within_90_seconds(tiny: Tiny, fault: str) -> None:
    done, took = torchrun(tiny(steps=50), timeout=45, fault=fault, at=3)
    assert done.code != 0 and took < 90, took
    assert len(own_lines(done)) == 1 and "lost rank 1 (pid" in own_lines(done)[0]
    print(f"{fault}: {took:.0f} s")
