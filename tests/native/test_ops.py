"""Every op of every level against PyTorch in float64, on odd sizes, and what pads a row stays zero."""

from __future__ import annotations

import ctypes

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.native.kernels import DTYPES, Ops, levels, library
from tests.scale import scaled
from transom.model.attend import Rule, attend_plain
from transom.model.layers import ACTIVATIONS
from transom.native import abi
from transom.native.abi import BF16, F32, I8, Op, Part

LEVELS = [pytest.param(level, format, id=f"{level}-{name}") for level in (levels() or ["scalar"])
          for name, format in (("float32", F32), ("bfloat16", BF16))]  # fmt: skip
sizes = st.one_of(st.integers(1, 40), st.sampled_from([48, 64, 96, 100, 160]))
rows = st.one_of(st.integers(1, 20), st.sampled_from([31, 32, 33, 50, 65]))


def drawn(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def rounded(x: Tensor, format: int) -> Tensor:
    """What the kernels are given of float64 numbers, as float64."""
    return x.to(DTYPES[format]).double()


def close(found: Tensor, expected: Tensor, format: int, steps: float = 1.0) -> None:
    """Within float32's rounding of sums, and one rounding where the result is written as bfloat16."""
    near = 2e-5 * max(1.0, float(expected.abs().max()))
    rounding = steps * 2.0**-8 if format == BF16 else 0.0
    torch.testing.assert_close(found.double(), expected, rtol=rounding + 2e-5, atol=near)


def filled(ops: Ops, number: int, values: Tensor) -> None:
    """Write rows into a buffer; what pads them is left as it is."""
    ops.buffer(number, len(values))[:, : values.shape[1]] = values.to(DTYPES[ops.buffers[number][1]])


@pytest.mark.parametrize(("level", "format"), LEVELS)
@given(m=rows, n=sizes, k=sizes, seed=st.integers(0, 99), biased=st.booleans(), threads=st.integers(1, 2))
@settings(max_examples=scaled(60))
def test_product(level, format, m, n, k, seed, biased, threads):
    x, weight = rounded(drawn(seed, m, k), format), rounded(drawn(seed + 1, n, k), format)
    bias = drawn(seed + 2, n).float().double() if biased else None
    ops = Ops(library(level), format, [(k, format), (n, F32)])
    ops.plan([Op(kind=abi.PRODUCT, in_=0, out=1, matrix=ops.matrix(weight), bias=ops.floats(bias))])
    filled(ops, 0, x)
    ops.run([0] * m, threads=threads)
    out = ops.buffer(1, m)
    close(out[:, :n], F.linear(x, weight, bias), F32)
    assert not out[:, n:].any(), "padding is read by the next product: it must stay 0"


@pytest.mark.parametrize(("level", "format"), LEVELS)
@given(m=rows, n=sizes, k=sizes, seed=st.integers(0, 99))
@settings(max_examples=scaled(30))
def test_product_into_the_residual_stream(level, format, m, n, k, seed):
    x, weight, stream = rounded(drawn(seed, m, k), format), rounded(drawn(seed, n, k), format), drawn(3, m, n)
    ops = Ops(library(level), format, [(k, format), (n, F32)])
    ops.plan([Op(kind=abi.PRODUCT, in_=0, out=1, store=abi.ADD, matrix=ops.matrix(weight))])
    filled(ops, 0, x)
    filled(ops, 1, stream)
    ops.run([0] * m)
    close(ops.buffer(1, m)[:, :n], stream.float().double() + F.linear(x, weight), F32)


@pytest.mark.parametrize(("level", "format"), LEVELS)
@pytest.mark.parametrize("name", [*ACTIVATIONS, "tanh"])
@pytest.mark.parametrize("gated", [False, True])
def test_activations(level, format, name, gated):
    m, n, k = 7, 48, 24
    x, up, gate = (
        rounded(drawn(i, *shape, scale=1.5), format) for i, shape in enumerate([(m, k), (n, k), (n, k)])
    )
    both = torch.stack([w.unflatten(0, (-1, 16)) for w in (gate, up)], 1).flatten(0, 2) if gated else up
    ops = Ops(library(level), format, [(k, format), (n, format)])
    ops.plan([
        Op(kind=abi.PRODUCT, in_=0, out=1, matrix=ops.matrix(both), store=abi.GATE if gated else abi.WRITE,
           activation=abi.ACTIVATIONS[name])
    ])  # fmt: skip
    filled(ops, 0, x)
    ops.run([0] * m)
    act = ACTIVATIONS.get(name, torch.tanh)
    expected = act(x @ gate.T) * (x @ up.T) if gated else act(x @ up.T)
    close(ops.buffer(1, m)[:, :n], expected, format)


@pytest.mark.parametrize(("level", "format"), LEVELS)
@given(m=rows, n=sizes, k=sizes, seed=st.integers(0, 99))
@settings(max_examples=scaled(30))
def test_logits_of_wanted_rows(level, format, m, n, k, seed):
    stream, weight = drawn(seed, m, k).float().double(), rounded(drawn(seed, n, k), format)
    scale, wanted = 0.5, [(7 * i + seed) % m for i in range(min(m, 5))]
    norm, bias = drawn(4, k).float().double(), drawn(5, n).float().double()
    ops = Ops(library(level), format, [(k, F32), (k, format)])
    ops.plan([
        Op(kind=abi.NORM, in_=0, out=1, wanted=1, eps=1e-5, scale=scale, weight=ops.floats(norm)),
        Op(kind=abi.PRODUCT, in_=1, wanted=1, store=abi.RESULT, matrix=ops.matrix(weight),
           bias=ops.floats(bias)),
    ])  # fmt: skip
    filled(ops, 0, stream)
    found = ops.run([0] * m, wanted=wanted, vocab=n)
    normed = F.rms_norm(stream[wanted], (k,), norm, 1e-5) * scale
    torch.testing.assert_close(ops.buffer(1, len(wanted))[:, :k].double(), normed, rtol=2.0**-8, atol=1e-4)
    read = ops.buffer(1, len(wanted))[:, :k].double()
    close(found, F.linear(read, weight, bias), F32)


@pytest.mark.parametrize(("level", "format"), LEVELS)
@given(m=rows, k=sizes, seed=st.integers(0, 99), kind=st.sampled_from(["rms", "layer", "none"]),
       replaces=st.booleans())  # fmt: skip
@settings(max_examples=scaled(40))
def test_norms(level, format, m, k, seed, kind, replaces):
    x = (drawn(seed, m, k) * 3 + 1).float().double()
    weight, bias = drawn(1, k).float().double(), drawn(2, k).float().double()
    ops = Ops(library(level), format, [(k, F32), (k, format)])
    layer = kind == "layer"
    ops.plan([
        Op(kind=abi.NORM, in_=0, out=1, eps=1e-5, scale=1.0, layer_norm=int(layer),
           weight=None if kind == "none" else ops.floats(weight), bias=ops.floats(bias) if layer else None,
           store=abi.REPLACE if replaces else abi.WRITE)
    ])  # fmt: skip
    filled(ops, 0, x)
    ops.run([0] * m)
    expected = F.layer_norm(x, (k,), weight, bias, 1e-5) if layer else F.rms_norm(x, (k,), weight, 1e-5)
    expected = x if kind == "none" else expected
    close(ops.buffer(1, m)[:, :k], expected, format)
    close(ops.buffer(0, m)[:, :k], expected if replaces else x, F32)
    assert not ops.buffer(1, m)[:, k:].any() and not ops.buffer(0, m)[:, k:].any()


@pytest.mark.parametrize(("level", "format"), LEVELS)
@given(k=sizes, lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), most=st.sampled_from([0, 1, 3]),
       result=st.booleans(), threads=st.integers(1, 2), seed=st.integers(0, 99))  # fmt: skip
@settings(max_examples=scaled(40))
def test_means_of_texts(level, format, k, lengths, most, result, threads, seed):
    x = drawn(seed, sum(lengths), k).float().double()
    ops = Ops(library(level), format, [(k, F32), (k, format)])
    ops.plan([Op(kind=abi.POOL, in_=0, out=1, window=most, store=abi.RESULT if result else abi.WRITE)])
    filled(ops, 0, x)
    firsts = [sum(lengths[:i]) for i in range(len(lengths))]
    found = ops.run([0] * sum(lengths), [(0, n) for n in lengths], wanted=firsts, vocab=k, threads=threads)
    expected = torch.stack([part[: most or None].mean(0) for part in x.split(lengths)])
    close(found if result else ops.buffer(1, len(lengths))[:, :k], expected, F32 if result else format)
    assert not ops.buffer(1, len(lengths))[:, k:].any()


@pytest.mark.parametrize(("level", "format"), LEVELS)
@given(k=sizes, spans=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), min_size=1, max_size=4),
       kinds=st.sampled_from([0, 1, 3]))  # fmt: skip
@settings(max_examples=scaled(30))
def test_embeddings(level, format, k, spans, kinds):
    table, learned, types = (rounded(drawn(i, n, k), format) for i, n in enumerate((30, 45, 3)))
    tokens = [(5 * i + i * i) % 30 for i in range(sum(n for _, n in spans))]
    ops = Ops(library(level), format, [(k, F32)])
    ops.plan([
        Op(kind=abi.EMBED, out=0, scale=2.0, table=ops.keep(table.to(DTYPES[format])), position_offset=2,
           positions=ops.keep(learned.to(DTYPES[format])), segments=ops.keep(types.to(DTYPES[format])))
    ])  # fmt: skip
    of_tokens = [(i // 3) % kinds for i in range(len(tokens))] if kinds else []
    ops.run(tokens, spans, segments=of_tokens)
    places = [place for start, n in spans for place in range(start, start + n)]
    expected = table[tokens] * 2 + learned[[place + 2 for place in places]]
    expected += types[of_tokens or [0] * len(tokens)]
    close(ops.buffer(0, len(tokens))[:, :k], expected, F32)


def rotated(x: Tensor, places: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """x (N, H, K) turned by pairs of channels i and i + K/2."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cosines[places][:, None].double(), sines[places][:, None].double()
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Row:
    """A row of the cache for `test_attention`: what it has read, and what is to be read next."""

    def __init__(self, before: int, n: int, first_page: int) -> None:
        self.before, self.n = before, n
        used = -(-(before + n) // 16)
        self.pages = [first_page + i for i in range(used)][::-1]  # not in the order of memory


def attention(level, format, heads, width, *, n_pages):
    """Buffers for a step of attention (projections, queries, what is mixed), and the shape of its ops."""
    n_heads, n_kv_heads = heads
    ops = Ops(
        library(level), format,
        [((n_heads + 2 * n_kv_heads) * width, F32), (n_heads * (-(-width // 32) * 32), format),
         (n_heads * width, format)],
        kv_heads=n_kv_heads, head_dim=width, n_pages=n_pages,
    )  # fmt: skip
    return ops, dict(n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=width)


def spoil(ops, n_pages, n_kv_heads):
    """What was never written to pages, or written by another, may hold anything."""
    for page in range(n_pages):
        for head in range(n_kv_heads):
            ops.page(page, head, 0).fill_(torch.nan)
            ops.page(page, head, 1).fill_(torch.nan)


@pytest.mark.parametrize(("level", "format"), LEVELS)
@given(
    rows=st.lists(st.tuples(st.integers(0, 70), st.sampled_from([1, 1, 2, 5, 17, 40])), min_size=1,
                  max_size=4),
    heads=st.sampled_from([(1, 1), (3, 1), (4, 2), (6, 2)]), width=st.sampled_from([4, 18, 32, 64, 80]),
    window=st.sampled_from([0, 1, 5, 40]), norm=st.sampled_from(["", "head", "projection"]),
    turned=st.booleans(), threads=st.integers(1, 2), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=scaled(60))
def test_attention_over_pages(level, format, rows, heads, width, window, norm, turned, threads, seed):
    n_heads, n_kv_heads = heads
    asked, first = [], 1
    for before, n in rows:
        asked.append(Row(before, n, first))
        first += len(asked[-1].pages)
    wide = (n_heads + 2 * n_kv_heads) * width
    ops, shape = attention(level, format, heads, width, n_pages=first)
    over = (n_heads * width, n_kv_heads * width) if norm == "projection" else (width, width)
    norms = [drawn(7 + i, size).float().double() + 2 for i, size in enumerate(over)] if norm else [None, None]
    scale = 0.7 / width**0.5
    ops.plan([
        Op(kind=abi.HEADS, in_=0, out=1, eps=1e-5, whole_norm=int(norm == "projection"),
           weight=ops.floats(norms[0]), bias=ops.floats(norms[1]), **shape),
        Op(kind=abi.ATTEND, in_=1, out=2, window=window, scale=scale, **shape),
    ])  # fmt: skip
    angles = None
    if turned:
        turn = torch.arange(160)[:, None] * torch.logspace(0, -2, width // 2)
        angles = turn.cos().float(), turn.sin().float()
    spoil(ops, first, n_kv_heads)
    given_ = [drawn(seed + i, row.before + row.n, wide).float() for i, row in enumerate(asked)]
    early = [(row, x) for row, x in zip(asked, given_, strict=True) if row.before]
    if early:
        filled(ops, 0, torch.cat([x[: row.before] for row, x in early]))
        ops.run([0] * sum(row.before for row, _ in early), [(0, row.before) for row, _ in early],
                [row.pages for row, _ in early], threads=threads, angles=angles)  # fmt: skip
    total = sum(row.n for row in asked)
    filled(ops, 0, torch.cat([x[row.before :] for row, x in zip(asked, given_, strict=True)]))
    spans, pages = [(row.before, row.n) for row in asked], [row.pages for row in asked]
    ops.run([0] * total, spans, pages, threads=threads, angles=angles)
    found, at = ops.buffer(2, total), 0
    for row, x in zip(asked, given_, strict=True):
        query, key, value = _heads_of(x.double(), heads, width, norm, norms, angles, format)
        rule = Rule(causal=True, window=window or None, scale=scale)
        expected = attend_plain(query[None], key[None], value[None], rule)[0].flatten(1)[row.before :]
        mine = found[at : at + row.n, : n_heads * width].double()
        at += row.n
        # Weights are rounded to bfloat16 before they are multiplied with values of size up to 4.
        torch.testing.assert_close(mine, expected, rtol=2e-2 if format == BF16 else 1e-4,
                                   atol=2e-2 if format == BF16 else 1e-5)  # fmt: skip


@pytest.mark.parametrize(("level", "format"), LEVELS)
@given(
    lengths=st.lists(st.one_of(st.integers(1, 70), st.sampled_from([1, 16, 17])), min_size=1, max_size=4),
    long=st.sampled_from([(), (), (1024,), (1030,)]),
    heads=st.sampled_from([(1, 1), (3, 3), (4, 2)]), width=st.sampled_from([4, 18, 32, 64, 80]),
    threads=st.integers(1, 2), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=scaled(40))
def test_attention_to_all_of_a_text(level, format, lengths, long, heads, width, threads, seed):
    (n_heads, n_kv_heads), lengths = heads, [*lengths, *long]
    wide, total = (n_heads + 2 * n_kv_heads) * width, sum(lengths)
    pages, first = [], 0
    for n in lengths:
        pages.append(Row(0, n, first).pages)
        first += len(pages[-1])
    ops, shape = attention(level, format, heads, width, n_pages=first)
    ops.plan([
        Op(kind=abi.HEADS, in_=0, out=1, **shape),
        Op(kind=abi.ATTEND, in_=1, out=2, bidirectional=1, scale=width**-0.5, **shape),
    ])  # fmt: skip
    spoil(ops, first, n_kv_heads)
    x = drawn(seed, total, wide).float()
    filled(ops, 0, x)
    ops.run([0] * total, [(0, n) for n in lengths], pages, threads=threads)
    together = ops.buffer(2, total)[:, : n_heads * width].clone()
    for i, (own, found) in enumerate(zip(x.split(lengths), together.split(lengths), strict=True)):
        query, key, value = _heads_of(own.double(), heads, width, "", (None, None), None, format)
        expected = attend_plain(query[None], key[None], value[None], Rule(scale=width**-0.5))[0].flatten(1)
        torch.testing.assert_close(found.double(), expected, rtol=2e-2 if format == BF16 else 1e-4,
                                   atol=2e-2 if format == BF16 else 1e-5)  # fmt: skip
        filled(ops, 0, own)
        ops.run([0] * len(own), [(0, len(own))], [pages[i]])
        assert torch.equal(ops.buffer(2, len(own))[:, : n_heads * width], found), "beside others, and alone"


def relative(n_heads: int, reach: int) -> Tensor:
    """What distances -reach .. reach - 1 add to the scores of each head, (H, 2 reach)."""
    return drawn(5, n_heads, 2 * reach).float().double()


def biases(table: Tensor, n: int) -> Tensor:
    """(1, H, n, n) of queries and keys at 0 .. n - 1."""
    places = torch.arange(n)
    return table[:, places - places[:, None] + table.shape[1] // 2][None]


@pytest.mark.parametrize(("level", "format"), LEVELS)
@given(
    n=st.one_of(st.integers(1, 70), st.sampled_from([16, 17, 1030])), early=st.integers(0, 60),
    heads=st.sampled_from([(1, 1), (3, 3), (4, 2)]), width=st.sampled_from([4, 18, 64]),
    causal=st.booleans(), threads=st.integers(1, 2), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=scaled(40))
def test_attention_with_what_distances_add(level, format, n, early, heads, width, causal, threads, seed):
    """In one step, and where it looks back only in two."""
    (n_heads, n_kv_heads), early = heads, min(early, n - 1) if causal else 0
    pages = Row(0, n, 0).pages
    ops, shape = attention(level, format, heads, width, n_pages=len(pages))
    table = relative(n_heads, n + 32)
    ops.plan([
        Op(kind=abi.HEADS, in_=0, out=1, **shape),
        Op(kind=abi.ATTEND, in_=1, out=2, bidirectional=int(not causal), scale=0.7, reach=n + 32,
           weight=ops.keep((table * 1.4426950408889634).float()), **shape),
    ])  # fmt: skip
    spoil(ops, len(pages), n_kv_heads)
    x = drawn(seed, n, (n_heads + 2 * n_kv_heads) * width).float()
    found = list[Tensor]()
    for begin, end in ((0, early), (early, n)) if early else ((0, n),):
        filled(ops, 0, x[begin:end])
        ops.run([0] * (end - begin), [(begin, end - begin)], [pages], threads=threads)
        found.append(ops.buffer(2, end - begin)[:, : n_heads * width].double().clone())
    query, key, value = _heads_of(x.double(), heads, width, "", (None, None), None, format)
    rule = Rule(causal=causal, scale=0.7, bias=biases(table, n))
    expected = attend_plain(query[None], key[None], value[None], rule)[0].flatten(1)
    torch.testing.assert_close(torch.cat(found), expected, rtol=2e-2 if format == BF16 else 1e-4,
                               atol=3e-2 if format == BF16 else 2e-5)  # fmt: skip


@pytest.mark.parametrize(("level", "format"), LEVELS)
@given(
    lengths=st.lists(st.one_of(st.integers(1, 40), st.sampled_from([16, 17, 1030])), min_size=1, max_size=3),
    asked=st.lists(st.tuples(st.integers(0, 2), st.sampled_from([1, 1, 1, 2, 17, 33])), min_size=1,
                   max_size=9),
    heads=st.sampled_from([(1, 1), (3, 3), (4, 2)]), width=st.sampled_from([4, 18, 32, 64, 80]),
    threads=st.integers(1, 2), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=scaled(40))
def test_attention_to_sources(level, format, lengths, asked, heads, width, threads, seed):
    """Keys and values of whole texts into pages of their own; then rows look into one of them each."""
    n_heads, n_kv_heads = heads
    _, shape = attention(level, format, heads, width, n_pages=1)
    number_bytes, padded = DTYPES[format].itemsize, -(-width // 32) * 32
    layers = [  # each of two layers has keys of its own
        drawn(seed + layer, sum(lengths), 2 * n_kv_heads * width).float() for layer in range(2)
    ]
    sources = []
    for n in lengths:
        n_bytes = 2 * -(-n // 16) * n_kv_heads * 2 * 16 * padded * number_bytes
        sources.append((torch.full((n_bytes + 64,), 255, dtype=torch.uint8), n))  # bytes 255: no numbers
    given_ = [(memory.data_ptr(), n) for memory, n in sources]
    for layer, x in enumerate(layers):
        writer, _ = attention(level, format, heads, width, n_pages=1)
        writer.plan([
            Op(kind=abi.HEADS, in_=0, out=1, maps=abi.KEYS_AND_VALUES, source=1, layer=layer, **shape)
        ])  # fmt: skip
        filled(writer, 0, x)
        tables = [list(range(-(-n // 16))) for n in lengths]
        writer.run([0] * len(x), [(0, n) for n in lengths], tables, threads=threads, sources=given_)
    assert all((memory[-64:] == 255).all() for memory, _ in sources), "written behind the last page"
    asked = [(which % len(lengths), n) for which, n in asked]
    total = sum(n for _, n in asked)
    queries = drawn(seed + 7, total, n_heads * width).float()
    for layer, x in enumerate(layers):
        reader, _ = attention(level, format, heads, width, n_pages=1)
        reader.plan([
            Op(kind=abi.HEADS, in_=0, out=1, maps=abi.QUERIES, **shape),
            Op(kind=abi.ATTEND, in_=1, out=2, source=1, layer=layer, scale=width**-0.5, **shape),
        ])  # fmt: skip
        filled(reader, 0, queries)
        spans, own = [(3, n) for _, n in asked], [given_[which] for which, _ in asked]
        reader.run([0] * total, spans, [[0] * 4 for _ in asked], threads=threads, sources=own)
        found = reader.buffer(2, total)[:, : n_heads * width].double().clone()
        parts, texts = queries.split([n for _, n in asked]), x.split(lengths)
        for (which, n), asks, mine in zip(asked, parts, found.split([n for _, n in asked]), strict=True):
            query = rounded(asks.double(), format).unflatten(1, (-1, width))
            key, value = rounded(texts[which].double(), format).unflatten(1, (-1, width)).chunk(2, 1)
            expected = attend_plain(query[None], key[None], value[None], Rule(scale=width**-0.5))[0].flatten(
                1
            )
            torch.testing.assert_close(mine, expected, rtol=2e-2 if format == BF16 else 1e-4,
                                       atol=2e-2 if format == BF16 else 1e-5)  # fmt: skip
            filled(reader, 0, asks)
            reader.run([0] * n, [(3, n)], [[0] * 4], sources=[given_[which]])
            assert torch.equal(reader.buffer(2, n)[:, : n_heads * width].double(), mine), "alone"


def _heads_of(x, heads, width, norm, norms, angles, format):
    """Queries, keys and values of a row's tokens (N, heads, K), as the kernels round them."""
    n_heads, n_kv_heads = heads
    parts = x.split([n_heads * width, n_kv_heads * width, n_kv_heads * width], dim=1)
    made = []
    for part, weight in zip(parts, (*norms, None), strict=True):
        if weight is not None and norm == "projection":
            part = F.rms_norm(part, (part.shape[1],), weight, 1e-5)
        part = part.unflatten(1, (-1, width))
        if weight is not None and norm == "head":
            part = F.rms_norm(part, (width,), weight, 1e-5)
        made.append(part)
    if angles is not None:
        places = torch.arange(len(x))
        made[:2] = [rotated(part, places, *angles) for part in made[:2]]
    return [rounded(part, format) for part in made]


@pytest.mark.parametrize(("level", "format"), LEVELS)
@given(
    spans=st.lists(st.tuples(st.sampled_from([1, 1, 2, 7, 33, 50]), st.integers(0, 2)), min_size=1,
                   max_size=5),
    k=sizes, widths=st.lists(sizes, min_size=1, max_size=3), seed=st.integers(0, 99), gated=st.booleans(),
    ranks=st.lists(st.integers(0, 40), min_size=6, max_size=6), stretched=st.booleans(),
    threads=st.integers(1, 2),
)  # fmt: skip
@settings(max_examples=scaled(100))
def test_products_with_adapters(level, format, spans, k, widths, seed, gated, ranks, stretched, threads):
    """Maps side by side, or two whose panels alternate; each row with the thin matrices of one adapter or
    none, whose own rows stay bit by bit what they are without.
    """
    widths = [48, 48] if gated else widths
    weights = [rounded(drawn(seed + i, n, k), format) for i, n in enumerate(widths)]
    panels = [w.unflatten(0, (-1, 16)) for w in weights] if gated else []
    joined = torch.stack(panels, 1).flatten(0, 2) if gated else torch.cat(weights)
    n_out, m = (48 if gated else sum(widths)), sum(n for n, _ in spans)
    x = rounded(drawn(seed + 9, m, k), format)
    ops = Ops(library(level), format, [(k, format), (n_out, F32), (32 * 2 * len(widths), format)])
    parts, maps = [], dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]]()
    for adapter in (1, 2):
        column = 0
        for i, width in enumerate(widths):
            rank = ranks[3 * (adapter - 1) + i]
            first, above = (i, 0) if gated else divmod(column, 16)
            column += width
            if not rank:
                parts.append(Part())
                continue
            A = rounded(drawn(seed + 10 * adapter + i, rank, k, scale=k**-0.5), format)
            B = rounded(drawn(seed + 20 * adapter + i, width, rank), format)
            gain = 1 + 0.3 * drawn(seed + i, width).float().double() if stretched else torch.ones(width)
            maps[adapter, i] = A, B, gain
            parts.append(Part(
                A=ops.matrix(A), B=ops.matrix(F.pad(B, (0, 0, above, 0))), at=64 * i, first=first,
                step=2 if gated else 1,
                gain=ops.keep(F.pad(gain.float(), (above, 16), value=1.0)) if stretched else None,
            ))  # fmt: skip
    table = (Part * len(parts))(*parts)
    both = dict(n_parts=len(widths), parts=ctypes.addressof(table))
    product = Op(kind=abi.PRODUCT, in_=0, out=1, store=abi.GATE if gated else abi.WRITE,
                 matrix=ops.matrix(joined), thin=2, **both)  # fmt: skip
    ops.plan([Op(kind=abi.THIN, in_=0, out=2, **both), product])
    filled(ops, 0, x)
    ops.buffer(2, m).fill_(torch.nan)  # what was not written must not be read
    asked = [(0, n) for n, _ in spans]
    ops.run([0] * m, asked, adapters=[0] * len(spans), threads=threads)
    plain = ops.buffer(1, m)[:, :n_out].clone()
    ops.run([0] * m, asked, adapters=[adapter for _, adapter in spans], threads=threads)
    found, at = ops.buffer(1, m), 0
    assert not found[:, n_out:].any()
    for n, adapter in spans:
        mine, read = found[at : at + n, :n_out], x[at : at + n]
        if not any((adapter, i) in maps for i in range(len(widths))):
            assert torch.equal(mine, plain[at : at + n])
        made, unsure = [], []
        for i, weight in enumerate(weights):
            A, B, gain = maps.get((adapter, i), (weight[:0], weight[:, :0], torch.ones(len(weight)).double()))
            thin = read @ A.T
            made.append(gain * (read @ weight.T) + thin @ B.T)
            # x A^T is rounded once, to what products read.
            unsure.append(
                (2.0**-8 if format == BF16 else 0.0) * thin.abs() @ B.abs().T
                + 2e-5 * made[-1].abs().max()
                + 2e-5
            )
        if gated:
            off = unsure[0] * (made[1].abs() + unsure[1]) + unsure[1] * made[0].abs()
            expected = made[0] * made[1]
        else:
            expected, off = torch.cat(made, 1), torch.cat(unsure, 1)
        assert bool(((mine.double() - expected).abs() <= off).all())
        at += n


@pytest.mark.parametrize(("level", "format"), LEVELS)
def test_rows_of_many_adapters_have_the_bits_of_each_alone(level, format):
    k, n, rank = 96, 80, 12
    x, weight = drawn(0, 70, k), drawn(1, n, k)
    ops = Ops(library(level), format, [(k, format), (n, F32), (32, format)])
    parts = [Part(A=ops.matrix(drawn(2 + i, rank, k)), B=ops.matrix(drawn(20 + i, n, rank)), step=1)
             for i in range(8)]  # fmt: skip
    table = (Part * 8)(*parts)
    both = dict(n_parts=1, parts=ctypes.addressof(table))
    ops.plan([Op(kind=abi.THIN, in_=0, out=2, **both),
              Op(kind=abi.PRODUCT, in_=0, out=1, matrix=ops.matrix(weight), thin=2, **both)])  # fmt: skip
    alone = []
    for adapter in range(9):
        filled(ops, 0, x)
        ops.run([0] * 70, [(0, 70)], adapters=[adapter], threads=2)
        alone.append(ops.buffer(1, 70).clone())
    whose = [(5 * i + i * i) % 9 for i in range(70)]
    ops.run([0] * 70, [(0, 1)] * 70, adapters=whose, threads=2)
    for row, (adapter, found) in enumerate(zip(whose, ops.buffer(1, 70), strict=True)):
        assert torch.equal(found, alone[adapter][row])
    assert not torch.equal(alone[1], alone[2]) and not torch.equal(alone[0], alone[1])


def in_8_bits(x: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Rows (N, K), K padded to whole blocks, as integers (N, blocks, block) and scales (N, blocks)."""
    blocks = F.pad(x.float(), (0, -x.shape[1] % block)).unflatten(1, (-1, block))
    most, largest = (
        blocks.abs().amax(-1),
        torch.tensor(127.0),
    )  # a tensor: 127 / most would not be one division
    factor = torch.where(most > 1e-30, largest / most, 0.0)
    return (blocks * factor[..., None]).round().long(), torch.where(factor > 0, most / largest, 0.0)


@pytest.mark.parametrize(("level", "format"), LEVELS)
@given(m=rows, n=sizes, k=sizes, seed=st.integers(0, 99), threads=st.integers(1, 2), size=st.integers(-40, 4))
@settings(max_examples=scaled(60))
def test_products_of_8_bits_are_exact_integers(level, format, m, n, k, seed, threads, size):
    """Bit by bit: sums of 32 inputs are integers, scaled and added up in the order of the inputs."""
    x, weight = rounded(drawn(seed, m, k) * 10.0**size, format), drawn(seed + 1, n, k)
    x[:, : k // 2] *= 0.0 if seed % 3 == 0 else 1.0
    weight[n // 2] = 0
    ops = Ops(library(level), format, [(k, format), (k, I8), (n, F32)])
    ops.plan([Op(kind=abi.ENCODE, in_=0, out=1),
              Op(kind=abi.PRODUCT, in_=1, out=2, matrix=ops.matrix(weight, I8))])  # fmt: skip
    filled(ops, 0, x)
    ops.run([0] * m, threads=threads)
    out = ops.buffer(2, m)
    coded, scales = in_8_bits(x, 32)
    whole, of_outputs = in_8_bits(weight, k)
    weights = F.pad(whole[:, 0], (0, -k % 32)).unflatten(1, (-1, 32))
    sums = torch.einsum("mbi,nbi->mnb", coded, weights)
    expected = torch.zeros(m, n, dtype=torch.float64)
    for block in range(sums.shape[2]):  # float64 holds product and sum: rounded once, as by one instruction
        expected = (expected + sums[..., block].double() * scales[:, None, block].double()).float().double()
    assert torch.equal(out[:, :n], expected.float() * of_outputs[:, 0])
    assert not out[:, n:].any()
    if size > -25 and not (k > 1 and seed % 3 == 0):
        off = (out[:, :n].double() - F.linear(x, weight)).square().mean().sqrt()
        assert off <= 0.02 * 10.0**size * k**0.5


@pytest.mark.parametrize("level", levels() or ["scalar"])
@given(m=rows, n=sizes, k=sizes, seed=st.integers(0, 99))
@settings(max_examples=scaled(30))
def test_weights_of_bfloat16_have_the_bits_of_the_same_in_float32(level, m, n, k, seed):
    x, weight = drawn(seed, m, k), rounded(drawn(seed + 1, n, k), BF16)
    ops = Ops(library(level), F32, [(k, F32), (n, F32), (n, F32)])
    ops.plan([Op(kind=abi.PRODUCT, in_=0, out=1 + i, matrix=ops.matrix(weight, format))
              for i, format in enumerate((F32, BF16))])  # fmt: skip
    filled(ops, 0, x)
    ops.run([0] * m)
    assert torch.equal(ops.buffer(2, m), ops.buffer(1, m))
    close(ops.buffer(2, m)[:, :n], F.linear(x.float().double(), weight), F32)


@pytest.mark.parametrize("level", levels() or ["scalar"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_shows_in_products_of_8_bits(level, bad):
    x, weight = drawn(0, 9, 70).float(), drawn(1, 40, 70).float()
    x[3, 65], weight[7, 2] = bad, bad
    ops = Ops(library(level), F32, [(70, F32), (70, I8), (40, F32)])
    ops.plan([Op(kind=abi.ENCODE, in_=0, out=1),
              Op(kind=abi.PRODUCT, in_=1, out=2, matrix=ops.matrix(weight, I8))])  # fmt: skip
    filled(ops, 0, x)
    ops.run([0] * 9)
    found = ops.buffer(2, 9)[:, :40].isfinite()
    assert not found[3].any() and not found[:, 7].any()
    assert found[[0, 1, 2, 4, 5, 6, 7, 8]][:, [*range(7), *range(8, 40)]].all()


@pytest.mark.parametrize("format", [F32, BF16], ids=["float32", "bfloat16"])
@given(m=rows, n=sizes, k=sizes, seed=st.integers(0, 99))
@settings(max_examples=scaled(20))
def test_levels_agree(format, m, n, k, seed):
    """The scalar level is the twin of the others: the same sums in another order."""
    x, weight = drawn(seed, m, k), drawn(seed + 1, n, k)
    found = []
    for level in levels() or ["scalar"]:
        ops = Ops(library(level), format, [(k, format), (n, F32)])
        ops.plan([Op(kind=abi.PRODUCT, in_=0, out=1, matrix=ops.matrix(weight))])
        filled(ops, 0, x)
        ops.run([0] * m)
        found.append(ops.buffer(1, m).clone())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("level", "format"), LEVELS)
def test_a_row_has_its_bits_beside_any_others(level, format):
    k, n = 96, 80
    x, weight = drawn(0, 70, k), drawn(1, n, k)
    ops = Ops(library(level), format, [(k, format), (n, F32)])
    ops.plan([Op(kind=abi.PRODUCT, in_=0, out=1, matrix=ops.matrix(weight))])
    filled(ops, 0, x)
    ops.run([0] * 70, threads=2)
    whole = ops.buffer(1, 70).clone()
    for n_rows in (1, 2, 5, 6, 12, 15, 16, 17, 31, 33):
        ops.run([0] * n_rows)
        assert torch.equal(ops.buffer(1, n_rows), whole[:n_rows])
