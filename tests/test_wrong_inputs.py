"""Wrong inputs of every kind (files, settings, folders, prompts): each gets its one exact line and exit code 2.

The command lines that are wrong in themselves are in test_cli.py, wrong TOML files in test_settings.py.
"""

# ruff: noqa: E501 - a line of the table is the whole line that a person sees
from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from transom.__main__ import run
from transom.checkpoint.huggingface import save_model
from transom.data.tokenizer import train_tokenizer
from transom.model.config import ModelConfig
from transom.model.transformer import Transformer

TEXT = "".join(f"line {i} of a text that is long enough\n" for i in range(400))
FILES = {
    "good.txt": TEXT.encode(),
    "tiny.txt": b"hi",
    "empty.txt": b"",
    "latin.txt": b"first line\ncaf\xe9\n",
    "nul.txt": b"a\x00b\n",
    "utf16.txt": "text".encode("utf-16"),
    "field.jsonl": b'{"text": "a"}\n{"txt": "b"}\n',
    "list.jsonl": b'{"text": "a"}\n[1]\n',
    "type.jsonl": b'{"text": "a"}\n{"text": 5}\n',
    "broken.jsonl": b'{"text": "a"\n',
    "columns.csv": b"a,b\n1,2\n",
    "notgz.txt.gz": b"plain",
    "unit.toml": b'budget = "10 parsecs"\n',
    "name.toml": b"[optim]\nlrr = 1\n",
    "syntax.toml": b"budget = \n",
    "one.en": "".join(f"sentence number {i}\n" for i in range(60)).encode(),
    "one.de": "".join(f"Satz Nummer {i}\n" for i in range(59)).encode(),
    "gap.de": "".join("\n" if i == 7 else f"Satz Nummer {i}\n" for i in range(60)).encode(),
    "long.de": "".join(f"{'Wort ' * 400 if i % 20 == 3 else 'Satz'}\n" for i in range(60)).encode(),
    "same.tsv": ("label\ttext\n" + "".join(f"a\ttext number {i}\n" for i in range(60))).encode(),
    "two.tsv": ("label\ttext\n" + "".join(f"{'ab'[i % 2]}\ttext number {i}\n" for i in range(60))).encode(),
    "third.tsv": ("label\ttext\n" + "".join(f"{'ac'[i % 2]}\tanother {i}\n" for i in range(10))).encode(),
    "hole.tsv": ("label\ttext\n" + "".join(f"{'ab'[i % 2]}\t{'x' * (i != 5)}\n" for i in range(60))).encode(),
    "three.tsv": "".join(f"a{i} b{i}\tc{i} d\te{i} f\n" for i in range(20)).encode(),
}
SMALL = {"--data.tokenizer": "bytes", "--model.max-len": "32", "--model.dim": "32", "--steps": "1"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files to trip over, and a tiny model in several states of disrepair."""
    folder = tmp_path_factory.mktemp("wrong")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    for name in ("hollow", "only-bin", "pictures"):
        (folder / name).mkdir()
    (folder / "only-bin" / "config.json").write_text('{"model_type": "llama"}')
    (folder / "only-bin" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (folder / "pictures" / "cat.png").write_bytes(b"\x89PNG")
    tokenizer = train_tokenizer("bytes", iter([TEXT]), 258)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, dim=16, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=8,
        ffn_dim=16, max_len=32, pad_id=tokenizer.pad_id, eos_id=tokenizer.eos_id, bos_id=tokenizer.eos_id,
    )  # fmt: skip
    model = folder / "model"
    model.mkdir()
    save_model(model, Transformer(config), tokenizer)
    for name in ("truncated", "strange", "narrow", "mute", "remote", "scaled"):
        shutil.copytree(model, folder / name)
    weights = folder / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    edit(folder / "strange", model_type="mamba")
    edit(folder / "narrow", hidden_size=24)
    edit(folder / "scaled", rope_scaling={"rope_type": "yarn", "factor": 4.0}, rope_parameters=None)
    (folder / "mute" / "tokenizer.json").unlink()
    (folder / "remote" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.norm.weight": "../../secret.safetensors"}})
    )
    (folder / "remote" / "model.safetensors").unlink()
    return folder


def edit(folder: Path, **keys: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


TRAIN = {
    "nothere.txt": "nothere.txt: no such file or folder",
    "tiny.txt": "tiny.txt (to learn from): 2 tokens are fewer than one window of 32 and its last target; give more text, or a --model.max-len of at most 1",
    "empty.txt": "empty.txt: there is no text in it (1 empty); name a file or folder that holds some",
    "latin.txt": "latin.txt:2: byte 14 (0xe9) is not UTF-8; convert the file (iconv -f windows-1252 -t utf-8) (or --data.on-error skip or replace)",
    "nul.txt": "nul.txt:1: byte 1 is NUL, which text does not hold; remove it (tr -d '\\000') (or --data.on-error skip or replace)",
    "utf16.txt": "utf16.txt:1: byte 0: this is UTF-16, not UTF-8; convert it with `iconv -f utf-16 -t utf-8` (or --data.on-error skip)",
    "hollow": "hollow: no text files in this folder (it is empty)",
    "pictures": "pictures: no text files in this folder (1 binary files)",
    "field.jsonl": "field.jsonl:2: the record has no field 'text'; did you mean 'txt'? (or --data.on-error skip)",
    "list.jsonl": 'list.jsonl:2: the record is a list, not an object such as {"text": "..."} (or --data.on-error skip)',
    "type.jsonl": "type.jsonl:2: field 'text' is a number, not text (or --data.on-error skip)",
    "broken.jsonl": 'broken.jsonl:1: not a JSON object on one line (Expecting \',\' delimiter at column 13); write {"text": "a"} (or --data.on-error skip)',
    "columns.csv": "columns.csv:2: which field holds the text? The record has a, b: set --data.field (a column number where the file has no header row)",
    "columns.csv --data.field c": "columns.csv:2: the record has no field 'c'; it has a, b (or --data.on-error skip)",
    "notgz.txt.gz": "notgz.txt.gz: not a whole gzip file (Not a gzipped file (b'pl')); make it again or give the unpacked text",
    "good.txt --data.tokenizer wordz": "tokenizer 'wordz' is none of bpe, bytes, chars or a folder that holds one",
    "good.txt --data.tokenizer hollow": "hollow/tokenizer.json: no such file; a model folder needs one (transformers writes it with AutoTokenizer.from_pretrained(...).save_pretrained(...))",
    "good.txt --batch.tokens 10": "batch.tokens is 10, less than one window of 32 tokens (model.max_len); give at least 32",
    "good.txt --model.n-heads 3 --model.n-kv-heads 2": "model: n_heads 3 is not a multiple of n_kv_heads 2",
    "good.txt --model.head-dim 7": "model: head_dim 7 is odd; rotary positions turn pairs of channels",
    "good.txt --model.dim 100000000 --dtype float32": "this model would take 5,760,002,190.9 GB to train, one window of 32 tokens at a time (5,760,000,734.4 GB of it weights, gradients and optimizer), and N GB are free; choose a smaller --model.size, --model.dim or --model.max-len",
    "good.txt --device tpu": "device is 'tpu'; this machine has cpu",
    "good.txt --out tiny.txt": "tiny.txt is a file; --out names the folder of the run",
    "good.txt --out tiny.txt/below": "tiny.txt is a file; --out names the folder of the run",
    "good.txt --out nowhere --resume": "nowhere holds no run to resume; leave out --resume to start one there",
    "good.txt --config unit.toml": "unit.toml:1: budget: '10 parsecs' has a unit that is not known; use s, min, h or d",
    "good.txt --config name.toml": "name.toml:2: 'optim.lrr' is not a setting; did you mean 'optim.lr'?",
    "good.txt --config syntax.toml": "syntax.toml: not TOML: Invalid value (at line 1, column 10)",
}
EXAMPLES = {
    "one.en --data.target one.de": "one.en has 60 lines and one.de has 59: aligned files have equally many, line n of one being the translation of line n of the other; find where a line was lost or added",
    "one.en --data.target gap.de": "gap.de:8: the target side is empty while the other is not; fill it in or remove the pair (or --data.on-error skip)",
    "one.en --data.target long.de": "one.en:4: 18 source and 2,000 target tokens, the limit is 32; 3 of 60 pairs (5.0%, at most 1% may) are longer: set --model.max-len to 2,000, or shorten them",
    "one.en --data.target missing.de": "missing.de: no such file or folder",
    "one.en --task translate": "one.en: one column of text, where pairs have two sides; name the file of the other side as --data.target, or give a TSV, a CSV or JSON lines",
    "one.en --data.validation gap.de --data.target gap.de": "the pairs stand in two files, so name both: --data.validation and --data.validation-target",
    "three.tsv --task translate": "three.tsv:1: which of 3 columns (a0 b0, c0 d, e0 f) are source and target? Set --data.field and --data.target-field, to names or to numbers from 1",
    "same.tsv --task classify": "same.tsv: all 60 texts have the label 'a'; a classifier needs at least two classes",
    "two.tsv --data.validation third.tsv": "third.tsv:3: the label 'c' never occurs in two.tsv; it has a, b",
    "hole.tsv --task classify": "hole.tsv:7: the text is empty; fill it in or remove the line (or --data.on-error skip)",
    "two.tsv --task classify --data.label topic": "two.tsv:1: no column is named 'topic'; it has label, text; a table without a header takes column numbers from 1",
    "two.tsv --task classify --model lstm": "model.kind is lstm, and an lstm cannot learn to classify; use --model encoder, or --task lm or sft or preference or translate",
    "two.tsv --task classify --model.weights hollow": "hollow/config.json: no such file; a model folder holds one",
    "two.tsv --task classify --data.validation-target x": "--data.validation-target is set, but the task is classify; it is for translate, embed",
    "good.txt --data.label x": "--data.label is set, but the task is lm; it is for classify",
    "good.txt --model encoder --task translate": "model.kind is encoder, and an encoder cannot learn to translate; use --model encoder-decoder or rnn or lstm or gru, or --task mlm or classify or embed",
    "good.txt --model.experts 2 --model.active-experts 3": "model.active-experts is 3, and there are 2 experts",
    "good.txt --model lstm --model.experts 4": "model: an lstm has no feed-forward that experts could replace",
}
ANSWER = {
    "translate model hi": "model is a Generator; use transom generate",
    "classify model hi": "model is a Generator; use transom generate",
    "translate model hi --input one.en": "texts are given twice: on the command line and in one.en; leave one out",
    "embed model --input nothere.txt": "nothere.txt: no such file or folder",
    "evaluate model": "model lies in no run that held text out; name a text by --test FILE",
    "compare lstm bert2": "'bert2' is not a member of the family; did you mean 'bert'?; it can be decoder, encoder, encoder-decoder, rnn, lstm, gru, or one with +experts",
    "lab backprop --sizes 2-x": "sizes is '2-x'; give units of each layer, such as 2-3-1",
}
GENERATE = {
    "nothere hi": "nothere: no such folder (a model on the hub is called owner/name)",
    "nobody/nothing hi": "nobody/nothing: no such folder, and not fetched from the Hugging Face hub (HF_HUB_OFFLINE is set)",
    "good.txt hi": "good.txt: a file; a model is a folder with config.json and model.safetensors, or a .gguf file",
    "hollow hi": "hollow/config.json: no such file; a model folder holds one",
    "only-bin hi": "only-bin/tokenizer.json: no such file; a model folder needs one (transformers writes it with AutoTokenizer.from_pretrained(...).save_pretrained(...))",
    "truncated hi": "truncated/model.safetensors: its tensors take 23,872 bytes, but 23,862 are there",
    "strange hi": "strange/config.json: model_type is 'mamba'; read are bert, dots1, gpt2, llama, marian, mistral, mixtral, olmoe, qwen2, qwen3, qwen3_moe, roberta, seed_oss, t5 and transom",
    "narrow hi": "narrow/model.safetensors: tensor 'model.layers.0.input_layernorm.weight' has shape (16,); the config asks for (24,)",
    "scaled hi": "scaled/config.json: rope_scaling: rope_type is 'yarn'; supported are default, linear, llama3",
    "mute hi": "mute/tokenizer.json: no such file; a model folder needs one (transformers writes it with AutoTokenizer.from_pretrained(...).save_pretrained(...))",
    "remote hi": "remote/model.safetensors.index.json: '../../secret.safetensors' is not a plain name of a .safetensors file",
    "model "
    + 40
    * "x": "the prompt has 40 tokens and max_tokens is 1: together 41, where this model's limit (max_len) is 32; shorten the prompt by 9 tokens",
    "model "
    + 40 * "x"
    + " --max-tokens 99": "the prompt has 40 tokens and max_tokens is 99: together 139, where this model's limit (max_len) is 32; shorten the prompt and set max_tokens below 32",
    "model hi --max-tokens 99": "the prompt has 2 tokens and max_tokens is 99: together 101, where this model's limit (max_len) is 32; set max_tokens to at most 30",
    "model hi --max-tokens 31": "the prompt has 2 tokens and max_tokens is 31: together 33, where this model's limit (max_len) is 32; shorten the prompt by 1 token or set max_tokens to at most 30",
    "model hi --max-tokens 0": "max_tokens is 0; it must be a whole number, at least 1, below 2^31",
    "model hi --temperature -1": "temperature is -1; it must be between 0 (the likeliest token) and 100",
    "model hi --top-p -1": "top_p is -1; it must be between 0 (the likeliest token) and 1 (no limit)",
    "model hi --top-k 0": "top_k is 0; it must be a whole number, at least 1, below 2^31, or None for no limit",
    "model hi --min-p 2": "min_p is 2; it must be between 0 (no limit) and 1",
    "model hi --repetition-penalty 0": "repetition_penalty is 0; it must be a number above 0 (1: no penalty), at most 100",
    "model hi --n 0": "n is 0; it must be a whole number from 1 to 128",
    "model hi --logprobs 99 --json": "logprobs is 99; it must be a whole number from 0 to 20, or None",
    "model hi --stop "
    + 300 * "s": "stop 'ssssssssssss...sssssssssssss' is longer than 256 bytes of UTF-8, the limit",
    "model hi --dtype int4": "dtype is 'int4'; it must be one of auto, float32, bfloat16, float16",
}


def refusal(words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> str:
    """Run one command line in `place`; the one line of its refusal."""
    monkeypatch.chdir(place)
    assert run(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err
    said = [line for line in shown.err.splitlines() if line.startswith("transom: ")]
    assert len(said) == 1 and shown.err.endswith(said[0] + "\n")
    # How much memory is free is this machine's affair.
    return re.sub(r"[\d.,]+ GB are free", "N GB are free", said[0].removeprefix("transom: "))


@pytest.mark.parametrize(("words", "line"), (TRAIN | EXAMPLES).items(), ids=TRAIN | EXAMPLES)
def test_train_refuses(words, line, place, monkeypatch, capsys):
    rest = [word for option in SMALL.items() if option[0] not in words for word in option]
    assert refusal(["train", *words.split(), *rest], place, monkeypatch, capsys) == line


@pytest.mark.parametrize(("words", "line"), GENERATE.items(), ids=GENERATE)
def test_generate_refuses(words, line, place, monkeypatch, capsys):
    assert refusal(["generate", *words.split()], place, monkeypatch, capsys) == line


@pytest.mark.parametrize(("words", "line"), ANSWER.items(), ids=ANSWER)
def test_other_verbs_refuse(words, line, place, monkeypatch, capsys):
    assert refusal(words.split(), place, monkeypatch, capsys) == line
