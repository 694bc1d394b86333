"""Files of weights: equal bytes for equal weights on the way out, and nothing but what fits on the way in."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from tests.scale import scaled
from transom.checkpoint.tensors import DTYPES, load_tensors, read_header, save_tensors
from transom.errors import Refused

TENSORS = {
    "b.weight": torch.arange(6, dtype=torch.float32).view(2, 3),
    "a.bias": torch.ones(3, dtype=torch.bfloat16),
    "step": torch.tensor(7),
    "mask": torch.tensor([True, False, True]),
    "empty": torch.zeros(0, 4),
}


def file_of(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4), (2, 1, 3)])
def test_what_is_written_is_read_by_us_and_by_the_library(dtype, shape, tmp_path):
    tensor = torch.randint(0, 2, shape).to(dtype)
    save_tensors(tmp_path / "w", {"x": tensor})
    for read in (load_tensors(tmp_path / "w"), load_file(tmp_path / "w")):
        assert read["x"].dtype == dtype
        assert torch.equal(read["x"], tensor)


def test_equal_tensors_give_equal_bytes(tmp_path):
    notes = {name: name for name in "hgfedcba"}
    save_tensors(tmp_path / "one", TENSORS, notes)
    turned = {
        name: tensor.t().contiguous().t() if tensor.ndim == 2 else tensor for name, tensor in TENSORS.items()
    }
    save_tensors(tmp_path / "two", dict(reversed(turned.items())), dict(reversed(notes.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with safe_open(tmp_path / "one", "pt") as file:
        assert file.metadata() == notes | {"format": "pt"}
    assert read_header(tmp_path / "one").metadata == notes | {"format": "pt"}


def test_every_tensor_starts_at_a_multiple_of_its_width(tmp_path):
    save_tensors(tmp_path / "w", TENSORS)
    for tensor in load_tensors(tmp_path / "w").values():
        assert tensor.data_ptr() % tensor.element_size() == 0


def test_a_tensor_is_mapped_until_it_is_written_to(tmp_path):
    save_tensors(tmp_path / "w", TENSORS)
    before = (tmp_path / "w").read_bytes()
    tensors = load_tensors(tmp_path / "w")
    tensors["b.weight"].zero_()  # a private copy of the page
    assert (tmp_path / "w").read_bytes() == before
    save_tensors(tmp_path / "w", {"x": torch.zeros(1)})  # a new file; who mapped the old one keeps it
    assert tensors["a.bias"].tolist() == [1, 1, 1]


def test_complex_numbers_are_not_written(tmp_path):
    with pytest.raises(Refused, match=r"'z' is torch\.complex64; only F64"):
        save_tensors(tmp_path / "w", {"z": torch.zeros(2, dtype=torch.complex64)})
    assert not (tmp_path / "w").exists()


def test_every_proper_prefix_is_refused(tmp_path):
    save_tensors(tmp_path / "whole", TENSORS)
    whole = (tmp_path / "whole").read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(Refused, match=r"cut\.safetensors: "):
            load_tensors(path)


X = b"\0\0\0\0"
LIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "cut short"),
    "a header longer than the file": (file_of({}, length=100), "cut short"),
    "a header of 2^63 bytes": (file_of({}, length=2**63), "cut short"),
    "no object": (file_of([]), "does not start with"),
    "spaces before the object": (file_of(b" {}"), "does not start with"),
    "not JSON": (file_of(b"{"), "not JSON"),
    "not UTF-8": (file_of(b'{"\xff": 1}'), "not UTF-8 at byte 2"),
    "deep JSON": (file_of(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "nested too deeply"),
    "a name twice": (
        file_of(b'{"x":' + json.dumps(entry()).encode() + b',"x":' + json.dumps(entry()).encode() + b"}", X),
        "'x' stands there twice",
    ),
    "NaN": (file_of(b'{"x": NaN}', X), "NaN is not a JSON number"),
    "a number of 10,000 digits": (file_of(b'{"x": ' + b"9" * 10_000 + b"}", X), "header: "),
    "a byte more": (file_of({"x": entry()}, X + b"\0"), "take 4 bytes, but 5 are there"),
    "a hole": (file_of({"x": entry(offsets=[4, 8])}, X + X), "'x' starts at byte 4 of the data, not at 0"),
    "an overlap": (file_of({"x": entry(), "y": entry()}, X), "starts at byte 0 of the data, not at 4"),
    "a shape too large": (file_of({"x": entry(shape=[2])}, X), r"'x' of shape \(2,\) needs 8 bytes"),
    "a shape that overflows": (
        file_of({"x": entry(shape=[2**62, 4])}, X),
        "needs 73,786,976,294,838,206,464",
    ),
    "a negative size": (file_of({"x": entry(shape=[-1])}, X), "not whole numbers"),
    "a size that is true": (file_of({"x": entry(shape=[True])}, X), "not whole numbers"),
    "a size with a point": (file_of({"x": entry(shape=[1.0])}, X), "not whole numbers"),
    "a shape that is a text": (file_of({"x": entry(shape="1")}, X), "not whole numbers"),
    "three offsets": (file_of({"x": entry(offsets=[0, 4, 4])}, X), "3 offsets"),
    "offsets turned round": (file_of({"x": entry(offsets=[4, 0])}, X), "its offsets span -4"),
    "100 axes": (file_of({"x": entry(shape=[1] * 100)}, X), "100 axes"),
    "an unknown dtype": (file_of({"x": entry("F8_E4M3", offsets=[0, 1])}, b"\0"), "'x' is of type 'F8_E4M3'"),
    "a dtype that is a list": (file_of({"x": entry([])}, X), "is of type"),
    "an entry that is a list": (file_of({"x": []}, X), "does not say dtype, shape and data_offsets"),
    "an entry that says more": (file_of({"x": entry() | {"code": "1"}}, X), "and only those"),
    "a path": (file_of({"../x": entry()}, X), "'../x' is not a name"),
    "no name": (file_of({"": entry()}, X), "'' is not a name"),
    "a name that forges a line": (file_of({"x\nfine": entry()}, X), "is not a name"),
    "metadata that is a list": (file_of({"__metadata__": []}), "not a table of texts"),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}}), "not a table of texts"),
}


@pytest.mark.parametrize(("data", "said"), LIES.values(), ids=LIES)
def test_a_file_that_lies_is_refused(data, said, tmp_path):
    path = tmp_path / "lying.safetensors"
    path.write_bytes(data)
    with pytest.raises(Refused, match=rf"lying\.safetensors: .*{said}") as refusal:
        load_tensors(path)
    assert len(str(refusal.value)) < 400
    assert "\n" not in str(refusal.value)


def test_a_header_that_is_too_long_is_not_read(tmp_path):
    path = tmp_path / "long.safetensors"
    with open(path, "wb") as file:
        file.write((17 * 2**20).to_bytes(8, "little"))
        os.truncate(path, 40 * 2**20)
    with pytest.raises(Refused, match="a header of 17,825,792 bytes; at most 16,777,216 are read"):
        load_tensors(path)


def test_too_many_tensors(tmp_path):
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(file_of({f"t{i}": entry(shape=[0], offsets=[0, 0]) for i in range(50_001)}))
    with pytest.raises(Refused, match="50,001 tensors; at most 50,000 are read"):
        load_tensors(path)


@pytest.mark.parametrize("kind", ["folder", "missing", "device"])
def test_what_is_no_file(kind, tmp_path):
    path = Path("/dev/zero") if kind == "device" else tmp_path / "x.safetensors"
    if kind == "folder":
        path.mkdir()
    with pytest.raises(Refused, match=rf"{path.name}: "):
        load_tensors(path)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
GOOD = {"x": entry(shape=[2, 2], offsets=[0, 16]), "y": entry("I64", [1], [16, 24])}
quiet = settings(
    max_examples=scaled(200),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)


@given(
    tensor=st.sampled_from(["x", "y"]),
    key=st.sampled_from(["dtype", "shape", "data_offsets", None]),
    value=values,
)
@quiet
def test_any_value_in_the_header_is_refused_or_true(tensor, key, value, tmp_path):
    """Whatever stands in one place of the header: one refusal, or exactly the tensors that it describes."""
    header = json.loads(json.dumps(GOOD))
    if key is None:
        header[tensor] = value
    else:
        header[tensor][key] = value
    path = tmp_path / "w.safetensors"
    path.write_bytes(file_of(header, bytes(range(24))))
    try:
        tensors = load_tensors(path)
    except Refused as refusal:
        assert "w.safetensors" in str(refusal)
        return
    assert sum(t.numel() * t.element_size() for t in tensors.values()) == 24
    assert {name: list(t.shape) for name, t in tensors.items()} == {
        n: list(e["shape"]) for n, e in header.items()
    }


@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
@quiet
def test_any_bytes_in_the_header_are_refused_or_harmless(changes, tmp_path):
    data = bytearray(file_of(GOOD, bytes(range(24))))
    for place, byte in changes:
        data[place % (len(data) - 24)] = byte
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    try:
        tensors = load_tensors(path)
    except Refused:
        return
    assert sum(t.numel() * t.element_size() for t in tensors.values()) == 24
