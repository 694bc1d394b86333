"""The Ask desk in Chromium: a question, its sources at their places, and what the documents do not say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server import models
from tests.server.conftest import Running, run
from tests.server.test_page import CHROMIUM, Visit, browser
from transom.retrieval.indexing import index
from transom.server.app import make_app
from transom.server.keys import Keys
from transom.server.models import serve_folders
from transom.server_settings import ServerSettings
from transom.settings import load as load_settings

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
__all__ = ["browser"]  # a fixture
BEFORE = "Dogs <b>and</b> cats are welcome. " * 150
OPEN, HR = "sk-nobody-in-particular", "sk-of-human-resources"
LEAVE = "# Leave\r\n\r\nEmployees get 25 days of leave. They are booked in the portal — naïve, 世界.\r\n"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    place = tmp_path_factory.mktemp("ask")
    (place / "docs").mkdir()
    (place / "docs" / "leave.md").write_bytes(f"{BEFORE}\r\n\r\n{LEAVE}".encode())
    index([place / "docs"], place / "handbook", embedder="none")
    settings = load_settings(ServerSettings, {"port": 0, "index": [str(place / "handbook")]})
    served = serve_folders([str(models.decoder(place / "crow" / "model"))], settings)
    with run(make_app(served, settings, Keys(())), settings) as server:
        yield server


def test_a_question_is_answered_and_its_source_opens_at_its_place(browser: Any, running: Running):  # noqa: F811
    visit = Visit(browser, running.url, viewport={"width": 1280, "height": 800})
    page = visit.open()
    page.get_by_role("tab", name="Ask").click()
    page.get_by_label("Question").fill("How many days of leave do employees get?")
    page.keyboard.press("Enter")
    page.locator(".said").first.wait_for()
    assert "Employees get 25 days of leave." in page.locator(".result .out").first.inner_text()
    page.get_by_role("button", name=re.compile("Source 1: .*leave.md")).click()
    mark = page.locator(".document mark")
    mark.wait_for()
    assert mark.inner_text() == "Employees get 25 days of leave."
    assert "Dogs <b>and</b> cats" in page.locator(".document").inner_text()  # text stays text
    box, frame = mark.bounding_box(), page.locator(".document").bounding_box()
    assert box and frame and frame["y"] <= box["y"] <= frame["y"] + frame["height"]  # in sight
    assert page.evaluate("document.activeElement.localName") == "mark"

    page.get_by_role("button", name="What is each source worth?").click()
    page.locator(".sources", has_text="without it").wait_for()
    assert "Employees get 25 days of leave." in page.locator(".result .out").first.inner_text()
    assert not page.get_by_role("button", name="What is each source worth?").count()

    page.get_by_label("Question").fill("Who won the football cup in 1974?")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="The documents do not say").wait_for()
    visit.check()
    visit.context.close()


def test_a_place_in_a_document_is_told_with_what_stands_around_it(running: Running):
    with running.client() as client:
        assert [one["id"] for one in client.get("/knowledge").json()["data"]] == ["handbook"]
        answer = client.post("/ask", json={"question": "How many days of leave do employees get?"}).json()
        (citation,) = answer["sentences"][0]["citations"]
        place = {"document": citation["document"], "start": citation["start"], "end": citation["end"]}
        found = client.post("/passage", json=place | {"around": 12}).json()
        assert found["text"] == citation["quote"] and len(found["before"]) == len(found["after"]) == 12
        beyond = len(BEFORE) + 10**6
        wrongs = [({"document": "no"}, 404), ({"end": beyond}, 400), ({"start": beyond}, 400)]
        for wrong, status in wrongs:
            refused: httpx.Response = client.post("/passage", json=place | wrong)
            assert refused.status_code == status and refused.json()["error"]["message"]


def test_what_a_key_may_not_see_is_not_opened(tmp_path: Path):
    (tmp_path / "pay").mkdir()
    (tmp_path / "pay" / "pay.txt").write_text("The director earns 9000 a month.")
    index([tmp_path / "pay"], tmp_path / "kb", embedder="none", labels=["hr"])
    settings = load_settings(ServerSettings, {"port": 0, "index": [str(tmp_path / "kb")]})
    served = serve_folders([str(models.decoder(tmp_path / "crow" / "model"))], settings)
    keys = Keys((OPEN, HR), {HR: ("hr",)})
    with run(make_app(served, settings, keys), settings) as server, server.client() as client:
        may, may_not = ({"authorization": f"Bearer {key}"} for key in (HR, OPEN))
        asked = {"question": "What does the director earn?"}
        (found, *_) = client.post("/ask", json=asked, headers=may).json()["looked_at"]
        place = {"document": found["document"], "start": 0, "end": 3}
        seen = [client.post("/passage", json=place, headers=who) for who in (may, may_not)]
    assert [one.status_code for one in seen] == [200, 404] and seen[0].json()["text"] == "The"
