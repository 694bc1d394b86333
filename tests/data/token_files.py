"""Token files of arrays, as tests need them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transom.data.tokens import TokenFile, TokenWriter


def write_tokens(
    path: str | Path,
    documents: Iterator[npt.NDArray[Any]] | list[npt.NDArray[Any]],
    *,
    eos_id: int,
    bytes_per_token: npt.NDArray[np.uint16],
    tokenizer_hash: str = "",
    data_hash: str = "",
) -> TokenFile:
    """Write documents, given as arrays of ids without their opening token, and open the file."""
    writer = TokenWriter(path, eos_id=eos_id, tokenizer_hash=tokenizer_hash, bytes_per_token=bytes_per_token)
    with writer:
        for ids in documents:
            writer.begin()
            writer.extend(ids, int(bytes_per_token[ids].sum()))
        writer.commit(data_hash)
    return TokenFile.open(path)
