"""Many adapters over one base: 8 in one batch equal each alone, and no row reads what another one read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import transom
from transom.checkpoint.adapter import save_adapter
from transom.checkpoint.huggingface import load_config, load_model, save_model
from transom.checkpoint.manifest import fingerprint
from transom.data.tokenizer import Tokenizer, train_tokenizer
from transom.errors import Refused
from transom.inference.adapters import PassRows, on_base, with_adapters
from transom.inference.onednn_weights import packs
from transom.inference.runner import Chunk, TorchRunner
from transom.model.build import Model
from transom.model.config import ModelConfig
from transom.model.lora import Lora, adapted_layers, add_lora, linear_layers, named_by, only_adapters_learn
from transom.model.transformer import Transformer

N = 8
KINDS = [Lora(2), Lora(4, 8.0, rslora=True), Lora(3, 6.0, dora=True)]
TARGETS = ["all", "q_proj", "v_proj", "down_proj"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and eight adapters to it of different kinds and targets."""
    place = tmp_path_factory.mktemp("adapters")
    config = ModelConfig(vocab_size=258, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=48,
                         max_len=96, qkv_bias=True, out_bias=True)  # fmt: skip
    model = Transformer(config, seed=1)
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, generator=generator)
    (place / "base").mkdir()
    save_model(place / "base", model, train_tokenizer("bytes", iter(()), 258))
    for number in range(N):
        write_adapter(place, number)
    return place


def write_adapter(place: Path, number: int) -> None:
    model = load_model(place / "base")
    chosen = named_by(TARGETS[number % len(TARGETS)], linear_layers(model))
    add_lora(model, dict.fromkeys(chosen, KINDS[number % len(KINDS)]), seed=number)
    only_adapters_learn(model)
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            layer.lora_B.copy_(0.3 * torch.randn(layer.lora_B.shape, generator=generator))
            if layer.lora_magnitude is not None:
                layer.lora_magnitude.mul_(1 + 0.3 * torch.rand(layer.out_features, generator=generator))
    (place / str(number)).mkdir()
    learned = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    save_adapter(place / str(number), model, base=str(place / "base"), family=load_config(place / "base")[1],
                 weights=learned, card="")  # fmt: skip


def loaded(folders: Path, dtype: torch.dtype = torch.float32) -> tuple[Model, dict[str, Model]]:
    model = load_model(folders / "base", dtype=dtype).eval()
    base, known = folders / "base", fingerprint(folders / "base")
    return model, {str(i): on_base(model, base, known, folders / str(i)) for i in range(N)}


def test_eight_adapters_in_one_batch_equal_each_alone(folders: Path) -> None:
    model, adapters = loaded(folders)
    runner = TorchRunner(model, n_tokens=4096, adapters=adapters)
    prompts = {
        name: [(7 * i + int(name or 9)) % 250 for i in range(5 + int(name or 0))] for name in ["", *adapters]
    }
    rows = {name: runner.open(prompt, adapter=name) for name, prompt in prompts.items()}
    found = runner.run([Chunk(row, len(row.tokens), len(row.tokens)) for row in rows.values()])
    with torch.no_grad():
        for name, logits in zip(prompts, found.split([len(p) for p in prompts.values()]), strict=True):
            plain = adapters[name] if name else model
            wanted = plain.logits(plain(torch.tensor([prompts[name]])))[0]
            torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5, msg=name or "base")
        # One token of each, all at once: they are multiplied together.
        for step in range(3):
            for row in rows.values():
                row.tokens.append(11 + step)
            found = runner.run([Chunk(row, 1) for row in rows.values()])
            for (name, row), logits in zip(rows.items(), found, strict=True):
                plain = adapters[name] if name else model
                wanted = plain.logits(plain(torch.tensor([row.tokens])))[0, -1]
                torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5, msg=name or "base")


def test_packed_in_bfloat16_is_as_near_to_its_plain_model_as_the_base_is(folders: Path) -> None:
    model, adapters = loaded(folders, torch.bfloat16)
    if not packs(model):
        pytest.skip("this machine does not multiply bfloat16")
    runner = TorchRunner(model, n_tokens=4096, adapters=adapters)
    prompt = [*range(3, 20)]
    off = {}
    for name in ["", *adapters]:
        row = runner.open(prompt, adapter=name)
        with torch.no_grad():
            plain = adapters[name] if name else model
            wanted = plain.logits(plain(torch.tensor([prompt])))[0]
        off[name] = (runner.run([Chunk(row, len(prompt), len(prompt))]) - wanted).abs().max()
    assert max(off.values()) < max(3 * off[""], 0.05)


def test_what_one_adapter_has_read_is_no_prefix_of_another(folders: Path) -> None:
    model, adapters = loaded(folders)
    runner = TorchRunner(model, n_tokens=4096, adapters=adapters)
    prompt = [*range(5, 45)]
    runner.run([Chunk(runner.open(prompt, adapter="1"), len(prompt))])
    assert runner.open(prompt, adapter="1").n_reused == 32
    assert runner.open(prompt, adapter="2").n_reused == 0
    assert runner.open(prompt).n_reused == 0


def test_rows_are_grouped_by_how_many_there_are() -> None:
    rows = PassRows(["a", "b", "c"])
    device = torch.device("cpu")
    rows.take(["", ""], device)
    assert rows.one == 0
    rows.take(["b", "b"], device)
    assert rows.one == 2
    rows.take(["a", "", "c", "b"], device)
    assert rows.together is not None and rows.together[0] == slice(0, 4)
    assert rows.together[2].tolist() == [1, 0, 3, 2]
    rows.take(["a"] * 9 + ["c"], device)  # padded they would be 27
    assert [(number, mine.tolist()) for number, mine in rows.groups] == [(1, [*range(9)]), (3, [9])]


def test_the_base_is_not_touched_and_its_weights_are_shared(folders: Path) -> None:
    model = load_model(folders / "base").eval()
    tokens = torch.arange(9)[None]
    with torch.no_grad():
        before = model(tokens)
        one = on_base(model, folders / "base", fingerprint(folders / "base"), folders / "0")
        many = with_adapters(model, {"0": one})
        assert torch.equal(model(tokens), before)
    assert one.embed.weight is model.embed.weight is many.embed.weight
    seen: list[int] = []
    one.layers[0].register_forward_hook(lambda *_: seen.append(1))  # type: ignore[arg-type]
    model(tokens)
    assert not seen


def test_loaded_adapters_write_as_each_alone(folders: Path) -> None:
    together = transom.load(folders / "base", transom.Generator,
                            adapters={str(i): folders / str(i) for i in range(N)})  # fmt: skip
    said = {}
    for name, one in together.adapters.items():
        alone = transom.load(folders / name)
        merged = transom.load(folders / name, merge=True)
        said[name] = one.generate("a text", max_tokens=12, temperature=0).tokens
        assert said[name] == alone.generate("a text", max_tokens=12, temperature=0).tokens
        assert said[name] == merged.generate("a text", max_tokens=12, temperature=0).tokens
    base = together.generate("a text", max_tokens=12, temperature=0).tokens
    assert base == transom.load(folders / "base").generate("a text", max_tokens=12, temperature=0).tokens
    assert len({*map(tuple, said.values()), tuple(base)}) > 4
    # At once, in one engine.
    engine = together._local
    requests = [one.request("a text", one.params({"max_tokens": 12, "temperature": 0}))[0]
                for one in together.adapters.values()]  # fmt: skip
    for _ in engine.run(requests):
        pass
    assert [request.completion().tokens for request in requests] == list(said.values())


def test_what_cannot_stand_side_by_side_is_refused(folders: Path, tmp_path: Path) -> None:
    other = load_model(folders / "base")
    other.embed.weight.data += 1
    (tmp_path / "other").mkdir()
    save_model(tmp_path / "other", other, Tokenizer.load(folders / "base"))
    with pytest.raises(Refused, match="not those that the adapter"):
        transom.load(tmp_path / "other", adapters={"a": folders / "0"})
    with pytest.raises(Refused, match="no such folder"):
        transom.load(folders / "base", adapters={"a": tmp_path / "nowhere"})
