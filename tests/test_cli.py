"""The command line: what it says when it is asked, when it is misused, and when it breaks."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from transom import __main__ as door
from transom import cli, usage
from transom.__main__ import VERBS, run
from transom.errors import Refused


def transom(*arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "transom", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
        **more,  # type: ignore[call-overload]
    )


@pytest.fixture
def helped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command line prints, run in this process on a terminal of 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")

    def shown(*words: str) -> str:
        code, said = run(words), capsys.readouterr()
        assert (code, said.err) == (0, "")
        return said.out

    return shown


def test_help_lists_the_verbs_and_each_is_a_function(helped: Callable[..., str]) -> None:
    shown = helped("--help")
    for verb, line in VERBS.items():
        assert verb in shown
        assert line in shown
        assert callable(getattr(cli, verb))


def test_help_and_settings_load_neither_torch_nor_a_room() -> None:
    code = (
        "import sys; from transom.__main__ import run; run(sys.argv[1:])\n"
        "print(*[m for m in sys.modules if m.split('.')[0] in ('torch', 'numpy', 'matplotlib')"
        " or m.startswith('transom.') and m.count('.') > 1], file=sys.stderr)"
    )
    for arguments, also in [(["--help"], ("pydantic", "transom.cli")), (["train", "--help"], ())]:
        ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert ran.stderr.strip() == ""
        for module in also:
            loaded = subprocess.run(
                [sys.executable, "-X", "importtime", "-m", "transom", *arguments],
                capture_output=True,
                text=True,
            )
            assert module not in {line.split("|")[-1].strip() for line in loaded.stderr.splitlines()}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_explains_itself_and_knows_json(verb: str, helped: Callable[..., str]) -> None:
    shown = helped(verb, "--help")
    assert "--json" in shown
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_a_screen_and_its_examples_are_commands_that_exist(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert run([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert run([verb, "--help-all"]) == 0
    whole = capsys.readouterr().out
    assert len(shown.splitlines()) <= 46 and shown.rstrip().endswith(usage.GLOSSARY)
    assert (f"transom {verb} --help-all" in shown) == (whole.count("--") > shown.count("--"))
    for flags in usage.FIRST.get(verb, ()):
        assert f"{flags} " in whole
    for command, _ in usage.EXAMPLES.get(verb, ()):
        assert command in shown
        words = door.spelled_out(shlex.split(command.partition("<")[0])[1:])
        _, bound, unknown = door.app.parse_known_args(words)[:3]
        assert bound.args and not unknown


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("verb", ["", *VERBS])
def test_examples_break_no_line(verb: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = usage.epilogue(verb).splitlines()[1:-1]
    assert max(map(len, lines)) <= columns - usage.MARGIN and lines[-1] == usage.GLOSSARY
    for command, what in usage.EXAMPLES.get(verb, ()):
        assert any(line.startswith(command) for line in lines) and any(what in line for line in lines)


def test_help_for_train_is_in_sections_in_reading_order(helped: Callable[..., str]) -> None:
    shown = helped("train", "--help-all")
    titles = [line.split("─ ")[1].split(" ─")[0] for line in shown.splitlines() if line.startswith("╭─")]
    assert titles == ["Arguments", "Parameters", "Run", "Data", "Model", "Batch", "Optimizer", "LoRA",
                      "Preference", "Model card"]  # fmt: skip


def test_version() -> None:
    from transom import __version__

    assert transom("--version").stdout.strip() == __version__


WRONG = [
    ("trian", "unknown command: trian; did you mean 'train'? transom --help lists train, finetune, compare, "
     "generate, chat, translate, classify, embed, index, ask, calibrate, look, serve, evaluate, trust, "
     "export, plan, bench, doctor, lab, data\n"),
    ("--verbose", "unknown command: --verbose; transom --help lists train, finetune"),
    ("train --model.nlayers 3", "unknown option: --model.nlayers; did you mean '--model.n-layers'?"),
    ("train --modle gpt", "unknown option: --modle; did you mean '--model'?"),
    ("train --budget 10", "budget: '10' is not a time; write it with its unit, such as 90s, 10min or 2h"),
    ("train --budget 0s", "budget: '0s' is not a time; it must be above zero"),
    ("train --budget 1h --steps 5", "budget and steps are both given; a run ends by one of budget, steps"),
    ("train --steps", 'command "train" parameter --steps requires an argument'),
    ("train --steps five", "steps is 'five'; it must be a whole number"),
    ("train --steps 0", "steps is 0; it must be greater than or equal to 1"),
    ("train --tokens 1.5", "tokens: '1.5' is not a whole number"),
    ("train --optim.lr -1", "optim.lr is -1; it must be greater than 0"),
    ("train --optim.lr nan", "optim.lr is 'nan'; it must be a finite number"),
    ("train --optim sgd", "optim.name is 'sgd'; it can be auto, muon, adamw"),
    ("train --model elman", "model.kind is 'elman'; it can be decoder, encoder, encoder-decoder, rnn, "),
    ("translate", 'command "translate" parameter MODEL requires an argument'),
    ("lab backprob", "unknown command: backprob; did you mean 'backprop'? transom --help"),
    ("convert", "unknown command: convert; that is transom export MODEL --to gguf, ollama, hf or"),
    ("gguf m", "unknown command: gguf; that is transom export MODEL --to gguf"),
    ("tune x.jsonl", "unknown command: tune; that is transom finetune MODEL --data DATA"),
    ("rag notes/", "unknown command: rag; that is transom index DOCS"),
    ("predict m x", "unknown command: predict; that is transom classify, translate or generate"),
    ("quantize m", "unknown command: quantize; that is transom export MODEL --dtype q8_0 (or q4_0)"),
    ("train --lr 3e-4", "unknown option: --lr; did you mean '--optim.lr'?"),
    ("train --learning-rate=3e-4", "unknown option: --learning-rate; here it is --optim.lr\n"),
    ("train --batch-size 8", "unknown option: --batch-size; here it is --batch.tokens (tokens of one step)"),
    ("train --epoch 2", "unknown option: --epoch; here it is --epochs"),
    ("train --optim.warm_up 2", "unknown option: --optim.warm_up; did you mean '--optim.warmup'?"),
    ("generate x --lr 3", "unknown option: --lr; --help-all lists every one"),
    ("train --model.size nanno", "model.size is 'nanno'; it can be nano, mini, small; did you mean 'nano'?"),
    ("train --model.dropout 1", "model.dropout is 1; it must be less than 1"),
    ("train --dtype fp16", "dtype is 'fp16'; it can be auto, float32, bfloat16"),
    ("train --log tensorbord", "log is 'tensorbord'; it can be tensorboard, wandb; did you mean 'tensor"),
    ("train --save-every 0", "save_every: '0' is not an interval; it must be at least one step"),
    ("train --data.val-fraction 1", "data.val_fraction is 1; it must be less than 1"),
    ("train a.txt b.txt", "unexpected 'b.txt'"),
    ("train a.txt --data b.txt", "the data is named twice: a.txt and --data b.txt"),
    ("train --config none.toml", "none.toml: no such file or directory; --config needs a TOML file"),
    ("generate", 'command "generate" parameter MODEL requires an argument'),
    ("generate x --temperature hot", "temperature is 'hot'; it must be between 0"),
    ("generate x y --logprobs 3", "--logprobs is shown with --json only; add --json"),
    ("doctor --device tpu", "device is 'tpu'; this machine has cpu"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), WRONG)
def test_a_mistake_is_one_line_and_exit_code_2(
    line: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(line.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"transom: {message}")
    assert shown.err.count("\n") == 1


def test_a_mistake_in_a_process_of_its_own_shows_no_traceback() -> None:
    ran = transom("train", "--model.nlayers", "3")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "transom: unknown option: --model.nlayers; did you mean '--model.n-layers'?\n"


@pytest.mark.parametrize(
    ("error", "code", "last"),
    [
        (Refused("the file is\nbroken"), 2, "transom: the file is broken"),
        (KeyboardInterrupt(), 130, "transom: stopped"),
        (ZeroDivisionError(), 1, "transom: this is a bug in Transom; please report it with the lines above"),
    ],
)
def test_how_errors_leave(
    error: BaseException,
    code: int,
    last: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setattr(cli, "fails", fails, raising=False)
    door.app.command("transom.cli:fails", name="fails")
    assert run(["fails"]) == code
    del door.app["fails"]
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == last
    assert (len(lines) > 1) == isinstance(error, ZeroDivisionError)


def test_a_stop_while_a_run_is_scored_tells_what_was_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(_: object) -> None:
        raise KeyboardInterrupt

    notes, out = tmp_path / "notes.txt", tmp_path / "a run"
    notes.write_text("The crow caws at noon, and the dog barks at the door.\n" * 400)
    monkeypatch.setattr("transom.evaluation.examine.examined", stopped)
    tiny = ["--model.dim", "16", "--model.n-layers", "1", "--model.n-heads", "2", "--data.vocab-size", "300"]
    code = run(["train", str(notes), "--steps", "2", "--out", str(out), *tiny])
    said = capsys.readouterr()
    assert code == 130, said.err
    assert "held-out: " in said.out and f"model: {out}/model" in said.out
    last = said.err.splitlines()[-1]
    assert last.startswith("transom: stopped while it was scored; the model is whole: transom evaluate ")
    monkeypatch.undo()
    assert run([*shlex.split(last.partition("whole: transom ")[2]), "--limit", "2000"]) == 0


def test_a_reader_that_has_had_enough_is_no_error() -> None:
    command = f"{sys.executable} -m transom train --help | true; exit ${{PIPESTATUS[0]}}"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert ran.stderr == ""


def test_short_forms() -> None:
    assert door.spelled_out(["train", "--model", "gpt", "--data=x", "--model.dim", "3"]) == [
        *("train", "--model.kind", "gpt", "--data.source=x", "--model.dim", "3")
    ]
    for given in (
        ["ask", "kb", "why?", "--model", "m"],
        ["generate", "m", "--data=x"],
    ):  # no settings of a run
        assert door.spelled_out(given) == given
    for given in (["train", "-"], ["train", "--data", "-"], ["train", "--data.source", "-"]):
        assert door.spelled_out(given) == ["train", "--data.source=-"]
    assert door.spelled_out(["embed", "m", "--input", "-", "--json"]) == ["embed", "m", "--input=-", "--json"]


def test_flags_reach_the_training_room_over_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transom.evaluation import before_after
    from transom.training import loop

    seen = []

    class Done:
        interrupted, task = False, "lm"

        def __str__(self) -> str:
            return "done"

        def to_dict(self) -> dict[str, object]:
            return {"loss": float("nan")}

    def trains(settings: object) -> Done:
        print("noise")
        seen.append(settings)
        return Done()

    monkeypatch.setattr(loop, "train", trains)
    monkeypatch.setattr(before_after, "tuned", lambda run, *_: run)
    file = tmp_path / "run.toml"
    file.write_text('seed = 4\n[model]\ndim = 64\nsize = "mini"\n')
    line = "train notes/ --model gpt --model.n-layers 2 --model.size small --optim.lr 3e-4 --json"
    assert run([*line.split(), "--config", str(file)]) == 0
    settings = seen[0]
    assert (settings.data.source, settings.seed, settings.optim.lr) == ("notes/", 4, 3e-4)
    assert (settings.model.dim, settings.model.n_layers, settings.model.size) == (64, 2, "small")
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"loss": None}
    assert shown.err == "noise\n"
    assert run(["train", "--model.no-gated"]) == 0
    assert capsys.readouterr().out == "noise\ndone\n"
    assert seen[1].model.gated is False
    Done.interrupted = True
    assert run(["train"]) == 130


def test_doctor_says_that_training_works_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "ok training" in text
    assert "GFLOP/s (measured)" in text
    assert run(["doctor", "--device", "cpu", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["can_train"] is True
    assert {"torch", "device", "memory", "disk", "arithmetic"} <= {f["what"] for f in report["findings"]}


def test_bench_holds_its_rates_against_limits(capsys: pytest.CaptureFixture[str]) -> None:
    small = "bench --model.dim 32 --model.n-layers 1 --model.max-len 64 --data.vocab-size 300"
    assert run([*small.split(), "--batch.tokens", "128", "--device", "cpu", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert [rate["job"].split()[0] for rate in measured["rates"]] == ["training"] + 4 * ["decoding"]
    assert all(rate["tokens_per_second"] > 0 and rate["share"] > 0 for rate in measured["rates"])
    assert measured["flops"]["float32"] > 0 < measured["bandwidth"]


def test_doctor_names_the_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from transom import doctor
    from transom.hardware import Hardware

    def full(**_: object) -> None:
        raise PermissionError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", full)
    report = doctor.Report(list(doctor._folder(Hardware.detect("cpu"))))
    assert not report.can_train
    assert "NO disk" in str(report)
    assert "fix: run in a folder of your own" in str(report)


def test_a_stop_reads_the_newline_that_a_shell_left_spelled_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from tests.inference.scripted import scripted
    from transom.data.tokenizer import train_tokenizer

    tokenizer = train_tokenizer("bytes", iter([]), 0)
    folder = scripted(tmp_path, tokenizer, 1, tokenizer.encode("b\\nd\te\nf"))
    for stop, text in (
        ("\\n", "b\\nd\te"),
        ("\\t", "b\\nd"),
        ("\\\\n", "b"),
        ("\n", "b\\nd\te"),
        ("e", "b\\nd\t"),
    ):
        assert run(["generate", str(folder), "a", "--temperature", "0", "--stop", stop]) == 0
        assert capsys.readouterr().out == f"a{text}\n"
