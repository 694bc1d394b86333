"""Metrics, display, figure, forecast, micro-batch, held-out score: the small parts around the loop."""

from __future__ import annotations

import io
import json
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from transom.__main__ import run as door
from transom.checkpoint.huggingface import load_model
from transom.data.order import Batch, Windows
from transom.data.tokens import TokenFile
from transom.errors import Refused
from transom.model.config import ModelConfig
from transom.model.transformer import Transformer
from transom.training import display, report
from transom.training.architecture import model_config, windows_per_step
from transom.training.evaluate import Best, EvalSet, Score, score, verdict
from transom.training.figure import draw_loss, smooth
from transom.training.folder import RunFolder
from transom.training.forecast import activation_bytes, plan
from transom.training.loop import train
from transom.training.micro_batch import find_micro_batch
from transom.training.objectives import LanguageModelling
from transom.training.parallelism import World
from transom.training.report import Report
from transom.training.run import ARROW, Run
from transom.training.tasks import choose_task, prepare_task

from .conftest import Tiny

UNSHAPED = dict(
    model__dim=None, model__n_layers=None, model__head_dim=None, model__max_len=None, data__tokenizer="auto"
)
"""What of `tiny` pretrained weights do not take."""
LINES = {"uniform": 4.0, "unigram": 3.0, "bigram": 2.0}
STEP = {"event": "step", "step": 1200, "loss": 3.1024, "tokens_per_second": 6012.0,
        "flops_per_second": 3.5e11, "share_of_peak": 0.44, "left": 201.0, "position": 0.5}  # fmt: skip


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (4.5, "not yet below the uniform baseline (4.00)"),
        (
            3.5,
            "below the uniform baseline (4.00): it has begun to learn what is frequent; still above "
            "the unigram",
        ),
        (2.5, "below the unigram baseline (3.00)"),
        (2.5, "still above the bigram baseline (2.00)"),
        (1.5, "below the bigram baseline (2.00): it predicts better than knowing which token follows which"),
        (math.nan, "not yet below"),
    ],
)
def test_a_loss_in_plain_words(loss: float, words: str) -> None:
    assert words in verdict(loss, LINES)


def test_a_loss_that_rises_while_training_falls_is_memorising() -> None:
    best = Best(40, 5.0, Score(6.13, 100, None))
    assert verdict(7.52, {"uniform": 8.32}, best, 0.92).startswith(
        "risen from 6.13 at step 40, while it is 0.92"
    )
    assert "memorises" not in verdict(6.10, {"uniform": 8.32}, best, 0.92)
    assert "memorises" not in verdict(7.52, {"uniform": 8.32}, best, 7.4), "it got worse at both"


def test_the_history_forgets_what_a_resume_took_back(tmp_path: Path) -> None:
    events = [
        {"event": "step", "step": 1}, {"event": "step", "step": 2}, {"event": "step", "step": 3},
        {"event": "resume", "step": 1}, {"event": "step", "step": 2},
    ]  # fmt: skip
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event": "st')
    assert [(e["event"], e["step"]) for e in report.history(path)] == [
        ("step", 1),
        ("resume", 1),
        ("step", 2),
    ]
    report.mend(path)
    assert path.read_text().endswith("}\n") and len(path.read_text().splitlines()) == 5


def test_json_lines_hold_no_nan_and_no_forged_line(tmp_path: Path) -> None:
    writer = report.Metrics(tmp_path, [], {})
    writer.write({"event": "sample", "step": 1, "text": "a\r\nFORGED\x1b[31m", "loss": math.nan})
    writer.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["text"] == "a\r\nFORGED\x1b[31m" and json.loads(line)["loss"] == "nan"


def shown(events: list[dict[str, Any]], terminal: bool) -> str:
    view = display.Display()
    out = io.StringIO()
    view.console = Console(file=out, force_terminal=terminal, width=200, color_system=None)
    if terminal:
        view.live = display.Live(console=view.console, auto_refresh=False)
        view.live.start()
    for event in events:
        view.show(event)
    view.__exit__(None, None, None)
    return out.getvalue()


def test_plain_lines_where_there_is_no_terminal() -> None:
    score_event = {
        "event": "held_out",
        "unit": "token",
        "step": 1200,
        "loss": 3.2,
        "bits_per_byte": 1.9,
        "sentence": "below it",
    }
    said = shown([score_event, STEP, {"event": "end", "step": 1200}], terminal=False)
    assert "held-out | step 1,200 | 3.200 nats per token, 1.900 bits per byte | below it" in said
    assert "step 1,200 | loss 3.102 | 6,012 tokens/s | 3:21 left" in said
    assert "speed | 6,012 tokens/s, 0.35 TFLOP/s: 44% of what this machine was measured to do" in said
    assert "\x1b" not in said


def test_a_live_view_in_a_terminal() -> None:
    sample = {"event": "sample", "step": 1200, "prompt": "def ", "text": "main():\n    \x1b[31mpass"}
    said = shown([STEP, sample], terminal=True)
    assert "50%" in said and "3:21 left" in said and "def main():" in said and "\x1b[31m" not in said


def test_control_characters_never_reach_the_terminal() -> None:
    assert display.printable("a\x1b[2Jb\r\n") == "a\ufffd[2Jb\ufffd\ufffd"
    assert display.clock(3723) == "1:02:03" and display.clock(201) == "3:21"


def test_the_figure_is_a_picture(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = [
        {"event": "step", "step": i, "tokens": i * 100, "loss": 4 - i / 100} for i in range(1, 200)
    ]
    events += [{"event": "held_out", "step": 100, "tokens": 10_000, "loss": 3.1}]
    events += [{"event": "step", "step": 200, "tokens": 20_000, "loss": "nan"}]
    draw_loss(events, LINES, "a run", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 10_000
    assert smooth([2.0] * 50) == pytest.approx([2.0] * 50)


def test_the_last_line_is_the_next_command(
    tiny: Tiny, corpus_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It begins with the words of a text that was held out, and it works as printed."""
    run = train(tiny(prompt=None))
    texts = [path.read_text() for path in (corpus_folder / "text").iterdir()]
    assert len(run.prompt.split()) == 5 and any(run.prompt in text for text in texts)
    label, _, command = str(run).splitlines()[-1].partition(": ")
    assert label == "next" and command == run.next_command
    words = shlex.split(command)
    assert words[:3] == ["transom", "generate", str(run.folder)] and words[3:] == [run.prompt]
    assert door([*words[1:], "--max-tokens", "2"]) == 0
    assert capfd.readouterr().out.startswith(run.prompt)
    others = {"classify": "classify", "translate": "translate", "embed": "embed"}
    for task, verb in others.items():
        given = replace(run, task=task, prompt=f"it's{ARROW}").next_command
        assert shlex.split(given) == ["transom", verb, str(run.folder), "it's"]
    for said, word in (("one " * 30, "one"), ("ä" * 99, "ä" * 60), (f"{'x' * 57} abcdef", "x" * 57)):
        given = shlex.split(replace(run, prompt=said).next_command)[3]
        assert given.split()[-1] == word and len(given) <= 60, "no word is cut in two"
    assert "--model.weights" in replace(run, task="mlm").next_command


def test_what_may_help_is_said_where_something_simpler_is_ahead(tiny: Tiny, tmp_path: Path) -> None:
    run = Run(folder=tmp_path, step=9, tokens=9, loss=3.0, bits_per_byte=None, references={"bigram": 2.5},
              sentence="still above the bigram baseline (2.50)", prompt="a", sample="b", seconds=70.0,
              weights_sha256="")  # fmt: skip
    assert f"what may help: more time (transom train --out {tmp_path} --resume --budget 4min)" in str(run)
    for fine in (dict(loss=2.4), dict(sentence="it memorises"), dict(interrupted=True), dict(references={})):
        assert "what may help" not in str(replace(run, **fine))


def test_plan_forecasts_and_says_how(tiny: Tiny) -> None:
    expected = plan(tiny(steps=100))
    assert expected.tokens == 25_600 and expected.measured and expected.seconds > 0
    config = model_config(tiny().model, 258)
    assert expected.parameters == Transformer(config).n_parameters
    assert expected.memory_bytes == sum(v for k, v in expected.to_dict().items()
                                        if k.endswith("_bytes") and k != "memory_bytes")  # fmt: skip
    for word in ("parameters", "memory", "tokens", "speed", "time", "energy", "Wh"):
        assert word in str(expected)
    assert plan(tiny(budget="10min"), measure=False).seconds == 600
    assert plan(tiny(steps=12), measure=False).passes == pytest.approx(12 / plan_epoch(tiny), rel=1e-6)


def plan_epoch(tiny: Tiny) -> float:
    """Steps of one pass, as a run's own feed has them."""
    silent, settings = Report(is_first=False), tiny()
    task = prepare_task(choose_task(settings, silent), RunFolder(Path(str(settings.out))), World(), silent)
    return task.feed.steps_per_epoch


def test_plan_refuses_what_train_refuses(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no such file"):
        plan(tiny(data__source=str(tmp_path / "missing.txt")), measure=False)


def test_plan_of_given_weights_is_of_their_shape(tiny: Tiny) -> None:
    given = train(tiny(steps=1, model__n_layers=3)).model_folder
    expected = plan(tiny(steps=4, model__weights=str(given), **UNSHAPED), measure=False)
    assert expected.parameters == load_model(given).n_parameters
    assert expected.tokens_per_step == 256


def test_the_forecast_of_memory_grows_with_what_is_kept() -> None:
    config = ModelConfig(vocab_size=64, dim=64, n_layers=8, n_heads=2, n_kv_heads=2, head_dim=32, ffn_dim=192,
                         max_len=64)  # fmt: skip
    full = activation_bytes(config, 8 * 64, torch.bfloat16, False)
    assert activation_bytes(config, 16 * 64, torch.bfloat16, False) > full
    assert activation_bytes(config, 8 * 64, torch.bfloat16, True) < full
    assert activation_bytes(config, 8 * 64, torch.float32, False) > full


def test_the_micro_batch_fits_and_divides_the_step() -> None:
    config = ModelConfig(vocab_size=64, dim=16, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=16, ffn_dim=32,
                         max_len=16)  # fmt: skip
    objective = LanguageModelling(Transformer(config))
    before = [weight.clone() for weight in objective.parameters()]

    def windows(n: int) -> Batch:
        tokens, rows = torch.zeros(n, 16, dtype=torch.int64), torch.full((n,), 16)
        return Batch(tokens, tokens, None, None, torch.arange(n), rows, rows)

    def find(**more: Any) -> Any:
        return find_micro_batch(objective, 24, 16, windows, torch.device("cpu"),
                                **{"bytes_of": lambda n: n, "free_bytes": 1000, **more})  # fmt: skip

    found = find()
    assert 24 % found.windows == 0 and found.windows >= 4 and found.windows in found.measured
    assert find(free_bytes=3).windows == 2  # 80% of what is free
    assert find(only=6).windows == 6
    assert all(torch.equal(a, b) for a, b in zip(before, objective.parameters(), strict=True))
    assert all(weight.grad is None for weight in objective.parameters())


def test_the_shape_follows_from_a_width_given_alone(tiny: Tiny) -> None:
    config = model_config(tiny(model__head_dim=None, model__dim=128).model, 100)
    assert (config.head_dim, config.n_heads, config.n_kv_heads, config.ffn_dim) == (64, 2, 2, 352)
    settings = tiny(batch__tokens=None, model__dim=32)
    tokens = windows_per_step(settings, model_config(settings.model, 100)) * 32
    assert 25 * 32 < tokens < 100 * 32


def test_held_out_windows_are_spread_and_all_are_scored_once(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny(steps=1, data__cache=str(tmp_path / "tokens")))
    file = TokenFile.open(next((tmp_path / "tokens").glob("*/held_out.tokens")))
    windows = Windows(file, 8)
    whole = EvalSet.windows(windows, 4, file.n_tokens)
    assert sum(batch.n_targets for batch in whole) == file.n_tokens - 1
    assert whole.n_batches == len(list(whole)) and whole.whole
    part = EvalSet.windows(windows, 4, 12)
    assert part.n_batches == len(list(part)) and 8 <= part.n_rows <= 32 and not part.whole
    net = Transformer(ModelConfig(vocab_size=258, dim=16, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=16,
                                  ffn_dim=32, max_len=8))  # fmt: skip
    objective = LanguageModelling(net)
    scored = score(objective, whole, World())
    assert scored is not None and scored.n_targets == file.n_tokens - 1 and scored.bits_per_byte is not None
    plain = sum(net.loss(batch).item() for batch in whole)
    assert scored.loss == pytest.approx(plain / scored.n_targets)
    assert scored.bits_per_byte == pytest.approx(plain / math.log(2) / sum(batch.n_bytes for batch in whole))
    assert objective.training
    assert score(objective, whole, World(), give_up=lambda: True) is None


def test_documents_are_kept_apart_in_the_batches_of_a_run(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny(steps=1, data__cache=str(tmp_path / "tokens")))
    file = TokenFile.open(next((tmp_path / "tokens").glob("*/train.tokens")))
    batch: Batch = Windows(file, 32).batch(0, 8)
    assert batch.documents is not None and int(batch.documents.max()) >= 1
