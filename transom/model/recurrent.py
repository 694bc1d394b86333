"""RNN, LSTM and GRU: the recurrences that attention took the place of, behind the same interface.

A recurrent layer reads one position after the other and keeps one state. As a language model it predicts the
next token; as an encoder-decoder one net reads the source in both directions, another writes the target and
looks back at the source by additive attention (Bahdanau et al. 2015; asked by the state after the token, as
Luong et al. 2015, so that a whole target is one call while learning).
`steps_plain` writes the equations out; it is the decoder's path, one token at a time, and the oracle of the
fused one. Sources: Elman 1990; Hochreiter & Schmidhuber 1997; Cho et al. 2014. Read next: cache.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import Memory, StateHistory
from .config import ModelConfig
from .heads import TokenHead
from .initialize import initialize
from .layers import Linear, dropout
from .losses import cap, cross_entropy
from .scores import scores
from .transformer import Batch, Table

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
FUSED = {"rnn": torch._VF.rnn_tanh, "gru": torch._VF.gru, "lstm": torch._VF.lstm}  # pyright: ignore


class RecurrentLayer(nn.Module):
    """One layer of a recurrence: (B, L, in) -> its state after each position, (B, L, width).

    Weights have torch's names and order of gates: LSTM i f g o, GRU r z n.
    """

    def __init__(self, cell: str, n_in: int, width: int) -> None:
        super().__init__()
        gates = GATES[cell]
        self.cell, self.width, self.n_parts = cell, width, 2 if cell == "lstm" else 1
        self.weight_ih_l0 = nn.Parameter(torch.empty(gates * width, n_in))
        self.weight_hh_l0 = nn.Parameter(torch.empty(gates * width, width))
        self.bias_ih_l0 = nn.Parameter(torch.empty(gates * width))
        self.bias_hh_l0 = nn.Parameter(torch.empty(gates * width))

    def _weights(self, dtype: torch.dtype) -> list[Tensor]:
        kept = (self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0)
        return [weight.to(dtype) for weight in kept]

    def forward(self, x: Tensor, first: list[Tensor] | None = None) -> Tensor:
        """The fused pass over whole rows; `first`: the parts of the state before them, (B, width) each."""
        return self.onward(x, first)[0]

    def onward(self, x: Tensor, first: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """The same, and the parts of the state after the last position."""
        if first is None:
            first = [x.new_zeros(len(x), self.width) for _ in range(self.n_parts)]
        parts = tuple(part[None].to(x.dtype).contiguous() for part in first)
        state = parts if self.cell == "lstm" else parts[0]
        weights = self._weights(x.dtype)
        out, *last = FUSED[self.cell](x, state, weights, True, 1, 0.0, self.training, False, True)
        return out, [part[0] for part in last]

    def step(self, x: Tensor, state: list[Tensor]) -> list[Tensor]:
        """One position, as the equations say: x (B, in) and the parts of the state before it -> those after.

        RNN: h = tanh(W x + U h). LSTM: c = f c + i g, h = o tanh(c). GRU: h = (1 - z) n + z h.
        """
        w_in, w_state, b_in, b_state = self._weights(x.dtype)
        read, kept = F.linear(x, w_in, b_in), F.linear(state[0], w_state, b_state)
        if self.cell == "rnn":
            return [torch.tanh(read + kept)]
        if self.cell == "gru":
            (reset_x, update_x, new_x), (reset_h, update_h, new_h) = read.chunk(3, -1), kept.chunk(3, -1)
            reset, update = torch.sigmoid(reset_x + reset_h), torch.sigmoid(update_x + update_h)
            new = torch.tanh(new_x + reset * new_h)
            return [(1 - update) * new + update * state[0]]
        into, forget, new, out = (read + kept).chunk(4, -1)
        memory = torch.sigmoid(forget) * state[1] + torch.sigmoid(into) * torch.tanh(new)
        return [torch.sigmoid(out) * torch.tanh(memory), memory]

    def steps_plain(self, x: Tensor, first: list[Tensor]) -> Tensor:
        """The same as the fused pass, one step after the other."""
        states = [first]
        for position in x.unbind(1):
            states.append(self.step(position, states[-1]))
        return torch.stack([parts[0] for parts in states[1:]], dim=1)


class BidirectionalLayer(nn.Module):
    """Two layers of half the width, one reading from each end: (B, M, in) -> (B, M, width)."""

    def __init__(self, cell: str, n_in: int, width: int) -> None:
        super().__init__()
        self.ahead = RecurrentLayer(cell, n_in, width // 2)
        self.back = RecurrentLayer(cell, n_in, width // 2)

    def forward(self, x: Tensor, turned: Tensor) -> Tensor:
        """turned (B, M): where each position stands when the text, without its padding, is read backwards."""
        index = turned[..., None]
        back = self.back(x.gather(1, index.expand_as(x)))
        return torch.cat((self.ahead(x), back.gather(1, index.expand_as(back))), dim=-1)


class AdditiveAttention(nn.Module):
    """Who in the source a state asks: weights softmax(v . tanh(W s + U h)), (B, L, D) -> (B, L, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q_proj = Linear(dim, dim, bias=False)
        self.k_proj = Linear(dim, dim, bias=True)
        self.score_proj = Linear(dim, 1, bias=False)

    def forward(self, states: Tensor, memory: Memory) -> Tensor:
        """The weighted sum of the source for each state; rows that share a source are asked together."""
        key, value = memory.keys_and_values(0, lambda source: (self.k_proj(source), source))
        pattern = self.pattern(memory.by_source(states), key, memory.documents)
        return memory.by_row(torch.bmm(pattern.to(value.dtype), value), states.shape)

    def pattern(self, states: Tensor, key: Tensor, documents: Tensor | None) -> Tensor:
        """The weights (B, L, M), float32; padding of the source (documents -1) has none."""
        mixed = torch.tanh(self.q_proj(states)[:, :, None] + key[:, None])
        scores = self.score_proj(mixed)[..., 0].float()
        if documents is not None:
            scores = scores.masked_fill((documents < 0)[:, None], -math.inf)
        return scores.softmax(-1)


class Recurrent(nn.Module):
    """A recurrent language model or encoder-decoder built from a config (`cell`), drawn from `seed`."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        if config.cell is None:
            raise ValueError("a recurrent model needs a cell: rnn, lstm or gru")
        self.config, cell, dim = config, config.cell, config.dim
        self.embed = Table(config.vocab_size, dim)
        self.layers = nn.ModuleList(RecurrentLayer(cell, dim, dim) for _ in range(config.n_layers))
        if config.n_encoder_layers is not None:
            self.encoder = nn.ModuleList(
                BidirectionalLayer(cell, dim, dim) for _ in range(config.n_encoder_layers)
            )
            self.bridge = Linear(dim, config.n_layers * self.layers[0].n_parts * dim, bias=True)  # type: ignore[operator]
            self.attn = AdditiveAttention(dim)
            self.mix_proj = Linear(2 * dim, dim, bias=False)
        self.head = TokenHead(config)
        self.checkpoint_activations = False
        initialize(self, config.n_layers, seed, embedding=dim**-0.5)

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        segments: Tensor | None = None,
        state: StateHistory | None = None,
        memory: Memory | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Hidden states (B, L, D) of tokens (B, L); the arguments are those of `Transformer.forward`.

        positions and segments mean nothing to a recurrence. Where documents change in a row, the state
        begins anew. memory: the encoded source, unless `state` brings it.
        """
        if tokens.shape[1] > self.config.max_len:
            longest = self.config.max_len
            raise ValueError(f"{tokens.shape[1]} tokens in a row; this model reads at most {longest}")
        if state is not None:
            memory = state.memory if memory is None else memory
        if self.config.kind == "encoder-decoder" and memory is None:
            raise ValueError("an encoder-decoder writes what it reads: give the memory that `encode` gives")
        x = self._embedded(tokens, dtype)
        if state is not None:
            x = self._step_by_step(x, state)
        elif documents is None or memory is not None:
            x = self._through(x, None if memory is None else self.first_state(memory))[0]
        else:
            x = self._by_document(x, documents)
        return self._looking_back(x, memory)

    def onward(
        self, tokens: Tensor, before: list[list[Tensor]], memory: Memory | None = None
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Go on from a state, in the fused pass: hidden states (B, L, D) and the state after the last token.

        States are lists of layers, each of parts (B, D).
        """
        x, after = self._through(self._embedded(tokens, None), before)
        return self._looking_back(x, memory), after

    def _looking_back(self, x: Tensor, memory: Memory | None) -> Tensor:
        """States (B, L, D) with what each has asked of the source."""
        if memory is not None:
            asked = self.attn(x, memory)
            x = torch.tanh(self.mix_proj(torch.cat((x, asked), dim=-1)))
        return self._drop(x)

    def encode(
        self, source: Tensor, *, documents: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Memory:
        """Read the source (B, M) in both directions; documents (B, M): 0 for text, -1 for padding."""
        x = self._embedded(source, dtype)
        turned = reversed_places(source.shape, documents, source.device)
        for layer in self.encoder:
            x = self._drop(layer(x, turned))
        return Memory(x, documents)

    def _embedded(self, tokens: Tensor, dtype: torch.dtype | None) -> Tensor:
        x = self.embed(tokens)
        if self.config.scale_embeddings:
            x = x * self.config.dim**0.5
        return self._drop(x.to(dtype or self.embed.weight.dtype))

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.config.dropout, self.training)

    def first_state(self, memory: Memory) -> list[list[Tensor]]:
        """The state of each layer before the target, made of the mean of the source: parts of (B, D)."""
        hidden = memory.hidden
        if memory.documents is None:
            mean = hidden.mean(1)
        else:
            text = (memory.documents == 0)[..., None].to(hidden.dtype)
            mean = (hidden * text).sum(1) / text.sum(1)
        parts = torch.tanh(self.bridge(mean)).chunk(self.bridge.out_features // self.config.dim, dim=-1)
        n_parts = len(parts) // self.config.n_layers
        return [list(parts[i * n_parts : (i + 1) * n_parts]) for i in range(self.config.n_layers)]

    def _through(
        self, x: Tensor, first: list[list[Tensor]] | None = None
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Whole rows (B, L, D) through all layers, and the state of each layer after them."""
        last = []
        for i, layer in enumerate(self.layers):
            x, after = layer.onward(  # type: ignore[operator]
                x if i == 0 else self._drop(x), None if first is None else first[i]
            )
            last.append(after)
        return x, last

    def _by_document(self, x: Tensor, documents: Tensor) -> Tensor:
        """Rows that hold several documents: each document is a row of its own, and comes back to its place.

        Documents 0 0 0 1 1 of one row become the rows x0 x1 x2 and x3 x4 -.
        """
        flat = x.flatten(0, 1)
        opens = torch.ones_like(documents, dtype=torch.bool)
        opens[:, 1:] = documents[:, 1:] != documents[:, :-1]
        row = opens.flatten().cumsum(0) - 1
        place = torch.arange(len(row), device=x.device)
        column = place - place[opens.flatten()][row]
        apart = x.new_zeros(int(row[-1]) + 1, int(column.max()) + 1, x.shape[-1])
        apart = apart.index_put((row, column), flat)
        return self._through(apart)[0][row, column].view_as(x)

    def _step_by_step(self, x: Tensor, state: StateHistory) -> Tensor:
        """Position after position, keeping the state after each: (B, L, D) -> (B, L, D)."""
        outs = []
        for step, position in enumerate(x.unbind(1)):
            for i, layer in enumerate(self.layers):
                position = position if i == 0 else self._drop(position)
                before = [part.to(x.dtype) for part in state.newest(i, step)]
                parts = layer.step(position, before)  # type: ignore[operator]
                state.append(i, step, parts)
                position = parts[0]
            outs.append(position)
        state.advance(x.shape[1])
        return torch.stack(outs, dim=1)

    @property
    def output_weight(self) -> Tensor:
        """The matrix (V, D) that turns hidden states into logits."""
        return self.embed.weight if self.head.weight is None else self.head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token, in float32: (..., D) -> (..., V)."""
        return cap(scores(self.head(hidden), self.output_weight, self.head.bias), self.config.logit_softcap)

    def loss(self, batch: Batch, *, dtype: torch.dtype | None = None, smoothing: float = 0.0) -> Tensor:
        """The sum of -log p(target) over the batch, in nats: a float32 scalar (`Transformer.loss`)."""
        memory = None
        if self.config.kind == "encoder-decoder":
            memory = self.encode(batch.source, documents=batch.source_documents, dtype=dtype)  # type: ignore[attr-defined]
        hidden = self(batch.tokens, documents=batch.documents, memory=memory, dtype=dtype)
        return cross_entropy(
            self.head(hidden).flatten(0, 1),
            self.output_weight,
            batch.targets.flatten(),
            self.config.logit_softcap,
            self.head.bias,
            smoothing if self.training else 0.0,
        )

    def new_state(
        self, batch: int, capacity: int, dtype: torch.dtype | None = None, memory: Memory | None = None
    ) -> StateHistory:
        """An empty decode state for `batch` rows of up to `capacity` tokens, where the weights live."""
        weight, first = self.embed.weight, None
        if memory is not None:
            first = [[part.detach() for part in parts] for parts in self.first_state(memory.keep())]
        return StateHistory(self.config, batch, capacity, dtype or weight.dtype, weight.device, memory, first)

    def blocks(self) -> list[nn.Module]:
        """The layers of both nets: the units that are spread over ranks."""
        return [*(self.encoder if self.config.n_encoder_layers is not None else []), *self.layers]

    @property
    def n_parameters(self) -> int:
        """How many numbers are learned; a tied head counts once."""
        return sum(weight.numel() for weight in self.parameters())

    @property
    def n_active_parameters(self) -> int:
        """All of them: every token meets every weight."""
        return self.n_parameters

    @property
    def n_looked_up(self) -> int:
        """How many only stand in a table and multiply nothing; a tied head's do."""
        return 0 if self.config.tie_embeddings else self.embed.weight.numel()

    def flops_per_token(self, length: int) -> float:
        """Floating-point operations to learn from one token, forward and backward; `length` adds attention.

        Two per weight that multiplies, forward, and four backward; of an encoder-decoder: for one token of
        either side, where both are equally long.
        """
        multiplied = self.n_parameters - self.n_looked_up
        if self.config.n_encoder_layers is None:
            return 6.0 * multiplied
        return (6.0 * multiplied + 18.0 * self.config.dim * length) / 2  # a token is read, or written


def reversed_places(shape: torch.Size, documents: Tensor | None, device: torch.device) -> Tensor:
    """Where each position (B, M) stands when each text is read backwards; padding stays where it is.

    A text of 3 in a row of 5: 2 1 0 3 4.
    """
    place = torch.arange(shape[1], device=device).expand(shape)
    if documents is None:
        return place.flip(1)
    length = (documents == 0).sum(1, keepdim=True)
    return torch.where(place < length, length - 1 - place, place)
