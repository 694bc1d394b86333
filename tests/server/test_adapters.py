"""`--adapter`: adapters beside their base in the list, each answering as it does alone, in one engine."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import transom
from tests.server.conftest import Running, serving
from transom.checkpoint.adapter import save_adapter
from transom.checkpoint.huggingface import load_config, load_model
from transom.errors import Refused
from transom.model.lora import Lora, adapted_layers, add_lora, linear_layers, only_adapters_learn
from transom.server.models import adapters_of

ASKED = {"prompt": "The crow", "max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def places(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, base = tmp_path_factory.mktemp("adapters"), folders["crow"]
    for seed, name in enumerate(("loud", "quiet")):
        model = load_model(base)
        add_lora(model, dict.fromkeys(linear_layers(model), Lora(4)), seed)
        only_adapters_learn(model)
        with torch.no_grad():
            for layer in adapted_layers(model).values():
                layer.lora_B.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
        (root / name).mkdir()
        learned = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        save_adapter(
            root / name, model, base=str(base), family=load_config(base)[1], weights=learned, card=""
        )
    return {"crow": base, "loud": root / "loud", "quiet": root / "quiet"}


@pytest.fixture(scope="module")
def server(folders: dict[str, Path], places: dict[str, Path]) -> Iterator[Running]:
    given = [f"{name}={places[name]}" for name in ("loud", "quiet")]
    with serving(folders, "crow", adapter=given) as running:
        yield running


def test_adapters_are_in_the_model_list_with_their_base(server: Running) -> None:
    with server.client() as http:
        listed = http.get("/v1/models").json()["data"]
        one = http.get("/v1/models/crow:loud").json()
    assert {model["id"]: model["parent"] for model in listed} == {
        "crow": None, "crow:loud": "crow", "crow:quiet": "crow"
    }  # fmt: skip
    assert one["task"] == "chat"


def test_each_answers_as_alone_though_all_are_asked_at_once(server: Running, places: dict[str, Path]) -> None:
    wanted = {
        name: transom.load(places[name]).generate("The crow", max_tokens=12, temperature=0).text  # type: ignore[union-attr]
        for name in places
    }
    assert len(set(wanted.values())) == 3

    def ask(name: str) -> tuple[str, str]:
        model = name if name == "crow" else f"crow:{name}"
        with server.client() as http:
            said = http.post("/v1/completions", json={"model": model, **ASKED}).json()
        assert said["model"] == model
        return name, said["choices"][0]["text"]

    with ThreadPoolExecutor(6) as pool:
        for name, text in pool.map(ask, [*places, *places, *places]):
            assert text == wanted[name]
    with server.client() as http:  # nobody named: the base
        assert http.post("/v1/completions", json=ASKED).json()["model"] == "crow"
        chat = {"model": "crow:quiet", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
        assert http.post("/v1/chat/completions", json=chat).json()["model"] == "crow:quiet"
        unknown = http.post("/v1/completions", json={"model": "crow:lout", **ASKED})
    assert unknown.status_code == 404 and "did you mean 'crow:loud'" in unknown.text
    assert len(server.app.state.workers) == 1


def test_a_look_into_an_adapter_is_of_the_adapter(server: Running, places: dict[str, Path]) -> None:
    alone = transom.load(places["loud"], transom.Generator)
    made = alone.generate("The crow", max_tokens=12, temperature=0, logprobs=1)
    assert made.logprobs is not None
    look = {"prompt": "The crow", "answer": made.tokens, "view": "tokens",
            "logprobs": [token.logprob for token in made.logprobs]}  # fmt: skip
    with server.client() as http:
        agrees = {
            name: http.post("/look", json={"model": name, **look}).json()["replay"]["agrees"]
            for name in ("crow", "crow:loud", "crow:quiet")
        }
    assert agrees == {"crow": False, "crow:loud": True, "crow:quiet": False}


@pytest.mark.parametrize(
    ("models", "given", "said"),
    [
        (["a"], ["x"], "give NAME=FOLDER"),
        (["a"], ["x y=f"], "give NAME=FOLDER"),
        (["a", "b"], ["x=f"], "over which of a, b"),
        (["crow"], ["crew:x=f"], "did you mean 'crow'"),
        (["a"], ["x=f", "a:x=g"], "of that name already"),
    ],
)
def test_an_adapter_that_is_not_clear_is_refused(models: list[str], given: list[str], said: str) -> None:
    with pytest.raises(Refused, match=said):
        adapters_of(models, given)


def test_adapters_of_several_models_are_told_apart() -> None:
    assert adapters_of(["a", "b"], ["a:x=f", "b:x=g"]) == {"a": {"x": "f"}, "b": {"x": "g"}}
    assert adapters_of(["o:a"], ["x=f=g"]) == {"o:a": {"x": "f=g"}}
