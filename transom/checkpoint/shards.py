"""The files of weights of a model: one, or shards with an index, or a GGUF file; in and out.

An index is text from outside: the names in it must be plain names of files in the folder, and what it says of
each file must be what the file says of itself. Read next: tensors,
gguf_weights.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor

from transom.data.gguf_file import is_gguf
from transom.data.in_folder import inside
from transom.errors import Refused

from .gguf_weights import gguf_header, open_gguf
from .strict_json import read_json, write_json
from .tensors import Header, open_tensors, read_header, save_tensors

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")


def weight_files(folder: Path) -> dict[Path, Header]:
    """The files of weights with their checked headers; the index of a sharded folder must tell the truth.

    A GGUF file stands for a folder that holds it alone.
    """
    if is_gguf(folder):
        return {folder: gguf_header(folder)}
    whole, index = folder / WEIGHTS, folder / INDEX
    if whole.exists() and index.exists():
        raise Refused(f"{folder}: holds both {WEIGHTS} and {INDEX}; remove the one that is not meant")
    if whole.exists():
        path = inside(folder, WEIGHTS)
        return {path: read_header(path)}
    if not index.exists():
        raise _no_weights(folder)
    table = read_json(inside(folder, INDEX)).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise Refused(f"{index}: it has no weight_map")
    shards: dict[str, set[str]] = {}
    for tensor, shard in table.items():
        if not isinstance(shard, str) or not SHARD_NAME.fullmatch(shard):
            raise Refused(f"{index}: {str(shard)[:80]!r} is not a plain name of a .safetensors file")
        shards.setdefault(shard, set()).add(tensor)
    files = {}
    for shard, tensors in sorted(shards.items()):
        path = inside(folder, shard)
        files[path] = read_header(path)
        for name in sorted(tensors ^ files[path].shapes.keys()):
            said = (
                "is in the index but not in the file"
                if name in tensors
                else "is in the file but not in the index"
            )
            raise Refused(f"{path}: tensor {name[:120]!r} {said}")
    return files


def _no_weights(folder: Path) -> Refused:
    pickles = [
        path.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in sorted(folder.glob(kind))
    ]
    if not pickles:
        return Refused(f"{folder}: holds no {WEIGHTS} and no {INDEX}")
    return Refused(
        f"{folder / pickles[0]}: a pickle, which can run any code when it is opened, so it is never read; "
        "convert the folder to safetensors where you trust it (from_pretrained, then save_pretrained)"
    )


def open_weights(path: Path, *, mapped: bool = False) -> AbstractContextManager[Any]:
    """One of those files, for `get_tensor(name)`; see `open_tensors`."""
    return open_gguf(path) if is_gguf(path) else open_tensors(path, mapped=mapped)


def save_weights(folder: Path, tensors: list[tuple[str, Tensor]], max_bytes: int) -> None:
    """One file, or shards with their index when the model is larger than `max_bytes`."""
    shards: list[dict[str, Tensor]] = [{}]
    filled = total = 0
    for name, tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if shards[-1] and filled + size > max_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled, total = filled + size, total + size
    if len(shards) == 1:
        return save_tensors(folder / WEIGHTS, shards[0])
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        save_tensors(folder / name, shard)
    table = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    return write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": table})
