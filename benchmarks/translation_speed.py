"""Translation: the same random Marian in Transom, `transformers` and CTranslate2, greedy and with 4 beams.

6 + 6 layers, 512 wide, 8 heads, feed-forward 2,048, 58,101 tokens; 32 sentences of 25 tokens, 32 new tokens
each, the end token made impossible. Transom and `transformers` in the arithmetic that is fast here, Transom
with int8 weights, and CTranslate2 in int8, all from one folder, two threads each. That the three write the
same is checked in float32 first.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ctranslate2
import torch
from ctranslate2.converters import TransformersConverter
from torch import Tensor
from transformers import MarianConfig, MarianMTModel

from transom.checkpoint.generation import read_generation
from transom.checkpoint.huggingface import load_model
from transom.hardware import Hardware, keep_memory
from transom.inference.engine import Engine
from transom.inference.native_runner import runner_for
from transom.inference.request import Request
from transom.inference.runner import Runner, TorchRunner
from transom.inference.sync_engine import SyncEngine, sync_settings
from transom.inference.token_rules import TokenRules
from transom.sampling_params import SamplingParams

from .measure import in_turns, median_ratio, numbers, tell

VOCAB, SENTENCES, SOURCE, NEW = 58_101, 32, 25, 32
END, START = 0, VOCAB - 1


def random_marian(folder: Path) -> None:
    """A Marian of the usual shape with random weights, whose end token is never written."""
    config = MarianConfig(
        vocab_size=VOCAB, d_model=512, encoder_layers=6, decoder_layers=6, encoder_attention_heads=8,
        decoder_attention_heads=8, encoder_ffn_dim=2048, decoder_ffn_dim=2048, max_position_embeddings=512,
        activation_function="swish", scale_embedding=True, pad_token_id=START, eos_token_id=END,
        decoder_start_token_id=START,
    )  # fmt: skip
    torch.manual_seed(0)
    model = MarianMTModel(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name and "positions" not in name:
                weight.mul_(2)  # or else the likeliest token is the one just written
        model.final_logits_bias[0, END] = -1e4
    model.generation_config.bad_words_ids, model.generation_config.forced_eos_token_id = [[START]], END
    model.save_pretrained(folder)


def of_transom(
    folder: Path, dtype: torch.dtype, by: Callable[..., Runner] = runner_for
) -> Callable[[Tensor, int], list[list[int]]]:
    """by: the runner; the best one here, unless told."""
    model, tokenizer = load_model(folder, dtype=dtype).eval(), numbers(VOCAB)
    rules = TokenRules(read_generation(folder, VOCAB, searches=True))
    runner = by(model, n_tokens=SENTENCES * 4 * 2 * NEW)
    engine = SyncEngine(
        lambda: Engine(runner, tokenizer, settings=sync_settings(4 * SENTENCES, chunk_tokens=4096))
    )

    def run(source: Tensor, beam: int) -> list[list[int]]:
        requests = [
            Request(
                [START], SamplingParams(temperature=0, logprobs=0), max_tokens=NEW, seed=0, sample=0,
                eos_ids=[END], decoder=tokenizer.decoder(), source=row, beam=beam,
                rules=rules,
            )
            for row in source.tolist()
        ]  # fmt: skip
        for _ in engine.run(requests):
            pass
        return [request.tokens for request in requests]

    return run


def of_transformers(folder: Path, dtype: torch.dtype) -> Callable[[Tensor, int], list[list[int]]]:
    model = MarianMTModel.from_pretrained(folder, dtype=dtype).eval()

    def run(source: Tensor, beam: int) -> list[list[int]]:
        mask = torch.ones_like(source)
        found = model.generate(  # type: ignore[operator]
            input_ids=source, attention_mask=mask, num_beams=beam, max_new_tokens=NEW, do_sample=False
        )
        return found[:, 1:].tolist()

    return run


def of_ctranslate2(folder: Path, kind: str) -> Callable[[Tensor, int], list[list[int]]]:
    converted = folder / "ctranslate2"
    if not converted.exists():
        Converter(str(folder)).convert(str(converted))
    translator = ctranslate2.Translator(
        str(converted), compute_type=kind, inter_threads=1, intra_threads=torch.get_num_threads()
    )

    def run(source: Tensor, beam: int) -> list[list[int]]:
        found = translator.translate_batch(
            [[str(token) for token in row] for row in source.tolist()],
            beam_size=beam, max_decoding_length=NEW, max_batch_size=0, return_scores=False,
        )  # fmt: skip
        return [[int(token) for token in one.hypotheses[0]] for one in found]

    return run


class Converter(TransformersConverter):
    """CTranslate2's own converter, for a folder without a tokenizer: a token is called by its number."""

    def load_tokenizer(self, tokenizer_class: Any, model_name_or_path: str, **kwargs: Any) -> Any:
        return Numbers()


class Numbers:
    """What the converter asks of a tokenizer."""

    eos_token, unk_token = "</s>", "<unk>"

    def get_vocab(self) -> dict[str, int]:
        names = {END: self.eos_token, 1: self.unk_token, START: "<pad>"}
        return {names.get(number, str(number)): number for number in range(VOCAB)}


def agreement(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """The share of sentences that are equal token by token, but for the last: not all force the end there."""
    pairs = list(zip(ours, theirs, strict=True))
    return sum(one[: NEW - 1] == other[: NEW - 1] for one, other in pairs) / len(pairs)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("translation_speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(2)
    keep_memory()
    source = torch.randint(2, VOCAB - 1, (SENTENCES, SOURCE), generator=torch.Generator().manual_seed(1))
    lines = [
        f"{SENTENCES} sentences of {SOURCE} tokens, {NEW} new each, 2 threads, medians of {asked.rounds}"
    ]
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random_marian(folder)
        exact = {
            "transformers": of_transformers(folder, torch.float32),
            "CTranslate2": of_ctranslate2(folder, "float32"),
        }
        ours = of_transom(folder, torch.float32)
        equal = {
            beam: {who: agreement(ours(source, beam), run(source, beam)) for who, run in exact.items()}
            for beam in (1, 4)
        }
        del exact, ours
        chosen = Hardware.detect().choose_dtype().dtype
        runs = {
            "transformers": of_transformers(folder, chosen),
            "CTranslate2 int8": of_ctranslate2(folder, "int8"),
            "Transom by PyTorch": of_transom(folder, chosen, TorchRunner),
            "Transom int8": of_transom(folder, chosen, partial(runner_for, weights="int8")),
            "Transom": of_transom(folder, chosen),
        }
        for beam in (1, 4):
            seconds = in_turns({who: partial(run, source, beam) for who, run in runs.items()}, asked.rounds)
            rates = {who: SENTENCES * NEW / statistics.median(taken) for who, taken in seconds.items()}
            ratios = {who: median_ratio(seconds[who], seconds["Transom"]) for who in list(runs)[:-1]}
            figures[f"beam_{beam}"] = {
                "tokens_per_second": rates,
                "ratios": ratios,
                "equal_in_float32": equal[beam],
            }
            said = ", ".join(f"{who} {rate:,.0f}" for who, rate in rates.items())
            times = ", ".join(f"{ratio:.2f} x {who}" for who, ratio in ratios.items())
            same = ", ".join(f"{who} {share:.0%}" for who, share in equal[beam].items())
            lines.append(f"{'greedy' if beam == 1 else f'{beam} beams'}: {said} tokens/s")
            lines.append(f"  Transom is {times}; equal sentences in float32: {same}")
    tell("translation speed", lines, figures)
