"""generation_config.json of a folder: obeyed as `transformers` obeys it, with nothing switched off."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

import transom
from tests.checkpoint.oracle import randomize
from transom.checkpoint.generation import GENTLE, GenerationConfig
from transom.errors import Refused
from transom.inference.token_rules import Ruling, TokenRules

V, PAD, END = 60, 59, 0
SOURCE, SOURCE_IDS = "w5 w9 w12 w7", [5, 9, 12, 7, END]


def words(folder: Path) -> None:
    """A tokenizer of words w2 to w58."""
    vocab = {"</s>": END, "<unk>": 1, **{f"w{i}": i for i in range(2, PAD)}, "<pad>": PAD}
    backend = Backend(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    backend.add_special_tokens(["</s>", "<unk>", "<pad>"])
    backend.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="$A </s>", special_tokens=[("</s>", END)]
    )
    (folder / "tokenizer.json").write_text(backend.to_str())
    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Marian whose padding is likelier than anything, as in folders that forbid it."""
    from transformers import MarianConfig, MarianMTModel

    folder = tmp_path_factory.mktemp("marian")
    config = MarianConfig(
        vocab_size=V, d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64,
        pad_token_id=PAD, eos_token_id=END, decoder_start_token_id=PAD, scale_embedding=True,
    )  # fmt: skip
    model = randomize(MarianMTModel(config))
    with torch.no_grad():
        model.final_logits_bias[0, PAD] = 4.0
        model.final_logits_bias[0, END] = 1.0
    model.save_pretrained(folder)
    words(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random decoder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None,
        eos_token_id=END, pad_token_id=PAD,
    )  # fmt: skip
    randomize(LlamaForCausalLM(config)).save_pretrained(folder)
    words(folder)
    return folder


def saying(folder: Path, at: Path, **said: Any) -> Path:
    """A copy of a folder whose generation_config.json says this besides its ids."""
    shutil.copytree(folder, at)
    path = at / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | said))
    return at


RULES: list[dict[str, Any]] = [
    {"bad_words_ids": [[PAD]]},
    {"bad_words_ids": [[PAD], [27, 20], [38], [END]]},
    {"forced_bos_token_id": 33},
    {"forced_eos_token_id": END},
    {"forced_bos_token_id": 33, "begin_suppress_tokens": [20, 38, 27], "suppress_tokens": [PAD]},
    {"begin_suppress_tokens": [PAD, 27]},
    {"suppress_tokens": [PAD, 20], "forced_eos_token_id": [END]},
    {"no_repeat_ngram_size": 2, "bad_words_ids": [[PAD]]},
    {"no_repeat_ngram_size": 1},
    {"min_length": 6, "suppress_tokens": [PAD]},
    {"min_new_tokens": 4, "suppress_tokens": [PAD]},
    {"repetition_penalty": 1.7, "bad_words_ids": [[PAD]]},
    {"length_penalty": 0.3, "early_stopping": True, "bad_words_ids": [[PAD]]},
    {"length_penalty": 2.0, "early_stopping": "never", "bad_words_ids": [[PAD]]},
]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("said", RULES, ids=lambda said: "+".join(said))
def test_translations_are_those_of_transformers(marian, tmp_path, said, beams):
    from transformers import MarianMTModel

    folder = saying(marian, tmp_path / "model", num_beams=beams, **said)
    theirs = MarianMTModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = theirs.generate(torch.tensor([SOURCE_IDS]), max_new_tokens=10)[0].tolist()
    found = transom.load(folder).translate(SOURCE, max_tokens=10)
    assert [PAD, *found.tokens] == expected


def test_the_settings_are_in_config_json_where_there_is_no_other_file(marian, tmp_path):
    from transformers import MarianMTModel

    folder = saying(marian, tmp_path / "model")
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    said = {"bad_words_ids": [[PAD]], "num_beams": 2, "max_length": 9, "forced_eos_token_id": END}
    (folder / "config.json").write_text(json.dumps(config | said))
    with torch.no_grad():
        expected = MarianMTModel.from_pretrained(folder).eval().generate(torch.tensor([SOURCE_IDS]))
    found = transom.load(folder).translate(SOURCE)
    assert [PAD, *found.tokens] == expected[0].tolist()


def test_an_end_that_was_forced_is_no_end(marian, tmp_path):
    folder = saying(marian, tmp_path / "model", forced_eos_token_id=END, suppress_tokens=[PAD])
    cut = transom.load(folder).translate(SOURCE, max_tokens=3)
    assert cut.tokens[-1] == END and not cut.finished


@pytest.mark.parametrize("said", [said for said in RULES if "length_penalty" not in said], ids="+".join)
@pytest.mark.parametrize("prompt", [[5], [5, 9, 12, 9]], ids=["one token", "four"])
def test_greedy_texts_are_those_of_transformers(llama, tmp_path, said, prompt):
    from transformers import LlamaForCausalLM

    folder = saying(llama, tmp_path / "model", do_sample=False, **said)
    theirs = LlamaForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=12)[0].tolist()
    ours = transom.load(folder)
    assert prompt + ours.generate(prompt, max_tokens=12).tokens == expected
    ours.generation.sampling.pop("temperature")  # rules hold for what is drawn too
    drawn = ours.generate(prompt, max_tokens=12, n=4, seed=1)
    forbidden = set(said.get("suppress_tokens", ())) | {
        w[0] for w in said.get("bad_words_ids", ()) if len(w) == 1
    }
    assert not any(forbidden - {END} & set(one.tokens) for one in drawn)


def test_drafts_obey_the_rules(llama, tmp_path):
    from transom.inference.engine import Engine, EngineSettings

    folder = saying(llama, tmp_path / "model", no_repeat_ngram_size=3, suppress_tokens=[20])
    ours = transom.load(folder)
    usual = ours.generate([5, 9, 12, 7], max_tokens=24, temperature=0, ignore_eos=True).tokens
    engine: Engine = ours.engine(EngineSettings(draft=4))
    (request,) = ours.request([5, 9, 12, 7], ours.params(dict(max_tokens=24, temperature=0, ignore_eos=True)))
    engine.submit(request)
    while engine.busy:
        engine.step()
    assert request.tokens == usual


def test_what_a_call_leaves_out_is_as_the_folder_says(llama, tmp_path):
    said = {
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.01,
        "max_new_tokens": 5,
    }
    ours = transom.load(saying(llama, tmp_path / "model", repetition_penalty=1.2, **said))
    plain = transom.load(llama)
    given = {"temperature": 0.6, "top_k": 3, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2}
    assert (
        ours.generate("w5 w7", seed=3).tokens == plain.generate("w5 w7", seed=3, max_tokens=5, **given).tokens
    )
    # What is given comes first, one setting at a time.
    free = given | {"temperature": 2.0, "top_k": None}
    assert (
        ours.generate("w5 w7", seed=3, temperature=2.0, top_k=None, max_tokens=20).tokens
        == plain.generate("w5 w7", seed=3, max_tokens=20, **free).tokens
    )
    assert "".join(ours.stream("w5 w7", seed=3)) == ours.generate("w5 w7", seed=3).text


def test_gentle_is_only_what_nobody_decided():
    silent, firm = GenerationConfig(), GenerationConfig(sampling={"top_k": 5, "repetition_penalty": 1.1})
    assert silent.draws({"seed": 3}, chat=True) == {**GENTLE, "seed": 3}
    assert GenerationConfig(sampling={"repetition_penalty": 1.1}).draws({}, chat=True).keys() > GENTLE.keys()
    assert silent.draws({"min_p": 0.1}, chat=True) == {"min_p": 0.1}
    assert firm.draws({"top_k": 7}, chat=True) == {"top_k": 7, "repetition_penalty": 1.1}
    assert silent.draws({}) == {}


def test_one_likeliest_token_makes_every_answer_the_same(llama, tmp_path):
    ours = transom.load(saying(llama, tmp_path / "model", top_k=1))
    assert len({tuple(ours.generate("w5", max_tokens=8).tokens) for _ in range(4)}) == 1


def test_a_length_counts_the_prompt(llama, tmp_path):
    ours = transom.load(saying(llama, tmp_path / "model", max_length=9, suppress_tokens=[END]))
    prompt = [5, 9, 12]
    assert len(ours.generate(prompt).tokens) == 6


def test_what_is_not_obeyed_is_said_once(llama, marian, tmp_path, caplog):
    folder = saying(llama, tmp_path / "a", typical_p=0.9, num_beams=4, guidance_scale=1.0, use_cache=True)
    with caplog.at_level(logging.WARNING):
        transom.load(folder)
    (told,) = caplog.messages
    assert told.endswith("generation_config.json: not obeyed here: typical_p 0.9, num_beams 4")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        transom.load(saying(marian, tmp_path / "b", do_sample=True, diversity_penalty=0.5))
    assert caplog.messages[0].endswith("diversity_penalty 0.5, do_sample True")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        transom.load(marian)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"temperature": -1}, "generation_config.json: temperature is -1; it must be"),
        ({"temperature": "hot"}, "generation_config.json: temperature is 'hot'"),
        ({"top_p": 7}, "top_p is 7"),
        ({"do_sample": "yes"}, "do_sample is 'yes'; true or false"),
        ({"bad_words_ids": [5]}, "bad_words_ids is"),
        ({"bad_words_ids": [[]]}, "bad_words_ids is"),
        ({"bad_words_ids": [["a"]]}, "bad_words_ids is"),
        ({"forced_bos_token_id": 60}, "forced_bos_token_id is '60'; one of the model's 60 tokens"),
        ({"forced_bos_token_id": [1, 2]}, "forced_bos_token_id is"),
        ({"suppress_tokens": [-1]}, "suppress_tokens is"),
        ({"no_repeat_ngram_size": 1.5}, "no_repeat_ngram_size is '1.5'"),
        ({"length_penalty": "long"}, "length_penalty is 'long'"),
        ({"early_stopping": "always"}, "early_stopping is 'always'"),
        ({"max_new_tokens": 0}, "max_new_tokens is '0'"),
    ],
)
def test_values_that_mean_nothing_are_refused(llama, tmp_path, said, message):
    with pytest.raises(Refused, match=message):
        transom.load(saying(llama, tmp_path / "model", **said))


def test_ids_of_no_token_need_no_rule(llama, tmp_path):
    transom.load(saying(llama, tmp_path / "model", suppress_tokens=[60, 7], bad_words_ids=[[99], [1, 99]]))


def test_a_folder_without_rules_has_none():
    assert not TokenRules(GenerationConfig())
    assert TokenRules(GenerationConfig(no_repeat_ngram_size=2)).at([1, 2, 3, 1], 3, 9, ()) == Ruling((2,))
