"""Files that are broken in the ways of files of conversations, and the one line that is said of each.

Every line names the file, the line in it and the key; where it shows how the line would be right, a file with
that in its place is read.
"""

# ruff: noqa: E501 - a line of the table is the whole line that a person sees

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from transom.data.conversations import open_conversations
from transom.errors import Refused

OK = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}\n'
QA = '{"prompt": "Hi", "completion": "Hello."}\n'
SG = '{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}\n'
AL = '{"instruction": "Hi", "input": "", "output": "Ho"}\n'
CSV = "prompt,completion\nHi,Hello.\n"
"""Lines that are right, before the broken ones."""
BROKEN: dict[str, tuple[str | bytes, str]] = {
    "comma.jsonl": (
        QA + '{"prompt": "Hi", "completion": "Hello.",}\n',
        ':2: not a JSON object on one line (Expecting property name enclosed in double quotes at column 41); write {"prompt": "Hi", "completion": "Hello."} (or --data.on-error skip)',
    ),
    "after.jsonl": (
        QA + '{"prompt": "Hi", "completion": "Hello."},\n',
        ':2: not a JSON object on one line (Extra data at column 41); write {"prompt": "Hi", "completion": "Hello."} (or --data.on-error skip)',
    ),
    "python.jsonl": (
        QA + "{'prompt': 'Hi', 'completion': 'Hello.'}\n",
        ':2: not a JSON object on one line (Expecting property name enclosed in double quotes at column 2); write {"prompt": "Hi", "completion": "Hello."} (or --data.on-error skip)',
    ),
    "open.jsonl": (
        QA + '{"prompt": "Hi", "completion": "Hello."\n',
        ':2: not a JSON object on one line (Expecting \',\' delimiter at column 40); write {"prompt": "Hi", "completion": "Hello."} (or --data.on-error skip)',
    ),
    "openquote.jsonl": (
        QA + '{"prompt": "Hi", "completion": "Hello.\n',
        ':2: not a JSON object on one line (Unterminated string starting at at column 32); write {"prompt": "Hi", "completion": "Hello."} (or --data.on-error skip)',
    ),
    "twice.jsonl": (
        QA + '{"prompt": "Hi", "completion": "a"} {"prompt": "Ho", "completion": "b"}\n',
        ':2: not a JSON object on one line (Extra data at column 37); write {"prompt": "Hi", "completion": "a"} (or --data.on-error skip)',
    ),
    "list.jsonl": (
        QA + '["Hi", "Hello."]\n',
        ':2: the record is a list, not an object; write {"prompt": "What is 2 + 2?", "completion": "4"} (or --data.on-error skip)',
    ),
    "tab.jsonl": (
        QA + '{"prompt": "a\tb", "completion": "c"}\n',
        ':2: not a JSON object on one line (Invalid control character at at column 14); write {"prompt": "a\\tb", "completion": "c"} (or --data.on-error skip)',
    ),
    "latin.jsonl": (
        QA.encode() + b'{"prompt": "Gr\xfc\xdfe", "completion": "c"}\n',
        ":2: byte 55 (0xfc) is not UTF-8; convert the file (iconv -f windows-1252 -t utf-8) (or --data.on-error skip or replace)",
    ),
    "utf16.jsonl": (
        QA.encode("utf-16"),
        ":1: byte 0: this is UTF-16, not UTF-8; convert it with `iconv -f utf-16 -t utf-8` (or --data.on-error skip)",
    ),
    "nul.jsonl": (
        QA + '{"prompt": "a\\u0000b", "completion": "c"}\n',
        ":2: field 'prompt' holds NUL, which text does not hold; remove it (or --data.on-error skip or replace)",
    ),
    "half.jsonl": (
        QA + '{"prompt": "\\ud83d", "completion": "c"}\n',
        ":2: field 'prompt' holds half of a surrogate pair, which text does not hold; remove it (or --data.on-error skip or replace)",
    ),
    "empty.jsonl": ("\n\n", ": there is no row in it; name a file that holds some"),
    "array.json": (
        '[{"prompt": "Hi", "completion": "Hello."},\n{"prompt": "Hi", "completion": "Hello."}\n',
        ":3: the JSON array breaks off here; write ], or write one object a line (.jsonl)",
    ),
    "arrays.json": (
        '[{"prompt": "Hi", "completion": "Hello."}]\n[{"prompt": "Hi", "completion": "Hello."}]\n',
        ":2: the JSON array ends before the file does; make one array of all, or write one object a line (.jsonl)",
    ),
    "role.jsonl": (
        OK
        + '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistent", "content": "Hello."}]}\n',
        ':2: messages[1].role is \'assistent\'; did you mean \'assistant\'?; write {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]} (or --data.on-error skip)',
    ),
    "norole.jsonl": (
        OK + '{"messages": [{"role": "user", "content": "Hi"}, {"content": "Hello."}]}\n',
        ':2: messages[1] has no \'role\'; write {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]} (or --data.on-error skip)',
    ),
    "nocontent.jsonl": (
        OK + '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant"}]}\n',
        ':2: messages[1] has no \'content\'; write {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "..."}]} (or --data.on-error skip)',
    ),
    "null.jsonl": (
        OK + '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": null}]}\n',
        ':2: messages[1].content is null, not text; write {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "..."}]} (or --data.on-error skip)',
    ),
    "number.jsonl": (
        OK + '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": 42}]}\n',
        ':2: messages[1].content is a number, not text; write {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "42"}]} (or --data.on-error skip)',
    ),
    "blank.jsonl": (
        OK + '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " "}]}\n',
        ':2: messages[1].content is empty; write {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "..."}]} (or --data.on-error skip)',
    ),
    "noanswer.jsonl": (
        OK + '{"messages": [{"role": "user", "content": "Hi"}]}\n',
        ':2: \'messages\' has no message of the assistant to learn; write {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "4"}]} (or --data.on-error skip)',
    ),
    "first.jsonl": (
        OK + '{"messages": [{"role": "assistant", "content": "Hi"}]}\n',
        ':2: messages[0] is of the assistant; a conversation begins with a user\'s message; write {"messages": [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "Hi"}]} (or --data.on-error skip)',
    ),
    "string.jsonl": (
        OK + '{"messages": "Hi"}\n',
        ':2: \'messages\' is text that is no JSON list; write {"messages": [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]} (or --data.on-error skip)',
    ),
    "none.jsonl": (
        OK + '{"messages": []}\n',
        ':2: \'messages\' is empty; write {"messages": [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]} (or --data.on-error skip)',
    ),
    "lost.jsonl": (
        OK + '{"message": [{"role": "user", "content": "Hi"}]}\n',
        ':2: \'messages\' is missing; did you mean \'message\'?; write {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "4"}]} (or --data.on-error skip)',
    ),
    "plain.jsonl": (
        OK + '{"messages": ["Hi", "Hello."]}\n',
        ':2: messages[0] is text, not an object; write {"messages": [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]} (or --data.on-error skip)',
    ),
    "weight.jsonl": (
        OK
        + '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello.", "weight": 0.5}]}\n',
        ':2: messages[1].weight is 0.5; it is 0 or 1; write {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello.", "weight": 1}]} (or --data.on-error skip)',
    ),
    "call.jsonl": (
        SG
        + '{"conversations": [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": "add(2)"}]}\n',
        ':2: conversations[1].value is no call such as {"name": "add", "arguments": {}}; write {"conversations": [{"from": "human", "value": "What is 2 + 2?"}, {"from": "gpt", "value": "4"}]} (or --data.on-error skip)',
    ),
    "from.jsonl": (
        SG + '{"conversations": [{"from": "humn", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}\n',
        ':2: conversations[0].from is \'humn\'; did you mean \'human\'?; write {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]} (or --data.on-error skip)',
    ),
    "output.jsonl": (
        AL + '{"instruction": "Hi", "input": "", "output": ""}\n',
        ':2: \'output\' is empty; write {"instruction": "Hi", "output": "4", "input": ""} (or --data.on-error skip)',
    ),
    "list_output.jsonl": (
        '{"instruction": "Hi", "output": "Ho"}\n{"instruction": "Hi", "output": ["Ho"]}\n',
        ':2: \'output\' is a list, not text; write {"instruction": "Hi", "output": "..."} (or --data.on-error skip)',
    ),
    "missing.jsonl": (
        QA + '{"prompt": "Hi", "response": "Hello."}\n',
        ':2: \'completion\' is missing; write {"prompt": "Hi", "completion": "4"} (or --data.on-error skip)',
    ),
    "image.jsonl": (
        OK
        + '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": [{"type": "image_url", "image_url": "a.png"}]}]}\n',
        ':2: messages[1].content[0] is of type \'image_url\'; parts of type \'text\' are read; write {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "..."}]} (or --data.on-error skip)',
    ),
    "picture.jsonl": (
        OK
        + '{"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": "a.png"}]}, {"role": "assistant", "content": "Ho"}]}\n',
        ':2: messages[0].content[1] is of type \'image_url\'; parts of type \'text\' are read; write {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, {"role": "assistant", "content": "Ho"}]} (or --data.on-error skip)',
    ),
    "breaks_off.jsonl": (
        OK + '{"messages": [\n',
        ':2: not a JSON object on one line (Expecting value at column 15); write {"messages": [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]} (or --data.on-error skip)',
    ),
    "half_said.jsonl": (
        OK + '{"messages": [{"role": "user", "content": "Hi"}\n',
        ':2: not a JSON object on one line (Expecting \',\' delimiter at column 48); write {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "4"}]} (or --data.on-error skip)',
    ),
    "half_role.jsonl": (
        OK + '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assis\n',
        ':2: not a JSON object on one line (Unterminated string starting at at column 59); write {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "..."}]} (or --data.on-error skip)',
    ),
    "roles.jsonl": (
        OK + '{"messages": [{"role": 1, "content": "Hi"}, {"role": 2, "content": "Ho"}]}\n',
        ':2: messages[0].role is 1; it is one of system, developer, user, assistant, tool; write {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]} (or --data.on-error skip)',
    ),
    "no_parts.jsonl": (
        OK + '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": []}]}\n',
        ':2: messages[1].content holds no text; write {"messages": [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]} (or --data.on-error skip)',
    ),
    "mixed.jsonl": (
        OK + QA,
        ':2: \'messages\' is missing, for the row holds prompt and completion; write {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]} (or --data.on-error skip)',
    ),
    "mixed_too.jsonl": (
        QA + OK,
        ':2: \'prompt\' is missing, for the row holds messages; write {"prompt": "Hi", "completion": "Hello."} (or --data.on-error skip)',
    ),
    "misspelt.jsonl": (
        QA + '{"prompt": "Hi", "completoin": "Ho"}\n',
        ':2: \'completion\' is missing; did you mean \'completoin\'?; write {"prompt": "Hi", "completion": "Ho"} (or --data.on-error skip)',
    ),
    "lacks_both.jsonl": (
        QA + '{"x": "Hi"}\n',
        ':2: \'prompt\' is missing; write {"prompt": "What is 2 + 2?", "completion": "4"} (or --data.on-error skip)',
    ),
    "long.jsonl": (
        OK
        + '{"messages": ['
        + (
            '{"role": "user", "content": "'
            + "word " * 100
            + '"}, {"role": "system", "content": "Be kind."}, '
        )
        * 3
        + '{"role": "assistant", "content": 5}]}\n',
        ':2: messages[6].content is a number, not text; write {"messages": [{"role": "user", "content": "word word word word word word word word word word word word…"}, {"role": "system", "content": "Be kind."}, {"role": "assistant", "content": "5"}]} (or --data.on-error skip)',
    ),
    "pretty.jsonl": (
        '{\n "prompt": "Hi",\n "completion": "Hello."\n}\n',
        ":1: not a JSON object on one line (Expecting property name enclosed in double quotes at column 2); if objects go over several lines, write each on one: jq -c . FILE > lines.jsonl (or --data.on-error skip)",
    ),
    "returns.jsonl": (
        (QA + QA).replace("\n", "\r").encode(),
        ":1: not a JSON object on one line (Extra data at column 42); its lines end in CR alone; write LF instead (tr '\\r' '\\n') (or --data.on-error skip)",
    ),
    "wide.jsonl": (
        QA.encode("utf-16-le"),
        ":1: byte 0: this is UTF-16LE, not UTF-8; convert it with `iconv -f utf-16le -t utf-8` (or --data.on-error skip)",
    ),
    "inside.jsonl": (
        '{"data": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}}\n',
        """:1: the fields stand inside of 'data'; write them as the row itself: jq -c '.["data"]' FILE > rows.jsonl""",
    ),
    "wrapped.json": (
        '{\n "version": 1,\n "train": [\n' + QA + "]}\n",
        """: one object, whose 'train' holds the rows; write each on a line: jq -c '.["train"][]' FILE > rows.jsonl""",
    ),
    "wanted.jsonl": (
        '{"prompt": "Hi", "completion": "Go away.", "label": false}\n',
        ":1: 'label' says which answers are wanted (KTO), which nothing here learns, and the others would be learned too; keep the rows where it is true, without this column: jq -c 'select(.label) | del(.label)' FILE > wanted.jsonl, or give pairs of chosen and rejected",
    ),
    "semicolons.csv": (
        "prompt;completion\nHi;Hello, you.\nHi;\n",
        ":3: 'completion' is empty; write Hi;4 (or --data.on-error skip)",
    ),
    "wide.csv": (
        CSV + "Hi,Hello, you.\n",
        ':3: the row has 3 columns where the first has 2; write Hi,"Hello, you." (or --data.on-error skip)',
    ),
    "quote.csv": (
        CSV + 'Hi,"Hello.\n',
        ":3: not valid CSV (unexpected end of data); is a quote left open? write Hi,Hello.",
    ),
    "cell.csv": (CSV + "Hi,\n", ":3: 'completion' is empty; write Hi,4 (or --data.on-error skip)"),
    "jsoncell.csv": (
        'messages\n"[{""role"": ""user"", ""content"": ""Hi""}, {""role"": ""assistant"", ""content"": ""Ho""}]"\nHi\n',
        ':3: \'messages\' is text that is no JSON list; write "[{""role"": ""user"", ""content"": ""What is 2 + 2?""}, {""role"": ""assistant"", ""content"": ""4""}]" (or --data.on-error skip)',
    ),
    "twins.csv": ("prompt,prompt,completion\nHi,Ho,Hello.\n", ":1: 2 columns are named 'prompt'; rename one"),
    "unknown.jsonl": (
        '{"q": "Hi", "a": "Hello."}\n',
        ':1: no conversation in the columns q, a: it takes messages; conversations; instruction and output; prompt and completion; name them by --map prompt=COLUMN --map completion=COLUMN, or write lines such as {"messages": [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]}',
    ),
    "reasoning.jsonl": (
        OK
        + '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello.", "reasoning_content": 3}]}\n',
        ':2: messages[1].reasoning_content is 3; it must be a string; write {"messages": [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]} (or --data.on-error skip)',
    ),
    "tools.jsonl": (
        OK
        + '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": [{"name": "add"}]}]}\n',
        ':2: messages[1].tool_calls[0].function must be an object with name and arguments; write {"messages": [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]} (or --data.on-error skip)',
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_line_says_what_is_wrong_where_and_how_it_would_be_right(
    name: str, written: Callable[[str, bytes | str], Path]
) -> None:
    content, says = BROKEN[name]
    path = written(name, content)
    with pytest.raises(Refused) as caught:
        list(open_conversations(str(path)))
    assert str(caught.value) == f"{path}{says.replace('FILE', str(path))}"

    # The line that it shows, in the place of the last one, makes the file one that can be read.
    shown = re.search(r"write (?:lines such as )?([\[{\"H].*?)(?: \(or --data\.on-error.*)?$", says)
    if shown is not None and isinstance(content, str):
        *before, _ = content.rstrip("\n").split("\n")
        before = before if path.suffix == ".csv" or "lines such as" not in says else []
        mended = written(f"mended-{name}", "\n".join([*before, shown[1]]) + "\n")
        assert len(list(open_conversations(str(mended)))) == len(before) + 1 - (path.suffix == ".csv")


def test_there_are_thirty_of_them() -> None:
    assert len(BROKEN) >= 30
    with_a_line = [says for _, says in BROKEN.values() if "write " in says]
    assert len(with_a_line) >= 28


def test_an_array_is_read_whatever_its_file_is_called(written: Callable[[str, bytes | str], Path]) -> None:
    for name, content in {
        "lines.jsonl": f"[\n{QA.strip()},\n{QA.strip()}\n]\n", "line.jsonl": f"[{QA.strip()}, {QA.strip()}]",
    }.items():  # fmt: skip
        assert len(list(open_conversations(str(written(name, content))))) == 2
