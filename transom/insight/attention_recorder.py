"""Record the attention calls of one thread while a `look` block is open.

The kernel runs as it always does; what it was given is noted, and its normaliser is read off the operator
below. Where no kernel runs, the model's own softmax is the map: our rules that none knows (soft-cap), and
models that write their attention out. Recurrences pass by here too. Read next: recorded_calls, look.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from transom.model.attend import attend_plain
from transom.model.cpu import aligned_attention

from .module_finder import NO_TEXT
from .recorded_calls import (
    AttentionArgs,
    CallInputs,
    RecordedCall,
    RecordedRecurrence,
    apart,
    bound,
    four,
    of_kernel,
    prove,
)

_ATEN = torch.ops.aten
KERNELS = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_cudnn_attention.default,
}
"""The fused kernels: each returns its output and, second, its normaliser."""
FOLLOWS = {"matmul": True, "__matmul__": True, "bmm": True, "to": False, "type_as": False}
"""What a model does with a softmax that is a map: multiplies it with values (True), or casts it before."""
RECURRENCES = {"lstm": "lstm", "gru": "gru", "rnn_tanh": "rnn"}
"""torch's names of its fused recurrences, and of their cells."""
_DOOR = _ATEN.scaled_dot_product_attention.default


class _Kernels(TorchDispatchMode):
    """The fused kernels that run inside one call: the arguments of each, and what it returned."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[tuple[tuple[Any, ...], dict[str, Any], tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _DOOR:  # in inference mode it arrives whole
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        if func in KERNELS:
            self.ran.append((args, kwargs, out))
        return out


class AttentionRecorder(TorchFunctionMode):
    """Keep every attention call, or recurrence, of this thread while it is entered.

    names: by the identity of a module's table of parameters, to tell where a call happened.
    wanted: whether 'attention' or 'states' of the module of a name is to be kept.
    """

    def __init__(self, names: dict[int, str], wanted: Callable[[str, str], bool]) -> None:
        super().__init__()
        self.names, self.wanted = names, wanted
        self.kept: list[RecordedCall] = []
        self.recurred: list[RecordedRecurrence] = []
        self.read: list[tuple[str, Tensor]] = []
        """(module, ids) of the texts that were looked up in an embedding."""
        self._pieces: list[tuple[tuple[Any, ...], dict[str, Any], tuple[Any, ...]]] = []
        """What the kernel ran for the call of `aligned_attention` that is not over."""
        self._softmax: weakref.ref[Tensor] | None = None
        """What may become the map of a model that writes its attention out."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attention(func, args, kwargs)
        if func is F.multi_head_attention_forward:
            return self._multi_head(func, args, kwargs)
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if func is torch.einsum:
            self._by_our_rule(sys._getframe(1), out)
        elif func is torch.cat:
            self._in_pieces(sys._getframe(1), out)
        elif func is F.embedding:
            place, _ = self._place(sys._getframe(1))
            if args[0].dim() == 2 and not NO_TEXT.search(place):
                self.read.append((place, args[0].detach()))
        elif name in RECURRENCES and len(args) == 9:
            self._recurrence(RECURRENCES[name], args, out)
        elif name == "softmax" and out.dim() in (3, 4):
            self._softmax = weakref.ref(out)
        elif self._softmax is not None and name in FOLLOWS and args[0] is self._softmax():
            if FOLLOWS[name]:
                self._written_out(args[0], args[1], out)
            else:
                self._softmax = weakref.ref(out)
        return out

    def _recurrence(self, cell: str, args: Any, out: Any) -> None:
        read, first, weights, biased, n_layers, _, _, two_ways, batch_first = args
        name, _ = self._place(sys._getframe(2))
        if not isinstance(biased, bool) or not biased or not self.wanted("states", name):
            return  # packed rows of different lengths have other arguments
        parts = first if isinstance(first, tuple | list) else (first,)
        self.recurred.append(
            RecordedRecurrence(
                name, cell, read.detach(), tuple(part.detach() for part in parts),
                [weight.detach() for weight in weights], out[0].detach(), n_layers,
                not two_ways, batch_first,
            )
        )  # fmt: skip

    def _attention(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        with _Kernels() as kernels:
            out = func(*args, **kwargs)
        if sys._getframe(2).f_code is aligned_attention.__code__:
            self._pieces += kernels.ran
            return out
        name, module = self._place(sys._getframe(2))
        if self.wanted("attention", name):
            given = bound(*args, **kwargs)
            normaliser = None
            if len(kernels.ran) == 1:
                *_, answers = kernels.ran[0]
                normaliser = answers[1][..., : given.query.shape[-2]]  # some fill up their rows to 32
            given, shown = apart(module, given, out)
            self._keep(name, given, normaliser, shown)
        return out

    def _multi_head(self, func: Any, args: Any, kwargs: Any) -> Any:
        """`nn.MultiheadAttention` calls the kernel out of our sight: what it ran is seen below."""
        with _Kernels() as kernels:
            out = func(*args, **kwargs)
        name, _ = self._place(sys._getframe(2))
        if self.wanted("attention", name):
            for args, named, answers in kernels.ran:
                normaliser = answers[1][..., : args[0].shape[-2]]
                self._keep(name, of_kernel(*args, **named), normaliser, answers[0])
        return out

    def _written_out(self, weights: Tensor, value: Tensor, out: Tensor) -> None:
        """A map that the model itself held, and multiplied with its values."""
        name, _ = self._place(sys._getframe(2))
        if self.wanted("attention", name) and value.dim() == weights.dim():
            if weights.dim() == 3:  # a text each, and one head
                weights, value, out = (x[:, None] for x in (weights, value, out))
            given = CallInputs(weights[..., :0], value[..., :0], value, AttentionArgs(scale=1.0))
            self._keep(name, given, None, out, written=weights.detach())

    def _by_our_rule(self, frame: FrameType | None, out: Tensor) -> None:
        """Our own attention where no kernel knows its rule: the last product of `attend_plain`."""
        while frame is not None and frame.f_code is not attend_plain.__code__:
            if frame.f_globals.get("__name__", "").partition(".")[0] != "torch":
                return
            frame = frame.f_back
        if frame is None or "pattern" not in frame.f_locals:
            return
        name, module = self._place(frame)
        if self.wanted("attention", name):
            self._keep_ours(name, module, frame.f_locals, None, out.transpose(1, 2))

    def _in_pieces(self, frame: FrameType, out: Tensor) -> None:
        """Our attention that asks the kernel for some queries at a time: one call, kept when it ends."""
        if frame.f_code is not aligned_attention.__code__:
            return
        ran, self._pieces = self._pieces, []
        name, module = self._place(frame)
        if self.wanted("attention", name):
            counts = [piece.shape[2] for piece in frame.f_locals["mixed"]]
            parts = [answers[1][..., :n] for n, (*_, answers) in zip(counts, ran, strict=True)]
            self._keep_ours(name, module, frame.f_locals, torch.cat(parts, dim=-1), out)

    def _keep_ours(
        self,
        name: str,
        module: nn.Module | None,
        seen: dict[str, Any],
        normaliser: Tensor | None,
        out: Tensor,
    ) -> None:
        """What a function of ours was called with, by the names there, and its output (B, H, L, K)."""
        query, key, value, rule = (seen[part] for part in ("query", "key", "value", "rule"))
        n_queries, n_keys = query.shape[1], key.shape[1]
        plain = rule.is_plainly_causal(n_queries, n_keys)
        mask = None if plain else rule.mask(n_queries, n_keys, query.device)
        if mask is not None and rule.positions is not None:  # slots behind the last query fill up a row
            n_keys = int(rule.positions.max()) + 1
            key, value, mask = key[:, :n_keys], value[:, :n_keys], mask[..., :n_keys]
        asked = AttentionArgs(
            scale=rule.scale_of(query),
            causal=plain,
            mask=mask,
            bias=rule.bias,
            softcap=rule.softcap,
        )
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        given, out = apart(module, CallInputs(query, key, value, asked), out)
        self._keep(name, given, normaliser, out)

    def _keep(
        self,
        name: str,
        given: CallInputs,
        normaliser: Tensor | None,
        out: Tensor,
        written: Tensor | None = None,
    ) -> None:
        n_keys, rule = given.key.shape[-2], given.rule
        tokens = next((ids for _, ids in reversed(self.read) if ids.shape[1] == n_keys), None)
        query, key, value, out = (four(x) for x in (given.query, given.key, given.value, out))
        if normaliser is not None and normaliser.numel() != query[..., 0].numel():
            normaliser = None  # some kernels make none where no gradient is wanted
        if normaliser is not None:
            normaliser = normaliser.detach().reshape(query.shape[:-1])
        kept = RecordedCall(name, query, key, rule, normaliser, prove(value, out), tokens, written)
        self.kept.append(kept)

    def _place(self, frame: FrameType | None) -> tuple[str, nn.Module | None]:
        """The innermost module whose method is running, with its name; '' outside of the model."""
        while frame is not None:
            code = frame.f_code
            if code.co_argcount and code.co_varnames[0] == "self":
                module = frame.f_locals.get("self")
                if isinstance(module, nn.Module) and (key := id(module._parameters)) in self.names:
                    return self.names[key], module
            frame = frame.f_back
        return "", None
