"""A GGUF file is what it says, or it is refused in one line before anything in it is used."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.scale import scaled
from transom.data.gguf_file import BLOCKS, GGUFFile, StoredTensor, read_gguf
from transom.errors import Refused

U32, F32, BOOL, TEXT, LIST = 4, 6, 7, 8, 9


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, axes: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, kind, offset)


def file_of(*parts: bytes, keys: int = 0, tensors: int = 0, version: int = 3, data: int = 0) -> bytes:
    """A file of these parts, filled up to 32 bytes, and so many bytes of numbers."""
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(parts)
    return head + bytes(-len(head) % 32) + bytes(data)


def refusal(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(Refused) as refused:
        read_gguf(path)
    said = str(refused.value)
    assert said.startswith(f"{path}: ") and said.isprintable() and len(said) < 400
    return said


A = tensor("a", (8,))
HOSTILE = {
    "empty": (b"", "empty file"),
    "another kind": (b"PK\3\4" + bytes(60), "does not begin with GGUF"),
    "only the magic": (b"GGUF", "cut short"),
    "version 1": (file_of(version=1), "version 1; 2 and 3 are read"),
    "big-endian": (file_of(version=3 << 24), "big-endian"),
    "2^63 tensors": (file_of(tensors=2**63), "announces 9,223,372,036,854,775,808 tensors"),
    "2^63 keys": (file_of(keys=2**63), "at most 50,000 and 10,000"),
    "keys past the end": (b"GGUF" + struct.pack("<IQQ", 3, 0, 9), "cut short"),
    "text past the end": (file_of(key("k", TEXT, struct.pack("<Q", 4096)), keys=1), "key k: cut short"),
    "2^64 - 1 bytes": (file_of(key("k", TEXT, b"\xff" * 8), keys=1), "at most 16,777,216"),
    "no UTF-8": (file_of(key("k", TEXT, text(b"\xff")), keys=1), "not UTF-8 at byte 0"),
    "a type of value": (file_of(key("k", 13, bytes(8)), keys=1), "type 13"),
    "a list of lists": (file_of(key("k", LIST, struct.pack("<IQ", LIST, 1)), keys=1), "a list of type 9"),
    "2^62 items": (file_of(key("k", LIST, struct.pack("<IQ", 0, 2**62)), keys=1), "announces 4,611,"),
    "2^60 texts": (file_of(key("k", LIST, struct.pack("<IQ", TEXT, 2**60)), keys=1), "announces 1,152,"),
    "a key twice": (file_of(*[key("k", U32, bytes(4))] * 2, keys=2), "k stands there twice"),
    "a key of newlines": (file_of(key("a\nb", U32, bytes(4)), keys=1), "is no name for a key"),
    "a key without name": (file_of(key("", U32, bytes(4)), keys=1), "is no name for a key"),
    "alignment 0": (file_of(key("general.alignment", U32, bytes(4)), keys=1), "a power of two"),
    "alignment 24": (file_of(key("general.alignment", U32, b"\x18\0\0\0"), keys=1), "a power of two"),
    "alignment as text": (file_of(key("general.alignment", TEXT, text("32")), keys=1), "a power of two"),
    "cut in the numbers": (file_of(A, tensors=1, data=31), "tensor a: ends at byte"),
    "no numbers": (file_of(A, tensors=1), "cut short"),
    "past the end": (file_of(tensor("a", (8,), offset=64), tensors=1, data=32), "a hole or an overlap"),
    "offset 2^64 - 32": (file_of(tensor("a", (8,), offset=2**64 - 32), tensors=1, data=32), "a hole or an"),
    "one over another": (file_of(A, tensor("b", (8,)), tensors=2, data=64), "tensor b: begins at byte"),
    "a tensor twice": (file_of(A, A, tensors=2, data=64), "a stands there twice"),
    "a name with a path": (file_of(tensor("../a", (8,)), tensors=1, data=32), "is no name for a tensor"),
    "type 99": (file_of(tensor("a", (8,), kind=99), tensors=1, data=32), "type 99; read are F32, F16"),
    "no axes": (file_of(tensor("a", ()), tensors=1, data=32), "0 axes"),
    "five axes": (file_of(tensor("a", (1,) * 5), tensors=1, data=32), "5 axes"),
    "2^32 - 1 axes": (file_of(text("a") + b"\xff" * 4, tensors=1), "4,294,967,295 axes"),
    "an axis of 0": (file_of(tensor("a", (8, 0)), tensors=1, data=32), "every axis is at least 1"),
    "an axis of -1": (file_of(tensor("a", (8, 2**64 - 1)), tensors=1, data=32), "every axis is at least 1"),
    "2^64 weights": (file_of(tensor("a", (2**32, 2**32)), tensors=1, data=32), "no file holds so many"),
    "half a block": (file_of(tensor("a", (48,), kind=8), tensors=1, data=64), "rows of 48; Q8_0 packs 32"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    data, why = HOSTILE[name]
    assert why in refusal(tmp_path / "model.gguf", data)


def written(path: Path) -> Path:
    """A small file of every kind of value, by the format's own package."""
    file = gguf.GGUFWriter(path, "llama")
    file.add_uint8("u8", 200)
    file.add_int8("i8", -3)
    file.add_uint64("u64", 2**63)
    file.add_float32("eps", 1e-5)
    file.add_float64("f64", 0.1)
    file.add_bool("yes", True)
    file.add_string("said", "a “quoted” text")
    file.add_array("numbers", [3, -4])
    file.add_array("texts", ["Ġa", "", "ö"])
    for i, kind in enumerate(("F32", "F16", "Q8_0", "Q4_1")):
        values = np.full((3, 64), i, np.float32)
        type_ = gguf.GGMLQuantizationType[kind]
        file.add_tensor(f"t{i}", gguf.quantize(values, type_), raw_dtype=type_)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


def test_what_the_package_of_the_format_wrote_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "model.gguf")
    found, theirs = read_gguf(path), gguf.GGUFReader(path)
    said = {"u8": 200, "i8": -3, "u64": 2**63, "eps": 1e-5, "f64": 0.1, "yes": True}
    said |= {"said": "a “quoted” text", "numbers": [3, -4], "texts": ["Ġa", "", "ö"]}
    assert found.metadata == {"general.architecture": "llama", **said}
    assert found.architecture == "llama"
    for tensor in theirs.tensors:
        shape = tuple(int(n) for n in reversed(tensor.shape))
        kind = tensor.tensor_type.name
        assert found.tensors[tensor.name] == StoredTensor(
            shape, kind, int(tensor.data_offset), int(tensor.n_bytes)
        )


def test_sizes_of_blocks_are_those_of_the_format() -> None:
    for number, (name, weights, size) in BLOCKS.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (name, (weights, size))


def test_every_beginning_of_a_file_is_refused(tmp_path: Path) -> None:
    data = written(tmp_path / "whole.gguf").read_bytes()
    end = len(data) - 10  # what fills the last tensor up to 32 bytes is not needed
    assert read_gguf(tmp_path / "whole.gguf").tensors["t3"].n_bytes == 3 * 2 * 20
    for n in [*range(0, 700, 7), end - 33, end - 60]:
        refusal(tmp_path / f"{n}.gguf", data[:n])


@settings(max_examples=scaled(300), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_file_with_bytes_changed_is_read_or_refused(changes: list[tuple[int, int]], tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    data = bytearray((whole if whole.exists() else written(whole)).read_bytes())
    for at, byte in changes:
        data[at] = byte
    path = tmp_path / f"{abs(hash(bytes(data)))}.gguf"  # headers are kept by name and time
    path.write_bytes(data)
    try:
        found = read_gguf(path)
    except Refused as refused:
        assert str(refused).startswith(str(path))
    else:
        assert isinstance(found, GGUFFile)
        assert all(one.begin + one.n_bytes <= len(data) for one in found.tensors.values())


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.gguf").mkdir()
    for name in ("folder.gguf", "absent.gguf"):
        with pytest.raises(Refused, match="not a plain file|cannot be read"):
            read_gguf(tmp_path / name)
