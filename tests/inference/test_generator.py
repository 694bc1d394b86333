"""Generation: transformers as the oracle, and the promises that hold for every model and request."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tests.inference.plain_runner import PlainRunner
from tests.scale import scaled
from transom.data.chat_template import ChatTemplate
from transom.data.tokenizer import Tokenizer, train_tokenizer
from transom.errors import Refused
from transom.inference.classifier import Classifier
from transom.inference.engine import Engine, EngineSettings
from transom.inference.generator import Generator
from transom.inference.load import load
from transom.inference.runner import BlockRunner
from transom.inference.sampling import uniform
from transom.model.config import ModelConfig
from transom.model.transformer import Transformer

BYTES: Tokenizer = train_tokenizer("bytes", iter(["any text"]), 258)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """These models are too small to share among cores; on a busy machine that only adds waiting."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(seed: int = 0, **changes: object) -> Generator:
    """A small random model whose next tokens are neither certain nor all alike."""
    config = ModelConfig(
        BYTES.vocab_size, 48, 2, 4, 2, head_dim=12, ffn_dim=64, max_len=96, tie_embeddings=False
    )
    model = Transformer(config.with_(**changes), seed).eval()
    with torch.no_grad():
        model.head.weight.mul_(12)
        model.embed.weight.mul_(40)
    return Generator(model, BYTES)


class Scripted(Generator):
    """Whatever it reads after a prompt of two tokens, it writes these, one after the other."""

    def __init__(self, script: list[int]) -> None:
        super().__init__(tiny(max_len=999).model, BYTES)
        self.script = torch.nn.functional.one_hot(torch.tensor(script), BYTES.vocab_size).float() * 50

    def score(self, tokens: list[int], source: list[int] | None) -> Tensor:
        return self.script[(torch.arange(len(tokens)) - 1).clamp(0, len(self.script) - 1)]

    def engine(self, settings: EngineSettings, **how: object) -> Engine:
        runner = PlainRunner(self.score, vocab_size=BYTES.vocab_size, max_len=999, n_tokens=4096)
        return Engine(runner, BYTES, eos_ids=self.eos_ids, settings=settings)


def written(text: str | list[int], **settings):
    """What becomes of a model's output `text` (or tokens) under these settings."""
    script = [*BYTES.encode(text), BYTES.eos_id] if isinstance(text, str) else text
    generator = Scripted(script)
    settings = {"max_tokens": 300, "temperature": 0, **settings}
    stream = generator.stream("ab", **settings)
    pieces = list(stream)
    whole = generator.generate("ab", **settings)
    assert stream.completion == whole and "".join(pieces) == whole.text
    return whole


# ------------------------------------------------------------------------------------- beside transformers


def hugging_face(family: str, vocab_size: int = BYTES.vocab_size):
    import transformers as hf

    shared = {"vocab_size": vocab_size, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    llama = shared | {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3,
    }  # fmt: skip
    torch.manual_seed(7)
    match family:
        case "gpt2":
            sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
            return hf.GPT2LMHeadModel(hf.GPT2Config(**shared, **sizes, initializer_range=0.3))
        case "llama":
            return hf.LlamaForCausalLM(hf.LlamaConfig(**llama, tie_word_embeddings=False))
        case "mistral":
            return hf.MistralForCausalLM(hf.MistralConfig(**llama, sliding_window=7, head_dim=8))
        case _:
            return hf.Qwen3ForCausalLM(hf.Qwen3Config(**llama, head_dim=8))


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "qwen3"])
def test_greedy_tokens_and_logits_are_those_of_transformers(family: str, tmp_path: Path):
    theirs = hugging_face(family).eval()
    theirs.save_pretrained(tmp_path)
    BYTES.save(tmp_path)
    ours = load(tmp_path)
    prompt = torch.randint(0, 250, (1, 17), generator=torch.Generator().manual_seed(3))
    attention = torch.ones_like(prompt)
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(prompt[0]), theirs(prompt).logits[0], atol=1e-4, rtol=1e-4)
    for penalty in (1.0, 1.4):
        expected = theirs.generate(
            prompt, attention_mask=attention, do_sample=False, max_new_tokens=40, repetition_penalty=penalty
        )[0, 17:]
        got = ours.generate(
            prompt[0].tolist(), temperature=0, max_tokens=40, repetition_penalty=penalty, ignore_eos=True
        )
        assert got.tokens == expected.tolist()


def test_what_is_no_token_is_never_written(tmp_path: Path):
    """A vocabulary is often padded: the last rows of the head belong to no token."""
    theirs = hugging_face("llama", vocab_size=300).eval()
    theirs.save_pretrained(tmp_path)
    BYTES.save(tmp_path)
    ours, prompt = load(tmp_path), list(range(40, 60))
    free = theirs.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=40)[0, 20:].tolist()
    assert max(free) >= BYTES.vocab_size, "the model itself would write such"
    expected = theirs.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=40, suppress_tokens=[*range(258, 300)]
    )
    assert (
        ours.generate(prompt, temperature=0, max_tokens=40, ignore_eos=True).tokens
        == expected[0, 20:].tolist()
    )
    drawn = ours.generate(prompt, temperature=2, max_tokens=40, n=4, seed=1, ignore_eos=True, logprobs=20)
    assert max(token for one in drawn for token in one.tokens) < BYTES.vocab_size
    for one in drawn:
        for place, entry in enumerate(one.logprobs or []):  # the model's own, whatever may be written
            logits = ours.logits([*prompt, *one.tokens[:place]])[-1]
            assert entry.logprob == pytest.approx(float(logits.log_softmax(-1)[entry.token]), abs=1e-3)
            break


def test_the_end_tokens_of_the_folder_end_a_completion(tmp_path: Path):
    theirs = hugging_face("llama").eval()
    theirs.save_pretrained(tmp_path)
    BYTES.save(tmp_path)
    free = load(tmp_path).generate([1, 2, 3], temperature=0, max_tokens=30, ignore_eos=True).tokens
    ends = sorted({free[4], free[9]})
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    ours = load(tmp_path)
    assert ours.eos_ids == set(ends)
    done = ours.generate([1, 2, 3], temperature=0, max_tokens=30)
    first = min(free.index(end) for end in ends)
    assert done.tokens == free[: first + 1] and done.finish_reason == "stop"
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": free[2]}))
    assert load(tmp_path).eos_ids == {free[2]}


def test_load_tells_its_arithmetic_and_obeys_when_asked(tmp_path: Path):
    hugging_face("llama").save_pretrained(tmp_path)
    BYTES.save(tmp_path)
    plain = load(tmp_path)
    assert plain.model.embed.weight.dtype == torch.float32 and not plain.model.training
    assert "float32: exact, and as fast for fewer than 50M parameters" in repr(plain)
    half = load(str(tmp_path), dtype="bfloat16", device="cpu")
    assert half.model.embed.weight.dtype == torch.bfloat16
    assert half.model.frequencies is not None and half.model.frequencies.dtype == torch.float32
    assert half.logits("text").dtype == torch.float32
    torch.testing.assert_close(half.logits("text"), plain.logits("text"), atol=0.5, rtol=0.1)
    with pytest.raises(Refused, match=r"dtype is 'int8'; it must be one of"):
        load(tmp_path, dtype="int8")
    with pytest.raises(Refused, match=r"holds a Generator, not a Classifier"):
        load(tmp_path, Classifier)
    with pytest.raises(Refused):
        load(tmp_path / "nowhere")


# ---------------------------------------------------------------------------------------- cache and batches

SHAPES = {
    "rotary": {},
    "window": {"window": 5},
    "one sliding layer": {"window": 3, "window_layers": (True, False)},
    "learned": {"position": "learned", "norm": "layer", "gated": False},
    "soft-cap": {"attn_softcap": 2.0, "logit_softcap": 3.0, "qk_norm": True},
    "sinusoidal, post-norm": {"position": "sinusoidal", "norm_position": "after"},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_cached_equals_uncached(shape: str):
    generator = tiny(**SHAPES[shape])
    prompts = [[5, 6, 7, 8, 9, 10, 11], [40], [3, 2, 1, 0]]
    model, sequences = generator.model, [list(prompt) for prompt in prompts]
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    with torch.inference_mode():
        state = model.new_state(len(prompts), 40)
        padded = pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True)
        hidden = model(padded, state=state)[torch.arange(len(prompts)), lengths - 1]
        state.truncate(lengths.tolist())
        for step in range(30):
            for row, sequence in zip(model.logits(hidden), sequences, strict=True):
                torch.testing.assert_close(row, generator.logits(sequence)[-1], atol=1e-5, rtol=1e-5)
            if step == 15:  # the middle row leaves, the others change places
                state.reorder([2, 0])
                sequences = [sequences[2], sequences[0]]
            for number, sequence in enumerate(sequences):
                sequence.append((step * 7 + number) % 200)
            hidden = model(torch.tensor([sequence[-1:] for sequence in sequences]), state=state)[:, -1]


@settings(max_examples=scaled(25))
@given(
    prompts=st.lists(st.text(alphabet="abc é", max_size=12), min_size=1, max_size=5),
    seed=st.integers(-(2**63), 2**63 - 1),
    how=st.fixed_dictionaries(
        {"temperature": st.sampled_from([0, 0.7, 1.3])},
        optional={
            "top_k": st.integers(1, 40),
            "top_p": st.floats(0.1, 1),
            "min_p": st.floats(0, 0.5),
            "repetition_penalty": st.floats(0.8, 1.5),
            "stop": st.lists(st.sampled_from(["a", "\n", "ab", "é", "7"]), max_size=3),
            "n": st.integers(1, 3),
        },
    ),
    model=st.sampled_from(list(SHAPES)),
)
def test_batched_equals_alone_and_stream_equals_whole(prompts, seed, how, model):
    generator = tiny(**SHAPES[model])
    generator.model.double()  # rounding in float64 is too small to ever decide a draw
    how = {"max_tokens": 14, "seed": seed, **how}
    together = generator.generate(prompts, **how)
    assert isinstance(together, list)
    alone = [generator.generate(prompt, **how) for prompt in prompts]
    flat = [one for each in alone for one in (each if isinstance(each, list) else [each])]
    assert [c.tokens for c in together] == [c.tokens for c in flat]
    assert together == flat
    if how.get("n", 1) == 1:
        for prompt, whole in zip(prompts, together, strict=True):
            stream = generator.stream(prompt, **how)
            assert "".join(stream) == whole.text and stream.completion == whole


@pytest.mark.parametrize("how", [{"temperature": 0}, {"seed": 4, "n": 2}, {"seed": 5, "top_p": 0.8}])
def test_batched_equals_alone_in_float32(how):
    generator, prompts = tiny(), ["a", "longer than the others", "", "four"]
    alone = [generator.generate(prompt, max_tokens=40, **how) for prompt in prompts]
    flat = [one for each in alone for one in (each if isinstance(each, list) else [each])]
    assert generator.generate(prompts, max_tokens=40, **how) == flat


def test_more_prompts_than_run_together_change_nothing(monkeypatch: pytest.MonkeyPatch):
    generator, prompts = tiny(), [f"prompt {i % 7}" for i in range(11)]
    whole = generator.generate(prompts, max_tokens=8, seed=2, n=2)
    monkeypatch.setattr("transom.inference.generator.MAX_ROWS", 5)
    assert tiny().generate(prompts, max_tokens=8, seed=2, n=2) == whole


def test_ended_rows_leave_the_batch(monkeypatch: pytest.MonkeyPatch):
    generator, rows = tiny(), []
    run = BlockRunner.run
    monkeypatch.setattr(
        BlockRunner, "run", lambda self, chunks: (rows.append(len(chunks)), run(self, chunks))[1]
    )
    made = generator.generate(
        ["a", "b", "c", "d"], max_tokens=40, seed=1, temperature=1.5, stop=list("aeiou\n ")
    )
    assert isinstance(made, list)
    assert len({len(c.tokens) for c in made}) > 1
    longest = max(len(c.tokens) for c in made)
    assert rows == [sum(len(c.tokens) > step for c in made) for step in range(longest)]


# -------------------------------------------------------------------------------------------- what is written


def test_the_same_seed_writes_the_same_and_none_tells_its_own():
    generator = tiny()
    first = generator.generate("once", max_tokens=20)
    again = generator.generate("once", max_tokens=20, seed=first.seed)
    assert first == again
    other = generator.generate("once", max_tokens=20)
    assert other.seed != first.seed and other.tokens != first.tokens
    several = generator.generate("once", max_tokens=20, seed=first.seed, n=4)
    assert isinstance(several, list) and several[0] == first
    assert len({tuple(c.tokens) for c in several}) == 4
    twins = generator.generate(["once", "once"], max_tokens=20, seed=5)
    assert isinstance(twins, list) and twins[0] == twins[1]


def test_every_step_and_sample_draws_a_number_of_its_own():
    generator = tiny()
    with torch.no_grad():
        generator.model.head.weight.zero_()  # every token alike
    for sample, done in enumerate(generator.generate("x", max_tokens=20, seed=9, n=3, ignore_eos=True)):
        drawn = [int(uniform(9, sample, step) * BYTES.vocab_size) for step in range(20)]
        assert done.tokens == drawn


def test_the_end_token_ends_and_makes_no_text():
    done = written("héllo")
    assert (done.text, done.finish_reason, done.stop_string) == ("héllo", "stop", None)
    assert done.tokens[-1] == BYTES.eos_id and len(done.tokens) == 7
    cut = written("hello", max_tokens=3)
    assert (cut.text, cut.finish_reason, len(cut.tokens)) == ("hel", "length", 3)
    past = written(
        [*BYTES.encode("a"), BYTES.eos_id, BYTES.pad_id, *BYTES.encode("b")], ignore_eos=True, max_tokens=4
    )
    assert (past.text, past.finish_reason) == ("ab", "length")


def test_stop_strings_cross_tokens_and_characters():
    done = written("naïve → text", stop=["→ t", "zzz"])
    assert (done.text, done.finish_reason, done.stop_string) == ("naïve ", "stop", "→ t")
    held = written("one tw", stop="two")
    assert (held.text, held.stop_string, held.finish_reason) == ("one tw", None, "stop")
    cut = written("one two", stop="two", max_tokens=6)
    assert (cut.text, cut.finish_reason) == ("one tw", "length")
    last = written("one two", stop="two", max_tokens=7)
    assert (last.text, last.finish_reason) == ("one ", "stop")
    half = written("é", max_tokens=1)  # the first byte of two
    assert (half.text, half.finish_reason) == ("\ufffd", "length")
    broken = written("x é", stop="\ufffd", max_tokens=3)
    assert (broken.text, broken.stop_string, broken.finish_reason) == ("x ", "\ufffd", "stop")


@settings(max_examples=scaled(60))
@given(
    text=st.text(alphabet="ab é→😀", max_size=12),
    stop=st.lists(st.text(alphabet="ab é→😀", min_size=1, max_size=3), max_size=3),
    max_tokens=st.integers(1, 40),
)
def test_the_text_never_holds_a_stop_string(text: str, stop: list[str], max_tokens: int):
    done = written(text, stop=stop, max_tokens=max_tokens)
    assert not any(one in done.text for one in stop)
    assert text.startswith(done.text.rstrip("\ufffd"))


def test_logprobs_are_the_models_own():
    generator = tiny()
    done = generator.generate(
        "word", max_tokens=10, seed=3, temperature=1.4, top_k=30, repetition_penalty=1.3, logprobs=3
    )
    tokens = [*BYTES.encode("word"), *done.tokens]
    expected = generator.logits(tokens).log_softmax(-1)
    assert done.logprobs is not None and len(done.logprobs) == 10
    for step, entry in enumerate(done.logprobs):
        row = expected[3 + step]
        assert entry.logprob == pytest.approx(row[entry.token].item(), abs=1e-5)
        assert [one.token for one in entry.top] == row.topk(3).indices.tolist()
        assert entry.text == BYTES.token(entry.token)
    assert generator.generate("word", max_tokens=2).logprobs is None
    assert generator.generate("word", max_tokens=2, logprobs=0).logprobs[0].top == ()


def test_a_completion_tells_itself():
    done = tiny().generate("word", max_tokens=5, seed=1, logprobs=2)
    plain = json.loads(json.dumps(done.to_dict()))
    assert plain["tokens"] == done.tokens and plain["logprobs"][0]["top"][1]["token"] >= 0
    assert str(done) == done.text and "4 + 5 tokens, ended by length, seed 1" in repr(done)


def test_an_empty_prompt_starts_from_the_end_token():
    generator = tiny()
    empty = generator.generate("", temperature=0, max_tokens=6)
    assert empty == generator.generate([BYTES.eos_id], temperature=0, max_tokens=6)
    assert empty.n_prompt_tokens == 1


def test_a_text_begins_as_the_tokenizer_of_the_folder_says():
    backend, eos = Backend.from_str(BYTES.json_text), BYTES.eos_id
    backend.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", eos)]
    )
    generator = Generator(tiny().model, Tokenizer(backend.to_str(), BYTES.config))
    begun = generator.generate("ab", temperature=0, max_tokens=9)
    assert begun.tokens == tiny().generate([eos, *BYTES.encode("ab")], temperature=0, max_tokens=9).tokens
    assert generator.generate("").n_prompt_tokens == 1
    assert generator.generate([5, 6]).n_prompt_tokens == 2  # ids are taken as they are


def test_control_tokens_in_a_prompt_are_only_text():
    generator = tiny()
    done = generator.generate("<|endoftext|>", max_tokens=2)
    assert done.n_prompt_tokens > 1


def test_logits_are_an_ordinary_tensor():
    generator = tiny()
    logits = generator.logits("some text")
    assert (
        logits.shape == (9, BYTES.vocab_size) and logits.dtype == torch.float32 and not logits.is_inference()
    )
    assert torch.equal(logits, generator.logits(BYTES.encode("some text")))
    assert torch.equal(logits, generator.logits(torch.tensor(BYTES.encode("some text"))))


def test_without_max_tokens_a_completion_fills_what_is_left():
    generator = tiny(max_len=20)
    done = generator.generate("twelve bytes", ignore_eos=True)
    assert len(done.tokens) == 8 and done.finish_reason == "length"
    assert len(tiny(max_len=400).generate("x", ignore_eos=True).tokens) == 128


@pytest.mark.parametrize(
    ("prompt", "settings", "says"),
    [
        ("x" * 90, {"max_tokens": 10}, "has 90 tokens and max_tokens is 10: together 100, where this model's"
         " limit (max_len) is 96; shorten the prompt by 4 tokens or set max_tokens to at most 6"),
        ("x" * 96, {}, "96 tokens and max_tokens is 1"),
        (["x", "x" * 97], {"max_tokens": 1}, "prompt 1 has 97 tokens"),
        ([1, 999], {}, "holds token 999 at place 1; this model's tokens are 0 to"),
        ([-1], {}, "holds token -1 at place 0"),
        ([[1], ["x"]], {}, "prompt 1 is neither text nor a list of token ids"),
        ([1.5], {}, "neither text nor a list of token ids"),
        ([], {}, "the list of prompts is empty"),
        (None, {}, "a prompt is a NoneType"),
        (b"x", {}, "a prompt is a bytes"),
        ("x", {"max_new_tokens": 5}, "did you mean 'max_tokens'?"),
        ("x", {"n": -1}, "n is -1"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_with_the_numbers(prompt, settings, says):
    with pytest.raises(Refused) as refused:
        tiny().generate(prompt, **settings)
    assert says in str(refused.value) and len(str(refused.value)) < 300


def test_streams_and_logits_refuse_several_at_once():
    generator = tiny()
    for prompt, more in ((["a", "b"], {}), ("a", {"n": 2})):
        with pytest.raises(Refused, match="stream writes one completion"):
            generator.stream(prompt, **more)
    with pytest.raises(Refused, match="logits reads one text"):
        generator.logits(["a", "b"])  # type: ignore[list-item]
    with pytest.raises(Refused, match="97 tokens; this model reads at most 96"):
        generator.logits("x" * 97)


def test_chat_is_what_comes_after_the_template():
    gpt = tiny()
    with pytest.raises(Refused, match="no chat template: it goes on with a text .* use generate"):
        gpt.chat("Hi")
    gpt.template = ChatTemplate.builtin("plain")
    prompt = gpt.template.render([{"role": "user", "content": "Hi"}], BYTES).tokens
    greedy = {"temperature": 0, "stop": "\nUser:"}
    whole = gpt.generate(prompt, max_tokens=24, **greedy)
    assert gpt.answer_tokens == 24 and gpt.chat("Hi", temperature=0).tokens == whole.tokens
    assert (
        gpt.chat("Hi", temperature=0, stop=whole.text[3]).text
        == whole.text[: whole.text.index(whole.text[3])]
    )
    with pytest.raises(Refused, match="chat gives one answer"):
        gpt.chat("Hi", n=2)  # type: ignore[call-arg]
    with pytest.raises(Refused, match=r"messages\[0\].role is 'robot'"):
        gpt.chat([{"role": "robot", "content": "Hi"}])


def test_damaged_weights_are_told_apart_from_bad_luck():
    generator = tiny()
    with torch.no_grad():
        generator.model.head.weight[3, 3] = math.nan
    with pytest.raises(Refused, match="not finite"):
        generator.generate("any", max_tokens=2)
    stream = generator.stream("any", max_tokens=2)
    with pytest.raises(Refused, match="not finite"):
        next(stream)
    assert list(stream) == [] and stream.completion is None
