"""`transom data check`: what would be learned, what is cut, what is there twice, and what CI is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transom.__main__ import run
from transom.settings import TrainSettings, load
from transom.training.data_check import DataCheck, Stretch, check_data


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def qa(n: int, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"What is {at} + {at}?", "completion": f"It is {2 * at}.", **more} for at in range(n)]


def check(path: Path, **more: Any) -> DataCheck:
    return check_data(load(TrainSettings, {"data.source": str(path), **more}))


def test_two_examples_are_shown_with_what_is_learned(tmp_path: Path) -> None:
    found = check(written(tmp_path / "qa.jsonl", qa(40)))
    assert found.task == "sft" and not found.findings and len(found.examples) == 2
    (context, learned) = found.examples[0]
    assert context == Stretch("context", "<|endoftext|>User: What is 0 + 0?\nAssistant:")
    assert learned == Stretch("learned", " It is 0.<|endoftext|>")
    assert f"{context.text}[[{learned.text}]]" in str(found)
    found.coloured = True
    assert f"\x1b[90m{context.text}\x1b[0m\x1b[32m{learned.text}\x1b[0m" in str(found)
    said = found.to_dict()
    assert said["n_learned"] < said["n_tokens"] and json.dumps(said)


def test_what_is_cut_is_counted_and_shown(tmp_path: Path) -> None:
    rows = qa(30) + [{"prompt": "Tell all.", "completion": "word " * 60}]
    path = written(tmp_path / "qa.jsonl", rows)
    found = check(path, **{"data.tokenizer": "bytes", "model.max_len": 100, "data.chat_template": "turns"})
    (finding,) = found.findings
    assert "1 of 31 conversations (3.2%) are longer than 100 tokens and lose" in finding
    assert "--data.too-long cut or drop" in finding
    assert [part.kind for part in found.examples[-1]] == ["context", "learned", "cut"]
    kept, lost = (len(part.text) for part in found.examples[-1][1:])
    assert found.facts["lost"] == pytest.approx(lost / (kept + lost), abs=0.12)  # <|endoftext|> is one token


def test_copies_leaks_and_personal_data_are_findings(tmp_path: Path) -> None:
    rows = qa(30) + qa(2) + [{"prompt": "Who?", "completion": "ann@example.org"}]
    path = written(tmp_path / "qa.jsonl", rows)
    measured = written(tmp_path / "test.jsonl", [*qa(3), {"prompt": "And now?", "completion": "Later."}])
    found = check(path, **{"data.validation": str(measured)})
    copies, leaks, personal = found.findings
    assert copies.startswith("5 conversations stand there more than once")
    assert leaks == "3 of 4 conversations to measure with are learned too"
    assert personal.startswith(f"personal data: 1 e-mail addresses (first at {path}:33)")


def test_other_tasks_and_running_text_are_looked_at_too(tmp_path: Path) -> None:
    labels = tmp_path / "a.csv"
    labels.write_text("text,label\n" + "".join(f"number {at},{'ab'[at % 2]}\n" for at in range(40)))
    found = check(labels)
    assert found.task == "classify" and not found.findings and found.examples[0][1].text == "a"
    text = tmp_path / "a.txt"
    text.write_text("A line to learn. " * 50 + "\nmail bob@example.org\n")
    found = check(text)
    assert found.task == "lm" and len(found.findings) == 1 and "e-mail" in found.findings[0]


Typed = Callable[..., int]


def test_the_exit_code_is_for_ci(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = written(tmp_path / "good.jsonl", qa(30)), written(tmp_path / "bad.jsonl", qa(30) + qa(1))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a"\n')
    assert run(["data", "check", str(good), "--strict"]) == 0
    assert "findings   none" in capsys.readouterr().out
    assert run(["data", "check", str(bad)]) == 0
    capsys.readouterr()
    assert run(["data", "check", str(bad), "--strict", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["copies"] == 1
    long = written(tmp_path / "long.jsonl", [*qa(30), {"prompt": "Tell all.", "completion": "word " * 900}])
    assert run(["data", "check", str(long), "--model.max-len", "64", "--json"]) == 1  # as a run would stop
    assert json.loads(capsys.readouterr().out)["stops"] is True
    assert run(["data", "check", str(long), "--model.max-len", "64", "--data.too-long", "cut"]) == 0
    assert run(["data", "check", str(broken)]) == 2
    assert run(["data", "chek", str(broken)]) == 2
    assert "did you mean 'check'?" in capsys.readouterr().err
