"""The token file: what is written is read, and whatever is broken is refused before it is mapped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.token_files import write_tokens
from tests.scale import scaled
from transom.data.tokens import HEADER_BYTES, TokenFile, TokenWriter
from transom.errors import Refused

LENGTHS = np.array([0, 1, 2, 3, 1, 1, 1, 1], dtype=np.uint16)
DOCUMENTS = [np.array(ids) for ids in ([1, 2, 3], [4], [5, 6, 7, 1, 1])]


def make(path: Path, vocab_size: int = 8) -> TokenFile:
    lengths = np.resize(LENGTHS, vocab_size)
    return write_tokens(path, DOCUMENTS, eos_id=0, bytes_per_token=lengths, tokenizer_hash="t", data_hash="d")


@pytest.mark.parametrize(("vocab_size", "dtype"), [(8, "uint16"), (65536, "uint16"), (65537, "uint32")])
def test_round_trip(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    file = make(tmp_path / "a.tokens", vocab_size)
    assert file.tokens.tolist() == [0, 1, 2, 3, 0, 4, 0, 5, 6, 7, 1, 1]
    assert file.starts.tolist() == [0, 4, 6] and file.tokens.dtype == dtype
    assert (file.n_tokens, file.n_documents, file.n_bytes) == (12, 3, 12)
    assert file.bytes_per_token.tolist() == np.resize(LENGTHS, vocab_size).tolist()
    file.verify()
    assert not list(tmp_path.glob(".*")), "no temporary file is left"


def test_chunks_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transom.data.tokens._CHUNK_TOKENS", 5)
    file = make(tmp_path / "a.tokens")
    assert [chunk.tolist() for chunk in file.chunks(overlap=1)] == [
        [0, 1, 2, 3, 0],
        [0, 4, 0, 5, 6, 7],
        [7, 1, 1],
    ]


def test_every_cut_file_is_refused(tmp_path: Path) -> None:
    whole = make(tmp_path / "a.tokens").path.read_bytes()
    cut = tmp_path / "cut.tokens"
    for size in [*range(0, 40), *range(HEADER_BYTES - 3, len(whole))]:
        cut.write_bytes(whole[:size])
        with pytest.raises(Refused, match="cut.tokens: "):
            TokenFile.open(cut)
    cut.write_bytes(whole + b"\0")
    with pytest.raises(Refused, match="has grown"):
        TokenFile.open(cut)
    with pytest.raises(Refused, match="cannot be read"):
        TokenFile.open(tmp_path / "absent.tokens")


def test_a_changed_bit_is_found(tmp_path: Path) -> None:
    file = make(tmp_path / "a.tokens")
    data = bytearray(file.path.read_bytes())
    for at in range(HEADER_BYTES, len(data), 3):
        data[at] ^= 1
        file.path.write_bytes(data)
        with pytest.raises(Refused):
            TokenFile.open(file.path).verify()
        data[at] ^= 1


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "a.tokens")
    TokenFile.open(tmp_path / "a.tokens", tokenizer_hash="t")
    with pytest.raises(Refused, match="was made with another tokenizer"):
        TokenFile.open(tmp_path / "a.tokens", tokenizer_hash="u")


@given(
    name=st.sampled_from(
        ["version", "dtype", "n_tokens", "n_documents", "vocab_size", "eos_id", "data_hash"]
    ),
    value=st.none()
    | st.booleans()
    | st.integers(-3, 2**70)
    | st.text(max_size=3)
    | st.floats()
    | st.just("int8"),
)
@settings(max_examples=scaled(150))
def test_a_lying_header_never_maps(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: object
) -> None:
    path = tmp_path_factory.getbasetemp() / "lying.tokens"
    honest = path.with_name("honest.tokens")
    file = TokenFile.open(honest) if honest.exists() else make(honest)
    data = bytearray(honest.read_bytes())
    length = int.from_bytes(data[8:16], "little")
    header = json.loads(data[16 : 16 + length])
    if header[name] == value:
        return
    header[name] = value
    text = json.dumps(header).encode()
    data[:HEADER_BYTES] = (data[:8] + len(text).to_bytes(8, "little") + text).ljust(HEADER_BYTES, b"\0")
    path.write_bytes(data)
    try:
        opened = TokenFile.open(path)
    except Refused:
        return
    # Only facts that no size depends on may differ.
    assert name in ("eos_id", "data_hash", "dtype") and opened.n_tokens == file.n_tokens


def test_leaving_without_commit_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.tokens"
    with (
        pytest.raises(RuntimeError),
        TokenWriter(path, eos_id=0, tokenizer_hash="", bytes_per_token=LENGTHS) as writer,
    ):
        writer.begin()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line() -> None:
    writer = TokenWriter("/dev/full", eos_id=0, tokenizer_hash="", bytes_per_token=LENGTHS)
    writer.temporary = writer.path
    with pytest.raises(Refused, match="/dev/full: cannot be written .No space left on device.; make room"):
        writer._file = open(writer.path, "wb", buffering=0)  # noqa: SIM115
        with writer._file:
            writer.begin()
            writer._flush()
