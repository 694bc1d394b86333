"""Single ops of the kernels with tensors in and out, for tests."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import c_int32, c_int64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from transom.model.build import Model
from transom.model.lora import Lora, add_lora, linear_layers
from transom.native import abi
from transom.native.abi import Op, Step
from transom.native.library import LEVELS, Library, Unavailable, cpu_level, load

UNIT = 32
DTYPES = {abi.F32: torch.float32, abi.BF16: torch.bfloat16}


def levels() -> list[str]:
    """The levels that this machine runs; none where nothing is compiled."""
    try:
        return list(LEVELS[: LEVELS.index(cpu_level()) + 1])
    except Unavailable:
        return []


def library(level: str) -> Library:
    """The library of a level, or the test is skipped."""
    home = os.environ.get("TRANSOM_TEST_KERNELS")
    try:
        return load(level, Path(home) if home else None)
    except Unavailable as unavailable:
        pytest.skip(f"native kernels, {level}: {unavailable}")


class Ops:
    """A plan of a few ops over buffers of given widths, one layer of pages, and whatever they point to."""

    def __init__(
        self, library: Library, format: int, buffers: Sequence[tuple[int, int]], *, kv_heads: int = 1,
        head_dim: int = 32, n_pages: int = 1,
    ) -> None:  # fmt: skip
        self.functions, self.format, self.kept = library.functions, format, list[Any]()
        self.buffers, self.shape = list(buffers), (1, kv_heads, head_dim, n_pages)
        self.matrices: list[int] = []

    def floats(self, values: Tensor | None) -> int | None:
        """A vector in float32 with zeros behind it; where it lies."""
        if values is None:
            return None
        padded = torch.zeros(-(-len(values) // UNIT) * UNIT)
        padded[: len(values)] = values
        return self.keep(padded)

    def keep(self, values: Tensor) -> int:
        self.kept.append(values.contiguous())
        return self.kept[-1].data_ptr()

    def matrix(self, weight: Tensor, format: int | None = None) -> int:
        format = self.format if format is None else format
        weight = weight.to(DTYPES.get(format, torch.float32)).contiguous()
        self.matrices.append(self.functions.transom_pack(format, *weight.shape, weight.data_ptr()))
        return self.matrices[-1]

    def plan(self, ops: Sequence[Op]) -> Ops:
        self.ops = (Op * len(ops))(*ops)
        widths, formats = ((c_int32 * len(self.buffers))(*part) for part in zip(*self.buffers, strict=True))
        self.handle = self.functions.transom_plan(
            self.format, self.ops, len(ops), widths, formats, len(self.buffers), *self.shape
        )
        return self

    def buffer(self, number: int, n_rows: int) -> Tensor:
        """The rows of a buffer itself, with their padding."""
        row_bytes = c_int64()
        at = self.functions.transom_buffer(self.handle, number, n_rows, ctypes.byref(row_bytes))
        raw = (ctypes.c_uint8 * (row_bytes.value * n_rows)).from_address(at)
        flat = torch.frombuffer(raw, dtype=torch.uint8)
        return flat.view(DTYPES.get(self.buffers[number][1], torch.uint8)).view(n_rows, -1)

    def page(self, page: int, head: int, side: int) -> Tensor:
        """The numbers of a page of one head's keys (side 0) or values (1)."""
        width = -(-self.shape[2] // UNIT) * UNIT
        dtype = DTYPES[self.format]
        at = self.functions.transom_page(self.handle, 0, page, head, side)
        raw = (ctypes.c_uint8 * (16 * width * dtype.itemsize)).from_address(at)
        return torch.frombuffer(raw, dtype=torch.uint8).view(dtype)

    def run(
        self,
        tokens: Sequence[int],
        spans: Sequence[tuple[int, int]] = (),
        pages: Sequence[Sequence[int]] = (),
        *,
        adapters: Sequence[int] = (),
        wanted: Sequence[int] = (),
        vocab: int = 0,
        threads: int = 1,
        angles: tuple[Tensor, Tensor] | None = None,
        segments: Sequence[int] = (),
        sources: Sequence[tuple[int, int]] = (),
    ) -> Tensor:
        """Run on tokens of spans (start, n), each with its pages, its adapter and its source (where the pages
        of that are, and how many tokens it has); the result.
        """
        spans, flat = list(spans) or [(0, len(tokens))], [page for table in pages for page in table]
        firsts = np.cumsum([0, *map(len, pages)])[: len(spans)] if pages else [0] * len(spans)
        flat = flat or [0] * 64
        whose = adapters or [0] * len(spans)
        rows = [(*span, first, own) for span, first, own in zip(spans, firsts, whose, strict=True)]
        arrays = [np.array(x, dtype=np.int32) for x in (tokens, rows, flat, list(wanted), list(segments))]
        given = np.array(sources, dtype=np.int64)
        result = torch.zeros(len(wanted), vocab)
        turns = (None, None) if angles is None else tuple(map(self.keep, angles))
        step = Step(
            len(tokens),
            len(spans),
            len(wanted),
            threads,
            0,
            len(self.ops),
            *(x.ctypes.data if len(x) else None for x in (*arrays, given)),
            *turns,
            result.data_ptr(),
            None,
        )
        assert self.functions.transom_run(self.handle, step) == 0
        return result

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            self.functions.transom_plan_free(self.handle)
        for matrix in self.matrices:
            self.functions.transom_matrix_free(matrix)


def add_learned_lora(model: Model, std: float) -> None:
    """Put an adapter of rank 4 into all linear layers of a model, as if it had learned something."""
    add_lora(model, dict.fromkeys(linear_layers(model), Lora(4)))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("lora_B"):
                weight.normal_(std=std, generator=torch.Generator().manual_seed(len(name)))


def in_8_bits(x: Tensor, block: int) -> Tensor:
    """Numbers (..., K) rounded to 8 bits with a scale for each `block` of them."""
    blocks = torch.nn.functional.pad(x, (0, -x.shape[-1] % block)).unflatten(-1, (-1, block))
    scale = blocks.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return ((blocks / scale).round() * scale).flatten(-2)[..., : x.shape[-1]]
