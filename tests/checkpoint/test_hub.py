"""From a name to a folder: what is on this machine first, the hub for `owner/name`, else one line."""

from __future__ import annotations

import shutil

import huggingface_hub
import pytest

from transom.checkpoint.folder import commit
from transom.checkpoint.hub import name_of, resolve
from transom.checkpoint.huggingface import load_model, save_model
from transom.errors import Refused


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that answers with an empty folder, and remembers what it was asked."""
    asked = []

    def snapshot_download(name, *, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_a_folder_is_taken_as_it_is(tmp_path, hub, monkeypatch):
    assert resolve(tmp_path) == tmp_path
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert str(resolve("owner/name")) == "owner/name"
    assert hub == []


def test_an_id_goes_to_the_hub(tmp_path, hub):
    assert resolve("Qwen/Qwen3-0.6B") == tmp_path
    assert resolve("Qwen/Qwen3-0.6B@abc123") == tmp_path
    assert resolve("Qwen/Qwen3-0.6B", "v1/x") == tmp_path
    assert [ask[:2] for ask in hub] == [
        ("Qwen/Qwen3-0.6B", None),
        ("Qwen/Qwen3-0.6B", "abc123"),
        ("Qwen/Qwen3-0.6B", "v1/x"),
    ]
    patterns = hub[0][2]
    assert "*.safetensors" in patterns
    assert not any(pattern.endswith((".py", ".bin", ".pt", "*")) for pattern in patterns)


@pytest.mark.parametrize(
    "name",
    [
        "gpt2",
        "a/b/c",
        "../a",
        "a/..",
        "/a/b",
        "~/nowhere",
        "a/b@",
        "a b/c",
        "http://x/y",
        "a/b@../c",
        ".a/b",
        "",
        "x\0y",
    ],
)
def test_what_is_neither_never_reaches_the_hub(name, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "":
        assert str(resolve(name)) == "."  # the folder one is in
        return
    with pytest.raises(Refused, match="no such folder") as refusal:
        resolve(name)
    assert "\n" not in str(refusal.value)
    assert hub == []


def test_the_nearest_folder_is_named(tmp_path, hub, monkeypatch):
    (tmp_path / "runs" / "stdlib").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match=r"runs/stdlb: no such folder; did you mean 'runs/stdlib'\?$"):
        resolve("runs/stdlb")
    with pytest.raises(Refused, match=r"runs/lib2: no such folder \(a model on the hub"):  # nothing alike
        resolve("runs/lib2")
    with pytest.raises(Refused, match=r"rums: no such folder; did you mean 'runs'\?"):
        resolve("rums")
    assert hub == []


def test_a_folder_of_runs_names_them(tmp_path):
    for name in ("notes", "mails"):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model" / "config.json").write_text("{}")
    (tmp_path / "begun").mkdir()
    mails, notes = tmp_path / "mails", tmp_path / "notes"
    with pytest.raises(Refused, match=f"a folder of runs; name one of them: {mails}, {notes}$"):
        resolve(tmp_path)


def test_the_folder_of_a_run_stands_for_its_model(tmp_path):
    model, begun = tmp_path / "runs" / "notes" / "model", tmp_path / "runs" / "begun"
    model.mkdir(parents=True)
    begun.mkdir()
    (begun / "metrics.jsonl").touch()
    assert resolve(tmp_path / "runs" / "notes") == resolve(model) == model
    with pytest.raises(Refused, match="begun: this run has saved no model yet"):
        resolve(begun)


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "model.bin").write_text("")
    with pytest.raises(Refused, match=r"model\.bin: a file; a model is a folder"):
        resolve(tmp_path / "model.bin")


def test_a_gguf_file_is_a_model_by_its_name(tmp_path):
    path = tmp_path / "smol.Q4_1.gguf"
    path.write_text("")
    assert resolve(path) == path and name_of(path) == "smol.Q4_1"


def test_no_network_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        Refused, match=r"owner/name@v1: no such folder, and not fetched from the Hugging"
    ) as refusal:
        resolve("owner/name@v1")
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


def test_a_snapshot_in_the_cache_of_the_hub(tmp_path, model):
    """There a snapshot holds links into `blobs` beside it; our manifest is verified without the README."""
    with commit(tmp_path / "saved") as folder:
        save_model(folder, model)
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0f", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, path in enumerate(sorted((tmp_path / "saved").glob("*.*"))):
        if path.suffix in (".json", ".safetensors"):
            shutil.copy(path, blobs / str(i))
            (snapshot / path.name).symlink_to(f"../../blobs/{i}")
    load_model(snapshot)


def test_a_folder_whose_replacement_was_interrupted(tmp_path, model):
    with commit(tmp_path / "saved") as folder:
        save_model(folder, model)
    (tmp_path / "saved").rename(tmp_path / ".old-00000000-saved")
    load_model(resolve(tmp_path / "saved"))
