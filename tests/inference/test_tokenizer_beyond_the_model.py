"""A tokenizer that knows more tokens than its model: refused when it is loaded, whatever the job."""

from __future__ import annotations

import json
import logging
import shutil
from functools import partial
from pathlib import Path

import pytest

import transom
from tests.server import models
from transom.errors import Refused

JOBS = {
    "decoder": models.decoder,
    "translator": models.translator,
    "classifier": partial(models.encoder, head="classify"),
    "embedder": partial(models.encoder, head="embed"),
}


@pytest.fixture(scope="module", params=JOBS)
def folder(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return JOBS[request.param](tmp_path_factory.mktemp("job") / "model")


def with_token(folder: Path, at: Path, content: str, special: bool) -> Path:
    """The folder with one token after all others."""
    shutil.copytree(folder, at)
    (at / "manifest.json").unlink(missing_ok=True)
    path = at / "tokenizer.json"
    spec = json.loads(path.read_text())
    n = json.loads((at / "config.json").read_text())["vocab_size"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    spec["added_tokens"].append({"id": n, "content": content, "special": special, **flags})
    path.write_text(json.dumps(spec))
    return at


def test_a_word_that_the_model_does_not_have_is_refused(folder, tmp_path):
    with pytest.raises(Refused, match=r"'zebra' is token \d+ of the tokenizer, but the model has \d+"):
        transom.load(with_token(folder, tmp_path / "model", "zebra", False))


def test_a_control_token_that_it_does_not_have_is_said(folder, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        transom.load(with_token(folder, tmp_path / "model", "<|extra|>", True))
    assert "the model has no row for '<|extra|>'" in caplog.text
