"""Small tokenizers and texts that the tests of this room share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from transom.data.tokenizer import Tokenizer, train_tokenizer

NASTY = (
    "def f(x):\n\n\n    return  x  # don't, I'll, we've 'tis\r\n\t\ttabs\t \n  trailing   \n"
    "héllo 世界 مرحبا ²³ Ⅷ 😀👩‍👩‍👧 e\u0301 \u00a0nbsp\u3000wide\x85next\u2028line "
    "``` <|endoftext|> 12345 -- \u200bzero\n"
) * 30


@pytest.fixture(scope="session")
def bpe() -> Tokenizer:
    return train_tokenizer("bpe", iter([NASTY]), 400)


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    return train_tokenizer("bytes", iter([]), 0)


@pytest.fixture(scope="session")
def chars() -> Tokenizer:
    return train_tokenizer("chars", iter([NASTY]), 0)


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str, bytes | str], Path]:
    """Writes a file below the test's folder."""

    def write(name: str, content: bytes | str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write
