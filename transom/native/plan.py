"""A model as a plan: its modules become a flat list of ops over numbered buffers, its weights panels.

What a plan cannot say (`why_not`) is left to PyTorch. The residual stream, what is summed and the softmax are
float32; weights, what goes into a product, keys and values are in the model's own type; or weights are in
bfloat16, or they and what they are multiplied with in 8 bits. A row's logits are
bitwise a function of its own tokens, whatever is read beside it, in whatever pieces, by however many threads.
Read next: src/transom.h.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable, Sequence
from ctypes import c_int32
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from . import abi
from .abi import Op, Part, Step
from .library import Library

if TYPE_CHECKING:
    from transom.model.config import ModelConfig

PAGE = 16
"""Tokens in a page of the cache."""
PANEL = 16
"""Outputs in a panel."""
UNIT = 32
"""Widths are padded to a multiple of it."""
FORMATS = {torch.float32: abi.F32, torch.bfloat16: abi.BF16}
WEIGHTS = {"int8": abi.I8, "bfloat16": abi.BF16}
"""What matrices can be asked to be in: 8 bits with a scale for each output, or half of float32's bytes."""


class Source(NamedTuple):
    """A text that an encoder-decoder writes from, as its kernels look into it."""

    n_tokens: int
    pages: Tensor
    """Bytes: keys and values of each layer."""


class Read(NamedTuple):
    """Tokens of one row that a step reads: from place `start` on, by the pages of all its tokens so far."""

    tokens: Sequence[int]
    start: int
    pages: Sequence[int]
    adapter: int = 0
    """Who reads them: 1 is the plan's first adapter; 0: none."""
    segments: Sequence[int] = ()
    """The kind of segment of each token; empty: 0. Either all reads of a step have them or none."""
    source: Source | None = None
    """Of an encoder-decoder; all reads of a step have one, or none has."""


def why_not(model: Any) -> str:
    """Return what of a model no plan can say, in a few words; nothing where one can."""
    config: ModelConfig = model.config
    weight, encoder, attends = model.embed.weight, config.kind == "encoder", config.cell is None
    reasons = {
        f"its numbers are {str(weight.dtype).removeprefix('torch.')}": weight.dtype not in FORMATS,
        "it is a recurrence that reads a source": not attends and config.kind != "decoder",
        "its norms come after": attends and config.norm_position != "before" and config.kind == "decoder",
        "it has fewer heads of keys than of queries": config.kind == "encoder-decoder"
        and config.n_kv_heads != config.n_heads,
        "its embeddings are normed": attends and not encoder and (config.embed_norm or bool(config.segments)),
        "its attention has a soft cap": attends and config.attn_softcap is not None,
        "its head has a layer of its own": not encoder and config.head_transform,
        "its head gives something to each token": encoder and config.head not in ("embed", "classify"),
        "its weights are of several types": len(
            {w.dtype for name, w in model.named_parameters() if ".lora_" not in name}
        )
        > 1,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


class Plan:
    """What the kernels run for one model: ops, panels, and pages of keys and values."""

    def __init__(
        self, library: Library, model: Any, n_pages: int, adapters: Sequence[Any] = (), *, weights: str = ""
    ) -> None:
        """A model that `why_not` has nothing against; pages 0 .. n_pages - 1. adapters: models over its
        weights (`model.lora`), of which each row is read by one or none. weights: of `WEIGHTS`, what the
        matrices are in, or "": as the model has them. Raises MemoryError.
        """
        self._functions, self._kept = library.functions, list[Any]()
        self._matrices: list[int] = []
        self._handle: int | None = None
        config: ModelConfig = model.config
        self.config, self._dtype, self.encodes = config, model.embed.weight.dtype, config.kind == "encoder"
        self.format = FORMATS[self._dtype]
        self._weights = WEIGHTS[weights] if weights else self.format
        self._coded: dict[int, int] = {}
        """Buffers that products of 8-bit weights read, by those that they are made of."""
        self._gathered: dict[int, int] = {}
        """Those that experts read, a row for each choice, in the same way."""
        self._routed: tuple[int, ...] = ()
        """Of experts: scores, choices, what is inside one, and inside the shared one."""
        self._frequencies: Tensor | None = getattr(model, "frequencies", None)
        self._angles: tuple[Tensor, Tensor] | None = None
        self._widths: list[int] = []
        self._formats: list[int] = []
        self._encoding = list[Op]()
        ops = self._ops(model, adapters)
        self._op_array = (Op * len(ops))(*ops)
        widths = (c_int32 * len(self._widths))(*self._widths)
        formats = (c_int32 * len(self._formats))(*self._formats)
        self._handle = self._functions.transom_plan(
            self.format, self._op_array, len(ops), widths, formats, len(self._widths),
            1 if self.encodes else config.n_layers, config.n_kv_heads, config.head_dim, n_pages,
        )  # fmt: skip
        if not self._handle:
            raise MemoryError(f"no memory for {n_pages} pages of keys and values")

    def __del__(self) -> None:
        if self._handle:
            self._functions.transom_plan_free(self._handle)
        for matrix in self._matrices:
            self._functions.transom_matrix_free(matrix)
        self._handle, self._matrices = None, []

    # From modules to ops

    def _ops(self, model: Any, adapters: Sequence[Any]) -> list[Op]:
        config: ModelConfig = model.config
        self._stream, self._normed = self._buffer(config.dim, abi.F32), self._buffer(config.dim)
        if config.cell is not None:
            return [*self._recurrence(model), *self._scores(model)]
        wide = config.n_heads * config.head_dim
        self._inner = self._buffer(config.ffn_dim)
        self._projected = self._buffer(wide + 2 * config.n_kv_heads * config.head_dim, abi.F32)
        self._queries = self._buffer(config.n_heads * (-(-config.head_dim // UNIT) * UNIT))
        self._mixed, self._thin = self._buffer(wide), self._buffer(0)
        if (experts := config.experts) is not None:
            widths = (experts.n_experts, 2 * experts.n_active)  # of a choice, the expert and its weight
            self._routed = (
                *(self._buffer(width, abi.F32) for width in widths),
                *(self._buffer(n * experts.ffn_dim) for n in (1, experts.n_shared)),
            )
        if config.kind == "encoder-decoder":
            self._encoding = self._encode_ops(model, adapters)
        ops = [*self._encoding, *self._embed_ops(model), *self._stack(model, [model, *adapters])]
        if self.encodes:
            return [*ops, *self._pooled(model.head, self._stream)]
        return [*ops, *self._scores(model)]

    def _scores(self, model: Any) -> list[Op]:
        """Of every token of the vocabulary, after those tokens that are wanted."""
        last = self._norm(getattr(model, "final_norm", None), wanted=1, scale=self.config.logit_scale,
                          layer=1 + self.config.n_layers)  # fmt: skip
        return [last, *self._product_of(model.output_weight, model.head.bias, self._normed)]

    def _recurrence(self, model: Any) -> list[Op]:
        """From tokens to the states of the last layer after them, all through the stream."""
        config, cell = self.config, str(self.config.cell)
        n_gates = len(model.layers[0].weight_hh_l0) // config.dim
        gates = self._buffer(n_gates * (-(-config.dim // UNIT) * UNIT), abi.F32)
        state = self._buffer(config.dim, abi.I8 if self._weights == abi.I8 else None)
        table = self._keep(model.embed.weight.detach()).data_ptr()
        scale = config.dim**0.5 if config.scale_embeddings else 1.0
        ops = [Op(kind=abi.EMBED, out=self._stream, table=table, scale=scale)]
        for i, layer in enumerate(model.layers):
            w_in, w_state, b_in, b_state = (
                _alternating(part.detach().reshape(len(part), -1).chunk(n_gates), UNIT)
                for part in (layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0)
            )
            read = Op(kind=abi.PRODUCT, in_=self._normed, out=gates, matrix=self._weight(w_in),
                      bias=self._floats(b_in[:, 0]))  # fmt: skip
            ops += [
                self._norm(None, layer=1 + i), *self._encoded(read),
                Op(kind=abi.CELL, in_=gates, out=self._stream, state=state, cell=abi.CELLS[cell], layer=i,
                   matrix=self._weight(w_state), bias=self._floats(b_state[:, 0])),
            ]  # fmt: skip
        return ops

    def _encode_ops(self, model: Any, adapters: Sequence[Any]) -> list[Op]:
        """From a source to the keys and values that every layer of the decoder finds in it."""
        ops = self._embed_ops(model)
        ops += self._stack(model.encoder, [one.encoder for one in (model, *adapters)], source=1)
        for i, blocks in enumerate(zip(*(one.layers for one in (model, *adapters)), strict=True)):
            maps = _named(blocks, "cross_attn.k_proj", "cross_attn.v_proj")
            ops += [
                *self._product(maps, self._normed, self._projected),
                self._heads(None, abi.KEYS_AND_VALUES, source=1, layer=i),
            ]
        return ops

    def _stack(self, own: Any, stacks: Sequence[Any], *, source: int = 0) -> list[Op]:
        """The layers of a stack, `own`, beside those of adapters: branches of the stream, each with its norm
        before or behind it. source: 1 where it reads the sources of others, in whose pages all of it happens.
        """
        bias, after, ops = self._biases(own), self.config.norm_position == "after", list[Op]()
        for i, blocks in enumerate(zip(*(stack.layers for stack in stacks), strict=True)):
            block, parts = blocks[0], partial(_named, blocks)
            # Where all is seen no layer reads another's keys: all of them have the same pages.
            where = dict(layer=i if own.causal else 0, source=source)
            window = self.config.window_of(i) or 0 if own.causal else 0
            maps = parts("attn.q_proj", "attn.k_proj", "attn.v_proj")
            branches = [(block.attn_norm, [
                *self._product(maps, self._normed, self._projected),
                self._heads(block.attn, abi.ALL, **where),
                self._attend(window=window, weight=bias, bidirectional=int(self.encodes), **where),
                *self._product(parts("attn.o_proj"), self._mixed, self._stream, store=abi.ADD),
            ])]  # fmt: skip
            if block.reads_source:
                branches.append((block.cross_norm, [
                    *self._product(parts("cross_attn.q_proj"), self._normed, self._projected),
                    self._heads(None, abi.QUERIES),
                    self._attend(source=1, layer=i),
                    *self._product(parts("cross_attn.o_proj"), self._mixed, self._stream, store=abi.ADD),
                ]))  # fmt: skip
            if self.config.experts_of(i) is None:
                ffn = self._feed_forward(parts, "ffn", self._normed, self._inner, self._stream)
            else:
                ffn = self._experts(parts, block.ffn, self._normed, self._stream)
            branches.append((block.ffn_norm, ffn))
            for number, (norm, branch) in enumerate(branches):
                layer = 0 if number else 1 + i  # of `streams`
                normed = self._norm(norm, store=abi.REPLACE if after else abi.WRITE, layer=layer)
                ops += [*branch, normed] if after else [normed, *branch]
        if not own.causal and not after:
            ops.append(self._norm(own.final_norm, store=abi.REPLACE))
        return ops

    def _pooled(self, head: Any, stream: int) -> list[Op]:
        """What stands for a text, and where it is classified, the scores of its classes."""
        window = int(self.config.pooling == "first")
        if self.config.head == "embed":
            return [Op(kind=abi.POOL, in_=stream, window=window, store=abi.RESULT)]
        pooled, dense = self._buffer(self.config.dim), self._buffer(self.config.dim)
        turned = self._product([[head.dense]], pooled, dense, activation="tanh")
        for op in turned:
            op.wanted = 1
        return [
            Op(kind=abi.POOL, in_=stream, out=pooled, window=window), *turned,
            *self._product_of(head.out.weight, head.out.bias, dense),
        ]  # fmt: skip

    def _product_of(self, weight: Tensor, bias: Tensor | None, in_: int) -> list[Op]:
        """The product that makes the result, of the rows that are wanted."""
        matrix = self._weight(weight)
        floats = None if bias is None else self._floats(bias)
        return self._encoded(
            Op(kind=abi.PRODUCT, in_=in_, wanted=1, store=abi.RESULT, matrix=matrix, bias=floats)
        )

    def _embed_ops(self, model: Any) -> list[Op]:
        """What the first layer reads."""
        config: ModelConfig = model.config
        places = segments = None
        if config.position == "learned":
            places = self._keep(model.position_embed.weight.detach()).data_ptr()
        elif config.position == "sinusoidal":
            places = self._keep(model.placed(torch.arange(config.max_len))).data_ptr()
        if config.segments:
            segments = self._keep(model.segment_embed.weight.detach()).data_ptr()
        table = self._keep(model.embed.weight.detach()).data_ptr()
        scale = config.dim**0.5 if config.scale_embeddings else 1.0
        ops = [Op(kind=abi.EMBED, out=self._stream, table=table, positions=places, segments=segments,
                  position_offset=config.position_offset if config.position == "learned" else 0,
                  scale=scale)]  # fmt: skip
        if config.embed_norm or config.norm_position == "after":
            ops.append(self._norm(getattr(model, "embed_norm", None), store=abi.REPLACE))
        return ops

    def _norm(
        self, norm: Any, *, wanted: int = 0, scale: float = 1.0, layer: int = 0, store: int = abi.WRITE
    ) -> Op:
        """norm: None where products read the stream as it is."""
        op = Op(
            kind=abi.NORM, in_=self._stream, out=self._normed, wanted=wanted, layer=layer, store=store,
            scale=scale,
        )  # fmt: skip
        if norm is not None:
            bias = getattr(norm, "bias", None)
            op.eps, op.weight, op.layer_norm = norm.eps, self._floats(norm.weight), int(bias is not None)
            op.bias = None if bias is None else self._floats(bias)
        return op

    @property
    def _shape(self) -> dict[str, int]:
        config = self.config
        return dict(n_heads=config.n_heads, n_kv_heads=config.n_kv_heads, head_dim=config.head_dim)

    def _heads(self, attn: Any, maps: int, **where: int) -> Op:
        """attn: whose norms and rotation heads have; None: neither."""
        op = Op(kind=abi.HEADS, in_=self._projected, out=self._queries, maps=maps, **self._shape, **where)
        if attn is not None and attn.qk_norm:
            op.eps, op.whole_norm = attn.q_norm.eps, int(attn.whole_norm)
            op.weight, op.bias = map(self._floats, (attn.q_norm.weight, attn.k_norm.weight))
        return op

    def _attend(self, *, weight: int | None = None, **where: int) -> Op:
        config = self.config
        scale = config.head_dim**-0.5 if config.attn_scale is None else config.attn_scale
        return Op(kind=abi.ATTEND, in_=self._queries, out=self._mixed, scale=scale, weight=weight,
                  reach=self._reach if weight else 0, **self._shape, **where)  # fmt: skip

    @property
    def _reach(self) -> int:
        """How far off a key may stand, that which pads a page included."""
        return self.config.max_len + UNIT

    def _biases(self, stack: Any) -> int | None:
        """What a key's distance adds to its score, times log2(e), (H, 2 reach), from -reach on."""
        if self.config.position != "relative":
            return None
        distances = torch.arange(-self._reach, self._reach)
        table = stack.relative.of_distances(distances).detach().float() * math.log2(math.e)
        return self._keep(table.T).data_ptr()

    def _product(
        self, maps: Sequence[Sequence[Any]], in_: int, out: int, *, store: int = abi.WRITE,
        activation: str = "none",
    ) -> list[Op]:  # fmt: skip
        """Several linear maps of the same input as one, and before it what adapters make of that. maps: each
        of the base and of every adapter; where `store` is GATE, panels of the two alternate.
        """
        bases, gated = [own[0] for own in maps], store == abi.GATE
        joined = _alternating if gated else torch.cat
        bias = None
        if bases[0].bias is not None:
            bias = self._floats(joined([base.bias.detach()[:, None] for base in bases])[:, 0])
        matrix = self._weight(joined([base.weight.detach() for base in bases]))
        product = Op(kind=abi.PRODUCT, in_=in_, out=out, matrix=matrix, bias=bias, store=store,
                     activation=abi.ACTIVATIONS[activation])  # fmt: skip
        widths = [-(-max(map(_rank, own[1:]), default=0) // UNIT) * UNIT for own in maps]
        if not any(widths):
            return self._encoded(product)
        parts = list[Part]()
        for number in range(1, len(maps[0])):
            at = column = 0
            for i, (own, width) in enumerate(zip(maps, widths, strict=True)):
                first, above = (i, 0) if gated else divmod(column, PANEL)
                parts.append(self._part(own[number], at, first, len(maps) if gated else 1, above))
                at, column = at + width, column + bases[i].out_features
        table = (Part * len(parts))(*parts)
        self._kept.append(table)
        self._widths[self._thin] = max(self._widths[self._thin], sum(widths))
        product.thin, product.n_parts, product.parts = self._thin, len(maps), ctypes.addressof(table)
        thin = Op(kind=abi.THIN, in_=in_, out=self._thin, n_parts=product.n_parts, parts=product.parts)
        return [thin, *self._encoded(product)]

    def _encoded(self, product: Op) -> list[Op]:
        """A product, and before it what makes 8 bits of the rows that it reads where its matrix has them."""
        if self._weights != abi.I8:
            return [product]
        rows = product.in_
        if rows not in self._coded:
            self._coded[rows] = self._buffer(self._widths[rows], abi.I8)
        product.in_ = self._coded[rows]
        return [Op(kind=abi.ENCODE, in_=rows, out=product.in_, wanted=product.wanted), product]

    def _part(self, layer: Any, at: int, first: int, step: int, above: int) -> Part:
        """What an adapter adds to a linear map whose outputs begin `above` outputs down in panel `first`."""
        if not _rank(layer):
            return Part()
        rise, gain = layer.lora.scale * layer.lora_B.detach().float(), None
        if layer.lora_magnitude is not None:
            own = layer.gain().detach().float()
            rise, gain = own[:, None] * rise, self._floats(pad(own, (above, PANEL), value=1.0))
        A, B = (self._matrix(thin, self.format) for thin in (layer.lora_A, pad(rise, (0, 0, above, 0))))
        return Part(A=A, B=B, gain=gain, at=at, first=first, step=step)

    def _feed_forward(self, parts: Any, name: str, in_: int, inner: int, stream: int) -> list[Op]:
        """The product into the inner width, with the activation, and the one that adds to the stream."""
        gated = self.config.gated
        names = (f"{name}.gate_proj", f"{name}.up_proj") if gated else (f"{name}.up_proj",)
        store, activation = abi.GATE if gated else abi.WRITE, self.config.activation
        return [
            *self._product(parts(*names), in_, inner, store=store, activation=activation),
            *self._product(parts(f"{name}.down_proj"), inner, stream, store=abi.ADD),
        ]

    def _experts(self, parts: Any, ffn: Any, in_: int, stream: int) -> list[Op]:
        """A mixture of experts, added to the stream expert by expert, and then the shared one."""
        router, bank, config = ffn.router, ffn.experts, self.config
        scores, chosen, inner, shared = self._routed
        own = dict(n_experts=router.experts.n_experts, n_active=router.experts.n_active)
        wide = [bank.up_proj] if not bank.gated else [bank.gate_proj, bank.up_proj]
        correction = router.correction
        ops = [
            # Never in 8 bits: a rounded score sends a token to another expert.
            Op(kind=abi.PRODUCT, in_=in_, out=scores, matrix=self._matrix(router.weight, self.format)),
            Op(kind=abi.ROUTE, in_=scores, out=chosen, scale=router.experts.scale,
               sigmoid=int(router.experts.score == "sigmoid"), normalize=int(router.experts.normalize),
               bias=None if correction is None else self._floats(correction), **own),
            Op(kind=abi.GROUP, in_=chosen, **own),
        ]  # fmt: skip
        *encode, first = self._encoded(
            Op(kind=abi.EXPERTS, in_=in_, out=inner, store=abi.GATE if bank.gated else abi.WRITE,
               activation=abi.ACTIVATIONS[config.activation],
               matrices=self._table(_alternating(each) for each in zip(*wide, strict=True)), **own)
        )  # fmt: skip
        rows = first.in_
        if rows not in self._gathered:
            self._gathered[rows] = self._buffer(self._widths[rows], self._formats[rows])
        first.in_ = self._gathered[rows]
        ops += [*encode, Op(kind=abi.GATHER, in_=rows, out=first.in_, **own), first]
        *encode, second = self._encoded(
            Op(kind=abi.EXPERTS, in_=inner, out=stream, store=abi.ADD, matrices=self._table(bank.down_proj),
               **own)
        )  # fmt: skip
        for op in encode:
            op.n_active = own["n_active"]
        ops += [*encode, second]
        if ffn.shared is not None:
            ops += self._feed_forward(parts, "ffn.shared", in_, shared, stream)
        return ops

    def _table(self, weights: Iterable[Tensor]) -> int:
        """A matrix for each expert; where they stand."""
        matrices = [self._weight(weight) for weight in weights]
        self._kept.append((ctypes.c_void_p * len(matrices))(*matrices))
        return ctypes.addressof(self._kept[-1])

    def _buffer(self, width: int, format: int | None = None) -> int:
        self._widths.append(width)
        self._formats.append(self.format if format is None else format)
        return len(self._widths) - 1

    def _weight(self, weight: Tensor) -> int:
        """Pack a matrix of the model (out, in), in what was asked for. One of float32 that bfloat16 holds as
        it is (of a model that was published so) is read in half the bytes: the product has the same bits.
        """
        weight = weight.detach()
        if self._weights == abi.F32 and torch.equal((short := weight.bfloat16()).float(), weight):
            return self._matrix(short, abi.BF16)
        return self._matrix(weight, self._weights)

    def _matrix(self, weight: Tensor, format: int) -> int:
        """Pack a matrix (out, in)."""
        dtype = torch.bfloat16 if format == abi.BF16 else torch.float32
        weight = weight.detach().to(dtype).contiguous()
        matrix = self._functions.transom_pack(format, *weight.shape, weight.data_ptr())
        if not matrix:
            raise MemoryError(f"no memory for a second copy of a matrix of {weight.nbytes:,} bytes")
        self._matrices.append(matrix)
        return matrix

    def _floats(self, weight: Tensor) -> int:
        """Keep a vector as float32, with zeros behind; where it lies."""
        padded = torch.zeros(-(-len(weight) // UNIT) * UNIT)
        padded[: len(weight)] = weight.detach()
        return self._keep(padded).data_ptr()

    def _keep(self, tensor: Tensor) -> Tensor:
        """Keep what the ops point to as long as the plan lives."""
        self._kept.append(tensor.contiguous())
        return self._kept[-1]

    # Steps

    @property
    def bytes(self) -> int:
        """What the panels take."""
        return sum(self._functions.transom_matrix_bytes(matrix) for matrix in self._matrices)

    def copy_page(self, origin: int, to: int) -> None:
        """Copy a page of all layers."""
        self._functions.transom_copy_page(self._handle, origin, to)

    def streams(self, read: Read, n_threads: int) -> Tensor:
        """Read tokens (L,); the residual stream as the layers and the head read it, (layers + 1, L, D)."""
        n_tokens = len(read.tokens)
        streams = torch.empty(self.config.n_layers + 1, n_tokens, self.config.dim)
        self.run([read], range(n_tokens), n_threads, streams)
        return streams

    def run(
        self, reads: Sequence[Read], wanted: Sequence[int], n_threads: int, streams: Tensor | None = None
    ) -> Tensor:
        """Read tokens of several rows, each row in one piece: float32 logits (len(wanted), V) after those
        tokens of the step whose numbers `wanted` names, in its order. streams: to be filled, where all
        tokens are wanted. Raises MemoryError.
        """
        logits = torch.empty(len(wanted), self.config.vocab_size)
        self._step(reads, wanted, n_threads, logits, streams)
        cap = self.config.logit_softcap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)

    def encode(self, reads: Sequence[Read], n_threads: int) -> Tensor:
        """Read whole texts: what the head makes of each, (texts, D) or (texts, C), float32; vectors are not
        scaled yet. Raises IndexError for a token or a kind of segment that the model does not have,
        ValueError for too long a text, and MemoryError.
        """
        config = self.config
        for read in reads:
            self._check_text(read)
        found = torch.empty(len(reads), config.dim if config.head == "embed" else len(config.labels))
        firsts = np.cumsum([0, *(len(read.tokens) for read in reads[:-1])])
        self._step(reads, firsts, n_threads, found)
        return found

    def read_sources(self, texts: Sequence[Sequence[int]], adapter: int, n_threads: int) -> list[Source]:
        """Read whole sources of an encoder-decoder: what the rows that write from them look into. Raises as
        `encode` does.
        """
        reads = list[Read]()
        for text in texts:
            if not len(text):
                raise ValueError("a source without tokens; it has at least one")
            pages = range(-(-len(text) // PAGE))
            width = -(-self.config.head_dim // UNIT) * UNIT
            numbers = self.config.n_layers * len(pages) * 2 * PAGE * self.config.n_kv_heads * width
            source = Source(len(text), torch.empty(numbers * self._dtype.itemsize, dtype=torch.uint8))
            reads.append(Read(text, 0, pages, adapter, source=source))
            self._check_text(reads[-1])
        self._step(reads, (), n_threads, torch.empty(0), ops=slice(0, len(self._encoding)))
        return [read.source for read in reads if read.source is not None]

    def _check_text(self, read: Read) -> None:
        """Raise where a text that is read as a whole is none that the model reads."""
        config = self.config
        if len(read.tokens) > config.max_len:
            raise ValueError(f"a text of {len(read.tokens)} tokens; the model reads {config.max_len}")
        _check(read.tokens, config.vocab_size, "token")
        _check(read.segments, max(1, config.segments), "kind of segment")

    def _step(
        self, reads: Sequence[Read], wanted: Sequence[int] | np.ndarray, n_threads: int, result: Tensor,
        streams: Tensor | None = None, ops: slice | None = None,
    ) -> None:  # fmt: skip
        """ops: those that run; None: all that do not read sources."""
        first_op, end, _ = (ops or slice(len(self._encoding), None)).indices(len(self._op_array))
        spans, first = [], 0
        for read in reads:
            spans += [read.start, len(read.tokens), first, read.adapter]
            first += len(read.pages)
        tokens = np.fromiter((token for read in reads for token in read.tokens), np.int32)
        pages = np.fromiter((page for read in reads for page in read.pages), np.int32)
        segments = np.fromiter((kind for read in reads for kind in read.segments), np.int32)
        arrays = tokens, np.array(spans, dtype=np.int32), pages, np.array(wanted, dtype=np.int32)
        given = [read.source for read in reads if read.source is not None]
        sources = np.array([(one.pages.data_ptr(), one.n_tokens) for one in given], np.int64)
        cosines, sines = self._rotation(max(read.start + len(read.tokens) for read in reads))
        step = Step(
            len(tokens), len(reads), len(wanted), n_threads, first_op, end - first_op,
            *(array.ctypes.data for array in arrays), segments.ctypes.data if len(segments) else None,
            sources.ctypes.data if len(sources) else None, cosines, sines, result.data_ptr(),
            None if streams is None else streams.data_ptr(),
        )  # fmt: skip
        if self._functions.transom_run(self._handle, step) != 0:
            raise MemoryError(f"no memory for a step of {len(tokens)} tokens")

    def _rotation(self, n_places: int) -> tuple[int | None, int | None]:
        """Where the cosines and sines (places, K/2) of the first n places lie; more are made when needed."""
        if self._frequencies is None:
            return None, None
        if self._angles is None or len(self._angles[0]) < n_places:
            places = torch.arange(min(2 * n_places + 256, max(self.config.max_len, n_places)))
            angles = places[:, None].float() * self._frequencies.float()
            self._angles = angles.cos(), angles.sin()
        return self._angles[0].data_ptr(), self._angles[1].data_ptr()


def _check(numbers: Sequence[int], n: int, what: str) -> None:
    if numbers and not 0 <= min(numbers) <= max(numbers) < n:
        raise IndexError(f"{what} {max(numbers)}; this model has 0 to {n - 1}")


def _alternating(parts: Sequence[Tensor], size: int = PANEL) -> Tensor:
    """Matrices (N, in), their rows filled up to whole pieces of `size`, piece by piece in turns."""
    filled = [pad(part, (0, 0, 0, -len(part) % size)) for part in parts]
    return torch.stack([part.unflatten(0, (-1, size)) for part in filled], dim=1).flatten(0, 2)


def _named(blocks: Sequence[Any], *names: str) -> list[list[Any]]:
    """The parts of these names, each of all blocks."""
    return [[block.get_submodule(name) for block in blocks] for name in names]


def _rank(layer: Any) -> int:
    """The rank of a layer's adapter; 0: it has none."""
    return len(layer.lora_A) if hasattr(layer, "lora_A") else 0
