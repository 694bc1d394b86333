"""`/look` on a real server: every view of an answer, what it refuses, and that it lets others go on."""

from __future__ import annotations

import base64
import json
import math
import threading
import time
from typing import Any

import httpx
import pytest

from tests.native.kernels import levels
from tests.server.conftest import Running, serving
from transom.insight.html import visible

HOSTILE = "<script>alert(1)</script>"
MESSAGES = [dict(role="user", content=f"Hello crow {HOSTILE}")]


@pytest.fixture(scope="module")
def chat(http: httpx.Client) -> dict[str, Any]:
    """What /look takes for an answer of the chat model."""
    body = dict(model="crow", messages=MESSAGES, max_tokens=16, logprobs=True, seed=3)
    entries = http.post("/v1/chat/completions", json=body).json()["choices"][0]["logprobs"]["content"]
    return dict(model="crow", messages=MESSAGES, answer=[entry["token_id"] for entry in entries],
                logprobs=[entry["logprob"] for entry in entries])  # fmt: skip


@pytest.fixture(scope="module")
def translated(http: httpx.Client) -> dict[str, Any]:
    body = dict(model="moses", text="abc def")
    found = http.post("/translate", json=body).json()["translations"][0]
    return dict(model="moses", source="abc def", answer=found["tokens"], logprob=found["logprob"])


def ask(http: httpx.Client, body: dict[str, Any], view: str, **more: Any) -> dict[str, Any]:
    answer = http.post("/look", json={**body, "view": view, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(http: httpx.Client, body: dict[str, Any], **more: Any) -> str:
    answer = http.post("/look", json={**body, **more})
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]["message"]


def test_a_replayed_answer_agrees_with_what_was_served(http: httpx.Client, chat: dict[str, Any]):
    found = ask(http, chat, "tokens")
    assert found["replay"]["agrees"] is True and found["replay"]["drift"] < 1e-3
    answer = [token for token in found["tokens"] if token.get("answer")]
    assert [token["logprob"] for token in answer] == pytest.approx(chat["logprobs"], abs=1e-3)
    assert found["tokens"][0]["logprob"] is None
    assert HOSTILE.strip("<>") in "".join(token["text"] for token in found["tokens"])
    assert found["tokens"][0]["text"] == "<|im_start|>"
    assert all(token["rank"] >= 1 and token["entropy"] >= 0 for token in answer)
    assert all(len(token["top"]) == 3 and token["top"][0]["p"] >= token["top"][1]["p"] for token in answer)


def test_a_replay_that_differs_says_so(http: httpx.Client, chat: dict[str, Any]):
    other = [max(-9999.0, value - 0.03) for value in chat["logprobs"]]
    replay = ask(http, {**chat, "logprobs": other}, "tokens")["replay"]
    assert replay["agrees"] is False and replay["drift"] == pytest.approx(0.03, abs=1e-3)
    assert "differs from what was served: 16 of 16 tokens" in replay["text"]
    assert "by a factor of up to 1.03 (limit 1.02)" in replay["text"]
    unsaid = ask(http, {k: v for k, v in chat.items() if k != "logprobs"}, "tokens")["replay"]
    assert unsaid["agrees"] is None and "not compared" in unsaid["text"]
    changed = ask(
        http, {**chat, "messages": [dict(role="user", content="Something else entirely")]}, "tokens"
    )
    assert changed["replay"]["agrees"] is False


def test_what_a_panel_shows_first_comes_of_one_pass_and_is_what_each_view_says(
    http: httpx.Client, chat: dict[str, Any], translated: dict[str, Any]
):
    for body in (chat, translated):
        found = ask(http, body, "opening")
        heads, rows = found.pop("heads"), found.pop("attention")
        tokens = ask(http, body, "tokens")
        assert {**tokens, "view": "opening", "seconds": found["seconds"]} == found
        apart = ask(http, body, "heads")
        assert {name: apart[name] for name in heads} == heads
        most = max(heads["heads"], key=lambda one: one["worth"])
        assert (rows["layer"], rows["head"]) == (most["layer"], most["head"])
        alone = ask(http, body, "attention", layer=rows["layer"], head=rows["head"])
        assert {name: alone[name] for name in rows} == rows


def test_of_a_long_answer_the_first_tokens_are_looked_at(
    http: httpx.Client, folders: Any, chat: dict[str, Any]
):
    bound = ask(http, chat, "tokens")["n_prompt"] + len(chat["answer"])
    longer = {**chat, "answer": [*chat["answer"], *[5] * 20], "logprobs": [*chat["logprobs"], *[-1.0] * 20]}
    with serving(folders, "crow", limits={"look_tokens": bound}) as running, running.client() as client:
        found = client.post("/look", json={**longer, "view": "opening"}).json()
        assert (found["n_tokens"], found["n_left_out"]) == (bound, 20)
        assert found["replay"]["agrees"] is True  # those that are left out are not compared


def test_the_heads_their_rows_and_the_check_of_both(http: httpx.Client, chat: dict[str, Any]):
    heads = ask(http, chat, "heads")
    assert [(one["layer"], one["head"]) for one in heads["heads"]] == [
        (at, h) for at in range(2) for h in range(4)
    ]
    pixels = base64.b64decode(heads["thumbnails"])
    assert len(pixels) == 8 * heads["size"] ** 2 and max(pixels) == 255
    n = ask(http, chat, "tokens")["n_tokens"]
    found = ask(http, chat, "attention", layer=1, head=2)
    assert found["error"] < 1e-5 and "kernel's own output" in found["check"]
    assert len(found["rows"]) == n and found["rows"][-1] is None  # nothing was asked after the last token
    for place, row in enumerate(found["rows"][:-1]):
        assert all(key <= place for key in row["keys"])  # nobody looks ahead
        assert sum(row["weights"]) <= 1.001 and row["weights"] == sorted(row["weights"], reverse=True)
    assert sum(found["rows"][5]["weights"]) == pytest.approx(1, abs=0.01)


def test_the_lens_ends_where_the_answer_is(http: httpx.Client, chat: dict[str, Any]):
    tokens = ask(http, chat, "tokens")
    place = tokens["n_prompt"] + 3
    found = ask(http, chat, "lens", token=place)
    (view,), (picture,) = found["views"], found["pictures"]
    rows = picture["chart"]["rows"][::-1]
    assert [name for name, _ in rows] == ["before any", "0", "1"]
    assert view["divergence"][-1] == [pytest.approx(0, abs=1e-9)] and view["divergence"][0][0] > 0
    likeliest = tokens["tokens"][place]["top"]
    assert [cell["text"] for cell in rows[-1][1][:3]] == [visible(one["text"]) for one in likeliest]
    last = [math.exp(value) for value in view["logprob"][-1][0]]
    assert last == pytest.approx([one["p"] for one in likeliest], abs=1e-5)


def test_what_a_token_hangs_on_is_graded(http: httpx.Client, chat: dict[str, Any]):
    place = ask(http, chat, "tokens")["n_prompt"] + 2
    found = ask(http, chat, "gradient", token=place)
    scores, flow = found["views"]
    assert len(scores["scores"]) == place and len(flow["total"]) == 3
    grade = scores["control"]
    assert "rank correlation with exact removal" in grade["text"] and "random" in grade["text"]
    assert grade["beats_random"] == ("does NOT agree" not in grade["text"])
    apart = [row["apart"] for row in found["pictures"][0]["chart"]["rows"]]
    assert grade["beats_random"] or all(apart)


def test_without_a_head_the_answer_is_less_or_more_likely(http: httpx.Client, chat: dict[str, Any]):
    tokens = ask(http, chat, "tokens")
    (found,) = ask(http, chat, "ablate", layer=0, head=1)["views"]
    assert found["first"] == tokens["n_prompt"]
    assert found["before"] == pytest.approx(chat["logprobs"], abs=1e-3)
    assert max(abs(a - b) for a, b in zip(found["before"], found["after"], strict=True)) > 1e-3
    again = ask(http, chat, "tokens")  # the served model is as it was
    assert [token.get("logprob") for token in again["tokens"]] == [t.get("logprob") for t in tokens["tokens"]]


def test_a_translation_in_8_bits_is_looked_at_by_the_weights_as_they_are(http: httpx.Client, folders: Any):
    if len(levels()) < 2:
        pytest.skip("no level here that would be chosen")
    with serving(folders, "moses", weights="int8", dtype="float32") as running, running.client() as client:
        found = client.post("/translate", json=dict(model="moses", text="abc def")).json()["translations"][0]
        body = dict(model="moses", source="abc def", answer=found["tokens"], logprob=found["logprob"])
        seen, plain = ask(client, body, "tokens"), ask(http, body, "tokens")
    for one, other in zip(seen["tokens"][1:], plain["tokens"][1:], strict=True):
        assert one["logprob"] == pytest.approx(other["logprob"], abs=1e-4)
    assert 1e-5 < seen["replay"]["drift"] < 1 and "what was served" in seen["replay"]["text"]


def test_a_translation_has_three_attentions(http: httpx.Client, translated: dict[str, Any]):
    tokens = ask(http, translated, "tokens")
    assert tokens["kinds"] == ["cross", "self", "encoder"] and tokens["replay"]["agrees"] is True
    assert "".join(token["text"] for token in tokens["tokens"][: tokens["n_source"]]).startswith("abc")
    n = tokens["n_source"]
    for kind, queries, keys in (("cross", range(n, 99), range(n)), ("encoder", range(n), range(n)),
                                ("self", range(n, 99), range(n, 99))):  # fmt: skip
        ask(http, translated, "heads", kind=kind)
        rows = ask(http, translated, "attention", layer=0, head=3, kind=kind)["rows"]
        told = [place for place, row in enumerate(rows) if row is not None]
        assert told and set(told) <= set(queries)
        assert {key for row in rows if row for key in row["keys"]} <= set(keys)
    ask(http, translated, "lens", token=n + 2)
    ask(http, translated, "gradient", token=n + 2)
    ask(http, translated, "ablate", layer=0, head=0)


def test_a_recurrence_is_looked_into_as_far_as_it_has_an_inside(http: httpx.Client):
    body = dict(model="lstm", prompt="The crow ", max_tokens=6, logprobs=1)
    entries = http.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]["content"]
    look = dict(model="lstm", prompt="The crow ", answer=[entry["token_id"] for entry in entries],
                logprobs=[entry["logprob"] for entry in entries])  # fmt: skip
    tokens = ask(http, look, "tokens")
    assert tokens["n_heads"] == 0 and tokens["kinds"] == [] and tokens["replay"]["agrees"] is True
    assert len(ask(http, look, "lens", token=4)["views"][0]["top"]) == 3
    ask(http, look, "gradient", token=4)
    for more in (
        dict(view="heads"),
        dict(view="attention", layer=0, head=0),
        dict(view="ablate", layer=0, head=0),
    ):
        assert "recurrence has no heads" in refused(http, look, **more)


def test_what_is_out_of_bounds_is_refused_with_the_bound(http: httpx.Client, chat: dict[str, Any]):
    rows = [
        (dict(view="attention", layer=2, head=0), "layer is 2; this model has 0 to 1"),
        (dict(view="ablate", layer=0, head=4), "head is 4; this model has 0 to 3"),
        (dict(view="attention", layer=0), "head: the view 'attention' needs this field"),
        (dict(view="lens", token=0), "those that were predicted are 1 to"),
        (dict(view="gradient", token=99999), "those that were predicted are 1 to"),
        (dict(view="experts"), "routes nothing to experts"),
        (dict(view="heads", kind="cross"), "this model has self"),
        (dict(view="tokens", answer=[]), "answer"),
        (dict(view="tokens", answer=[10**6], logprobs=None), "this model's tokens are 0 to"),
        (dict(view="tokens", logprobs=[0.0]), "logprobs has 1 numbers"),
        (dict(view="tokens", logprobs=[1.0] * 16), "less than or equal to 0"),
        (dict(view="tokens", prompt="both"), "one of the three"),
        (dict(view="tokens", messages=None, source="x"), "is a model to chat"),
        (dict(view="nothing"), "view"),
        (dict(view="tokens", layr=1), "did you mean 'layer'"),
        (dict(view="tokens", answer=[5] * 300, logprobs=None), "max_len"),
    ]  # fmt: skip
    for more, said in rows:
        assert said in refused(http, chat, **more), more


def test_a_look_is_bounded_in_tokens_and_needs_a_key_where_there_are_any(folders: Any):
    with serving(folders, "plain", keys=("a-key-for-this-test",), limits={"look_tokens": 12}) as running:
        body = dict(view="tokens", prompt="The crow and the fox. " * 3, answer=[40] * 10)
        with running.client() as client:
            assert client.post("/look", json=body).status_code == 401
            headers = {"authorization": "Bearer a-key-for-this-test"}
            answer = client.post("/look", json=body, headers=headers)
            assert answer.status_code == 400 and "the limit is 12" in answer.text
            assert (
                client.post(
                    "/look", json={**body, "prompt": "x", "answer": [40] * 13}, headers=headers
                ).status_code
                == 400
            )
            assert client.post("/look", json={**body, "prompt": "x"}, headers=headers).status_code == 200


def test_looks_wait_for_each_other_and_an_answer_is_written_meanwhile(
    server: Running, http: httpx.Client, chat: dict[str, Any]
):
    codes: list[int] = []

    def one() -> None:
        with server.client() as client:
            codes.append(client.post("/look", json={**chat, "view": "gradient", "token": 20}).status_code)

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    answer = http.post("/v1/completions", json=dict(model="crow", prompt="The", max_tokens=12, temperature=0))
    for thread in threads:
        thread.join()
    assert answer.status_code == 200 and codes == [200] * 6
    assert server.app.state.models["crow"].worker.beside.held.total() == 0


def test_more_looks_than_may_wait_are_told_to_come_again(folders: Any, chat: dict[str, Any]):
    with serving(folders, "crow", limits={"looks": 1}) as running:
        worker = running.app.state.models["crow"].worker
        held = threading.Event()
        first: list[int] = []

        def slow() -> None:
            with running.client() as client:
                first.append(client.post("/look", json={**chat, "view": "tokens"}).status_code)

        worker._post(lambda _: held.wait(20))  # the engine's thread is busy
        thread = threading.Thread(target=slow)
        thread.start()
        while not worker.beside.held:
            time.sleep(0.01)
        with running.client() as client:
            answer = client.post("/look", json={**chat, "view": "tokens"})
        held.set()
        thread.join()
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1 and first == [200]


def test_the_first_view_is_small_and_json_is_finite(http: httpx.Client, chat: dict[str, Any]):
    size = 0
    for more in (dict(view="tokens"), dict(view="heads"), dict(view="attention", layer=1, head=0)):
        answer = http.post("/look", json={**chat, **more})
        size += len(answer.content)
        json.loads(answer.text, parse_constant=lambda name: pytest.fail(name))
    assert size < 100_000
    impossible = {**chat, "logprobs": [-9999.0] * len(chat["answer"])}
    drift = ask(http, impossible, "tokens")["replay"]["drift"]
    assert math.isfinite(drift) and drift > 9000
