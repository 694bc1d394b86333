"""Tiny models of every kind with random weights that write varied text, in folders as users have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from transom.checkpoint.huggingface import save_model
from transom.data.tokenizer import Tokenizer, train_tokenizer
from transom.model.build import build
from transom.model.config import ModelConfig

CHATML = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content %}{{ message.content }}{% endif %}"
    "{%- for call in message.tool_calls or [] %}"
    "{{- '<tool_call>' + call.function | tojson + '</tool_call>' }}{% endfor %}"
    "{{- '<|im_end|>' + '\\n' }}{% endfor %}"
    "{%- if tools %}{{- 'Tools: ' + tools | tojson + '\\n' }}{% endif %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEXT = "The crow and the fox. 'Cheese', said he — naïve, 世界 😀! One two three four. " * 40
SMALL = dict(n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=48, max_len=256)
LABELS = ("good", "bad", "neither")


def chat_tokenizer() -> Tokenizer:
    """A byte-level vocabulary with ChatML's two control tokens, a template, and an end token of its own."""
    plain = train_tokenizer("bpe", iter([TEXT]), 320)
    spec = json.loads(plain.json_text)
    for content in ("<|im_start|>", "<|im_end|>"):
        number = 1 + max(token["id"] for token in spec["added_tokens"])
        number = max(number, plain.vocab_size + len(spec["added_tokens"]) - 2)
        spec["added_tokens"].append(
            dict(id=number, content=content, single_word=False, lstrip=False, rstrip=False, normalized=False,
                 special=True)
        )  # fmt: skip
    return Tokenizer(json.dumps(spec), {**plain.config, "chat_template": CHATML})


def chain(folder: Path, pieces: list[str], *, template: str = CHATML, special: tuple[str, ...] = ()) -> Path:
    """A decoder that answers everything with these pieces, which are added tokens, all different, and an end.

    Each piece leads to the next and every other token to the first, whatever stands before; where it may not,
    to any that may.
    """
    base = chat_tokenizer()
    spec = json.loads(base.json_text)
    script = range(base.vocab_size, base.vocab_size + len(pieces))
    spec["added_tokens"] += [
        dict(id=id, content=piece, single_word=False, lstrip=False, rstrip=False, normalized=False,
             special=piece in special)
        for id, piece in zip(script, pieces, strict=True)
    ]  # fmt: skip
    tokenizer = Tokenizer(json.dumps(spec), {**base.config, "chat_template": template})
    end = tokenizer.backend.token_to_id("<|im_end|>")
    config = ModelConfig(
        tokenizer.vocab_size,
        32,
        1,
        **{**SMALL, "max_len": 1024},
        tie_embeddings=False,
        eos_id=end,  # type: ignore[arg-type]
    )
    model = build(config, 0).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.zero_()
        model.embed.weight[:, 0] = 1.0
        model.head.weight.normal_(generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr, operator]
        for place, (token, following) in enumerate(zip(script, [*script[1:], end], strict=True), start=1):
            model.embed.weight[token] = torch.eye(32)[place]
            model.head.weight[following, place] = 60.0  # type: ignore[union-attr, operator]
        model.head.weight[script[0], 0] = 60.0  # type: ignore[union-attr, operator]
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder, model, tokenizer)
    return folder


def decoder(folder: Path, *, chat: bool = True, cell: str | None = None, max_len: int = 256) -> Path:
    """A decoder that writes varied text: sharp enough to be the same on every machine."""
    tokenizer = chat_tokenizer() if chat else train_tokenizer("bpe", iter([TEXT]), 320)
    config = ModelConfig(
        tokenizer.vocab_size, 32, 2, **{**SMALL, "max_len": max_len}, cell=cell, tie_embeddings=False,  # type: ignore[arg-type]
        eos_id=tokenizer.eos_id,
    )  # fmt: skip
    return _saved(folder, config, tokenizer)


def translator(folder: Path) -> Path:
    """An encoder-decoder over letters."""
    letters = train_tokenizer("chars", iter(["abcdefghijklmnopqrstuvwxyz ABC<>/s|"]), 64, frame="target")
    config = ModelConfig(
        letters.vocab_size, 32, 1, 4, 4, head_dim=8, ffn_dim=48, max_len=48, kind="encoder-decoder",
        n_encoder_layers=1, activation="relu", gated=False, norm="layer", qkv_bias=True, out_bias=True,
        ffn_bias=True, position="sinusoidal", start_id=letters.pad_id, eos_id=letters.eos_id,
        pad_id=letters.pad_id, scale_embeddings=True, norm_position="after", norm_eps=1e-5, head_bias=True,
    )  # fmt: skip
    return _saved(folder, config, letters, scale=False)


def encoder(folder: Path, head: str) -> Path:
    """An encoder that tells three classes apart, or that embeds."""
    words = train_tokenizer("bpe", iter([TEXT]), 320, frame="text")
    more: dict[str, Any] = {"labels": LABELS} if head == "classify" else {"normalize": True}
    config = ModelConfig(
        words.vocab_size,
        32,
        2,
        4,
        4,
        head_dim=8,
        ffn_dim=48,
        max_len=64,
        kind="encoder",
        head=head,  # type: ignore[arg-type]
        activation="gelu",
        gated=False,
        norm="layer",
        qkv_bias=True,
        out_bias=True,
        ffn_bias=True,
        position="learned",
        norm_position="after",
        embed_norm=True,
        segments=2,
        norm_eps=1e-5,
        pad_id=words.pad_id,
        tie_embeddings=head == "tokens",
        **more,
    )
    return _saved(folder, config, words, scale=False)


def _saved(folder: Path, config: ModelConfig, tokenizer: Tokenizer, *, scale: bool = True) -> Path:
    model = build(config, 0).eval()
    if scale:  # so that two candidates hardly ever tie within float rounding
        with torch.no_grad():
            model.head.weight.mul_(30)  # type: ignore[operator, union-attr]
            model.embed.weight.mul_(40)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder, model, tokenizer)
    return folder


if __name__ == "__main__":
    import sys

    at = Path(sys.argv[1])
    decoder(at / "crow" / "model")
    decoder(at / "plain" / "model", chat=False)
    decoder(at / "lstm" / "model", chat=False, cell="lstm")
    translator(at / "moses" / "model")
    encoder(at / "sorter" / "model", "classify")
    encoder(at / "vector" / "model", "embed")
