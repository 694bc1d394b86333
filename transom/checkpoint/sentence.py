"""sentence-transformers folders: an encoder, and beside it a list of what its hidden states go through.

modules.json names the steps: the encoder itself, how its positions are pooled, whether the vector is scaled
to length 1. What is written is their first layout, which every version of the library reads.
Source: `base/model.py` and `modules/pooling.py` of sentence-transformers 2 to 6. Read next: huggingface.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from transom.data.in_folder import inside
from transom.errors import Refused
from transom.model.config import ModelConfig

from .config_keys import ConfigKeys
from .config_labels import write_labels
from .strict_json import read_json, write_json
from .tensors import load_tensors, save_tensors

MODULES, PROMPTS = "modules.json", "config_sentence_transformers.json"
LIMITS = ("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")
"""Where the longest text stands, in tokens: the file and the key, up to version 5 and from then on."""
KNOWN = ("Transformer", "Pooling", "Normalize")
POOLING_PATH = "1_Pooling"
MODES: dict[str, Literal["first", "mean"]] = {"cls": "first", "mean": "mean"}
FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class Sentence:
    """What such a folder says besides its config.json."""

    pooling: Literal["first", "mean"]
    normalize: bool
    width: int | None
    """The width of a vector, where it is said."""

    def applied_to(self, config: ModelConfig, folder: Path) -> ModelConfig:
        """The encoder with this on top; raises Refused when the two do not fit."""
        if self.width not in (None, config.dim):
            raise Refused(
                f"{folder / MODULES}: vectors of {self.width}, but the encoder's are {config.dim} wide"
            )
        return config.with_(pooling=self.pooling, normalize=self.normalize)


def read_sentence(folder: Path) -> Sentence:
    """What modules.json and the files it names say; raises Refused for a step that is not computed here."""
    path = folder / MODULES
    steps = [_step(entry, path) for entry in read_json(inside(folder, MODULES), list)]
    kinds = tuple(kind for kind, _ in steps)
    if kinds not in (KNOWN, KNOWN[:2]):
        listed = ", ".join(kinds) or "nothing"
        raise Refused(f"{path}: lists {listed[:120]}; Transformer, Pooling and perhaps Normalize are read")
    if steps[0][1]:
        raise Refused(f"{path}: the encoder lies in {steps[0][1]!r}; it is read beside {MODULES} only")
    if steps[1][1] != POOLING_PATH:
        raise Refused(f"{path}: the pooling lies in {steps[1][1]!r}; it is read in {POOLING_PATH!r} only")
    _check_nothing_is_added(folder)
    name = f"{POOLING_PATH}/config.json"
    keys = ConfigKeys(read_json(inside(folder, name)), str(folder / name))
    width = keys.count("embedding_dimension", keys.count("word_embedding_dimension", None))
    return Sentence(_pooling(keys), len(steps) == len(KNOWN), width)


def _step(entry: Any, path: Path) -> tuple[str, str]:
    """The kind of one step, without the name of the library's module, and its folder."""
    kind, place = (entry.get("type"), entry.get("path")) if isinstance(entry, dict) else (None, None)
    if not isinstance(kind, str) or not isinstance(place, str):
        raise Refused(f"{path}: every step has a type and a path")
    return kind.rpartition(".")[2], place


def _pooling(keys: ConfigKeys) -> Literal["first", "mean"]:
    """How positions become one vector, in either spelling."""
    mode = keys.get("pooling_mode")
    if mode is None:
        chosen = [name for key, name in FLAGS.items() if keys.flag(key, False)]
        mode = chosen or ["mean"]
    modes = mode if isinstance(mode, list) else [mode]
    if len(modes) != 1 or modes[0] not in MODES:
        raise Refused(f"{keys.where}: pooling by {str(modes)[:80]}; one of {', '.join(MODES)} is read")
    return MODES[modes[0]]


def _check_nothing_is_added(folder: Path) -> None:
    """Text that the library would put more before is not changed here; lower case is the tokenizer's."""
    if (folder / PROMPTS).exists():
        keys = ConfigKeys(read_json(inside(folder, PROMPTS)), str(folder / PROMPTS))
        if keys.get("default_prompt_name"):
            raise keys.refuse(
                "default_prompt_name", "text would get a prompt in front, and here it gets none"
            )


def load_max_tokens(folder: str | Path, config: ModelConfig) -> int:
    """The longest text that an embedder is meant for, in tokens: as its folder says, else all it can read."""
    folder = Path(folder)
    for name, key in LIMITS:
        if (folder / name).exists():
            keys = ConfigKeys(read_json(inside(folder, name)), str(folder / name))
            value = keys.get(key)
            if type(value) is int and value > 0:  # transformers writes 10^30 for "no limit"
                return min(value, config.max_len)
    return config.max_len


def write_sentence(folder: Path, config: ModelConfig, max_tokens: int | None = None) -> None:
    """Everything that makes a folder with a bare encoder one that sentence-transformers reads."""
    kinds = KNOWN if config.normalize else KNOWN[:2]
    steps = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    write_json(folder / MODULES, steps)
    (folder / POOLING_PATH).mkdir()
    modes = {key: MODES.get(name) == config.pooling for key, name in list(FLAGS.items())[:4]}
    write_json(folder / POOLING_PATH / "config.json", {"word_embedding_dimension": config.dim, **modes})
    limit = min(max_tokens or config.max_len, config.max_len)
    write_json(folder / LIMITS[0][0], {"max_seq_length": limit, "do_lower_case": False})
    prompts = {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(folder / PROMPTS, prompts)


def write_classes(folder: Path, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
    """Put the head of a classifier behind the encoder of a folder that `write_sentence` wrote: the vector of
    a text then holds the scores of its classes, whose names stand in config.json.

    weights: of the head, by our names.
    """
    steps = read_json(folder / MODULES, list)
    for place, activation in (("head.dense", "activation.Tanh"), ("head.out", "linear.Identity")):
        path = f"{len(steps)}_Dense"
        (folder / path).mkdir()
        save_tensors(folder / path / "model.safetensors", {
            f"linear.{leaf}": weights[f"{place}.{leaf}"] for leaf in ("weight", "bias")
        })  # fmt: skip
        n_out, n_in = weights[f"{place}.weight"].shape
        write_json(folder / path / "config.json", {
            "in_features": n_in, "out_features": n_out, "bias": True,
            "activation_function": f"torch.nn.modules.{activation}",
        })  # fmt: skip
        steps.append({"idx": len(steps), "name": str(len(steps)), "path": path,
                      "type": "sentence_transformers.models.Dense"})  # fmt: skip
    (folder / MODULES).unlink()
    write_json(folder / MODULES, steps)
    described = read_json(folder / "config.json")
    (folder / "config.json").unlink()
    write_json(folder / "config.json", described | write_labels(config))


def read_classes(folder: Path) -> dict[str, Tensor]:
    """The weights that `write_classes` wrote, by our names."""
    found: dict[str, Tensor] = {}
    paths = [step["path"] for step in read_json(folder / MODULES, list)[2:]]
    for place, path in zip(("head.dense", "head.out"), paths, strict=True):
        tensors = load_tensors(folder / path / "model.safetensors")
        found |= {f"{place}.{name.removeprefix('linear.')}": tensor for name, tensor in tensors.items()}
    return found
