"""`transom chat` on the command line: a talk that is piped in, and what is refused in one line."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from transom.__main__ import run


def talk(monkeypatch: pytest.MonkeyPatch, said: str, *arguments: object) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(said))
    return run(["chat", *map(str, arguments), "--max-tokens", "6", "--temperature", "0"])


def test_a_talk_is_the_models_own_text(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
):  # fmt: skip
    from transom.data.chat_template import ChatTemplate
    from transom.inference.load import load

    memory = tmp_path / "memory.sqlite"
    assert talk(monkeypatch, "The crow\n/quit\n", folders["crow"], "--memory", memory) == 0
    generator, template = load(folders["crow"]), ChatTemplate.from_folder(folders["crow"])
    assert template is not None
    prompt = template.render([{"role": "user", "content": "The crow"}], generator.tokenizer).tokens
    own = generator.generate(prompt, max_tokens=6, temperature=0).text
    assert capsys.readouterr().out.strip() == own.strip() and memory.is_file()


def test_a_run_is_as_good_as_its_model(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    given = ("--chat-template", "plain", "--no-memory")
    assert talk(monkeypatch, "/quit\n", folders["plain"].parent, *given) == 0


def test_a_talk_as_json(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):  # fmt: skip
    given = (folders["crow"], "--no-memory", "--system", "Be brief.", "--json")
    assert talk(monkeypatch, "The crow\n", *given) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["system"] == "Be brief." and [one["role"] for one in found["messages"]] == [
        "user",
        "assistant",
    ]


@pytest.mark.parametrize(
    ("model", "more", "said"),
    [("plain", [], "use transom generate, or add --chat-template"), ("sorter", [], "use transom classify"),
     ("vector", [], "use transom embed"), ("plain", ["--chat-template", "palin"], "did you mean 'plain'"),
     ("moses", ["--chat-template", "plain"], "use transom translate")],
)  # fmt: skip
def test_what_cannot_talk_is_one_line(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: str,
    more: list[str], said: str,
):  # fmt: skip
    assert talk(monkeypatch, "", folders[model], "--no-memory", *more) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
