"""Translation: a model trained here for seconds, saved, loaded and asked; and what is refused."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from transom.checkpoint.huggingface import save_model
from transom.data.tokenizer import Tokenizer, train_tokenizer
from transom.errors import Refused
from transom.inference.load import load
from transom.inference.translator import Translation, Translator
from transom.model.build import Model, build
from transom.model.config import ModelConfig

LETTERS = "abcdefgh"
CHARS: Tokenizer = train_tokenizer("chars", iter([LETTERS + LETTERS.upper() + " <>/s|"]), 64, frame="target")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """This model is too small to share among cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model_of(cell: str | None = None) -> Model:
    config = ModelConfig(
        CHARS.vocab_size, 48, 1, 4, 4, head_dim=12, ffn_dim=96, max_len=32, kind="encoder-decoder", cell=cell,  # type: ignore[arg-type]
        n_encoder_layers=1, activation="relu", gated=False, norm="layer", qkv_bias=True, out_bias=True,
        ffn_bias=True, position="sinusoidal", start_id=CHARS.pad_id, eos_id=CHARS.eos_id, pad_id=CHARS.pad_id,
        scale_embeddings=True, norm_position="after", norm_eps=1e-5, head_bias=True,
    )  # fmt: skip
    return build(config, 0)


def learn(model: Model, steps: int) -> None:
    """Teach a model to write a word in capitals."""
    draw, longest = random.Random(0), 9
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1, (step + 1) / 20) * (1 - step / steps)
        words = [word(draw, draw.randint(1, 8)) for _ in range(48)]
        pairs = [(CHARS.framed(w), CHARS.framed(w.upper())) for w in words]
        source, documents = torch.zeros(48, longest, dtype=torch.int64), -torch.ones(48, longest).int()
        tokens, targets = torch.zeros_like(source), torch.full_like(source, -100)
        of_target = documents.clone()
        for row, (one, other) in enumerate(pairs):
            source[row, : len(one)], documents[row, : len(one)] = torch.tensor(one), 0
            tokens[row, : len(other)] = torch.tensor([CHARS.pad_id, *other[:-1]])
            targets[row, : len(other)], of_target[row, : len(other)] = torch.tensor(other), 0
        batch = SimpleNamespace(
            source=source, source_documents=documents, tokens=tokens, targets=targets, documents=of_target,
            positions=None,
        )  # fmt: skip
        loss = model.loss(batch) / (targets >= 0).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def word(draw: random.Random, length: int) -> str:
    return "".join(draw.choice(LETTERS) for _ in range(length))


@pytest.fixture(scope="module", params=[None, "gru"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model, a Transformer and a recurrent one, saved as a folder."""
    folder = tmp_path_factory.mktemp(f"copy-{request.param}")
    model = model_of(request.param).train()
    learn(model, 200)
    save_model(folder, model.eval(), CHARS)
    return folder


@pytest.fixture(scope="module")
def translator(folder: Path) -> Translator:
    return load(folder)


def test_what_was_learned_is_written(translator: Translator) -> None:
    assert isinstance(translator, Translator)
    draw = random.Random(1)
    words = [word(draw, draw.randint(2, 8)) for _ in range(60)]
    for beam in (1, 4):
        found = translator.translate(words, beam=beam)
        right = sum(str(one) == w.upper() for one, w in zip(found, words, strict=True))
        assert right >= 54, [(w, str(one)) for one, w in zip(found, words, strict=True)][:10]
    assert all(one.n_source_tokens == len(w) + 1 for one, w in zip(found, words, strict=True))
    assert all(one.finished and one.tokens[-1] == CHARS.eos_id and one.logprob < 0 for one in found)


def test_answers_come_in_the_order_of_the_questions_and_as_alone(translator: Translator) -> None:
    words = ["abc", "h", "gfedcba", "ab", "abcdefgh", "cab", "h"]
    together = translator.translate(words)
    for text, one in zip(words, together, strict=True):
        alone = translator.translate(text)
        assert isinstance(alone, Translation) and alone.tokens == one.tokens
        assert alone.logprob == pytest.approx(one.logprob, abs=1e-4)
    assert translator.translate([]) == []


def test_a_text_is_translated_line_by_line_and_blank_lines_stay(translator: Translator) -> None:
    one, other, last = translator.translate(["ab", "gfe", "h\u2028c"])
    whole, blank, split = translator.translate(["ab\r\n\ngfe", " ", "h\u2028c\n"])
    assert (whole.text, whole.tokens) == (f"{one.text}\n\n{other.text}", one.tokens + other.tokens)
    assert whole.logprob == pytest.approx(one.logprob + other.logprob, abs=1e-4)
    assert whole.n_source_tokens == one.n_source_tokens + other.n_source_tokens
    assert blank == Translation("", [], 0.0, 0, True) and blank.mean_logprob == 0
    assert whole.mean_logprob == pytest.approx(whole.logprob / len(whole.tokens))
    assert split.text == f"{last.text}\n"  # U+2028 is a letter like another


def test_a_target_is_as_long_as_it_may_be(translator: Translator) -> None:
    one = translator.translate("abcdefgh", max_tokens=3)
    assert len(one.tokens) == 3 and not one.finished and one.text == CHARS.decode(one.tokens)
    never = Translator(translator.model, CHARS, eos_ids=[CHARS.unknown_id or 0])
    assert len(never.translate("abc", beam=1).tokens) == 2 * 4 + 10  # 3 letters and the end
    assert len(never.translate("abcdefgh" * 3, beam=1).tokens) == 32  # max_len


def test_text_that_spells_control_is_text(translator: Translator) -> None:
    assert translator.translate("</s>").n_source_tokens == 5
    spelled = CHARS.framed("<|endoftext|>")
    assert spelled.count(CHARS.eos_id) == 1


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        ("", {}, r"the text is empty; leave it out"),
        (["", " \n"], {}, r"all 2 texts are empty"),
        (
            ["a", "b\n\n" + "ab" * 20],
            {},
            r"text 1 \(counted from 0\), line 3, has 41 tokens",
        ),
        ("caf\udce9", {}, "the text: character 3 is the byte 0xe9, which is not UTF-8; write it in UTF-8"),
        (["a", "a\ud800b"], {}, r"text 1 \(counted from 0\): character 1 is half of a surrogate pair"),
        (
            ["a", "ab" * 20],
            {},
            r"text 1 .* has 41 tokens; this model reads at most 32: shorten it by 9 tokens",
        ),
        (["a", 3], {}, "text 1 is a int; give a string"),
        (7, {}, "a text is a int; give a string or a list of strings"),
        ("a", {"beam": 0}, "beam is 0; it must be a whole number from 1"),
        ("a", {"beam": 2.0}, r"beam is 2\.0"),
        ("a", {"length_penalty": "long"}, "length_penalty is 'long'"),
        ("a", {"max_tokens": 33}, "max_tokens is 33; it must be 1 to 32"),
    ],
)
def test_what_cannot_be_translated_is_refused_in_one_line(translator: Translator, texts, settings, message):
    with pytest.raises(Refused, match=message) as error:
        translator.translate(texts, **settings)
    assert "\n" not in str(error.value)


def test_its_words_say_what_it_is(translator: Translator) -> None:
    said = repr(translator)
    assert said.startswith("Translator(") and "1+1 layers" in said and "float32" in said


def test_a_model_without_a_start_is_refused() -> None:
    model = build(model_of().config.with_(start_id=None))
    with pytest.raises(Refused, match="start_id"):
        Translator(model, CHARS)
