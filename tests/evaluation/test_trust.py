"""Trust reports: a line follows from its rule; broken models are found, and a mended one is let be."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.evaluation.broken_models import (
    as_text,
    decisions,
    guides,
    like_winobias,
    trained,
    translations,
    translator,
    write_rows,
)
from tests.evaluation.members import write_model
from transom.__main__ import run
from transom.errors import Refused
from transom.evaluation.gate import Gate, competence
from transom.evaluation.made_up import areas_apart, is_right, is_silent, replace_passage
from transom.evaluation.own_questions import facts, open_prompts, settled_prompts, world
from transom.evaluation.subject import Subject
from transom.evaluation.translated import translated_gender
from transom.evaluation.trust import trust
from transom.evaluation.trust_diff import diff
from transom.evaluation.trust_line import Line, Rule, Rules
from transom.evaluation.trust_report import TrustReport, saved
from transom.inference.translator import Translator
from transom.intervals import Estimate

PASSED, FAILED = (Gate(ok, Estimate(0.9, 0.8, 1.0), 0.5, 50) for ok in (True, False))


@pytest.mark.parametrize(
    ("side", "tolerance", "interval", "gate", "word"),
    [
        ("above", 2.0, (2.2, 4.4), PASSED, "ACT"),
        ("above", 2.0, (1.0, 2.4), PASSED, "WATCH"),
        ("above", 2.0, (0.0, 1.9), PASSED, "OK"),
        ("above", 2.0, (0.0, 4.0), PASSED, "CANNOT TELL"),
        ("above", 2.0, (2.2, 4.4), FAILED, "CANNOT TELL"),
        ("both", 3.0, (-9.0, -3.1), None, "ACT"),
        ("both", 3.0, (-2.0, 2.0), None, "OK"),
        ("both", 3.0, (1.0, 4.0), None, "WATCH"),
        ("both", 3.0, (-4.0, 4.0), None, "CANNOT TELL"),
        ("below", 0.0, (-9.0, -1.0), None, "ACT"),
        ("below", 0.0, (1.0, 9.0), None, "OK"),
        ("below", 0.0, (-1.0, 9.0), None, "WATCH"),
        ("both", None, (50.0, 60.0), None, "NOT JUDGED"),
    ],
)
def test_the_word_follows_from_the_rule(
    side: Any, tolerance: float | None, interval: tuple[float, float], gate: Gate | None, word: str
) -> None:
    assert Rule(tolerance, side, "").decide(Estimate(sum(interval) / 2, *interval), gate) == word


def test_without_an_interval_nothing_can_be_told() -> None:
    assert Rule(2.0, "above", "").decide(Estimate(50.0), PASSED) == "CANNOT TELL"


def test_rules_of_ones_own_change_what_they_name_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text("[swap-flips]\ntolerance = 7\n[gate]\nmargin = 1\n")
    own, ours = Rules.read(path), Rules.read()
    assert own.of["swap-flips"].tolerance == 7 and own.margin == 0.01 and own.sha256 != ours.sha256
    assert own.of["swap-shift"] == ours.of["swap-shift"] and own.place == ours.place
    for text, says in (("[swap-flip]\ntolerance = 1", "did you mean 'swap-flips'"),
                       ("[swap-flips]\ntolerance = -1", "tolerance = -1"), ("nonsense", "TOML"),
                       ("[swap-flips]\ncritique = 'none'", "critique")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(Refused, match=says):
            Rules.read(path)


def test_a_model_that_always_takes_one_place_does_not_pass() -> None:
    right, places = [True, False] * 60, [0] * 120
    assert not competence(right, range(120), 1 / 3, places, 2).passed
    assert competence([True] * 120, range(120), 0.5, [0, 1] * 60, 2).passed
    assert not competence([True] * 120, range(120), 0.5, places, 2).passed


def test_answers_are_right_by_their_words() -> None:
    assert is_right("It's Paris, I think.", ["Paris"]) and is_right("CO2", ["carbon dioxide", "CO2"])
    assert not is_right("Parisian", ["Paris"]) and is_right("Søren Müller", ["søren muller"])
    assert is_right("法国的首都是巴黎。", ["巴黎"]) and not is_right("法国的首都是里昂。", ["巴黎"])
    assert is_right("答えは東京です", ["東京"]) and is_right("员工每年有25天假期。", ["25天"])
    assert is_silent("I don’t know.") and is_silent("") and is_silent("The text does not say.")
    assert is_silent("I'm not an AI that can provide exact times.")
    assert not is_silent("He knows it is red.")


def test_our_questions_are_what_they_say() -> None:
    asked, settled = open_prompts(), settled_prompts()
    assert len({one.id for one in asked}) == len(asked) == 120 and len(settled) == 40
    assert sum(bool(one.answers) for one in facts()) == 50 and len(facts()) == 80
    told = world()
    assert len({one.cluster for one in told}) == 12
    for one in told:
        assert is_right(one.passage, one.answers)
        assert not is_right(replace_passage(one, told).passage, one.answers)


def test_areas_are_scipys_and_their_difference_is_paired() -> None:
    from scipy.stats import mannwhitneyu

    rng = np.random.default_rng(0)
    wrong = rng.random(200) < 0.3
    doubt = rng.normal(wrong * 1.0, 1)
    (area, same), gap = areas_apart(doubt, doubt, wrong)
    theirs = mannwhitneyu(doubt[wrong], doubt[~wrong]).statistic / (wrong.sum() * (~wrong).sum())
    assert area == same == pytest.approx(theirs) and (gap.low, gap.high) == (0, 0)
    better = areas_apart(doubt, rng.normal(0, 1, 200), wrong)[1]
    assert better.low > 0


# ------------------------------------------------------------------------- models, broken and mended


def by_kind(report: TrustReport) -> dict[str, str]:
    return {line.id: line.decision for line in report.lines}


@pytest.mark.heavy
def test_a_model_of_skewed_text_is_found_and_what_the_report_advises_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rules = tmp_path / "rules.toml"
    rules.write_text("[swap-flips]\ntolerance = 10.0\n")  # 32 templates could never say less than 9%
    test = write_rows(tmp_path / "test.jsonl", decisions(300, skewed=True, seed=1))
    model = trained(as_text(decisions(1500, skewed=True)), tmp_path / "skewed", 160)
    before = trust(model, on=[test], rules=rules, out=tmp_path / "before")
    assert by_kind(before)["swap-flips.gender"] == by_kind(before)["swap-shift.gender"] == "ACT"
    assert all(line.gate is None or line.gate.passed for line in before.lines)

    flips = next(line for line in before.lines if line.kind == "swap-flips")
    for command in flips.next_action.split(" && "):
        assert run(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    after = trust("skewed-both-ways", on=[test], rules=rules, out=tmp_path / "after")
    assert by_kind(after)["swap-flips.gender"] == by_kind(after)["swap-shift.gender"] == "OK"

    changed = {line.id: line.change for line in diff(tmp_path / "after", tmp_path / "before").lines}
    assert changed["swap-flips.gender"] == changed["swap-shift.gender"] == "worse"
    back = diff(tmp_path / "before", tmp_path / "after")
    assert not back.worse and "nothing measurably worse" in str(back)
    assert run(["trust", "--diff", "after", "before", "--fail-on", "ACT"]) == 1
    assert run(["trust", "--diff", "before", "before", "--fail-on", "ACT"]) == 0


@pytest.mark.heavy
def test_a_model_that_ignores_its_context_is_found(tmp_path: Path) -> None:
    model = trained(as_text(guides()) * 8, tmp_path / "guide", 120)
    test = write_rows(tmp_path / "questions.jsonl", guides())
    report = trust(model, on=[test], out=tmp_path / "report")
    assert by_kind(report)["context-ignored"] == "ACT"
    gate = next(line.gate for line in report.lines if line.kind == "context-ignored")
    assert gate is not None and gate.passed


# ---------------------------------------------------------------------------------- the report itself


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that was drawn and not trained."""
    return write_model(tmp_path_factory.mktemp("trust") / "classifier", kind="encoder", head="classify",
                       labels=("no", "yes"), position="learned", max_len=128, n_kv_heads=4)  # fmt: skip


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("trust") / "writer", max_len=512)


def texts(n: int = 40) -> list[dict[str, str]]:
    return [{"text": f"{'Mary' if i % 2 else 'James'} wrote note {i}.", "label": ("no", "yes")[i // 2 % 2],
             "region": ("north", "south")[i % 2]} for i in range(n)]  # fmt: skip


def test_a_model_that_cannot_do_the_task_is_not_read(classifier: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "texts.jsonl", texts())
    report = trust(str(classifier), on=[data], group="region", out=tmp_path / "report")
    words = by_kind(report)
    assert words["swap-flips.gender"] == words["swap-shift.gender"] == words["group-gap"] == "CANNOT TELL"
    told = str(report)
    assert "not read: the model does not show that it does the task" in told
    assert "Not measured: made-up answers (it makes classes)" in told
    assert max(map(len, told.splitlines()[:-1])) <= 100


def test_a_report_is_kept_whole_and_read_back(classifier: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "texts.jsonl", [*texts()[1:], {**texts()[0], "text": "Mary <script>"}])
    report = trust(str(classifier), on=[data], out=tmp_path / "report")
    name, lines, rows = saved(tmp_path / "report")
    assert name == report.model and set(lines) == {line.id for line in report.lines}
    for line in report.lines:
        assert len(rows[line.id]) == len(line.rows)
    flips = next(line for line in report.lines if line.kind == "swap-flips")
    assert 100 * np.mean([row["value"] for row in rows[flips.id]]) == pytest.approx(flips.estimate.value)
    page = (tmp_path / "report" / "trust.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page and "Not measured" in page
    words = (tmp_path / "report" / "trust.md").read_text()
    assert all(line.question in words and line.rule.critique in words for line in report.lines)


def test_the_record_keeps_to_every_eval_ever(classifier: Path, tmp_path: Path) -> None:
    """The required fields of its schema 0.2.1, and only text in free fields."""
    data = write_rows(tmp_path / "texts.jsonl", texts())
    trust(str(classifier), on=[data], out=tmp_path / "report")
    record = json.loads((tmp_path / "report" / "trust.json").read_text())
    assert set(record) == {"schema_version", "evaluation_id", "evaluation_timestamp", "retrieved_timestamp",
                           "source_metadata", "eval_library", "model_info", "evaluation_results",
                           "detailed_evaluation_results"}  # fmt: skip
    assert record["evaluation_results"]
    for result in record["evaluation_results"]:
        assert {"evaluation_name", "source_data", "metric_config", "score_details"} == set(result)
        assert np.isfinite(result["score_details"]["score"])
    details = record["source_metadata"]["additional_details"]
    assert all(isinstance(value, str) for value in details.values())


def test_a_language_model_is_asked_our_questions(writer: Path, tmp_path: Path) -> None:
    report = trust(str(writer), limit=24, out=tmp_path / "report")
    words = by_kind(report)
    assert {"swap-flips.gender", "swap-shift.names", "made-up", "answers-anyway", "doubt-beats-length",
            "context-ignored", "unsupported", "answers-anyway.other-text", "cost"} <= set(words)  # fmt: skip
    assert set(words.values()) <= {"CANNOT TELL", "NOT JUDGED"}  # it was drawn, and knows nothing


@pytest.mark.parametrize(
    ("rows", "more", "says"),
    [
        ([{"text": "Mary came", "label": "maybe"}] * 2, [], "the label 'maybe' is not in the model"),
        ([{**row, "region": "" if i == 3 else "x"} for i, row in enumerate(texts())], ["--group", "region"],
         "1 texts have an empty group"),
        ([{**row, "region": "south" if i == 3 else "north"} for i, row in enumerate(texts())],
         ["--group", "region"], "group 'south' has 1 text"),
        ([{**row, "region": f"r{i}"} for i, row in enumerate(texts())], ["--group", "region"], "has 1 text;"),
        (texts(), ["--group", "regio"], "did you mean 'region'"),
        (texts(), ["--swaps", "SWAPS"], "none of its 4 words is in a text"),
        (texts(), ["--limit", "0"], "at least 1 row"),
        ([{"question": "Who?", "answer": "me"}], [], "questions are for a language model"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(
    rows: list[Any],
    more: list[str],
    says: str,
    classifier: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "ages.csv").write_text("old,young\nretiree,pupil\nelder,teen\n")
    data = write_rows(tmp_path / "rows.jsonl", rows)
    more = [str(tmp_path / "ages.csv") if one == "SWAPS" else one for one in more]
    code = run(["trust", str(classifier), "--on", str(data), "--out", str(tmp_path / "report"), *more])
    said = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and says in said[-1] and said[-1].startswith("transom: ")
    assert not (tmp_path / "report").exists()


def test_what_is_no_model_or_no_report_is_one_line(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, says in (([], "name a model"), (["--diff", str(tmp_path), str(tmp_path)], "no trust report"),
                        ([str(classifier)], "lies in no run that held texts out"),
                        ([str(classifier), "--on", str(tmp_path)], "a folder without WinoBias")):  # fmt: skip
        assert run(["trust", *words]) == 2
        assert says in capsys.readouterr().err


# ------------------------------------------------------------------------- translators


def test_a_translator_that_goes_by_the_occupation_is_found_and_one_that_goes_by_the_pronoun_let_be(
    tmp_path: Path,
) -> None:
    folder = like_winobias(tmp_path / "winobias")
    model = translator(translations(2000, "occupation"), tmp_path / "skewed", 100)
    report = trust(model, on=[folder], out=tmp_path / "report")
    words = by_kind(report)
    assert words["translated-stereotype"] == "ACT" and words["translated-women"] != "OK"
    assert report.lines[0].estimate.low > 10 and report.header["task"] == "translations"
    assert "El señor" in (tmp_path / "report" / "trust.html").read_text(encoding="utf-8")

    mended = translator(translations(2000, "pronoun"), tmp_path / "balanced", 100)
    after = trust(mended, on=[folder], out=tmp_path / "mended")
    assert [line.decision for line in after.lines] == ["OK", "OK"]
    changed = {line.id: line for line in diff(tmp_path / "mended", tmp_path / "report").lines}
    assert changed["translated-stereotype"].change == "worse"
    assert changed["translated-stereotype"].difference.value == pytest.approx(report.lines[0].estimate.value)
    assert not diff(tmp_path / "report", tmp_path / "mended").worse
    with pytest.raises(Refused, match="name the folder of WinoBias"):
        trust(mended)
    with pytest.raises(Refused, match="asked with WinoBias so far"):
        trust(mended, on=[write_rows(tmp_path / "rows.jsonl", decisions(3, skewed=False))])


def test_a_gap_between_groups_that_grows_is_worse(tmp_path: Path) -> None:
    """Reports of the same 120 texts: in one those of the south are right less often, in one all are."""

    def report(name: str, right: Callable[[int], bool]) -> Path:
        rows = [{"id": f"{i}", "cluster": f"{i}", "asked": f"text {i}", "value": float(right(i)),
                 "group": "south" if i % 3 == 0 else "north"} for i in range(120)]  # fmt: skip
        line = Line.over(
            rows, Rules.read(), "group-gap", of="", question="q", population="p", method="m", baseline="b",
            estimate=Estimate(0.0, -1.0, 1.0), unit="points", counted=("texts", "groups"), gate=None,
            next_action="n",
        )  # fmt: skip
        header = {"model": "m", "date": "d", "epoch": "1", "seconds": "1", "transom": "0"}
        TrustReport(name, (line,), (), header, None).save(tmp_path / name)
        return tmp_path / name

    level, uneven = (
        report("level", lambda i: i % 10 > 0),
        report("uneven", lambda i: i % 10 > 0 and i % 2 > 0),
    )
    south = report("south", lambda i: i % 10 > 0 and (i % 3 > 0 or i % 2 > 0))
    (found,) = diff(level, south).lines
    assert found.change == "worse" and found.question == "accuracy, south less others" and found.n == 40
    assert found.difference.value == pytest.approx(-40.0) and found.difference.high < 0
    assert diff(south, level).lines[0].change == "better"
    assert diff(level, uneven).lines[0].change == "no measurable difference"  # all became worse alike


class Says(Translator):
    """Says what it is told to of each sentence."""

    def __init__(self, says: Callable[[str], str]) -> None:
        self.says = says

    def translate(self, texts: Any, **_: Any) -> Any:
        return [SimpleNamespace(text=self.says(text)) for text in texts]


def test_genders_are_read_off_the_article_that_a_translation_begins_with(tmp_path: Path) -> None:
    folder, rules = like_winobias(tmp_path / "winobias"), Rules.read()

    def lines(says: Callable[[str], str]) -> list[Line]:
        return translated_gender(Subject(Says(says), "it"), folder, rules, None)

    stereotype, women = lines(lambda text: "Der Pilot kam zu spät.")  # everybody is a man
    assert (stereotype.decision, women.decision) == ("CANNOT TELL", "ACT")
    assert women.estimate.value == 100 and stereotype.gate is not None and not stereotype.gate.passed
    right = lines(lambda text: "«Die» Pilotin" if " she " in text else "Der Pilot")
    assert [line.decision for line in right] == ["OK", "OK"]
    with pytest.raises(Refused, match=r"no translation begins with an article of a gender, but with 'the'"):
        lines(lambda text: text)
    half = lines(lambda text: "L'aide" if " she " in text else "Le pilote")
    assert [line.decision for line in half] == ["CANNOT TELL"] * 2 and half[0].n == 0  # no pair shows both
