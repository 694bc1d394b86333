"""What a run changed in the model that it began as: measured, said, drawn, and noted in its card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import transom
from tests.evaluation.members import BYTES, write_model
from tests.evaluation.test_against import ENCODER, KINDS, LABELS
from transom import __main__ as door
from transom.checkpoint.folder import verify
from transom.data.tokenizer import Tokenizer
from transom.errors import Refused
from transom.evaluation import against, answers
from transom.evaluation.against import preference_measures
from transom.evaluation.before_after import HEADING, HEADING_CHEAP, before_after
from transom.evaluation.page import write_page
from transom.evaluation.paired import Comparison, Example, Measure
from transom.intervals import Estimate
from transom.training.report import history

TURNS = """{%- for message in messages %}{{ message.role + ': ' + message.content }}
{%- if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"""
QUICK = {"dtype": "float32", "device": "cpu", "prompt": "", "steps": 3}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps on questions and answers, of a model that was drawn."""
    folder = tmp_path_factory.mktemp("tuned")
    tokenizer = Tokenizer(BYTES.json_text, {**BYTES.config, "chat_template": TURNS})
    base = write_model(folder / "base", tokenizer=tokenizer, max_len=128)
    rows = [
        {"prompt": f"What is {i} and {i}?", "completion": f"It is {2 * i}, <b>surely</b>."} for i in range(60)
    ]
    (folder / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "general.txt").write_text("The ship went over the sea and nobody knows why it sank.\n" * 60)
    words = ["train", str(folder / "talks.jsonl"), "--task", "sft", "--model.weights", str(base),
             "--data.val-fraction", "0.5", "--general", str(folder / "general.txt"), "--out",
             str(folder / "run"), "--batch.texts", "8"]  # fmt: skip
    words += [word for name, value in QUICK.items() for word in (f"--{name}", str(value))]
    with pytest.MonkeyPatch.context() as here:
        here.setattr(against, "WRITTEN", 8)
        here.setattr(answers, "MAX_TOKENS", 12)
        assert door.run(words) == 0
    return folder / "run"


def test_the_end_of_a_run_tells_what_it_changed(tuned: Path) -> None:
    told = json.loads((tuned / "before_after.json").read_text())
    names = [measure["name"] for measure in told["measures"]]
    for name in ("nats per answer token", "chrF to the answer", "ends by itself", "tokens written/s",
                 "general text: nats per token", "size"):  # fmt: skip
        assert name in names
    assert told["verdict"] in ("better", "no measurable improvement", "harmed")
    measures = dict(zip(names, told["measures"], strict=True))
    assert measures["nats per answer token"]["n"] > 15 and measures["size"]["difference"]["value"] == 0
    assert told["examples"][0]["asked"].startswith("What is") and "<b>" in told["examples"][0]["wanted"]


def test_the_page_holds_it_and_no_markup_of_the_data(tuned: Path) -> None:
    page = (tuned / "report.html").read_text()
    assert "Did it help?" in page and "nats per answer token" in page and "the worst first" in page
    assert "<b>surely</b>" not in page and "&lt;b&gt;surely&lt;/b&gt;" in page
    assert "<script" not in page and "http://" not in page and "https://" not in page


def test_the_card_has_one_line_of_it_and_the_folder_is_whole(tuned: Path) -> None:
    verify(tuned / "model")
    card = (tuned / "model" / "README.md").read_text()
    assert card.count(HEADING) == 1 and "n = " in card.partition(HEADING)[2] and "## Limits" in card
    before_after(tuned, general=str(tuned.parent / "general.txt"))
    verify(tuned / "model")
    assert (tuned / "model" / "README.md").read_text().count(HEADING) == 1


def test_what_was_forgotten_is_told_by_the_same_text_after_a_resume(tuned: Path, tmp_path: Path) -> None:
    again = tmp_path / "run"
    shutil.copytree(tuned, again)
    for name in ("before_after.json", "report.html"):
        (again / name).unlink()
    assert door.run(["train", "--out", str(again), "--resume"]) == 0
    for one, other in zip(*(json.loads((at / "before_after.json").read_text())["measures"]
                            for at in (tuned, again)), strict=True):  # fmt: skip
        if one["name"].startswith("general text"):
            assert one["before"] == other["before"] and one["n"] == other["n"]


def test_answers_are_scored_alone_too(tuned: Path) -> None:
    score = transom.evaluate(tuned)
    told = score.to_dict()
    assert told["conversations"] > 15 and "nats per answer token" in str(score)
    found = json.loads((tuned / "before_after.json").read_text())["measures"][0]["after"]["value"]
    assert told["loss"]["value"] == pytest.approx(found, rel=1e-6)
    again = transom.evaluate(tuned, against=tuned)
    assert again.verdict == "no measurable improvement" and again.measures[0].difference.high == 0


def test_a_run_that_began_with_nothing_has_nothing_to_be_held_against(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    with pytest.raises(Refused, match="no run that began with pretrained weights"):
        before_after(folder)


def test_a_page_turns_nothing_and_runs_nothing_of_the_data(tmp_path: Path) -> None:
    same = Estimate(1.0, 1.0, 1.0)
    said = (
        "<script>alert(1)</script>\u202emoc.live \x1b[31m\x00\r\u2028 שלום 👩\u200d👧 a\tb\nc\u00a0d "
        + "W" * 10_000
    )
    one = Example("x:1", said, said, said, said, 1.0)
    found = Comparison("sft", "m", "o", "t", (Measure("accuracy", "points", same, same, same, 9),), (one,))
    page = write_page(tmp_path / "page.html", found).read_text()
    assert "<script" not in page and not set("\u202e\x1b\x00\u2028") & set(page)
    shown = "\\u202emoc.live \\x1b[31m\\x00\\x0d\\u2028 שלום 👩\u200d👧 a\tb\nc\u00a0d W"
    assert page.count(shown) == 4 and page.count('<p dir="auto">') == 4


def test_a_page_of_many_examples_shows_the_worst_and_some_of_the_best(tmp_path: Path) -> None:
    same = Estimate(1.0, 1.0, 1.0)
    measures = (Measure("accuracy", "points", same, same, Estimate(-1.0, -2.0, -0.5), 90),)
    examples = tuple(Example(f"x:{i}", f"<i>{i}</i>", "", "before", "", i - 45.5) for i in range(90))
    page = write_page(tmp_path / "page.html", Comparison("lm", "m", "o", "t", measures, examples)).read_text()
    assert page.index("x:0<") < page.index("x:23<") and "x:24<" not in page and "x:89<" in page
    assert (
        "harmed" in page
        and "<i>" not in page.partition("<main")[2].replace("<i></i>", "")
        and "(nothing)" in page
    )


def test_a_notebook_shows_the_verdict_and_the_table(tmp_path: Path) -> None:
    one, more = Estimate(1.0, 0.5, 1.5), Estimate(2.0, 1.5, 2.5)
    measure = Measure("<b>accuracy</b>", "points", one, more, Estimate(1.0, 0.5, 1.5), 90)
    found = Comparison("lm", "m", "o", "t", (measure,), (Example("x:1", "a", "b", "c", "d", 1.0),))
    bundle = found._repr_mimebundle_()
    shown = bundle["text/html"]
    assert ">better</b>" in shown and "+0.5 to +1.5" in shown and "x:1" not in shown
    assert "<b>accuracy" not in shown and "<script" not in shown
    assert bundle["text/plain"].startswith("better: <b>accuracy</b> +1.0 points")


# --- every other task


def test_of_pairs_of_answers_it_tells_how_many_are_rewarded(tuned: Path, tmp_path: Path) -> None:
    """The held-out pairs one by one, by the objective's own sums: DPO's reward accuracy and margin."""
    rows = [
        {
            "prompt": f"What is {i} and {i}?",
            "chosen": f"It is {2 * i}, madam.",
            "rejected": f"{2 * i}, you {i}",
        }
        for i in range(60)
    ]
    data, run = tmp_path / "pairs.jsonl", tmp_path / "run"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    general = str(tuned.parent / "general.txt")
    finish(data, tuned.parent / "base", run, "--task", "preference", "--data.val-fraction", "0.5",
           "--batch.texts", "8", "--optim.lr", "3e-3", "--general", general)  # fmt: skip
    told = json.loads((run / "before_after.json").read_text())
    rewarded, lead, likelier = told["measures"][:3]
    assert rewarded["name"] == "rewards the chosen answer" and rewarded["before"]["value"] == 50
    assert told["verdict"] == rewarded["verdict"] and rewarded["n"] == rewarded["wins"] + rewarded["losses"]
    ended = json.loads((run / "ledger.json").read_text())
    held_out = [event for event in history(run / "metrics.jsonl") if event["event"] == "held_out"][-1]
    assert held_out["tokens_scored"] == rewarded["n"] > 15
    assert rewarded["after"]["value"] == pytest.approx(100 * held_out["accuracy"]["value"])
    assert 0.1 * lead["difference"]["value"] == pytest.approx(held_out["margin"], abs=1e-3)
    assert likelier["difference"]["value"] == pytest.approx(100 * held_out["likelier_gain"]["value"])
    assert ended["task"] == "preference" and "nats ahead of the rejected" in told["examples"][0]["before"]
    again = transom.evaluate(run, against=run, test=str(data))
    assert again.verdict == "no measurable improvement" and again.measures[0].after.value == 50


def test_a_preference_that_may_be_chance_is_called_so() -> None:
    lead = np.random.default_rng(0).normal(size=40)
    up = preference_measures(lead + 1.0, lead)
    assert up[0].verdict == "better" and up[0].after.value == 100 and up[1].difference.value == 1.0
    mixed = preference_measures(lead + np.tile([1.0, -1.0, 1.0, 1.0, -1.0], 8), lead)
    assert mixed[0].verdict == "no measurable improvement" and mixed[0].after.value == 60
    down = preference_measures(lead - 1.0, lead)
    assert down[0].verdict == "harmed" and down[0].sentence.startswith(
        "harmed: rewards the chosen answer 0.0%"
    )


def test_weights_with_a_new_head_stand_beside_something_cheap(tmp_path: Path) -> None:
    """Their base cannot do this: the report says so, and none is called harmed. Then the same again."""
    base = write_model(tmp_path / "base", **ENCODER)
    rows = [f"the {('grass is green', 'sea is salt', 'sky is blue')[i % 3]} {i}" for i in range(90)]
    data = tmp_path / "classes.tsv"
    data.write_text("text\tlabel\n" + "".join(f"{row}\t{LABELS[i % 3]}\n" for i, row in enumerate(rows)))
    asked = ("--data.val-fraction", "0.4", "--card.not-for", "diagnosis [or] treatment")
    run, again = tmp_path / "run", tmp_path / "again"
    finish(data, base, run, *asked)
    told = json.loads((run / "before_after.json").read_text())
    assert told["measures"][0]["name"] == "accuracy" and "TF-IDF" in told["against"]
    assert "could not do this before" in told["notes"][0] and told["measures"][0]["verdict"] == "worse"
    page = (run / "report.html").read_text()
    assert "the worst first" in page and "cheap" in page and "harmed</b>" not in page
    card = (run / "model" / "README.md").read_text()
    assert HEADING_CHEAP in card and "| accuracy | " in card and HEADING not in card
    assert "must not be used for: diagnosis \\[or\\] treatment.**" in card
    finish(data, run, again, *asked)
    told = json.loads((again / "before_after.json").read_text())
    assert told["against"] == str(run) and told["measures"][0]["verdict"] != "worse"
    assert HEADING in (again / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    ("kind", "task", "first"),
    [("translator", "translate", "BLEU"), ("embedder", "embed", "recall@1"), ("masks", "embed", "recall@1"),
     ("decoder", "lm", "nats per token")],
)  # fmt: skip
def test_every_other_task_ends_beside_what_it_began_as(
    kind: str, task: str, first: str, tmp_path: Path
) -> None:
    base = write_model(tmp_path / "base", **KINDS[kind])
    data, run = tmp_path / ("text.txt" if task == "lm" else "pairs.tsv"), tmp_path / "run"
    said = "the ship went over a wide green sea and the wind blew salt"
    texts = [f"{said[i % 7 : i % 7 + 33]} {i}" for i in range(60)]
    if task == "lm":
        data.write_text("\n<|endoftext|>\n".join(texts * 2))
    else:
        data.write_text("source\ttarget\n" + "".join(f"{text}\t{text.upper()}\n" for text in texts))
    finish(data, base, run, "--task", task, "--data.val-fraction", "0.4")
    told = json.loads((run / "before_after.json").read_text())
    names = [measure["name"] for measure in told["measures"]]
    assert names[0] == first and told["task"] == task
    assert told["examples"] or kind == "translator"  # whose answers are the same
    assert ("TF-IDF of words" in told["against"]) == (kind == "masks")
    if task == "lm":
        assert "general text: nats per token" in names and "tokens written/s" in names
    assert "Did it help?" in (run / "report.html").read_text()


def finish(data: Path, base: Path, run: Path, *more: str) -> None:
    """Fine-tune for a few steps on the command line."""
    words = ["train", str(data), "--model.weights", str(base), "--out", str(run), *more]
    words += [word for name, value in QUICK.items() for word in (f"--{name}", str(value))]
    with pytest.MonkeyPatch.context() as here:
        here.setattr(against, "WRITTEN", 8)
        here.setattr(answers, "MAX_TOKENS", 12)
        assert door.run(words) == 0


def test_texts_to_embed_that_are_too_long_are_cut_for_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_model(tmp_path / "base", **KINDS["embedder"])
    data, run = tmp_path / "pairs.tsv", tmp_path / "run"
    texts = [f"the ship {i} went over a wide sea" + " and on" * (i % 30) for i in range(60)]
    data.write_text("source\ttarget\n" + "".join(f"{i} {text}\t{text}\n" for i, text in enumerate(texts)))
    words = ["train", str(data), "--task", "embed", "--model.weights", str(base), "--steps", "2"]
    assert door.run([*words, "--out", str(tmp_path / "refused")]) == 2
    assert "are longer: set --model.max-len" in (said := capsys.readouterr().err)
    assert "(--data.too-long cut or drop)" in said
    finish(data, base, run, "--task", "embed", "--data.too-long", "cut", "--data.val-fraction", "0.4")
    told = json.loads((run / "before_after.json").read_text())
    assert told["measures"][0]["name"] == "recall@1" and told["measures"][0]["n"] > 15
    assert "are cut there" in capsys.readouterr().err


def test_what_cannot_be_is_refused_before_anything_is_learned(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, same = str(tuned.parent / "base"), tmp_path / "same.jsonl"
    data = str(tuned.parent / "talks.jsonl")
    row = {"prompt": "Which?", "chosen": "this", "rejected": "this"}
    same.write_text("".join(json.dumps({**row, "prompt": f"Which {i}?"}) + "\n" for i in range(40)))
    for words, says in (
        ([data, "--general", str(tmp_path / "gone.txt")], "gone.txt: no such file or folder"),
        ([data, "--map", "prompt=promt"], "no column is named 'promt' (--map); did you mean 'prompt'?"),
        ([str(same)], "no pair is left to learn from: 40 whose two answers are equal say nothing"),
    ):
        asked = ["finetune", base, "--data", *words, "--out", str(tmp_path / "run"), "--steps", "1"]
        assert door.run(asked) == 2
        assert says in capsys.readouterr().err and not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_disk_that_is_full_at_the_end_loses_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What scores and compares cannot be written: the run has ended well, and says where its model is."""
    base, data = write_model(tmp_path / "base", **ENCODER), tmp_path / "classes.tsv"
    rows = [f"the {('grass is green', 'sea is salt')[i % 2]} {i}\t{LABELS[i % 2]}\n" for i in range(60)]
    data.write_text("text\tlabel\n" + "".join(rows))

    def full(*_: object, **__: object) -> None:
        raise Refused("report.html: cannot be written (No space left on device)")

    monkeypatch.setattr("transom.evaluation.examine.write_whole", full)
    monkeypatch.setattr("transom.evaluation.before_after.write_page", full)
    finish(data, base, tmp_path / "run")
    said = capsys.readouterr()
    assert "No space left on device" in said.err and f"model: {tmp_path / 'run' / 'model'}" in said.out
    assert "what it changed is not written down" in said.err
    assert "verdict: " in said.out and "report: " not in said.out  # what it changed is told all the same


@pytest.mark.parametrize("out", ["/proc/transom", "x" * 300])
def test_a_place_where_nothing_can_be_written_is_refused_in_a_line(
    out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("some text\n" * 50)
    assert door.run(["train", str(tmp_path / "a.txt"), "--out", out, "--steps", "1"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "no run can be written there" in said and "another --out" in said
