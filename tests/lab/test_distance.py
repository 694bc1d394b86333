"""How far back the gradient reaches: the family in one figure, the cut of the residual path, the words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from transom.__main__ import run
from transom.errors import Refused
from transom.insight.hooks import Edit, edited
from transom.intervals import Estimate
from transom.lab.distance import FLAT, Line, distance, family, measure, without_residual


def test_the_whole_family_is_measured_and_drawn(tmp_path: Path) -> None:
    out = tmp_path / "distance.png"
    found = distance(length=24, drawings=2, out=out)
    assert out.read_bytes().startswith(b"\x89PNG") and out.stat().st_size > 20_000
    said = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    names = [line["name"] for line in said["lines"]]
    assert names == [member.name for member in family()] and len(names) == 8
    for line in found.lines:
        assert len(line.norms) == 25 and line.norms[0] == pytest.approx(1.0)
        assert line.name in str(found) and line.slope.low <= line.slope.value <= line.slope.high
    slopes = {line.name: line.slope.value for line in found.lines}
    assert slopes["RNN, torch's init"] < slopes["GRU"] < slopes["LSTM"]
    assert slopes["LSTM, torch's init"] < -0.1 < slopes["Transformer, 8 layers"]
    newest = {line.name: line.newest for line in found.lines}
    assert newest["8 layers, no residual"] < 1e-2 * newest["Transformer, 8 layers"]


def test_without_its_residual_path_a_block_passes_on_its_branches_alone() -> None:
    model: Any = family()[-1].make(0).double().eval()
    tokens = torch.tensor([[5, 6, 7, 8]])
    inside: list[torch.Tensor] = []
    keep = [Edit(model.layers[0], "in", inside.append), Edit(model.layers[0].attn_norm, "out", inside.append),
            Edit(model.layers[0].attn, "out", inside.append)]  # fmt: skip
    middle: list[torch.Tensor] = []
    after: list[torch.Tensor] = []
    last = [Edit(model.layers[0].ffn_norm, "in", middle.append), Edit(model.layers[0], "out", after.append)]
    with torch.no_grad(), edited([*keep, *without_residual(model), *last]):
        model(tokens)
    block = model.layers[0]
    torch.testing.assert_close(middle[0], inside[2])
    with torch.no_grad():
        torch.testing.assert_close(after[0], block.ffn(block.ffn_norm(middle[0])))


def test_more_distance_is_less_gradient_at_the_same_slope() -> None:
    member = next(member for member in family() if member.name == "GRU")
    short, long = measure(member, 16, 2), measure(member, 48, 2)
    assert short.norms == pytest.approx(long.norms[:17], rel=0.9)
    assert long.slope.value == pytest.approx(short.slope.value, rel=0.6)
    assert long.norms[-1] < 1e-2 * short.norms[-1]


@pytest.mark.parametrize(
    "low, high, says",
    [(-0.3, -0.2, "half is lost in 1.2"), (0.01, 0.02, "grows"), (-FLAT / 2, FLAT, "does not depend"),
     (-0.2, 0.1, "undecided"), (-0.01, 0.01, "undecided")],
)  # fmt: skip
def test_the_words_follow_from_the_interval(low: float, high: float, says: str) -> None:
    line = Line("x", [1.0], [1.0], [1.0], Estimate((low + high) / 2, low, high), 1.0)
    assert says in line.says


def test_the_verb_and_its_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "d.png")
    assert run(["lab", "distance", "--length", "8", "--drawings", "2", "--out", out, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["lines"]) == 8
    assert run(["lab", "distance", "--length", "4", "--out", out]) == 2
    assert "at least 8 and 2" in capsys.readouterr().err
    assert run(["lab", "cat", "--pairs", "2"]) == 2
    with pytest.raises(Refused, match="encoder"):
        distance([str(encoder_folder(tmp_path))], length=8, drawings=2)


def encoder_folder(tmp_path: Path) -> Path:
    from transom.checkpoint.huggingface import save_model
    from transom.model.config import ModelConfig
    from transom.model.transformer import Transformer

    config = ModelConfig(
        vocab_size=40, dim=16, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=8, ffn_dim=32, max_len=16,
        kind="encoder", norm="layer", norm_position="after", position="learned", segments=2, embed_norm=True,
        gated=False, activation="gelu", qkv_bias=True, out_bias=True, ffn_bias=True, head_transform=True,
        head_bias=True,
    )  # fmt: skip
    folder = tmp_path / "encoder"
    folder.mkdir()
    save_model(folder, Transformer(config))
    return folder
