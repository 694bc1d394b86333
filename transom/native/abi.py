"""The structs and functions of `src/transom.h`, field by field, as ctypes sees them. Read next: library."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_void_p
from typing import Any

ABI = 7
"""Of `TRANSOM_ABI`: a library of another number is refused."""

F32, BF16, I8 = range(3)
EMBED, NORM, PRODUCT, HEADS, ATTEND, THIN, ENCODE, POOL, ROUTE, GROUP, GATHER, EXPERTS, CELL = range(13)
WRITE, ADD, GATE, RESULT, REPLACE = range(5)
ALL, QUERIES, KEYS_AND_VALUES = range(3)
CELLS = {"rnn": 0, "gru": 1, "lstm": 2}
ACTIVATIONS = {"none": 0, "silu": 1, "gelu": 2, "gelu_tanh": 3, "relu": 4, "relu2": 5, "tanh": 6}


class Part(ctypes.Structure):
    """`TransomPart`: what one adapter adds to one linear map."""

    _fields_ = [
        *((name, c_void_p) for name in ("A", "B", "gain")),
        *((name, c_int32) for name in ("at", "first", "step")),
    ]


class Op(ctypes.Structure):
    """`TransomOp`: one op of a plan; what a kind does not name is 0."""

    _fields_ = [
        *((name, c_int32) for name in ("kind", "in_", "out", "wanted", "store", "activation", "layer")),
        *((name, c_int32) for name in ("n_heads", "n_kv_heads", "head_dim", "window", "bidirectional")),
        *((name, c_int32) for name in ("source", "maps", "reach")),
        *((name, c_int32) for name in ("whole_norm", "layer_norm", "position_offset", "thin", "n_parts")),
        *((name, c_int32) for name in ("n_experts", "n_active", "sigmoid", "normalize", "cell", "state")),
        *((name, c_float) for name in ("eps", "scale")),
        *(
            (name, c_void_p)
            for name in ("matrix", "table", "positions", "segments", "weight", "bias", "parts", "matrices")
        ),
    ]


class Step(ctypes.Structure):
    """`TransomStep`: what one run reads."""

    _fields_ = [
        *((name, c_int32) for name in ("n_tokens", "n_spans", "n_wanted", "n_threads", "first_op", "n_ops")),
        *((name, c_void_p) for name in ("tokens", "spans", "pages", "wanted", "segments", "sources")),
        *((name, c_void_p) for name in ("cosines", "sines", "result", "streams")),
    ]


class Draw(ctypes.Structure):
    """`TransomDraw`: how a row's next token is chosen."""

    _fields_ = [
        *((name, c_double) for name in ("uniform", "top_p")),
        *((name, c_float) for name in ("temperature", "min_p")),
        ("top_k", c_int32),
    ]


FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "transom_abi": (c_int32, []),
    "transom_level": (c_char_p, []),
    "transom_prepare": (c_int32, []),
    "transom_pack": (c_void_p, [c_int32, c_int64, c_int64, c_void_p]),
    "transom_matrix_free": (None, [c_void_p]),
    "transom_matrix_bytes": (c_int64, [c_void_p]),
    "transom_plan": (
        c_void_p,
        [c_int32, POINTER(Op), c_int32, POINTER(c_int32), POINTER(c_int32), *[c_int32] * 4, c_int64],
    ),
    "transom_plan_free": (None, [c_void_p]),
    "transom_copy_page": (None, [c_void_p, c_int32, c_int32]),
    "transom_run": (c_int32, [c_void_p, POINTER(Step)]),
    "transom_choose": (c_int32, [c_void_p, c_int64, c_int32, c_int32, POINTER(Draw), c_void_p, c_int32]),
    "transom_likeliest": (c_int32, [c_void_p, c_int64, *[c_int32] * 3, *[c_void_p] * 3, c_int32]),
    "transom_buffer": (c_void_p, [c_void_p, c_int32, c_int32, POINTER(c_int64)]),
    "transom_page": (c_void_p, [c_void_p, c_int32, c_int32, c_int32, c_int32]),
}
"""What a function gives and takes."""


def declare(handle: ctypes.CDLL) -> None:
    """Tell ctypes the types of all functions: an undeclared pointer would be cut to 32 bits."""
    for name, (gives, takes) in FUNCTIONS.items():
        function = getattr(handle, name)
        function.restype, function.argtypes = gives, takes
