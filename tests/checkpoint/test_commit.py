"""The commit protocol: whole or absent, at every crash point, and nothing acknowledged is ever lost."""

from __future__ import annotations

import json
import os
from collections import namedtuple
from pathlib import Path

import pytest

from transom.checkpoint import folder as protocol
from transom.checkpoint.folder import (
    NotSaved,
    commit,
    latest,
    recover,
    replace_file,
    retain,
    sweep,
    verify,
)
from transom.errors import Refused

SAVER = Path(__file__).with_name("saver.py")
Usage = namedtuple("Usage", "total used free")


def save(path: Path, text: str = "one") -> Path:
    with commit(path) as folder:
        (folder / "weights").write_text(text * 100)
        (folder / "state").mkdir()
        (folder / "state" / "position.json").write_text(text)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("way", ["swap", "move"])
def test_a_crash_at_any_point_leaves_a_whole_folder(way, tmp_path, python):
    """At every open, write, fsync, rename, mkdir and unlink; what was not synced by then is cut to half."""
    done = python(SAVER, "points", tmp_path / "run", way)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["points"] > 100


def test_200_kills_at_random_moments_lose_nothing(tmp_path, python):
    done = python(SAVER, "kills", tmp_path / "checkpoints", "200")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["saved"] > 50, "the kills came before anything was saved"
    assert (outcome["lost"], outcome["unusable"]) == (0, 0)


def test_the_disk_hears_files_then_manifest_then_rename_then_parent(tmp_path, monkeypatch):
    log: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(handle):
        path = os.readlink(f"/proc/self/fd/{handle}")
        log.append(f"sync {os.path.relpath(path, tmp_path)}")
        real_fsync(handle)

    def rename(source, target):
        log.append(f"rename {os.path.relpath(source, tmp_path)} {os.path.relpath(target, tmp_path)}")
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(protocol.secrets, "token_hex", lambda n: "0123abcd")
    save(tmp_path / "model")
    new = ".tmp-0123abcd-model"
    assert log == [
        f"sync {new}/state/position.json",
        f"sync {new}/weights",
        f"sync {new}/manifest.json",
        f"sync {new}/state",
        f"sync {new}",
        f"rename {new} model",
        "sync .",
    ]


@pytest.mark.parametrize("swap", [True, False])
def test_a_committed_folder_is_replaced(swap, tmp_path, monkeypatch):
    if not swap:
        monkeypatch.setattr(protocol, "exchange", lambda first, second: False)
    save(tmp_path / "model", "one")
    save(tmp_path / "model", "two")
    verify(tmp_path / "model")
    assert (tmp_path / "model" / "state" / "position.json").read_text() == "two"
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("swap", [True, False])
def test_a_disk_that_fails_at_the_last_sync_leaves_the_old_folder(swap, tmp_path, monkeypatch):
    if not swap:
        monkeypatch.setattr(protocol, "exchange", lambda first, second: False)
    save(tmp_path / "model", "one")
    real = protocol.sync

    def failing(path):
        if path == tmp_path:
            raise OSError(5, "Input/output error")
        real(path)

    monkeypatch.setattr(protocol, "sync", failing)
    with pytest.raises(NotSaved, match="input/output error"):
        save(tmp_path / "model", "two")
    with pytest.raises(NotSaved, match="input/output error"):
        save(tmp_path / "other", "two")
    verify(tmp_path / "model")
    assert (tmp_path / "model" / "state" / "position.json").read_text() == "one"
    assert names(tmp_path) == ["model"]


def test_an_error_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="mine"):  # noqa: SIM117
        with commit(tmp_path / "model") as folder:
            (folder / "weights").write_text("half")
            raise RuntimeError("mine")
    assert names(tmp_path) == []


def test_folders_of_others_are_not_replaced(tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "diary.txt").write_text("dear diary")
    with pytest.raises(Refused, match="files that Transom did not save"):
        save(notes)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(Refused, match="not a folder"):
        save(file)
    model = save(tmp_path / "model")
    (model / "mine.gguf").write_text("exported")
    with pytest.raises(Refused, match=r"mine\.gguf: would be lost"):
        save(model)
    assert (notes / "diary.txt").read_text() == "dear diary"


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "model").mkdir()
    verify(save(tmp_path / "model"))


def test_links_are_not_committed(tmp_path):
    with pytest.raises(Refused, match="link"):  # noqa: SIM117
        with commit(tmp_path / "model") as folder:
            (folder / "passwords").symlink_to("/etc/passwd")
    assert names(tmp_path) == []


def test_too_little_space_is_said_before_anything_is_written(tmp_path, monkeypatch):
    save(tmp_path / "step-1", "x" * 10_000)
    monkeypatch.setattr(protocol.shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 1_100_000))
    with pytest.raises(
        NotSaved, match=r"step-2 was not saved: the last save took 1\.0 MB and 1\.1 MB are free"
    ):
        save(tmp_path / "step-2")
    assert names(tmp_path) == ["step-1"]


def test_latest_is_computed_and_says_what_it_passed_over(tmp_path):
    assert latest(tmp_path / "nowhere") == (None, [])
    for step in (9, 99, 1000, 10000):
        save(tmp_path / f"step-{step}")
    (tmp_path / "step-20000").mkdir()
    (tmp_path / "step-10000" / "weights").write_text("no")
    newest, refused = latest(tmp_path)
    assert newest == tmp_path / "step-1000"
    assert [path.name for path, _ in refused] == ["step-20000", "step-10000"]
    assert "it has no manifest.json" in refused[0][1]
    assert "weights: 2 bytes long, but 300 were saved" in refused[1][1]


def test_retain_counts_committed_folders_only(tmp_path):
    for step in range(1, 6):
        save(tmp_path / f"step-{step}")
    (tmp_path / "step-5" / "manifest.json").unlink()
    (tmp_path / "step-6").mkdir()
    assert names(tmp_path) == [f"step-{i}" for i in range(1, 7)]
    removed = retain(tmp_path, 2)
    assert [path.name for path in removed] == ["step-2", "step-1"]
    assert names(tmp_path) == ["step-3", "step-4", "step-5", "step-6"]
    with pytest.raises(Refused, match="keep is 0"):
        retain(tmp_path, 0)


def test_sweep_clears_what_is_dead_and_leaves_what_lives(tmp_path):
    (tmp_path / ".tmp-00000000-step-1").mkdir()
    (tmp_path / ".gc-00000000-step-1").mkdir()
    (tmp_path / ".gc-mine").mkdir()
    (tmp_path / ".git").mkdir()
    with commit(tmp_path / "step-2") as living:
        (living / "weights").write_text("one")
        assert len(sweep(tmp_path)) == 2
        assert names(tmp_path) == [".gc-mine", ".git", living.name]
    verify(tmp_path / "step-2")


def test_a_folder_moved_aside_comes_back_when_it_is_whole(tmp_path):
    save(tmp_path / "model")
    (tmp_path / "model").rename(tmp_path / ".old-00000000-model")
    save(tmp_path / "half")
    (tmp_path / "half" / "weights").unlink()
    (tmp_path / "half").rename(tmp_path / ".old-00000000-half")
    recover(tmp_path / "model")
    verify(tmp_path / "model")
    assert names(tmp_path) == ["model"]


def test_one_file_of_a_committed_folder_is_written_anew_and_all_others_stay(tmp_path):
    before = (save(tmp_path / "model") / "weights").stat().st_ino
    replace_file(tmp_path / "model", "README.md", "a card")
    replace_file(tmp_path / "model", "README.md", "another")
    verify(tmp_path / "model")
    assert (tmp_path / "model" / "README.md").read_text() == "another"
    assert (tmp_path / "model" / "weights").stat().st_ino == before  # the same file, not a copy
    assert names(tmp_path) == ["model"] and (tmp_path / "model" / "state" / "position.json").exists()
    (tmp_path / "model" / "weights").unlink()
    with pytest.raises(Refused):
        replace_file(tmp_path / "model", "README.md", "a third")
