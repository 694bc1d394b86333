"""Conversations in every format and file become the same messages, and are held out by how they open."""

# ruff: noqa: E501 - rows are shown as they are

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transom.data.chat_template import ChatTemplate
from transom.data.conversations import Conversation, ConversationSource, open_conversations
from transom.data.formats import format_of, named_fields
from transom.data.prepare_examples import Preparation, PreparedExamples
from transom.data.rows import RowFile
from transom.data.task_guess import guess_task
from transom.errors import Refused

Written = Callable[[str, bytes | str], Path]
ASKED, ANSWERED = {"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}
SYSTEM = {"role": "system", "content": "Be brief."}
LINES: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "messages": ({"messages": [SYSTEM, ASKED, ANSWERED]}, [SYSTEM, ASKED, ANSWERED]),
    "ShareGPT": ({"conversations": [{"from": "human", "value": "What is 2 + 2?"}, {"from": "gpt", "value": "4"}],
                  "system": "Be brief."}, [SYSTEM, ASKED, ANSWERED]),
    "roles of others": ({"conversation": [{"role": "Human", "content": "What is 2 + 2?"},
                                          {"role": "bot", "content": "4"}]}, [ASKED, ANSWERED]),
    "Alpaca": ({"instruction": "What is", "input": "2 + 2?", "output": "4"},
               [{**ASKED, "content": "What is\n\n2 + 2?"}, ANSWERED]),
    "Alpaca without input": ({"instruction": "What is 2 + 2?", "input": "", "output": "4\n"}, [ASKED, ANSWERED]),
    "Dolly": ({"instruction": "What is 2 + 2?", "context": "", "response": "4", "category": "open_qa"},
              [ASKED, ANSWERED]),
    "prompt and completion": ({"prompt": "\nWhat is 2 + 2?  ", "completion": "4"}, [ASKED, ANSWERED]),
    "question and answer": ({"question": "What is 2 + 2?", "answer": "4", "id": 7}, [ASKED, ANSWERED]),
    "passages": ({"question": "What?", "context": ["One.", "Two."], "answer": "4"},
                 [{**ASKED, "content": "What?\n\nOne.\n\nTwo."}, ANSWERED]),
    "parts": ({"messages": [{"role": "user", "content": [{"type": "text", "text": "What is 2 + 2?"}]}, ANSWERED]},
              [ASKED, ANSWERED]),
    "weights": ({"messages": [ASKED, {**ANSWERED, "weight": 0}, ASKED, {**ANSWERED, "weight": 1}]},
                [ASKED, {**ANSWERED, "weight": 0}, ASKED, ANSWERED]),
    "an indent": ({"prompt": "Write on", "completion": "    return 4\n"},
                  [{**ASKED, "content": "Write on"}, {**ANSWERED, "content": "    return 4"}]),
}  # fmt: skip


def messages_of(example: Conversation) -> list[dict[str, Any]]:
    return json.loads(example.talk)["messages"]


@pytest.mark.parametrize("name", LINES)
def test_every_format_becomes_messages(name: str, written: Written) -> None:
    row, messages = LINES[name]
    path = written("a.jsonl", json.dumps(row) + "\n")
    (example,) = open_conversations(str(path))
    assert messages_of(example) == messages and example.where == f"{path}:1"
    assert guess_task(str(path))[0] == "sft"


def test_calls_and_tools_of_sharegpt(written: Written) -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "Add."},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2}}'},
            {"from": "observation", "value": "4"},
            {"from": "gpt", "value": "It is 4."},
        ],
        "tools": '[{"name": "add", "parameters": {}}]',
    }
    (example,) = open_conversations(str(written("a.json", json.dumps([row]))))
    _, call, result, _ = messages_of(example)
    assert call["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 2}}
    assert result == {"role": "tool", "content": "4"}
    assert json.loads(example.talk)["tools"] == [{"name": "add", "parameters": {}}]


def test_every_kind_of_file(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"Say, {n}", "completion": f"{n}"} for n in range(3)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    table = "Prompt;Completion\n" + "".join(f'"{row["prompt"]}";{row["completion"]}\n' for row in rows)
    files = [
        written("a.jsonl", lines), written("b.json", json.dumps(rows)),
        written("c.json", json.dumps({row["prompt"]: row for row in rows}, indent=1)),
        written("d.csv", table), written("e.tsv", table.replace(";", "\t").replace('"', "")),
        written("f.jsonl.gz", gzip.compress(lines.encode())),
    ]  # fmt: skip
    if pytest.importorskip("pyarrow"):
        import pyarrow as arrow
        from pyarrow import parquet

        files.append(files[0].with_name("g.parquet"))
        parquet.write_table(arrow.Table.from_pylist(rows), files[-1])
    found = [[messages_of(one) for one in open_conversations(str(path))] for path in files]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    found.append([messages_of(one) for one in open_conversations("-")])
    assert all(one == found[0] for one in found) and len(found[0]) == 3
    assert found[0][1][0] == {"role": "user", "content": "Say, 1"}


def test_columns_are_found_said_and_named(written: Written) -> None:
    path = written("a.csv", "Frage,Antwort,id\nWas?,Das.,1\nWo?,Da.,2\n")
    with pytest.raises(Refused, match="no conversation in the columns Frage, Antwort, id"):
        open_conversations(str(path))
    with pytest.raises(Refused, match="no column is named 'Antwrt'.*did you mean 'Antwort'"):
        open_conversations(str(path), fields={"prompt": "Frage", "completion": "Antwrt"})
    fields = named_fields(["prompt=Frage", "completion=Antwort"])
    source = open_conversations(str(path), fields=fields)
    assert [messages_of(one)[1]["content"] for one in source] == ["Das.", "Da."]
    assert source.notes[0].startswith(
        "prompt and completion: prompt from Frage, completion from Antwort; not read: id"
    )
    task, why = guess_task(str(path), None, fields)
    assert task == "sft" and why.endswith('such as {"Frage": "Was?", "Antwort": "Das."}')
    for wrong, says in {"prompt": "name a field and its column|give a field and its column",
                        "promt=Frage": "no format has a field 'promt'; did you mean 'prompt'"}.items():  # fmt: skip
        with pytest.raises(Refused, match=says):
            named_fields([wrong])


OTHERS = {
    "preference": {"prompt": "What?", "chosen": "This.", "rejected": "That."},
    "embed": {"anchor": "a cat", "positive": "a kitten", "negative": "a car"},
}


@pytest.mark.parametrize("task", OTHERS)
def test_formats_of_other_tasks_are_told(task: str, written: Written) -> None:
    path = written("a.jsonl", json.dumps(OTHERS[task]) + "\n")
    assert guess_task(str(path))[0] == task
    found = format_of(RowFile(path, str(path)), {})
    assert found is not None and found.kind.task == task
    with pytest.raises(Refused, match="no conversation in the columns"):
        open_conversations(str(path))


def prepared(source: ConversationSource, **more: Any) -> PreparedExamples[Any]:
    template = ChatTemplate.builtin("turns")
    return Preparation(source, tokenizer="bytes", template=template, **more).once(None)


def test_what_opens_alike_is_held_out_together(written: Written) -> None:
    """Three answers to each question, asked in three spellings: no question stands on both sides."""
    rows = [
        {"prompt": f"{ask} {n}?", "completion": f"{ask} {n}"}
        for n in range(60)
        for ask in ("Who", "WHO ", "who")
    ]
    made = prepared(
        open_conversations(str(written("a.jsonl", "".join(json.dumps(r) + "\n" for r in rows)))),
        val_fraction=0.2,
    )
    sides = [{one.opening for one in part} for part in (made.train_examples, made.held_out_examples)]
    assert not sides[0] & sides[1] and 8 <= len(sides[1]) <= 16
    assert len(made.train) + len(made.held_out) == 180


def test_rows_are_what_the_template_writes_and_are_found_again(written: Written, tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {n}", "completion": "é" * (1 + n % 5)} for n in range(40)]
    source = open_conversations(str(written("a.jsonl", "".join(json.dumps(r) + "\n" for r in rows))))
    way = Preparation(source, tokenizer="bytes", template=ChatTemplate.builtin("turns"))
    made, again = way.once(tmp_path / "cache"), way.once(tmp_path / "cache")
    assert again.reused and not made.reused
    tokenizer = made.tokenizer
    for at, (example, n_bytes) in enumerate(
        zip(made.train_examples, made.train.n_bytes.tolist(), strict=True)
    ):
        ids = made.train.tokens[at]
        flags = made.train.learned[made.train.tokens.starts[at] : made.train.tokens.starts[at + 1]]
        asked, answered = messages_of(example)
        assert tokenizer.decode(ids.tolist()) == f"User: {asked['content']}\nAssistant: {answered['content']}"
        assert tokenizer.decode(ids[flags].tolist()) == f" {answered['content']}"
        assert ids[-1] == tokenizer.eos_id and flags[-1] and n_bytes == 1 + len(answered["content"].encode())
    report = made.report
    assert report.n_tokens == len(made.train.learned) + len(made.held_out.learned)
    assert (
        0 < report.n_learned == int(made.train.learned.sum() + made.held_out.learned.sum()) < report.n_tokens
    )


def test_what_is_too_long_stops_the_run_until_somebody_chooses(written: Written) -> None:
    rows = [{"prompt": f"Say {n}", "completion": "word " * (40 if n == 7 else 1 + n % 3)} for n in range(50)]
    rows.append({"prompt": "Why? " * 30, "completion": "So."})
    path = written("a.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    source = open_conversations(str(path))
    with pytest.raises(Refused) as caught:
        prepared(source, max_len=100)
    assert str(caught.value).startswith(f"{path}:8: ")
    assert "2 of 51 conversations (3.9%, at most 1% may) are longer" in str(caught.value)
    assert "--data.too-long cut or drop" in str(caught.value)
    dropped = prepared(source, max_len=100, too_long="drop")
    assert len(dropped.train) + len(dropped.held_out) == 49 and dropped.report.n_over_long == 2
    cut = prepared(source, max_len=100, too_long="cut").report
    assert cut.n_cut == 2 and 0.4 < cut.lost < 0.8  # the one whose prompt alone is too long teaches nothing
    assert any("1 whose prompt alone is longer" in note for note in cut.notes)


def test_an_answer_that_no_token_ends_stops_the_run(written: Written) -> None:
    path = written("a.jsonl", "".join(f'{{"prompt": "Say {n}", "completion": "{n}"}}\n' for n in range(9)))
    source = open_conversations(str(path))
    with pytest.raises(Refused, match="'plain' writes no token that ends an answer.*--data.chat-template"):
        Preparation(source, tokenizer="bytes", template=ChatTemplate.builtin("plain")).once(None)


def test_the_real_sets_are_read(shared_data: Path) -> None:
    counts = {"alpaca_en_demo.json": 999, "identity.json": 91, "glaive_toolcall_en_demo.json": 300}
    for name, n in counts.items():
        assert len(list(open_conversations(str(shared_data / "llamafactory_demo" / name)))) == n
    assert guess_task(str(shared_data / "llamafactory_demo" / "dpo_en_demo.json"))[0] == "preference"
    fields = {"completion": "LONG_ANSWER", "input": "CONTEXTS"}
    assert (
        len(list(open_conversations(str(shared_data / "pubmedqa" / "ori_pqal.json"), fields=fields))) == 1000
    )
    with pytest.raises(Refused, match="item 2336: 'output' is empty"):
        list(open_conversations(str(shared_data / "alpaca" / "alpaca_5000.json")))
    skipped = open_conversations(str(shared_data / "alpaca" / "alpaca_5000.json"), on_error="skip")
    assert 4950 < len(list(skipped)) < 5000


def test_too_few_held_out_for_a_verdict_are_told_with_what_helps(written: Written) -> None:
    rows = [json.dumps({"prompt": f"What is {i}?", "completion": f"It is {i}."}) for i in range(80)]
    source = open_conversations(str(written("eighty.jsonl", "\n".join(rows) + "\n")))
    told = next(note for note in prepared(source).report.notes if "too few" in note)
    share = float(told.partition("--data.val-fraction ")[2].partition(",")[0])
    assert not any("too few" in note for note in prepared(source, val_fraction=share).report.notes)
    source = open_conversations(str(written("few.jsonl", "\n".join(rows[:20]) + "\n")))
    assert any("60 and more conversations" in note for note in prepared(source).report.notes)
