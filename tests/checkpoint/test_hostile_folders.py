"""Folders made to harm: nothing in them runs, nothing outside is read, each is refused in one line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from transom.checkpoint.huggingface import load_model, save_model
from transom.checkpoint.tensors import load_tensors, save_tensors
from transom.errors import Refused

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"


def edit(path: Path, **changes) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in (values | changes).items() if v is not ...}))


def reweigh(folder: Path, **changes: torch.Tensor | None) -> None:
    """Rewrite the weights of a folder with some tensors changed; None takes one away."""
    tensors = {name: tensor.clone() for name, tensor in load_tensors(folder / WEIGHTS).items()} | changes
    save_tensors(folder / WEIGHTS, {name: tensor for name, tensor in tensors.items() if tensor is not None})


@pytest.fixture
def sharded(tmp_path, model) -> Path:
    (tmp_path / "sharded").mkdir()
    save_model(tmp_path / "sharded", model, max_shard_bytes=5_000)
    return tmp_path / "sharded"


TRAVERSAL = [
    "../outside.safetensors",
    "../../outside.safetensors",
    "/etc/passwd",
    "/tmp/outside.safetensors",
    "sub/model.safetensors",
    "..",
    ".",
    "",
    ".hidden.safetensors",
    "..\\outside.safetensors",
    "C:\\outside.safetensors",
    "C:outside.safetensors",
    "file:///outside.safetensors",
    "model.safetensors\0.txt",
    "model\n.safetensors",
    "\u2024\u2024/outside.safetensors",
    "\uff0e\uff0e\uff0foutside.safetensors",
    "model.safetensors/",
    "-model.bin",
    "model.pt",
    None,
    7,
    ["model.safetensors"],
]


@pytest.mark.parametrize("name", TRAVERSAL, ids=repr)
def test_a_shard_is_a_plain_name_in_the_folder(name, sharded, tmp_path):
    save_tensors(tmp_path / "outside.safetensors", {"x": torch.zeros(1)})
    table = json.loads((sharded / INDEX).read_text())["weight_map"]
    edit(sharded / INDEX, weight_map=table | {"model.norm.weight": name})
    with pytest.raises(
        Refused, match=r"index\.json: .* is not a plain name of a \.safetensors file"
    ) as refusal:
        load_model(sharded)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_link_out_of_the_folder(name, llama, tmp_path):
    (llama / name).rename(tmp_path / "elsewhere")
    (llama / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused, match=rf"{name}: leads out of the folder"):
        load_model(llama)


def test_a_shard_that_links_out_of_the_folder(sharded, tmp_path):
    shard = sorted(sharded.glob("*.safetensors"))[0]
    shard.rename(tmp_path / "elsewhere.safetensors")
    shard.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(Refused, match=f"{shard.name}: leads out of the folder"):
        load_model(sharded)


def test_a_folder_behind_a_link_is_fine(llama, tmp_path):
    (tmp_path / "link").symlink_to(llama)
    load_model(tmp_path / "link")


def test_the_index_must_tell_the_truth(sharded):
    table = json.loads((sharded / INDEX).read_text())["weight_map"]
    shards = sorted(set(table.values()))
    assert len(shards) > 2
    moved = {**table, "model.norm.weight": next(s for s in shards if s != table["model.norm.weight"])}
    edit(sharded / INDEX, weight_map=moved)
    with pytest.raises(
        Refused, match=r"'model\.norm\.weight' is in the (index but not in the file|file but not)"
    ):
        load_model(sharded)
    less = {name: shard for name, shard in table.items() if name != "model.norm.weight"}
    edit(sharded / INDEX, weight_map=less)
    with pytest.raises(Refused, match=r"'model\.norm\.weight' is (in the file but not in the index|missing)"):
        load_model(sharded)
    edit(sharded / INDEX, weight_map={})
    with pytest.raises(Refused, match="no weight_map"):
        load_model(sharded)
    edit(sharded / INDEX, weight_map=table)
    (sharded / shards[1]).unlink()
    with pytest.raises(Refused, match=rf"{shards[1]}: cannot be read \(no such file"):
        load_model(sharded)


def test_one_file_and_shards_together(sharded, llama):
    (sharded / WEIGHTS).write_bytes((llama / WEIGHTS).read_bytes())
    with pytest.raises(Refused, match="holds both"):
        load_model(sharded)


NORM, Q_PROJ, HEAD = "model.norm.weight", "model.layers.1.self_attn.q_proj.weight", "lm_head.weight"
MISFITS = {
    "one missing": (
        {Q_PROJ: None},
        r"'model\.layers\.1\.self_attn\.q_proj\.weight' of shape \(16, 16\) is missing",
    ),
    "another size": (
        {NORM: torch.ones(17)},
        r"'model\.norm\.weight' has shape \(17,\); the config asks for \(16,\)",
    ),
    "an axis more": ({Q_PROJ: torch.ones(16, 16, 1)}, r"has shape \(16, 16, 1\)"),
    "one more": ({"extra.weight": torch.ones(2)}, r"'extra\.weight' of shape \(2,\) has no place"),
    "a layer more": ({"model.layers.2.mlp.up_proj.weight": torch.ones(2)}, r"layers\.2.* has no place"),
    "whole numbers": ({NORM: torch.ones(16, dtype=torch.int64)}, r"'model\.norm\.weight' holds torch\.int64"),
    "another head": ({HEAD: torch.ones(61, 16)}, r"lm_head\.weight differs from model\.embed_tokens\.weight"),
}


@pytest.mark.parametrize(("changes", "said"), MISFITS.values(), ids=MISFITS)
def test_tensors_that_do_not_fit(changes, said, llama):
    reweigh(llama, **changes)
    with pytest.raises(Refused, match=said):
        load_model(llama)


def test_a_tied_head_stored_twice_and_an_untied_one_missing(llama, model):
    reweigh(llama, **{HEAD: model.embed.weight.detach()})
    assert torch.equal(load_model(llama).embed.weight, model.embed.weight)
    edit(llama / CONFIG, tie_word_embeddings=False)
    assert torch.equal(load_model(llama).head.weight, model.embed.weight)
    reweigh(llama, **{HEAD: None})
    with pytest.raises(
        Refused, match=r"'lm_head\.weight' of shape \(61, 16\) is missing; tie_word_embeddings would"
    ):
        load_model(llama)


def test_a_config_that_asks_for_terabytes_costs_nothing(llama):
    edit(llama / CONFIG, hidden_size=2**30, intermediate_size=2**30, vocab_size=2**30)
    with pytest.raises(Refused, match=r"has shape \(16,\); the config asks for \(1073741824,\)"):
        load_model(llama)


@pytest.mark.parametrize("name", [CONFIG, INDEX, "manifest.json"])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b'{"a":' * 50_000,
        b'{"a": NaN}',
        b'{"a": 1, "a": 2}',
        b"9" * 9_000,
    ],
    ids=lambda data: repr(data[:20]),
)
def test_broken_json(name, data, sharded):
    (sharded / name).write_bytes(data)
    with pytest.raises(Refused, match=name.replace(".", r"\.")):
        load_model(sharded)


def test_endless_json(llama):
    (llama / CONFIG).write_bytes(b" " * (17 * 2**20))
    with pytest.raises(Refused, match=r"config\.json: 17,825,792 bytes of JSON; at most 16,777,216"):
        load_model(llama)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt"])
def test_a_pickle_is_refused_unopened(name, llama, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    (llama / WEIGHTS).unlink()
    (llama / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(
        Refused, match=rf"{name}: a pickle, which can run any code.*convert the folder to safetensors"
    ):
        load_model(llama)
    assert not (tmp_path / "sprung").exists()


def test_an_empty_folder_and_no_folder(tmp_path, llama):
    (llama / WEIGHTS).unlink()
    with pytest.raises(Refused, match=r"holds no model\.safetensors"):
        load_model(llama)
    (llama / CONFIG).unlink()
    with pytest.raises(Refused, match=r"config\.json: no such file"):
        load_model(llama)
    with pytest.raises(Refused, match="nowhere: no such folder"):
        load_model(tmp_path / "nowhere")


PROGRAM = """
import sys
from transom.checkpoint.huggingface import load_model
folder, seen = sys.argv[1], []

def hook(event, arguments):
    text = repr(arguments)
    if event in ("import", "exec", "compile") and ("booby" in text or folder in text):
        seen.append((event, text))
    if event == "open" and folder in text and text.split("'")[1].endswith((".py", ".bin")):
        seen.append((event, text))

sys.addaudithook(hook)
load_model(folder)
print("opened or run:", seen)
"""


def test_code_in_a_folder_is_never_run(llama, tmp_path, python):
    trap = f"open({str(tmp_path / 'sprung')!r}, 'w')\n"
    for name in ("booby.py", "modeling.py", "configuration_llama.py", "__init__.py"):
        (llama / name).write_text(trap)
    (llama / "pytorch_model.bin").write_bytes(b"cbuiltins\neval\n")
    edit(
        llama / CONFIG,
        auto_map={"AutoConfig": "booby.Config", "AutoModelForCausalLM": "booby.Model"},
        trust_remote_code=True,
    )
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = python(program, llama)
    assert done.stdout == "opened or run: []\n", done.stderr
    assert not (tmp_path / "sprung").exists()


def test_saving_never_overwrites_in_place_and_never_saves_nan(llama, model, tmp_path):
    with pytest.raises(Refused, match=r"holds a model already; save through commit"):
        save_model(llama, model)
    (tmp_path / "new").mkdir()
    with torch.no_grad():
        model.layers[1].ffn.up_proj.weight[3, 3] = float("nan")
    with pytest.raises(Refused, match=r"weight layers\.1\.ffn\.up_proj\.weight holds NaN or infinity"):
        save_model(tmp_path / "new", model)
    assert list((tmp_path / "new").iterdir()) == []


def test_no_pickle_in_the_source():
    """The words themselves stay out of this room."""
    room = Path(__file__).parents[2] / "transom" / "checkpoint"
    for path in room.glob("*.py"):
        for word in ("import pickle", "torch.load(", "eval(", "exec(", "importlib", "__import__", "marshal"):
            assert word not in path.read_text(), (path.name, word)
