"""What a run changed in the model that it began as: measured, said, drawn, and noted in its card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import transom
from tests.evaluation.members import BYTES, write_model
from transom import __main__ as door
from transom.checkpoint.folder import verify
from transom.data.tokenizer import Tokenizer
from transom.errors import Refused
from transom.evaluation import against, answers
from transom.evaluation.before_after import HEADING, before_after
from transom.evaluation.page import write_page
from transom.evaluation.paired import Comparison, Example, Measure
from transom.intervals import Estimate

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
