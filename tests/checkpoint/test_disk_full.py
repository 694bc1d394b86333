"""A full disk costs the save, never what was saved before: one line that says so, and no rubbish left."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

SAVER = Path(__file__).with_name("saver.py")


def namespaces_allowed() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0


def test_a_file_larger_than_the_system_allows(tmp_path, python):
    done = python(SAVER, "full", tmp_path / "run", "200000")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert (
        "model was not saved: file too large; what was saved before is untouched; raise the limit"
        in outcome["said"]
    )
    assert outcome["left"] == ["model"]
    assert outcome["holds"] == 1


@pytest.mark.skipif(
    not namespaces_allowed(), reason="this system allows no user namespaces to mount a small disk in"
)
def test_a_disk_of_one_megabyte(tmp_path, python):
    mount = f'mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec "$@"'
    done = python(SAVER, "full", tmp_path / "run", "-", before=("unshare", "-rm", "sh", "-c", mount, "sh"))
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert (
        "model was not saved: no space left on device; what was saved before is untouched; free some"
        in outcome["said"]
    )
    assert outcome["left"] == ["model"]
    assert outcome["holds"] == 1


def test_weights_that_do_not_fit(tmp_path, python):
    """The same through `save_tensors`: its errors carry the system's code."""
    program = tmp_path / "program.py"
    program.write_text(
        "import resource, sys, torch\n"
        "from transom.checkpoint.folder import NotSaved, commit\n"
        "from transom.checkpoint.tensors import save_tensors\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    with commit(sys.argv[1]) as folder:\n"
        "        save_tensors(folder / 'weights.safetensors', {'w': torch.ones(100, 1000)})\n"
        "except NotSaved as error:\n"
        "    print(error)\n"
    )
    done = python(program, tmp_path / "run" / "model")
    assert "model was not saved: file too large" in done.stdout, done.stderr
    assert list((tmp_path / "run").iterdir()) == []
