"""`look` around our own models: every kind of attention, what flows between layers, and what is refused."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

import transom
from transom.data.tokenizer import train_tokenizer
from transom.errors import Refused
from transom.inference.generator import Generator
from transom.insight.maps import Mismatch
from transom.model.attend import Rule, attend_plain
from transom.model.build import build
from transom.model.config import Experts, ModelConfig

SMALL = ModelConfig(60, 32, 2, 4, 2, head_dim=8, ffn_dim=48, max_len=64)


def model(**changes: object) -> nn.Module:
    return build(SMALL.with_(**changes)).eval()


def ids(batch: int = 2, length: int = 13) -> Tensor:
    return torch.randint(3, 60, (batch, length), generator=torch.Generator().manual_seed(1))


KINDS = {
    "plain": {},
    "window": {"window": 4},
    "soft-cap": {"attn_softcap": 3.0},
    "soft-cap and window": {"attn_softcap": 3.0, "window": 4},
    "relative bias": {"position": "relative"},
    "scale": {"attn_scale": 0.7},
    "encoder": {"kind": "encoder", "head_transform": True, "head_bias": True},
}


def written_out(net: nn.Module, run) -> list[Tensor]:
    """The maps of every attention of a pass, as the plain twin makes them."""
    maps = []

    def spy(query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        eye = torch.eye(key.shape[1]).expand(len(key), key.shape[2], -1, -1).transpose(1, 2)
        maps.append(
            attend_plain(query, key, eye, rule).transpose(1, 2)
        )  # values of one-hot rows: the weights
        return attend_plain(query, key, value, rule)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transom.model.attention.attend", spy)
        run(net)
    return maps


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_maps_of_our_models_equal_their_plain_twin(kind: str, packed: bool) -> None:
    net, tokens = model(**KINDS[kind]), ids()
    documents = torch.tensor([[0] * 5 + [1] * 8, [0] * 10 + [-1] * 3]) if packed else None

    def run(net: nn.Module) -> Tensor:
        return net(tokens, documents=documents)

    bare, expected = run(net), written_out(net, run)
    with transom.look(net) as seen:
        assert torch.equal(run(net), bare)
    assert [call.layer for call in seen.calls] == [0, 1]
    for layer, weights in enumerate(expected):
        for batch in range(2):
            found = seen.attention(layer, batch=batch)
            torch.testing.assert_close(found.weights, weights[batch], rtol=0, atol=1e-6)


@torch.no_grad()
def test_all_attentions_of_our_encoder_decoder() -> None:
    net = model(kind="encoder-decoder", n_encoder_layers=3, position="sinusoidal")
    source, target = ids(length=9), ids(length=7)
    documents = torch.tensor([[0] * 9, [0] * 6 + [-1] * 3])

    def run(net: nn.Module) -> Tensor:
        return net(target, memory=net.encode(source, documents=documents))

    expected = written_out(net, run)
    with transom.look(net) as seen:
        run(net)
    kinds = [(call.kind, call.layer) for call in seen.calls]
    assert kinds == [("encoder", i) for i in range(3)] + [
        ("self", 0),
        ("cross", 0),
        ("self", 1),
        ("cross", 1),
    ]
    for (kind, layer), weights in zip(kinds, expected, strict=True):
        found = seen.attention(layer, kind=kind, batch=1).weights
        torch.testing.assert_close(found, weights[1], rtol=0, atol=1e-6)
    with pytest.raises(Refused, match="different texts"):
        _ = seen.heads("cross").previous
    assert seen.heads("cross").entropy.shape == (2, 4)


def test_blocked_attention_in_training_is_seen() -> None:
    net = build(SMALL)
    with transom.look(net) as seen:
        hidden = net(ids(), dtype=torch.bfloat16)
    assert "Blocked" in str(_functions(hidden.grad_fn))  # the path that short rows take in bfloat16
    for layer in range(2):
        weights = seen.attention(layer).weights
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, 13), rtol=0, atol=2e-2)
    hidden.sum().backward()


def _functions(node) -> set[str]:
    names, ahead = set(), [node]
    while ahead:
        node = ahead.pop()
        if node is not None:
            names.add(node.name())
            ahead += [following for following, _ in node.next_functions]
    return names


WRONG = {
    "soft-cap": ({}, {"softcap": 1.0}),
    "no soft-cap": ({"attn_softcap": 1.0}, {"softcap": None}),
    "narrower window": (
        {"window": 6},
        {"mask": Rule(causal=True, window=3).mask(13, 13, torch.device("cpu"))},
    ),
    "wider window": ({"window": 3}, {"mask": Rule(causal=True, window=6).mask(13, 13, torch.device("cpu"))}),
    "no window": ({"window": 3}, {"mask": None, "causal": True}),
    "scale": ({}, {"scale": 0.3}),
    "bias": ({"position": "relative"}, {"bias": None, "causal": True}),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_wrong_rule_is_refused_with_the_reason(kind: str, precision: torch.dtype) -> None:
    changes, wrong = WRONG[kind]
    net = model(**changes)
    for layer in net.layers:
        layer.attn.q_proj.weight.mul_(8)  # so that scores are far from 0
    with transom.look(net.to(precision)) as seen:
        net(ids())
    call = seen.calls[1]
    assert call.check().ok
    planted = call.under(**wrong)
    assert not planted.check().ok
    with pytest.raises(Mismatch, match="differ from the kernel"):
        planted.rows(slice(0, 13))
    with pytest.raises(Mismatch, match="not shown"):
        list(planted.tiles())


@torch.no_grad()
def test_keys_overwritten_after_the_pass_are_noticed() -> None:
    net = model()
    with transom.look(net) as seen:
        net(ids())
    seen.calls[0].kept.key[:, :, 3] += 1
    with pytest.raises(Mismatch, match="overwritten"):
        seen.attention(0)


@torch.no_grad()
def test_rows_heads_and_the_grid_are_parts_of_the_whole() -> None:
    net, tokens = model(), torch.tensor([[5, 6, 7, 5, 6, 7, 5, 9]])
    with transom.look(net) as seen:
        net(tokens)
    whole = seen.attention(1).weights
    torch.testing.assert_close(seen.attention(1, 2).weights, whole[2])
    torch.testing.assert_close(seen.attention(1, 2, -1).weights, whole[2, -1])
    torch.testing.assert_close(seen.attention(1, row=3).weights, whole[:, 3])
    grid, places = seen.heads(), torch.arange(8)
    apart = (places[:, None] - places).abs().float()
    same = ((tokens[0][:, None] == tokens[0]) & (apart > 0)).float()
    torch.testing.assert_close(grid.entropy[1], torch.special.entr(whole).sum(-1).mean(-1))
    torch.testing.assert_close(grid.distance[1], (whole * apart).sum(-1).mean(-1))
    torch.testing.assert_close(grid.sink[1], whole[:, 1:, 0].mean(-1))
    torch.testing.assert_close(grid.peak[1], whole.amax(-1).mean(-1))
    torch.testing.assert_close(grid.previous[1], whole.diagonal(-1, 1, 2).mean(-1))
    torch.testing.assert_close(grid.duplicate[1], (whole * same).sum(-1)[:, same.any(-1)].mean(-1))
    torch.testing.assert_close(seen.received(1), whole.mean(1))
    small = seen.thumbnails(1, 4)
    assert small.shape == (4, 4, 4)
    torch.testing.assert_close(
        small / 255, whole.unflatten(1, (4, 2)).mean(2).unflatten(2, (4, 2)).sum(-1), rtol=0, atol=2e-3
    )
    best = grid.ranked("sink")[0]
    assert best[2] == float(grid.sink.max())


@torch.no_grad()
def test_the_stream_between_layers() -> None:
    net, tokens = model(), ids()
    with transom.look(net, keep=("resid", "ffn")) as seen:
        hidden = net(tokens)
    torch.testing.assert_close(seen.resid(0), net.embed(tokens))
    assert seen.resid(0, "after") is not None and torch.equal(seen.resid(0, "after"), seen.resid(1))
    torch.testing.assert_close(seen.resid(1, "middle") + seen.ffn(1), seen.resid(1, "after"))
    torch.testing.assert_close(net.final_norm(seen.resid(1, "after")), hidden)
    torch.testing.assert_close(net.layers[0].ffn.down_proj(seen.ffn(0, "inner")), seen.ffn(0))
    assert torch.equal(seen.point("blocks.1.hook_resid_mid"), seen.resid(1, "middle"))


@torch.no_grad()
def test_the_router_s_shares() -> None:
    net = model(experts=Experts(n_experts=4, n_active=2, ffn_dim=16))
    with transom.look(net, keep="router") as seen:
        net(ids())
    shares = seen.router(1)
    assert shares.shape == (26, 4)
    assert ((shares > 0).sum(-1) == 2).all()
    torch.testing.assert_close(shares.sum(-1), torch.ones(26))


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@torch.no_grad()
def test_gates_of_our_recurrences_and_of_torch_s(cell: str) -> None:
    net = model(cell=cell)
    theirs = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[cell](8, 6, num_layers=2, batch_first=True)
    with transom.look(net, keep="states") as seen:
        hidden = net(ids())
    torch.testing.assert_close(seen.states(1).hidden, hidden)
    for gate in seen.states(0).gates.values():
        assert gate.shape == (2, 13, 32)
    with transom.look(theirs, keep="states") as seen:
        out, _ = theirs(torch.randn(2, 5, 8))
    torch.testing.assert_close(seen.states(1).hidden, out)
    if cell == "lstm":
        states = seen.states(1)
        torch.testing.assert_close(states.gates["output"] * torch.tanh(states.memory), out)


def test_nothing_is_left_behind_even_when_the_body_fails() -> None:
    net = model()
    with pytest.raises(ZeroDivisionError), transom.look(net, keep=("resid", "ffn", "attention")):
        net(ids())
        raise ZeroDivisionError
    for module in net.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert torch.overrides._len_torch_function_stack() == 0


def test_another_thread_is_not_looked_at() -> None:
    net, other = model(), ids(1, 5)
    with transom.look(net, keep=("attention", "resid")) as seen:
        thread = threading.Thread(target=lambda: net(other))
        thread.start()
        thread.join()
        net(ids())
    assert [call.shape for call in seen.calls] == [(2, 4, 13, 13)] * 2
    assert seen.resid(0).shape == (2, 13, 32)


@torch.no_grad()
def test_what_torch_s_own_attention_module_runs_is_seen() -> None:
    net = nn.TransformerDecoderLayer(16, 4, 32, batch_first=True).eval()
    with transom.look(net) as seen:
        net(torch.randn(1, 5, 16), torch.randn(1, 7, 16))
    assert [(call.kind, call.shape, call.check().ok) for call in seen.calls] == [
        ("self", (1, 4, 5, 5), True), ("cross", (1, 4, 5, 7), True)
    ]  # fmt: skip


@torch.no_grad()
def test_a_point_that_cannot_be_had_is_refused_with_the_reason() -> None:
    net, tokens = model(), ids()
    with transom.look(net, layers=[1]) as seen:
        net(tokens)
    for answer_score, reason in (
        (lambda: seen.attention(0), "no self attention was seen in layer 0"),
        (lambda: seen.attention(1, head=4), "4 heads"),
        (lambda: seen.attention(1, row=13), "13 rows"),
        (lambda: seen.attention(1, kind="cros"), "no kind of attention"),
        (lambda: seen.resid(1), "'resid' was not kept"),
        (lambda: seen.point("blocks.1.hook_rezid_pre"), "did you mean"),
        (lambda: seen.heads().figure("entropi"), "did you mean 'entropy'"),
    ):
        with pytest.raises(Refused, match=reason):
            answer_score()
    with transom.look(net, keep=("router", "states", "attention")) as seen:
        pass
    for answer_score, reason in (
        (lambda: seen.attention(0), "no attention was seen"),
        (lambda: seen.router(0), "no router"),
        (lambda: seen.states(0), "it is none"),
        (lambda: seen.tokens, "no ids were read"),
    ):
        with pytest.raises(Refused, match=reason):
            answer_score()
    with transom.look(net) as seen:
        net(tokens)
        net(tokens[:, :4])
    with pytest.raises(Refused, match="2 times"):
        seen.attention(0)
    assert seen.attention(0, call=1).weights.shape == (4, 4, 4)
    with pytest.raises(Refused, match="did you mean 'attention'"), transom.look(net, keep="atention"):
        pass
    with pytest.raises(Refused, match="compiled"), transom.look(torch.compile(net, backend="eager")):
        pass
    with pytest.raises(Refused, match="nn.Module"), transom.look(3):
        pass


def test_attention_dropout_is_refused() -> None:
    class Drops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.5)

    net = Drops()
    with transom.look(net) as seen:
        net(torch.randn(1, 2, 5, 8))
    assert "eval()" in seen.calls[0].check().reason
    with pytest.raises(Mismatch, match=r"dropout 0.5 was on"):
        seen.calls[0].rows(slice(0, 5))


@torch.no_grad()
def test_a_model_that_was_looked_at_compiles_as_one_graph() -> None:
    net = model()
    with transom.look(net, keep=("attention", "resid", "ffn")):
        bare = net(ids())
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(ids()), bare)


@torch.no_grad()
def test_the_attention_of_a_recurrent_translator() -> None:
    net = model(cell="lstm", kind="encoder-decoder", n_encoder_layers=1)
    source, target = ids(length=9), ids(length=7)
    with transom.look(net) as seen:
        memory = net.encode(source)
        hidden, _ = net._through(net._embedded(target, None), net.first_state(memory))
        net(target, memory=memory)
    expected = net.attn.pattern(hidden, net.attn.k_proj(memory.hidden), None)
    found = seen.attention(0, 0, kind="cross", batch=1)
    torch.testing.assert_close(found.weights, expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "encoder"])
def test_generation_is_seen_step_by_step(kind: str, dtype: torch.dtype) -> None:
    tokenizer = train_tokenizer("bytes", iter(["any text"]), 258)
    net = model(vocab_size=tokenizer.vocab_size, **KINDS[kind]).to(dtype)  # bfloat16: from packed matrices
    gpt = Generator(net, tokenizer)
    with transom.look(gpt) as seen:
        text = gpt.generate("abcd", max_tokens=3, temperature=0)
    steps = [call for call in seen.calls if call.layer == 1]
    assert [call.shape[2:] for call in steps] == [(4, 4), (1, 5), (1, 6)]
    with torch.no_grad(), transom.look(net) as whole:
        net(torch.tensor([[*tokenizer.encode("abcd"), *text.tokens[:-1]]]))
    near = 1e-5 if dtype == torch.float32 else 2e-2
    for call, row in zip(steps[1:], (4, 5), strict=True):
        expected = whole.attention(1, row=row).weights[:, : row + 1]
        torch.testing.assert_close(call.rows(slice(0, 1))[0][:, 0], expected, rtol=0, atol=near)


@torch.no_grad()
def test_duplicates_are_of_tokens_not_of_positions() -> None:
    tokens = torch.tensor([[5, 6, 7, 5, 6, 7]])
    for net in (model(position="learned", segments=2), model(kind="encoder", position="learned", segments=2)):
        with transom.look(net) as seen:
            net(tokens)
        assert torch.equal(seen.tokens, tokens)
        whole, same = seen.attention(0).weights, (tokens[0][:, None] == tokens[0]) & ~torch.eye(6).bool()
        torch.testing.assert_close(seen.heads().duplicate[0], (whole * same).sum(-1).mean(-1))
