"""Gates and states of a recurrence, which the fused pass keeps to itself: computed again, and checked.

A layer is run step by step over what it read, by the equations of its cell, and must end in the states that
the fused pass gave. Ours and `torch.nn`'s RNN, LSTM and GRU alike, in one direction. Sources: Elman 1990;
Hochreiter & Schmidhuber 1997; Cho et al. 2014. Read next: look.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from transom.errors import Refused

from .maps import LIMITS, Mismatch
from .module_finder import number_of
from .recorded_calls import RecordedRecurrence
from .view import View


@dataclass(frozen=True, eq=False)
class States(View):
    """What a recurrent layer held after every token: each (B, L, D) float32."""

    cell: str
    """'rnn', 'lstm' or 'gru'."""
    hidden: Tensor
    """The state that the next layer reads."""
    memory: Tensor | None
    """The cell state of an LSTM."""
    gates: dict[str, Tensor]
    """LSTM: input, forget, new, output. GRU: reset, update, new. RNN: new."""
    error: float
    """The largest difference to the fused pass."""
    caveat: ClassVar[str] = "how far a gate is open says what could pass, not what did"

    def to_dict(self) -> dict[str, Any]:
        """As means over the width, (B, L), with the norm of the states."""
        return {
            "view": "States",
            "cell": self.cell,
            "gates": {name: gate.mean(-1).tolist() for name, gate in self.gates.items()},
            "hidden_norm": self.hidden.norm(dim=-1).tolist(),
            "memory_norm": None if self.memory is None else self.memory.norm(dim=-1).tolist(),
            "error": self.error,
            "caveat": self.caveat,
        }


def has_layer(kept: RecordedRecurrence, layer: int) -> bool:
    """Whether a pass went through layer number `layer`: in its name, or inside a torch module of several."""
    number = number_of(kept.name)
    return number == layer if number is not None else layer < kept.n_layers


@torch.no_grad()
def states_of(kept: RecordedRecurrence, layer: int) -> States:
    """Run a pass again step by step up to a layer; raises Mismatch if it ends elsewhere."""
    if not kept.one_way:
        raise Refused(
            f"{kept.name} reads from both ends: its gates are not shown; look at a layer of one direction"
        )
    if len(kept.weights) != 4 * kept.n_layers:
        raise Refused(f"{kept.name} projects its states: its gates are not shown")
    x, out = (part if kept.batch_first else part.transpose(0, 1) for part in (kept.read, kept.out))
    passes = []
    for i in range(kept.n_layers):
        weights = [weight.float() for weight in kept.weights[4 * i : 4 * i + 4]]
        passes.append(_pass(kept.cell, x.float(), [part[i].float() for part in kept.first], weights))
        x = passes[-1].hidden
    error = float((x - out.float()).abs().max())
    if not error <= LIMITS.get(out.dtype, 1e-5):
        raise Mismatch(
            f"{kept.name}: gates not shown: states computed again differ from the pass by {error:.1e}"
        )
    return replace(passes[layer if kept.n_layers > 1 else 0], error=error)


def _pass(cell: str, x: Tensor, state: list[Tensor], weights: list[Tensor]) -> States:
    """One layer over x (B, L, in), a position at a time."""
    states, gates = [], []
    for position in x.unbind(1):
        state, opened = step(cell, position, state, weights)
        states.append(state)
        gates.append(opened)
    hidden, *memory = (torch.stack(part, 1) for part in zip(*states, strict=True))
    named = {name: torch.stack([opened[name] for opened in gates], 1) for name in gates[0]}
    return States(cell, hidden, memory[0] if memory else None, named, 0.0)


def step(
    cell: str, x: Tensor, state: list[Tensor], weights: list[Tensor]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """One position x (B, in): the parts of the state after it, and the gates, (B, D) each."""
    w_in, w_state, b_in, b_state = weights
    read, kept = F.linear(x, w_in, b_in), F.linear(state[0], w_state, b_state)
    if cell == "rnn":
        new = torch.tanh(read + kept)
        return [new], {"new": new}
    if cell == "gru":
        (reset_x, update_x, new_x), (reset_h, update_h, new_h) = read.chunk(3, -1), kept.chunk(3, -1)
        reset, update = torch.sigmoid(reset_x + reset_h), torch.sigmoid(update_x + update_h)
        new = torch.tanh(new_x + reset * new_h)
        return [(1 - update) * new + update * state[0]], {"reset": reset, "update": update, "new": new}
    into, forget, new, output = (read + kept).chunk(4, -1)
    gates = {
        "input": torch.sigmoid(into), "forget": torch.sigmoid(forget),
        "new": torch.tanh(new), "output": torch.sigmoid(output),
    }  # fmt: skip
    memory = gates["forget"] * state[1] + gates["input"] * gates["new"]
    return [gates["output"] * torch.tanh(memory), memory], gates
