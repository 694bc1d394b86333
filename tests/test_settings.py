# ruff: noqa: E501 - the table of refusals holds whole lines
"""Settings: units, layers, refusals, and that a file written is the file read."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.errors import Refused
from transom.model.config import SIZES, ModelConfig
from transom.sampling_params import SamplingParams
from transom.settings import (
    FREE_ON_RESUME,
    NO_FIELD,
    ModelSettings,
    Settings,
    TrainSettings,
    load,
)
from transom.units import Every, format_time, parse_count, parse_time


def train(*layers: Any, file: Path | None = None) -> TrainSettings:
    return load(TrainSettings, *layers, file=file)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10min", 600),
        ("2h", 7200),
        ("1h30min", 5400),
        ("1.5 min", 90),
        ("2 hours", 7200),
        (3, 3),
    ],
)
def test_times_are_read_with_their_unit(text: Any, seconds: float) -> None:
    assert parse_time(text) == seconds


@given(st.floats(min_value=1e-3, max_value=1e9))
def test_a_written_time_is_read_back_exactly(seconds: float) -> None:
    assert parse_time(format_time(round(seconds, 3))) == round(seconds, 3)


@pytest.mark.parametrize(
    ("text", "count"),
    [("4k", 4000), ("1.5M", 1_500_000), ("0.5B", 5 * 10**8), ("1_024", 1024), ("1.1k", 1100), (7.0, 7)],
)
def test_counts_are_read_with_their_unit(text: Any, count: int) -> None:
    assert parse_count(text) == count


@given(st.integers(min_value=0, max_value=10**15))
def test_a_plain_count_is_exact(number: int) -> None:
    assert parse_count(str(number)) == number == parse_count(number)


@pytest.mark.parametrize(
    "bad", ["10", "ten", "", "5 lightyears", "0s", "-3s", float("inf"), float("nan"), True]
)
def test_what_is_no_time_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="time|unit"):
        parse_time(bad)


@pytest.mark.parametrize("bad", ["1.5", "k", "4 kb", float("nan"), "1e3", True])
def test_what_is_no_count_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="count|whole"):
        parse_count(bad)


def test_intervals_are_steps_or_time() -> None:
    assert Every.parse("100") == Every.parse("100 steps") == Every.parse(100) == Every(steps=100)
    assert Every.parse("2min") == Every(seconds=120)
    assert Every(steps=2).due(2, 0.0)
    assert not Every(steps=2).due(1, 1e9)
    assert Every(seconds=2).due(0, 2.0)
    assert not Every(seconds=2).due(10**9, 1.9)


def test_flags_beat_the_file_and_the_file_beats_the_default(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('seed = 3\nbudget = "90s"\n[optim]\nlr = 0.5\nclip = 2.0\n')
    settings = train({"optim": {"lr": 0.25}}, file=file)
    assert (settings.optim.lr, settings.optim.clip, settings.optim.beta1) == (0.25, 2.0, 0.9)
    assert (settings.seed, settings.budget) == (3, 90.0)


def test_a_limit_given_above_replaces_another_below(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("steps = 100\n")
    assert train({}).budget == 600
    for given_, expected in [
        ({}, (None, 100, None)),
        ({"budget": "1min"}, (60, None, None)),
        ({"tokens": "1M"}, (None, None, 10**6)),
    ]:
        settings = train(given_, file=file)
        assert (settings.budget, settings.steps, settings.tokens) == expected
    with pytest.raises(Refused, match="budget and steps are both given"):
        train({"budget": "1min", "steps": 5})


def test_nested_dotted_and_short_forms_say_the_same() -> None:
    nested = train({"model": {"kind": "decoder", "n_layers": 2}, "data": {"source": "notes/"}})
    assert nested == train({"model.kind": "gpt", "model.n_layers": 2, "data": "notes/"})
    assert nested == train({"model": ModelSettings(n_layers=2, kind="decoder"), "data": "notes/"})


names = st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=20)


@given(
    given_=st.fixed_dictionaries(
        {},
        optional={
            "prompt": names,
            "data.source": names,
            "seed": st.integers(0, 2**63 - 1),
            "tokens": st.integers(1, 10**12),
            "save_every": st.sampled_from(["7", "90s", "2h", "0.25s"]),
            "out": names.filter(lambda name: "\0" not in name).map(Path),
            "optim.lr": st.floats(1e-12, 1e12),
            "model.gated": st.booleans(),
            "log": st.lists(st.sampled_from(["tensorboard", "wandb"]), max_size=2),
        },
    )
)
def test_what_is_written_as_toml_is_read_as_the_same(given_: dict[str, Any]) -> None:
    settings = train(given_)
    again = train(tomllib.loads(settings.to_toml()))
    assert again == settings
    assert again.identity() == settings.identity()


def test_a_resumed_run_starts_from_its_own_settings(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(train({"steps": 7, "model.dim": 64}).to_toml())
    settings = train({"resume": True, "out": tmp_path, "keep": 5})
    assert (settings.steps, settings.model.dim, settings.keep, settings.resume) == (7, 64, 5, True)


def test_the_identity_is_what_the_numbers_depend_on() -> None:
    base = train({"steps": 5})
    assert base.identity() == train({"steps": 5, "out": "x", "keep": 9, "save_every": "1"}).identity()
    for change in ({"seed": 1}, {"steps": 6}, {"model.dim": 64}, {"optim.lr": 1.0}, {"batch.tokens": 512}):
        assert base.with_(change).identity() != base.identity()
    assert set(TrainSettings.names()) >= FREE_ON_RESUME


def test_a_copy_with_changes_is_checked_and_keeps_the_rest() -> None:
    settings = train({"budget": "1min", "model.dim": 64}).with_({"steps": 5, "optim.lr": 0.1})
    assert (settings.budget, settings.steps, settings.model.dim, settings.optim.lr) == (None, 5, 64, 0.1)
    with pytest.raises(Refused, match="optim.lr"):
        settings.with_({"optim.lr": -1})


REFUSED = [
    ("lr = 3", ":1: 'lr' is not a setting; did you mean 'optim.lr'?"),
    ("[model]\n\nn_layrs = 3", ":3: 'model.n_layrs' is not a setting; did you mean 'model.n_layers'?"),
    ("[modle]\ndim = 3", ":1: 'modle' is not a setting; did you mean 'model'?"),
    ("[model]\nn_layers = 'x'", ":2: model.n_layers is 'x'; it must be a whole number"),
    ("model.n_layers = 2.5", ":1: model.n_layers is 2.5; it must be a whole number"),
    ("[model]\nsize = 'nanno'", ":2: model.size is 'nanno'; it can be nano, mini, small; did you mean 'nano'?"),
    ("[model]\nwindow = 0", ":2: model.window is 0; it must be greater than or equal to 1"),
    ("model = 3", ":1: model is 3; it must be a table of settings"),
    ("budget = '10'", ":1: budget: '10' is not a time; write it with its unit, such as 90s, 10min or 2h"),
    ("budget = '1h'\nsteps = 4", ": budget and steps are both given; a run ends by one of budget, steps, tokens, epochs"),
    ("[optim]\nlr = nan", ":2: optim.lr is nan; it must be a finite number"),
    ("[data]\nvocab_size = '4.5'", ":2: data.vocab_size: '4.5' is not a whole number"),
    ("log = ['tensorboad']", ":1: log is 'tensorboad'; it can be tensorboard, wandb; did you mean 'tensorboard'?"),
    ("deterministic = 'maybe'", ":1: deterministic is 'maybe'; it must be true or false"),
    ("save_every = 0", ":1: save_every: '0' is not an interval; it must be at least one step"),
    ("x = ", ": not TOML: Invalid value (at end of document)"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_a_wrong_file_gets_one_line_with_the_place(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(Refused) as refused:
        train({}, file=file)
    assert str(refused.value) == f"{file}{message}"


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'prompt = "\xe9"')
    for name, message in [
        ("none.toml", "no such file"),
        (".", "is a directory"),
        ("latin.toml", "not UTF-8"),
    ]:
        with pytest.raises(Refused, match=message):
            train({}, file=tmp_path / name)


def test_an_empty_name_is_not_the_folder_one_stands_in() -> None:
    with pytest.raises(Refused, match="^data.source is ''; it must be a name that is not empty$"):
        load(TrainSettings, {"data.source": ""})


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(Refused, match="not UTF-8"):
        train({"data.source": "caf\udce9"})


def settings_kinds(kind: type[Settings]) -> list[type[Settings]]:
    return [kind, *(inner for _, section in kind.sections() for inner in settings_kinds(section))]


@pytest.mark.parametrize("kind", [*settings_kinds(TrainSettings), SamplingParams])
def test_every_setting_says_what_it_is(kind: type[Settings]) -> None:
    sections = dict(kind.sections())
    for name, field in kind.model_fields.items():
        assert name in sections or (field.description or "").endswith((".", "]")), f"{kind.__name__}.{name}"


def _bare(hint: Any) -> set[Any]:
    """The types of an annotation without Annotated and None."""
    if hasattr(hint, "__metadata__"):
        return _bare(hint.__origin__)
    if get_origin(hint) is not None and str(get_origin(hint)) != "typing.Literal":
        return set().union(*(_bare(part) for part in get_args(hint)))
    return {hint} - {type(None)}


def test_model_settings_are_the_fields_of_a_model() -> None:
    of_a_model = get_type_hints(ModelConfig)
    asked = get_type_hints(ModelSettings, include_extras=True)
    for name, field in ModelSettings.model_fields.items():
        if name not in NO_FIELD:
            assert field.default is None
            assert _bare(asked[name]) == _bare(of_a_model[name]), name
    assert get_args(ModelSettings.model_fields["size"].annotation) == tuple(SIZES)
    by_loading_only = {
        "vocab_size",
        "rope_scaling",
        "window_layers",
        "pad_id",
        "bos_id",
        "eos_id",
        "start_id",
    }
    of_a_member = {
        "cell",
        "segments",
        "embed_norm",
        "position_offset",
        "attn_scale",
        "qk_norm_over",
        "logit_scale",
    }
    of_a_member |= {"relative_buckets", "relative_max_distance"}
    by_the_task = {"head", "head_transform", "head_bias", "labels", "normalize"}
    missing = set(of_a_model) - set(ModelSettings.model_fields)
    assert missing == by_loading_only | of_a_member | by_the_task


def test_the_command_line_asks_all_of_the_sampler(capsys: pytest.CaptureFixture[str]) -> None:
    from transom.__main__ import run

    assert run(["generate", "--help-all"]) == 0
    said = capsys.readouterr().out
    expected = set(SamplingParams.model_fields) - {"logit_bias"}  # a table of token ids is for programs
    assert {name for name in SamplingParams.model_fields if f"--{name.replace('_', '-')}" in said} == expected


@pytest.mark.parametrize("given", [{"steps": True}, {"lora": {"rank": True}}, {"optim": {"lr": False}}])
def test_true_is_no_number(given: dict[str, Any]):
    with pytest.raises(Refused, match=r"is (True|False); it must be a (whole )?number"):
        load(TrainSettings, {"data": {"source": "x"}, **given})


def test_true_is_a_switch():
    assert load(TrainSettings, {"data": {"source": "x"}, "compile": True}).compile == "on"
