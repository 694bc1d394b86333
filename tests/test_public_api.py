"""`import transom`: cheap, and nothing public but what is named."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import transom
from transom.errors import Refused
from transom.evaluation.before_after import TunedRun
from transom.training.run import Run


def test_importing_transom_imports_nothing_else() -> None:
    code = "import sys, transom; print(*[m for m in sys.modules if m.startswith(('torch', 'transom.'))])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


def test_every_public_name_is_there() -> None:
    kinds = {"Generator", "Translator", "Classifier", "Embedder", "FillMask"}
    verbs = {"train", "finetune", "plan", "evaluate", "load", "look"}
    assert set(transom.__all__) == {"Refused", "__version__", *kinds, *verbs} == set(dir(transom))
    for name in transom.__all__:
        assert getattr(transom, name) is not None
    assert transom.Refused is Refused
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        transom.trian  # type: ignore[attr-defined]  # noqa: B018


def test_train_takes_the_settings_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from transom.training import loop

    monkeypatch.setattr(loop, "train", lambda settings: settings)
    settings = transom.train("notes/", model="gpt", budget="10min", out="runs/notes", optim={"lr": 1e-3})
    assert (settings.data.source, settings.model.kind, settings.budget) == ("notes/", "decoder", 600)
    assert (str(settings.out), settings.optim.lr) == ("runs/notes", 1e-3)
    with pytest.raises(Refused, match="'modle' is not a setting; did you mean 'model'"):
        transom.train("notes/", modle="gpt")
    with pytest.raises(Refused, match=r"model.kind is 'nano'; it can be decoder, .*; 'nano' is a model.size"):
        transom.train("notes/", model="nano")


def test_a_tuned_run_says_what_it_changed(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("Once upon a time there were three cats on a mat.\n" * 400)
    tiny = {"dim": 32, "n_layers": 1, "max_len": 32}
    asked = {"steps": 2, "dtype": "float32", "device": "cpu"}
    base = transom.train(str(text), model=tiny, data={"tokenizer": "bytes"}, out=tmp_path / "base", **asked)
    tuned = transom.finetune(base.folder, str(text), out=tmp_path / "tuned", **asked)
    assert isinstance(tuned, TunedRun) and isinstance(tuned.run, Run)
    settings = (tuned.run.folder / "settings.toml").read_text()
    assert 'method = "lora"' in settings and 'recipe = "evidence"' in settings
    assert tuned.found.sides == ("before", "after")
    assert any(measure.name.startswith("general text") for measure in tuned.found.measures)
    with pytest.raises(Refused, match="'modle' is not a setting"):
        transom.finetune(base.folder, str(text), modle="gpt")
    with pytest.raises(Refused, match="gone.txt: no such file"):  # before anything is learned
        transom.finetune(
            base.folder, str(text), general=str(tmp_path / "gone.txt"), out=tmp_path / "none", **asked
        )
    assert not (tmp_path / "none").exists()


def test_plan_takes_the_same(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Once upon a time there were three cats on a mat.\n" * 400)
    tiny = {"dim": 32, "n_layers": 1, "max_len": 32}
    forecast = transom.plan(str(tmp_path / "notes.txt"), steps=7, model=tiny, data={"tokenizer": "bytes"})
    assert forecast.steps == 7 and forecast.parameters > 0


def test_help_names_the_keywords_of_generate() -> None:
    from transom.sampling_params import Sampling, SamplingParams

    own = set(SamplingParams.model_fields) - {"n"}
    assert set(Sampling.__annotations__) == own
    for method in (transom.Generator.generate, transom.Generator.stream, transom.Generator.chat):
        assert own <= set(inspect.signature(method).parameters)
