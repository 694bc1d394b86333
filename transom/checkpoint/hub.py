"""From a name to a folder on this machine: a local folder first, else a model on the Hugging Face hub.

Only weights in safetensors, JSON and tokenizer files are fetched, and nothing is fetched unless an id of the
hub was named. Read next: huggingface.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from transom.errors import Refused, nearest

from .folder import recover

FETCHED = ["*.safetensors", "*.json", "tokenizer.model", "*.jinja", "merges.txt", "vocab.txt", "*.spm"]
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
HUB_ID = re.compile(rf"({NAME}/{NAME})(?:@([A-Za-z0-9][A-Za-z0-9._/-]*))?")


def resolve(folder_or_id: str | Path, revision: str | None = None) -> Path:
    """The folder that a path or a hub id (`owner/name`, `owner/name@revision`) stands for; raises Refused.

    An id is fetched, or taken from the local cache; its snapshot never changes under the same path.
    """
    path = Path(folder_or_id).expanduser()
    recover(path)
    if path.is_dir():
        return path
    if path.exists():
        raise Refused(f"{path}: a file; a model is a folder with config.json and model.safetensors")
    found = HUB_ID.fullmatch(str(folder_or_id))
    if found is None or ".." in found[0] or path.parent.is_dir() and path.parent != Path():
        beside = [at.name for at in path.parent.iterdir() if at.is_dir()] if path.parent.is_dir() else []
        raise Refused(
            f"{path}: no such folder{nearest(path.name, beside)} (a model on the hub is called owner/name)"
        )
    return _fetch(found[1], revision or found[2])


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
