"""Which tensor of a folder is which parameter of ours, and the way of the numbers from one to the other.

Names and shapes are compared with the headers of the files before any memory is taken: all are there, in
their shapes, and nothing else. Then tensors are read one by one, cast, and turned, cut or laid side by side
as the table of the family says, so that weights are held about once. Read next: tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from transom.errors import Refused
from transom.model.config import ModelConfig

from .family import Family, Stored, stored_tensors
from .shards import open_weights
from .tensors import Header

FUSED = re.compile(r"\.experts\.gate_up_proj$")


@dataclass(frozen=True)
class TensorLocation:
    """The file of a tensor, its name in it, its shape."""

    path: Path
    name: str
    shape: tuple[int, ...]


def map_weights(
    family: Family | None,
    config: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    files: Mapping[Path, Header],
    folder: Path,
    *,
    another_head: bool = False,
) -> dict[Stored, TensorLocation]:
    """Find where our parameters stand; raises Refused for one missing, left over or of another shape.

    another_head: heads are passed over, those that we look for and those that are there, but for what the
    family counts to the body (BERT's pooler): that is taken where it serves.
    """
    there = _there(files, family)
    fused = any(FUSED.search(name) for name in there)
    stored = stored_tensors(family, config, shapes, fused)
    prefix = family.prefix if family is not None else ""
    bare = not any(name.startswith(prefix) for name in there)  # saved without a head
    named = {tensor: tensor.name.removeprefix(prefix) if bare else tensor.name for tensor in stored}
    if another_head:
        pooled = config.pooling == "first" and prefix != ""
        for tensor, name in list(named.items()):
            of_their_body = pooled and tensor.name.startswith(prefix) and name in there
            if tensor.ours[0].startswith("head.") and not of_their_body:
                del named[tensor]
    locations = {tensor: _take(tensor, name, there, config, folder) for tensor, name in named.items()}
    if family is not None:
        _check_tied_copies(family, there, locations)
        _check_derived(family, config, there)
    for name, location in there.items():
        ignored = family is not None and re.fullmatch(family.ignored, name)
        if not ignored and not (another_head and _is_head(name, family)):
            raise Refused(
                f"{location.path}: tensor {location.name[:120]!r} of shape {location.shape} has no place "
                "in the model of its config"
            )
    return locations


def _there(files: Mapping[Path, Header], family: Family | None) -> dict[str, TensorLocation]:
    """List the tensors of a folder by the names of the family's table; raises Refused for one twice."""
    there: dict[str, TensorLocation] = {}
    for path, header in files.items():
        for name, shape in header.shapes.items():
            if 0 in shape:
                continue  # without a number in it
            known = name
            for pattern, replacement in family.renames.items() if family is not None else ():
                known = re.sub(pattern, replacement, known)
            if known in there:
                raise Refused(
                    f"{path}: tensor {name!r} is another spelling of {there[known].name!r}; one may stay"
                )
            there[known] = TensorLocation(path, name, shape)
    return there


def _is_head(name: str, family: Family | None) -> bool:
    """Whether a name of theirs belongs to any of the heads of a family."""
    if family is None:
        return name.startswith("head.")
    heads = [rule.theirs for rule in family.rules if rule.ours[0].split(".")[0] == "head"]
    return any(name == head or name.startswith(f"{head}.") for head in heads) or name in family.tied_copies


def _take(
    tensor: Stored, name: str, there: dict[str, TensorLocation], config: ModelConfig, folder: Path
) -> TensorLocation:
    """Take one tensor out of those that are still there."""
    if name not in there:
        could_tie = tensor.ours == ("head.weight",) and not config.tie_embeddings
        tied = "; tie_word_embeddings would take the embeddings instead" if could_tie else ""
        raise Refused(f"{folder}: tensor {name!r} of shape {tensor.shape} is missing{tied}")
    location = there.pop(name)
    if location.shape != tensor.shape:
        raise Refused(
            f"{location.path}: tensor {location.name!r} has shape {location.shape}; "
            f"the config asks for {tensor.shape}"
        )
    return location


def _check_tied_copies(
    family: Family, there: dict[str, TensorLocation], locations: Mapping[Stored, TensorLocation]
) -> None:
    """A tensor stored beside the one that it is tied to must be the same numbers."""
    of_ours = {tensor.ours[0]: location for tensor, location in locations.items()}
    for name, ours in family.tied_copies.items():
        if name not in there or ours not in of_ours:
            continue
        copy, original = there.pop(name), of_ours[ours]
        with open_weights(copy.path, mapped=True) as one, open_weights(original.path, mapped=True) as other:
            if not torch.equal(one.get_tensor(copy.name), other.get_tensor(original.name)):
                raise Refused(
                    f"{copy.path}: {copy.name} differs from {original.name}, though config.json ties them; "
                    "set tie_word_embeddings to false"
                )


def _check_derived(family: Family, config: ModelConfig, there: dict[str, TensorLocation]) -> None:
    """A stored tensor that is computed here must be what is computed, as near as half precision holds it."""
    for name in family.derived_tensors.keys() & there.keys():
        location, follow = there.pop(name), family.derived_tensors[name]
        with torch.device("meta"):  # the shape, before any memory is taken
            same = location.shape == tuple(follow(config).shape)
        with open_weights(location.path, mapped=True) as file:
            same = same and torch.allclose(
                file.get_tensor(location.name).float(), follow(config), rtol=0, atol=5e-3
            )
        if not same:
            raise Refused(
                f"{location.path}: {location.name} is not what follows from config.json, and only that "
                "is computed"
            )


def read_weights(
    locations: Mapping[Stored, TensorLocation],
    like: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: str | torch.device,
) -> dict[str, Tensor]:
    """Read our parameters from the locations of theirs, in `dtype`, each in memory of its own.

    like: tensors of the shapes that are asked for. What is no weight (a buffer) stays in float32.
    """
    weights: dict[str, Tensor] = {}
    for path in dict.fromkeys(location.path for location in locations.values()):
        with open_weights(path) as file:
            for stored, location in locations.items():
                if location.path != path:
                    continue
                buffer = not isinstance(like[stored.ours[0]], torch.nn.Parameter)
                found = file.get_tensor(location.name)
                _put(found, stored, like, weights, torch.float32 if buffer else dtype, device)
    return weights


def _put(
    found: Tensor,
    stored: Stored,
    like: Mapping[str, Tensor],
    weights: dict[str, Tensor],
    dtype: torch.dtype,
    device: str | torch.device,
) -> None:
    """Put one tensor of theirs to where it belongs in ours: turned back, cut apart, cast."""
    if not found.is_floating_point():
        raise Refused(f"tensor {stored.name!r} holds {found.dtype}; weights are floating-point numbers")
    name, shape = stored.ours[0], like[stored.ours[0]].shape
    if stored.expert is not None:
        if name not in weights:
            weights[name] = torch.empty(shape, dtype=dtype, device=device)
        weights[name][stored.expert].copy_(found)
        return
    if stored.interleaved is not None:
        found = found.unflatten(0, (stored.interleaved, -1, 2)).transpose(1, 2).reshape(found.shape)
    found = found.t() if stored.transposed else found
    if len(stored.ours) == 1 and not stored.transposed:
        weights[name] = found.reshape(shape).to(device, dtype)
        return
    parts = found.split([like[part].shape[stored.axis] for part in stored.ours], dim=stored.axis)
    for part, cut in zip(stored.ours, parts, strict=True):
        weights[part] = cut.to(device, dtype, copy=True, memory_format=torch.contiguous_format)


def to_stored(stored: Stored, weights: Mapping[str, Tensor]) -> Tensor:
    """Make one tensor of theirs out of ours: a view where possible, so nothing is copied before writing."""
    parts = [weights[name] for name in stored.ours]
    if stored.expert is not None:
        return parts[0][stored.expert]
    tensor = parts[0] if len(parts) == 1 else torch.cat(parts, dim=stored.axis)
    if stored.interleaved is not None:
        tensor = tensor.unflatten(0, (stored.interleaved, 2, -1)).transpose(1, 2).reshape(tensor.shape)
    return tensor.t() if stored.transposed else tensor.reshape(stored.shape)
