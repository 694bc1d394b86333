"""Answers from documents over HTTP: citations as annotations, labels by key, the newest generation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from tests.server import models
from tests.server.conftest import Running, run
from transom.errors import Refused
from transom.inference.load import load
from transom.retrieval.ask import ask as answer_from
from transom.retrieval.indexing import index
from transom.retrieval.search import KnowledgeBase
from transom.retrieval.writer import Writer
from transom.server.app import make_app
from transom.server.keys import Keys, read_keys
from transom.server.knowledge import open_knowledge
from transom.server.models import serve_folders
from transom.server_settings import ServerSettings
from transom.settings import load as load_settings

LEAVE = "# Leave\n\nEmployees get 25 days of leave. They are booked in the portal.\n"
PAY = "The director of the works council earns 9000 a month.\n"
TRUE, FALSE = "Employees get 25 days of leave.", "The moon is made of cheese."
QUESTION = "How many days of leave do employees get?"
OPEN, HR = "sk-nobody-in-particular", "sk-of-human-resources"


@pytest.fixture(scope="module")
def kb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of a file that everybody may see, and one with a label."""
    place = tmp_path_factory.mktemp("knowledge")
    for folder, name, text in (("docs", "leave.md", LEAVE), ("pay", "pay.txt", PAY)):
        (place / folder).mkdir()
        (place / folder / name).write_text(text)
    index([place / "docs"], place / "kb", embedder="none")
    index([place / "pay"], place / "kb", labels=["hr"])
    return place / "kb"


@pytest.fixture(scope="module")
def running(kb: Path) -> Iterator[Running]:
    """A server with a chat model and the knowledge base, and a key that may see everything."""
    settings = load_settings(ServerSettings, {"port": 0, "index": [str(kb)]})
    keys = Keys((OPEN, HR), {HR: ("hr",)})
    crow = models.decoder(kb.parent / "crow" / "model")
    parrot = models.chain(kb.parent / "parrot" / "model", [f"{TRUE} [1] ", FALSE])
    served = serve_folders([str(crow), str(parrot)], settings)
    with run(make_app(served, settings, keys), settings) as server:
        yield server


def ask(running: Running, key: str = OPEN, **more: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{running.url}/ask", json={"question": QUESTION, **more}, headers=headers, timeout=60)


def client(running: Running, key: str = OPEN) -> OpenAI:
    return OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0)


def chat(running: Running, question: str = QUESTION, key: str = OPEN, **more: Any) -> Any:
    said = [{"role": "user", "content": question}]
    extra = {"knowledge_base": "kb", **more.pop("extra", {})}
    with client(running, key) as api:
        answer: Any = api.chat.completions.create(model="crow", messages=said, extra_body=extra, **more)  # type: ignore[arg-type]
        return list(answer) if more.get("stream") else answer  # read before the client is closed


def test_an_answer_with_its_place(running: Running) -> None:
    told = ask(running).json()
    assert (
        told["answer"] == "Employees get 25 days of leave."
        and not told["abstained"]
        and told["model"] is None
    )
    (citation,) = told["sentences"][0]["citations"]
    assert LEAVE[citation["start"] : citation["end"]] == citation["quote"] == told["answer"]
    assert [one["stage"].partition(" ")[0] for one in ask(running, explain=True).json()["stages"]] == [
        "found",
        "sentences",
    ]


def test_what_is_not_there_is_not_said(running: Running) -> None:
    told = ask(running, question="Who painted the ceiling of the chapel?").json()
    assert told["abstained"] and told["answer"] == "The documents do not say." and told["reason"]


def test_the_official_client_gets_annotations(running: Running) -> None:
    answer = chat(running)
    message = answer.choices[0].message
    (note,) = message.annotations
    assert note.type == "url_citation" and note.url_citation.title == "docs/leave.md"
    cited = message.content[note.url_citation.start_index : note.url_citation.end_index]
    assert cited == note.citation["quote"] == "Employees get 25 days of leave."
    assert note.url_citation.url == f"docs/leave.md#char={note.citation['start']},{note.citation['end']}"
    assert answer.choices[0].finish_reason == "stop" and message.grounding["confidence"] > 0.5
    chunks = chat(running, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == message.content
    assert chunks[0].choices[0].delta.annotations[0]["citation"] == note.citation


def test_a_model_answers_in_its_own_words_and_is_checked(running: Running) -> None:
    """A model that always writes these two sentences, of which the passage carries the first."""

    def said(**more: Any) -> Any:
        return ask(running, generate=True, model="parrot", **more).json()

    told = said()
    assert told["model"] == "parrot" and told["usage"]["completion_tokens"] > 0
    assert [(one["text"], one["supported"]) for one in told["sentences"]] == [(TRUE, True), (FALSE, False)]
    (citation,) = told["sentences"][0]["citations"]
    assert LEAVE[citation["start"] : citation["end"]] == citation["quote"] and citation["support"] > 0.9
    assert said(unsupported="drop")["answer"] == TRUE
    assert "no passage carries" in said(unsupported="fail")["error"]["message"]
    assert said(question="Who painted the ceiling of the chapel?")["usage"]["completion_tokens"] == 0


def test_a_model_tells_what_each_source_was_worth(running: Running, kb: Path) -> None:
    """The same number as beside the server, for quotes and for the model's own words."""
    writer = Writer(load(kb.parent / "parrot" / "model"))
    base = KnowledgeBase.open(kb)
    for generate in (False, True):
        told = ask(running, loo=True, model="parrot", generate=generate).json()
        found = [cited["loo"] for one in told["sentences"] for cited in one["citations"]]
        beside = answer_from(base, QUESTION, writer=writer, generate=generate, labels=())
        expected = [cited.loo for one in beside.sentences for cited in one.citations]
        assert found == pytest.approx(expected, abs=1e-3) and found
    plain = ask(running, model="parrot").json()["sentences"][0]["citations"][0]
    assert plain["loo"] is None
    refused = ask(running, loo=True)
    assert refused.status_code == 400 and "name one in `model`" in refused.json()["error"]["message"]


def test_a_key_sees_what_its_labels_allow(running: Running) -> None:
    question = "What does the director of the works council earn a month?"
    hidden = ask(running, question=question).json()
    assert hidden["abstained"] and not any("pay" in one["document"] for one in hidden["looked_at"])
    assert ask(running, HR, question=question).json()["answer"] == PAY.strip()
    assert "9000" in chat(running, question, HR).choices[0].message.content
    assert "9000" not in chat(running, question).choices[0].message.content


def test_mistakes_of_a_client_are_named(running: Running) -> None:
    assert "there is no knowledge base 'kp'" in ask(running, knowledge_base="kp").json()["error"]["message"]
    assert (
        ask(running, question="why " * 5000).json()["error"]["message"].startswith("the question has 20,000")
    )
    assert "generate needs a chat model" in ask(running, generate=True).json()["error"]["message"]
    with pytest.raises(NotFoundError, match="did you mean 'kb'"):
        chat(running, extra={"knowledge_base": "kbb"})
    with pytest.raises(BadRequestError, match="n does not go with knowledge_base"):
        chat(running, n=2)


def test_what_is_indexed_meanwhile_is_there(running: Running, kb: Path) -> None:
    question = "Where does the ferry to Norderney leave?"
    assert ask(running, question=question).json()["abstained"]
    (kb.parent / "docs" / "ferry.txt").write_text("The ferry to Norderney leaves from Norddeich.")
    index([kb.parent / "docs"], kb)
    assert ask(running, question=question).json()["answer"] == "The ferry to Norderney leaves from Norddeich."


def test_keys_with_labels_are_read(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# keys\n{OPEN}\n{HR} hr,board\n")
    settings = load_settings(ServerSettings, {"api_key_file": str(file)})
    keys, _ = read_keys(settings, {})
    tenants = [keys.tenant(key.encode()) for key in (OPEN, HR)]
    assert [keys.labels.get(tenant or "", ()) for tenant in tenants] == [(), ("hr", "board")]
    file.write_text(f"{HR} hr board\n")
    with pytest.raises(Refused, match="KEY label,label"):
        read_keys(settings, {})


def test_a_server_of_documents_alone(kb: Path) -> None:
    settings = load_settings(ServerSettings, {"port": 0, "index": [f"house={kb}"]})
    with run(make_app({}, settings), settings) as server:
        told = httpx.post(
            f"{server.url}/ask", json={"question": QUESTION, "knowledge_base": "house"}, timeout=60
        )
        assert told.json()["answer"] == "Employees get 25 days of leave."
    with pytest.raises(Refused, match="a name of its own"):
        open_knowledge(load_settings(ServerSettings, {"index": [str(kb), str(kb)]}))
