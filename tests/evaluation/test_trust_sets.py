"""The public sets, as they lie beside the repository: read right, and asked as lm-evaluation-harness asks."""

from __future__ import annotations

import csv
import json
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluation.members import write_model
from transom.data.tokenizer import train_tokenizer
from transom.evaluation import bias_sets
from transom.evaluation.subject import Choice, Subject
from transom.evaluation.trust import trust
from transom.evaluation.trust_line import Rules
from transom.evaluation.verifier import CHECKED, measured, overlap, support
from transom.inference.generator import Generator
from transom.inference.load import load
from transom.intervals import share


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that was drawn, with words of the sets in its vocabulary."""
    texts = ["The developer argued with the designer because she did not like the design."] * 40
    tokenizer = train_tokenizer("bpe", iter(texts), 300)
    return write_model(
        tmp_path_factory.mktemp("sets") / "model", tokenizer=tokenizer, vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.eos_id, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id, max_len=1024,
    )  # fmt: skip


@pytest.fixture(scope="module")
def subject(folder: Path) -> Subject:
    return Subject(load(str(folder), Generator, dtype="float32"), "model")


def begin(shared_data: Path) -> tuple[list[str], list[str], list[bool]]:
    """Answers, what they rest on, and whether people say that it carries them; generic ones left out."""
    rows = [
        row
        for name in ("wow", "cmu", "tc")
        for row in csv.DictReader(
            (shared_data / "begin" / f"begin_dev_{name}.tsv").read_text(encoding="utf-8").splitlines(),
            delimiter="\t", quoting=csv.QUOTE_NONE,
        )
        if row["begin_label"].endswith("attributable")
    ]  # fmt: skip
    carried = [row["begin_label"] == "Fully attributable" for row in rows]
    return [row["response"] for row in rows], [row["knowledge"] for row in rows], carried


@pytest.mark.heavy
def test_the_verifiers_errors_are_those_that_are_written_down(shared_data: Path) -> None:
    answers, texts, carried = begin(shared_data)
    scores = [support(answer, text) for answer, text in zip(answers, texts, strict=True)]
    found = measured(scores, carried, CHECKED.source)
    assert found.threshold == pytest.approx(CHECKED.threshold, abs=0.005)
    assert (found.sensitivity, found.specificity) == (CHECKED.sensitivity, CHECKED.specificity)
    plain = measured([overlap(a, b) for a, b in zip(answers, texts, strict=True)], carried, "overlap")
    print(found, plain, sep="\n")  # noqa: T201
    # Said in docs/trust.md: it is no better than counting words, on these texts.
    assert share(*plain.specificity).low < share(*found.specificity).high


@pytest.mark.heavy
def test_the_verifier_tells_right_from_made_up_answers_of_halueval(shared_data: Path) -> None:
    lines = (shared_data / "halueval" / "qa_one-turn_data.json").read_text(encoding="utf-8").splitlines()
    scores, carried = [], []
    for row in map(json.loads, lines):
        for name, right in (("right_answer", True), ("hallucinated_answer", False)):
            scores.append(support(row[name], row["knowledge"]))
            carried.append(right)
    found = measured(scores, carried, "HaluEval")
    sens, spec = found.estimates()
    print(found)  # noqa: T201
    assert sens.low > 0.8 and spec.low > 0.9


def test_winobias_is_read_whole(shared_data: Path) -> None:
    root = shared_data / "winobias"
    occupations = {
        line.strip()
        for name in ("male", "female")
        for line in (root / f"{name}_occupations.txt").read_text().splitlines()
    }
    places: dict[str, list[int]] = {}
    for kind in ("type1", "type2"):
        for side in ("pro", "anti"):
            lines = (root / f"{side}_stereotyped_{kind}.txt.dev").read_text().splitlines()
            items = [bias_sets._winobias_item(line, occupations) for line in lines]
            places.setdefault(kind, []).extend(item["wanted"] for item in items if item is not None)
            assert sum(item is None for item in items) < 0.1 * len(items)
    assert np.mean(places["type1"]) == 0.5  # no place is right more often, so a habit is no competence
    assert np.mean(places["type2"]) == 1.0  # which is why type 2 is no gate


def test_bbq_knows_whom_a_stereotype_is_about(shared_data: Path) -> None:
    lines = (shared_data / "bbq" / "Age.jsonl").read_text(encoding="utf-8").splitlines()
    items = [bias_sets._bbq_item(row) for row in map(json.loads, lines)]
    kept = [item for item in items if item is not None]
    assert len(kept) == len(items)
    first = kept[0]
    assert first["answers"][first["along"]] == "The grandfather" and first["open"]
    for item in kept:
        assert {item["along"], item["against"]} < {0, 1, 2} and item["along"] != item["against"]
        assert not item["open"] or item["label"] not in (item["along"], item["against"])


def test_all_sets_make_a_report(folder: Path, shared_data: Path, tmp_path: Path) -> None:
    on = [shared_data / name for name in ("winobias", "winogender", "crows_pairs")]
    report = trust(
        str(folder), on=[*on, shared_data / "bbq" / "Age.jsonl"], limit=24, out=tmp_path / "report"
    )
    words = {line.id: line.decision for line in report.lines}
    assert words.pop("winogender-slope") == words.pop("crows-pairs") == "NOT JUDGED"
    assert set(words.values()) == {"CANNOT TELL"} and len(words) == 3  # it was drawn, and reads nothing


def test_a_preference_is_lm_evals_to_the_digit(subject: Subject, folder: Path, shared_data: Path) -> None:
    """WinoBias, BBQ and CrowS-Pairs: the sums of log-probabilities are those of its own backend."""
    pytest.importorskip("lm_eval")
    from lm_eval.tasks.crows_pairs.utils import process_results

    from transom.evaluation.harness import TransomLM

    harness = TransomLM(str(folder), dtype="float32")
    lines = (shared_data / "winobias" / "pro_stereotyped_type1.txt.dev").read_text().splitlines()[:6]
    item: Any
    choices = []
    for item in (
        bias_sets._winobias_item(line, {"developer", "designer", "mechanic", "clerk"}) for line in lines
    ):
        if item is not None:
            choices.append(Choice(item["prompt"], item["options"]))
    rows = (shared_data / "bbq" / "Age.jsonl").read_text(encoding="utf-8").splitlines()[:2]
    for item in map(bias_sets._bbq_item, map(json.loads, rows)):
        choices += [
            Choice(bias_sets._bbq_prompt(item, order), (" A", " B", " C")) for order in permutations(range(3))
        ]
    with open(
        shared_data / "crows_pairs" / "crows_pairs_anonymized.csv", encoding="utf-8", newline=""
    ) as file:
        pairs = list(csv.DictReader(file))[:8]
    choices += [Choice("", (row["sent_more"], row["sent_less"])) for row in pairs]

    class Asked:
        def __init__(self, *args: Any) -> None:
            self.args = args

    asked = [Asked(one.prompt, option) for one in choices for option in one.options]
    theirs = iter(harness.loglikelihood(asked, disable_tqdm=True))
    ours = subject.log_odds(choices)
    for one, found in zip(choices, ours, strict=True):
        assert found.tolist() == [next(theirs)[0] for _ in one.options]

    line = bias_sets.crows_pairs(subject, pairs, "first", Rules.read(), None)[0]
    scored = [
        process_results(None, [(a, False), (b, False)])["pct_stereotype"] for a, b in ours[-len(pairs) :]
    ]
    assert line.estimate.value + 50 == pytest.approx(100 * np.mean(scored))


def lm_eval_samples(folder: Path, rows: list[dict[str, Any]], place: Path, **task: Any) -> list[Any]:
    """What lm-evaluation-harness notes of every row of one multiple-choice task, by its own hf backend."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    place.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    told = {
        **task, "task": "it", "output_type": "multiple_choice", "dataset_path": "json", "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(place)}}, "metadata": {"version": 1.0},
    }  # fmt: skip
    backend = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)
    done: Any = simple_evaluate(backend, tasks=[told], task_manager=TaskManager(include_defaults=False),
                           bootstrap_iters=0, log_samples=True)  # fmt: skip
    samples = sorted(done["samples"]["it"], key=lambda one: one["doc_id"])
    assert np.mean([one["acc"] for one in samples]) == done["results"]["it"]["acc,none"]
    return samples


@pytest.mark.heavy
def test_winobias_is_lm_evals_winogender_task_to_the_digit(
    subject: Subject, folder: Path, shared_data: Path, tmp_path: Path
) -> None:
    """Its own task file, prompts and scoring, over the sentences of WinoBias."""
    pytest.importorskip("lm_eval")
    import lm_eval.tasks
    import yaml

    task_file = Path(lm_eval.tasks.__file__).parent / "winogender" / "winogender.yaml"
    protocol = yaml.safe_load(task_file.read_text(encoding="utf-8"))
    task = {name: protocol[name] for name in ("doc_to_text", "doc_to_target", "doc_to_choice", "metric_list")}
    for line in bias_sets.winobias(subject, shared_data / "winobias", Rules.read(), 120):
        for asked, said in (("asked", "said"), ("counterfactual", "said_of_it")):
            # Labelled by what ours chose, so that its accuracy is how often it chooses the same.
            rows = []
            for row in line.rows:
                sentence, _, rest = row[asked].rpartition(" ‘")
                first, second = sorted(row["cluster"].split("/"), key=sentence.find)
                rows.append({"sentence": sentence, "pronoun": rest.partition("’")[0], "occupation": first,
                             "participant": second, "label": [first, second].index(row[said])})  # fmt: skip
            samples = lm_eval_samples(folder, rows, tmp_path / "rows.jsonl", **task)
            assert len(samples) == len(line.rows) and all(one["acc"] == 1.0 for one in samples)


@pytest.mark.heavy
def test_bbq_is_scored_as_lm_eval_scores_the_same_prompts(
    subject: Subject, folder: Path, shared_data: Path, tmp_path: Path
) -> None:
    """All six orders through lm-eval, averaged here once more; its own BBQ task shows no letters."""
    pytest.importorskip("lm_eval")
    lines = (shared_data / "bbq" / "Age.jsonl").read_text(encoding="utf-8").splitlines()[:12]
    records = [json.loads(line) for line in lines]
    (line,) = bias_sets.bbq(subject, records, "first", Rules.read(), None)
    items: Any = [bias_sets._bbq_item(row) for row in records]
    orders = list(permutations(range(3)))
    rows = [
        {"text": bias_sets._bbq_prompt(item, order), "choices": list("ABC"),
         "label": order.index(item["label"])}
        for item in items for order in orders
    ]  # fmt: skip
    samples = lm_eval_samples(folder, rows, tmp_path / "rows.jsonl", doc_to_text="{{text}}",
                              doc_to_target="label", doc_to_choice="choices",
                              metric_list=[{"metric": "acc"}])  # fmt: skip
    leans = []
    for number, item in enumerate(items):
        total = np.zeros(3)
        for order, one in zip(orders, samples[6 * number : 6 * number + 6], strict=True):
            odds = np.array([float(given[0]) for given in one["filtered_resps"]])
            total[list(order)] += odds - np.logaddexp.reduce(odds)
        if item["open"]:
            said = int(total.argmax())
            leans.append(100.0 * ((said == item["along"]) - (said == item["against"])))
    assert [row["value"] for row in line.rows] == leans
    assert line.estimate.value == pytest.approx(np.mean(leans))
