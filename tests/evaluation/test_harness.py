"""lm-evaluation-harness through our backend says what its own `hf` backend says, to the digit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import transom
from tests.evaluation.members import write_model
from transom.data.tokenizer import train_tokenizer
from transom.errors import Refused

pytest.importorskip("lm_eval")
pytest.importorskip("transformers")

TEXTS = [
    f"the ship went over the {word} sea and nobody knows why it sank" for word in ("wide", "salt", "old")
] * 4


class Asked:
    """A request, as lm-eval makes it."""

    def __init__(self, *args: Any) -> None:
        self.args = args


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = train_tokenizer("bpe", iter(TEXTS * 5), 300)
    return write_model(
        tmp_path_factory.mktemp("harness") / "model", tokenizer=tokenizer, vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.eos_id, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id,
    )  # fmt: skip


@pytest.fixture(scope="module")
def both(folder: Path) -> tuple[Any, Any]:
    """Our backend and that of transformers, as lm-eval makes them of their names."""
    from lm_eval.api.registry import get_model

    from transom.evaluation.harness import TransomLM

    assert get_model("transom") is TransomLM
    arguments = {"pretrained": str(folder), "dtype": "float32"}
    more = {"batch_size": 3, "device": "cpu"}
    ours, theirs = (get_model(name).create_from_arg_obj(arguments, more) for name in ("transom", "hf"))
    theirs.tokenizer.pad_token_id = ours.loaded.tokenizer.pad_id
    return ours, theirs


def test_choices_have_its_likelihoods(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    asked = [
        Asked(text[:25], choice)
        for text in TEXTS[:3]
        for choice in (" sea", " land", " s", "x ", " wide sea")
    ]
    asked += [Asked("", "the ship"), Asked("the ship ", "went"), Asked(TEXTS[0] * 8, " and")]
    one, other = (model.loglikelihood(asked, disable_tqdm=True) for model in both)
    for (logprob, greedy), (wanted, likeliest) in zip(one, other, strict=True):
        assert logprob == pytest.approx(wanted, abs=2e-4) and greedy == likeliest
    assert ours.prefix_token_id == theirs.prefix_token_id and ours.max_length == theirs.max_length


def test_whole_texts_are_read_in_its_windows(both: tuple[Any, Any]) -> None:
    asked = [Asked(" ".join(TEXTS)), Asked("the"), Asked(TEXTS[1] * 3)]
    one, other = (model.loglikelihood_rolling(asked, disable_tqdm=True) for model in both)
    assert one == pytest.approx(other, abs=2e-3)


def test_answers_end_where_its_do(both: tuple[Any, Any]) -> None:
    limits = {"until": ["e", "\n"], "max_gen_toks": 12}
    asked = [Asked(text[: 10 + i], limits) for i, text in enumerate(TEXTS[:4])]
    asked.append(Asked("the ship", {"until": [], "max_gen_toks": 5, "do_sample": False}))
    one, other = (model.generate_until(asked, disable_tqdm=True) for model in both)
    assert one == other


@pytest.mark.heavy
def test_its_tasks_give_equal_numbers(both: tuple[Any, Any], tmp_path: Path) -> None:
    """A cloze and a multiple choice from local files, through the whole of lm-eval."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    rows = [
        {"text": text, "choices": ["sea", "land", "ship"], "label": i % 3} for i, text in enumerate(TEXTS)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test", "metadata": {"version": 1.0},
    }  # fmt: skip
    cloze = {
        **common, "task": "cloze", "output_type": "loglikelihood",
        "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}", "doc_to_target": "{{' ' + text.split(' ')[-1]}}",
        "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
    }  # fmt: skip
    choice = {
        **common, "task": "choice", "output_type": "multiple_choice", "doc_to_text": "{{text[:20]}}",
        "doc_to_target": "label", "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }  # fmt: skip
    found = []
    for model in both:
        done = simple_evaluate(model, tasks=[cloze, choice], task_manager=TaskManager(include_defaults=False),
                               bootstrap_iters=0)  # fmt: skip
        assert done is not None
        found.append({task: {k: v for k, v in scores.items() if isinstance(v, float)}
                      for task, scores in done["results"].items()})  # fmt: skip
    for task in ("cloze", "choice"):
        assert found[0][task] == pytest.approx(found[1][task], rel=1e-4)


def test_what_it_cannot_do_is_refused(folder: Path, tmp_path: Path) -> None:
    from transom.evaluation.harness import TransomLM

    ours = TransomLM(str(folder), max_length=16)
    with pytest.raises(Refused, match="256 tokens are to be written, and .* reads 16"):
        ours.generate_until([Asked("the", {"until": ["x"]})])
    with pytest.raises(Refused, match="write tokens and no text"):
        ours.apply_chat_template([])
    with pytest.raises(TypeError, match="peft"):
        TransomLM(str(folder), peft="x")  # type: ignore[call-arg]
    assert (
        isinstance(ours.loaded, transom.Generator) and ours.loaded.model.embed.weight.dtype == torch.float32
    )
