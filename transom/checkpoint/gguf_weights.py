"""Weights of a GGUF file: unpacked one by one when they are read, packed one by one when they are written.

Packing and unpacking of blocks is done by the `gguf` package, the format's own. Read next: gguf_families,
data.gguf_file.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from transom.data.documents import printable
from transom.data.gguf_file import GGUFFile, mapped, read_gguf
from transom.errors import Refused

from .tensors import Header


def gguf_header(path: Path) -> Header:
    """What a file says of its tensors, as a safetensors file would; raises Refused."""
    shapes = {name: tensor.shape for name, tensor in read_gguf(path).tensors.items()}
    return Header(shapes, dict.fromkeys(shapes, torch.float32), {})


@contextmanager
def open_gguf(path: Path) -> Iterator[OpenGGUF]:
    """The checked file, for `get_tensor(name)`; raises Refused."""
    file = read_gguf(path)
    with mapped(path) as data:
        yield OpenGGUF(file, data)


@dataclass(frozen=True)
class OpenGGUF:
    """A file whose tensors are unpacked on request."""

    file: GGUFFile
    data: mmap.mmap

    def get_tensor(self, name: str) -> Tensor:
        """A tensor in float32, in memory of its own."""
        from gguf import GGMLQuantizationType, quants

        tensor = self.file.tensors[name]
        packed = np.frombuffer(self.data[tensor.begin : tensor.begin + tensor.n_bytes], np.uint8)
        if len(packed) < tensor.n_bytes:
            raise Refused(f"{printable(self.file.path)}: tensor {name}: the file became shorter meanwhile")
        rows = packed.reshape(*tensor.shape[:-1], -1)
        values = quants.dequantize(rows, GGMLQuantizationType[tensor.kind])
        return torch.from_numpy(np.array(values, np.float32)).reshape(tensor.shape)
