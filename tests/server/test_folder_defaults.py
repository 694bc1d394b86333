"""What a request leaves out is as the model's folder says: over the API, on the command line, in Python."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import transom
from tests.server.conftest import Running, serving
from transom.__main__ import run
from transom.checkpoint.generation import GENTLE

SAID = {"do_sample": True, "temperature": 0.4, "top_k": 1, "top_p": 0.9, "repetition_penalty": 1.1}


@pytest.fixture(scope="module")
def copies(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A decoder and a translator whose folders say how they write, and one thing that is not obeyed; and the
    decoder that says nothing.
    """
    more: dict[str, dict[str, Any]] = {
        "crow": {**SAID, "typical_p": 0.5, "suppress_tokens": [40]},
        "moses": {"num_beams": 2, "length_penalty": 0.5, "max_new_tokens": 9},
        "still": {},
    }
    found = {}
    for name, said in more.items():
        found[name] = tmp_path_factory.mktemp("said") / name / "model"
        shutil.copytree(folders["crow" if name == "still" else name], found[name])
        path = found[name] / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | said))
    return found


@pytest.fixture(scope="module")
def server(copies: dict[str, Path]) -> Iterator[Running]:
    with serving(copies, "crow", "moses", "still") as running:
        yield running


def text(server: Running, **body: Any) -> str:
    with server.client() as http:
        answer = http.post("/v1/completions", json={"model": "crow", "prompt": "The crow", **body}).json()
    return answer["choices"][0]["text"]


def test_the_api_the_command_line_and_python_write_the_same(server, copies, capsys):
    own = transom.load(copies["crow"]).generate("The crow", max_tokens=12).text
    assert {text(server, max_tokens=12) for _ in range(3)} == {own}
    assert run(["generate", str(copies["crow"]), "The crow", "--max-tokens", "12", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["completions"][0]["text"] == own  # the note is no part of it
    assert run(["generate", str(copies["crow"]), "The crow", "--max-tokens", "12"]) == 0
    assert capsys.readouterr().out == f"The crow{own}\n"


def test_what_a_request_gives_comes_first(server, folders):
    free = {
        "temperature": 1.5,
        "top_k": 10**6,
        "top_p": 1,
        "repetition_penalty": 1,
        "seed": 5,
        "max_tokens": 12,
    }
    plain = transom.load(folders["crow"]).generate("The crow", logit_bias={40: -100}, **free).text
    assert text(server, **free) == plain


def test_a_client_can_see_what_holds(server):
    with server.client() as http:
        crow, moses, still = http.get("/v1/models").json()["data"]
        answer = http.post(
            "/v1/responses", json={"model": "crow", "input": "x", "max_output_tokens": 2}
        ).json()
        given = {"model": "crow", "input": "x", "max_output_tokens": 2, "top_p": 0.3}
        asked = http.post("/v1/responses", json=given).json()
    assert crow["sampling"] == {name: SAID.get(name, 0.0) for name in crow["sampling"]}
    assert still["sampling"].items() >= GENTLE.items() and moses["beam"] == 2
    assert (answer["temperature"], answer["top_p"], asked["top_p"]) == (0.4, 0.9, 0.3)


def test_where_nobody_says_a_chat_is_gentle_and_a_text_is_not(server, folders, monkeypatch, capsys):
    """The same answer over the API and in the terminal; what a call says takes the place of all of it."""
    same = {"model": "still", "seed": 4, "max_tokens": 9}
    free = {"temperature": 1, "top_p": 1}
    with server.client() as http:
        asked = {**same, "messages": [{"role": "user", "content": "The crow"}]}
        usual, gentle, warm, freely = (
            http.post("/v1/chat/completions", json=asked | more).json()["choices"][0]["message"]["content"]
            for more in ({}, GENTLE, {"temperature": 1}, free)
        )
        texts = {
            http.post("/v1/completions", json={**same, "prompt": "The crow", **more}).json()["choices"][0][
                "text"
            ]
            for more in ({}, free)
        }
    assert usual == gentle != warm == freely and len(texts) == 1
    monkeypatch.setattr("sys.stdin", io.StringIO("The crow\n"))
    words = ("--no-memory", "--seed", "4", "--max-tokens", "9")
    assert run(["chat", str(folders["crow"]), *words]) == 0
    assert capsys.readouterr().out.rstrip("\n") == usual.rstrip("\n")


def test_translations_are_searched_for_as_the_folder_says(server, copies, folders):
    with server.client() as http:
        found = http.post("/translate", json={"model": "moses", "text": "abc def"}).json()["translations"][0]
    assert found["tokens"] == transom.load(copies["moses"]).translate("abc def").tokens
    plain = transom.load(folders["moses"])
    assert found["tokens"] == plain.translate("abc def", beam=2, length_penalty=0.5, max_tokens=9).tokens


def test_what_is_not_obeyed_is_said_when_it_is_loaded(copies, caplog):
    with caplog.at_level("WARNING"):
        transom.load(copies["crow"])
    assert [told.rpartition("/")[2] for told in caplog.messages] == [
        "generation_config.json: not obeyed here: typical_p 0.5"
    ]
