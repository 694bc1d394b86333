"""What a model wrote is what a client gets: spaces, bytes, offsets, stops; models write scripts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from tests.data.test_chat_template import sentencepiece_like
from tests.inference.scripted import scripted
from tests.server import models
from tests.server.conftest import serving
from transom.data.tokenizer import Tokenizer, train_tokenizer
from transom.inference.load import load

PROMPT = "Once upon a"
PIECES = ("▁return", "▁trai", "<0xF0>", "<0x9F>", "<0xA6>", "<0x8A>", "▁return", "n")
WRITES = " return trai🦊 returnn"
SENTENCEPIECE = sentencepiece_like(legacy=False)
BYTES = train_tokenizer("bytes", iter(["a"]), 258)
CHAT = models.chat_tokenizer()
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, number = tmp_path_factory.mktemp("runs"), SENTENCEPIECE.backend.get_vocab()
    chat = Tokenizer(
        SENTENCEPIECE.json_text, {**SENTENCEPIECE.config, "chat_template": "{{ messages[0].content }}"}
    )
    n_control = len(CHAT.encode("a"))
    control = [*CHAT.encode("x "), number_of(CHAT, "<|im_start|>"), *CHAT.encode("y")]
    script = [number[piece] for piece in PIECES]
    return {
        "spaces": scripted(
            root / "spaces" / "model", SENTENCEPIECE, len(SENTENCEPIECE.encode(PROMPT)), script
        ),
        "message": scripted(root / "message" / "model", chat, len(chat.encode("hi")), script),
        "emoji": scripted(root / "emoji" / "model", BYTES, 1, BYTES.encode("é😀b STOP it")),
        "control": scripted(root / "control" / "model", CHAT, n_control, control),
    }


def number_of(tokenizer: Tokenizer, name: str) -> int:
    return tokenizer.backend.get_vocab()[name]


@pytest.fixture(scope="module")
def http(folders: dict[str, Path]) -> Iterator[httpx.Client]:
    with serving(folders, *folders) as running, running.client() as client:
        yield client


def complete(http: httpx.Client, model: str, **more: Any) -> dict[str, Any]:
    body = {"model": model, "temperature": 0, "max_tokens": 40, "logprobs": 5, **more}
    body = {name: value for name, value in body.items() if value is not None}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def streamed(http: httpx.Client, model: str, **more: Any) -> list[dict[str, Any]]:
    body = {"model": model, "temperature": 0, "max_tokens": 40, "logprobs": 5, "stream": True, **more}
    with http.stream("POST", "/v1/completions", json=body) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    return [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]


def joined(logprobs: dict[str, Any]) -> bytes:
    return b"".join(bytes(entry["bytes"]) for entry in logprobs["content"])


def test_text_after_a_prompt_is_the_text_of_all_tokens(folders: dict[str, Path], http: httpx.Client) -> None:
    whole = SENTENCEPIECE.decode(SENTENCEPIECE.encode(PROMPT) + [number_of(SENTENCEPIECE, p) for p in PIECES])
    assert whole == PROMPT + WRITES
    ours = load(folders["spaces"])
    for prompt in (PROMPT, SENTENCEPIECE.encode(PROMPT)):
        assert ours.generate(prompt, temperature=0).text == WRITES
        assert "".join(ours.stream(prompt, temperature=0)) == WRITES
        assert complete(http, "spaces", prompt=prompt)["text"] == WRITES
        assert complete(http, "spaces", prompt=prompt, echo=True, logprobs=None)["text"] == whole
        assert "".join(part["text"] for part in streamed(http, "spaces", prompt=prompt)) == WRITES


def test_a_message_is_a_text_of_its_own(http: httpx.Client) -> None:
    body = {"model": "message", "temperature": 0, "messages": MESSAGES, "logprobs": True}
    choice = http.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert choice["message"]["content"] == WRITES.removeprefix(" ")
    assert joined(choice["logprobs"]).decode() == choice["message"]["content"]


def test_the_bytes_of_tokens_are_those_of_the_text(http: httpx.Client) -> None:
    choice = complete(http, "spaces", prompt=PROMPT)
    assert joined(choice["logprobs"]) == choice["text"].encode() == WRITES.encode()
    assert [bytes(one["bytes"]) for one in choice["logprobs"]["content"][:3]] == [
        b" return",
        b" trai",
        b"\xf0",
    ]
    assert all(len(best) == 5 for best in choice["logprobs"]["top_logprobs"])
    parts = streamed(http, "spaces", prompt=PROMPT)
    assert b"".join(joined(part["logprobs"]) for part in parts) == WRITES.encode()
    for at in range(1, len(PIECES)):  # on from what the answer begins with
        begins = [number_of(SENTENCEPIECE, piece) for piece in PIECES[:at]]
        rest = complete(http, "spaces", prompt=PROMPT, prefix_tokens=begins)
        told = SENTENCEPIECE.decoder(SENTENCEPIECE.encode(PROMPT)).text(begins)
        assert told + rest["text"] == WRITES
        offsets = choice["logprobs"]["text_offset"][at:]
        assert [len(told) + offset for offset in rest["logprobs"]["text_offset"]] == offsets


def test_offsets_count_characters(http: httpx.Client) -> None:
    right = [0, 0, 1, 1, 1, 1, *range(2, 11)]
    choice = complete(http, "emoji", prompt="a")
    assert choice["text"] == "é😀b STOP it" and choice["logprobs"]["text_offset"] == right
    parts = streamed(http, "emoji", prompt="a")
    assert [offset for part in parts for offset in part["logprobs"]["text_offset"]] == right
    control = complete(http, "control", prompt="a")
    starts = control["logprobs"]["text_offset"]
    assert control["text"] == "x y" and starts[-2:] == [2, 2], "a control token has no width"
    at = next(i for i, name in enumerate(control["logprobs"]["tokens"]) if name == "<|im_start|>")
    assert control["logprobs"]["content"][at]["bytes"] == []


@pytest.mark.parametrize("stop", ["STOP", "é", "😀b", "b S", "OP it"])
def test_logprobs_end_where_a_stop_string_cuts(http: httpx.Client, stop: str) -> None:
    choice = complete(http, "emoji", prompt="a", stop=[stop])
    assert choice["finish_reason"] == "stop" and choice["text"] == "é😀b STOP it".partition(stop)[0]
    assert joined(choice["logprobs"]) == choice["text"].encode()
    parts = streamed(http, "emoji", prompt="a", stop=[stop])
    assert "".join(part["text"] for part in parts) == choice["text"]
    assert b"".join(joined(part["logprobs"]) for part in parts) == choice["text"].encode()


def test_a_token_that_a_stop_string_cuts_writes_what_is_left_of_it(http: httpx.Client) -> None:
    for stop in ("turn", "ai", "n t", "rai"):
        choice = complete(http, "spaces", prompt=PROMPT, stop=[stop])
        assert choice["text"] == WRITES.partition(stop)[0]
        assert joined(choice["logprobs"]) == choice["text"].encode()
        parts = streamed(http, "spaces", prompt=PROMPT, stop=[stop])
        assert b"".join(joined(part["logprobs"]) for part in parts) == choice["text"].encode()


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_a_stop_that_names_a_control_token_ends(
    folders: dict[str, Path], http: httpx.Client, ignore_eos: bool
) -> None:
    settings = {"stop": ["<|im_start|>\n"], "ignore_eos": ignore_eos}
    choice = complete(http, "control", prompt="a", **settings)
    assert (choice["text"], choice["finish_reason"]) == ("x ", "stop")
    assert "<|im_start|>" not in choice["logprobs"]["tokens"]
    done = load(folders["control"]).generate("a", temperature=0, **settings)
    assert (done.text, done.finish_reason, done.stop_string) == ("x ", "stop", "<|im_start|>\n")
    assert len(done.tokens) == len(CHAT.encode("x ")) + 1


def test_markers_that_are_added_and_not_special_are_written(tmp_path: Path) -> None:
    backend = Backend.from_str(CHAT.json_text)
    backend.add_tokens(
        [AddedToken(name, special=False, normalized=False) for name in ("<think>", "</think>")]
    )
    tokenizer = Tokenizer(backend.to_str(), CHAT.config)
    script = tokenizer.encode("<think>hm</think>yes")
    assert script[0] == number_of(tokenizer, "<think>")
    model = load(scripted(tmp_path, tokenizer, len(tokenizer.encode("a")), script))
    assert model.generate("a", temperature=0).text == "<think>hm</think>yes"
    cut = model.generate("a", temperature=0, stop="</think>")
    assert (cut.text, cut.stop_string) == ("<think>hm", "</think>")
