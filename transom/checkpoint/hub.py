"""From a name to a folder on this machine: a local folder or that of a run first, else a model on the
Hugging Face hub.

Only weights in safetensors, JSON and tokenizer files are fetched, and nothing is fetched unless an id of the
hub was named. Read next: huggingface.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from transom.data.gguf_file import is_gguf
from transom.errors import Refused, nearest_path

from .folder import recover

CONFIGS = ("config.json", "adapter_config.json")
"""What a folder that holds a model, or an adapter to one, has."""
FETCHED = ["*.safetensors", "*.json", "tokenizer.model", "*.jinja", "merges.txt", "vocab.txt", "*.spm"]
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
HUB_ID = re.compile(rf"({NAME}/{NAME})(?:@([A-Za-z0-9][A-Za-z0-9._/-]*))?")


SHOWN = 12
"""Runs of a folder that a refusal names."""


def resolve(folder_or_id: str | Path, revision: str | None = None) -> Path:
    """The folder of a model: as a path names it, the `model` in the folder of a run, or what a hub id stands
    for (`owner/name`, `owner/name@revision`); or a GGUF file, which stands for a folder. Raises Refused.

    An id is fetched, or taken from the local cache; its snapshot never changes under the same path.
    """
    path = Path(folder_or_id).expanduser()
    recover(path)
    if path.is_dir():
        return path if any((path / name).exists() for name in CONFIGS) else _model_of(path)
    if is_gguf(path):
        return path
    if path.exists():
        kinds = "a folder with config.json and model.safetensors, or a .gguf file"
        raise Refused(f"{path}: a file; a model is {kinds}")
    found = HUB_ID.fullmatch(str(folder_or_id))
    if found is None or ".." in found[0] or path.parent.is_dir() and path.parent != Path():
        close = nearest_path(path, Path.is_dir) or " (a model on the hub is called owner/name)"
        raise Refused(f"{path}: no such folder{close}")
    return _fetch(found[1], revision or found[2])


def name_of(folder: str | Path) -> str:
    """The name of a model, runs/NAME/model -> NAME, FOLDER/NAME -> NAME, NAME.gguf -> NAME, owner/name ->
    name.
    """
    path = Path(folder)
    path = path.with_suffix("") if is_gguf(path) else path
    resolved = path.resolve() if path.is_dir() else path
    name = resolved.parent.name if resolved.name == "model" and resolved.parent.name else resolved.name
    return re.sub(r"[^\w.:-]+", "-", name) or "model"


def _model_of(path: Path) -> Path:
    """The model in the folder of a run; any other folder as it is."""
    recover(path / "model")
    if (path / "model").is_dir():
        return path / "model"
    if (path / "metrics.jsonl").exists():
        raise Refused(f"{path}: this run has saved no model yet; it does with its first checkpoint")
    held = sorted(str(model.parent.parent) for name in CONFIGS for model in path.glob(f"*/model/{name}"))
    if held:
        more = f" and {len(held) - SHOWN:,} more" if len(held) > SHOWN else ""
        raise Refused(f"{path}: a folder of runs; name one of them: {', '.join(held[:SHOWN])}{more}")
    return path


def _fetch(name: str, revision: str | None) -> Path:
    import huggingface_hub  # not needed for local folders, and slow to import

    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=FETCHED))
    except Exception as error:  # its clients raise errors of several libraries; each means: not fetched
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        at = f"{name}@{revision}" if revision else name
        why = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else reason.split(". ")[0][:200]
        raise Refused(f"{at}: no such folder, and not fetched from the Hugging Face hub ({why})") from None
