"""A committed folder that was damaged is refused, and the message names the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from transom.checkpoint.folder import commit, verify
from transom.checkpoint.huggingface import load_model, save_model
from transom.errors import Refused

FILES = ["README.md", "config.json", "generation_config.json", "manifest.json", "model.safetensors"]


@pytest.fixture
def saved(tmp_path: Path, model) -> Path:
    with commit(tmp_path / "saved") as folder:
        save_model(folder, model)
    return tmp_path / "saved"


def flip(path: Path, byte: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_one_bit(name, saved):
    path = saved / name
    whole = path.read_bytes()
    size = len(whole)
    for byte, bit in [(0, 0), (size // 3, 4), (size // 2, 7), (size - 2, 5), (size - 1, 1)]:
        flip(path, byte, bit)
        with pytest.raises(Refused, match=name.replace(".", r"\.")):
            verify(saved)
        path.write_bytes(whole)
    verify(saved)


def test_every_bit_of_the_manifest(saved):
    path = saved / "manifest.json"
    whole = path.read_bytes()
    for byte in range(0, len(whole), 7):
        flip(path, byte, byte % 8)
        with pytest.raises(Refused, match=r"manifest\.json"):
            verify(saved)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data + b"\0",
        lambda data: bytes(min(len(data), 4096)) + data[4096:],
    ],
    ids=["last byte gone", "half gone", "empty", "one byte more", "a page of zeros"],
)
@pytest.mark.parametrize("name", FILES)
def test_cut_lengthened_or_zeroed(name, damage, saved):
    path = saved / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(Refused, match=name.replace(".", r"\.")):
        verify(saved)


@pytest.mark.parametrize("name", FILES)
def test_a_file_gone(name, saved):
    (saved / name).unlink()
    with pytest.raises(Refused, match=name.replace(".", r"\.")):
        verify(saved)


def test_a_file_more(saved):
    (saved / ".DS_Store").write_text("hidden files are nobody's business")
    verify(saved)
    (saved / "model-00002-of-00002.safetensors").write_text("")
    with pytest.raises(Refused, match=r"model-00002-of-00002\.safetensors: not among the files"):
        verify(saved)


def test_a_link_in_place_of_a_file(saved, tmp_path):
    (saved / "config.json").rename(tmp_path / "config.json")
    (saved / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(Refused, match=r"config\.json: not a plain file"):
        verify(saved)


@pytest.mark.parametrize(
    "manifest",
    [
        {},
        {"transom_manifest": 2, "digest": "", "files": {}},
        {"transom_manifest": 1, "digest": "", "files": {}},
        {"transom_manifest": 1, "digest": "", "files": []},
    ],
)
def test_a_manifest_of_another_kind(manifest, saved):
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Refused, match=r"manifest\.json"):
        verify(saved)


def test_loading_a_model_notices_damage_but_not_an_edited_card(saved):
    (saved / "README.md").write_text("my own words")
    (saved / "model.gguf").write_text("made by another tool")
    load_model(saved)
    flip(saved / "model.safetensors", -1, 3)
    with pytest.raises(Refused, match=r"model\.safetensors: damaged; its SHA-256.*if you edited the folder"):
        load_model(saved)


def test_a_manifest_of_somebody_else_is_no_manifest(llama):
    (llama / "manifest.json").write_text('{"name": "a web app", "icons": []}')
    load_model(llama)
